"""Fusion: join students into one learner. Weights and the way of joining are chosen on validation tasks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from components.domains.pool import Pool
from components.learners import store
from components.learners.fused import FusedLearner
from components.learners.learner import Learner
from components.validation import Validation, calibrate, encode_items, validate


@dataclass(frozen=True)
class Candidate:
    """One way of joining: the learner, its specification, and its scores on validation tasks."""

    mode: str
    learner: FusedLearner
    spec: store.Spec
    scores: dict[str, float]


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


@torch.no_grad()
def predictions(learner: Learner, validation: Validation) -> tuple[Tensor, Tensor]:
    """Return, for every validation query, what the weights are learned from, and the targets, each [N].

    The calibrated log-probability of its label where tasks have classes, else the predicted value.
    """
    learner.eval()
    features = encode_items(learner, validation.items)
    parts, targets = [], []
    for task in validation.task_batches(features):
        outputs = learner.predict_features(learner.adapt_features(task.support), task.query.x) / learner.temperature
        classes = validation.targets is None
        parts.append(outputs.log_softmax(-1).gather(-1, task.query.y.unsqueeze(-1)).flatten() if classes else outputs.flatten())
        targets.append(task.query.y.flatten())
    return torch.cat(parts), torch.cat(targets)


def learn_weights(members: Sequence[str], pool: Pool, tasksets: str) -> list[float]:
    """Return the weights of the members on validation tasks; equal ones where tasks ask for an order, which no convex problem weighs."""
    validation, loaded = Validation(pool, tasksets), [store.load(path)[0] for path in members]
    if loaded[0].objective.name == "ranking":
        return [1 / len(members)] * len(members)
    found = [predictions(learner, validation) for learner in loaded]
    values, targets = torch.stack([v for v, _ in found]), found[0][1]
    return (mixture_weights(values) if validation.targets is None else least_squares_weights(values, targets)).tolist()


def fuse(members: Sequence[str], weights: list[float], mode: str, joint_adapt: bool, pool: Pool, tasksets: str, trained: str | None) -> list[Candidate]:
    """Build the candidates of `mode` (all of them for `auto`), calibrated and scored on validation tasks, best first.

    `trained` is the path of the jointly trained members, for mode `joint`.
    """
    validation = Validation(pool, tasksets)
    uniform = [1 / len(members)] * len(members)
    plans = {"average": (uniform, "mixture"), "weights": (weights, "mixture"), "concat": (weights, "concat"), "joint": (weights, "mixture")}
    candidates = []
    for name, (w, combine) in plans.items():
        if mode not in ("auto", name) or (name == "joint" and trained is None):
            continue
        loaded = [store.load(path) for path in members]
        learners, specs = [m for m, _, _ in loaded], [s for _, s, _ in loaded]
        if mode == "auto" and combine == "concat" and not all(m.centroids for m in learners):
            continue  # asked for by name, this is an error that says why
        if name == "joint" and trained is not None:
            fused, spec, _ = store.load(trained)
            learners, specs = list(fused.members), spec["members"]  # type: ignore[arg-type]
        learner = FusedLearner(learners, combine, w, joint_adapt, tuple(specs[0]["input_shape"]))
        spec = store.fused_spec(specs, combine, w, learner.joint)
        calibrate(learner, validation)
        candidates.append(Candidate(name, learner, spec, validate(learner, validation)))
    objective = candidates[0].learner.objective
    return sorted(candidates, key=lambda c: (-objective.sign * c.scores[objective.score_name], c.scores["loss"]))


def save_best(candidates: list[Candidate], out: Path, student: str) -> dict[str, float]:
    """Write the best candidate, about what `student` is about, and the table of all; return the metrics of the choice."""
    best = candidates[0]
    about = store.about(student)
    store.save(best.learner, best.spec, out, about | {"objective": f"fused: {best.mode}"})
    table = {c.mode: c.scores for c in candidates}
    (out / "fusion.json").write_text(json.dumps({"chosen": best.mode, "weights": best.spec["weights"], "validation": table}, indent=1) + "\n")
    metrics = {f"val/{c.mode}/{name}": value for c in candidates for name, value in c.scores.items()}
    metrics |= {f"val/{name}": value for name, value in best.scores.items()}
    metrics |= {f"weights/{i}": w for i, w in enumerate(best.spec["weights"])}
    metrics["parameters"] = float(sum(p.numel() for p in best.learner.parameters()))
    return metrics
