"""The sections of the configuration that say how something is trained: base model, learner, students, fusion.

Standard library only. They carry no defaults: every value lives in conf/, once.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from components.inputs import not_negative, positive, require

SHARD = 32  # items of the base batch that share one generator, and go to one process together


@dataclass
class FitSection:
    """One optimisation: AdamW with a one-cycle schedule over `steps`; a checkpoint and one line every `epoch_steps`.

    `keep`: the weights after the last epoch, where the schedule has come to rest, or those of the epoch with the least loss on validation tasks.
    """

    steps: int
    epoch_steps: int
    lr: float
    weight_decay: float
    keep: Literal["last", "best"]

    def __post_init__(self) -> None:
        positive(lr=self.lr, epoch_steps=self.epoch_steps)
        require(self.steps >= 0, f"steps must be at least 0, got {self.steps}. Set 0 to take the start as it is.")
        require(
            self.steps % self.epoch_steps == 0,
            f"steps must be a multiple of epoch_steps, got steps={self.steps} and epoch_steps={self.epoch_steps}. Change one of them.",
        )
        not_negative(weight_decay=self.weight_decay)


def check_blocks(group: str, kind: str, widths: list[int], pool: list[bool], separable: int) -> None:
    """Raise InputError, naming the config's `group`, unless a `conv` has an entry of `pool` for each block and no more separable blocks than blocks."""
    most = len(widths) if kind == "conv" else 0
    told = f"{group}.pool needs one entry a block, got {len(pool)} for {len(widths)} widths. Give both the same length."
    require(kind == "mlp" or len(pool) == len(widths), told)
    told = f"{group}.separable must be 0 to {most}, its blocks of convolutions, got {separable}. Use 0 for none."
    require(0 <= separable <= most, told)


