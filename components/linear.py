"""Linear models of values, in closed form: references that learners must beat, and a member that they may be fused with."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from components.domains.pool import Pool
from components.learners import store
from components.learners.closed_form import ridge_head, with_one
from components.learners.learner import Learner
from components.learners.reference import Biases, Linear
from components.objectives import OBJECTIVES, Objective
from components.scores import SCORES
from components.tasks import TaskBatch

RIDGES = np.logspace(-1, 3, 17)  # strengths among which validation tasks choose
DOUBTS = (0.1, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)  # and those by which an item's bias is shrunk
Model = TypeVar("Model", bound=Linear)
UNMOVED = 1e12  # so strong a pull that no task moves anything


def references(pool: Pool, tasks: Sequence[TaskBatch], objective: Objective) -> dict[str, Learner]:
    """Fit linear models to all training items, and choose by validation tasks how far a task may move the full one, or its constant alone.

    `mean` is one constant for all tasks, `popularity` a line through how much items are asked for; no task moves these two. `biases` are an
    item's and a user's.
    """
    width, whole = pool.input_shape[0], _whole(pool)
    found: dict[str, Learner] = {"mean": Linear(head(pool, [width]), UNMOVED, True)}
    if pool.popularity is not None:
        found["popularity"] = Linear(head(pool, [pool.popularity, width]), UNMOVED, True)
    if "ratings" in pool.kept and objective.name == "squared_error":  # of touches, a mean is of more rows than the count tells
        found["biases"] = biases(pool, tasks, objective)
    return found | {"linear-constant": tuned(whole, tasks, objective, True), "linear": tuned(whole, tasks, objective, False)}


def member(pool: Pool, tasks: Sequence[TaskBatch]) -> tuple[Learner, store.Spec]:
    """Return the full linear model and its specification."""
    spec = {"name": "linear", "options": {}, "input_shape": list(pool.input_shape), "objective": "squared_error"}
    return tuned(_whole(pool), tasks, OBJECTIVES["squared_error"], False), spec


def head(pool: Pool, columns: Sequence[int]) -> Tensor:
    """Return the head [D + 1, 1] of the model that reads some columns of the inputs and of the constant after them, all other places 0.

    Each class (a user, of ratings) weighs alike, as tasks are drawn and scored: who rates much is no better known than others.
    """
    x, y, weight = _train(pool)
    root, found = weight.sqrt(), x.new_zeros(x.shape[1] + 1, 1)
    found[list(columns)] = ridge_head((root * with_one(x))[None, :, list(columns)], (root * y)[None], torch.tensor(1.0).double())[0]
    return found.float()


def biases(pool: Pool, tasks: Sequence[TaskBatch], objective: Objective) -> Biases:
    """Return the items' and users' biases, both shrunk as far as the objective's own score on validation tasks says."""
    x, y, weight = _train(pool)
    options = []
    for doubt in DOUBTS:
        left = y - Biases(0.0, doubt, UNMOVED).encode(x)
        middle = ((weight * left).sum() / weight.sum()).item()
        options += [Biases(middle, doubt, float(ridge)) for ridge in RIDGES]
    return _best(options, tasks, objective)


def tuned(whole: Tensor, tasks: Sequence[TaskBatch], objective: Objective, constant_alone: bool) -> Linear:
    """Return the linear model of head `whole` [D + 1, 1] that tasks move, or whose constant they move.

    How far, the objective's own score on validation tasks says.
    """
    return _best([Linear(whole, float(ridge), constant_alone) for ridge in RIDGES], tasks, objective)


def _whole(pool: Pool) -> Tensor:
    return head(pool, range(pool.input_shape[0] + 1))


def _train(pool: Pool) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs [N, D] and values [N, 1] of all training items, and what each weighs [N, 1] so that classes weigh alike."""
    assert pool.targets is not None
    classes = pool.split("train")
    items, counts = pool.items(classes), pool.counts[classes]
    x, y = (torch.from_numpy(np.ascontiguousarray(a[items])).double() for a in (pool.inputs, pool.targets))
    return x, y.unsqueeze(1), torch.from_numpy(np.repeat(counts.mean() / counts, counts)).unsqueeze(1)


def _best(options: Sequence[Model], tasks: Sequence[TaskBatch], objective: Objective) -> Model:
    """Return the one that the objective's own score on validation tasks calls the best."""
    reached = [sum(objective.score(one(task).double(), task.query.y).mean().item() for task in tasks) for one in options]
    return options[int(np.argmax(SCORES[objective.score_name].sign * np.array(reached)))]
