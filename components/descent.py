"""A step of gradient descent of many perceptrons at once, and the step's own exact derivative, by hand.

Autograd takes the second derivative through a graph of the first; here both are written as matrix products that also add into the
weights, so no gradient of the size of the weights is ever stored by itself. The second derivative times a direction is the R-operator
(Pearlmutter 1994, Neural Computation 6(1), sec. 3): forward and backward pass once more, each value with its rate of change along the direction.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.objectives import Objective


def _where_on(x: Tensor, unit: Tensor) -> Tensor:
    """Return x where the ReLU unit is on, else zero; in one pass, which a product with a mask is not."""
    found: Tensor = torch.ops.aten.threshold_backward(x, unit, 0)
    return found


def _pass(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the input of every layer and the output. weights: W [T, out, in] and b [T, out] of each layer in turn; ReLU between."""
    values = [x]
    for i in range(0, len(weights), 2):
        z = torch.baddbmm(weights[i + 1].unsqueeze(1), values[-1], weights[i].transpose(1, 2))
        values.append(z.relu_() if i + 2 < len(weights) else z)
    return values


class _Descent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, objective: Objective, rate: float, first_order: bool, *weights: Tensor) -> tuple[Tensor, ...]:
        assert objective.slope is not None
        values = _pass(x, weights)
        deltas, moved = [objective.slope(values[-1], y)], list(weights)
        for i in range(len(weights) - 2, -1, -2):
            delta, below = deltas[-1], values[i // 2]
            moved[i] = torch.baddbmm(weights[i], delta.transpose(1, 2), below, alpha=-rate)
            moved[i + 1] = torch.sub(weights[i + 1], delta.sum(1), alpha=rate)
            if i:
                deltas.append(_where_on(torch.bmm(delta, weights[i]), below))
        ctx.objective, ctx.rate, ctx.first_order = objective, rate, first_order
        if not first_order:
            ctx.save_for_backward(y, *weights, *values, *reversed(deltas))
        return tuple(moved)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *v: Tensor) -> Any:
        """Return v - rate H v: the derivative of w - rate g(w) is symmetric."""
        if ctx.first_order:
            return None, None, None, None, None, *v
        count, rate = len(v), ctx.rate
        y, saved = ctx.saved_tensors[0], ctx.saved_tensors[1:]
        weights, values, deltas = saved[:count], saved[count : count + count // 2 + 1], saved[count + count // 2 + 1 :]
        changes: list[Tensor | None] = [None]  # of each layer's input; the first does not change
        for i in range(0, count, 2):
            change = torch.baddbmm(v[i + 1].unsqueeze(1), values[i // 2], v[i].transpose(1, 2))
            if changes[-1] is not None:
                change = change.baddbmm_(changes[-1], weights[i].transpose(1, 2))
            changes.append(_where_on(change, values[i // 2 + 1]) if i + 2 < count else change)
        assert changes[-1] is not None
        bent, result = ctx.objective.bend(values[-1], y, changes[-1]), list(v)
        for i in range(count - 2, -1, -2):
            delta, below, change_below = deltas[i // 2], values[i // 2], changes[i // 2]
            result[i] = torch.baddbmm(v[i], bent.transpose(1, 2), below, alpha=-rate)
            result[i + 1] = torch.sub(v[i + 1], bent.sum(1), alpha=rate)
            if change_below is not None:
                result[i] = result[i].baddbmm_(delta.transpose(1, 2), change_below, alpha=-rate)
                bent = _where_on(torch.bmm(bent, weights[i]).baddbmm_(delta, v[i]), below)
        return None, None, None, None, None, *result


def descend(weights: Sequence[Tensor], x: Tensor, y: Tensor, objective: Objective, rate: float, first_order: bool) -> tuple[Tensor, ...]:
    """Return the weights after one step of gradient descent on each task's own loss, differentiable once.

    weights: W [T, out, in] and b [T, out] of each layer in turn, ReLU between layers. x [T, N, D], held constant; y [T, N].
    `objective` must have `slope` and `bend`.
    """
    with torch.autocast(x.device.type, enabled=False):  # the products add into the weights, in their precision
        result: tuple[Tensor, ...] = _Descent.apply(x.to(weights[0].dtype), y, objective, rate, first_order, *weights)  # type: ignore[no-untyped-call]
    return result
