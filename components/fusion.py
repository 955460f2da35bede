"""Fusion: join learners into one. Weights and the way of joining are chosen on validation tasks; test tasks choose nothing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from components import linear, mixing
from components.contracts import AugmentSection
from components.domains.pool import Pool
from components.inputs import InputError, require
from components.learners import store
from components.learners.fused import FusedLearner, join
from components.learners.fused_policy import FusedPolicy
from components.learners.learner import Learner, learner_size
from components.learners.views import Views
from components.learning import FusionSection
from components.lineage import lineage
from components.validation import Validation, by_task, calibrate, encode_items

CANDIDATES = "candidates"  # folder of an output that holds every way of joining that was built
LEAST = 1e-4  # of a weight: who has less is left out
MORE_SHOTS = 4  # queries a class that a second look at the validation tasks moves to their support


@dataclass(frozen=True)
class Candidate:
    """One way of joining: the learner, its specification, every member's weight (0: left out; of a soup none), its mean scores on validation tasks
    (`more_*`: with more shots), and each task's score and loss [T], both sums over its own shots and more.
    """

    mode: str
    learner: Learner
    spec: store.Spec
    weights: list[float]
    scores: dict[str, float]
    by_task: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Members:
    """What is joined: learners, their specifications, and a digest of the weights that each began with."""

    paths: tuple[str, ...]
    learners: list[Learner]
    specs: list[store.Spec]
    starts: list[str | None]

    @classmethod
    def load(cls, paths: Sequence[str]) -> "Members":
        loaded = [store.load(path) for path in paths]
        return cls(tuple(paths), [m for m, _, _ in loaded], [s for _, s, _ in loaded], [about.get("start") for _, _, about in loaded])

    def join(self, combine: str, weights: Sequence[float], joint: bool) -> FusedLearner | FusedPolicy:
        shape = tuple(self.specs[0]["input_shape"])
        return join(self.learners, combine, list(weights), joint, shape).eval()

    def chosen(self, weights: Sequence[float]) -> tuple["Members", list[float]]:
        """Leave out members whose weight is zero: nobody pays for what does not speak."""
        kept = [i for i, w in enumerate(weights) if w > LEAST]
        total = sum(weights[i] for i in kept)
        parts = ([getattr(self, name)[i] for i in kept] for name in ("learners", "specs", "starts"))
        own = Members(tuple(self.paths[i] for i in kept), *parts)
        return own, [weights[i] / total for i in kept]


def linear_member(beside: str, pool: Pool, tasksets: str, folder: Path) -> str:
    """Write the linear model of the inputs, about what the learner `beside` is about; return its folder."""
    validation = Validation(pool, tasksets)
    with torch.no_grad():
        learner, spec = linear.member(pool, validation.task_batches(validation.items))
    about = {name: value for name, value in store.about(beside).items() if name != "frozen"}  # of a backbone, which this has not
    store.save(learner, spec, folder, about | {"objective": "linear", "start": None}, pool.path)
    return str(folder)


def learn_weights(members: Members, validation: Validation) -> list[float]:
    """Return the convex weights of the members on validation tasks; equal ones where no convex problem weighs them."""
    objective = members.learners[0].objective.name
    if objective == "ranking":
        return _equal(members)
    if objective == "return":
        return mixing.return_weights(lambda weights: members.join("mixture", weights, False), members.learners, validation)
    values, targets = mixing.predictions(members.learners, validation)
    return (mixing.mixture_weights(values) if validation.targets is None else mixing.least_squares_weights(values, targets)).tolist()


def fuse(
    paths: Sequence[str], weights: list[float], section: FusionSection, augment: AugmentSection, pool: Pool, tasksets: str, trained: dict[str, str]
) -> list[Candidate]:
    """Build the candidates of the section's mode (all that can be built for `auto`), calibrated and scored on validation tasks, the chosen one first.

    Of several it is the plainest that is not worse than the best by more than one standard error of their difference, task by task (Breiman et al.
    1984, Classification and Regression Trees, sec. 3.4.3): the best of many is partly the luckiest, the more so if it was fitted to these tasks. That
    is asked of their scores, and of classes' distributions, of those that pass, of their losses: a score counts answers, a calibrated loss how sure.

    `trained` has the paths of members that were trained further as one, by the mode that does so (`joint`, `taught`). Raises InputError, with the
    reason, for a mode that its members cannot be joined by.
    """
    validation, candidates, refused = Validation(pool, tasksets), [], None
    asked = Request(Members.load(paths), weights, section.adapt == "joint", pool, validation, trained)
    for name in MODES:
        if section.mode not in ("auto", name):
            continue
        try:
            learner, spec, weighed = MODES[name](asked)
        except InputError as error:
            refused = error  # for `auto` a way that is not open
            continue
        if section.views > 1:
            learner, spec = Views(learner, section.views, augment).eval(), store.views_spec(spec, section.views, augment)
        features = encode_items(learner.eval(), validation.items)
        calibrate(learner, validation, features)
        own, more = (by_task(learner, tasks, features=features) for tasks in (validation, validation.with_shots(MORE_SHOTS)))
        scores = {name: values.mean().item() for name, values in (*own.items(), *((f"more_{k}", v) for k, v in more.items()))}
        score = learner.objective.score_name
        candidates.append(Candidate(name, learner, spec, weighed, scores, own[score] + more[score], own["loss"] + more["loss"]))
    if not candidates:
        assert refused is not None
        raise refused
    return ranked(candidates)


def ranked(candidates: list[Candidate]) -> list[Candidate]:
    """Return the chosen one and then the others, best first; `candidates` in the order of MODES, the plainest first.

    Losses are asked for classes alone: a loss of values or returns is the score, one of an order differs with the scale of outputs, which nothing calibrates.
    """
    objective = candidates[0].learner.objective
    sign = objective.sign
    order = sorted(candidates, key=lambda c: (not c.by_task.isfinite().all(), -sign * c.by_task.mean().item(), c.scores["loss"]))
    good = [c for c in candidates if mixing.as_good(sign * (order[0].by_task - c.by_task))] or order[:1]
    chosen = good[0]
    if objective.name == "cross_entropy":
        surest = min(good, key=lambda c: (not c.losses.isfinite().all(), c.losses.mean().item()))
        chosen = next((c for c in good if mixing.as_good(c.losses - surest.losses)), surest)
    return [chosen, *(c for c in order if c is not chosen)]


Built = tuple[Learner, store.Spec, list[float]]


@dataclass(frozen=True)
class Request:
    """What a way of joining is given: members, their weights, whether they adapt as one, training and validation data, members trained as one."""

    members: Members
    weights: list[float]
    joint: bool
    pool: Pool
    validation: Validation
    trained: dict[str, str]


def _mixed(members: Members, combine: str, weights: Sequence[float], joint: bool) -> tuple[FusedLearner | FusedPolicy, store.Spec, list[float]]:
    own, kept = members.chosen(weights)
    learner = own.join(combine, kept, joint)
    speaking = iter(kept)
    return learner, store.fused_spec(own.specs, combine, kept, learner.joint), [next(speaking) if w > LEAST else 0.0 for w in weights]


def _equal(members: Members) -> list[float]:
    return [1 / len(members.paths)] * len(members.paths)


def _average(asked: Request) -> Built:
    return _mixed(asked.members, "mixture", _equal(asked.members), asked.joint)


def _weights(asked: Request) -> Built:
    return _mixed(asked.members, "mixture", asked.weights, asked.joint)


def _greedy(asked: Request) -> Built:
    whole = asked.members.learners[0].objective.name in ("ranking", "return")
    require(not whole, "fusion.mode=greedy needs a loss of single answers, and an order or a return has none. Use fusion.mode=average.")
    values, targets = mixing.predictions(asked.members.learners, asked.validation)
    return _mixed(asked.members, "mixture", mixing.greedy_weights(values, None if asked.validation.targets is None else targets).tolist(), asked.joint)


def _conditioned(asked: Request) -> Built:
    require(not asked.joint, "fusion.mode=conditioned weighs members that adapt by themselves, got fusion.adapt=joint. Use fusion.adapt=members.")
    learner, spec, weights = _mixed(asked.members, "conditioned", asked.weights, False)
    assert isinstance(learner, FusedLearner)
    mixing.sharpen(learner, asked.validation.with_shots(MORE_SHOTS))
    return learner, spec, weights


def _concat(asked: Request) -> Built:
    return _mixed(asked.members, "concat", asked.weights, False)


def _whitened(asked: Request) -> Built:
    learner, spec, weights = _mixed(asked.members, "whitened", _equal(asked.members), False)  # the map sets how much a direction says
    assert isinstance(learner, FusedLearner)
    mixing.whiten(learner, asked.pool, asked.validation)
    return learner, spec | {"directions": learner.axes.shape[1]}, weights


def _joint(asked: Request) -> Built:
    members = _trained(asked, "joint")
    for member in members.learners:  # each by its own loss, so that neither calibration nor weights are what they were
        calibrate(member, asked.validation)
    return _mixed(members, "mixture", learn_weights(members, asked.validation), asked.joint)


def _taught(asked: Request) -> Built:
    return _mixed(_trained(asked, "taught"), "mixture", _equal(asked.members), asked.joint)


def _trained(asked: Request, mode: str) -> Members:
    require(mode in asked.trained, f"fusion.mode={mode} needs members that were trained as one, got none. Set the steps of that training.")
    learner, spec, _ = store.load(asked.trained[mode])
    return Members(asked.members.paths, list(learner.members), spec["members"], asked.members.starts)  # type: ignore[arg-type]


def _soup(asked: Request) -> Built:
    members, first = asked.members, asked.members.specs[0]
    require(len(members.paths) > 1, "fusion.mode=soup needs two members at least, got one. Use fusion.mode=average.")
    require(
        members.starts[0] is not None and len(set(members.starts)) == 1 and all(s == first for s in members.specs),
        "fusion.mode=soup needs members that began at the same weights: the mean of networks trained from different starts is no network "
        "(Finn et al. 2017, arXiv:1703.03400, app. C). Use student.same_start=true, or fusion.mode=weights.",
    )
    learner = store.build(first)
    learner.load_state_dict(mixing.soup([m.state_dict() for m in members.learners]))
    mixing.estimate_statistics(learner, asked.pool)
    return learner.eval(), first, []


MODES: dict[str, Callable[[Request], Built]] = {  # the plainest first
    "soup": _soup,  # one network
    "average": _average,
    "taught": _taught,  # a plain mean too: nothing of it is fitted to validation tasks
    "weights": _weights,
    "greedy": _greedy,
    "conditioned": _conditioned,
    "concat": _concat,
    "whitened": _whitened,
    "joint": _joint,
}


def save_best(candidates: list[Candidate], out: Path, members: Sequence[str]) -> dict[str, float]:
    """Write the best candidate, about what `members` are about, all of them under `candidates/`, and their table; return the choice's metrics."""
    told = [store.about(path) for path in members]
    about = told[0] | lineage(told[0]["domain"], told[0]["trained_on"], told)
    best = candidates[0]
    for candidate, folder in [(best, out), *((c, out / CANDIDATES / c.mode) for c in candidates)]:
        store.save(candidate.learner, candidate.spec, folder, about | {"objective": f"fused: {candidate.mode}"}, Path(members[0]))
    table = {c.mode: c.scores for c in candidates}
    (out / "fusion.json").write_text(json.dumps({"chosen": best.mode, "weights": best.weights, "validation": table}, indent=1) + "\n")
    metrics = {f"val/{c.mode}/{name}": value for c in candidates for name, value in c.scores.items()}
    metrics |= {f"val/{name}": value for name, value in best.scores.items()}
    metrics |= {f"weights/{i}": w for i, w in enumerate(best.weights)}
    metrics["parameters"] = learner_size(best.learner)
    return metrics


def weigh(paths: Sequence[str], pool: Pool, tasksets: str) -> list[float]:
    """Return the members' weights on validation tasks."""
    with torch.no_grad():
        return learn_weights(Members.load(paths), Validation(pool, tasksets))
