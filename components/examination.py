"""The final examination: which learners are measured, against which references, and which differences are reported."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from components import challenge, linear
from components.contracts import EvaluationSection
from components.domains.pool import Pool, open_pool
from components.domains.seen import view
from components.draws import seed_of
from components.evaluation import evaluate
from components.learners import store
from components.learners.fused import join
from components.learners.learner import Learner, learner_size, transductive
from components.learners.reference import Nearest, Scratch, Told, Trained, Unadapted, WithoutSupport
from components.learning import BackboneSection
from components.lineage import trained_on
from components.networks import build_backbone
from components.tasks import TaskBatch
from components.tasksets import batch, draw, tuning_specs


def tuning_tasks(pool: Pool, section: EvaluationSection, seed: int) -> list[TaskBatch]:
    """Return validation tasks of each final setting."""
    assert pool.targets is not None
    own = pool.items(pool.split("val"))
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(a[own])) for a in (pool.inputs, pool.targets))
    asked = []
    for spec in tuning_specs(section):
        table = draw(spec, pool, seed)
        table = replace(table, support=np.searchsorted(own, table.support), query=np.searchsorted(own, table.query))
        asked.append(batch(table, np.arange(spec.tasks), inputs, targets))
    return asked


def policies(loaded: Mapping[str, Learner], contender: str, section: EvaluationSection) -> dict[str, Learner]:
    """Return policies and what they are measured against: those that have played nothing, and ones that are told what is hidden."""
    learners: dict[str, Learner] = {f"{name}-unadapted": WithoutSupport(loaded[name]) for name in ("base", contender)}
    learners |= {"oracle": Told(loaded["base"])}
    learners |= {"oracle-trained": Trained(loaded["base"], section.scratch_steps, section.scratch_lr)} if section.scratch_steps else {}
    return learners | dict(loaded)


def references(nearest: str, loaded: Mapping[str, Learner], backbone: BackboneSection, section: EvaluationSection, seed: int, pool: Pool) -> dict[str, Learner]:
    """Return learners and what they are measured against: no learning, linear models of values, no pre-training, no adaptation, no choice of students."""
    with store.initial_weights(seed_of(seed, "scratch")):
        network = build_backbone(backbone, pool.input_shape)
    learners: dict[str, Learner] = {nearest: Nearest()}
    learners |= linear.references(pool, tuning_tasks(pool, section, seed), loaded["base"].objective) if pool.targets is not None else {}
    learners |= {"scratch": Scratch(network, network.dim, section.scratch_steps, section.scratch_lr)}
    learners |= {"base-unadapted": Unadapted(loaded["base"], network.dim, seed), **loaded}
    students = [learner for name, learner in loaded.items() if name.startswith("student-")]
    if len(students) > 1:  # what fusion must be better than: the plain mean of the students
        equal = [1 / len(students)] * len(students)
        learners["students-mean"] = join(students, "mixture", equal, False, pool.input_shape).eval()
    return learners


def compared(roles: Sequence[str], contender: str, student_best: str | None) -> dict[str, tuple[str, str]]:
    """Return the differences that are reported, by their labels; those of roles that nobody measured are left out later."""
    pairs = [("fused", "students-mean"), ("fused", "teacher"), ("fused-distilled", "teacher")]
    pairs += [("teacher", other) for other in ("base", "base-unadapted", "scratch")]
    others = ("oracle", "oracle-trained", "mean", "popularity", "biases", "linear", "linear-constant")
    pairs += [(contender, other) for other in ("base-unadapted", f"{contender}-unadapted", *others, "champion")]
    pairs += [(name, "teacher") for name in roles if name.startswith("student-")]
    for kind, plain in (("recipe-", "recipe-plain"), ("joined-", "joined-average")):
        pairs += [(name, plain) for name in roles if name.startswith(kind) and name != plain]
    best = {f"{name}-minus-student-best": (name, student_best) for name in ("fused", "fused-distilled")} if student_best else {}
    return best | {f"{a}-minus-{b}": (a, b) for a, b in pairs}


def examine(
    models: Mapping[str, str],
    student_best: str | None,
    backbone: BackboneSection,
    section: EvaluationSection,
    threads: int,
    seed: int,
    pool: str,
    tasksets: str,
    out: Path,
    watch: Callable[[float, str], None] = lambda *_: None,
) -> dict[str, float]:
    """Measure all models and references on the test tasks and in each cell, and the contenders for promotion on the gate tasks.

    `student_best` is the student that validation tasks call the best; test tasks choose nothing. What contends for promotion is the
    fused learner, or the teacher of a pipeline without students. A champion reads what its own data made of the items, and is left out where
    that cannot be told, where it takes other inputs, or where gate or test classes took part in making it. `watch` hears which share of the
    measurements is done, and what comes next.
    """
    contender = "fused" if "fused" in models else "teacher"
    torch.set_num_threads(threads)
    opened = open_pool(pool)
    names = opened.classes["name"].to_pylist()
    held_out = {names[c] for split in ("gate", "test") for c in opened.split(split)}
    loaded: dict[str, Learner] = {}
    seen: dict[str, Pool] = {}
    for name, path in models.items():
        learner, spec, about = store.load(path)
        own = view(opened, path, spec, about, loaded["base"].objective.name)[0] if name == "champion" else opened
        if own is None or (name == "champion" and held_out & trained_on(about, opened.domain)):
            continue  # a champion of other data, or one that these classes have trained: promotion says so
        loaded[name] = learner
        seen |= {name: own} if own is not opened else {}
    played, nearest = opened.environment is not None, "pixels" if opened.inputs.ndim > 2 else "nearest"
    learners = policies(loaded, contender, section) if played else references(nearest, loaded, backbone, section, seed, opened)
    for learner in learners.values():
        learner.objective = loaded["base"].objective
    pairs = compared([*models], contender, student_best)
    limits = dict.fromkeys(("scratch", "oracle-trained"), section.scratch_tasks)
    # In a cell the champion is left out: whether it has seen what is held out of known users, its data do not say.
    asked = {name: learner for name, learner in learners.items() if name != "champion"}
    contenders = {name: learner for name, learner in loaded.items() if name in (contender, "champion")}
    begun, every = itertools.count(), len(section.settings) * (len(learners) + len(opened.cells) * len(asked) + len(contenders))

    def told(what: str) -> None:
        watch(next(begun) / every, what)

    metrics: dict[str, float] = {}
    for split, asking in {"test": learners, **dict.fromkeys(opened.cells, asked)}.items():
        own_view = {name: other for name, other in seen.items() if name in asking}
        metrics |= evaluate(asking, limits, pairs, section.settings, split, opened, tasksets, out, section.scores, told, own_view)
    metrics |= evaluate(contenders, {}, pairs, section.settings, "gate", opened, tasksets, out, told=told, seen=seen)
    if section.challenge is not None:
        runs = challenge.open_runs(section.challenge, opened, section.challenge_runs, out)
        metrics |= challenge.examine({name: learners[name] for name in (nearest, *loaded, "students-mean") if name in learners}, runs, pairs)
        if not runs.lookalike:
            names = opened.classes["name"].to_pylist()
            metrics["challenge/met"] = float(challenge.met(section.challenge, opened, {names[c] for split in ("train", "val") for c in opened.split(split)}))
    for name, learner in learners.items():
        metrics[f"{name}/parameters"] = learner_size(learner)
        metrics |= {f"{name}/transductive": 1.0} if transductive(learner) else {}
    return metrics
