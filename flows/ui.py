"""Open MLflow's own interface on this machine: `python -m flows.ui [port]`"""

import os
import socket
import subprocess
import sys

from components.contracts import InputError, require
from flows import cli, paths, tracking


def serve(port: str = "5000") -> None:
    """Run `mlflow server` on 127.0.0.1 until it is stopped. Raises InputError where the port is taken."""
    require(port.isdigit() and 0 < int(port) < 65536, f"The port must be a number from 1 to 65535, got {port!r}. Use make ui PORT=5000.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(port)))
        except OSError as error:
            raise InputError(f"Port {port} must be free, got: {error.strerror}. Use another: make ui PORT={int(port) + 1}.") from error
    tracking.open_store("Default")
    print(f"MLflow: http://127.0.0.1:{port} (stop with Ctrl-C)", flush=True)
    artifacts = (paths.runs() / "artifacts").as_uri()
    command = ["-m", "mlflow", "server", "--backend-store-uri", tracking.uri(), "--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port", port]
    os.chdir(paths.runs())
    raise SystemExit(subprocess.call([sys.executable, *command]))


if __name__ == "__main__":
    cli.guarded(lambda: serve(*sys.argv[1:]))
