"""One deployed run a domain at a time: a deployment's own limit knows nothing of the other deployments."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout
from prefect import runtime

from flows import paths
from flows.notices import say


def deployed() -> bool:
    """Tell whether a deployment began this run, and nobody waits for it on a command line."""
    return runtime.deployment.id is not None


@contextmanager
def turn(domain: str) -> Iterator[None]:
    """Wait until no other deployed run works on the domain; the system frees the lock of one that is killed.

    A run from the command line waits for nobody: the locks of stages and data tell it where it meets another.
    """
    if not deployed():
        yield
        return
    paths.runs().mkdir(parents=True, exist_ok=True)
    lock = FileLock(paths.runs() / f"domain-{domain}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"domain {domain}: waiting for the run that works on it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
