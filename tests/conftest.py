"""What several test files share: a small pool, its task sets, and the workspaces of workspace.py."""

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from served import server, system  # noqa: F401
from sources import chain  # noqa: F401
from workspace import finished, new_workspace, own_prefect, prefect  # noqa: F401

from components.contracts import SplitsSection
from components.domains.pool import Pool, PoolClass, Source, open_pool, write_pool

torch.set_num_threads(1)  # tests' tensors are small: threads would only wait for each other

# Groups of unequal sizes, classes of unequal counts: what real sources are like.
GROUPS = {"a": 9, "b": 14, "c": 6, "v": 8, "w": 5, "g": 7, "t": 8, "u": 12}
SPLITS = SplitsSection(train=None, val=["v", "w"], gate=["g"], test=["t", "u"], shares={})


@pytest.fixture(scope="session")
def small_pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """69 classes of random pictures with 8 to 11 items each, every class around a centre of its own."""
    random = np.random.default_rng(0)
    classes = [PoolClass(f"{group}/{i}", group, 8 + (i % 4)) for group, size in GROUPS.items() for i in range(size)]
    pictures = []
    for entry in classes:
        centre = random.integers(110, 146, (7, 7)).repeat(4, 0).repeat(4, 1)
        pictures.append(np.clip(centre + random.normal(0, 90, (entry.count, 28, 28)), 0, 255).astype(np.uint8))
    source = Source(classes, np.concatenate(pictures), ["plain"] * sum(c.count for c in classes))
    folder = tmp_path_factory.mktemp("pool") / "small"
    write_pool(source, SPLITS, "small", "5ma11" * 12, folder)
    return open_pool(folder)


@pytest.fixture(scope="session")
def small_tasksets(tmp_path_factory: pytest.TempPathFactory, small_pool: Pool) -> Path:
    from components.tasksets import TaskSpec, write_tasksets

    folder = tmp_path_factory.mktemp("tasksets") / "small"
    tables = [
        TaskSpec("train", "train", 4, 1, 2, "all", 50),
        TaskSpec("val", "val", 4, 1, 3, "group", 30),
        TaskSpec("test-4w2s", "test", 4, 2, 3, "group", 40),
    ]
    write_tasksets(tables, small_pool, 0, folder)
    return folder
