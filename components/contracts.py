"""What crosses the boundaries: typed config sections in, frozen references out.

Standard library only. Sections carry no defaults: every value lives in conf/, once.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

SPLITS = ("train", "val", "gate", "test")
CELLS = ("known-known", "known-new", "new-known", "new-new")  # users-items: splits of a cold start, reported as the test split is
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
    """Groups of each split by name. Classes of all other groups train, but for the shares that go to each split by the hash of their name.

    `train`: of the groups that train, the first so many by the hash of their names (None: all); the others are in no split.
    """

    train: int | None
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
        positive(**({"domain.splits.train": self.train} if self.train is not None else {}))


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
    objective: Literal["cross_entropy", "squared_error", "ranking", "return"]
    source: dict[str, Any]  # typed by components/domains/options.py
    splits: SplitsSection
    augment: AugmentSection


@dataclass
class TasksSection:
    """Training and validation tasks. Settings of the final tasks stand in EvaluationSection.

    `turns`: pictures of training tasks are turned (1: never, 4: by quarters, 8: mirrored too), each class of a task by a draw of its own.
    """

    way: int
    shot: int
    query: int
    within: Within
    train: int
    val: int
    turns: int

    def __post_init__(self) -> None:
        require(self.turns in (1, 2, 4, 8), f"tasks.turns must be 1, 2, 4 or 8 (quarter turns and mirrors), got {self.turns}. Use 1 for none.")
        require(self.way >= 1, f"tasks.way must be at least 2, or 1 where tasks have values to predict, got {self.way}.")
        positive(**{f"tasks.{name}": getattr(self, name) for name in ("shot", "query", "train", "val")})


@dataclass
class FitSection:
    """One optimisation: AdamW with a one-cycle schedule over `steps`; a checkpoint and one line every `epoch_steps`.

    `keep`: the weights after the last epoch, where the schedule has come to rest, or those of the epoch with the least loss on validation tasks.
    """

    steps: int
    epoch_steps: int
    lr: float
    weight_decay: float
    keep: Literal["last", "best"] = "last"

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
    """`conv`: `widths` filters a block, `pool[i]` halves the side after it, features flattened or averaged. `mlp`: `widths` units and `activation`.

    `norm` is the kind of normalisation of a convolution; whose statistics `batch` uses is the learner's choice (learner.options.norm).
    """

    name: Literal["conv", "mlp"]
    widths: list[int]
    pool: list[bool]
    head: Literal["flatten", "average"]
    norm: Literal["batch", "group", "instance"]
    activation: Literal["relu", "tanh"]

    def __post_init__(self) -> None:
        require(len(self.widths) > 0, "backbone.widths needs at least one layer, got none. Give one number a layer.")
        require(
            self.name == "mlp" or len(self.widths) == len(self.pool),
            f"backbone.pool needs one entry a block, got {len(self.pool)} for {len(self.widths)} widths. Give both the same length.",
        )
        require(min(self.widths) > 0, f"backbone.widths must be positive, got {self.widths}. Use at least 1 filter a block.")


@dataclass
class BackboneStartSection(BackboneSection):
    """A backbone and where its weights begin: drawn, or those of the folder `start` (components/backbones.py), which `frozen` leaves as they are."""

    start: str | None
    frozen: bool


@dataclass
class BaseSection:
    """Pre-training of the base model theta*: a cosine classifier over all training classes and their turned copies, or one regression.

    `scale` and `label_smoothing` are the classifier's; `ridge` is the strength with which a regression's base adapts, `policy` control's options.
    """

    fit: FitSection
    batch: int
    turns: int
    scale: float
    label_smoothing: float
    ridge: float
    policy: dict[str, Any]

    def __post_init__(self) -> None:
        positive(**{"base.batch": self.batch, "base.scale": self.scale, "base.ridge": self.ridge})
        require(self.turns in (1, 2, 4, 8), f"base.turns must be 1, 2, 4 or 8 (quarter turns and mirrors), got {self.turns}. Use 1 for none.")


@dataclass
class LearnerSection:
    """The meta-learner: its name, where it starts, how it is fitted, and its own options (typed by learners/options.py).

    `views`: once trained, it averages the features of that many bent copies of every picture.
    """

    name: str
    start: str
    views: int
    fit: FitSection
    tasks_per_step: int
    checkpoint_inner: bool
    options: dict[str, Any]

    def __post_init__(self) -> None:
        positive(**{"learner.tasks_per_step": self.tasks_per_step, "learner.views": self.views})
        require(
            self.start in ("pretrained", "scratch") or self.start.startswith("models:/"),
            f"learner.start must be pretrained, scratch or models:/<name>@<alias>, got {self.start!r}. Use learner.start=pretrained.",
        )


@dataclass
class RecipeSection:
    """What a student learns from its teachers; 0 switches a part off.

    `soft_weight` mixes the teachers' outputs at `temperature` (1) with the tasks' own labels (0). Added to that: `class_weight` times soft
    outputs over the training classes, `feature_weight` times features, `relation_weight` times distances within a task. The teachers
    adapt to `teacher_shots` more examples a class than the student, whose own are blurred by `noise` (standard deviation, inputs in [0, 1]);
    `unlabelled` further inputs a task are answered by both.
    """

    temperature: float
    soft_weight: float
    class_weight: float
    feature_weight: float
    relation_weight: float
    teacher_shots: int
    noise: float
    unlabelled: int

    def __post_init__(self) -> None:
        positive(**{"student.recipe.temperature": self.temperature})
        require(0 <= self.soft_weight <= 1, f"student.recipe.soft_weight must lie in [0, 1], got {self.soft_weight}. It mixes teacher and labels.")
        for name in ("class_weight", "feature_weight", "relation_weight", "teacher_shots", "noise", "unlabelled"):
            value = getattr(self, name)
            require(value >= 0, f"student.recipe.{name} must be at least 0, got {value}. Set 0 to switch it off.")


@dataclass
class StudentSection:
    """Distilled students: student i has `widths[i]` and its own seed, or, with `same_start`, `widths[0]` and one initialisation for all.

    `teacher`: teacher, base or models:/<name>@<alias>, several joined by `+`. `generations`: how often a student is taught anew, each time
    by the one before it (Furlanello et al. 2018, arXiv:1805.04770). `sweep`: changes of the recipe; where there are any, the recipe
    and each change of it train a student of `widths[0]` for `sweep_steps`, and validation tasks choose the recipe of all students.
    """

    count: int
    teacher: str
    learner: LearnerSection
    widths: list[list[int]]
    pool: list[bool]
    head: Literal["flatten", "average"]
    same_start: bool
    generations: int
    recipe: RecipeSection
    sweep: list[dict[str, float]]
    sweep_steps: int

    def __post_init__(self) -> None:
        rows = len(self.widths)
        require(
            self.count >= 0 and (self.count <= rows or self.same_start),
            f"student.count needs 0 to {rows} (student.widths has that many rows), got {self.count}. Add widths.",
        )
        positive(**{"student.generations": self.generations, "student.sweep_steps": self.sweep_steps})
        each = self.learner.fit.epoch_steps
        require(
            not self.sweep or self.sweep_steps % each == 0,
            f"student.sweep_steps must be a multiple of student.learner.fit.epoch_steps={each}, got {self.sweep_steps}. Change one of them.",
        )
        for one in self.teachers():
            require(
                one in ("teacher", "base") or one.startswith("models:/"),
                f"student.teacher must be teacher, base or models:/<name>@<alias>, several joined by +, got {one!r}. Use student.teacher=teacher.",
            )
        self.recipes()

    def teachers(self) -> list[str]:
        return self.teacher.split("+")

    def recipes(self) -> dict[str, RecipeSection]:
        """Return the recipes that compete, by name; none where there is no sweep. Raises InputError for a change of what a recipe does not have."""
        known = [f.name for f in dataclasses.fields(RecipeSection)]
        for key in (key for changes in self.sweep for key in changes):
            require(key in known, f"student.sweep changes {key}, but a recipe has {', '.join(known)}. Use one of them.")
        whole = ("teacher_shots", "unlabelled")
        competing = {"-".join(f"{k}-{v:g}" for k, v in changes.items()): changes for changes in self.sweep}
        return {
            name: dataclasses.replace(self.recipe, **{k: int(v) if k in whole else v for k, v in changes.items()})  # type: ignore[arg-type]
            for name, changes in ({"plain": {}, **competing} if self.sweep else {}).items()
        }

    def named(self, recipe: str) -> RecipeSection:
        """Return one of the recipes that compete; the configured one for an empty name."""
        return self.recipes()[recipe] if recipe else self.recipe

    def backbone(self, index: int, teacher: BackboneSection) -> BackboneStartSection:
        """Return student i's backbone: of the teacher's kind, with its own widths and weights."""
        widths = self.widths[0 if self.same_start else index]
        return BackboneStartSection(teacher.name, widths, self.pool, self.head, teacher.norm, teacher.activation, None, False)


@dataclass
class FusionSection:
    """How students become one learner.

    `mode`: one way of joining, or the best of all on validation tasks (`auto`). `members`: students, teacher, base. `views` is the fused
    learner's, as a learner's own. `fit` is the training of mode `joint`, `lessons` that of `taught`; without steps `auto` leaves them out.
    `again`: the training of one more student, which goes on from the first by the students' recipe, taught by the fused learner; 0 steps for none.
    """

    mode: Literal["auto", "average", "weights", "greedy", "conditioned", "concat", "whitened", "joint", "taught", "soup"]
    adapt: Literal["members", "joint"]
    members: list[Literal["students", "teacher", "base"]]
    views: int
    fit: FitSection
    lessons: FitSection
    again: FitSection
    tasks_per_step: int

    def __post_init__(self) -> None:
        positive(**{"fusion.tasks_per_step": self.tasks_per_step, "fusion.views": self.views})
        once = len(set(self.members)) == len(self.members) > 0
        require(once, f"fusion.members takes students, teacher and base, each at most once, got {self.members}. Use fusion.members=[students].")
        for mode, fit, name in (("joint", self.fit, "fit"), ("taught", self.lessons, "lessons")):
            told = f"fusion.mode={mode} trains the members, got fusion.{name}.steps=0"
            require(self.mode != mode or fit.steps > 0, f"{told}. Set it, or use fusion.mode=average.")

    def taught(self) -> bool:
        """Tell whether members are taught as one."""
        return self.mode in ("auto", "taught") and self.lessons.steps > 0


@dataclass
class EvaluationSection:
    """Final tasks: `settings` such as 5w1s, `tasks` of each on the test split, `gate_tasks` on the gate split for promotion.

    `challenge`: a folder of one-shot runs to answer besides, or `lookalike` for `challenge_runs` runs made of the test split's drawings.
    `scores`: further scores of tasks that have values, reported beside the objective's own, which alone chooses and promotes.
    `ablation`: every competing recipe's student and every way of joining is measured too, paired with the plain recipe and the plain mean.
    """

    settings: list[str]
    scores: list[Literal["mae", "rmse", "ndcg_1", "ndcg_3", "ndcg_5"]]
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
    ablation: bool

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
    nodes: int
    rendezvous: str | None
    precision: Literal["32-true", "16-mixed", "bf16-mixed"]
    threads: int
    accumulate: int
    runner: Literal["sequential", "threads", "dask"]

    def __post_init__(self) -> None:
        positive(**{f"trainer.{name}": getattr(self, name) for name in ("devices", "nodes", "threads", "accumulate")})


@dataclass
class RegistrySection:
    """Promotion: the challenger's paired difference on the gate split must have its whole interval above `margin`.

    Guard rails besides, where they are not null: its expected calibration error in any setting of the gate split may exceed the champion's by
    `max_ece_rise` at most, and it may have `max_parameters` and take `max_flops` a task (adapt and predict, in the first setting). Times never gate.
    """

    model: str
    margin: float
    max_ece_rise: float | None
    max_parameters: int | None
    max_flops: float | None

    def __post_init__(self) -> None:
        for name in ("max_ece_rise", "max_parameters", "max_flops"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"registry.{name} must be at least 0, or null for no limit, got {value}. Change it.")


@dataclass
class ServingSection:
    """Where the endpoint listens, and what one request and all adapted states that it keeps may come to."""

    host: str
    port: int
    threads: int
    examples: int
    way: int
    megabytes: float
    kept_megabytes: float
    minutes: float
    clients: int
    seconds: float
    idle_seconds: int

    def __post_init__(self) -> None:
        require(0 < self.port < 65536, f"serving.port must be a number from 1 to 65535, got {self.port}. Use serving.port=8000.")
        positive(**{f"serving.{name}": value for name, value in vars(self).items() if name not in ("host", "port")})


@dataclass
class Config:
    """The whole configuration, composed once in flows/config.py."""

    experiment: str
    seed: int
    mirror: str | None
    data: DataSection
    domain: DomainSection
    tasks: TasksSection
    backbone: BackboneStartSection
    base: BaseSection
    learner: LearnerSection
    student: StudentSection
    fusion: FusionSection
    evaluation: EvaluationSection
    trainer: TrainerSection
    registry: RegistrySection
    serving: ServingSection

    def __post_init__(self) -> None:
        one = [s for s in self.evaluation.settings if way_shot(s)[0] == 1] + (["tasks.way"] if self.tasks.way == 1 else [])
        if self.domain.objective == "cross_entropy":
            require(not self.evaluation.scores, f"evaluation.scores are of tasks that have values, got {self.evaluation.scores}. Use evaluation.scores=[].")
            require(not one, f"tasks of classes need at least 2 ways, got 1 in {', '.join(one)}. A task needs two classes to tell apart.")
        else:
            require(self.tasks.way == 1, f"tasks.way must be 1 in domain {self.domain.name}, whose tasks have values, got {self.tasks.way}. Set tasks.way=1.")
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


def way_shot(setting: str) -> tuple[int, int]:
    """Parse `5w1s` into (5, 1). Raises InputError for anything else."""
    way, _, rest = setting.partition("w")
    ok = way.isdigit() and rest.endswith("s") and rest[:-1].isdigit() and int(way) >= 1 and int(rest[:-1]) >= 1
    require(ok, f"evaluation.settings takes <way>w<shot>s with way >= 1 and shot >= 1, got {setting!r}. Use for example 5w1s.")
    return int(way), int(rest[:-1])
