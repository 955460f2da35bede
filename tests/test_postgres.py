"""MLflow and Prefect on a real PostgreSQL: the whole system, one pipeline through its worker, and what a user is told where it does not answer."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import concurrently
import pytest
from postgres import Postgres, binaries, postgres
from served import Server
from workspace import PATIENCE, SMOKE, Workspace, free_port

from components.inputs import InputError
from components.plain import masked
from flows import databases

needs_server = pytest.mark.skipif(binaries() is None, reason="no PostgreSQL server programs here (initdb, postgres)")


@pytest.fixture(scope="session")
def database() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def on_postgres(tmp_path_factory: pytest.TempPathFactory, own_prefect: dict[str, str], finished: Workspace, database: Postgres) -> Iterator[Server]:
    """A whole system whose servers keep everything in PostgreSQL, and one pipeline that ran through its worker."""
    folder = tmp_path_factory.mktemp("on-postgres")
    (folder / "elsewhere").mkdir()
    made = Server(Workspace(folder / "project", own_prefect, finished.root / "data"), folder / "elsewhere")
    for environment in (made.workspace.environment, made.environment):
        environment |= database.environment
    try:
        made.serve()
        made.ended = made.command("deployment", "run", "retrain/smoke", "--watch")
        yield made
    finally:
        made.stop()


@pytest.mark.slow
@needs_server
def test_a_deployed_pipeline_is_all_there(on_postgres: Server, database: Postgres) -> None:
    assert on_postgres.ended.returncode == 0, on_postgres.ended.stdout + on_postgres.ended.stderr + on_postgres.log()
    runs, flow_runs = concurrently.tracked(on_postgres.workspace, 1), concurrently.orchestrated(on_postgres.workspace, on_postgres.url)
    assert (runs.wrong, flow_runs.wrong) == ([], [])
    assert runs.found == runs.expected == 10 and flow_runs.found == 1
    assert database.ask("SELECT count(*) FROM runs", "mlflow")[0][0] == runs.found
    states = [state for (state,) in database.ask("SELECT state_type FROM flow_run", "prefect")]
    assert states == ["COMPLETED"]
    mlruns = on_postgres.workspace.root / "mlruns"
    assert not list(mlruns.rglob("*.db")), "nothing is kept in a file of sqlite"
    assert list((mlruns / "artifacts" / "glyphs").glob("*/artifacts/stage.json"))
    with urllib.request.urlopen(f"http://127.0.0.1:{on_postgres.mlflow_port}/api/2.0/mlflow/registered-models/get?name=glyphs", timeout=30) as answer:
        assert b'"champion"' in answer.read(), "MLflow's server reads the same database"


@pytest.mark.slow
@needs_server
def test_the_other_commands_find_it_there(on_postgres: Server) -> None:
    workspace = on_postgres.workspace
    planned = workspace.run("flows.retrain", SMOKE, "--dry-run").stdout.splitlines()
    assert len(planned) == 9 and all(line.split()[1] == "cached" for line in planned), planned
    assert "0 outputs" in workspace.run("flows.gc", "days=0", "dry=true").stdout
    assert "is champion (was 1)" in workspace.run("flows.promote", "model=glyphs", "version=1").stdout
    few = ["domain=glyphs", "evaluation.tasks=10", "evaluation.settings=[5w1s]"]
    assert "5w1s" in workspace.run("flows.evaluate", "model=models:/glyphs@champion", *few).stdout


@pytest.mark.slow
@needs_server
def test_the_password_stands_nowhere(on_postgres: Server, database: Postgres) -> None:
    root = on_postgres.workspace.root
    for path in (p for p in root.rglob("*") if p.is_file() and "data" not in p.relative_to(root).parts):
        assert database.password.encode() not in path.read_bytes(), path
    for process in on_postgres.processes():
        assert database.password not in " ".join(process.cmdline()), process.cmdline()[:4]
    for table in ("params", "tags", "datasets", "metrics"):
        assert database.password not in str(database.ask(f"SELECT * FROM {table}", "mlflow")), table


MAKE = """
import sys
from mlflow.store.tracking import sqlalchemy_store  # takes seconds, which are not the same for all
from flows import tracking
print("ready", flush=True)
sys.stdin.readline()
print(tracking.open_store("fresh"))
"""


@pytest.mark.slow
@needs_server
def test_machines_that_make_the_tables_at_once_do_not_collide(tmp_path: Path, database: Postgres) -> None:
    database.ask("CREATE DATABASE fresh")
    processes = []
    for name in "abc":
        workspace = Workspace(tmp_path / name, {})  # folders of their own, so no lock between them
        environment = workspace.environment | {"MLFLOW_TRACKING_URI": database.uri("fresh")}
        processes.append(subprocess.Popen([sys.executable, "-c", MAKE], env=environment, stdin=-1, stdout=-1, stderr=-1, text=True))
    assert [p.stdout.readline() for p in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [p.communicate(timeout=PATIENCE) for p in processes]
    assert [p.returncode for p in processes] == [0, 0, 0], told
    assert len({out for out, _ in told}) == 1, "one experiment for all"


@needs_server
def test_a_wrong_password_is_told_in_one_line_without_it(database: Postgres) -> None:
    uri = database.uri("mlflow").replace(database.password, "wrong-secret")
    with pytest.raises(InputError, match=r"password authentication failed for user .fewloop.") as told:
        databases.ask(uri)
    assert "wrong-secret" not in str(told.value) and f"fewloop:***@127.0.0.1:{database.port}/mlflow" in str(told.value)


def test_a_database_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "project", {"MLFLOW_TRACKING_URI": f"postgresql://me:secret@127.0.0.1:{free_port()}/mlflow"})
    begin = time.monotonic()
    for command in (["flows.gc", "days=1"], ["flows.promote", "model=glyphs", "version=1"]):
        (line,) = workspace.run(*command, expect=2).stderr.splitlines()
        assert line.startswith("error: MLFLOW_TRACKING_URI must name a database that answers, got postgresql://me:***@127.0.0.1:")
        assert "Connection refused" in line and "secret" not in line
    assert time.monotonic() - begin < 60, "MLflow by itself tries for 100 seconds, each time"


@pytest.mark.parametrize(
    ("uri", "told"),
    [("postgresql+nodriver://me:secret@127.0.0.1/a", "cannot be read"), ("mysql://me:secret@127.0.0.1/a", "driver MySQLdb is not installed")],
)
def test_a_uri_that_no_driver_reads_is_told_without_its_password(uri: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        databases.ask(uri)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "server", "shown"),
    [
        ("postgresql+psycopg2://me:p/w@host:5432/mlflow?sslmode=require", True, "postgresql+psycopg2://me:***@host:5432/mlflow?sslmode=require"),
        ("postgresql://me@host/mlflow", True, "postgresql://me@host/mlflow"),
        ("sqlite:////place/mlflow.db", False, "sqlite:////place/mlflow.db"),
        ("https://me:pw@host:5000", False, "https://me:***@host:5000"),
        ("postgresql://me:p@w@host/mlflow", True, "postgresql://me:***@host/mlflow"),
        ("postgresql://host/mlflow?user=me&password=pw&sslmode=require", True, "postgresql://host/mlflow?user=me&password=***&sslmode=require"),
        ("http://127.0.0.1:5000", False, "http://127.0.0.1:5000"),
    ],
)
def test_a_uri_is_known_and_shown_without_its_password(uri: str, server: bool, shown: str) -> None:
    assert (databases.is_server(uri), masked(uri)) == (server, shown)
