"""The final examination: which learners are measured, against which references, and which differences are reported."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from components import challenge
from components.contracts import BackboneSection, EvaluationSection, way_shot
from components.domains.pool import Pool, open_pool
from components.draws import seed_of
from components.evaluation import evaluate
from components.learners import store
from components.learners.closed_form import ridge_head, with_one
from components.learners.fused import FusedLearner
from components.learners.learner import Learner, learner_size
from components.learners.reference import Linear, Nearest, Scratch, Unadapted
from components.networks import build_backbone
from components.tasksets import TaskSpec, batch, draw

RIDGES = np.logspace(-1, 3, 17)  # strengths among which validation tasks choose for a linear reference
TUNING = 500  # validation tasks a setting for that choice


def linear_references(pool: Pool, section: EvaluationSection, tasks: int, seed: int) -> dict[str, Learner]:
    """Fit a linear model to all training items, and choose by validation tasks how far a task may move it, or its constant alone."""
    assert pool.targets is not None
    items = pool.items(pool.split("train"))
    x, y = (torch.from_numpy(np.ascontiguousarray(a[items])).double() for a in (pool.inputs, pool.targets))
    head = ridge_head(with_one(x)[None], y[None, :, None], torch.tensor(1.0).double())[0].float()
    inputs, targets = (torch.from_numpy(np.ascontiguousarray(a)) for a in (pool.inputs, pool.targets))
    asked = []
    for setting in section.settings:
        way, shot = way_shot(setting)
        table = draw(TaskSpec(f"references-{setting}", "val", way, shot, section.query, section.within, tasks), pool, seed)
        asked.append(batch(table, np.arange(tasks), inputs, targets))
    found: dict[str, Learner] = {}
    for name, constant_alone in (("linear-constant", True), ("linear", False)):
        options = [Linear(head, float(ridge), constant_alone) for ridge in RIDGES]
        losses = [sum(one.objective.loss(one(task), task.query.y).mean().item() for task in asked) for one in options]
        found[name] = options[int(np.argmin(losses))]
    return found


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
) -> dict[str, float]:
    """Measure all models and references on the test tasks, and the contenders for promotion on the gate tasks.

    `student_best` is the student that validation tasks call the best; test tasks choose nothing. What contends for promotion is the
    fused learner, or the teacher of a pipeline without students.
    """
    contender = "fused" if "fused" in models else "teacher"
    torch.set_num_threads(threads)
    opened = open_pool(pool)
    loaded: dict[str, Learner] = {name: store.load(path)[0] for name, path in models.items()}
    with store.initial_weights(seed_of(seed, "scratch")):
        network = build_backbone(backbone, opened.input_shape)
    nearest = "pixels" if opened.inputs.ndim > 2 else "nearest"
    values = opened.targets is not None and loaded["base"].objective.name == "squared_error"
    learners: dict[str, Learner] = {
        nearest: Nearest(),
        **(linear_references(opened, section, TUNING, seed) if values else {}),
        "scratch": Scratch(network, network.dim, section.scratch_steps, section.scratch_lr),
        "base-unadapted": Unadapted(loaded["base"], network.dim, seed),
        **loaded,
    }
    students = [name for name in models if name.startswith("student-")]
    if len(students) > 1:  # what fusion must be better than: the plain mean of the students
        equal = [1 / len(students)] * len(students)
        learners["students-mean"] = FusedLearner([loaded[name] for name in students], "mixture", equal, False, opened.input_shape).eval()
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
        "teacher-minus-scratch": ("teacher", "scratch"),
        f"{contender}-minus-linear": (contender, "linear"),
        f"{contender}-minus-linear-constant": (contender, "linear-constant"),
        f"{contender}-minus-champion": (contender, "champion"),
        **{f"{name}-minus-teacher": (name, "teacher") for name in students},
        **{f"{name}-minus-recipe-plain": (name, "recipe-plain") for name in models if name.startswith("recipe-") and name != "recipe-plain"},
        **{f"{name}-minus-joined-average": (name, "joined-average") for name in models if name.startswith("joined-") and name != "joined-average"},
    }
    limits = {"scratch": section.scratch_tasks}
    metrics = evaluate(learners, limits, pairs, section.settings, "test", opened, tasksets, section.bootstrap, seed, out)
    contenders = {name: learner for name, learner in loaded.items() if name in (contender, "champion")}
    metrics |= evaluate(contenders, {}, pairs, section.settings, "gate", opened, tasksets, section.bootstrap, seed, out)
    if section.challenge is not None:
        runs = challenge.open_runs(section.challenge, opened, section.challenge_runs, out)
        metrics |= challenge.examine({name: learners[name] for name in (nearest, *loaded)}, runs, section.bootstrap, seed)
    for name, learner in learners.items():
        metrics[f"{name}/parameters"] = learner_size(learner)
    return metrics
