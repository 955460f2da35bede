"""What a learner's answers to a table of tasks come to: its scores, how sure their mean is, and how far another's are away."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from components.learners.learner import Learner
from components.objectives import MEASURES
from components.tasksets import batch
from components.validation import Validation, encode_items

BINS = 15  # of the reliability diagram
ANSWERS = "validation.parquet"  # beside a learner: what it came to on each validation task


@dataclass(frozen=True)
class Scores:
    """One learner on one table: scores of each task by name [N], group of each task [N], and the counts of the reliability diagram.

    The first score is the objective's own. Of tasks that take their classes from everywhere, `shares` [N, way] is the score of each class's queries
    (a task's is their mean) and `classes` [N, way] says which they are.
    """

    scores: dict[str, np.ndarray]
    group: np.ndarray
    bins: np.ndarray  # [BINS, 3]: queries, sum of confidences, sum of hits; all zero for values
    shares: np.ndarray | None = None
    classes: np.ndarray | None = None

    @property
    def ece(self) -> float | None:
        """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, eq. 3); None for values."""
        if not self.bins.any():
            return None
        count, confidence, hits = self.bins.T
        return float(np.abs(confidence - hits).sum() / count.sum())


@torch.no_grad()
def score(learner: Learner, validation: Validation, tasks: int | None = None, size: int = 20, more: Sequence[str] = ()) -> Scores:
    """Adapt to and predict every task of a table (the first `tasks` of it); `more` names further scores of tasks that have values."""
    learner.eval()
    features = encode_items(learner, validation.items)
    table = validation.compact if tasks is None else validation.compact.head(tasks)
    objective, bins = learner.objective, np.zeros((BINS, 3))
    found: dict[str, list[np.ndarray]] = {name: [] for name in (objective.score_name, *more)}
    shares: list[np.ndarray] = []
    for start in range(0, len(table), size):
        task = batch(table, np.arange(start, min(start + size, len(table))), features, validation.targets)
        outputs = learner.predict_features(learner.adapt_features(task.support), task.query.x) / learner.temperature
        if objective.name != "cross_entropy":
            outputs, y = outputs.double() - validation.lowest, task.query.y - validation.lowest
            for name, own in found.items():
                unit = validation.unit if name.startswith("ndcg") else 1.0
                own.append((MEASURES[name] if name in more else objective.score)(outputs / unit, y / unit).numpy())
            continue
        confidence, choice = outputs.softmax(-1).max(-1)
        hit = (choice == task.query.y).double()
        found[objective.score_name].append(hit.mean(1).numpy())
        shares.append(hit.view(len(hit), table.way, -1).mean(2).numpy())
        slot = (confidence.double() * BINS).long().clamp(0, BINS - 1).flatten().numpy()
        for column, weight in enumerate((None, confidence.double().flatten().numpy(), hit.flatten().numpy())):
            bins[:, column] += np.bincount(slot, weights=weight, minlength=BINS)
    across = bool(shares) and len(np.unique(table.group)) == 1  # tasks take their classes from everywhere, or from the one group there is
    whole = {name: np.concatenate(own) for name, own in found.items()}
    return Scores(whole, table.group, bins, *((np.concatenate(shares), table.classes) if across else ()))


def interval(values: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Return the mean over tasks and the half-width of its 95 % interval; `weights`: what share of a task each value is, where it is not one.

    Tasks from seven scripts are not a thousand independent facts: the variance is that of sums over groups, and Student's t has one degree of
    freedom less than there are groups (Cameron and Miller 2015, Journal of Human Resources 50(2), eq. 11 and sec. VI.D). A bootstrap over
    groups is too narrow where these are few: with five that differ as much as tasks do, it covers the truth in 81 of 100 cases. With one
    group, or none (-1), tasks are the groups.
    """
    from scipy.special import stdtrit

    _, own = np.unique(groups, return_inverse=True)
    count = int(own.max()) + 1
    if count == 1:
        own, count = np.arange(len(values)), len(values)
    weights = np.ones(len(values)) if weights is None else weights
    mean = float(np.average(values, weights=weights))
    sums = np.bincount(own, weights * (values - mean), count)
    error = np.sqrt(count / (count - 1) * np.square(sums).sum()) / weights.sum() if count > 1 else np.inf
    return mean, float(stdtrit(count - 1, 0.975) * error) if count > 1 else float("inf")


def facts(values: np.ndarray, groups: np.ndarray, shares: np.ndarray | None, classes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `interval` takes: values, what they are facts of, and their weights.

    Tasks that take their classes from everywhere, or from the only group, ask for the same few classes again and again: the facts are then the
    classes, with what every task says of them. As independent tasks, 500 of six classes that differ by three points found the truth in 25 of 100 intervals.
    """
    if shares is None or classes is None:
        return values, groups, np.ones(len(values))
    return shares.ravel(), classes.ravel(), np.full(shares.size, 1 / shares.shape[1])


Parts = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]  # values of tasks, their groups, every class's share, and which class it is


def together(parts: Sequence[Parts]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `interval` takes of several tables: where one has several groups, those are the facts of all, since its classes lie in them."""
    across = all(shares is not None for _, _, shares, _ in parts)
    own = [facts(values, groups, *((shares, classes) if across else (None, None))) for values, groups, shares, classes in parts]
    values, groups, weights = (np.concatenate(column) for column in zip(*own, strict=True))
    return values, groups, weights


def pooled(found: Sequence[Scores], name: str) -> tuple[float, float]:
    """Return the mean over the tasks of several tables and the half-width of its 95 % interval."""
    return interval(*together([(one.scores[name], one.group, one.shares, one.classes) for one in found]))


def write_answers(found: Scores, folder: Path) -> None:
    """Keep scores of validation tasks beside the learner whose they are, so that another's can be paired with them."""
    lists = {} if found.shares is None else {"share": list(found.shares), "class": list(np.asarray(found.classes))}
    pq.write_table(pa.table({"group": found.group, **found.scores, **lists}), folder / ANSWERS)


def read_answers(folder: str | Path, name: str) -> Scores:
    """Read what `write_answers` kept of score `name`."""
    table = pq.read_table(Path(folder) / ANSWERS)
    lists = [np.array(table[column].to_pylist()) for column in ("share", "class")] if "share" in table.column_names else []
    return Scores({name: table[name].to_numpy()}, table["group"].to_numpy(), np.zeros((BINS, 3)), *lists)


def paired(a: Scores, b: Scores) -> Scores:
    """Return a - b task by task, on the tasks that both have."""
    n = min(len(a.group), len(b.group))
    shares = (a.shares[:n] - b.shares[:n], a.classes[:n]) if a.shares is not None and b.shares is not None and a.classes is not None else ()
    return Scores({name: own[:n] - b.scores[name][:n] for name, own in a.scores.items()}, a.group[:n], np.zeros((BINS, 3)), *shares)
