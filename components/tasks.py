"""The tensors that flow: T tasks at once, always."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Labelled examples of T tasks: x [T, S, ...], y [T, S] with labels 0..way-1."""

    x: Tensor
    y: Tensor
    way: int


@dataclass(frozen=True)
class TaskBatch:
    """T tasks: what a learner adapts to and what it is then asked."""

    support: Examples
    query: Examples
