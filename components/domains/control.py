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
    names = [f"{options.environment}-{options.seed}-{i:06d}" for i in range(options.environments)]  # another seed's are other environments
    classes = [PoolClass(name, name, options.episodes) for name in names]
    return Source(classes, rows, [""] * len(rows), np.zeros(len(rows), np.float32), environment=options.environment)
