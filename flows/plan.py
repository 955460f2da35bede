"""The plan of a pipeline: one key a stage, computed before anything runs. A stage runs only when its key has no intact output."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.contracts import Config
from components.learners.options import BASES, family
from components.plain import fingerprint, to_plain
from flows.caching import Key, code_digest, file_digests, lookup, why

TRAINING = "components.training"
LAST = ("fused", "fused-distilled")


@dataclass(frozen=True)
class Outside:
    """Models that the config names or that the registry holds: local folder and fingerprint. Empty where there is none."""

    start: tuple[str, str] | None = None
    teachers: dict[str, tuple[str, str]] = field(default_factory=dict)  # by the name that the config gives them
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
    drawn = {name: value for name, value in to_plain(config.tasks).items() if name != "turns"}  # what training makes of a task, not which it is
    turned = {"turns": config.tasks.turns} if config.tasks.turns > 1 else {}
    add("tasksets", "tasksets", {"tasks": drawn, "seed": config.seed}, {"pool": pool}, "components.tasksets")
    add("tasksets-final", "tasksets", {"evaluation": final, "seed": config.seed}, {"pool": pool}, "components.tasksets")
    learned = {"pool": pool, **of("tasksets")}
    theta = f"components.learners.{BASES[config.domain.objective][0]}"
    add("base", "base", {"backbone": config.backbone, "base": config.base, **common}, learned, TRAINING, theta)

    start = {"scratch": {}, "pretrained": of("base")}.get(config.learner.start)
    if start is None:
        assert outside.start is not None
        start = {"start": outside.start[1]}
    section = {name: value for name, value in to_plain(config.learner).items() if name != "checkpoint_inner"}  # where memory goes, not what comes out
    add("teacher", "teacher", {"backbone": config.backbone, "learner": section, **turned, **common}, learned | start, TRAINING, _family(config.learner.name))

    own, rows = config.student, student_rows(config)
    families = (_family(own.learner.name), _family(config.learner.name))
    taught = {name: plan[name].fingerprint if name in plan else outside.teachers[name][1] for name in own.teachers()}
    kept = ("learner", "pool", "head", "same_start")
    student = {name: value for name, value in to_plain(own).items() if name in kept} | turned
    for name, recipe in own.recipes().items() if own.count else ():
        fit = {"recipe": recipe, "backbone": own.backbone(0, config.backbone), "steps": own.sweep_steps}
        add(f"recipe-{name}", "recipe", student | fit | common, learned | taught, TRAINING, *families)
    recipes = of(*(name for name in plan if name.startswith("recipe-")))
    for row in rows:
        before = {"teacher": plan[row.before].fingerprint} if row.before else taught
        fit = {"recipe": own.recipe, "sweep": sorted(own.recipes()), "backbone": own.backbone(row.index, config.backbone)}
        add(row.name, "student", student | fit | common | {"seed": row.seed}, learned | before | recipes, TRAINING, *families)

    students = [row.name for row in rows if row.last]
    if students:
        members = of(*fused_of(config, students))
        add("fused", "fused", {"fusion": config.fusion, **turned, **common}, learned | members, TRAINING, "components.fusion", *families, theta)
    if students and config.fusion.again:
        fit = {"recipe": own.recipe, "sweep": sorted(own.recipes()), "backbone": own.backbone(0, config.backbone)}
        add("fused-distilled", "student", student | fit | common, learned | of("fused") | recipes, TRAINING, "components.fusion", *families, theta)

    judged = {"pool": pool, **of("tasksets", "tasksets-final", "base", "teacher", *(name for name in LAST if name in plan), *students)}
    judged |= recipes if config.evaluation.ablation else {}
    judged |= {"champion": outside.champion[1]} if outside.champion else {}
    examined = to_plain(config.evaluation)
    if config.evaluation.challenge not in (None, "lookalike"):  # what the folder holds counts, not where it lies
        judged |= {"challenge": fingerprint(file_digests(Path(str(examined.pop("challenge")))))}
    modules = (
        "components.examination",
        "components.learners.fused",
        "components.learners.views",
        _family(config.learner.name),
        _family(config.student.learner.name),
    )
    add("evaluation", "evaluate", {"evaluation": examined, "seed": config.seed, "backbone": config.backbone}, judged, *modules)
    return plan


def fused_of(config: Config, students: list[str]) -> list[str]:
    """Return the names of the stages whose learners are fused."""
    return [name for kind in config.fusion.members for name in (students if kind == "students" else [kind])]


@dataclass(frozen=True)
class StudentRow:
    """A student of one generation: which student, which stage, and the stage of the same student before it (None: taught by the teachers)."""

    index: int
    name: str
    seed: int
    before: str | None
    last: bool


def student_rows(config: Config) -> list[StudentRow]:
    """Return the students in the order in which they are taught: generation by generation."""
    count, generations = config.student.count, config.student.generations

    def name(index: int, generation: int) -> str:
        return f"student-{index}" + (f"-generation-{generation}" if generation < generations else "")

    rows = []
    for g in range(1, generations + 1):
        for i in range(count):
            rows.append(StudentRow(i, name(i, g), config.seed + i + 1000 * (g - 1), name(i, g - 1) if g > 1 else None, g == generations))
    return rows


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
