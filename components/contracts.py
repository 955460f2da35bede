"""What crosses the boundaries: typed config sections in, frozen references out, and the fingerprint that names every result.

Standard library only. Sections carry no defaults: every value lives in conf/, once.
"""

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

SPLITS = ("train", "val", "gate", "test")
Within = Literal["group", "all"]


class InputError(ValueError):
    """The user's input is wrong: the message says what was required, what was received and what to do. Exit code 2."""


def require(condition: bool, message: str) -> None:
    """Raise InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def positive(**values: float) -> None:
    for name, value in values.items():
        require(value > 0, f"{name} must be above 0, got {value}. Set {name} to a positive number.")


@dataclass
class DataSection:
    """How `data/` is pinned: rewrite `data.dvc` on a new version, and which version to restore (run id, git revision or file)."""

    write_pin: bool
    pin: str | None


@dataclass
class SplitsSection:
    """Groups of each split by name. Classes of all other groups train, but for the shares that go to each split by the hash of their name."""

    val: list[str]
    gate: list[str]
    test: list[str]
    shares: dict[str, float]

    def __post_init__(self) -> None:
        for name in {*self.val, *self.gate, *self.test}:
            homes = [split for split in ("val", "gate", "test") if name in getattr(self, split)]
            require(len(homes) == 1, f"domain.splits must name a group once, got {name!r} in {' and '.join(homes)}. Keep one of them.")

        ok = set(self.shares) <= {"val", "gate", "test"} and all(s >= 0 for s in self.shares.values()) and sum(self.shares.values()) < 1
        require(ok, f"domain.splits.shares takes val, gate and test with shares whose sum is below 1, got {self.shares}. The rest trains.")

    def split_of(self, group: str, name: str) -> str:
        """Return the split of a class: a function of its group's and its own name alone, so that new data move nothing."""
        for split in ("val", "gate", "test"):
            if group in getattr(self, split):
                return split
        place = int(hashlib.sha256(f"split {name}".encode()).hexdigest()[:13], 16) / 16**13
        for split, share in sorted(self.shares.items()):
            place -= share
            if place < 0:
                return split
        return "train"


@dataclass
class AugmentSection:
    """Random changes of training inputs, drawn anew for every batch from the run's seed; fractions of the picture's side."""

    rotate_degrees: float
    scale: float
    shear: float
    shift: float
    elastic: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            require(value >= 0, f"domain.augment.{name} must be at least 0, got {value}. Set 0 to switch it off.")


@dataclass
class DomainSection:
    """A problem family: where its items come from, what its tasks ask for, how its classes are split."""

    name: str
    objective: Literal["cross_entropy", "squared_error", "ranking"]
    source: dict[str, Any]  # typed by components/domains/options.py
    splits: SplitsSection
    augment: AugmentSection


@dataclass
class TasksSection:
    """Training and validation tasks. Settings of the final tasks stand in EvaluationSection."""

    way: int
    shot: int
    query: int
    within: Within
    train: int
    val: int

    def __post_init__(self) -> None:
        require(self.way >= 1, f"tasks.way must be at least 2, or 1 where tasks have values to predict, got {self.way}.")
        positive(**{f"tasks.{name}": getattr(self, name) for name in ("shot", "query", "train", "val")})


@dataclass
class FitSection:
    """One optimisation: AdamW with a one-cycle schedule over `steps`; a checkpoint and one line every `epoch_steps`."""

    steps: int
    epoch_steps: int
    lr: float
    weight_decay: float

    def __post_init__(self) -> None:
        positive(lr=self.lr, epoch_steps=self.epoch_steps)
        require(self.steps >= 0, f"steps must be at least 0, got {self.steps}. Set 0 to take the start as it is.")
        require(
            self.steps % self.epoch_steps == 0,
            f"steps must be a multiple of epoch_steps, got steps={self.steps} and epoch_steps={self.epoch_steps}. Change one of them.",
        )
        require(self.weight_decay >= 0, f"weight_decay must be at least 0, got {self.weight_decay}. Set 0 to switch it off.")


