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
    """Groups of each split by name; every other group trains."""

    val: list[str]
    gate: list[str]
    test: list[str]

    def __post_init__(self) -> None:
        for name in {*self.val, *self.gate, *self.test}:
            homes = [split for split in ("val", "gate", "test") if name in getattr(self, split)]
            require(len(homes) == 1, f"domain.splits must name a group once, got {name!r} in {' and '.join(homes)}. Keep one of them.")

    def split_of(self, group: str) -> str:
        """Return the split of a group: a function of its name alone, so that new data moves nothing."""
        return next((split for split in ("val", "gate", "test") if group in getattr(self, split)), "train")


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
    name: str
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
        require(self.way >= 2, f"tasks.way must be at least 2, got {self.way}. A task needs two classes to tell apart.")
        positive(**{f"tasks.{name}": getattr(self, name) for name in ("shot", "query", "train", "val")})


@dataclass
class FitSection:
    """One optimisation: AdamW with a one-cycle schedule over `steps`; a checkpoint and one line every `epoch_steps`."""

    steps: int
    epoch_steps: int
    lr: float
    weight_decay: float

    def __post_init__(self) -> None:
        positive(lr=self.lr, steps=self.steps, epoch_steps=self.epoch_steps)
        require(
            self.steps % self.epoch_steps == 0,
            f"steps must be a multiple of epoch_steps, got steps={self.steps} and epoch_steps={self.epoch_steps}. Change one of them.",
        )
        require(self.weight_decay >= 0, f"weight_decay must be at least 0, got {self.weight_decay}. Set 0 to switch it off.")


@dataclass
class BackboneSection:
    """A convolutional encoder: `widths` filters a block, `pool[i]` halves the side after block i, features flattened or averaged."""

    name: str
    widths: list[int]
    pool: list[bool]
    head: Literal["flatten", "average"]

    def __post_init__(self) -> None:
        require(
            len(self.widths) == len(self.pool) > 0,
            f"backbone.pool needs one entry a block, got {len(self.pool)} for {len(self.widths)} widths. Give both the same length.",
        )
        require(min(self.widths) > 0, f"backbone.widths must be positive, got {self.widths}. Use at least 1 filter a block.")


@dataclass
class BaseSection:
    """Pre-training of the base model theta*: a cosine classifier over all training classes and their turned copies."""

    fit: FitSection
    batch: int
    turns: int
    scale: float
    label_smoothing: float

    def __post_init__(self) -> None:
        positive(**{"base.batch": self.batch, "base.scale": self.scale})
        require(self.turns in (1, 2, 4, 8), f"base.turns must be 1, 2, 4 or 8 (quarter turns and mirrors), got {self.turns}. Use 1 for none.")


@dataclass
class LearnerSection:
    """The meta-learner: its name, where it starts, how it is fitted, and its own options (typed by learners/options.py)."""

    name: str
    start: str
    fit: FitSection
    tasks_per_step: int
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
        require(1 <= self.count <= len(self.widths), f"student.count needs 1 to {len(self.widths)} (student.widths has that many rows), got {self.count}.")
        positive(**{"student.temperature": self.temperature})
        require(0 <= self.soft_weight <= 1, f"student.soft_weight must lie in [0, 1], got {self.soft_weight}. It mixes teacher and labels.")
        require(
            self.teacher in ("teacher", "base") or self.teacher.startswith("models:/"),
            f"student.teacher must be teacher, base or models:/<name>@<alias>, got {self.teacher!r}. Use student.teacher=teacher.",
        )

    def backbone(self, index: int) -> BackboneSection:
        return BackboneSection("conv", self.widths[index], self.pool, self.head)


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
    """Final tasks: `settings` such as 5w1s, `tasks` of each on the test split, `gate_tasks` on the gate split for promotion."""

    settings: list[str]
    tasks: int
    gate_tasks: int
    query: int
    within: Within
    scratch_steps: int
    scratch_lr: float
    scratch_tasks: int
    bootstrap: int

    def __post_init__(self) -> None:
        require(len(self.settings) > 0, "evaluation.settings needs at least one setting such as 5w1s, got none. Use evaluation.settings=[5w1s].")
        for setting in self.settings:
            way_shot(setting)
        for name in ("tasks", "gate_tasks", "query", "scratch_tasks", "bootstrap", "scratch_lr"):
            positive(**{f"evaluation.{name}": getattr(self, name)})
        require(self.tasks >= 2, f"evaluation.tasks must be at least 2 for an interval, got {self.tasks}.")
        require(self.scratch_steps >= 0, f"evaluation.scratch_steps must be at least 0, got {self.scratch_steps}.")


@dataclass
class TrainerSection:
    accelerator: Literal["cpu", "gpu", "auto"]
    devices: int
    precision: str
    threads: int
    runner: Literal["sequential", "threads", "dask"]

    def __post_init__(self) -> None:
        positive(**{"trainer.devices": self.devices, "trainer.threads": self.threads})


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
        require(0 <= self.seed < 2**31, f"seed must lie in [0, 2**31), got {self.seed}. Use seed=0.")


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
    ok = way.isdigit() and rest.endswith("s") and rest[:-1].isdigit() and int(way) >= 2 and int(rest[:-1]) >= 1
    require(ok, f"evaluation.settings takes <way>w<shot>s with way >= 2 and shot >= 1, got {setting!r}. Use for example 5w1s.")
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
