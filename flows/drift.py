"""Drift: a scheduled flow that scores the champion on tasks of the newest data and starts a pipeline only where it has fallen.

It trains nothing and leaves data/ alone. Every look is an MLflow run (stage=drift), which cool-down and deduplication read.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow

from components.contracts import Config
from components.scores import OBJECTIVE_SCORES, SCORES
from flows import registry, tracking, versions
from flows.config import load
from flows.notices import completed
from flows.turns import turn

HOUR = 3600.0


@dataclass(frozen=True)
class Look:
    """One comparison: the champion's version, the data that it met, and what was measured."""

    version: Any
    source: str
    metrics: dict[str, float]


@flow(name="drift", persist_result=False)
def drift(
    overrides: list[str] | None = None, preset: list[str] | None = None, start: str | None = "retrain/manual", cooldown_hours: float = 24.0, margin: float = 0.0
) -> Any:
    """Compare the champion with itself when it was promoted; start deployment `start` where the whole 95 % interval of the difference lies below -margin.

    Args:
        overrides: as of the pipeline whose champion this is; the pipeline that is started gets them too.
        preset: choices that come before the overrides; a deployment's own.
        start: the deployment to start; None to look only.
        cooldown_hours: no pipeline is started sooner after the last one that was started for drift.
        margin: how far a score may fall, in its own unit (0.01 is one point of accuracy).
    """
    config = load([*(preset or []), *(overrides or [])])
    with turn(config.domain.name):
        champion = tracking.alias(config.registry.model, "champion") if tracking.store_exists() else None
        if champion is None:
            return completed(f"{config.registry.model} has no champion: nothing to compare")
        experiment = tracking.open_store(config.registry.model)
        with tracking.run(experiment, "drift", {"stage": "drift", "model": config.registry.model, "champion": champion.version}) as run_id:
            look = _look(config, champion)
            tracking.log_metrics(run_id, {f"drift/{name}": value for name, value in look.metrics.items()})
            fell, told = judge(look.metrics, OBJECTIVE_SCORES[config.domain.objective], margin)
            told = f"{config.registry.model} version {champion.version}, {told}"
            if fell:
                reason = _held_back(experiment, look, cooldown_hours)
                told += f"; {reason}" if reason else "; " + _start(start, overrides or [], run_id, look)
            for name, value in (("verdict", told), ("data.source", look.source)):
                tracking.set_tag(run_id, name, value)
    return completed(told)


def judge(metrics: dict[str, float], score: str, margin: float) -> tuple[bool, str]:
    """Decide by the paired difference now - then: its whole 95 % interval must lie below -margin. Fewer than half the tasks paired decide nothing."""
    paired, tasks, shown = int(metrics["paired"]), int(metrics["tasks"]), SCORES[score]
    if 2 * paired < tasks:
        return (
            False,
            f"{paired} of {tasks} gate tasks ask for the classes that they asked for when it was promoted: not compared, a pipeline on the new data is",
        )
    mean, half = shown.sign * metrics[f"difference/{score}"], metrics[f"difference/{score}_ci95"]
    fell = mean + half < -margin
    gap, around = f"{shown.factor * metrics[f'difference/{score}']:+.{shown.digits}f}", f"{shown.factor * half:.{shown.digits}f}"
    return (
        fell,
        f"{score} on {paired} gate tasks now - when promoted {gap} +- {around}, margin {shown.factor * margin:g}: {'fell' if fell else 'has not fallen'}",
    )


def _look(config: Config, champion: Any) -> Look:
    """Score the champion on the newest data, by the settings of the run that made it."""
    from components import drift as component

    registry.check_made(champion)
    parent = tracking.store().get_run(champion.tags["retrain.run_id"])
    then, folder = parent.data.params, tracking.model_folder(f"models:/{champion.name}/{champion.version}")
    past = tracking.store().download_artifacts(parent.data.tags["stage.evaluation.run_id"], "scores-gate.parquet")
    role = "fused" if "stage.fused.run_id" in parent.data.tags else "teacher"
    with versions.newest(config.domain, config.mirror) as pool:
        asked: Any = (int(then["evaluation.query"]), then["evaluation.within"], int(then["seed"]))
        metrics = component.compare(str(folder), role, str(Path(past)), str(pool), *asked)
    return Look(champion, versions.source_digest(config.domain), metrics)


def _held_back(experiment: str, look: Look, cooldown_hours: float) -> str:
    """Say why no pipeline is started now; empty where nothing speaks against it."""
    query = f"tags.stage = 'drift' and tags.started != '' and tags.model = '{look.version.name}'"
    before = tracking.store().search_runs([experiment], query, order_by=["attributes.start_time DESC"])
    for run in before:
        if run.data.tags.get("data.source") == look.source and run.data.tags.get("champion") == str(look.version.version):
            return f"nothing started: run {run.data.tags['started']} was, for the same champion and data"
    hours = (time.time() - before[0].info.start_time / 1000) / HOUR if before else None
    if hours is not None and hours < cooldown_hours:
        return f"nothing started: {hours:.1f} hours after the last time, cool-down {cooldown_hours:g}"
    return ""


def _start(deployment: str | None, overrides: list[str], run_id: str, look: Look) -> str:
    """Start the pipeline; the server makes no second run of one champion and one state of the data."""
    if deployment is None:
        return "nothing started: start=null"
    from prefect.deployments import run_deployment

    key = f"drift-{look.version.name}-{look.version.version}-{look.source}"
    made: Any = run_deployment(deployment, parameters={"overrides": overrides}, timeout=0, as_subflow=False, idempotency_key=key, tags=["fewloop", "drift"])
    tracking.set_tag(run_id, "started", str(made.id))
    return f"started {deployment} ({made.name})"
