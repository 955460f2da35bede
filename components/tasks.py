"""The tensors that flow: T tasks at once, always."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Examples of T tasks: x [T, S, ...]; y [T, S], labels 0..way-1, or values where the objective is not classification (way 1)."""

    x: Tensor
    y: Tensor
    way: int

    def to(self, device: torch.device, non_blocking: bool = False) -> "Examples":
        return Examples(self.x.to(device, non_blocking=non_blocking), self.y.to(device, non_blocking=non_blocking), self.way)


@dataclass(frozen=True)
class TaskBatch:
    """T tasks: what a learner adapts to and what it is then asked."""

    support: Examples
    query: Examples

    def to(self, device: torch.device, non_blocking: bool = False) -> "TaskBatch":
        return TaskBatch(self.support.to(device, non_blocking), self.query.to(device, non_blocking))

    def take(self, tasks: slice) -> "TaskBatch":
        """Return some of the tasks, as views."""
        return TaskBatch(*(Examples(e.x[tasks], e.y[tasks], e.way) for e in (self.support, self.query)))


@dataclass(frozen=True)
class Lesson(TaskBatch):
    """T tasks that a student is taught on: besides its own support and query, what its teacher has.

    `taught`: the teacher's support, the student's own without noise and further examples of the same classes. `unlabelled` [T, U, ...]:
    inputs that are nobody's example.
    """

    taught: Examples
    unlabelled: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "Lesson":
        support, query, taught = (e.to(device, non_blocking) for e in (self.support, self.query, self.taught))
        return Lesson(support, query, taught, self.unlabelled.to(device, non_blocking=non_blocking))

    def take(self, tasks: slice) -> "Lesson":
        support, query, taught = (Examples(e.x[tasks], e.y[tasks], e.way) for e in (self.support, self.query, self.taught))
        return Lesson(support, query, taught, self.unlabelled[tasks])
