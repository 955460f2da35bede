"""A real PostgreSQL for a while: a cluster of its own in a temporary folder, on a free port of 127.0.0.1, with a password and two databases."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg2
from workspace import PATIENCE, free_port, until

USER = "fewloop"


def binaries() -> Path | None:
    """Return the folder of PostgreSQL's server programs, the newest; None where there is none. Debian keeps them out of PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = shutil.which("initdb") or (debian[-1] if debian else None)
    return Path(found).parent if found else None


@dataclass(frozen=True)
class Postgres:
    """Where the server is, and its superuser's password."""

    port: str
    password: str

    def uri(self, database: str, driver: str = "postgresql") -> str:
        return f"{driver}://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    @property
    def environment(self) -> dict[str, str]:
        """Return what puts MLflow and Prefect there."""
        return {"MLFLOW_TRACKING_URI": self.uri("mlflow"), "PREFECT_API_DATABASE_CONNECTION_URL": self.uri("prefect", "postgresql+asyncpg")}

    def answers(self) -> bool:
        with suppress(psycopg2.OperationalError):
            return bool(self.ask("SELECT 1"))
        return False

    def ask(self, statement: str, database: str = "postgres") -> list[tuple]:
        connection = psycopg2.connect(self.uri(database), connect_timeout=10)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()


def unprivileged() -> dict[str, str | int | list[str]]:
    """Return as whom the server may run: PostgreSQL refuses root, which takes the user of Debian's package, or nobody."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Start a server with databases `mlflow` and `prefect`, and leave nothing of it. Its settings are the defaults: every commit is on disk."""
    programs, who = binaries(), unprivileged()
    assert programs is not None, "no PostgreSQL server here"
    folder, made = Path(tempfile.mkdtemp(prefix="fewloop-pg-")), Postgres(free_port(), secrets.token_hex(16))
    server = None
    try:
        (folder / "password").write_text(made.password)
        if who:
            for path in (folder, folder / "password"):
                os.chown(path, who["user"], who["group"])
        asked = ["-U", USER, "--auth=scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8", "--locale=C", "--no-sync"]
        told = subprocess.run([programs / "initdb", "-D", folder / "data", *asked], cwd=folder, capture_output=True, text=True, **who)
        assert told.returncode == 0, told.stderr
        where = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={made.port}", "-c", f"unix_socket_directories={folder}"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen([programs / "postgres", "-D", folder / "data", *where], cwd=folder, stdout=log, stderr=log, **who)
        until(lambda: server.poll() is not None or made.answers())
        assert server.poll() is None, (folder / "log").read_text()
        for name in ("mlflow", "prefect"):
            made.ask(f"CREATE DATABASE {name}")
        yield made
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # it ends its connections and shuts down cleanly
            server.wait(PATIENCE)
        shutil.rmtree(folder)
