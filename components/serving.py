"""The served model: support and query in, calibrated probabilities or values out, any way and shot. Weights are safetensors; nothing is unpickled.

MLflow imports this module as the model's loader, with the learner's folder as its data.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from components.inputs import InputError
from components.manifest import intact

PART = 64  # of a query, answered at once
LARGEST = 1e15  # features of larger numbers have no norm in float32, and every answer would be as likely


def signature(learner: str | Path) -> ModelSignature:
    """Return the model's signature: examples first, then whatever the domain stores an item as; -1 is any number of them."""
    spec = json.loads((Path(learner) / "learner.json").read_text())["spec"]
    (item, shape), classes = stored(spec), spec["objective"] == "cross_entropy"
    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(item, (-1, *shape), "support_x"),
        TensorSpec(np.dtype("int64" if classes else "float32"), (-1,), "support_y"),
        TensorSpec(item, (-1, *shape), "query_x"),
    ]
    return ModelSignature(Schema(inputs), Schema([TensorSpec(np.dtype("float32"), (-1, -1), "probabilities" if classes else "values")]))


def stored(spec: dict[str, Any]) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return type and shape of an item as a pool stores it: pictures in uint8, grey ones without a channel, colour with it last; vectors in float32."""
    shape = tuple(spec["input_shape"])
    if len(shape) < 3:
        return np.dtype("float32"), shape
    return np.dtype("uint8"), shape[1:] + (3,) * (shape[0] == 3)


def example(pool: str | Path) -> dict[str, np.ndarray]:
    """Return a real request: two classes of the pool, one example each, and two pictures to name; or one class, two items with their values."""
    from components.domains.pool import open_pool

    opened = open_pool(pool)
    if opened.targets is not None:
        own = opened.first[opened.split("test")[0]] + np.arange(4)
        inputs, values = (np.ascontiguousarray(a[own]) for a in (opened.inputs, opened.targets))
        return {"support_x": inputs[:2], "support_y": values[:2], "query_x": inputs[2:]}
    first = opened.first[opened.split("test")[:2]]
    support, query = (np.ascontiguousarray(opened.inputs[first + shot]) for shot in (0, 1))
    return {"support_x": support, "support_y": np.arange(2), "query_x": query}


def requirements() -> list[str]:
    """Return the packages that serving needs, at the versions that are installed."""
    return [f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "torch", "numpy", "safetensors", "pyarrow")]


class ServedLearner:
    """One task a request: support_x [S, H, W] or [S, H, W, 3] uint8, support_y [S] labels 0..way-1, query_x [Q, H, W] -> probabilities [Q, way].

    Where tasks have values: support_x [S, D] float32, support_y [S] values, query_x [Q, D] -> values [Q, 1].
    """

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def predict(self, request: dict[str, np.ndarray], params: dict[str, Any] | None = None) -> np.ndarray:
        return predict(self.learner, request["support_x"], request["support_y"], request["query_x"])


def _load_pyfunc(path: str) -> ServedLearner:
    """Load the served model from its folder; the name is the one that MLflow calls."""
    from components.learners import store

    intact(path)
    return ServedLearner(store.load(path)[0])


def predict(learner: Any, support_x: np.ndarray, support_y: np.ndarray, query_x: np.ndarray) -> np.ndarray:
    """Adapt to one support set and return calibrated probabilities [Q, way], or values [Q, 1] (float32). Raises InputError as `adapt` does."""
    return answer(learner, adapt(learner, support_x, support_y), query_x)


def adapt(learner: Any, support_x: np.ndarray, support_y: np.ndarray, losses: list[float] | None = None) -> Any:
    """Adapt to stored items [S, ...] with their labels, or values; append the loss at the start and after each step to `losses`, where there are steps.

    Raises InputError where labels are not 0..way-1 with at least one example each, where the counts differ, or where no solution is found.
    """
    import torch

    from components.tasks import Examples

    if len(support_x) != len(support_y):
        raise InputError(f"support_y needs one label an example, got {len(support_y)} for {len(support_x)}. Send them side by side.")
    classes = learner.objective.name == "cross_entropy"
    labels = np.unique(support_y) if classes else np.zeros(1)
    if classes and (len(labels) < 2 or not np.array_equal(labels, np.arange(len(labels)))):
        raise InputError(f"support_y needs labels 0..way-1, at least two and none left out, got {labels.tolist()[:10]}. Number the classes from 0.")
    y = torch.from_numpy(np.array(support_y, dtype=np.int64 if classes else np.float32))[None]
    with torch.no_grad():
        support = Examples(learner.encode_tasks(_inputs(support_x)), y, len(labels))
        if losses is not None:
            losses += learner.support_losses(support)
        try:
            return learner.adapt_features(support)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise InputError(f"support needs numbers of the size that the model was trained on, got such that {error}. Check their scale.") from error


def answer(learner: Any, adapted: Any, query_x: np.ndarray) -> np.ndarray:
    """Return the calibrated probabilities [Q, way], or values [Q, 1] (float32), of an adapted learner for stored items [Q, ...].

    Raises InputError where an answer is no number.
    """
    import torch

    from components.learners.learner import transductive

    # Part by part, so that a large query takes no more memory than a small one; whole where one query changes another's answer.
    whole = transductive(learner)
    size = len(query_x) if whole else PART
    if whole and len(query_x) < 2:
        raise InputError("query needs two items at least for a learner with norm=task, which reads the statistics of all, got one. Send more at once.")
    with torch.no_grad():
        outputs = torch.cat([learner.predict(adapted, _inputs(query_x[i : i + size]))[0] for i in range(0, len(query_x), size)])
        told = np.asarray((outputs.softmax(-1) if learner.objective.name == "cross_entropy" else outputs).numpy())
    if not np.isfinite(told).all():
        raise InputError("support and query need numbers of the size that the model was trained on, got such that no answer is a number. Check their scale.")
    return told


def _inputs(raw: np.ndarray) -> Any:
    """Return stored items [N, ...] as the inputs of one task [1, N, ...]."""
    import torch

    from components.domains import images

    if raw.dtype.kind == "f" and not np.abs(raw).max(initial=0) <= LARGEST:
        raise InputError(f"support and query need numbers of at most {LARGEST:g}, got larger ones, whose squares overflow. Check their scale.")
    return images.prepare(torch.from_numpy(np.array(raw)))[None]
