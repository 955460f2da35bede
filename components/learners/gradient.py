"""Gradient-based learners: one inner loop of gradient steps on task-batched weights, shared by the whole MAML line."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from components.learners.learner import Adapted, Learner
from components.learners.options import MamlOptions
from components.tasks import Examples


class Maml(Learner):
    """Model-agnostic meta-learning (Finn et al. 2017, arXiv:1703.03400, Alg. 2), second order, or first order (sec. 5.2).

    theta is the backbone and the head's start; meta-training tunes it, adaptation moves a copy of it for each task. One learned vector
    starts the head of every class (Ye and Chao 2022, arXiv:2106.16245, sec. 5), so any number of ways can be adapted to. Normalisation
    uses the fixed running statistics of pre-training: nothing is read from the query set.
    """

    theta_fixed = False

    def __init__(self, backbone: nn.Module, dim: int, options: MamlOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Parameter(torch.zeros(dim))
        self.head_bias = nn.Parameter(torch.zeros(()))
        self.options = options

    def train(self, mode: bool = True) -> "Maml":
        super().train(mode)
        self.backbone.eval()
        return self

    def start(self, tasks: int, way: int) -> Adapted:
        """Return theta for each task: every tensor with leading dimension T, the head with one row a class."""
        weights = {name: p.expand(tasks, *p.shape) for name, p in self.backbone.named_parameters()}
        weights["head"] = self.head.expand(tasks, way, -1)
        weights["head_bias"] = self.head_bias.expand(tasks, way)
        return weights

    def rate(self, name: str) -> Tensor | float:
        """Return the step size of a parameter; a scalar, or a tensor of its shape."""
        return self.options.inner_lr

    def logits(self, weights: Adapted, x: Tensor) -> Tensor:
        """Return logits [T, N, way] of inputs x [T, N, ...] under weights of their own for every task."""
        body = {k: v for k, v in weights.items() if not k.startswith("head")}
        features: Tensor = vmap(lambda w, inputs: functional_call(self.backbone, w, (inputs,)))(body, x)
        return features @ weights["head"].transpose(1, 2) + weights["head_bias"].unsqueeze(1)

    def inner_loss(self, weights: Adapted, support: Examples) -> Tensor:
        """Return the sum over tasks of each task's mean support loss: its gradient is each task's own gradient."""
        logits = self.logits(weights, support.x)
        return F.cross_entropy(logits.transpose(1, 2), support.y, reduction="none").mean(1).sum()

    def adapt_features(self, support: Examples) -> Adapted:
        outer = torch.is_grad_enabled()
        steps = self.options.inner_steps if self.training else self.options.test_steps
        with torch.enable_grad():
            weights = self.start(support.x.shape[0], support.way)
            if not outer:
                weights = {k: v.detach().requires_grad_() for k, v in weights.items()}
            for _ in range(steps):
                names, values = zip(*weights.items(), strict=True)
                second_order = outer and not self.options.first_order
                gradients = torch.autograd.grad(self.inner_loss(weights, support), values, create_graph=second_order)
                weights = {n: v - self.rate(n) * g for n, v, g in zip(names, values, gradients, strict=True)}
        return weights if outer else {k: v.detach() for k, v in weights.items()}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return self.logits(adapted, x)


class MetaSgd(Maml):
    """Meta-SGD (Li et al. 2017, arXiv:1707.09835, Alg. 1): a learned rate for every parameter; the rates are theta_meta."""

    theta_meta = ("rates.",)

    def __init__(self, backbone: nn.Module, dim: int, options: MamlOptions) -> None:
        super().__init__(backbone, dim, options)
        shapes = {name: p.shape for name, p in backbone.named_parameters()} | {"head": (dim,), "head_bias": ()}
        self.rates = nn.ParameterDict({_key(n): nn.Parameter(torch.full(s, options.inner_lr)) for n, s in shapes.items()})

    def rate(self, name: str) -> Tensor | float:
        rate: Tensor = self.rates[_key(name)]
        return rate


def _key(name: str) -> str:
    return name.replace(".", "/")  # ParameterDict keys may not contain dots
