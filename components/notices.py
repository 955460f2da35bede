"""What work tells while it goes on, a line at a time: on standard error, unless who runs it has the lines go elsewhere."""

import sys
from collections.abc import Callable


def on_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


_hears: Callable[[str], None] = on_stderr


def tell(line: str) -> None:
    """Tell what a user should know and nothing stops for: rows that were left out, a file that cannot be read."""
    _hears(line)


def heard_by(hears: Callable[[str], None]) -> None:
    """Have all further lines go to `hears`."""
    global _hears
    _hears = hears
