"""The final examination: which learners are measured, against which references, and which differences are reported."""

import itertools
from collections.abc import Callable, Mapping
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
from components.inputs import way_shot
from components.learners import store
from components.learners.fused import join
from components.learners.learner import Learner, learner_size, transductive
from components.learners.reference import Nearest, Scratch, Told, Trained, Unadapted, WithoutSupport
from components.learning import BackboneSection
from components.lineage import trained_on
from components.networks import build_backbone
from components.tasks import TaskBatch
from components.tasksets import TaskSpec, batch, draw

TUNING = 500  # validation tasks a setting by which linear references are tuned


def tuning_tasks(pool: Pool, section: EvaluationSection, seed: int) -> list[TaskBatch]:
    """Return validation tasks of each final setting."""
    assert pool.targets is not None
    own = pool.items(pool.split("val"))
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(a[own])) for a in (pool.inputs, pool.targets))
    asked = []
    for setting in section.settings:
        way, shot = way_shot(setting)
        table = draw(TaskSpec(f"references-{setting}", "val", way, shot, section.query, section.within, TUNING), pool, seed)
        table = replace(table, support=np.searchsorted(own, table.support), query=np.searchsorted(own, table.query))
        asked.append(batch(table, np.arange(TUNING), inputs, targets))
    return asked


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
    nearest = "pixels" if opened.inputs.ndim > 2 else "nearest"
    played = opened.environment is not None
    learners: dict[str, Learner]
    if played:  # what no episode was played for, and what needs none: policies that know nothing, and one that is told what is hidden
        learners = {f"{name}-unadapted": WithoutSupport(loaded[name]) for name in ("base", contender)}
        learners |= {"oracle": Told(loaded["base"])}
        learners |= {"oracle-trained": Trained(loaded["base"], section.scratch_steps, section.scratch_lr)} if section.scratch_steps else {}
        learners |= loaded
    else:
        with store.initial_weights(seed_of(seed, "scratch")):
            network = build_backbone(backbone, opened.input_shape)
        learners = {
            nearest: Nearest(),
            **(linear.references(opened, tuning_tasks(opened, section, seed), loaded["base"].objective) if opened.targets is not None else {}),
            "scratch": Scratch(network, network.dim, section.scratch_steps, section.scratch_lr),
            "base-unadapted": Unadapted(loaded["base"], network.dim, seed),
            **loaded,
        }
    students = [name for name in models if name.startswith("student-")]
    if len(students) > 1 and not played:  # what fusion must be better than: the plain mean of the students
        equal = [1 / len(students)] * len(students)
        learners["students-mean"] = join([loaded[name] for name in students], "mixture", equal, False, opened.input_shape).eval()
    for learner in learners.values():
        learner.objective = loaded["base"].objective
    pairs = {
        **({"fused-minus-student-best": ("fused", student_best)} if student_best else {}),
        **({"fused-distilled-minus-student-best": ("fused-distilled", student_best)} if student_best else {}),
        "fused-minus-students-mean": ("fused", "students-mean"),
        "fused-minus-teacher": ("fused", "teacher"),
        "fused-distilled-minus-teacher": ("fused-distilled", "teacher"),
        "teacher-minus-base": ("teacher", "base"),
        "teacher-minus-base-unadapted": ("teacher", "base-unadapted"),
        f"{contender}-minus-base-unadapted": (contender, "base-unadapted"),
        f"{contender}-minus-{contender}-unadapted": (contender, f"{contender}-unadapted"),
        f"{contender}-minus-oracle": (contender, "oracle"),
        f"{contender}-minus-oracle-trained": (contender, "oracle-trained"),
        "teacher-minus-scratch": ("teacher", "scratch"),
        f"{contender}-minus-mean": (contender, "mean"),
        f"{contender}-minus-popularity": (contender, "popularity"),
        f"{contender}-minus-biases": (contender, "biases"),
        f"{contender}-minus-linear": (contender, "linear"),
        f"{contender}-minus-linear-constant": (contender, "linear-constant"),
        f"{contender}-minus-champion": (contender, "champion"),
        **{f"{name}-minus-teacher": (name, "teacher") for name in students},
        **{f"{name}-minus-recipe-plain": (name, "recipe-plain") for name in models if name.startswith("recipe-") and name != "recipe-plain"},
        **{f"{name}-minus-joined-average": (name, "joined-average") for name in models if name.startswith("joined-") and name != "joined-average"},
    }
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
        metrics |= challenge.examine({name: learners[name] for name in (nearest, *loaded)}, runs)
        if not runs.lookalike:
            names = opened.classes["name"].to_pylist()
            metrics["challenge/met"] = float(challenge.met(section.challenge, opened, {names[c] for split in ("train", "val") for c in opened.split(split)}))
    for name, learner in learners.items():
        metrics[f"{name}/parameters"] = learner_size(learner)
        metrics |= {f"{name}/transductive": 1.0} if transductive(learner) else {}
    return metrics
