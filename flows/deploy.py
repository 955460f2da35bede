"""Put what prefect.yaml and automations.yaml hold on the Prefect server that PREFECT_API_URL names: `python -m flows.deploy`

Work pools are made where they are missing; deployments and automations that are there are brought up to date. FEWLOOP_WEBHOOK_URL, where it
is set, is called when a run fails or crashes.
"""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import urllib.request
from typing import Any

import yaml

from components.inputs import InputError, require
from components.plain import masked, one_line
from flows import cli, paths

DEPLOYMENTS, AUTOMATIONS = paths.HOUSE / "prefect.yaml", paths.HOUSE / "automations.yaml"
PROCESSES = paths.HOUSE / "deploy" / "process.json"  # the template of a pool; beside it those for Docker and Kubernetes
WEBHOOK = "FEWLOOP_WEBHOOK_URL"
ANSWER = 30.0  # seconds for one answer, on a busy machine
VARIABLE = "fewloop_deployed"  # of the server: the digest of what was put there


def pools() -> list[str]:
    return sorted({d["work_pool"]["name"] for d in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]})


def names() -> set[str]:
    return {d["name"] for d in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]}


def digest() -> str:
    """Return the digest of all that a server is given; runs happen in the folder of this code."""
    told = [DEPLOYMENTS.read_bytes(), AUTOMATIONS.read_bytes(), os.environ.get(WEBHOOK, "").encode(), str(paths.CODE).encode()]
    return hashlib.sha256(b"\0".join(told)).hexdigest()


def check_answers(api: str) -> None:
    """Raise InputError unless a Prefect server answers at `api`."""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=ANSWER):
            return
    except (OSError, ValueError, http.client.HTTPException) as error:  # it is no address, or speaks something else
        said = type(error).__name__ if isinstance(error, http.client.HTTPException) else one_line(error)  # it may quote a password as a port
        told = f"A Prefect server must answer at {masked(api)}, got: {said}"
        raise InputError(f"{told}. Start it, set another PREFECT_API_URL, or make stop first.") from error


def deploy() -> None:
    """Make pools, deployments and automations. Raises InputError where no server answers, RuntimeError with Prefect's words where it refuses."""
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError("PREFECT_API_URL must name a Prefect server, got none. Run make serve-flows, which starts one, or set it.")
    check_answers(os.environ["PREFECT_API_URL"].rstrip("/"))
    for pool in pools():
        _pool(pool)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(DEPLOYMENTS), "--all"]
    made = subprocess.run(command, cwd=paths.CODE, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if made.returncode:
        raise RuntimeError(f"prefect deploy ended with exit code {made.returncode}: {(made.stdout + made.stderr)[-2000:]}")
    automations()
    from prefect.variables import Variable

    Variable.set(VARIABLE, digest(), overwrite=True)


def _pool(name: str) -> None:
    """Make a work pool of processes, unless there is one of that name: whatever it is, it is the user's."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client:
        try:
            template = json.loads(PROCESSES.read_text())
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))  # type: ignore[attr-defined]
        except ObjectAlreadyExists:
            pass


def automations() -> None:
    """Make the automations of automations.yaml, each once; those that call a webhook only where FEWLOOP_WEBHOOK_URL is set."""
    from prefect.blocks.webhook import Webhook
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore
    from pydantic import SecretStr

    url, block = os.environ.get(WEBHOOK), None
    if url:
        block = str(Webhook(method="POST", url=SecretStr(url)).save("fewloop-failed-runs", overwrite=True))
    with get_client(sync_client=True) as client:
        for told in yaml.safe_load(AUTOMATIONS.read_text())["automations"]:
            held = client.read_automations_by_name(told["name"])
            calls = [action for action in told["actions"] if action["type"] == "call-webhook"]
            for action in calls:
                action["block_document_id"] = block
            for extra in held[0 if calls and not block else 1 :]:
                client.delete_automation(extra.id)
            if calls and not block:
                continue
            wanted: Any = AutomationCore.model_validate(told)
            if held:
                client.update_automation(held[0].id, wanted)
            else:
                client.create_automation(wanted)


def main(arguments: list[str]) -> None:
    if {"--help", "-h"} & set(arguments):
        print(__doc__.strip())  # type: ignore[union-attr]
        return
    require(not arguments, f"flows.deploy takes nothing, got {' '.join(arguments)!r}. See --help.")
    deploy()


if __name__ == "__main__":
    cli.guarded(lambda: main(sys.argv[1:]))
