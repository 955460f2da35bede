"""Control: environments with hidden parameters. A class is an environment, its items are episodes in it; a task's support is what is played first."""

import numpy as np

from components.domains.options import ControlOptions
from components.domains.pool import PoolClass, Source
from components.environments import ENVIRONMENTS


def build(options: ControlOptions, mirror: str | None = None) -> Source:
    """Draw the environments. Items are rows of parameters and the episode's number; what is gained in one is found out by playing it."""
    parameters = ENVIRONMENTS[options.environment].draw(options.environments, options.seed)
    numbers = np.tile(np.arange(options.episodes, dtype=np.float32), options.environments)
    rows = np.concatenate([parameters.repeat(options.episodes, 0), numbers[:, None]], 1)
    classes = [PoolClass(f"environment-{i:06d}", f"environment-{i:06d}", options.episodes) for i in range(options.environments)]
    return Source(classes, rows, [""] * len(rows), np.zeros(len(rows), np.float32), environment=options.environment)
