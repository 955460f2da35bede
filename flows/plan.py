"""The plan of a pipeline: one key a stage, computed before anything runs. A stage runs only when its key has no intact output."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from components.contracts import Config
from components.learners.options import BASES, FAMILIES, family
from components.learning import BackboneSection, FitSection
from components.manifest import file_digests
from components.plain import fingerprint, narrow, to_plain
from flows.caching import Key, code_digest, lookup, why

TRAINING = "components.training"


@dataclass(frozen=True)
class Outside:
    """Models that the config names or that the registry holds: local folder and fingerprint. Empty where there is none.

    `backbone`: the digest of the weights that the backbone begins from. `started`: the version behind the start, `models:/<name>/<version>`.
    """

    start: tuple[str, str] | None = None
    teachers: dict[str, tuple[str, str]] = field(default_factory=dict)  # by the name that the config gives them
    champion: tuple[str, str] | None = None
    backbone: str | None = None
    started: str | None = None


def _family(name: str) -> str:
    return family(name).path


def _code_of(folder: str) -> list[str]:
    """Return the modules that a stored learner's answers depend on, whoever made it."""
    path = Path(folder) / "learner.json"
    todo, found = [json.loads(path.read_text())["spec"]] if path.exists() else [], set()
    while todo:
        spec = todo.pop()
        todo += [*spec.get("members", []), *([spec["member"]] if "member" in spec else [])]
        if spec["name"] in FAMILIES:
            found.add(_family(spec["name"]))
        elif spec["name"] == "theta*":
            found |= {f"components.learners.{module}" for module, _ in BASES.values()}
        else:
            found.add("components.learners." + {"linear": "reference"}.get(spec["name"], spec["name"]))  # fused, views
    return sorted(found)


def keys(config: Config, pool: str, outside: Outside) -> dict[str, Key]:
    """Return the key of every stage by its name, in the order of the chain. `pool` is the digest of the domain's data.

    Where a stage runs (devices, threads, runner) is in no key; seed, precision, effective batch and its parts are.
    """
    drawing = _Drawing(config, pool, outside)
    drawing.tasksets()
    drawing.extraction()
    drawing.students()
    drawing.fusion()
    drawing.evaluation()
    return drawing.plan


