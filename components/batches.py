"""Training batches: step k's global batch is a pure function of (seed, k), cut so that any number of processes makes the same one."""

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
    """Labelled items of the training classes, each class also turned `turns` ways as further classes."""

    def __init__(self, pool: Pool, turns: int, size: int, seed: int, augment: AugmentSection) -> None:
        self.pool, self.turns, self.seed, self.options = pool, turns, seed, augment
        self.classes = pool.split("train")
        self.shards = max(1, size // SHARD)
        self.shard_size = size // self.shards
        self.key = key_of(seed, "base items")

    def __call__(self, step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Return inputs [B, C, H, W] and labels [B] over classes x turns: the shards i of step `step` with i mod world = rank."""
        parts = [self._shard(step, shard) for shard in range(rank, self.shards, world)]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def _shard(self, step: int, shard: int) -> tuple[Tensor, Tensor]:
        n = self.shard_size
        counter = np.uint64((step * self.shards + shard) * 3 * n)
        random = bits(self.key, counter + np.arange(3 * n, dtype=np.uint64)).reshape(3, n)
        position = below(random[0], len(self.classes)).astype(np.int64)
        chosen = self.classes[position]
        item = self.pool.first[chosen] + below(random[1], self.pool.counts[chosen]).astype(np.int64)
        turns = below(random[2], self.turns).astype(np.int64)
        x = images.prepare(torch.from_numpy(np.ascontiguousarray(self.pool.inputs[item])))
        if self.turns > 1:
            x = images.turn(x, torch.from_numpy(turns))
        generator = torch.Generator().manual_seed(seed_of(self.seed, "base augment", step, shard))
        return images.augment(x, self.options, generator), torch.from_numpy(position * self.turns + turns)


class TaskBatches:
    """Tasks of the training table in order, again from the start when it ends; inputs bent anew each time."""

    def __init__(self, pool: Pool, table: TaskTable, per_step: int, seed: int, augment: AugmentSection) -> None:
        self.pool, self.table, self.per_step, self.seed, self.options = pool, table, per_step, seed, augment

    def __call__(self, step: int, rank: int, world: int) -> TaskBatch:
        """Return the tasks i of step `step` with i mod world = rank."""
        return stack([self._task(step * self.per_step + i) for i in range(rank, self.per_step, world)])

    def _task(self, number: int) -> TaskBatch:
        row = number % len(self.table)
        support, query = self.table.support[row], self.table.query[row]
        way, shot = support.shape
        items = np.concatenate([support.reshape(-1), query.reshape(-1)])
        x = images.prepare(torch.from_numpy(np.ascontiguousarray(self.pool.inputs[items])))
        x = images.augment(x, self.options, torch.Generator().manual_seed(seed_of(self.seed, "task augment", number)))
        labels = torch.arange(way)
        return TaskBatch(
            Examples(x[: way * shot][None], labels.repeat_interleave(shot)[None], way),
            Examples(x[way * shot :][None], labels.repeat_interleave(query.shape[1])[None], way),
        )


def stack(tasks: list[TaskBatch]) -> TaskBatch:
    """Join batches of equal shape along the task dimension."""

    def join(parts: list[Examples]) -> Examples:
        return Examples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]), parts[0].way)

    return TaskBatch(join([t.support for t in tasks]), join([t.query for t in tasks]))


class Epochs(IterableDataset):  # type: ignore[type-arg]
    """One epoch's steps as a data set; the position is the epoch, which the trainer restores."""

    def __init__(self, batches: ItemBatches | TaskBatches, epoch_steps: int, rank: int, world: int) -> None:
        self.batches, self.epoch_steps, self.rank, self.world = batches, epoch_steps, rank, world
        self.epoch = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        for step in range(self.epoch * self.epoch_steps, (self.epoch + 1) * self.epoch_steps):
            yield self.batches(step, self.rank, self.world)
