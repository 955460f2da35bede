"""What a pipeline came to, where a test asks only for its scores."""

from pathlib import Path

from flows.outcome import Outcome


def outcome(folder: Path, metrics: dict[str, float], validation: float = 0.0, judged: str = "teacher") -> Outcome:
    """Return the outcome of a pipeline whose evaluation lies in `folder`; its version waits for the champion's place."""
    decided = ("glyphs", "1", False, "it waits")
    return Outcome("r", *decided, [], judged, validation, "v", 10.0, "c", str(folder), metrics, "f", "d")
