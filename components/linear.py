"""Linear models of values, in closed form: references that learners must beat, and a member that they may be fused with."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from components.domains.pool import Pool
from components.learners import store
from components.learners.closed_form import ridge_head, with_one
from components.learners.learner import Learner
from components.learners.reference import Linear
from components.objectives import OBJECTIVES, Objective
from components.scores import SCORES
from components.tasks import TaskBatch

RIDGES = np.logspace(-1, 3, 17)  # strengths among which validation tasks choose
UNMOVED = 1e12  # so strong a pull that no task moves anything


def references(pool: Pool, tasks: Sequence[TaskBatch], objective: Objective) -> dict[str, Learner]:
    """Fit linear models to all training items, and choose by validation tasks how far a task may move the full one, or its constant alone.

    `mean` is one constant for all tasks, `popularity` a line through how much items are asked for; no task moves these two.
    """
    width = pool.input_shape[0]
    found: dict[str, Learner] = {"mean": Linear(head(pool, [width]), UNMOVED, True)}
    if pool.popularity is not None:
        found["popularity"] = Linear(head(pool, [pool.popularity, width]), UNMOVED, True)
    return found | {"linear-constant": tuned(pool, tasks, objective, True), "linear": tuned(pool, tasks, objective, False)}


def member(pool: Pool, tasks: Sequence[TaskBatch]) -> tuple[Learner, store.Spec]:
    """Return the full linear model and its specification."""
    spec = {"name": "linear", "options": {}, "input_shape": list(pool.input_shape), "objective": "squared_error"}
    return tuned(pool, tasks, OBJECTIVES["squared_error"], False), spec


def head(pool: Pool, columns: Sequence[int]) -> Tensor:
    """Return the head [D + 1, 1] of the model that reads some columns of the inputs and of the constant after them, all other places 0.

    Each class (a user, of ratings) weighs alike, as tasks are drawn and scored: who rates much is no better known than others.
    """
    assert pool.targets is not None
    classes = pool.split("train")
    items, counts = pool.items(classes), pool.counts[classes]
    x, y = (torch.from_numpy(np.ascontiguousarray(a[items])).double() for a in (pool.inputs, pool.targets))
    weight = torch.from_numpy(np.repeat(counts.mean() / counts, counts) ** 0.5).unsqueeze(1)
    found = x.new_zeros(x.shape[1] + 1, 1)
    found[list(columns)] = ridge_head((weight * with_one(x))[None, :, list(columns)], (weight * y.unsqueeze(1))[None], torch.tensor(1.0).double())[0]
    return found.float()


def tuned(pool: Pool, tasks: Sequence[TaskBatch], objective: Objective, constant_alone: bool) -> Linear:
    """Return the linear model that tasks move, or whose constant they move, as far as the objective's own score on validation tasks says."""
    whole = head(pool, range(pool.input_shape[0] + 1))
    options = [Linear(whole, float(ridge), constant_alone) for ridge in RIDGES]
    reached = [sum(objective.score(one(task).double(), task.query.y).mean().item() for task in tasks) for one in options]
    return options[int(np.argmax(SCORES[objective.score_name].sign * np.array(reached)))]
