"""Task generation against a loop that draws task by task: the same tasks' shape, interleaved in one process, one core.

    python -m benchmarks.tasksets

The peer is numpy's own `Generator.choice(..., replace=False)`, one call for the classes of a task and one for the items of each class:
the way in which samplers of few-shot libraries are usually written. Both fill the same arrays.
"""

import resource
import statistics
import time

import numpy as np
import pyarrow as pa

from components.domains.pool import Pool
from components.tasksets import TaskSpec, draw

CLASSES, ITEMS = 1_200, 20
SPEC = TaskSpec("benchmark", "train", way=5, shot=1, query=15, within="all", tasks=0)


def pool() -> Pool:
    from pathlib import Path

    counts = np.full(CLASSES, ITEMS)
    table = pa.table(
        {
            "name": [str(i) for i in range(CLASSES)],
            "group": [str(i % 12) for i in range(CLASSES)],
            "split": ["train"] * CLASSES,
            "first": np.cumsum(counts) - counts,
            "count": counts,
        }
    )
    return Pool(Path(), "benchmark", "benchmark", np.zeros(0), table)


def peer(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    classes = np.empty((count, SPEC.way), dtype=np.int32)
    items = np.empty((count, SPEC.way, SPEC.shot + SPEC.query), dtype=np.int32)
    for task in range(count):
        classes[task] = generator.choice(CLASSES, SPEC.way, replace=False)
        for row, chosen in enumerate(classes[task]):
            items[task, row] = chosen * ITEMS + generator.choice(ITEMS, SPEC.shot + SPEC.query, replace=False)
    return classes, items


def main() -> None:
    source, ratios = pool(), []
    for repeat in range(5):
        begin = time.perf_counter()
        draw(SPEC, source, repeat, count=20_000)
        ours = (time.perf_counter() - begin) / 20_000
        begin = time.perf_counter()
        peer(2_000, repeat)
        ratios.append((time.perf_counter() - begin) / 2_000 / ours)
    begin = time.perf_counter()
    draw(SPEC, source, 0, count=1_000_000)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"1,000,000 tasks, 5-way 1-shot 15-query: {seconds:.1f} s, peak memory {peak:.2f} GB")
    print(f"ratio to numpy's choice a task: median {statistics.median(ratios):.0f} (of 5: {min(ratios):.0f} to {max(ratios):.0f})")


if __name__ == "__main__":
    main()
