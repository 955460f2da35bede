"""Training batches: step k's global batch is a pure function of (seed, k), cut so that any number of processes makes the same one."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from components.contracts import AugmentSection
from components.domains import images
from components.domains.pool import Pool, check_shots
from components.draws import below, bits, key_of, seed_of
from components.learning import SHARD, RecipeSection
from components.tasks import Examples, Lesson, TaskBatch
from components.tasksets import TaskTable


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
    if x.ndim != 4 or not options.bends:
        return x
    random = torch.cat([images.draws(each, torch.Generator().manual_seed(seed)) for seed in seeds])
    return images.bend(x, random, options)


def turned(x: Tensor, turns: np.ndarray) -> Tensor:
    """Turn pictures of tasks [T, N, C, H, W], each by its own of eight ways [T, N]."""
    return images.turn(x.flatten(0, 1), torch.from_numpy(turns.astype(np.int64)).flatten()).reshape(x.shape)


class TaskBatches:
    """Tasks of the training table in order, again from the start when it ends; pictures bent anew each time.

    With `turns`, each class of a task is turned by a draw of its own: characters turned or mirrored are further classes.
    """

    cutmix = 0.0  # share of the tasks whose classes are joined of two

    def __init__(self, pool: Pool, table: TaskTable, per_step: int, seed: int, augment: AugmentSection, turns: int = 1) -> None:
        self.pool, self.table, self.per_step, self.seed, self.options, self.turns = pool, table, per_step, seed, augment, turns

    def __call__(self, step: int, rank: int, world: int) -> TaskBatch:
        """Return the tasks i of step `step` with i mod world = rank."""
        numbers, rows = self._numbers(step, rank, world)
        support, query = self._examples(numbers, self.table.support[rows], self.table.query[rows])
        return TaskBatch(support, query)

    def _numbers(self, step: int, rank: int, world: int) -> tuple[range, np.ndarray]:
        """Return the tasks' numbers and their rows in the table."""
        numbers = range(step * self.per_step + rank, (step + 1) * self.per_step, world)
        return numbers, np.array([n % len(self.table) for n in numbers])

    def _examples(self, numbers: range, *items: np.ndarray) -> list[Examples]:
        """Gather tasks from tables of items, each [T, way, n], every item bent by its task's own draws."""
        way, sizes = items[0].shape[1], [part.shape[2] for part in items]
        flat = np.concatenate([part.reshape(len(part), -1) for part in items], 1)
        x = images.prepare(torch.from_numpy(np.ascontiguousarray(self.pool.inputs[flat])))
        if self.turns > 1 and x.ndim == 5:
            drawn = np.stack([below(bits(key_of(self.seed, "task turns", n), np.arange(way, dtype=np.uint64)), self.turns) for n in numbers])
            x = turned(x, np.concatenate([drawn.repeat(n, 1) for n in sizes], 1))
        if self.cutmix:
            for task, number in zip(x, numbers, strict=True):
                self._join(task, number, way, sizes)
        x = bent(x.flatten(0, 1), self.options, flat.shape[1], (seed_of(self.seed, "task augment", n) for n in numbers)).reshape(x.shape)
        if self.pool.targets is None:
            y = torch.cat([torch.arange(way).repeat_interleave(n) for n in sizes]).expand(len(flat), -1)
        else:
            y = torch.from_numpy(np.ascontiguousarray(self.pool.targets[flat]))
        cuts = [way * n for n in sizes]
        return [Examples(*part, way) for part in zip(torch.split(x, cuts, 1), torch.split(y, cuts, 1), strict=True)]

    def _join(self, task: Tensor, number: int, way: int, sizes: list[int]) -> None:
        """Join the classes of a share of the tasks two by two; task [way x sum of sizes, C, H, W] is changed in place."""
        chosen, across = below(bits(key_of(self.seed, "task cutmix", number), np.arange(2, dtype=np.uint64)), 1000)
        if chosen < 1000 * self.cutmix:
            for part, n in zip(torch.split(task, [way * n for n in sizes]), sizes, strict=True):
                images.join_halves(part.view(way, n, *part.shape[1:]), bool(across % 2))


