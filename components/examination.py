"""The final examination: which learners are measured, against which references, and which differences are reported."""

from collections.abc import Mapping
from pathlib import Path

import torch

from components import challenge
from components.contracts import BackboneSection, EvaluationSection
from components.domains.pool import open_pool
from components.draws import seed_of
from components.evaluation import evaluate
from components.learners import store
from components.learners.fused import FusedLearner
from components.learners.learner import Learner, learner_size
from components.learners.reference import Nearest, Scratch, Unadapted
from components.networks import build_backbone


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
    learners: dict[str, Learner] = {
        nearest: Nearest(),
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
