"""MLflow that does not answer: what it is told waits on disk, work goes on, and nothing of it is lost."""

import http.server
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from workspace import SMOKE, Workspace, free_port, until

from components.contracts import StageRef
from components.inputs import InputError
from flows import artifacts, spool, tracking, ui
from flows.config import load
from flows.stages import Pipeline


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a store of its own, with sqlite."""
    monkeypatch.setenv("FEWLOOP_RUNS", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(spool, "RETRY", 0.0)
    yield tmp_path / "mlflow.db"
    tracking.client.cache_clear()


def waiting(runs: Path) -> list[str]:
    return [json.loads(line)["write"] for file in (runs / "spool").glob("*/*_*.jsonl") for line in file.read_text().splitlines()]


def history(run_id: str, name: str) -> list[float]:
    return [m.value for m in tracking.store().get_metric_history(run_id, name)]


def test_what_is_told_while_the_database_is_away_is_there_when_it_is_back(database: Path) -> None:
    experiment, away = tracking.open_store("some"), database.with_suffix(".away")
    with tracking.run(experiment, "parent", {"stage": "retrain"}) as parent:
        tracking.log_metrics(parent, {"loss": 3.0}, 0)
        database.rename(away)
        tracking.log_metrics(parent, {"loss": 2.0}, 1)
        with tracking.run(experiment, "child", {"stage": "base"}, parent) as child:
            tracking.log_params(child, {"steps": 7})
            tracking.log_text(child, "told", "notes/note.txt")
            tracking.log_file(child, Path(__file__))
        assert not database.exists(), "no empty database is made in its place"
        assert tracking.has_run(child)
        tracking.set_tag(parent, "stage.base.run_id", child)
        away.rename(database)
        tracking.log_metrics(parent, {"loss": 1.0}, 2)
    assert history(parent, "loss") == [3.0, 2.0, 1.0]
    made = tracking.store().get_run(tracking.known(child))
    assert made.data.tags["mlflow.parentRunId"] == parent and made.data.params == {"steps": "7"} and made.info.status == "FINISHED"
    assert made.info.start_time <= made.info.end_time
    assert tracking.store().get_run(parent).data.tags["stage.base.run_id"] == made.info.run_id
    assert tracking.run_artifact(made.info.run_id, "notes/note.txt") == "told"
    assert tracking.run_artifact(made.info.run_id, Path(__file__).name) == Path(__file__).read_text()
    assert not waiting(database.parent)


def test_a_stage_that_was_killed_after_its_output_is_completed_and_a_deleted_run_left_alone(database: Path, tmp_path: Path) -> None:
    experiment = tracking.open_store("some")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "stage.json").write_text("{}")
    runs = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), tracking.run(experiment, "base", {"stage": "base"}) as run_id:
            raise ZeroDivisionError
        runs.append(run_id)
    with tracking.run(experiment, "parent", {"stage": "retrain"}) as parent:
        tracking.store().delete_run(runs[1])
        line = Pipeline(load([SMOKE]), experiment, parent, {})
        for run_id in runs:
            artifacts.link(line, StageRef("base", "base", str(tmp_path / "output"), "f", "d", run_id, 1.0, True, {}))
        assert tracking.store().get_run(runs[0]).info.status == "FINISHED" and tracking.run_artifact(runs[0], "stage.json") == "{}"
        assert tracking.lacks(runs[0], {"test/accuracy"}) and not tracking.lacks(runs[1], {"test/accuracy"}) and not tracking.has_run(runs[1])
        away = database.with_suffix(".away")
        database.rename(away)
        assert not tracking.unfinished(runs[0]) and tracking.has_run(runs[0]) and not database.exists()
        away.rename(database)


def test_a_database_put_back_from_a_copy_gets_what_comes_after(database: Path) -> None:
    experiment = tracking.open_store("some")
    with tracking.run(experiment, "one", {}) as run_id:
        copy = database.with_suffix(".copy")
        copy.write_bytes(database.read_bytes())
        tracking.log_metrics(run_id, {"loss": 9.0})
        os.replace(copy, database)
        tracking.log_metrics(run_id, {"loss": 2.0})
    assert history(run_id, "loss") == [2.0]


def test_a_database_put_back_that_never_knew_the_run_ends_nothing(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = tracking.open_store("some")
    copy = database.with_suffix(".copy")
    copy.write_bytes(database.read_bytes())
    with tracking.run(experiment, "one", {}) as run_id:
        os.replace(copy, database)
        tracking.log_metrics(run_id, {"loss": 2.0})
    (kept,) = database.parent.glob("spool/*/refused.jsonl")
    assert [json.loads(line)["write"] for line in kept.read_text().splitlines()] == ["metrics", "end"]
    assert "MLflow refuses what it is told, metrics" in capsys.readouterr().err and waiting(database.parent) == []
    with tracking.run(experiment, "two", {}) as run_id:
        tracking.log_metrics(run_id, {"loss": 1.0})
    assert history(run_id, "loss") == [1.0]


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_gets_all(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking.open_store("Default")
    port = free_port()
    environment = os.environ | ui.environment()

    def served() -> subprocess.Popen[bytes]:
        server = subprocess.Popen(
            ui.command(port), cwd=database.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        until(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)
        return server

    server = served()
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        with tracking.run(tracking.open_store("some"), "one", {}) as run_id:
            tracking.log_metrics(run_id, {"loss": 2.0}, 0)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            tracking.log_metrics(run_id, {"loss": 1.0}, 1)
            tracking.log_file(run_id, Path(__file__))
            assert waiting(database.parent) == ["metrics", "file"]
            server = served()
        assert history(run_id, "loss") == [2.0, 1.0]
        assert tracking.run_artifact(run_id, Path(__file__).name) == Path(__file__).read_text()
        assert tracking.store().get_run(run_id).info.status == "FINISHED"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
def test_a_locked_database_holds_nothing_up_for_good(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "RETRY", 60.0)
    with tracking.run(tracking.open_store("some"), "one", {}) as run_id:
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        for step in range(100):
            tracking.log_metrics(run_id, {"loss": float(step)}, step)
        assert time.monotonic() - started < 40, "only the first waits for the lock: 20 s, as MLflow has it"
        assert len(waiting(database.parent)) == 100
        other.execute("ROLLBACK")
        tracking.settle()
    assert history(run_id, "loss") == [float(step) for step in range(100)]


def test_a_line_that_a_full_disk_cut_holds_nothing_up(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment, away = tracking.open_store("some"), database.with_suffix(".away")
    with tracking.run(experiment, "parent", {"stage": "retrain"}) as parent:
        database.rename(away)
        tracking.log_metrics(parent, {"loss": 2.0}, 0)
        tracking.log_metrics(parent, {"loss": 1.0}, 1)
        (file,) = (database.parent / "spool").glob("*/*_*.jsonl")
        first, second = file.read_text().splitlines(keepends=True)
        file.write_text(first[: len(first) // 2] + second + second)
        away.rename(database)
        tracking.spool().replay()
    assert history(parent, "loss") == [1.0] and not file.exists()
    (kept,) = (file.parent / "refused.jsonl").read_text().splitlines()
    assert json.loads(kept) == {"line": first[: len(first) // 2] + second, "reason": "it is damaged"} and "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, '{"error": "log in"}'), (403, "no"), (404, "<html>no such page</html>"), (400, "?"), (500, '{"error_code": "INTERNAL_ERROR"}')],
)
def test_only_mlflows_own_word_says_that_there_is_no_champion(status: int, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told.encode())

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{server.server_port}")
        code, told = status, body
        for ask in (lambda: tracking.alias("glyphs", "champion"), lambda: tracking.versions("glyphs"), lambda: tracking.version_of("models:/glyphs@champion")):
            with pytest.raises(InputError, match="MLflow must answer at") as error:
                ask()
            assert "secret" not in str(error.value)
        for word in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            code, told = 404, json.dumps({"error_code": word, "message": "none"})
            assert tracking.alias("glyphs", "champion") is None
        server.shutdown()
    tracking.client.cache_clear()


def test_a_database_without_room_ends_the_work_and_nothing_that_waits_is_lost(database: Path) -> None:
    experiment, away = tracking.open_store("some"), database.with_suffix(".away")
    engine, many = tracking.store()._tracking_client.store.engine, {f"loss{i}": 1.0 for i in range(3000)}

    def full(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # sqlite takes as many as there are, and no further one

    with tracking.run(experiment, "one", {}) as run_id:
        database.rename(away)
        tracking.log_metrics(run_id, many)
        away.rename(database)
        event.listen(engine, "connect", full)
        for told in (lambda: tracking.log_metrics(run_id, {"loss": 1.0}), lambda: tracking.open_store("some"), tracking.settle):
            with pytest.raises(OSError, match="disk is full"):
                told()
        assert waiting(database.parent) == ["metrics"] and not list(database.parent.glob("spool/*/refused.jsonl"))
        event.remove(engine, "connect", full)
        tracking.settle()
    assert waiting(database.parent) == [] and tracking.store().get_run(run_id).data.metrics == many


def test_what_is_refused_is_kept_aside_and_holds_nothing_up(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tracking.run(tracking.open_store("some"), "one", {}) as run_id:
        tracking.log_params(run_id, {"steps": 1})
        tracking.log_params(run_id, {"steps": 2})  # refused at once
        away = database.with_suffix(".away")
        database.rename(away)
        tracking.log_params(run_id, {"steps": 2})
        tracking.log_metrics("0" * 32, {"loss": 1.0})
        tracking.log_metrics(run_id, {"loss": 1.0})
        away.rename(database)
        tracking.settle()
    assert history(run_id, "loss") == [1.0]
    (aside,) = (database.parent / "spool").glob("*/refused.jsonl")
    assert [json.loads(line)["write"] for line in aside.read_text().splitlines()] == ["params", "params", "metrics"]
    assert "MLflow refuses what it is told, params" in capsys.readouterr().err


def test_a_run_that_is_refused_takes_all_that_is_told_of_it_along(database: Path) -> None:
    tracking.open_store("some")
    away = database.with_suffix(".away")
    database.rename(away)
    with tracking.run("404", "of no experiment", {}) as run_id:
        tracking.log_metrics(run_id, {"loss": 1.0})
        away.rename(database)
    tracking.settle()
    assert not waiting(database.parent)
    (aside,) = (database.parent / "spool").glob("*/refused.jsonl")
    assert [json.loads(line)["write"] for line in aside.read_text().splitlines()] == ["begin", "metrics", "end"]


LEAVES = """
import os, pathlib
from flows import tracking
experiment, database = tracking.open_store("some"), pathlib.Path(os.environ["FEWLOOP_RUNS"], "mlflow.db")
database.rename(database.with_suffix(".away"))
with tracking.run(experiment, "left", {}) as run_id:
    tracking.log_metrics(run_id, {"loss": 1.0})
    print(run_id, flush=True)
    {ending}
