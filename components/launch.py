"""Run a fit in this process, or in torchrun children when it asks for more than one device."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from components.contracts import FitJob
from components.plain import from_plain, to_plain
from components.training import Sink, run

ROOT = Path(__file__).resolve().parent.parent


def fit(job: FitJob, sink: Sink, label: str) -> dict[str, float]:
    """Run the job and return its metrics.

    Several devices mean several processes started by torchrun, never by Lightning: Lightning would run the caller's flow once more in
    every child. The children's history comes back through a file, because their exit code is 0 also when they are told to stop.
    """
    if job.trainer.devices == 1:
        return run(job, sink, label)
    state = Path(job.state)
    state.mkdir(parents=True, exist_ok=True)
    request, result, told = state / "job.json", state / "result.json", state / "told.jsonl"
    request.write_text(json.dumps(to_plain(job)))
    for leftover in (result, told):
        leftover.unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job.trainer.devices}"]
    command += ["-m", "components.launch", str(request), label]
    environment = os.environ | {"OMP_NUM_THREADS": str(job.trainer.threads), "PYTHONPATH": str(ROOT)}
    children = subprocess.Popen(command, env=environment, cwd=ROOT)
    seen = 0
    try:
        while children.poll() is None:
            seen = _pass_on(told, seen, sink)
            time.sleep(0.5)
    finally:
        if children.poll() is None:
            children.send_signal(signal.SIGTERM)
            try:
                children.wait(20)
            except subprocess.TimeoutExpired:
                children.kill()
    _pass_on(told, seen, sink)
    if not result.exists():
        raise RuntimeError(f"{label}: the training processes ended with code {children.returncode} and left no result; run it again to resume.")
    return dict(json.loads(result.read_text()))


def _pass_on(told: Path, seen: int, sink: Sink) -> int:
    """Hand whole new lines of the children's history to the sink; return how many were handed on so far."""
    lines = told.read_text().split("\n")[:-1] if told.exists() else []
    for line in lines[seen:]:
        entry = json.loads(line)
        sink(entry["step"], entry["metrics"])
    return len(lines)


def main(request: str, label: str) -> None:
    """Be one of the children: run the job, rank 0 writing history and result beside the state."""
    job = from_plain(FitJob, json.loads(Path(request).read_text()))
    told, result = Path(job.state) / "told.jsonl", Path(job.state) / "result.json"

    def sink(step: int, metrics: dict[str, float]) -> None:
        with told.open("a") as file:
            file.write(json.dumps({"step": step, "metrics": metrics}) + "\n")

    metrics = run(job, sink, label)
    if os.environ.get("RANK", "0") == "0":
        partial = result.with_suffix(".partial")
        partial.write_text(json.dumps(metrics))
        os.replace(partial, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
