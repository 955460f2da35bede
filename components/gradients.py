"""Gradients that autograd is not left to work out alone: given ones, tasks in turn, inner steps recomputed, linear systems."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from components.tasks import TaskBatch

Metrics = dict[str, Tensor]


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[count:])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        gradients = [outer[0] * g for g in ctx.saved_tensors]
        return None, None, *gradients, *([None] * len(gradients))


def given(value: Tensor, tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """Return a scalar with the value of `value` whose gradient by `tensors[i]` is `gradients[i]`.

    Backward passes through the tensors as usual, so data-parallel reduction, scaling and accumulation see nothing special.
    """
    result: Tensor = _Given.apply(value.detach(), len(tensors), *tensors, *(g.detach() for g in gradients))  # type: ignore[no-untyped-call]
    return result


def in_turn(loss: Callable[[TaskBatch], tuple[Tensor, Metrics]], parameters: Sequence[Tensor], batch: TaskBatch, size: int) -> tuple[Tensor, Metrics]:
    """Return the mean loss over the batch, its gradient worked out `size` tasks at a time: memory does not grow with the batch.

    The value and the gradient are those of the whole batch, as long as tasks do not touch each other.
    """
    tasks = batch.query.y.shape[0]
    total, sums = torch.zeros(()), [torch.zeros_like(p) for p in parameters]
    metrics: Metrics = {}
    for start in range(0, tasks, size):
        part = batch.take(slice(start, start + size))
        share = part.query.y.shape[0] / tasks
        value, found = loss(part)
        for into, g in zip(sums, torch.autograd.grad(value, parameters, allow_unused=True), strict=True):
            if g is not None:
                into.add_(g, alpha=share)
        total = total.to(value) + share * value.detach()
        metrics = {name: metrics.get(name, 0.0) + share * m.detach() for name, m in found.items()}
    return given(total, parameters, sums), metrics


Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Function, inputs: int, *tensors: Tensor) -> Any:
        ctx.function, ctx.inputs = function, inputs
        ctx.save_for_backward(*tensors)
        with torch.no_grad():
            return tuple(t.detach() for t in function([t.detach() for t in tensors[:inputs]]))

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        wanted = ctx.needs_input_grad[2:]
        inputs = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors[: ctx.inputs], wanted, strict=False)]
        with torch.enable_grad():
            outputs = ctx.function(inputs)
        leaves = [t for t, need in zip([*inputs, *ctx.saved_tensors[ctx.inputs :]], wanted, strict=True) if need]
        gradients = iter(torch.autograd.grad(outputs, leaves, outer, allow_unused=True))
        return None, None, *(next(gradients) if need else None for need in wanted)


def recomputed(function: Function, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return function(inputs), keeping only its inputs: backward runs it again (Griewank and Walther 2000, ACM TOMS 26(1)).

    `parameters` are the leaves that `function` reads beside its inputs. Unlike torch's checkpoint, `function` may call autograd.grad.
    Called without gradients, it must work on detached inputs.
    """
    result: tuple[Tensor, ...] = _Recomputed.apply(function, len(inputs), *inputs, *parameters)  # type: ignore[no-untyped-call]
    return result


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float = 1e-10) -> Tensor:
    """Solve A x = b for T symmetric positive definite systems at once; `product` maps [T, n] to A times it. b [T, n] -> x [T, n].

    Hestenes and Stiefel 1952. A system stays as it is once its squared residual is below `tolerance` times that of b, or when it shows
    a direction of negative curvature (Nocedal and Wright 2006, Alg. 7.1).
    """
    x, r = torch.zeros_like(b), b.clone()
    p, rr = r, r.square().sum(1, keepdim=True)
    enough = rr * tolerance
    for _ in range(steps):
        going = rr > enough
        if not going.any():
            break
        ap = product(p)
        curvature = (p * ap).sum(1, keepdim=True)
        going = going & (curvature > 0)
        alpha = torch.where(going, rr / curvature, 0.0)
        x, r = x + alpha * p, r - alpha * ap
        new = torch.where(going, r.square().sum(1, keepdim=True), 0.0)
        p, rr = r + torch.where(going, new / rr, 0.0) * p, new
    return x


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, product: Callable[[Tensor], Tensor], steps: int, b: Tensor) -> Tensor:
        ctx.product, ctx.steps = product, steps
        return conjugate_gradients(product, b, steps)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        return None, None, conjugate_gradients(ctx.product, outer[0], ctx.steps)


def solve(product: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """Solve A x = b as `conjugate_gradients` does, differentiable by b; A is held constant."""
    result: Tensor = _Solve.apply(product, steps, b)  # type: ignore[no-untyped-call]
    return result
