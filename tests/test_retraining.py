"""Retraining that decides, on a real server with a real worker: on new data, on drift, one pipeline a domain at a time; and who is told of failures."""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from filelock import FileLock
from served import Server
from sources import FEW, table_file
from workspace import until


class Rows:
    """A table of one's own, the overrides that ask for it, and the flows that look at it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.file = server, folder / "rows.csv"
        asked = table_file(server.workspace, folder)
        self.asked = [*(o for o in FEW if "gate_tasks" not in o), *asked, "student.count=1", "evaluation.gate_tasks=100"]

    def look(self, deployment: str, **more: object) -> str:
        """Run a watching flow and return what it says."""
        given = {"overrides": self.asked, **more}
        ended = self.server.command("deployment", "run", deployment, *(w for k, v in given.items() for w in ("-p", f"{k}={json.dumps(v)}")), "--watch")
        assert ended.returncode == 0, ended.stdout + ended.stderr + self.server.log()
        (made,) = set(re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", ended.stdout.partition("Job Variables")[0]))
        return self.server.ask(f"flow_runs/{made}")["state"]["message"]

    def runs(self, stage: str) -> list:
        client = self.server.workspace.mlflow()
        experiment = client.get_experiment_by_name("table")
        return [] if experiment is None else client.search_runs([experiment.experiment_id], f"tags.stage = '{stage}'")

    def add_a_class_of_one(self) -> None:
        """Add a row of a label that no other row has: too few to learn from."""
        table = pyarrow.csv.read_csv(self.file)
        one = table.slice(0, 1).set_column(table.column_names.index("label"), "label", pa.array(["lonely"]))
        pyarrow.csv.write_csv(pa.concat_tables([table, one]), self.file)

    def spoil(self) -> None:
        """Give every row the numbers of another one: no class can be told from another any more."""
        table = pyarrow.csv.read_csv(self.file)
        order = np.random.default_rng(0).permutation(table.num_rows)
        columns = {name: (table[name] if name == "label" else table[name].take(pa.array(order))) for name in table.column_names}
        pyarrow.csv.write_csv(pa.table(columns), self.file)


@pytest.fixture(scope="module")
def rows(system: Server, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return Rows(system, tmp_path_factory.mktemp("rows"))


@pytest.mark.slow
def test_new_data_start_one_pipeline_and_a_touched_file_none(server: Server, rows: Rows) -> None:
    rows.add_a_class_of_one()
    assert "is new: event fewloop.data.changed" in rows.look("watch/data-watcher", settle=1)
    until(lambda: [run["state_type"] for run in server.flow_runs("on-new-data")] == ["COMPLETED"], every=0.5)
    (run,) = server.flow_runs("on-new-data")
    assert run["parameters"]["overrides"] == rows.asked
    (pipeline,) = rows.runs("retrain")
    assert pipeline.data.tags["prefect.flow_run_id"] == run["id"] and "there was no champion" in pipeline.data.tags["promotion"]
    until(lambda: "NEW DATA VERSION: table" in server.told(run["id"]), every=0.5)
    assert "1 classes of fewer than" in server.told(run["id"]), "what building the data told came before"
    os.utime(rows.file, (1, 1))
    assert rows.look("watch/data-watcher", settle=1).endswith("is what it was")
    assert len(server.flow_runs("on-new-data")) == 1


@pytest.mark.slow
def test_unchanged_data_and_config_train_nothing(server: Server, rows: Rows) -> None:
    trained = {stage: len(rows.runs(stage)) for stage in ("base", "teacher", "student", "fused", "evaluate")}
    began = time.monotonic()
    ended = server.command("deployment", "run", "retrain/manual", "-p", f"overrides={json.dumps(rows.asked)}", "--watch")
    assert ended.returncode == 0, ended.stdout + ended.stderr + server.log()
    print(f"unchanged: {time.monotonic() - began:.0f} s")
    assert len(rows.runs("retrain")) == 2
    assert {stage: len(rows.runs(stage)) for stage in trained} == trained
    assert "decided before" in server.log() and "ran: nothing" in server.log()


@pytest.mark.slow
def test_a_champion_that_fell_is_retrained_once(server: Server, rows: Rows) -> None:
    before = len(server.flow_runs("manual"))
    assert "has not fallen" in rows.look("drift/on-drift")
    data = (server.workspace.root / "data/table/inputs.npy").read_bytes()
    rows.spoil()
    assert "margin 90: has not fallen" in rows.look("drift/on-drift", margin=0.9)
    assert (server.workspace.root / "data/table/inputs.npy").read_bytes() == data  # a look leaves data/ alone
    assert "fell; started retrain/manual" in rows.look("drift/on-drift")
    until(lambda: all(run["state_type"] == "COMPLETED" for run in server.flow_runs("manual")), every=0.5)
    assert len(server.flow_runs("manual")) == before + 1
    assert "for the same champion and data" in rows.look("drift/on-drift")
    with rows.file.open("a") as file:  # other data, the same day
        file.write(rows.file.read_text().splitlines()[-1] + "\n")
    assert "cool-down 24" in rows.look("drift/on-drift")
    assert len(server.flow_runs("manual")) == before + 1
    assert [run.data.metrics["drift/paired"] for run in rows.runs("drift")][-1] == 100


@pytest.mark.slow
def test_two_deployments_of_one_domain_take_turns(server: Server, rows: Rows) -> None:
    with FileLock(server.workspace.root / "mlruns" / "domain-table.lock"):
        assert server.command("deployment", "run", "retrain/nightly", "-p", f"overrides={json.dumps(rows.asked)}").returncode == 0
        until(lambda: "domain table: waiting" in " ".join(server.told(run["id"]) for run in server.flow_runs("nightly")), every=0.5)
        assert [run["state_type"] for run in server.flow_runs("nightly") if run["start_time"]] == ["RUNNING"]
    until(lambda: [run["state_type"] for run in server.flow_runs("nightly") if run["start_time"]] == ["COMPLETED"], every=0.5)


@pytest.mark.slow
def test_a_run_that_died_with_its_worker_is_running_no_more(server: Server, rows: Rows) -> None:
    with FileLock(server.workspace.root / "mlruns" / "domain-table.lock"):  # it waits for its turn as long as the test does
        assert server.command("deployment", "run", "retrain/manual", "-p", f"overrides={json.dumps(rows.asked)}").returncode == 0
        until(lambda: "RUNNING" in {run["state_type"] for run in server.flow_runs("manual")}, every=0.5)
        (lost,) = [run["id"] for run in server.flow_runs("manual") if run["state_type"] == "RUNNING"]
        beats = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{lost}"]}}  # its own: others' came before
        until(lambda: server.ask("events/filter", {"filter": beats})["events"], every=0.5)
        for process in [*server.processes("worker start"), *server.processes("prefect.engine"), *server.processes("flow-run execute")]:
            process.kill()
        until(lambda: server.ask(f"flow_runs/{lost}")["state_type"] == "CRASHED", every=0.5)
    assert "no heartbeat for 90 seconds" in server.ask(f"flow_runs/{lost}")["state"]["message"]
    assert server.serve().stdout.count("(started)") == 1


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[str]]]:
    """A webhook's receiver: its address, and the bodies that came."""
    came: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/hook", came
    listening.shutdown()


