"""The served model: support and query in, calibrated probabilities out, any way and shot. Weights are safetensors; nothing is unpickled.

MLflow imports this module as the model's loader, with the learner's folder as its data.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec


def signature(learner: str | Path) -> ModelSignature:
    """Return the model's signature: examples first, then whatever the domain stores an item as; -1 is any number of them."""
    shape = json.loads((Path(learner) / "learner.json").read_text())["spec"]["input_shape"][1:]
    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype("uint8"), (-1, *shape), "support_x"),
        TensorSpec(np.dtype("int64"), (-1,), "support_y"),
        TensorSpec(np.dtype("uint8"), (-1, *shape), "query_x"),
    ]
    return ModelSignature(Schema(inputs), Schema([TensorSpec(np.dtype("float32"), (-1, -1), "probabilities")]))


def example(pool: str | Path) -> dict[str, np.ndarray]:
    """Return a real request: two classes of the pool, one example each, and two pictures to name."""
    from components.domains.pool import open_pool

    opened = open_pool(pool)
    first = opened.first[opened.split("test")[:2]]
    support, query = (np.ascontiguousarray(opened.inputs[first + shot]) for shot in (0, 1))
    return {"support_x": support, "support_y": np.arange(2), "query_x": query}


def requirements() -> list[str]:
    """Return the packages that serving needs, at the versions that are installed."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "torch", "numpy", "safetensors", "pyarrow")]


class ServedLearner:
    """One task a request: support_x [S, H, W] uint8, support_y [S] labels 0..way-1, query_x [Q, H, W] -> probabilities [Q, way]."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def predict(self, request: dict[str, np.ndarray], params: dict[str, Any] | None = None) -> np.ndarray:
        return predict(self.learner, request["support_x"], request["support_y"], request["query_x"])


def _load_pyfunc(path: str) -> ServedLearner:
    """Load the served model from its folder; the name is the one that MLflow calls."""
    from components.learners import store

    return ServedLearner(store.load(path)[0])


def predict(learner: Any, support_x: np.ndarray, support_y: np.ndarray, query_x: np.ndarray) -> np.ndarray:
    """Adapt to one support set and return calibrated probabilities [Q, way] (float32).

    Raises ValueError where labels are not 0..way-1 with at least one example each, or the counts differ.
    """
    import torch

    from components.domains import images
    from components.tasks import Examples

    if len(support_x) != len(support_y):
        raise ValueError(f"support_y needs one label an example, got {len(support_y)} for {len(support_x)}. Send them side by side.")
    labels = np.unique(support_y)
    if len(labels) < 2 or not np.array_equal(labels, np.arange(len(labels))):
        raise ValueError(f"support_y needs labels 0..way-1, at least two and none left out, got {labels.tolist()[:10]}. Number the classes from 0.")

    def tensor(raw: np.ndarray) -> torch.Tensor:
        return images.prepare(torch.from_numpy(np.array(raw, dtype=np.uint8)))[None]

    with torch.no_grad():
        support = Examples(tensor(support_x), torch.from_numpy(np.asarray(support_y, dtype=np.int64))[None], len(labels))
        return np.asarray(learner.predict(learner.adapt(support), tensor(query_x))[0].softmax(-1).numpy())
