"""Chaos: kill a pipeline at a moment drawn from a seed, start it again, and compare its metrics with an undisturbed run's.

make chaos KILLS=100
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workspace import SMOKE, Workspace

from components.manifest import MANIFEST, file_digest


@dataclass
class Kill:
    """One kill: when, what was under way, what was wrong after the next run (empty: nothing), and how much longer both took together than one."""

    after: float
    stage: str
    wrong: list[str]
    lost: float


def under_way(workspace: Workspace) -> str:
    """Return the stage that is being written, or what comes before the first or after the last."""
    writing = sorted((workspace.root / "mlruns" / "stages").glob("*/*.owner"))
    return writing[0].parent.name if writing else "between stages"


def faults(workspace: Workspace, metrics: dict[str, dict[str, float]]) -> list[str]:
    """Say what is not as after an undisturbed run."""
    wrong = [f"metrics of {stage} differ" for stage, wanted in metrics.items() if workspace.metrics(stage) != wanted]
    for folder in (workspace.root / "mlruns" / "stages").glob("*/*/"):
        if folder.suffix or folder.parent.name == "records":
            continue
        manifest = folder / MANIFEST
        if not manifest.exists() or any(file_digest(folder / n) != d for n, d in json.loads(manifest.read_text())["files"].items()):
            wrong.append(f"{folder.name} is no whole output")
    client = workspace.mlflow()
    experiment = client.get_experiment_by_name("glyphs").experiment_id
    wrong += [f"run {r.info.run_name} is still running" for r in client.search_runs([experiment], "attributes.status = 'RUNNING'")]
    wrong += [f"process {p.pid} is left" for p in workspace.processes()]
    return wrong


def kills(count: int, seed: int, make: Callable[[], Workspace], whole: float, metrics: dict[str, dict[str, float]], *overrides: str) -> list[Kill]:
    """Kill `count` runs, each in a workspace of its own (`make()`), at times drawn uniformly from the `whole` seconds of a run."""
    drawn, done = random.Random(seed), []
    while len(done) < count:
        workspace = make()
        after, begin = drawn.uniform(0, whole), time.monotonic()
        process = workspace.start("flows.retrain", SMOKE, *overrides)
        try:
            process.communicate(timeout=after)
            shutil.rmtree(workspace.root)
            continue  # over before its time came: no kill
        except subprocess.TimeoutExpired:
            stage = under_way(workspace)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        try:
            workspace.retrain(SMOKE, *overrides)
            wrong = faults(workspace, metrics)
        except AssertionError as error:
            wrong = [" ".join(str(error).split())[-400:]]
        done.append(Kill(after, stage, wrong, time.monotonic() - begin - whole))
        print(f"killed after {after:5.1f} s in {stage:<16} {'; '.join(wrong) or 'recovered'}", file=sys.stderr, flush=True)
        shutil.rmtree(workspace.root)
    return done


STAGES = ("base", "teacher", "student", "fused", "evaluate")


def main(count: str, seed: str = "0") -> None:
    with tempfile.TemporaryDirectory() as place:
        home = {"PREFECT_HOME": str(Path(place) / "prefect")}
        first = Workspace(Path(place) / "undisturbed", home)
        first.retrain(SMOKE)  # data are built, Prefect's database made
        made = iter(range(1_000_000))

        def make() -> Workspace:
            return Workspace(Path(place) / f"project-{next(made)}", home, first.root / "data")

        undisturbed = make()
        begin = time.monotonic()
        undisturbed.retrain(SMOKE)
        whole = time.monotonic() - begin
        done = kills(int(count), int(seed), make, whole, {stage: undisturbed.metrics(stage) for stage in STAGES})
    where = ", ".join(f"{stage} {times}" for stage, times in Counter(k.stage for k in done).most_common())
    recovered, equal = (sum(not any(mark in w for w in k.wrong) for k in done) for mark in ("", "metrics"))
    print(f"stages: {where}; {sum(k.lost for k in done) / len(done):.0f} s lost a kill, of runs of {whole:.0f} s, seed {seed}")
    print(f"kills {len(done)}, recovered {recovered}, metrics equal {equal}")
    raise SystemExit(recovered < len(done) or equal < len(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