class LessonBatches(TaskBatches):
    """Training tasks with what a teacher has besides: `more` further examples a class, clean ones where the student's are noisy, loose inputs."""

    def __init__(self, pool: Pool, table: TaskTable, per_step: int, seed: int, augment: AugmentSection, recipe: RecipeSection, turns: int = 1) -> None:
        super().__init__(pool, table, per_step, seed, augment, turns)
        self.more, self.noise, self.unlabelled, self.cutmix = recipe.teacher_shots, recipe.noise, recipe.unlabelled, recipe.cutmix
        self.items = pool.items(pool.split("train"))
        check_shots(pool, table.support.shape[2], table.query.shape[2], self.more)

    def __call__(self, step: int, rank: int, world: int) -> Lesson:
        numbers, rows = self._numbers(step, rank, world)
        classes, support, query = (part[rows] for part in (self.table.classes, self.table.support, self.table.query))
        tasks = zip(numbers, classes, support, query, strict=True)
        more = np.stack([self._more(*task) for task in tasks]) if self.more else np.empty((*support.shape[:2], 0), np.int64)
        own, asked, further = self._examples(numbers, support, query, more)
        taught = Examples(torch.cat([own.x, further.x], 1), torch.cat([own.y, further.y], 1), own.way)
        if self.noise > 0:
            random = torch.stack([torch.randn(own.x.shape[1:], generator=torch.Generator().manual_seed(seed_of(self.seed, "noise", n))) for n in numbers])
            own = Examples(own.x + self.noise * random, own.y, own.way)
        return Lesson(own, asked, taught, self._loose(numbers))

    def _loose(self, numbers: range) -> Tensor:
        """Return further items [T, unlabelled, ...] of any training class, turned and bent like those of tasks."""
        rows = np.stack([self._draws("unlabelled", n, len(self.items)) for n in numbers])
        x = images.prepare(torch.from_numpy(np.ascontiguousarray(self.pool.inputs[self.items[rows]])))
        if self.turns > 1 and x.ndim == 5:
            x = turned(x, np.stack([self._draws("unlabelled turns", n, self.turns) for n in numbers]))
        return bent(x.flatten(0, 1), self.options, self.unlabelled, (seed_of(self.seed, "unlabelled augment", n) for n in numbers)).reshape(x.shape)

    def _draws(self, name: str, number: int, bound: int) -> np.ndarray:
        return below(bits(key_of(self.seed, name, number), np.arange(self.unlabelled, dtype=np.uint64)), bound).astype(np.int64)

    def _more(self, number: int, classes: np.ndarray, support: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Return `more` items [way, more] of each class of a task that are in neither its support nor its query."""
        rows = []
        for place, cls in enumerate(classes):
            own = np.arange(self.pool.first[cls], self.pool.first[cls] + self.pool.counts[cls])
            free = np.setdiff1d(own, np.concatenate([support[place], query[place]]), assume_unique=True)
            order = np.argsort(bits(key_of(self.seed, "more shots", number, place), np.arange(len(free), dtype=np.uint64)))
            rows.append(free[order[: self.more]])
        return np.stack(rows)


class Epochs(IterableDataset):  # type: ignore[type-arg]
    """One epoch's steps as a data set, each in `parts` equal parts; the position is the epoch, which the trainer restores."""

    def __init__(self, batches: ItemBatches | TaskBatches, epoch_steps: int, rank: int, world: int, parts: int) -> None:
        self.batches, self.epoch_steps, self.rank, self.world, self.parts = batches, epoch_steps, rank, world, parts
        self.epoch = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        for step in range(self.epoch * self.epoch_steps, (self.epoch + 1) * self.epoch_steps):
            for part in range(self.parts):
                yield self.batches(step, self.rank + self.world * part, self.world * self.parts)
