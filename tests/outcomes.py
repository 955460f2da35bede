"""What a pipeline came to, where a test asks only for its scores."""

from pathlib import Path

from flows.outcome import Outcome


def outcome(folder: Path, metrics: dict[str, float], validation: float = 0.0, judged: str = "teacher") -> Outcome:
    """Return the outcome of a pipeline whose evaluation lies in `folder`; its version waits for the champion's place."""
    decided = {"model": "glyphs", "version": "1", "champion": False, "reason": "it waits"}
    measured = {"judged": judged, "validation": validation, "validated_on": "5w1s", "evaluation": str(folder), "metrics": metrics}
    return Outcome("run", **decided, ran=[], **measured, seconds=10.0, champion_met="champion", fingerprint="scores", data="data")
