"""How much each member of a fused learner says, and in which space members meet: closed forms and small convex problems."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from components.domains import images
from components.domains.pool import Pool
from components.inputs import require
from components.learners.fused import FusedLearner
from components.learners.learner import Learner
from components.networks import BatchNorm
from components.validation import Validation, by_task, encode_items, validate

SHRINKAGE = (0.03, 0.1, 0.3, 1.0, 3.0)  # of the covariance within classes towards a multiple of the identity
DIRECTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of those of joined features: what is mapped
MEASURED = 10_000  # training items that a covariance is measured on
PREFERENCE = (0.0, 1.0, 3.0, 100.0)  # for policies with a greater return: none at first, at last the best speaks alone
SHARPNESS = (0.0, 0.25, 0.5, 1.0, 2.0)  # of support-conditioned weights; 1 is the posterior over members


@torch.no_grad()
def predictions(learners: Sequence[Learner], validation: Validation) -> tuple[Tensor, Tensor]:
    """Return for every validation query what weights are learned from, [M, N], and the targets [N].

    Each member's calibrated log-probability of the true label where tasks have classes, else its value.
    """
    found = [_predictions(learner.eval(), validation) for learner in learners]
    return torch.stack([values for values, _ in found]), found[0][1]


def _predictions(learner: Learner, validation: Validation) -> tuple[Tensor, Tensor]:
    features = encode_items(learner, validation.items)
    parts, targets = [], []
    for task in validation.task_batches(features):
        outputs = learner.predict_features(learner.adapt_features(task.support), task.query.x) / learner.temperature
        classes = validation.targets is None
        parts.append(outputs.log_softmax(-1).gather(-1, task.query.y.unsqueeze(-1)).flatten() if classes else outputs.flatten())
        targets.append(task.query.y.flatten())
    return torch.cat(parts), torch.cat(targets)


def mixture_weights(log_probabilities: Tensor, steps: int = 500) -> Tensor:
    """Return the convex weights [M] that minimise the mixture's loss, from each member's log-probability [M, N] of the true labels.

    Expectation maximisation for mixture proportions (Dempster et al. 1977, sec. 4.3): the objective is concave, every step improves it,
    and the weights stay on the simplex without a constraint.
    """
    likelihood = (log_probabilities - log_probabilities.amax(0)).exp().double()
    weights = torch.full((len(likelihood),), 1 / len(likelihood), dtype=torch.float64)
    for _ in range(steps):
        share = weights[:, None] * likelihood
        weights = (share / share.sum(0)).mean(1)
    return (weights / weights.sum()).float()


def least_squares_weights(values: Tensor, targets: Tensor) -> Tensor:
    """Return the convex weights [M] that minimise the squared error of the weighted mean of values [M, N] to targets [N].

    Non-negative least squares (Lawson and Hanson 1974, ch. 23), the sum of one as a row that outweighs all others.
    """
    from scipy.optimize import nnls

    heavy = 1e3 * len(targets) ** 0.5 * float(values.abs().max().clamp_min(1.0))
    rows = torch.cat([values.T.double(), torch.full((1, len(values)), heavy, dtype=torch.float64)])
    weights = torch.from_numpy(nnls(rows.numpy(), torch.cat([targets.double(), torch.tensor([heavy])]).numpy())[0])
    return (weights / weights.sum()).float()


def return_weights(joined: Callable[[list[float]], Learner], learners: Sequence[Learner], validation: Validation) -> list[float]:
    """Return the convex weights [M] of policies with which the joined one has the greatest return on validation tasks.

    Returns are no convex function of weights, and every try plays all validation tasks. So one number is searched: how strongly members are
    preferred by their own returns, w_i in proportion to exp(preference (R_i - max R) / (max R - min R)).
    """
    own = torch.tensor([validate(learner, validation)["return"] for learner in learners])
    behind = (own - own.max()) / (own.max() - own.min()).clamp_min(1e-6)
    options = [(preference * behind).softmax(0).tolist() for preference in PREFERENCE]
    return max(options, key=lambda weights: validate(joined(weights), validation)["return"])


def greedy_weights(values: Tensor, targets: Tensor | None, rounds: int = 20) -> Tensor:
    """Return weights [M] by greedy selection with replacement (Caruana et al. 2004, ICML, sec. 2.1-2.2).

    Each round adds the member with which the mean so far loses least: one that is right where the others are wrong, rather than the next best.
    `values` [M, N]: log-probabilities of the true labels (`targets` None), or values with their targets [N].
    """
    parts = values.double().exp() if targets is None else values.double()
    counts, total = torch.zeros(len(parts), dtype=torch.float64), torch.zeros_like(parts[0])
    for size in range(1, rounds + 1):
        means = (total + parts) / size
        losses = -means.clamp_min(1e-300).log().mean(1) if targets is None else (means - targets).square().mean(1)
        best = int(losses.argmin())
        counts[best] += 1
        total = total + parts[best]
    return (counts / counts.sum()).float()


@torch.no_grad()
def sharpen(learner: FusedLearner, validation: Validation) -> float:
    """Set the sharpness of support-conditioned weights to the one with the least validation loss; return it."""
    features = encode_items(learner.eval(), validation.items)
    losses = dict.fromkeys(SHARPNESS, 0.0)
    for task in validation.task_batches(features):
        evidence = learner.evidence(task.support)
        adapted = learner.adapt_features(task.support)
        for sharpness in SHARPNESS:
            learner.sharpness.fill_(sharpness)
            adapted["log_weights"] = learner.log_weights(evidence)
            losses[sharpness] += float(learner.objective.loss(learner.predict_features(adapted, task.query.x), task.query.y).sum())
    best = min(SHARPNESS, key=lambda sharpness: losses[sharpness])
    learner.sharpness.fill_(best)
    return best


@torch.no_grad()
def whiten(learner: FusedLearner, pool: Pool, validation: Validation) -> float:
    """Map joined features so that within the training classes they vary alike in all directions; return the shrinkage that validation chose.

    x -> (x - m) (S_w + c tr(S_w) / D)^(-1/2), m the mean and S_w the covariance within classes of MEASURED items, as many of each training class
    (within-class covariance normalisation, Hatch et al. 2006, Interspeech; the mean as in Wang et al. 2019, arXiv:1911.04623).

    A map of all directions may have more numbers than the members. So the spread is taken to be alike but in the K directions of the greatest one
    (as in probabilistic principal components, Tipping and Bishop 1999, J. R. Stat. Soc. B 61(3)), which are brought to the mean of the others; K is
    the least of DIRECTIONS with which, at its own best c, validation tasks lose no more than a standard error against the best.
    """
    classes = pool.split("train")
    items = max(2, MEASURED // len(classes))
    chosen = np.concatenate([pool.first[c] + np.arange(min(items, pool.counts[c])) for c in classes])
    labels = torch.from_numpy(np.repeat(np.arange(len(classes)), np.minimum(items, pool.counts[classes])).astype(np.int64))
    rows = np.array_split(chosen, 1 + len(chosen) // 1000)  # as network inputs all at once they would take four times the pool's memory
    measured = [encode_items(learner.eval(), images.prepare(torch.from_numpy(np.ascontiguousarray(pool.inputs[part])))) for part in rows]
    joined = learner.joined(torch.cat(measured)[None])[0].double()
    centre, sums = joined.mean(0), torch.zeros(len(classes), joined.shape[1], dtype=torch.float64).index_add_(0, labels, joined)
    within = joined - (sums / torch.bincount(labels).unsqueeze(1))[labels]
    values, vectors = torch.linalg.eigh(within.T @ within / len(within))
    values, mean = values.clamp_min(0), values.clamp_min(0).mean()
    features = encode_items(learner, validation.items)  # which no map changes

    def scores(share: float, shrinkage: float) -> Tensor:
        """Map the leading directions of the given share; return the validation tasks' scores, greater is better."""
        count = max(1, int(share * len(values)))
        rest = values[:-count].mean() if count < len(values) else values[0]
        kept = 1 - ((rest + shrinkage * mean) / (values[-count:] + shrinkage * mean)).sqrt()
        learner.map_by(centre.float(), (vectors[:, -count:] * kept.sqrt()).float())
        return learner.objective.sign * by_task(learner, validation, features=features)[learner.objective.score_name]

    found = {(share, shrinkage): scores(share, shrinkage) for share in DIRECTIONS for shrinkage in SHRINKAGE}
    best = [max(((share, shrinkage) for shrinkage in SHRINKAGE), key=lambda choice: found[choice].mean().item()) for share in DIRECTIONS]
    most = max((found[choice] for choice in best), key=lambda scored: scored.mean().item())
    share, shrinkage = next((choice for choice in best if as_good(most - found[choice])), best[-1])
    scores(share, shrinkage)
    return shrinkage


