"""A process that ends with the one that started it. Standard library only: it is called before what takes seconds to import."""

import os
import threading
import time

STARTED_BY = "FEWLOOP_STARTED_BY"  # in the environment of a process: the number of the one that started it


def told() -> dict[str, str]:
    """Return what the environment of a child of this process must hold."""
    return {STARTED_BY: str(os.getpid())}


def end_with_parent() -> None:
    """End this process within a second of the one that started it, however and whenever that ended."""
    parent = int(os.environ[STARTED_BY])  # not getppid: who started it may be gone already

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
