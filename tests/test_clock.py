"""A clock that jumps, back and forth, while a pipeline runs: nothing is decided by it."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import SMOKE, Workspace


def library() -> Path | None:
    """Return the library that gives processes another time; `pip install libfaketime`, which compiles it."""
    found = importlib.util.find_spec("libfaketime")
    return next(Path(str(found.origin)).parent.rglob("libfaketime.so*"), None) if found else None


@pytest.mark.slow
@pytest.mark.skipif(library() is None, reason="no libfaketime here (pip install libfaketime)")
def test_jumps_of_days_change_no_metric_and_end_no_run(new_workspace: Callable[..., Workspace], own_prefect: dict[str, str], finished: Workspace) -> None:
    workspace = new_workspace(own_prefect)  # a Prefect server of its own, whose clock jumps too
    clock = workspace.root / "clock"
    jumps = {"base: running": "-2d", "teacher: running": "+3d", "student-1: running": "-1h", "evaluation: running": "+40d"}
    clock.write_text("+0d\n")
    jumping = {"LD_PRELOAD": str(library()), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    process, seen = workspace.start("flows.retrain", SMOKE, **jumping), []
    for line in process.stderr or []:
        for word, jump in jumps.items():
            if line.startswith(word):
                clock.with_suffix(".new").write_text(f"{jump}\n")
                os.replace(clock.with_suffix(".new"), clock)
                seen.append(word)
    out = process.stdout.read() if process.stdout else ""
    assert process.wait() == 0, out
    assert seen == list(jumps)
    assert workspace.same(finished)
    times = [made["finished"] for stage in ("base", "teacher", "evaluate") for made in workspace.outputs(stage)]
    assert max(times) - min(times) > 35 * 86_400, "the clock did jump"
    client = workspace.mlflow()
    runs = client.search_runs([client.get_experiment_by_name("glyphs").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert "ran: nothing" in workspace.retrain(SMOKE).stdout
