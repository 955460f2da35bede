"""The served model: support and query in, calibrated probabilities out, any way and shot. Weights are safetensors; nothing is unpickled.

MLflow runs this file as the model's code ("models from code"), with the learner's folder as its artifact.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec


def signature(learner: str | Path) -> ModelSignature:
    """Return the model's signature: examples first, then whatever the domain stores an item as; -1 is any number of them."""
    shape = json.loads((Path(learner) / "learner.json").read_text())["spec"]["input_shape"][1:]
    inputs = [
        TensorSpec(np.dtype("uint8"), (-1, *shape), "support_x"),
        TensorSpec(np.dtype("int64"), (-1,), "support_y"),
        TensorSpec(np.dtype("uint8"), (-1, *shape), "query_x"),
    ]
    return ModelSignature(Schema(inputs), Schema([TensorSpec(np.dtype("float32"), (-1, -1), "probabilities")]))


def requirements() -> list[str]:
    """Return the packages that serving needs, at the versions that are installed."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "torch", "numpy", "safetensors", "pyarrow")]


class ServedLearner(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined, misc]
    """One task a request: support_x [S, H, W] uint8, support_y [S] labels 0..way-1, query_x [Q, H, W] -> probabilities [Q, way]."""

    def load_context(self, context: Any) -> None:
        from components.learners import store

        self.learner, _, _ = store.load(context.artifacts["learner"])

    def predict(self, context: Any, model_input, params=None):  # type: ignore[no-untyped-def]
        return predict(self.learner, model_input["support_x"], model_input["support_y"], model_input["query_x"])


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
        return images.prepare(torch.from_numpy(np.ascontiguousarray(raw, dtype=np.uint8)))[None]

    with torch.no_grad():
        support = Examples(tensor(support_x), torch.from_numpy(np.asarray(support_y, dtype=np.int64))[None], len(labels))
        return np.asarray(learner.predict(learner.adapt(support), tensor(query_x))[0].softmax(-1).numpy())


if __name__ != "components.serving":  # MLflow executes this file under a name of its own
    mlflow.models.set_model(ServedLearner())
