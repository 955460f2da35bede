"""Gradient-based learners: one inner loop of gradient steps on task-batched weights, shared by the whole MAML line."""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.descent import descend
from components.gradients import conjugate_gradients, given, recomputed
from components.learners.learner import Adapted, Learner, class_means
from components.learners.options import ImamlOptions, InnerOptions
from components.networks import Mlp, channels_last, statistics
from components.tasks import Examples, TaskBatch


class Maml(Learner):
    """Model-agnostic meta-learning (Finn et al. 2017, arXiv:1703.03400, Alg. 2), second order, or first order (sec. 5.2).

    theta is the backbone and the head's start; meta-training tunes it, adaptation moves a copy of it for each task. Any number of ways
    can be adapted to: where classes are told apart and `scale` is above 0, the head starts at the class means of the support and compares
    directions, as the base does (Triantafillou et al. 2020, arXiv:1903.03096, sec. 3, "Proto-MAML", with cosines); else one learned vector
    starts the head of every class (Ye and Chao 2022, arXiv:2106.16245, sec. 5).

    Subclasses change what moves (`start`), how it is read (`outputs`), and how a step is made (`step`, with a `memory` of its own).
    """

    theta_fixed = False
    theta_meta: tuple[str, ...] = ("log_scale",)
    plain = True  # the step is gradient descent at a fixed rate on the support loss, through the whole network

    def __init__(self, backbone: nn.Module, dim: int, options: InnerOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Parameter(torch.zeros(dim))
        self.head_bias = nn.Parameter(torch.zeros(()))
        self.options = options
        self.checkpoint_inner = False
        self.tasks_at_once = int(backbone.tasks_at_once)  # type: ignore[arg-type]

    def started(self) -> None:
        """Take the head's start that the objective asks for."""
        if self.from_means():
            if not hasattr(self, "log_scale"):
                del self.head, self.head_bias
                self.log_scale = nn.Parameter(torch.tensor(math.log(self.options.scale)))
        elif self.objective.name != "cross_entropy" and not self.head.any():
            # Values have one output: a head of zeros would leave the backbone without a gradient.
            nn.init.normal_(self.head, std=len(self.head) ** -0.5)

    def from_means(self) -> bool:
        """Tell whether the head starts at the class means and reads directions."""
        return self.options.scale > 0 and self.objective.name == "cross_entropy"

    def train(self, mode: bool = True) -> "Maml":
        super().train(mode)
        statistics(self.backbone, self.options.norm, mode)
        return self

    def start(self, support: Examples) -> Adapted:
        """Return what adaptation moves, for each task: every tensor with leading dimension T, the head with one row a class."""
        return self.body(len(support.y)) | self.head_for(support)

    def body(self, tasks: int) -> Adapted:
        """Return each task's own copy of theta without the head."""
        copies = {name: p.expand(tasks, *p.shape) for name, p in self.backbone.named_parameters()}
        # Copies of frozen weights move as well.
        return copies if all(p.requires_grad for p in self.backbone.parameters()) else {name: w.requires_grad_() for name, w in copies.items()}

    def head_for(self, support: Examples) -> Adapted:
        tasks, rows = len(support.y), self.objective.outputs(support.way)
        if not self.from_means():
            return {"head": self.head.expand(tasks, rows, -1), "head_bias": self.head_bias.expand(tasks, rows)}
        # Copies of their own: an inner step moves head and body side by side, not the body through the head.
        features = self.features(self.body(tasks), support.x, 0)
        means = class_means(F.normalize(features, dim=-1), support.y, support.way)
        head = F.normalize(means, dim=-1) * (self.log_scale / 2).exp()
        return {"head": head, "head_bias": torch.zeros_like(head[..., 0]).requires_grad_()}

    def features(self, weights: Adapted, x: Tensor, index: int) -> Tensor:
        """Return features [T, N, dim] of x [T, N, ...] after `index` inner steps."""
        body = {k: v for k, v in weights.items() if not k.startswith("head")}
        found: Tensor = self.backbone.per_task(body, x)  # type: ignore[operator]
        return found

    def outputs(self, weights: Adapted, x: Tensor, index: int) -> Tensor:
        """Return outputs [T, N, out] of x [T, N, ...] under each task's own weights after `index` inner steps."""
        features = self.features(weights, x, index)
        if self.from_means():
            features = F.normalize(features, dim=-1) * (self.log_scale / 2).exp()
        return torch.baddbmm(weights["head_bias"].unsqueeze(1), features, weights["head"].transpose(1, 2))

    def inner_loss(self, weights: Adapted, support: Examples, index: int) -> Tensor:
        """Return each task's support loss [T]."""
        return self.objective.loss(self.outputs(weights, support.x, index), support.y) + self.pull(weights, support)

    def pull(self, weights: Adapted, support: Examples) -> Tensor:
        """Return what each task's weights pay, beside its loss, for where they are [T]."""
        return support.x.new_zeros(len(support.x))

    def memory(self, weights: Adapted) -> Adapted:
        """Return what a learned update rule remembers between steps, at the start."""
        return {}

    def scale(self) -> float:
        """Return what a task's loss is multiplied with before `step` gets its gradient.

        With minus the rate, a step is one sum, whose own gradient is free.
        """
        return -self.options.inner_lr

    def step(self, weights: Adapted, gradients: Adapted, loss: Tensor, memory: Adapted, index: int) -> tuple[Adapted, Adapted]:
        """Return weights and memory after inner step `index`; gradients are those of each task's own loss [T], times `scale`."""
        return {name: w + gradients[name] for name, w in weights.items()}, memory

    def first_order(self) -> bool:
        """Tell whether inner gradients count as constants for the outer one."""
        return self.options.first_order

    def descend(self, weights: Adapted, memory: Adapted, support: Examples, steps: range, graph: bool) -> tuple[Adapted, Adapted]:
        """Take inner steps; with `graph`, later gradients see through them."""
        by_hand = self.plain and isinstance(self.backbone, Mlp) and self.backbone.activation is torch.relu  # whose derivatives are written down
        by_hand = by_hand and self.objective.slope is not None and not self.from_means()
        if by_hand and not support.x.requires_grad:
            return self._descend_by_hand(weights, support, steps, graph), memory
        for index in steps:
            with torch.enable_grad():
                if not graph:
                    weights = {k: v.detach().requires_grad_() for k, v in weights.items()}
                loss = self.inner_loss(weights, support, index)
                root = torch.full_like(loss, self.scale())
                found = torch.autograd.grad(loss, list(weights.values()), root, create_graph=graph and not self.first_order())
            gradients = dict(zip(weights, found, strict=True))
            weights, memory = self.step(weights, gradients, loss if graph else loss.detach(), memory, index)
        return weights, memory

    def _descend_by_hand(self, weights: Adapted, support: Examples, steps: range, graph: bool) -> Adapted:
        """Take the steps of a perceptron without autograd inside: measured 1.3 times as fast on small ones."""
        with torch.set_grad_enabled(graph):
            for _ in steps:
                moved = descend(list(weights.values()), support.x, support.y, self.objective, self.options.inner_lr, self.first_order())
                weights = dict(zip(weights, moved, strict=True))
        return weights

    def steps(self) -> int:
        return self.options.inner_steps if self.training else self.options.test_steps

    @torch.no_grad()
    def path(self, support: Examples) -> Iterator[Adapted]:
        """Yield what adaptation moves, before the first step and after every one."""
        weights = self.start(support)
        memory = self.memory(weights)
        yield weights
        for index in range(self.steps()):
            weights, memory = self.descend(weights, memory, support, range(index, index + 1), False)
            yield weights

    @torch.no_grad()
    def support_losses(self, support: Examples) -> list[float]:
        return [self.inner_loss(weights, support, index).mean().item() for index, weights in enumerate(self.path(support))]

    def adapt_features(self, support: Examples) -> Adapted:
        weights = self.start(support)
        graph = torch.is_grad_enabled()
        if graph and self.checkpoint_inner:
            return self._descend_in_segments(weights, support)
        moved, _ = self.descend(weights, self.memory(weights), support, range(self.steps()), graph)
        if graph:
            return moved
        moved = {k: v.detach() for k, v in moved.items()}
        return moved if self.training else self._held(weights, moved, support)

    @torch.no_grad()
    def _held(self, weights: Adapted, moved: Adapted, support: Examples) -> Adapted:
        """Return what all steps came to or, for a task whose own support it answers worse than zeros would, what the step came to that answers it best.

        Steps that are too long for a task grow from one to the next. Only the support tells.
        """
        outputs = self.outputs(moved, support.x, self.steps())
        lost = ~(self.objective.loss(outputs, support.y) <= self.objective.loss(torch.zeros_like(outputs), support.y))  # what is no number too
        rows = lost.nonzero()[:, 0]
        if not len(rows):
            return moved
        own, few = {k: w[rows] for k, w in weights.items()}, Examples(support.x[rows], support.y[rows], support.way)
        memory, best, least = self.memory(own), own, torch.full((len(rows),), torch.inf, dtype=outputs.dtype, device=outputs.device)
        for index in range(self.steps() + 1):
            if index:
                own, memory = self.descend(own, memory, few, range(index - 1, index), False)
            loss = self.objective.loss(self.outputs(own, few.x, index), few.y)
            better = loss < least
            least = torch.where(better, loss, least)
            best = {k: torch.where(better.view(-1, *[1] * (w.ndim - 1)), own[k], w) for k, w in best.items()}
        return {k: w.index_copy(0, rows, best[k].detach()) for k, w in moved.items()}

    def _descend_in_segments(self, weights: Adapted, support: Examples) -> Adapted:
        """Descend keeping only every sqrt(n)-th state: memory grows with the square root of the steps, time by one more pass."""
        total = self.steps()
        length = max(1, round(total**0.5))
        memory, parameters = self.memory(weights), [p for p in self.parameters() if p.requires_grad]
        for first in range(0, total, length):
            names, kept = list(weights), list(memory)
            span = range(first, min(first + length, total))

            def segment(tensors: Sequence[Tensor], names: list[str] = names, kept: list[str] = kept, span: range = span) -> Sequence[Tensor]:
                own, seen = dict(zip(names, tensors[: len(names)], strict=True)), Examples(tensors[-1], support.y, support.way)
                own, state = self.descend(own, dict(zip(kept, tensors[len(names) : -1], strict=True)), seen, span, torch.is_grad_enabled())
                return [own[n] for n in names] + [state[n] for n in kept]

            out = recomputed(segment, [*weights.values(), *memory.values(), support.x], parameters)
            weights, memory = dict(zip(names, out[: len(names)], strict=True)), dict(zip(kept, out[len(names) :], strict=True))
        return weights

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return self.outputs(adapted, x, self.steps())


class Anil(Maml):
    """Almost no inner loop (Raghu et al. 2020, arXiv:1909.09157, sec. 4): only the head moves, the backbone encodes for all tasks."""

    encodes = True
    plain = False

    def __init__(self, backbone: nn.Module, dim: int, options: InnerOptions) -> None:
        super().__init__(backbone, dim, options)
        self.tasks_at_once = Learner.tasks_at_once

    def encode(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone(channels_last(x))
        return features

    def body(self, tasks: int) -> Adapted:
        return {}

    def features(self, weights: Adapted, x: Tensor, index: int) -> Tensor:
        return x


class Reptile(Maml):
    """Reptile (Nichol et al. 2018, arXiv:1803.02999, Alg. 1, batched): theta moves towards the weights adapted to all of a task's examples.

    Its meta-gradient is theta - phi, the mean over tasks (and over the rows of the head, where they share one start): with plain gradient
    descent at rate epsilon the update is theta + epsilon (phi - theta), as in the paper. A head that starts at class means passes its
    part on to the features that made them.
    """

    def meta_loss(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = (torch.cat([getattr(e, part) for e in (batch.support, batch.query)], 1) for part in ("x", "y"))
        everything = Examples(x, y, batch.support.way)
        tasks = batch.query.y.shape[0]
        theta = self.start(everything)
        with torch.no_grad():
            phi = self.adapt_features(everything)
            loss, metrics = self.objective.loss_and_metrics(self.outputs(phi, batch.query.x, self.steps()), batch.query.y)
            shared = not self.from_means()
            rows = {name: w.shape[1] if shared and name.startswith("head") else 1 for name, w in theta.items()}
            gradients = [(w - phi[name]) / (tasks * rows[name]) for name, w in theta.items()]
        return given(loss, list(theta.values()), gradients), metrics


class Imaml(Maml):
    """Implicit MAML (Rajeswaran et al. 2019, arXiv:1909.04630, Alg. 1 and 2).

    The inner problem is pulled back to theta by lambda/2 |phi - theta|^2; at its solution the meta-gradient of a task is
    (I + H / lambda)^-1 times the query gradient, H the Hessian of the support loss, solved by conjugate gradients: memory does not
    depend on the number of steps.
    """

    plain = False
    options: ImamlOptions

    def pull(self, weights: Adapted, support: Examples) -> Tensor:
        theta = self.start(support)
        return 0.5 * self.options.proximal * torch.stack([(w - theta[n]).flatten(1).square().sum(1) for n, w in weights.items()]).sum(0)

    def meta_loss(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        theta = self.start(batch.support)
        with torch.no_grad():
            phi = self.adapt_features(batch.support)
        with torch.enable_grad():
            phi = {name: w.detach().requires_grad_() for name, w in phi.items()}
            values = list(phi.values())
            outputs = self.outputs(phi, batch.query.x, self.steps())
            loss, metrics = self.objective.loss_and_metrics(outputs, batch.query.y)
            scales: list[Tensor] = [self.log_scale] if self.from_means() else []  # it scales the outputs themselves, beside the head that it starts
            found = torch.autograd.grad(loss, values + scales)
            outer, direct = _flat(found[: len(values)]), found[len(values) :]
            losses = self.objective.loss(self.outputs(phi, batch.support.x, self.steps()), batch.support.y)  # without the pull
            inner = _flat(torch.autograd.grad(losses.sum(), values, create_graph=True))

        def product(v: Tensor) -> Tensor:
            hessian = torch.autograd.grad(inner, values, v, retain_graph=True)
            return v + _flat(hessian) / self.options.proximal

        solved = conjugate_gradients(product, outer, self.options.cg_steps)
        sizes = [w[0].numel() for w in values]
        gradients = [g.reshape(w.shape) for g, w in zip(torch.split(solved, sizes, 1), values, strict=True)]
        if scales:  # and where the inner problem lies
            mixed = torch.autograd.grad((inner * solved).sum(), scales)
            gradients += [d - m / self.options.proximal for d, m in zip(direct, mixed, strict=True)]
        return given(loss, [*theta.values(), *scales], gradients), metrics


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten(1) for t in tensors], 1)
