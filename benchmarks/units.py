"""What one more of a thing costs: an item of a pool, a task of a table, a gradient between two processes.

    python -m benchmarks.units [items]

An item is a picture of 28 x 28, 784 bytes; classes have 20. Times of items and tasks are seconds of one core, the system's own included, so that other
work beside them matters little; those of two processes are the best of seven.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from PIL import Image

from components.contracts import SplitsSection
from components.domains import image_folder, table
from components.domains.options import ImageFolderOptions, TableOptions
from components.domains.pool import PoolClass, Source, open_pool, write_pool
from components.tasksets import TaskSpec, write_tasksets
from flows.versions import tree_md5

EACH, SHAPE = 20, (28, 28)
NUMBERS = (101_641, 1_000_000, 25_000_000)  # weights: the default teacher's, and larger ones
REPEATS = 7


def source(items: int) -> Source:
    classes = [PoolClass(f"{c % 100}/{c}", str(c % 100), EACH) for c in range(items // EACH)]
    return Source(classes, np.random.default_rng(0).integers(0, 256, (items, *SHAPE), dtype=np.uint8), ["plain"] * items)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def told(name: str, seconds: float, units: int, unit: str, more: str = "") -> None:
    print(f"{name:<28} {1e6 * seconds / units:10.3f} us {unit}{more}", flush=True)


def pool(items: int, place: Path) -> None:
    empty = peak()
    made = source(items)
    begin = time.process_time()
    write_pool(made, SplitsSection(train=None, val=["0"], gate=["1"], test=["2"], shares={}), "units", "0" * 64, place / "pool")
    told("write a pool", time.process_time() - begin, items, "an item", f", {size(place / 'pool') / items:.1f} bytes an item on disk")
    print(f"{'memory for that':<28} {(peak() - empty) / items:10.1f} bytes an item")
    begin = time.process_time()
    tree_md5(place / "pool")
    told("digest a pool", time.process_time() - begin, items, "an item, each time a pipeline begins")
    opened = open_pool(place / "pool")
    chosen, begin = np.random.default_rng(1).integers(0, items, 100_000), time.process_time()
    np.ascontiguousarray(opened.inputs[chosen])
    told("read items of a batch", time.process_time() - begin, len(chosen), "an item, from the page cache")
    begin = time.process_time()
    write_tasksets([TaskSpec("train", "train", 5, 1, 15, "all", 100_000)], opened, 0, place / "tasksets")
    told("draw and write task sets", time.process_time() - begin, 100_000, "a task", f", {size(place / 'tasksets') / 100_000:.1f} bytes a task on disk")


def ingest(place: Path) -> None:
    """Read pictures and rows as domains `image_folder` and `table` do: 2,000 PNG files of 64 x 64, 100,000 rows of 64 numbers in Parquet."""
    random = np.random.default_rng(2)
    for c in range(100):
        own = place / "pictures" / str(c)
        own.mkdir(parents=True)
        for i in range(EACH):
            Image.fromarray(random.integers(0, 256, (64, 64), dtype=np.uint8)).save(own / f"{i}.png")
    begin = time.process_time()
    image_folder.build(ImageFolderOptions(str(place / "pictures"), 28, False, 5, "refuse"))
    told("read a folder of pictures", time.process_time() - begin, 2_000, "an item")
    rows = random.normal(size=(100_000, 64)).astype(np.float32)
    columns = {f"c{i}": rows[:, i] for i in range(64)} | {"label": [str(i // EACH) for i in range(len(rows))]}
    pq.write_table(pa.table(columns), place / "rows.parquet")
    begin = time.process_time()
    table.build(TableOptions(str(place / "rows.parquet"), "label", None, [], "refuse", True, 5))
    told("read a table", time.process_time() - begin, len(rows), "an item of 64 numbers")


def rank() -> None:
    """Be one of two processes: average gradients of so many numbers, as DDP does after every step; gather the statistics of a layer's 64 channels."""
    dist.init_process_group("gloo")
    gathered, own = list(torch.zeros(2, 2, 64)), torch.zeros(2, 64)
    kinds = [("average a gradient", count, partial(dist.all_reduce, torch.zeros(count))) for count in NUMBERS]
    for name, count, act in (*kinds, ("gather statistics", own.numel(), partial(dist.all_gather, gathered, own))):
        seconds = []
        for _ in range(REPEATS):
            dist.barrier()
            begin = time.perf_counter()
            act()
            seconds.append(time.perf_counter() - begin)
        if dist.get_rank() == 0:
            print(f"{f'{name}, gloo x 2':<28} {1e3 * min(seconds):10.2f} ms for {count:,} numbers", flush=True)
    dist.destroy_process_group()


def main(items: str = "200000") -> None:
    with tempfile.TemporaryDirectory() as place:
        pool(int(items), Path(place))
        ingest(Path(place))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "benchmarks.units", "rank"]
    subprocess.run([sys.executable, *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    rank() if sys.argv[1:] == ["rank"] else main(*sys.argv[1:])
