"""Run a fit in this process, or in torchrun children when it asks for more than one device, on one machine or several."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from components import parent

if __name__ == "__main__":
    parent.end_with_parent()

from components.job import FitJob, Watch
from components.manifest import file_digest
from components.plain import fingerprint, from_plain, to_plain
from components.training import run

ROOT = Path(__file__).resolve().parent.parent
REQUEST, CALL = "job.json", "call.json"  # the fit, and what calls other machines to it, beside its state


def fit(job: FitJob, watch: Watch, label: str) -> dict[str, float]:
    """Run the job and return its metrics; `label` names it where it ends early.

    Several devices mean several processes started by torchrun, never by Lightning: Lightning would run the caller's flow once more in
    every child. The children's history comes back through a file, because their exit code is 0 also when they are told to stop.
    Other machines (`job.trainer.nodes`) see the same folder, find the call there and start their own children (`flows/join.py`).
    """
    if job.trainer.devices * job.trainer.nodes == 1:
        return run(job, watch, label)
    state = Path(job.state)
    state.mkdir(parents=True, exist_ok=True)
    request, call, result, told = state / REQUEST, state / CALL, state / "result.json", state / "told.jsonl"
    for leftover in (call, result, told):
        leftover.unlink(missing_ok=True)
    _place(request, to_plain(job))
    if job.trainer.nodes > 1:
        _place(call, {"id": uuid.uuid4().hex, "label": label, "code": code()})
    children = begin(0, request, label)
    seen = 0
    try:
        while children.poll() is None:
            seen = _pass_on(told, seen, watch)
            time.sleep(0.5)
    finally:
        if children.poll() is None:
            children.send_signal(signal.SIGTERM)
            try:
                children.wait(20)
            except subprocess.TimeoutExpired:
                children.kill()
        call.unlink(missing_ok=True)
    _pass_on(told, seen, watch)
    if not result.exists():
        raise RuntimeError(f"{label}: the training processes ended with code {children.returncode} and left no result; run it again to resume.")
    return dict(json.loads(result.read_text()))


def code() -> str:
    """Return the digest of what trains: machines that train one learner must agree in it."""
    return fingerprint({str(file.relative_to(ROOT)): file_digest(file) for file in (ROOT / "components").rglob("*.py")})


def begin(node: int, request: Path, label: str) -> "subprocess.Popen[bytes]":
    """Start this machine's part of a fit: torchrun and its children."""
    threads = json.loads(request.read_text())["trainer"]["threads"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)} | parent.told()
    return subprocess.Popen([sys.executable, "-m", "components.launch", str(node), str(request), label], env=environment, cwd=ROOT)


def _place(file: Path, told: object) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(told))
    os.replace(partial, file)


def _pass_on(told: Path, seen: int, watch: Watch) -> int:
    """Hand whole new lines of the children's history on; return how many were handed on so far."""
    lines = told.read_text().split("\n")[:-1] if told.exists() else []
    for line in lines[seen:]:
        watch.epoch(**json.loads(line))
    return len(lines)


class Written(Watch):
    """Write each epoch into a file, for the process that started the children."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def epoch(self, step: int, metrics: dict[str, float], again: bool) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, "metrics": metrics, "again": again}) + "\n")


def start(node: str, request: str, label: str) -> None:
    """Be torchrun on machine `node` of the fit's, and end with the process that asked for it."""
    from torch.distributed.run import main as torchrun

    os.environ |= parent.told()  # its children's parent is this process
    trainer = from_plain(FitJob, json.loads(Path(request).read_text())).trainer
    where = ["--standalone"]
    if trainer.nodes > 1:
        host, _, port = str(trainer.rendezvous).rpartition(":")
        name = json.loads(Path(request).with_name(CALL).read_text())["id"]
        # Static, not c10d: rank 0, which writes, is then a child of the pipeline's own machine.
        where = [f"--nnodes={trainer.nodes}", f"--node-rank={node}", f"--master-addr={host}", f"--master-port={port}", f"--rdzv-id={name}"]
        where += ["--rdzv-conf=timeout=60"] * (node != "0")  # one that is gone is not waited for as long as one that is to come
    torchrun([*where, f"--nproc_per_node={trainer.devices}", "-m", "components.launch", request, label])


def main(request: str, label: str) -> None:
    """Be one of the children: run the job, rank 0 writing history and result beside the state."""
    job = from_plain(FitJob, json.loads(Path(request).read_text()))
    told, result = Path(job.state) / "told.jsonl", Path(job.state) / "result.json"
    metrics = run(job, Written(told), label)
    if os.environ.get("RANK", "0") == "0":
        _place(result, metrics)


if __name__ == "__main__":
    (start if len(sys.argv) == 4 else main)(*sys.argv[1:])
