"""What is measured: how each score is shown, and which way is better. Standard library only."""

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
