"""The plan of a pipeline: one key a stage, computed before anything runs. A stage runs only when its key has no intact output."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.contracts import Config, fingerprint, to_plain
from components.learners.options import BASES, family
from flows.caching import Key, code_digest, file_digests, lookup, why

TRAINING = "components.training"


@dataclass(frozen=True)
class Outside:
    """Models that the config names or that the registry holds: local folder and fingerprint. Empty where there is none."""

    start: tuple[str, str] | None = None
    teacher: tuple[str, str] | None = None
    champion: tuple[str, str] | None = None


def _family(name: str) -> str:
    return family(name).path


def keys(config: Config, pool: str, outside: Outside) -> dict[str, Key]:
    """Return the key of every stage by its name. `pool` is the digest of the domain's data.

    Where a stage runs (devices, threads, runner) is in no key; seed, precision and effective batch are.
    """
    plan: dict[str, Key] = {}
    common = {"objective": config.domain.objective, "seed": config.seed, "precision": config.trainer.precision, "augment": to_plain(config.domain.augment)}

    def add(name: str, stage: str, section: dict[str, Any], upstream: dict[str, str], *modules: str) -> None:
        plan[name] = Key(name, stage, to_plain(section), upstream, code_digest(*modules))

    def of(*names: str) -> dict[str, str]:
        return {name: plan[name].fingerprint for name in names}

    final = {f: getattr(config.evaluation, f) for f in ("settings", "tasks", "gate_tasks", "query", "within")}
    add("tasksets", "tasksets", {"tasks": config.tasks, "seed": config.seed}, {"pool": pool}, "components.tasksets")
    add("tasksets-final", "tasksets", {"evaluation": final, "seed": config.seed}, {"pool": pool}, "components.tasksets")
    learned = {"pool": pool, **of("tasksets")}
    theta = f"components.learners.{BASES[config.domain.objective][0]}"
    add("base", "base", {"backbone": config.backbone, "base": config.base, **common}, learned, TRAINING, theta)

    start = {"scratch": {}, "pretrained": of("base")}.get(config.learner.start)
    if start is None:
        assert outside.start is not None
        start = {"start": outside.start[1]}
    section = {name: value for name, value in to_plain(config.learner).items() if name != "checkpoint_inner"}  # where memory goes, not what comes out
    add("teacher", "teacher", {"backbone": config.backbone, "learner": section, **common}, learned | start, TRAINING, _family(config.learner.name))

    if config.student.teacher in ("teacher", "base"):
        taught = {"teacher": plan[config.student.teacher].fingerprint}
    else:
        assert outside.teacher is not None
        taught = {"teacher": outside.teacher[1]}
    for i in range(config.student.count):
        section = {name: value for name, value in to_plain(config.student).items() if name not in ("count", "widths")}
        section |= {"backbone": config.student.backbone(i, config.backbone), **common, "seed": config.seed + i}
        modules = (TRAINING, "components.distillation", _family(config.student.learner.name), _family(config.learner.name))
        add(f"student-{i}", "student", section, learned | taught, *modules)

    students = [f"student-{i}" for i in range(config.student.count)]
    if students:
        modules = (TRAINING, "components.fusion", "components.learners.fused", _family(config.student.learner.name))
        add("fused", "fused", {"fusion": config.fusion, **common}, learned | of(*students), *modules)

    judged = {"pool": pool, **of("tasksets", "tasksets-final", "base", "teacher", *students, *(["fused"] if students else []))}
    judged |= {"champion": outside.champion[1]} if outside.champion else {}
    examined = to_plain(config.evaluation)
    if config.evaluation.challenge not in (None, "lookalike"):  # what the folder holds counts, not where it lies
        judged |= {"challenge": fingerprint(file_digests(Path(str(examined.pop("challenge")))))}
    modules = ("components.examination", "components.learners.fused", _family(config.learner.name), _family(config.student.learner.name))
    add("evaluation", "evaluate", {"evaluation": examined, "seed": config.seed, "backbone": config.backbone}, judged, *modules)
    return plan


def contender(plan: dict[str, Key]) -> str:
    """Return the stage whose learner is registered: the fused one, or the teacher of a pipeline without students."""
    return "fused" if "fused" in plan else "teacher"


def describe(plan: dict[str, Key]) -> list[tuple[str, str, str, float | None]]:
    """Return (stage, `cached` or `run`, why, seconds it took last time) in order, for --dry-run."""
    rows: list[tuple[str, str, str, float | None]] = []
    for name, key in plan.items():
        found = lookup(key)
        if found is not None:
            rows.append((name, "cached", f"{key.stage}/{key.fingerprint[:16]} is intact", found.seconds))
        else:
            reason, seconds = why(key)
            rows.append((name, "run", reason, seconds))
    return rows
