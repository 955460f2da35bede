"""Closed-form learners: the head of a task is the solution of a convex problem, and gradients pass through the solution."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from components.gradients import solve
from components.learners.learner import Adapted, Encoding
from components.learners.options import LogisticOptions, RidgeOptions
from components.objectives import code, one_hot
from components.tasks import Examples


def with_one(x: Tensor) -> Tensor:
    """Append a constant feature: [..., D] -> [..., D + 1]."""
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


Head = TypeVar("Head", bound=Callable[..., Tensor])


def in_full_precision(solver: Head) -> Head:
    """Run a solver in at least single precision, whatever the precision around it: its systems do not bear rounding to eight bits."""

    @functools.wraps(solver)
    def run(x: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return solver(x if x.dtype == torch.float64 else x.float(), *rest)

    return cast(Head, run)


@in_full_precision
def ridge_head(x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """Return W [T, D, out] that minimises |x W - y|^2 + ridge |W|^2. x [T, S, D], y [T, S, out].

    By the S x S system where there are fewer examples than features (the Woodbury identity; Bertinetto et al. 2019, eq. 6), else D x D.
    """
    y, transposed = y.to(x.dtype), x.transpose(1, 2)
    examples, features = x.shape[1:]
    gram = x @ transposed if examples < features else transposed @ x
    gram = gram + ridge * torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
    head: Tensor = transposed @ torch.linalg.solve(gram, y) if examples < features else torch.linalg.solve(gram, transposed @ y)
    return head


class Ridge(Encoding):
    """R2-D2 (Bertinetto et al. 2019, arXiv:1805.08136, sec. 3.2): ridge regression on the codes of the targets, in closed form.

    The strength of the ridge, and the scale that turns its answers into logits, are learned with the backbone. The paper's shift of all
    logits alike is left out: no objective here sees it. Where tasks have values, the ridge pulls towards a head that is learned too, not
    towards zero: classes have no order that such a head could know, values have.
    """

    theta_meta = ("backbone.", "log_ridge", "log_scale", "prior")

    def __init__(self, backbone: nn.Module, dim: int, options: RidgeOptions) -> None:
        super().__init__(backbone, options.norm)
        self.dim = dim
        self.log_ridge = nn.Parameter(torch.tensor(math.log(options.ridge)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)))

    def started(self) -> None:
        """Values need no scale to become logits, and have a head to begin from."""
        if self.objective.name == "squared_error" and hasattr(self, "log_scale"):
            del self.log_scale
            self.prior = nn.Parameter(torch.zeros(self.dim + 1, 1))

    def adapt_features(self, support: Examples) -> Adapted:
        targets, x = code(support.y, self.objective, support.way, support.x.dtype), with_one(support.x)
        if self.objective.name != "squared_error":
            return {"head": ridge_head(x, targets, self.log_ridge.exp())}
        return {"head": self.prior + ridge_head(x, targets - x @ self.prior, self.log_ridge.exp())}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        values = with_one(x) @ adapted["head"]
        if self.objective.name == "squared_error":
            return values
        return values * self.log_scale.exp()


class LinearBase(Encoding):
    """The base model theta* of a regression: one network for all training tasks, its loss their sum; adapted by ridge on its features."""

    def __init__(self, backbone: nn.Module, dim: int, options: dict[str, Any]) -> None:
        super().__init__(backbone, "meta_batch")
        self.head = nn.Linear(dim, 1)
        self.ridge = float(options["ridge"])

    def outputs(self, x: Tensor) -> Tensor:
        """Return the unadapted values [1, N, 1] of inputs [N, ...]: the mean of all tasks."""
        values: Tensor = self.head(self.encode(x)).unsqueeze(0)
        return values

    def adapt_features(self, support: Examples) -> Adapted:
        left = support.y.unsqueeze(-1) - self.head(support.x)  # the ridge pulls towards the base, not towards zero
        return {"head": ridge_head(with_one(support.x), left, torch.tensor(self.ridge).to(left))}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        values: Tensor = self.head(x) + with_one(x) @ adapted["head"]
        return values


@in_full_precision
def logistic_head(x: Tensor, labels: Tensor, way: int, ridge: Tensor, newton_steps: int, cg_steps: int) -> Tensor:
    """Return W [T, D, way] that minimises sum_s cross-entropy(x W, label) + ridge/2 |W|^2, differentiable by x and ridge.

    x [T, S, D], labels [T, S]. W = x' A lies in the span of the examples, so the system has S x way unknowns. Newton steps, each solved
    by conjugate gradients and halved until the loss falls, find the solution without a graph; one more step with the Hessian held
    constant then has the gradient of the implicit function theorem (Lee et al. 2019, arXiv:1904.03758, sec. 3.2, on solvers as layers).
    """
    targets = one_hot(labels, way, x.dtype)
    tasks, shape = x.shape[0], targets.shape

    def residual(a: Tensor, gram: Tensor, strength: Tensor) -> Tensor:
        """The stationarity condition in A: ridge A + softmax(K A) - targets = 0."""
        return strength * a + (gram @ a).softmax(-1) - targets

    def loss(a: Tensor, gram: Tensor) -> Tensor:
        logits = gram @ a
        fit = (logits.logsumexp(-1) - (logits * targets).sum(-1)).sum(1)
        return fit + 0.5 * ridge.detach() * (a * logits).sum((1, 2))

    def hessian(a: Tensor, gram: Tensor, p: Tensor) -> Any:
        """K (ridge I + P K) up to the common factor K, made symmetric: the product with V is ridge K V + K P(K V)."""

        def product(flat: Tensor) -> Tensor:
            kv = gram @ flat.view(shape)
            pkv = p * kv - p * (p * kv).sum(-1, keepdim=True)
            return (ridge.detach() * kv + gram @ pkv + 1e-6 * flat.view(shape)).reshape(tasks, -1)

        return product

    with torch.no_grad():
        gram = x @ x.transpose(1, 2)
        a = torch.zeros_like(targets)
        for _ in range(newton_steps):
            wanted = (gram @ residual(a, gram, ridge)).reshape(tasks, -1)
            direction = solve(hessian(a, gram, (gram @ a).softmax(-1)), wanted, cg_steps).view(shape)
            length, before = torch.ones_like(a[:, :1, :1]), loss(a, gram)
            for _ in range(6):
                worse = loss(a - length * direction, gram) > before + 1e-9
                if not worse.any():
                    break
                length = torch.where(worse[:, None, None], length / 2, length)
            a = a - length * direction
        a = (targets - (gram @ a).softmax(-1)) / ridge  # of all A with this W, the one whose residual is zero
        constant = hessian(a, gram, (gram @ a).softmax(-1))
    gram_live = x @ x.transpose(1, 2)
    condition = gram @ residual(a, gram_live, ridge)
    a = a - solve(constant, condition.reshape(tasks, -1), cg_steps).view(shape)
    return x.transpose(1, 2) @ a


class Logistic(Encoding):
    """A multinomial logistic head by Newton steps (the LR-D2 of Bertinetto et al. 2019, arXiv:1805.08136, sec. 3.3, for any number of ways)."""

    theta_meta = ("backbone.", "log_ridge", "log_scale")

    def __init__(self, backbone: nn.Module, dim: int, options: LogisticOptions) -> None:
        super().__init__(backbone, options.norm)
        self.options = options
        self.log_ridge = nn.Parameter(torch.tensor(math.log(options.ridge)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)))

    def encode(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(super().encode(x), dim=-1)

    def adapt_features(self, support: Examples) -> Adapted:
        o = self.options
        return {"head": logistic_head(with_one(support.x), support.y, support.way, self.log_ridge.exp(), o.newton_steps, o.cg_steps)}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return with_one(x) @ adapted["head"] * self.log_scale.exp()