@dataclass
class BackboneSection:
    """`conv`: `widths` filters a block, `pool[i]` halves the side after block i, features flattened or averaged. `mlp`: `widths` units a layer.

    `norm` is the kind of normalisation of a convolution; whose statistics `batch` uses is the learner's choice (learner.options.norm).
    """

    name: Literal["conv", "mlp"]
    widths: list[int]
    pool: list[bool]
    head: Literal["flatten", "average"]
    norm: Literal["batch", "group", "instance"]

    def __post_init__(self) -> None:
        require(len(self.widths) > 0, "backbone.widths needs at least one layer, got none. Give one number a layer.")
        require(
            self.name == "mlp" or len(self.widths) == len(self.pool),
            f"backbone.pool needs one entry a block, got {len(self.pool)} for {len(self.widths)} widths. Give both the same length.",
        )
        require(min(self.widths) > 0, f"backbone.widths must be positive, got {self.widths}. Use at least 1 filter a block.")


@dataclass
class BaseSection:
    """Pre-training of the base model theta*: a cosine classifier over all training classes and their turned copies, or one regression.

    `scale` and `label_smoothing` are the classifier's; `ridge` is the strength with which a regression's base adapts.
    """

    fit: FitSection
    batch: int
    turns: int
    scale: float
    label_smoothing: float
    ridge: float

    def __post_init__(self) -> None:
        positive(**{"base.batch": self.batch, "base.scale": self.scale, "base.ridge": self.ridge})
        require(self.turns in (1, 2, 4, 8), f"base.turns must be 1, 2, 4 or 8 (quarter turns and mirrors), got {self.turns}. Use 1 for none.")


@dataclass
class LearnerSection:
    """The meta-learner: its name, where it starts, how it is fitted, and its own options (typed by learners/options.py)."""

    name: str
    start: str
    fit: FitSection
    tasks_per_step: int
    checkpoint_inner: bool
    options: dict[str, Any]

    def __post_init__(self) -> None:
        positive(**{"learner.tasks_per_step": self.tasks_per_step})
        require(
            self.start in ("pretrained", "scratch") or self.start.startswith("models:/"),
            f"learner.start must be pretrained, scratch or models:/<name>@<alias>, got {self.start!r}. Use learner.start=pretrained.",
        )


@dataclass
class StudentSection:
    """Distilled students: student i has `widths[i]` and its own seed."""

    count: int
    teacher: str
    learner: LearnerSection
    widths: list[list[int]]
    pool: list[bool]
    head: Literal["flatten", "average"]
    temperature: float
    soft_weight: float

    def __post_init__(self) -> None:
        require(0 <= self.count <= len(self.widths), f"student.count needs 0 to {len(self.widths)} (student.widths has that many rows), got {self.count}.")
        positive(**{"student.temperature": self.temperature})
        require(0 <= self.soft_weight <= 1, f"student.soft_weight must lie in [0, 1], got {self.soft_weight}. It mixes teacher and labels.")
        require(
            self.teacher in ("teacher", "base") or self.teacher.startswith("models:/"),
            f"student.teacher must be teacher, base or models:/<name>@<alias>, got {self.teacher!r}. Use student.teacher=teacher.",
        )

    def backbone(self, index: int, teacher: BackboneSection) -> BackboneSection:
        """Return student i's backbone: of the teacher's kind, with its own widths."""
        return BackboneSection(teacher.name, self.widths[index], self.pool, self.head, teacher.norm)


@dataclass
class FusionSection:
    mode: Literal["auto", "average", "weights", "concat", "joint"]
    adapt: Literal["members", "joint"]
    fit: FitSection
    tasks_per_step: int

    def __post_init__(self) -> None:
        positive(**{"fusion.tasks_per_step": self.tasks_per_step})


@dataclass
class EvaluationSection:
    """Final tasks: `settings` such as 5w1s, `tasks` of each on the test split, `gate_tasks` on the gate split for promotion.

    `challenge`: a folder of one-shot runs to answer besides, or `lookalike` for `challenge_runs` runs made of the test split's drawings.
    """

    settings: list[str]
    tasks: int
    gate_tasks: int
    query: int
    within: Within
    scratch_steps: int
    scratch_lr: float
    scratch_tasks: int
    bootstrap: int
    challenge: str | None
    challenge_runs: int

    def __post_init__(self) -> None:
        require(len(self.settings) > 0, "evaluation.settings needs at least one setting such as 5w1s, got none. Use evaluation.settings=[5w1s].")
        for setting in self.settings:
            way_shot(setting)
        for name in ("tasks", "gate_tasks", "query", "scratch_tasks", "bootstrap", "scratch_lr", "challenge_runs"):
            positive(**{f"evaluation.{name}": getattr(self, name)})
        require(self.tasks >= 2, f"evaluation.tasks must be at least 2 for an interval, got {self.tasks}.")
        require(self.scratch_steps >= 0, f"evaluation.scratch_steps must be at least 0, got {self.scratch_steps}.")


