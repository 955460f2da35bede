"""What is measured: how each score is shown, and which way is better. Standard library only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """How a score is shown, factor and digits, and which way is better: sign +1 for more, -1 for less."""

    factor: int
    digits: int
    sign: int


SCORES = {
    "accuracy": Score(100, 2, +1),
    "pairs": Score(100, 2, +1),
    "mse": Score(1, 4, -1),
    "return": Score(1, 2, +1),
    "mae": Score(1, 4, -1),
    "rmse": Score(1, 4, -1),
    "ndcg_1": Score(100, 2, +1),
    "ndcg_3": Score(100, 2, +1),
    "ndcg_5": Score(100, 2, +1),
}
OBJECTIVE_SCORES = {"cross_entropy": "accuracy", "squared_error": "mse", "ranking": "pairs", "return": "return"}


@dataclass(frozen=True)
class Cost:
    """One learner in the trade-off: its score and half interval as shown, its parameters, and seconds to adapt to and predict one task."""

    role: str
    score: float
    half: float
    parameters: float
    seconds: float


def costs(metrics: Mapping[str, float], setting: str, score: str, factor: float, leave_out: Sequence[str]) -> list[Cost]:
    """Read from an evaluation's metrics what each learner costs and scores in one setting; references in `leave_out` are not learners."""
    roles = [name.removesuffix("/parameters") for name in metrics if name.endswith("/parameters")]
    found = []
    for role in (r for r in roles if r not in leave_out):
        where = f"test/{setting}/{role}/{score}"
        seconds = metrics[f"test/{setting}/{role}/seconds"]
        found.append(Cost(role, factor * metrics[where], factor * metrics[f"{where}_ci95"], metrics[f"{role}/parameters"], seconds))
    return found