"""


@pytest.mark.parametrize("ending", ["os._exit(1)", "input()"])
def test_the_next_process_gives_what_one_left_that_is_gone(database: Path, ending: str) -> None:
    command = [sys.executable, "-c", LEAVES.replace("{ending}", ending)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        left = other.stdout.readline().strip()
        if ending != "input()":
            other.wait()
            (file,) = (database.parent / "spool").glob("*/*_*.jsonl")
            with file.open("a") as out:
                out.write('{"write": "metr')  # the power went
        database.with_suffix(".away").rename(database)
        tracking.open_store("some")
        assert waiting(database.parent) == (["begin", "metrics"] if ending == "input()" else [])
        assert tracking.known(left).startswith(spool.OWN) == (ending == "input()"), "who lives gives it itself"
        other.kill()
    tracking.open_store("some")
    assert history(tracking.known(left), "loss") == [1.0]


def test_nobody_waits_for_ever(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWLOOP_PATIENCE", "0.1")
    with tracking.run(tracking.open_store("some"), "one", {}) as run_id:
        database.rename(database.with_suffix(".away"))
        tracking.log_metrics(run_id, {"loss": 1.0})
        with pytest.raises(Exception, match=r"MLflow must answer before a model is registered.*1 entries"):
            tracking.settle()


def lose(workspace: Workspace) -> Callable[[], Any]:
    """Take the database away; return what brings it back."""
    database = workspace.root / "mlruns" / "mlflow.db"
    database.rename(database.with_suffix(".away"))
    return lambda: database.with_suffix(".away").rename(database)


def all_runs(workspace: Workspace) -> dict[str, Any]:
    """Return the first run of every name."""
    store = workspace.mlflow()
    found = store.search_runs([e.experiment_id for e in store.search_experiments()], order_by=["attributes.start_time DESC"])
    return {run.info.run_name: run for run in found}


@pytest.mark.slow
def test_a_pipeline_trains_on_without_its_database_and_ends_with_all_of_its_runs(new_workspace: Callable[[], Workspace], finished: Workspace) -> None:
    workspace = new_workspace()
    process, told = workspace.start("flows.retrain", SMOKE), []
    reader = threading.Thread(target=lambda: told.extend(process.stdout or []))
    reader.start()
    for line in process.stderr or []:
        if line.startswith("base: running"):
            back = lose(workspace)
        if line.startswith("waiting up to"):
            until(lambda: workspace.outputs("evaluate"))
            back()
    reader.join()
    assert process.wait() == 0, "".join(told)
    assert workspace.same(finished)
    assert not waiting(workspace.root / "mlruns")
    runs, wanted = all_runs(workspace), all_runs(finished)
    assert set(wanted) >= set(runs) and {"base", "teacher", "fused", "evaluation"} <= set(runs)
    for name, run in runs.items():
        assert run.info.status == "FINISHED", name
        assert run.data.params == wanted[name].data.params, name
        fitted = {k: v for k, v in run.data.metrics.items() if k.startswith(("train/", "val/"))}
        assert fitted == {k: v for k, v in wanted[name].data.metrics.items() if k in fitted}, name
        assert fitted or name not in ("base", "teacher")
    (parent,) = (run for run in runs.values() if run.data.tags["stage"] == "retrain")
    for stage in ("base", "teacher", "fused"):
        assert parent.data.tags[f"stage.{stage}.run_id"] == runs[stage].info.run_id
    version = workspace.mlflow().get_model_version_by_alias("glyphs", "champion")
    assert version.run_id == runs["fused"].info.run_id
