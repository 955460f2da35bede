"""Train beside a pipeline of another machine: `python -m flows.join rank=1`"""

import json
import sys
import time
from pathlib import Path

from components.inputs import require
from flows import cli, paths

HELP = """python -m flows.join rank=<1, 2, ...>

Trains beside the pipelines of another machine that ask for several, each with a rank of its own: trainer=ddp trainer.nodes=2
trainer.rendezvous=<that machine's host:port>. All see one FEWLOOP_ROOT, under the same path. Waits for the next fit until it is stopped.
"""


def calls() -> list[Path]:
    """Return the calls of fits that run or were killed, the newest first."""
    from components.launch import CALL

    found = []
    for path in paths.stages().glob(f"*/*.state/{CALL}"):
        try:
            found.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue  # over in this moment
    return [path for _, path in sorted(found, reverse=True)]


def answer(call: Path, rank: int, done: set[str]) -> None:
    """Train one fit's part, where it has one for this rank and it was not done; where the code is another, say so once: a killed pipeline's call stays."""
    from components.launch import REQUEST, begin, code

    try:
        told, request = json.loads(call.read_text()), call.with_name(REQUEST)
        trainer = json.loads(request.read_text())["trainer"]
    except FileNotFoundError:
        return
    if told["id"] in done or rank >= trainer["nodes"]:
        return
    done.add(told["id"])
    if told["code"] != code():
        print(f"{told['label']}: its code must be that of this machine, got another in components/. Check out the same commit.", file=sys.stderr, flush=True)
        return
    print(f"{told['label']}: training with {trainer['rendezvous']}", file=sys.stderr, flush=True)
    children = begin(rank, request, told["label"])
    try:
        ended = children.wait()
    finally:
        children.terminate()
    print(f"{told['label']}: {'done' if not ended else f'ended with code {ended}; the pipeline calls again when it is run again'}", file=sys.stderr, flush=True)


def join(rank: str) -> None:
    """Answer call after call. Raises InputError for a rank that no other machine can have."""
    require(rank.isdecimal() and int(rank) > 0, f"rank must be 1 or above, one for every other machine, got {rank}. The pipeline's own is 0.")
    print(f"waiting for fits of several machines under {paths.stages()}", file=sys.stderr, flush=True)
    done: set[str] = set()
    while True:
        for call in calls():
            answer(call, int(rank), done)
        time.sleep(0.5)


if __name__ == "__main__":
    cli.entry(join, sys.argv[1:], HELP)
