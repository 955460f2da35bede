"""What a task asks for: the loss that learners minimise and the score that people read."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from components.scores import SCORES

Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """`loss` and `score` map outputs [T, Q, out] and targets [T, Q] to one number a task [T]; `sign` is +1 where more of the score is better.

    `slope` is the loss's gradient by the outputs [T, Q, out], `bend` its Hessian times a direction [T, Q, out]; None where autograd
    is to find them. `order_weight`: how much of `order_loss` training adds to the loss, values in multiples of `unit`.
    """

    name: str
    loss: Measure
    score_name: str
    score: Measure
    slope: Measure | None = None
    bend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    order_weight: float = 0.0
    unit: float = 1.0

    @property
    def sign(self) -> int:
        return SCORES[self.score_name].sign

    def outputs(self, way: int) -> int:
        """Return the number of outputs of a task: one a class, or one value."""
        return way if self.name == "cross_entropy" else 1

    def loss_and_metrics(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over tasks and the metrics to log."""
        loss, metrics = self.loss(outputs, targets).mean(), {self.score_name: self.score(outputs.detach(), targets).mean()}
        if self.order_weight:
            order = order_loss(outputs / self.unit, targets / self.unit).mean()
            loss, metrics["order_loss"] = loss + self.order_weight * order, order.detach()
        return loss, {"loss": loss.detach(), **metrics}


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def _accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).float().mean(1)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(-1) - targets).square().mean(1)


def _cross_entropy_slope(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.softmax(-1) - F.one_hot(targets, outputs.shape[-1])) / targets.shape[1]


def _cross_entropy_bend(outputs: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
    weighted = outputs.softmax(-1) * direction
    return (weighted - outputs.softmax(-1) * weighted.sum(-1, keepdim=True)) / targets.shape[1]


def _squared_error_slope(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.unsqueeze(-1)) * (2 / targets.shape[1])


def _squared_error_bend(outputs: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
    return direction * (2 / targets.shape[1])


def _pairs(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for all pairs of items, the difference of scores [T, Q, Q] and whether the first is the better one."""
    score = outputs.squeeze(-1)
    return score.unsqueeze(2) - score.unsqueeze(1), targets.unsqueeze(2) > targets.unsqueeze(1)


def _pairwise_logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    gap, better = _pairs(outputs, targets)
    return (F.softplus(-gap) * better).sum((1, 2)) / better.sum((1, 2)).clamp_min(1)


def _pairwise_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    gap, better = _pairs(outputs, targets)
    right, pairs = (gap > 0).float() + 0.5 * (gap == 0).float(), better.sum((1, 2))
    return torch.where(pairs > 0, (right * better).sum((1, 2)) / pairs.clamp_min(1), 0.5)  # where all are equal, any order is as good


def order_loss(outputs: Tensor, targets: Tensor, sharpness: float = 2.0, depth: int = 5) -> Tensor:
    """Return how much is lost in each task [T] for items in the wrong order, outputs [T, Q, 1], targets [T, Q].

    LambdaRank (Burges 2010, MSR-TR-2010-82, sec. 4): RankNet's loss of each pair, weighed by what nDCG would change if the two changed places, which is
    held constant. Gains 2^y - 1 are of values from the task's lowest on, the ideal gain that of the best `depth`.
    """
    gap, better = _pairs(outputs, targets)
    most, least = targets.amax(1, keepdim=True), targets.amin(1, keepdim=True)
    gain = torch.exp2(targets - most) - torch.exp2(least - most)  # in units of the best one's, which cancel
    place = outputs.detach().squeeze(-1).argsort(1, descending=True).argsort(1)
    discount, ideal = 1 / torch.log2(place + 2.0), 1 / torch.log2(torch.arange(2.0, 2.0 + min(depth, targets.shape[1]), device=targets.device))
    best = (gain.sort(1, descending=True).values[:, :depth] * ideal).sum(1)
    changed = (gain.unsqueeze(2) - gain.unsqueeze(1)).abs() * (discount.unsqueeze(2) - discount.unsqueeze(1)).abs()
    return (F.softplus(-sharpness * gap) * better * changed).sum((1, 2)) / best.clamp_min(1e-12)


OBJECTIVES = {
    "cross_entropy": Objective("cross_entropy", _cross_entropy, "accuracy", _accuracy, _cross_entropy_slope, _cross_entropy_bend),
    "squared_error": Objective("squared_error", _squared_error, "mse", _squared_error, _squared_error_slope, _squared_error_bend),
    # What episodes came to is played, not predicted: outputs are returns, and there is nothing to compare them with.
    "return": Objective("return", lambda outputs, _: -outputs.squeeze(-1).mean(1), "return", lambda outputs, _: outputs.squeeze(-1).mean(1)),
    # RankNet (Burges et al. 2005, ICML, eq. 3) with certain targets, over all pairs of a task; the score is the share of pairs in order.
    "ranking": Objective("ranking", _pairwise_logistic, "pairs", _pairwise_accuracy),
}


def _ndcg(depth: int) -> Measure:
    """Return the normalised discounted cumulative gain at `depth` (Jarvelin and Kekalainen 2002, ACM TOIS 20(4)), gain 2^y - 1 of values y >= 0.

    Gains are told in units of 2^max(y) of the task, which cancel: values may be as large as they like.

    Equal outputs share their places' mean gain, so that a constant is worth what a random order is. A task without any gain scores 1.
    """

    def measure(outputs: Tensor, targets: Tensor) -> Tensor:
        most = targets.amax(1, keepdim=True)
        output, gain = outputs.squeeze(-1), torch.exp2(targets - most) - torch.exp2(-most)
        discount = 1 / torch.log2(torch.arange(2, 2 + targets.shape[1]).to(gain))
        discount[depth:] = 0
        equal = (output.unsqueeze(2) == output.unsqueeze(1)).to(gain)  # [T, Q, Q]
        first = (output.unsqueeze(1) > output.unsqueeze(2)).sum(2)  # how many stand above each
        total = torch.cat([torch.zeros(1).to(gain), discount.cumsum(0)])
        places = equal.sum(2)
        found = (gain * (total[first + places.long()] - total[first]) / places).sum(1)
        best = (gain.sort(1, descending=True).values * discount).sum(1)
        return torch.where(best > 0, found / best.clamp_min(1e-12), 1.0)

    return measure


# Further scores of tasks that have values; targets count from the lowest of the pool's values, outputs too.
MEASURES: dict[str, Measure] = {
    "mae": lambda outputs, targets: (outputs.squeeze(-1) - targets).abs().mean(1),
    "rmse": lambda outputs, targets: _squared_error(outputs, targets).sqrt(),
    **{f"ndcg_{depth}": _ndcg(depth) for depth in (1, 3, 5)},
}


def one_hot(labels: Tensor, way: int, dtype: torch.dtype) -> Tensor:
    """Return [T, S, way] from labels [T, S]."""
    return F.one_hot(labels, way).to(dtype)


def code(targets: Tensor, objective: Objective, way: int, dtype: torch.dtype) -> Tensor:
    """Return targets as numbers to fit: [T, S, way] for classes, [T, S, 1] for values."""
    return one_hot(targets, way, dtype) if objective.name == "cross_entropy" else targets.unsqueeze(-1).to(dtype)
