"""Serve a model over HTTP on this machine: `python -m flows.endpoint model=models:/<name>@champion [serving.port=8000 ...]`"""

import sys

from flows import cli

HELP = """python -m flows.endpoint model=<uri> [serving.key=value ...]

Answers until it is stopped. JSON in, JSON out; items as the model's domain stores them (GET /model tells):
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

    from components.acting import Acting
    from components.endpoint import Endpoint
    from components.learners import store
    from components.learners.learner import learner_size
    from components.manifest import intact

    torch.set_num_threads(limits.threads)
    digest = intact(folder)
    learner, spec, about = store.load(folder)
    told = {"model": model, "domain": about["domain"], "learner": spec["name"], "parameters": int(learner_size(learner)), "digest": digest}
    app = (Acting if spec["objective"] == "return" else Endpoint)(learner, told, spec, limits).application()
    print(f"{model} ({spec['name']}, {told['parameters']:,} parameters) answers at http://{limits.host}:{limits.port} (stop with Ctrl-C)", flush=True)
    answering = uvicorn.Config(
        app,
        host=limits.host,
        port=limits.port,
        http="h11",  # 64 KB of headers at most; httptools, which uvicorn takes where it is installed, keeps whatever comes (measured: 300 MB)
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.clients,
        timeout_keep_alive=limits.idle_seconds,
    )
    uvicorn.Server(answering).run()


if __name__ == "__main__":
    cli.entry(endpoint, sys.argv[1:], HELP)
