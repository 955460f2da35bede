"""Open MLflow's own interface on this machine: `python -m flows.ui [port]`"""

import os
import socket
import sys

from components.inputs import InputError, require
from flows import cli, paths, tracking
from flows.writes import VIEW, VIEW_TAG


def command(port: str) -> list[str]:
    """Return the command that serves the store of `environment` on 127.0.0.1."""
    artifacts = (paths.runs() / "artifacts").as_uri()
    return [sys.executable, "-m", "mlflow", "server", "--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port", port]


def environment() -> dict[str, str]:
    """Return what tells the command its store: not an argument, which every user of the machine could read, password and all.

    It starts no processes that wait for jobs: nothing here submits any, and MLflow 3.17 leaves all seven behind when it is told to stop.
    What it imports warns of what MLflow alone can change.
    """
    own = {"MLFLOW_BACKEND_STORE_URI": tracking.uri(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return own | {"PYTHONWARNINGS": "ignore:starlette.middleware.wsgi"}


def pages(server: str) -> list[tuple[str, str]]:
    """Return name and address of every experiment's list of runs on an MLflow server.

    The address asks for training runs, where the UI begins with traces of language models, and for the columns that pipelines saved.
    """
    found = []
    for one in tracking.store().search_experiments():
        if VIEW_TAG in one.tags:
            found.append((one.name, f"{server}/#/experiments/{one.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"))
    return sorted(found)


def free(host: str, port: int, what: str = "", another: str = "another, such as ") -> None:
    """Raise InputError where something listens on the port already. `what` needs it, `another` stands before the number of one to use instead."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"Port {port} of {host} must be free{what}, got: {error.strerror}. Use {another}{port % 65535 + 1}.") from error


def serve(port: str = "5000") -> None:
    """Run `mlflow server` on 127.0.0.1 until it is stopped. Raises InputError where the port is taken."""
    require(port.isdecimal() and 0 < int(port) < 65536, f"The port must be a number from 1 to 65535, got {port!r}. Use make ui PORT=5000.")
    free("127.0.0.1", int(port))
    tracking.open_store("Default")
    server = f"http://127.0.0.1:{port}"
    print(f"MLflow: {server} (stop with Ctrl-C)", *(f"{name}: {page}" for name, page in pages(server)), sep="\n", flush=True)
    os.chdir(paths.runs())
    # One process serves one person; a signal to this process is one to the server.
    os.execve(sys.executable, [*command(port), "--workers", "1"], os.environ | environment())


def main(arguments: list[str]) -> None:
    if {"--help", "-h"} & set(arguments):
        print(__doc__.strip())  # type: ignore[union-attr]
        return
    require(len(arguments) < 2, f"flows.ui takes a port, got {' '.join(arguments)!r}. Use make ui PORT=5000.")
    serve(*arguments)


if __name__ == "__main__":
    cli.guarded(lambda: main(sys.argv[1:]))
