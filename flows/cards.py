"""What a run and a registered version say of themselves where people look: notes in MLflow, in Markdown."""

import json
from pathlib import Path

from components.contracts import StageRef
from flows import report, tracking
from flows.artifacts import markdown
from flows.promotion import BEFORE, Decision
from flows.stages import Pipeline
from flows.versions import Pinned

USE = {
    "cross_entropy": "Telling classes apart that it has never seen, from a few examples of each.",
    "squared_error": "Values of something new, from a few points of it.",
    "ranking": "The order in which somebody new will like things, from the first that they touched.",
    "return": "Acting in an environment that is new, after it has played a few episodes there.",
}
LIMITS = {
    "cross_entropy": "Probabilities are calibrated on validation tasks of this domain, and nowhere else. It always names one of the classes shown.",
    "squared_error": "It knows the range of its training tasks; beyond it, nothing is promised.",
    "ranking": "It ranks items that it was trained with, and those that are described as these are.",
    "return": "It was trained in the ranges of hidden parameters that the domain names; beyond them, nothing is promised.",
}


def write(line: Pipeline, pool: Pinned, ours: StageRef, models: dict[str, StageRef], evaluation: StageRef, decision: Decision) -> None:
    """Leave the result with the pipeline's run, and a model card with the version (Mitchell et al. 2019, arXiv:1810.03993, sec. 4)."""
    settings = line.config.evaluation.settings
    header, body = report.rows(evaluation, settings)
    gaps = markdown(*report.differences(evaluation, settings))
    about = f"{line.config.evaluation.tasks} test tasks a setting, seed {line.config.seed}, {report.INTERVALS}."
    fate, _, why = decision.told.partition(": ")
    note = [f"**{fate}:** {why}\n", f"Data: {pool.domain} `{pool.md5}` ({pool.how}).\n", f"{about}\n", markdown(header, body), gaps]
    tracking.set_tag(line.run_id, "mlflow.note.content", _fitting(note, 8000))
    if not decision.version:
        return
    if decision.reason.startswith(BEFORE) and tracking.store().get_model_version(decision.model, decision.version).description:
        return  # its card tells of the pipeline that made it; who was killed before writing one left none
    own = [row for row in body if row[0] in (ours.name, "base-unadapted", "chance")]
    card = [
        f"**{ours.name}** of domain `{pool.domain}`, learner `{_learner(ours)}`, {int(evaluation.metrics[f'{ours.name}/parameters']):,} parameters.",
        f"\n**Intended use.** {USE[line.config.domain.objective]} `python -m flows.adapt model=models:/{decision.model}/{decision.version} --help`",
        f"\n**Scores.** {about}\n\n{markdown(header, own)}",
        f"**Limits.** {LIMITS[line.config.domain.objective]} Tested on {_tested(pool)}.",
        f"\n**Data.** {pool.domain} `{pool.md5}`, pinned with the run (`data.pin={line.run_id}`).",
        f"\n**Lineage.** Pipeline run `{line.run_id}`: "
        + ", ".join(f"{ref.name} `{ref.run_id[:8]}`" for ref in models.values())
        + f"; code `{line.tags['git.commit'][:12]}`. Again: `python -m flows.retrain reproduce={line.run_id}`",
        f"\n**Promotion.** {decision.reason.removeprefix(BEFORE)}",
    ]
    tracking.store().update_model_version(decision.model, decision.version, _fitting(card, 5000))


def _fitting(parts: list[str], most: int) -> str:
    """Join as many parts as MLflow has room for."""
    while len("\n".join(parts)) > most:
        parts = parts[:-1]
    return "\n".join(parts)


def _learner(ours: StageRef) -> str:
    return str(json.loads((Path(ours.path) / "learner.json").read_text())["spec"]["name"])


def _tested(pool: Pinned) -> str:
    """Say which groups the test tasks are of."""
    from components.domains.pool import open_pool

    opened = open_pool(pool.path)
    names = list(dict.fromkeys(opened.groups[c] for c in opened.split("test")))
    return f"{len(names)} group{'s' * (len(names) > 1)}: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
