"""What learners make of tasks whose inputs are one number: the curve of each after adaptation, over the range of the inputs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from components.domains.pool import Pool
from components.figures import BEFORE, Curves
from components.learners import store
from components.learners.gradient import Maml
from components.tasks import Examples
from components.tasksets import read_table

POINTS = 200  # of a curve


@torch.no_grad()
def curves(models: Mapping[str, str], pool: Pool, tasksets: str | Path, setting: str, tasks: int = 4) -> list[Curves]:
    """Adapt the learners at these paths to the first test tasks of a setting; of a teacher with inner steps, show where it starts as well."""
    assert pool.targets is not None
    table, learners = read_table(tasksets, f"test-{setting}").head(tasks), {name: store.load(path)[0] for name, path in models.items()}
    x = np.linspace(pool.inputs.min(), pool.inputs.max(), POINTS, dtype=np.float32)
    asked, found = torch.from_numpy(x)[None, :, None], []
    for support, query in zip(table.support[:, 0], table.query[:, 0], strict=True):
        known = Examples(torch.from_numpy(pool.inputs[support])[None], torch.from_numpy(pool.targets[support])[None], 1)
        own = {name: learner.predict(learner.adapt(known), asked)[0, :, 0].numpy() for name, learner in learners.items()}
        started = learners.get("teacher")
        if isinstance(started, Maml):
            own[BEFORE] = started.outputs(started.start(known), asked, 0)[0, :, 0].numpy()
        points = [(np.array(pool.inputs[rows][:, 0]), np.array(pool.targets[rows])) for rows in (support, query)]
        found.append(Curves(points[0], points[1], x, own))
    return found