class _Drawing:
    """A plan in the making: each method adds the keys of one part of the chain, from the keys before it."""

    def __init__(self, config: Config, pool: str, outside: Outside) -> None:
        self.config, self.pool, self.outside = config, pool, outside
        self.plan: dict[str, Key] = {}
        augment = to_plain(config.domain.augment)
        self.common = {"objective": config.domain.objective, "seed": config.seed, "precision": config.trainer.precision, "augment": augment}
        accumulate = config.trainer.accumulate  # statistics of a batch are those of its parts
        self.common |= {"accumulate": accumulate} if accumulate > 1 else {}
        self.made: dict[str, float] = {"turns": config.tasks.turns} if config.tasks.turns > 1 else {}  # what training makes of a task
        self.made |= {"order_weight": config.tasks.order_weight} if config.tasks.order_weight else {}
        self.theta = f"components.learners.{BASES[config.domain.objective][0]}"
        self.backbone = narrow(config.backbone, BackboneSection)
        self.teaching = tuple(module for folder, _ in outside.teachers.values() for module in _code_of(folder))
        self.families = (_family(config.learner.name), _family(config.student.learner.name))

    def add(self, name: str, stage: str, section: dict[str, Any], upstream: dict[str, str], *modules: str) -> None:
        self.plan[name] = Key(name, stage, to_plain(section), upstream, code_digest(*modules))

    def of(self, *names: str) -> dict[str, str]:
        return {name: self.plan[name].fingerprint for name in names}

    def learned(self) -> dict[str, str]:
        """Return what every fit reads."""
        return {"pool": self.pool, **self.of("tasksets")}

    def tasksets(self) -> None:
        config, seed = self.config, self.config.seed
        final = {f: getattr(config.evaluation, f) for f in ("settings", "tasks", "gate_tasks", "query", "within")}
        made = ("turns", "order_weight")  # what training makes of a task, not which it is
        drawn = {name: value for name, value in to_plain(config.tasks).items() if name not in made}
        self.add("tasksets", "tasksets", {"tasks": drawn, "seed": seed}, {"pool": self.pool}, "components.tasksets")
        self.add("tasksets-final", "tasksets", {"evaluation": final, "seed": seed}, {"pool": self.pool}, "components.tasksets")

    def extraction(self) -> None:
        config = self.config
        weights = {"backbone": self.outside.backbone} if self.outside.backbone else {}
        architecture = {"backbone": self.backbone} | ({"frozen": True} if config.backbone.frozen else {})
        self.add("base", "base", {"base": config.base, **architecture, **self.common}, self.learned() | weights, TRAINING, self.theta)
        start = {"scratch": weights, "pretrained": self.of("base")}.get(config.learner.start)
        if start is None:
            assert self.outside.start is not None
            start = {"start": self.outside.start[1]}
        section = {name: value for name, value in to_plain(config.learner).items() if name != "checkpoint_inner"}  # where memory goes, not what comes out
        section = {"learner": section, **architecture, **self.made, **self.common}
        self.add("teacher", "teacher", section, self.learned() | start, TRAINING, self.families[0])

    def _student(self, index: int, fit: FitSection, **more: Any) -> dict[str, Any]:
        """Return the section of a student of one row of widths, fitted so."""
        kept = {name: value for name, value in to_plain(self.config.student).items() if name in ("pool", "head", "same_start", "recipe")}
        learner = {name: value for name, value in to_plain(self.config.student.learner).items() if name not in ("fit", "checkpoint_inner")}
        kept |= {"learner": learner, "fit": fit}
        return kept | self.made | self.common | {"backbone": narrow(self.config.student.backbone(index, self.backbone), BackboneSection)} | more

    def recipes(self) -> dict[str, str]:
        """Return the trials of competing recipes, which decide by what recipe students learn."""
        return self.of(*(name for name in self.plan if name.startswith("recipe-")))

    def taught(self) -> dict[str, str]:
        """Return the students' teachers."""
        return {name: self.plan[name].fingerprint if name in self.plan else self.outside.teachers[name][1] for name in self.config.student.teachers()}

    def students(self) -> None:
        own = self.config.student
        taught = self.taught()
        for name, recipe in own.recipes().items() if own.count else ():
            trial = self._student(0, replace(own.learner.fit, steps=own.sweep_steps), recipe=recipe)
            self.add(f"recipe-{name}", "recipe", trial, self.learned() | taught, TRAINING, *self.families, *self.teaching)
        for row in student_rows(self.config):
            before = {"teacher": self.plan[row.before].fingerprint} if row.before else taught
            upstream = self.learned() | before | self.recipes()
            self.add(row.name, "student", self._student(row.index, own.learner.fit, seed=row.seed), upstream, TRAINING, *self.families, *self.teaching)

    def fusion(self) -> None:
        students = [row.name for row in student_rows(self.config) if row.last]
        modules = (TRAINING, "components.fusion", *self.families, self.theta, *self.teaching)
        if students:
            fits = self.config.fusion.fits()
            unread = {"again", *(name for name, mode in (("fit", "joint"), ("lessons", "taught")) if mode not in fits)}
            section = {"fusion": {k: v for k, v in to_plain(self.config.fusion).items() if k not in unread}, **self.made, **self.common}
            upstream = self.learned() | self.of(*fused_of(self.config, students))
            if "taught" in self.config.fusion.fits():
                section, upstream = section | {"recipe": self.config.student.recipe}, upstream | self.taught() | self.recipes()
            self.add("fused", "fused", section, upstream, *modules)
        if students and self.config.fusion.again.steps:
            section = self._student(0, self.config.fusion.again, seed=seed_of_student(self.config.seed, "again"))
            del section["backbone"]  # the best student's, which is upstream
            self.add("fused-distilled", "student", section, self.learned() | self.of("fused", *students) | self.recipes(), *modules)

    def evaluation(self) -> None:
        config = self.config
        early = {row.name for row in student_rows(config) if not row.last}
        judged = {"pool": self.pool, **self.of(*(name for name in self.plan if name not in early and not name.startswith("recipe-")))}
        judged |= self.recipes() if config.evaluation.ablation else {}
        judged |= {"champion": self.outside.champion[1]} if self.outside.champion else {}
        examined = to_plain(config.evaluation)
        if config.evaluation.challenge not in (None, "lookalike"):  # what the folder holds counts, not where it lies
            judged |= {"challenge": fingerprint(file_digests(Path(str(examined.pop("challenge")))))}
        modules = ("components.examination", "components.learners.fused", "components.learners.views", *self.families)
        incumbent = _code_of(self.outside.champion[0]) if self.outside.champion else []
        self.add("evaluation", "evaluate", {"evaluation": examined, "seed": config.seed, "backbone": self.backbone}, judged, *modules, *incumbent)


def fused_of(config: Config, students: list[str]) -> list[str]:
    """Return the names of the stages whose learners are fused; a linear member is fitted where they are."""
    return [name for kind in config.fusion.members if kind != "linear" for name in (students if kind == "students" else [kind])]


@dataclass(frozen=True)
class StudentRow:
    """A student of one generation: which student, which stage, and the stage of the same student before it (None: taught by the teachers)."""

    index: int
    name: str
    seed: int
    before: str | None
    last: bool


def seed_of_student(seed: int, *which: object) -> int:
    """Return the seed of a student's weights and lessons: its own, which no student of another pipeline's seed has."""
    from components.draws import seed_of  # numpy, which planning does without

    return seed_of(seed, "student", *which) % 2**31


def student_rows(config: Config) -> list[StudentRow]:
    """Return the students in the order in which they are taught: generation by generation."""
    count, generations = config.student.count, config.student.generations

    def name(index: int, generation: int) -> str:
        return f"student-{index}" + (f"-generation-{generation}" if generation < generations else "")

    rows = []
    for g in range(1, generations + 1):
        for i in range(count):
            rows.append(StudentRow(i, name(i, g), seed_of_student(config.seed, i, g), name(i, g - 1) if g > 1 else None, g == generations))
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