@dataclass
class BackboneSection:
    """`conv`: `widths` filters a block, `pool[i]` halves the side after it, features flattened or averaged. `mlp`: `widths` units and `activation`.

    The convolutions of the last `separable` blocks look at each channel by itself first, and at all of them in each pixel then.
    `norm` is the kind of normalisation of a convolution; whose statistics `batch` uses is the learner's choice (learner.options.norm).
    """

    name: Literal["conv", "mlp"]
    widths: list[int]
    pool: list[bool]
    separable: int
    head: Literal["flatten", "average"]
    norm: Literal["batch", "group", "instance"]
    activation: Literal["relu", "tanh"]

    def __post_init__(self) -> None:
        require(len(self.widths) > 0, "backbone.widths needs at least one layer, got none. Give one number a layer.")
        require(min(self.widths) > 0, f"backbone.widths must be positive, got {self.widths}. Use at least 1 filter a block.")
        check_blocks("backbone", self.name, self.widths, self.pool, self.separable)
        told = f"backbone.activation must be relu for conv, got {self.activation}. Leave it out"
        require(self.name == "mlp" or self.activation == "relu", f"{told}, or use backbone=mlp for vectors.")

    def check_reads(self, shape: tuple[int, ...], where: str = "backbone") -> None:
        """Raise InputError, naming the config's group `where`, unless such a network reads inputs of this shape: pictures [C, H, W] or vectors [D]."""
        kind, items, preset = ("conv", "pictures", "conv4") if len(shape) == 3 else ("mlp", "vectors", "mlp")
        require(self.name == kind, f"{where}.name must be {kind} for {items}, got {self.name}. Use {where}={preset}.")
        if self.name == "mlp":
            return
        halved, side = sum(self.pool), min(shape[1:]) >> sum(self.pool)
        require(side > 0, f"{where}.pool must leave a pixel, got {halved} halvings of {shape[1]}x{shape[2]}. Pool less often.")
        told = f"{where}.norm=instance compares the pixels of a feature map, got one pixel after {halved} halvings of {shape[1]}x{shape[2]}"
        require(self.norm != "instance" or side > 1, f"{told}. Use batch or group, or pool less often.")


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
        require(self.batch > 1, f"base.batch must be at least 2, since normalisation compares the items of a batch, got {self.batch}. Raise it.")
        require(0 <= self.label_smoothing < 1, f"base.label_smoothing must lie in [0, 1), got {self.label_smoothing}. Use 0 for none.")
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
    `unlabelled` further inputs a task are answered by both. Of a share `cutmix` of the tasks, pictures are joined of halves of two classes'.
    """

    temperature: float
    soft_weight: float
    class_weight: float
    feature_weight: float
    relation_weight: float
    teacher_shots: int
    noise: float
    unlabelled: int
    cutmix: float

    def __post_init__(self) -> None:
        positive(**{"student.recipe.temperature": self.temperature})
        require(0 <= self.soft_weight <= 1, f"student.recipe.soft_weight must lie in [0, 1], got {self.soft_weight}. It mixes teacher and labels.")
        require(0 <= self.cutmix <= 1, f"student.recipe.cutmix must lie in [0, 1], got {self.cutmix}. It is a share of the tasks.")
        parts = ("class_weight", "feature_weight", "relation_weight", "teacher_shots", "noise", "unlabelled")
        not_negative(**{f"student.recipe.{name}": getattr(self, name) for name in parts})


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
    separable: int
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
        for key, value in ((k, v) for changes in self.sweep for k, v in changes.items()):
            require(math.isfinite(value), f"student.sweep must give {key} a number, got {value}. Use a finite one.")
        whole = [f.name for f in dataclasses.fields(RecipeSection) if f.type is int]
        for key, value in ((k, v) for changes in self.sweep for k, v in changes.items() if k in whole):
            require(value == int(value), f"student.sweep must give {key} a whole number, got {value}. Use {int(value)} or {int(value) + 1}.")
        for changes in self.sweep:
            own = {key: getattr(self.recipe, key) for key in changes}
            require(changes != own, f"student.sweep must change the recipe, got {changes or 'an empty change'}, which is it already. Leave it out.")
        competing = {"-".join(f"{k}-{v:g}" for k, v in changes.items()): changes for changes in self.sweep}
        require(
            len(competing) == len(self.sweep), f"student.sweep must list changes that differ, got {len(self.sweep) - len(competing)} twice. Leave them out."
        )
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
        check_blocks("student", teacher.name, widths, self.pool, self.separable)
        return BackboneStartSection(teacher.name, widths, self.pool, self.separable, self.head, teacher.norm, teacher.activation, None, False)


@dataclass
class FusionSection:
    """How students become one learner.

    `mode`: one way of joining, or the plainest that validation tasks do not call worse than the best (`auto`). `members`: students, teacher, base, and
    where tasks have values a linear model of the inputs (linear.py), which errs elsewhere than networks do. `views` is the fused learner's, as a learner's
    own. `fit` is the training of mode `joint`, `lessons` that of `taught`; without steps `auto` leaves them out.
    `again`: the training of one more student, which goes on from the best by the students' recipe, taught by the fused learner; 0 steps for none.
    """

    mode: Literal["auto", "average", "weights", "greedy", "conditioned", "concat", "whitened", "joint", "taught", "soup"]
    adapt: Literal["members", "joint"]
    members: list[Literal["students", "teacher", "base", "linear"]]
    views: int
    fit: FitSection
    lessons: FitSection
    again: FitSection
    tasks_per_step: int

    def __post_init__(self) -> None:
        positive(**{"fusion.tasks_per_step": self.tasks_per_step, "fusion.views": self.views})
        once = len(set(self.members)) == len(self.members) > 0
        require(once, f"fusion.members takes students, teacher, base and linear, each at most once, got {self.members}. Use fusion.members=[students].")
        steps = {"joint": "fusion.fit.steps", "taught": "fusion.lessons.steps"}.get(self.mode)
        require(not steps or bool(self.fits()), f"fusion.mode={self.mode} trains the members, got {steps}=0. Set it, or use fusion.mode=average.")

    def fits(self) -> dict[str, FitSection]:
        """Return how the members are trained as one before they are joined, by the mode that does so; none where no such mode is asked for."""
        return {mode: fit for mode, fit in (("joint", self.fit), ("taught", self.lessons)) if self.mode in ("auto", mode) and fit.steps}
