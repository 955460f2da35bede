"""What a pipeline leaves on its parent run: config, pin, links to the stages' runs, headline metrics."""

import json

from components.contracts import StageRef, to_plain
from flows import tracking
from flows.stages import Pipeline
from flows.versions import PIN, Pinned

SCORED = ("test/", "challenge/")  # what a model's own run repeats of the evaluation


def open_parent(line: Pipeline, pool: Pinned) -> None:
    """Log what is known before the first stage: config, data version with its pin file, the pool as input."""
    store = tracking.store()
    tracking.log_params(line.run_id, to_plain(line.config))
    store.log_text(line.run_id, json.dumps(to_plain(line.config), indent=1), "config.json")
    store.log_text(line.run_id, pool.pin, PIN)
    store.set_tag(line.run_id, "data.md5", pool.data_md5)
    store.set_tag(line.run_id, "data.how", pool.how)
    tracking.log_input(line.run_id, pool.domain, pool.md5, pool.path, "retrain")


def link(line: Pipeline, ref: StageRef) -> StageRef:
    """Point the parent run at the run that made a stage's output."""
    store = tracking.store()
    store.set_tag(line.run_id, f"stage.{ref.name}.run_id", ref.run_id)
    store.set_tag(line.run_id, f"stage.{ref.name}.cached", str(ref.cached).lower())
    return ref


def headline(line: Pipeline, models: dict[str, StageRef], ours: str, evaluation: StageRef) -> None:
    """Log each model's final scores on its own run under common names, and all of them on the parent run, `ours` also under those names."""
    if not evaluation.cached:
        for name, ref in models.items():
            if not tracking.has_run(ref.run_id):  # its database is gone, the output is not: the parent run holds the scores all the same
                continue
            own = {m.replace(f"/{name}/", "/"): v for m, v in evaluation.metrics.items() if m.startswith(SCORED) and f"/{name}/" in m}
            own |= {m.removeprefix(f"{name}/"): v for m, v in evaluation.metrics.items() if m.startswith(f"{name}/")}
            tracking.log_metrics(ref.run_id, own)
    own = {m.replace(f"/{ours}/", "/"): v for m, v in evaluation.metrics.items() if m.startswith(SCORED) and f"/{ours}/" in m}
    tracking.log_metrics(line.run_id, evaluation.metrics | own)
    tracking.store().set_tag(line.run_id, "fingerprint", evaluation.fingerprint)
