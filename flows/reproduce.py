"""Repeat a finished pipeline from nothing and compare: `python -m flows.retrain reproduce=<run id>`

Its data version, config and seed; other stages than its own are used nowhere: the repetition has a store of its own, which is dropped where
all metrics are equal to the last digit.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from components.inputs import InputError, require
from components.plain import flatten, to_plain
from flows import config, paths, stages, tracking
from flows.artifacts import OVERRIDES
from flows.repository import PIN

ASIDE = ("/seconds", "champion")  # what may differ: times, and what was compared with the champion of that time


def reproduce(run_id: str) -> None:
    """Repeat a pipeline and print every difference. Raises InputError where it cannot be repeated, RuntimeError where a metric differs."""
    run, overrides = _recorded(run_id)
    pin = tracking.run_artifact(run_id, PIN)
    require(pin is not None, f"reproduce={run_id} must name a run that kept its {PIN}, got none. Choose another: make ui.")
    for name, now in stages.environment_tags(None).items():
        if name in ("git.commit", "lock") and run.data.tags.get(name) != now:
            print(f"{name} was {run.data.tags.get(name)}, is {now}", file=sys.stderr)
    folder = paths.runs() / f"reproduce-{run_id[:12]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / PIN).write_text(str(pin))
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | {"FEWLOOP_RUNS": str(folder)}
    command = [sys.executable, "-m", "flows.retrain", *overrides, f"data.pin={folder / PIN}", "data.write_pin=false"]
    ended = subprocess.run(command, env=environment).returncode
    if ended:
        raise RuntimeError(f"The repetition of {run_id} ended with exit code {ended}; what it left is in {folder}")
    before, after = _metrics(run), _metrics(_repeated(folder, run))
    if differing := differences(before, after):
        print(*differing, sep="\n")
        raise RuntimeError(f"{len(differing)} of {len({*before, *after})} metrics differ; the repetition is in {folder}")
    tracking.client.cache_clear()
    shutil.rmtree(folder)
    print(f"reproduced {run_id}: {len(before)} metrics equal to the last digit")


def differences(then: dict[str, float], now: dict[str, float]) -> list[str]:
    """Return a line for every metric that is not the same number, or that only one of the two has."""
    return [f"{name} was {then.get(name)!r}, is {now.get(name)!r}" for name in sorted({*then, *now}) if then.get(name) != now.get(name)]


def _recorded(run_id: str) -> tuple[Any, list[str]]:
    """Return a pipeline's run and its overrides, which still compose to the config that it recorded."""
    told = tracking.run_artifact(run_id, "config.json") if tracking.store_exists() and tracking.has_run(run_id) else None
    run = tracking.store().get_run(run_id) if told is not None else None
    done = run is not None and run.data.tags.get("stage") == "retrain" and run.info.status == "FINISHED"
    require(done, f"reproduce must be the id of a finished pipeline's run, got {run_id!r}. See the runs' ids with make ui.")
    assert run is not None and told is not None
    kept = tracking.run_artifact(run_id, OVERRIDES)
    overrides = json.loads(kept) if kept is not None else run.data.tags["overrides"].split()  # older runs kept the words alone
    before = flatten(json.loads(told))
    try:
        after = flatten(json.loads(json.dumps(to_plain(config.load(overrides)))))
    except InputError as error:
        raise InputError(f"The overrides of {run_id} must compose, got: {error}") from error
    apart = [f"{k} was {before.get(k)}, is {after.get(k)}" for k in sorted({*before, *after}) if before.get(k) != after.get(k) and not k.startswith("data.")]
    require(not apart, f"The config of {run_id} must still be what its overrides give, got: {'; '.join(apart[:3])}. Go back to its git commit.")
    moved = [k for k in ("learner.start", "student.teacher") if "models:/" in str(after[k])]
    require(not moved, f"{run_id} uses registered models ({', '.join(moved)}), whose aliases move, so it cannot be repeated. Choose a run without.")
    return run, overrides


def _repeated(folder: Path, run: Any) -> Any:
    """Return the pipeline's run in the store of the repetition."""
    client = tracking.client(f"sqlite:///{folder / 'mlflow.db'}")
    own = tracking.store().get_experiment(run.info.experiment_id).name
    return client.search_runs([client.get_experiment_by_name(own).experiment_id], "tags.stage = 'retrain'")[0]


def _metrics(run: Any) -> dict[str, float]:
    return {name: value for name, value in run.data.metrics.items() if not any(word in name for word in ASIDE)}
