"""What a pipeline came to, as its flow returns it and a sweep compares it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """The result of one pipeline.

    `run_id`: its MLflow run. `model`, `version`, `champion`, `reason`: the registered version (empty for a run of a sweep, of which the best contends at
    the end), whether it is champion, and why. `ran`: the stages that were not cached. `judged`: the learner that stands for the pipeline, `validation` its
    score on validation tasks, whose kind is `validated_on`, `seconds` its fit's. `champion_met`: fingerprint of the champion that it was compared with.
    `evaluation`: folder of the scores, `metrics` what they come to, `fingerprint` of them. `data`: md5 of the pinned data.
    """

    run_id: str
    model: str
    version: str
    champion: bool
    reason: str
    ran: list[str]
    judged: str
    validation: float
    validated_on: str
    seconds: float
    champion_met: str | None
    evaluation: str
    metrics: dict[str, float]
    fingerprint: str
    data: str
