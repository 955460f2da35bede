"""A domain's data stay what they are while somebody uses them: whoever needs other data waits, or is refused."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from filelock import ReadWriteLock, Timeout

from components.inputs import InputError
from flows import paths
from flows.notices import say

T = TypeVar("T")


class InUseError(Exception):
    """Another process uses the data that were to be changed."""


def _lock(domain: str) -> ReadWriteLock:
    """Return the lock of data/<domain>; the system frees it of a process that is killed."""
    return ReadWriteLock(paths.locks() / f"data-{domain}.lock")


@contextmanager
def used(domain: str) -> Iterator[None]:
    """Keep data/<domain> as it is. Many may at once."""
    lock = _lock(domain)  # a name, for who is nobody's any more is free
    with lock.read_lock():
        yield


@contextmanager
def changed(domain: str) -> Iterator[None]:
    """Put something else into data/<domain>. Raises InUseError, at once, where somebody uses it."""
    lock = _lock(domain)
    try:
        lock.acquire_write(timeout=0)
    except Timeout as error:
        raise InUseError(domain) from error
    try:
        yield
    finally:
        lock.release()


def patiently(change: Callable[[], T], patient: bool) -> T:
    """Change data as soon as nobody uses them; who is not patient gets an InputError instead."""
    waits = False
    while True:
        try:
            return change()
        except InUseError as error:
            if not patient:
                raise InputError(
                    f"data/{error} must stay as it is while another pipeline uses it, but other data of domain {error} are asked for. "
                    "Wait until that one has ended, or work in another checkout."
                ) from error
            if not waits:
                say(f"data/{error}: waiting for the run that uses other data")
            waits = True
            time.sleep(2)
