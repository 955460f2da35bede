"""Validation tasks: scores while training, and what is chosen by them (temperature, fusion weights). Never test tasks."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components.domains import images
from components.domains.pool import Pool
from components.learners.learner import Learner
from components.tasks import TaskBatch
from components.tasksets import TaskTable, batch, read_table


class Validation:
    """A table of tasks over items that are encoded once a pass: many tasks share them."""

    def __init__(self, pool: Pool, tasksets: str | Path, name: str = "val") -> None:
        self.table = read_table(tasksets, name)
        used = np.unique(np.concatenate([self.table.support.ravel(), self.table.query.ravel()]))
        self.items = images.prepare(torch.from_numpy(np.ascontiguousarray(pool.inputs[used])))
        place = np.zeros(len(pool.inputs), dtype=np.int32)
        place[used] = np.arange(len(used), dtype=np.int32)
        self.targets = None if pool.targets is None else torch.from_numpy(np.ascontiguousarray(pool.targets[used]))
        self.lowest = 0.0 if pool.targets is None else float(pool.targets.min())
        spread = 0.0 if pool.targets is None else float(pool.targets.max()) - self.lowest
        self.unit = max(1.0, spread / 5)  # of values, with each of which gains of an order double: percents are read as five stars
        self.compact = TaskTable(self.table.classes, place[self.table.support], place[self.table.query], self.table.group)

    def with_shots(self, more: int) -> "Validation":
        """Return the same tasks with up to `more` queries of every class moved to the support; one at least stays a query."""
        more = min(more, self.compact.query.shape[2] - 1)
        other = copy.copy(self)
        for name in ("table", "compact"):
            t: TaskTable = getattr(self, name)
            moved = TaskTable(t.classes, np.concatenate([t.support, t.query[:, :, :more]], 2), t.query[:, :, more:], t.group)
            setattr(other, name, moved)
        return other

    def task_batches(self, items: Tensor, size: int = 50) -> list[TaskBatch]:
        """Return the tasks in batches of `size`, reading from items [N, ...] in this object's order (raw or encoded)."""
        rows = np.arange(len(self.compact))
        return [batch(self.compact, rows[i : i + size], items, self.targets) for i in range(0, len(rows), size)]


@torch.no_grad()
def encode_items(learner: Learner, items: Tensor, size: int = 1000) -> Tensor:
    """Encode items [N, ...] in batches; the learner's mode is the caller's."""
    return torch.cat([learner.encode(part) for part in torch.split(items, size)])


@torch.no_grad()
def by_task(learner: Learner, validation: Validation, device: torch.device | None = None, features: Tensor | None = None) -> dict[str, Tensor]:
    """Return loss and score of each validation task [T], with calibrated outputs; `features` are the encoded items, where these are at hand."""
    objective, learner = learner.objective, learner.eval()
    features = encode_items(learner, validation.items.to(device or torch.device("cpu"))) if features is None else features
    found: dict[str, list[Tensor]] = {"loss": [], objective.score_name: []}
    for task in validation.task_batches(features):
        outputs = learner.predict_features(learner.adapt_features(task.support), task.query.x) / learner.temperature
        found["loss"].append(objective.loss(outputs, task.query.y))
        found[objective.score_name].append(objective.score(outputs, task.query.y))
    return {name: torch.cat(parts).cpu().double() for name, parts in found.items()}


def validate(learner: Learner, validation: Validation, device: torch.device | None = None) -> dict[str, float]:
    """Return mean loss and score on the validation tasks, with calibrated outputs."""
    return {name: values.mean().item() for name, values in by_task(learner, validation, device).items()}


@torch.no_grad()
def calibrate(learner: Learner, validation: Validation, features: Tensor | None = None) -> float:
    """Set the learner's temperature to the one with the least validation loss, by golden-section search over its logarithm.

    Guo et al. 2017, arXiv:1706.04599, sec. 4.2. The order of classes, hence accuracy, does not change. Values have no temperature. `features` are
    the encoded items, where these are at hand.
    """
    learner.eval()
    learner.temperature.fill_(1.0)
    if learner.objective.name != "cross_entropy":
        return 1.0
    features = encode_items(learner, validation.items) if features is None else features
    logits, labels = [], []
    for task in validation.task_batches(features):
        logits.append(learner.predict_features(learner.adapt_features(task.support), task.query.x).flatten(0, 1))
        labels.append(task.query.y.flatten())
    scores, truth = torch.cat(logits), torch.cat(labels)

    def loss(log_t: float) -> float:
        return torch.nn.functional.cross_entropy(scores / float(torch.tensor(log_t).exp()), truth).item()

    low, high, ratio = -4.0, 6.0, (5**0.5 - 1) / 2
    for _ in range(30):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    learner.temperature.fill_(float(torch.tensor((low + high) / 2).exp()))
    return float(learner.temperature)
