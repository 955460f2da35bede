"""How input that is wrong is told: one line with what was required, what was received and what to do. Standard library only."""

import math


class InputError(ValueError):
    """The user's input is wrong: the message says what was required, what was received and what to do. Exit code 2."""


def require(condition: bool, message: str) -> None:
    """Raise InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def positive(**values: float) -> None:
    for name, value in values.items():
        require(0 < value < math.inf, f"{name} must be above 0, got {value}. Set it to a positive number.")


def not_negative(**values: float) -> None:
    for name, value in values.items():
        require(0 <= value < math.inf, f"{name} must be at least 0, got {value}. Set 0 to switch it off.")


def way_shot(setting: str) -> tuple[int, int]:
    """Parse `5w1s` into (5, 1). Raises InputError for anything else."""
    way, _, rest = setting.partition("w")
    ok = way.isdecimal() and rest.endswith("s") and rest[:-1].isdecimal() and int(way) >= 1 and int(rest[:-1]) >= 1
    require(ok, f"evaluation.settings takes <way>w<shot>s with way >= 1 and shot >= 1, got {setting!r}. Use for example 5w1s.")
    return int(way), int(rest[:-1])
