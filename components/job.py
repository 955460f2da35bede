"""One fit as plain data, and what is told while it runs."""

from dataclasses import dataclass
from typing import Literal

from components.contracts import DomainSection, TrainerSection
from components.learning import BackboneStartSection, BaseSection, FitSection, LearnerSection, RecipeSection


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
    backbone: BackboneStartSection
    fit: FitSection
    trainer: TrainerSection
    base: BaseSection | None = None
    learner: LearnerSection | None = None
    recipe: RecipeSection | None = None
    initial_seed: int | None = None  # of the initial weights, where it is not the fit's own
    start: str | None = None  # path of the learner to start from
    teachers: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    tasks_per_step: int = 1
    turns: int = 1  # of the training tasks' pictures
    order_weight: float = 0.0  # of their values' order
    answers: bool = False  # keep what it comes to on each validation task, for others to be compared with


class Watch:
    """What a fit tells while it runs; this one keeps it to itself."""

    def step(self, step: int) -> None:
        """Hear that a step of an epoch is done. Where several processes train, the epochs alone are told."""

    def epoch(self, step: int, metrics: dict[str, float], again: bool) -> None:
        """Hear of an epoch that ended at `step`; `again` where an earlier run, which this one resumes, has told it before."""