@pytest.mark.slow
def test_a_failed_run_is_told_to_the_webhook(server: Server, inbox: tuple[str, list[str]]) -> None:
    url, came = inbox
    assert "(made)" in server.serve(FEWLOOP_WEBHOOK_URL=url).stdout
    ended = server.command("deployment", "run", "retrain/smoke", "-p", 'overrides=["learner=nonsense"]', "--watch")
    assert ended.returncode != 0
    until(lambda: came, every=0.5)
    text = json.loads(came[0])["text"]
    assert text.startswith("retrain/") and "Failed" in text and "learner must be one of" in text
    names = [a["name"] for a in server.ask("automations/filter", {}) if a["name"].startswith("fewloop")]
    server.serve()  # without the variable there is no such automation any more, and none is there twice
    left = [a["name"] for a in server.ask("automations/filter", {}) if a["name"].startswith("fewloop")]
    assert (sorted(names), left) == (["fewloop-failed-runs", "fewloop-lost-runs"], ["fewloop-lost-runs"])


@pytest.mark.slow
def test_a_teacher_starts_from_the_champions_teacher_and_is_not_trained_again(chain: Callable) -> None:
    made = chain("table")
    workspace, warm = made.workspace, [*made.asked, "learner.start=models:/table@champion"]
    first = workspace.retrain(*warm).stdout
    assert "ran: teacher" in first and "cached: tasksets, tasksets-final, base" in first
    from components.learners import store

    folders = {m["key"]["section"]["learner"]["start"]: m["ref"]["path"] for m in reversed(workspace.outputs("teacher"))}  # the oldest of each
    job = json.loads((Path(folders["models:/table@champion"]) / "job.json").read_text())
    assert store.digest(store.load(job["start"])[0]) == store.digest(store.load(folders["pretrained"])[0])
    client = workspace.mlflow()
    newest = str(max(int(v.version) for v in client.search_model_versions("name = 'table'")))
    assert client.get_model_version("table", newest).tags["started"] == "models:/table/1"
    workspace.run("flows.promote", "model=table", f"version={newest}")
    assert "ran: nothing" in workspace.retrain(*warm).stdout  # the champion is what this run made: it starts from the one before