@dataclass
class TrainerSection:
    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int
    precision: str
    threads: int
    accumulate: int
    runner: Literal["sequential", "threads", "dask"]

    def __post_init__(self) -> None:
        positive(**{"trainer.devices": self.devices, "trainer.threads": self.threads, "trainer.accumulate": self.accumulate})


@dataclass
class RegistrySection:
    """Promotion: the challenger's paired difference on the gate split must have its whole interval above `margin`."""

    model: str
    margin: float


@dataclass
class Config:
    """The whole configuration, composed once in flows/config.py."""

    experiment: str
    seed: int
    mirror: str | None
    data: DataSection
    domain: DomainSection
    tasks: TasksSection
    backbone: BackboneSection
    base: BaseSection
    learner: LearnerSection
    student: StudentSection
    fusion: FusionSection
    evaluation: EvaluationSection
    trainer: TrainerSection
    registry: RegistrySection

    def __post_init__(self) -> None:
        one = [s for s in self.evaluation.settings if way_shot(s)[0] == 1] + (["tasks.way"] if self.tasks.way == 1 else [])
        if self.domain.objective == "cross_entropy":
            require(not one, f"tasks of classes need at least 2 ways, got 1 in {', '.join(one)}. A task needs two classes to tell apart.")
        else:
            where = f"in domain {self.domain.name}, whose tasks have values"
            require(self.tasks.way == 1, f"tasks.way must be 1 {where}, got {self.tasks.way}. Use experiment={self.domain.name}.")
        require(0 <= self.seed < 2**31, f"seed must lie in [0, 2**31), got {self.seed}. Use seed=0.")


@dataclass(frozen=True)
class Score:
    """How a score is shown, factor and digits, and which way is better: sign +1 for more, -1 for less."""

    factor: int
    digits: int
    sign: int


SCORES = {"accuracy": Score(100, 2, +1), "pairs": Score(100, 2, +1), "mse": Score(1, 4, -1)}


@dataclass(frozen=True)
class StageRef:
    """A finished stage: where it lies, what it is, what it measured. All that one stage hands to the next."""

    name: str
    stage: str
    path: str
    fingerprint: str
    digest: str
    run_id: str
    seconds: float
    cached: bool
    metrics: dict[str, float]


@dataclass(frozen=True)
class FitJob:
    """One fit, as plain data: runs in this process or, unchanged, in torchrun children."""

    objective: Literal["base", "meta", "distill", "joint"]
    out: str
    state: str
    pool: str
    tasksets: str
    seed: int
    domain: DomainSection
    backbone: BackboneSection
    fit: FitSection
    trainer: TrainerSection
    base: BaseSection | None = None
    learner: LearnerSection | None = None
    student: StudentSection | None = None
    start: str | None = None  # path of the learner to start from
    teacher: str | None = None
    members: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    tasks_per_step: int = 1


def way_shot(setting: str) -> tuple[int, int]:
    """Parse `5w1s` into (5, 1). Raises InputError for anything else."""
    way, _, rest = setting.partition("w")
    ok = way.isdigit() and rest.endswith("s") and rest[:-1].isdigit() and int(way) >= 1 and int(rest[:-1]) >= 1
    require(ok, f"evaluation.settings takes <way>w<shot>s with way >= 1 and shot >= 1, got {setting!r}. Use for example 5w1s.")
    return int(way), int(rest[:-1])


def to_plain(value: Any) -> Any:
    """Turn sections, references and paths into plain dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


T = TypeVar("T")


def from_plain(kind: type[T], plain: Any) -> T:
    """Rebuild a dataclass from `to_plain`'s output."""
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(a for a in typing.get_args(kind) if a is not type(None))
        return typing.cast(T, None) if plain is None else from_plain(inner, plain)
    if origin in (list, tuple):
        item = typing.get_args(kind)[0]
        return typing.cast(T, origin(from_plain(item, v) for v in plain))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{k: from_plain(hints[k], v) for k, v in plain.items()})
    return typing.cast(T, plain)


def fingerprint(value: Any) -> str:
    """Return sha256 (hex) of the canonical JSON of plain data: the same content gives the same name, whatever the order of keys."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(plain: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts to dotted keys: {"a": {"b": 1}} -> {"a.b": 1}. Lists stay whole."""
    if not isinstance(plain, dict):
        return {prefix: plain}
    return {k: v for key, value in plain.items() for k, v in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()}
