"""Training batches: step k's global batch is a pure function of (seed, k), cut so that any number of processes makes the same one."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from components.contracts import AugmentSection
from components.domains import images
from components.domains.pool import Pool
from components.draws import below, bits, key_of, seed_of
from components.tasks import Examples, TaskBatch
from components.tasksets import TaskTable

SHARD = 32  # items of the base batch that share one generator, and go to one process together


class ItemBatches:
    """Labelled items of the training classes, each class also turned `turns` ways as further classes; or items with their values."""

    def __init__(self, pool: Pool, turns: int, size: int, seed: int, augment: AugmentSection) -> None:
        self.pool, self.turns, self.seed, self.options = pool, turns, seed, augment
        self.classes = pool.split("train")
        self.shards = max(1, size // SHARD)
        self.shard_size = size // self.shards
        self.key = key_of(seed, "base items")

    def __call__(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Return inputs [B, ...] and labels [B] over classes x turns, or values: the shards i of step `step` with i mod world = rank."""
        numbers = np.arange(step * self.shards + rank, (step + 1) * self.shards, world, dtype=np.uint64)
        n = self.shard_size
        counter = numbers[:, None] * np.uint64(3 * n) + np.arange(3 * n, dtype=np.uint64)
        random = bits(self.key, counter).reshape(-1, 3, n).transpose(1, 0, 2).reshape(3, -1)
        position = below(random[0], len(self.classes)).astype(np.int64)
        chosen = self.classes[position]
        item = self.pool.first[chosen] + below(random[1], self.pool.counts[chosen]).astype(np.int64)
        turns = below(random[2], self.turns).astype(np.int64)
        x = images.prepare(torch.from_numpy(np.ascontiguousarray(self.pool.inputs[item])))
        if self.pool.targets is not None:
            return x, torch.from_numpy(np.ascontiguousarray(self.pool.targets[item]))
        if self.turns > 1:
            x = images.turn(x, torch.from_numpy(turns))
        return bent(x, self.options, n, (seed_of(self.seed, "base augment", number) for number in numbers)), torch.from_numpy(position * self.turns + turns)


def bent(x: Tensor, options: AugmentSection, each: int, seeds: Iterable[int]) -> Tensor:
    """Bend pictures [N, C, H, W] by draws from one seed for every `each` of them; vectors stay as they are."""
    if x.ndim != 4 or not any(vars(options).values()):
        return x
    random = torch.cat([images.draws(each, torch.Generator().manual_seed(seed)) for seed in seeds])
    return images.bend(x, random, options)


class TaskBatches:
    """Tasks of the training table in order, again from the start when it ends; pictures bent anew each time."""

    def __init__(self, pool: Pool, table: TaskTable, per_step: int, seed: int, augment: AugmentSection) -> None:
        self.pool, self.table, self.per_step, self.seed, self.options = pool, table, per_step, seed, augment

    def __call__(self, step: int, rank: int, world: int) -> TaskBatch:
        """Return the tasks i of step `step` with i mod world = rank."""
        numbers = range(step * self.per_step + rank, (step + 1) * self.per_step, world)
        rows = np.array([n % len(self.table) for n in numbers])
        items = np.concatenate([part[rows].reshape(len(rows), -1) for part in (self.table.support, self.table.query)], 1)
        x = images.prepare(torch.from_numpy(np.ascontiguousarray(self.pool.inputs[items])))
        x = bent(x.flatten(0, 1), self.options, items.shape[1], (seed_of(self.seed, "task augment", n) for n in numbers)).reshape(x.shape)
        (way, shot), query = self.table.support.shape[1:], self.table.query.shape[2]
        if self.pool.targets is None:
            y = torch.cat([torch.arange(way).repeat_interleave(n) for n in (shot, query)]).expand(len(rows), -1)
        else:
            y = torch.from_numpy(np.ascontiguousarray(self.pool.targets[items]))
        cut = way * shot
        return TaskBatch(Examples(x[:, :cut], y[:, :cut], way), Examples(x[:, cut:], y[:, cut:], way))


class Epochs(IterableDataset):  # type: ignore[type-arg]
    """One epoch's steps as a data set, each in `parts` equal parts; the position is the epoch, which the trainer restores."""

    def __init__(self, batches: ItemBatches | TaskBatches, epoch_steps: int, rank: int, world: int, parts: int) -> None:
        self.batches, self.epoch_steps, self.rank, self.world, self.parts = batches, epoch_steps, rank, world, parts
        self.epoch = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        for step in range(self.epoch * self.epoch_steps, (self.epoch + 1) * self.epoch_steps):
            for part in range(self.parts):
                yield self.batches(step, self.rank + self.world * part, self.world * self.parts)
