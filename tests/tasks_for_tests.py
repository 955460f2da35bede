"""Random tasks and small learners for tests."""

import torch
from torch import Tensor

from components.learners import store
from components.learners.learner import Learner
from components.learners.options import FAMILIES, RETURN
from components.learning import BackboneSection
from components.tasks import Examples, TaskBatch
from flows.config import load

CONV = BackboneSection("conv", [4, 6], [True, True], 0, "flatten", "batch", "relu")
MLP = BackboneSection("mlp", [16, 16], [], 0, "flatten", "batch", "relu")
PICTURES, VECTORS = (1, 28, 28), (5,)
ANSWERING = {name: of for name, of in FAMILIES.items() if of.objectives != RETURN}  # policies play: see test_control.py
OPTIONS = {name: load([f"learner={name}"]).learner.options for name in ANSWERING}
EVERY = [
    (name, objective, kind) for name, of in ANSWERING.items() for objective in of.objectives for kind in ("conv", "mlp") if (name, kind) != ("local", "mlp")
]
CLASSIFIERS = [name for name, of in FAMILIES.items() if "cross_entropy" in of.objectives]


def tasks(count: int = 3, way: int = 3, shot: int = 2, query: int = 4, shape: tuple[int, ...] = PICTURES, seed: int = 0, dtype=torch.float32) -> TaskBatch:
    """Tasks of classes, each around a centre of its own, when way > 1; else of values, a line over the inputs' first coordinate a task."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(count, 1, generator=generator, dtype=dtype)
    centres = torch.rand(count, way, *shape, generator=generator, dtype=dtype)
    spread, shift = (1, 0) if len(shape) > 1 else (4, 2)  # pictures in [0, 1], vectors in [-2, 2]

    def examples(each: int) -> Examples:
        noise = torch.rand(count, way * each, *shape, generator=generator, dtype=dtype)
        if way == 1:
            bent = 0.1 * torch.randn(count, each, generator=generator, dtype=dtype)
            return Examples(spread * noise - shift, slope * (2 * noise.flatten(2)[..., 0] - 1) + bent, 1)
        x = spread * (0.6 * centres.repeat_interleave(each, 1) + 0.4 * noise) - shift
        return Examples(x, torch.arange(way).repeat_interleave(each).expand(count, -1), way)

    return TaskBatch(examples(shot), examples(query))


def spec(name: str, objective: str = "cross_entropy", kind: str = "conv", **options) -> store.Spec:
    backbone, shape = (CONV, PICTURES) if kind == "conv" else (MLP, VECTORS)
    made = {"classes": 10, "scale": 8.0, "ridge": 0.1} if name == "theta*" else OPTIONS[name] | ({"unpooled": 0} if name == "local" else {}) | options
    return store.spec_of(name, made, backbone, shape, objective)


def predict(learner: Learner, batch: TaskBatch) -> Tensor:
    with torch.no_grad():
        return learner.predict(learner.adapt(batch.support), batch.query.x)


def gradient(learner: Learner, batch: TaskBatch) -> dict[str, Tensor]:
    learner.zero_grad()
    learner.meta_loss(batch)[0].backward()
    return {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}
