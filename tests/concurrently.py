"""Concurrency: pipelines of different seeds at once, MLflow and Prefect on one PostgreSQL, and every run counted.

make concurrent PIPELINES=8
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from postgres import Postgres, binaries, postgres
from workspace import SMOKE, Workspace, prefect_server

from flows.serve import ask

MODEL = "glyphs"


@dataclass
class Tally:
    """How many were expected and how many are there and whole; `wrong` names each of the others."""

    expected: int = 0
    found: int = 0
    wrong: list[str] = field(default_factory=list)

    def count(self, name: str, fault: str) -> None:
        """Count one; `fault` says what is wrong with it, empty: nothing."""
        self.expected += 1
        self.found += not fault
        self.wrong += [f"{name}: {fault}"] if fault else []

    def line(self) -> str:
        return f"runs expected {self.expected}, runs found {self.found}, lost {self.expected - self.found}"


def tracked(workspace: Workspace, pipelines: int) -> Tally:
    """Count MLflow's runs: those that the stages' manifests name, finished and with every metric of the manifest, and a parent a pipeline."""
    client, tally = workspace.mlflow(), Tally()
    held = {r.info.run_id: r for r in client.search_runs([client.get_experiment_by_name(MODEL).experiment_id], max_results=5000)}
    for manifest in (m for kind in sorted((workspace.root / "mlruns/stages").glob("[!r]*")) for m in workspace.outputs(kind.name)):
        ref, run = manifest["ref"], held.pop(manifest["ref"]["run_id"], None)
        lacking = [] if run is None else [n for n, v in ref["metrics"].items() if v not in (m.value for m in client.get_metric_history(run.info.run_id, n))]
        fault = "no run" if run is None else "" if run.info.status == "FINISHED" else run.info.status
        tally.count(f"{ref['name']} {ref['fingerprint'][:8]}", fault or f"lacks {', '.join(lacking)}" * bool(lacking))
    whole = [r for r in held.values() if r.data.tags["stage"] == "retrain" and r.info.status == "FINISHED"]
    for number in range(pipelines):
        tally.count(f"pipeline {number + 1}", "" if number < len(whole) else "no finished run")
    versions = client.search_model_versions(f"name = '{MODEL}'")
    tally.wrong += [f"{len(held) - len(whole)} runs too many"] * (len(held) > len(whole))
    tally.wrong += [f"{len(versions)} versions registered"] * (len(versions) != pipelines)
    return tally


def orchestrated(workspace: Workspace, api: str) -> Tally:
    """Count Prefect's flow runs: those that the pipelines' MLflow runs name, each completed."""
    states = {run["id"]: run["state_type"] for run in ask(f"{api}/flow_runs/filter", {"limit": 200})}
    client, tally = workspace.mlflow(), Tally()
    for run in client.search_runs([client.get_experiment_by_name(MODEL).experiment_id], "tags.stage = 'retrain'"):
        state = states.get(run.data.tags["prefect.flow_run_id"], "no flow run")
        tally.count(f"flow run of {run.info.run_name}", "" if state == "COMPLETED" else state)
    return tally


def connections(processes: list[subprocess.Popen[str]], server: Postgres) -> Iterator[int]:
    """Yield how many connections clients have, every second while one of the processes lives."""
    while any(process.poll() is None for process in processes):
        yield int(server.ask("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")[0][0])
        time.sleep(1)


def side_by_side(workspace: Workspace, pipelines: int, server: Postgres) -> tuple[list[str], int]:
    """Run the pipelines all at once; return what those that failed said, and how many connections there were at most."""
    files = [(workspace.root / f"seed-{seed}.log").open("w+") for seed in range(pipelines)]
    command = [sys.executable, "-m", "flows.retrain", SMOKE]
    processes = [
        subprocess.Popen([*command, f"seed={seed}"], cwd=workspace.root, env=workspace.environment, stdout=file, stderr=file, text=True)
        for seed, file in enumerate(files)
    ]
    most, failed = max(connections(processes, server)), []
    for process, file in zip(processes, files, strict=True):
        file.seek(0)
        if process.returncode:
            failed.append(f"exit code {process.returncode}: {file.read()[-1500:]}")
        file.close()
    return failed, most


def main(count: str) -> None:
    if binaries() is None:
        raise SystemExit("error: make concurrent needs PostgreSQL's server programs (initdb, postgres), got none. Install PostgreSQL.")
    pipelines = int(count)
    with tempfile.TemporaryDirectory() as place, postgres() as server:
        environment = server.environment
        with prefect_server(Path(place) / "prefect", **environment) as prefect:
            first = Workspace(Path(place) / "first", prefect)
            first.retrain(SMOKE, "student.count=0")  # builds the data; its runs are its own
            workspace = Workspace(Path(place) / "project", prefect, first.root / "data")
            workspace.environment |= environment | {"OMP_NUM_THREADS": "1"}
            begin = time.monotonic()
            failed, most = side_by_side(workspace, pipelines, server)  # they make MLflow's tables, too
            seconds = time.monotonic() - begin
            mlflow, flows = tracked(workspace, pipelines), orchestrated(workspace, prefect["PREFECT_API_URL"])
            sizes = {name: int(server.ask(f"SELECT pg_database_size('{name}')")[0][0]) / 2**20 for name in ("mlflow", "prefect")}
    print(*failed, *mlflow.wrong, *flows.wrong, sep="\n", end="", file=sys.stderr)
    print(f"{seconds:.0f} s; {most} connections at most; databases {', '.join(f'{name} {size:.1f} MB' for name, size in sizes.items())}")
    print(f"Prefect: flow {flows.line()}")
    print(f"pipelines {pipelines}, {mlflow.line()}")
    raise SystemExit(bool(failed or mlflow.wrong or flows.wrong or flows.expected != pipelines))


if __name__ == "__main__":
    main(*sys.argv[1:])
