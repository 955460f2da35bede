"""Serve a model over HTTP on this machine: `python -m flows.endpoint model=models:/<name>@champion [serving.port=8000 ...]`"""

import contextlib
import sys
from pathlib import Path
from typing import Any

from flows import cli

HELP = """python -m flows.endpoint model=<uri> [serving.key=value ...]

Answers until it is stopped. JSON in, JSON out; items as GET /model tells: pictures as rows of numbers, rows of a table, names of what is rated:
  POST /adapt    support_x, support_y                       -> id
  POST /predict  query_x and id, or query_x and the support -> probabilities, or values
A policy is asked for actions by /predict and told by /adapt what came of them.
  GET  /model, GET /health
  model    models:/<name>@<alias>, models:/<name>/<version>, or the folder of a learner
  others   serving.port, serving.host and the limits of conf/serving/default.yaml
"""


def endpoint(*overrides: str, model: str) -> None:
    """Load the model, take the port, answer. Raises InputError where the model is not what was registered, or the port is taken."""
    from components.inputs import require
    from flows import tracking
    from flows.config import load
    from flows.ui import free

    odd = [o for o in overrides if not o.startswith("serving.")]
    require(not odd, f"endpoint takes model=... and serving.key=value, got {' '.join(odd)}. See --help.")
    limits = load(overrides).serving
    free(limits.host, limits.port)
    folder = tracking.model_folder(model)

    import torch
    import uvicorn

    from components.learners import store
    from components.learners.learner import learner_size
    from components.manifest import intact

    torch.set_num_threads(limits.threads)
    digest = intact(folder)
    learner, spec, about = store.load(folder)
    told = {"model": model, "domain": about["domain"], "learner": spec["name"], "parameters": int(learner_size(learner)), "digest": digest}
    app = answering(learner, told, spec, limits, about, Path(folder)).application()
    print(f"{model} ({spec['name']}, {told['parameters']:,} parameters) answers at http://{limits.host}:{limits.port} (stop with Ctrl-C)", flush=True)
    config = uvicorn.Config(
        app,
        host=limits.host,
        port=limits.port,
        # h11 takes 64 KB of headers at most; httptools, which uvicorn takes where it is installed, keeps whatever comes (measured: 300 MB).
        http=connections(limits.seconds),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.clients,
        timeout_keep_alive=limits.idle_seconds,
    )
    with contextlib.suppress(KeyboardInterrupt):  # how it is stopped
        uvicorn.Server(config).run()


def answering(learner: Any, told: dict[str, Any], spec: dict[str, Any], limits: Any, about: dict[str, Any], folder: Path) -> Any:
    """Return what answers for such a model: it reads items as `flows.adapt` does."""
    from components.acting import Acting
    from components.domains.columns import Columns
    from components.domains.shelf import Shelf
    from components.endpoint import Endpoint
    from components.rating import Rating

    if spec["objective"] == "return":
        return Acting(learner, told, spec, limits)
    if "ratings" in about:
        return Rating(learner, told, spec, limits, Shelf.open(folder, about["ratings"]))
    return Endpoint(learner, told, spec, limits, Columns(**about["columns"]) if "columns" in about else None)


def connections(seconds: float) -> Any:
    """Return uvicorn's protocol on h11 that closes a connection whose request's head is not there in time: silent ones would fill `serving.clients`."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Timed(H11Protocol):
        waiting: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._wait()
            elif self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None

        def _wait(self) -> None:
            if self.waiting is None:
                self.waiting = self.loop.call_later(seconds, lambda: self.transport.close())

        def connection_lost(self, exc: Exception | None) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
            super().connection_lost(exc)

    return Timed


if __name__ == "__main__":
    cli.entry(endpoint, sys.argv[1:], HELP)
