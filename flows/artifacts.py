"""What a pipeline leaves on its parent run: config, pin, links to the stages' runs, headline metrics."""

import json
from pathlib import Path

from components.contracts import CELLS, StageRef
from components.plain import to_plain
from components.scores import OBJECTIVE_SCORES, SCORES
from flows import terminal, tracking
from flows.repository import PIN
from flows.stages import Pipeline
from flows.versions import Pinned

REFERENCES = (  # measured beside the learners; oracles, which are told what is hidden, are bounds and no contenders
    *("pixels", "nearest", "mean", "popularity", "biases", "linear-constant", "linear", "scratch"),
    *("base-unadapted", "teacher-unadapted", "fused-unadapted", "oracle", "oracle-trained"),
)
OVERRIDES = "overrides.json"  # of the parent run, one by one
SCORED = ("test/", "challenge/", *(f"{cell}/" for cell in CELLS))  # what a model's own run repeats of the evaluation


def markdown(head: list[str], body: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]) + "\n"


def open_parent(line: Pipeline, pool: Pinned, overrides: list[str]) -> None:
    """Log what is known before the first stage: config, data version with its pin file, the pool as input."""
    tracking.log_params(line.run_id, to_plain(line.config))
    tracking.log_text(line.run_id, json.dumps(to_plain(line.config), indent=1), "config.json")
    tracking.log_text(line.run_id, json.dumps(overrides), OVERRIDES)
    tracking.log_text(line.run_id, pool.pin, PIN)
    tracking.set_tag(line.run_id, "data.md5", pool.data_md5)
    tracking.set_tag(line.run_id, "data.how", pool.how)
    tracking.log_input(line.run_id, pool.domain, pool.md5, pool.path, "retrain")


def link(line: Pipeline, ref: StageRef) -> StageRef:
    """A stage is done: point the parent run at the run that made its output, and tell the terminal, which a cluster's worker cannot.

    A run that was killed between its output and its end is completed.
    """
    if ref.cached and tracking.unfinished(ref.run_id):
        tracking.log_outputs(ref.run_id, Path(ref.path))
        tracking.finish(ref.run_id)
    tracking.set_tag(line.run_id, f"stage.{ref.name}.run_id", ref.run_id)
    tracking.set_tag(line.run_id, f"stage.{ref.name}.cached", str(ref.cached).lower())
    terminal.view().end(ref.name, ref.metrics, ref.cached)
    return ref


def headline(line: Pipeline, models: dict[str, StageRef], ours: str, evaluation: StageRef) -> None:
    """Log each model's final scores on its own run under common names, and all of them on the parent run, `ours` also under those names."""

    def own(name: str) -> dict[str, float]:
        scores = {m.replace(f"/{name}/", "/"): v for m, v in evaluation.metrics.items() if m.startswith(SCORED) and f"/{name}/" in m}
        return scores | {m.removeprefix(f"{name}/"): v for m, v in evaluation.metrics.items() if m.startswith(f"{name}/")}

    for name, ref in models.items():  # where its database is gone and the output is not, the parent run holds the scores all the same
        if tracking.lacks(ref.run_id, own(name)) if evaluation.cached else tracking.has_run(ref.run_id):
            tracking.log_metrics(ref.run_id, own(name))
    tracking.log_metrics(line.run_id, own(ours) | evaluation.metrics)  # ours first: MLflow's compare page begins with the first
    tracking.set_tag(line.run_id, "fingerprint", evaluation.fingerprint)


def recipes(line: Pipeline, tried: list[StageRef], chosen: str) -> None:
    """Keep with the parent run what each competing recipe came to on validation tasks, what its change of the plain one is worth, and which was chosen."""
    if not tried:
        return
    from components.answers import paired, pooled, read_answers

    scores = {ref.name.removeprefix("recipe-"): {k: v for k, v in ref.metrics.items() if k.startswith("val/")} for ref in tried}
    tracking.log_metrics(line.run_id, {f"recipes/{name}/{k}": v for name, own in scores.items() for k, v in own.items()})
    tracking.set_tag(line.run_id, "recipe", chosen)
    score = OBJECTIVE_SCORES[line.config.domain.objective]
    shown, answers, body = SCORES[score], {ref.name: read_answers(ref.path, score) for ref in tried}, []
    for name, own in scores.items():
        mean, half = (shown.factor * value for value in pooled([paired(answers[f"recipe-{name}"], answers["recipe-plain"])], score))
        gap = f"{mean:+.{shown.digits}f} ± {half:.{shown.digits}f}" if name != "plain" else ""
        body.append([name, f"{shown.factor * own[f'val/{score}']:.{shown.digits}f}", f"{own['val/loss']:.4f}", gap, "yes" if name == chosen else ""])
    head = ["recipe", f"validation {score}", "validation loss", f"{score}, against plain", "chosen"]
    tracking.log_text(line.run_id, markdown(head, body), "recipes.md")