def as_good(lost: Tensor) -> bool:
    """Tell whether what is lost on each task [T] is a number and at most its standard error."""
    return bool(lost.mean() <= lost.std() / len(lost) ** 0.5)


def soup(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of weights, tensor by tensor (Wortsman et al. 2022, arXiv:2203.05482, "uniform soup"); counts are the first's."""
    first = states[0]
    return {name: torch.stack([s[name] for s in states]).mean(0) if t.is_floating_point() else t.clone() for name, t in first.items()}


@torch.no_grad()
def estimate_statistics(learner: Learner, pool: Pool, items: int = 2048, size: int = 128) -> None:
    """Measure batch normalisation's running statistics anew on training items: those of averaged weights are not the averaged ones."""
    norms = [m for m in learner.modules() if isinstance(m, BatchNorm)]
    if not norms:
        return
    require(learner.encodes, "Statistics are measured on items one by one, which needs one encoder for all tasks. Use fusion.mode=weights.")
    own = pool.items(pool.split("train"))
    chosen = own[np.linspace(0, len(own) - 1, min(items, len(own))).astype(np.int64)]
    chosen = np.random.Generator(np.random.Philox(0)).permutation(chosen)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for part in np.array_split(chosen, max(1, len(chosen) // size)):
        learner.encode(images.prepare(torch.from_numpy(np.ascontiguousarray(pool.inputs[part]))))
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()
