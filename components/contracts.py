"""What crosses the boundaries: typed config sections in, frozen references out.

Standard library only. Sections carry no defaults: every value lives in conf/, once. How something is trained: components/learning.py.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from components.inputs import not_negative, positive, require, way_shot
from components.learning import BackboneStartSection, BaseSection, FusionSection, LearnerSection, StudentSection

CELLS = ("known-known", "known-new", "new-known", "new-new")  # users-items: splits of a cold start, reported as the test split is
Within = Literal["group", "all"]


@dataclass
class DataSection:
    """How `data/` is pinned: rewrite `data.dvc` on a new version, and which version to restore (run id, git revision or file)."""

    write_pin: bool
    pin: str | None


@dataclass
class SplitsSection:
    """Groups of each split by name. Classes of all other groups train, but for the shares that go to splits without groups, by the hash of their name.

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
        not_negative(**{f"domain.augment.{name}": value for name, value in vars(self).items()})

    @property
    def bends(self) -> bool:
        """Tell whether pictures are bent at all."""
        return any(vars(self).values())


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
    `order_weight`: how much the order of a training task's values counts beside their squared errors.
    """

    way: int
    shot: int
    query: int
    within: Within
    train: int
    val: int
    turns: int
    order_weight: float

    def __post_init__(self) -> None:
        require(self.turns in (1, 2, 4, 8), f"tasks.turns must be 1, 2, 4 or 8 (quarter turns and mirrors), got {self.turns}. Use 1 for none.")
        require(self.way >= 1, f"tasks.way must be at least 2, or 1 where tasks have values to predict, got {self.way}.")
        positive(**{f"tasks.{name}": getattr(self, name) for name in ("shot", "query", "train", "val")})


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
    challenge: str | None
    challenge_runs: int
    ablation: bool

    def __post_init__(self) -> None:
        require(len(self.settings) > 0, "evaluation.settings needs at least one setting such as 5w1s, got none. Use evaluation.settings=[5w1s].")
        distinct = {way_shot(setting) for setting in self.settings}
        require(len(distinct) == len(self.settings), f"evaluation.settings must name each setting once, got {', '.join(self.settings)}. Leave the others out.")
        for name in ("tasks", "gate_tasks", "query", "scratch_tasks", "scratch_lr", "challenge_runs"):
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
        fits = self.model.strip() == self.model and self.model not in ("", ".", "..") and not set(self.model) & set("/:'\\") and self.model.isprintable()
        told = "registry.model must be a name that MLflow and files bear, without / : ' and \\"
        require(fits, f"{told}, got {self.model!r}. Use letters, digits and -.")
        require(math.isfinite(self.margin), f"registry.margin must be a number, got {self.margin}. Use 0.0.")
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
        require(bool(self.host), "serving.host must name where to listen, got nothing, which is everywhere. Use serving.host=127.0.0.1.")
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
        weight = self.tasks.order_weight
        told = f"tasks.order_weight must be at least 0, and 0 where objective {self.domain.objective} is no squared error, got {weight}. Use 0."
        require(weight == 0 or (self.domain.objective == "squared_error" and 0 < weight < math.inf), told)
        if self.domain.objective == "cross_entropy":
            require(not self.evaluation.scores, f"evaluation.scores are of tasks that have values, got {self.evaluation.scores}. Use evaluation.scores=[].")
            require(not one, f"tasks of classes need at least 2 ways, got 1 in {', '.join(one)}. A task needs two classes to tell apart.")
        else:
            orders = ["ndcg_1", "ndcg_3", "ndcg_5"]
            known = {"squared_error": ["mae", "rmse", *orders], "ranking": orders}.get(self.domain.objective, [])
            odd = [name for name in self.evaluation.scores if name not in known]
            told = f"evaluation.scores of objective {self.domain.objective} are {', '.join(known) or 'none'}"
            require(not odd, f"{told}, got {', '.join(odd)}. Leave them out.")
            several = [s for s in self.evaluation.settings if way_shot(s)[0] > 1] + ([f"tasks.way={self.tasks.way}"] if self.tasks.way > 1 else [])
            require(not several, f"tasks of domain {self.domain.name} have values, and so 1 way, got {', '.join(several)}. Use tasks.way=1, and 1w5s for 5w5s.")
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
