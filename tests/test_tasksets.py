"""Task sets: what a task may contain, and that task i depends on (seed, table, i) alone."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import tasksets
from components.domains import sinusoid
from components.domains.options import OPTIONS
from components.domains.pool import Pool, open_pool, write_pool
from components.draws import below, bits, key_of
from components.inputs import InputError
from components.tasksets import TaskSpec, choose, draw, read_table
from flows.config import CONF, compose_plain, load

SPEC = TaskSpec("train", "train", 5, 2, 4, "all", 3_000)


def test_bits_are_splitmix64() -> None:
    # The first outputs of SplitMix64 from seed 1234567, as published with its reference code.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert bits(np.uint64(1234567), np.arange(1, 6, dtype=np.uint64)).tolist() == published


def test_bounded_draws_are_uniform() -> None:
    counts = np.bincount(below(bits(key_of("uniform"), np.arange(70_000, dtype=np.uint64)), 7).astype(int), minlength=7)
    assert counts.sum() == 70_000
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 22.5  # chi-square with 6 degrees of freedom, p = 0.001


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(12, 40), min_size=1, max_size=30), st.integers(0, 2**32))
def test_choices_are_distinct_and_within_bounds(k: int, sizes: list[int], seed: int) -> None:
    random = bits(np.uint64(seed), np.arange(2 * k * len(sizes), dtype=np.uint64)).reshape(2 * k, -1)
    chosen = choose(random, np.array(sizes), k)
    assert chosen.shape == (k, len(sizes))
    for column, size in zip(chosen.T, sizes, strict=True):
        assert len(set(column.tolist())) == k
        assert column.min() >= 0 and column.max() < size


def test_every_ordered_choice_is_equally_likely() -> None:
    rows = 120_000
    random = bits(key_of("orders"), np.arange(4 * rows, dtype=np.uint64)).reshape(4, rows)
    first, second = choose(random, np.full(rows, 4), 2)
    counts = np.bincount(first * 4 + second, minlength=16)
    seen = counts[counts > 0]
    assert len(seen) == 12  # ordered pairs of 4
    assert ((seen - rows / 12) ** 2 / (rows / 12)).sum() < 31.3  # 11 degrees of freedom, p = 0.001


def test_support_and_query_never_overlap(small_pool: Pool) -> None:
    table = draw(SPEC, small_pool, 0)
    both = np.concatenate([table.support, table.query], 2)
    assert all(len(set(row)) == both.shape[2] for row in both.reshape(-1, both.shape[2]).tolist())
    owner = np.repeat(np.arange(len(small_pool.counts)), small_pool.counts)
    assert (owner[both] == table.classes[:, :, None]).all()  # and every item is of its class


def test_classes_of_one_split_never_appear_in_another(small_pool: Pool) -> None:
    used = {s: set(draw(replace(SPEC, table=s, split=s), small_pool, 0).classes.ravel().tolist()) for s in ("train", "val", "gate", "test")}
    for a in used:
        assert used[a] <= set(small_pool.split(a).tolist())
        assert all(not used[a] & used[b] for b in used if b != a)
    groups = {s: {small_pool.groups[c] for c in classes} for s, classes in used.items()}
    assert not groups["test"] & (groups["train"] | groups["val"] | groups["gate"])


def test_tasks_within_a_group_keep_to_it(small_pool: Pool) -> None:
    table = draw(replace(SPEC, within="group"), small_pool, 0)
    homes = np.array(small_pool.groups)[table.classes]
    assert (homes == homes[:, :1]).all()
    assert set(homes[:, 0]) == {"a", "b", "c"}


def test_task_i_does_not_depend_on_how_many_are_drawn(small_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(SPEC, small_pool, 7)
    part = draw(SPEC, small_pool, 7, first=1_234, count=50)
    monkeypatch.setattr(tasksets, "CHUNK", 17)
    chunked = draw(SPEC, small_pool, 7)
    for name in ("classes", "support", "query", "group"):
        assert (getattr(whole, name)[1_234:1_284] == getattr(part, name)).all()
        assert (getattr(whole, name) == getattr(chunked, name)).all()
    assert (whole.classes != draw(SPEC, small_pool, 8).classes).any()
    assert (whole.classes != draw(replace(SPEC, table="val"), small_pool, 7).classes).any()


def test_every_class_is_drawn_equally_often(small_pool: Pool) -> None:
    table = draw(replace(SPEC, tasks=20_000), small_pool, 3)
    counts = np.bincount(table.classes.ravel(), minlength=len(small_pool.counts))[small_pool.split("train")]
    assert abs(counts / counts.mean() - 1).max() < 0.06


def test_another_process_draws_the_same_bytes(small_pool: Pool) -> None:
    here = hashlib.sha256(draw(SPEC, small_pool, 5).query.tobytes()).hexdigest()
    code = (
        "import hashlib; from components.domains.pool import open_pool; from components.tasksets import TaskSpec, draw;"
        f"print(hashlib.sha256(draw({SPEC!r}, open_pool({str(small_pool.path)!r}), 5).query.tobytes()).hexdigest())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == here


def test_a_table_reads_back_as_it_was_without_copying(small_pool: Pool, small_tasksets) -> None:
    read = read_table(small_tasksets, "train")
    drawn = draw(TaskSpec("train", "train", 4, 1, 2, "all", 50), small_pool, 0)
    for name in ("classes", "support", "query"):
        assert (getattr(read, name) == getattr(drawn, name)).all()
        assert not getattr(read, name).flags.owndata  # a view of Arrow's buffer
    assert np.shares_memory(read.head(5).support, read.support)


def test_a_corrupt_or_missing_table_is_told(small_tasksets, tmp_path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(small_tasksets, folder)
    (folder / "val.parquet").write_bytes((folder / "val.parquet").read_bytes()[:-100])
    for name in ("val", "gone"):
        with pytest.raises(InputError, match="must be complete and readable") as told:
            read_table(folder, name)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "change, words",
    [({"way": 40}, "way=40 needs 40 classes in split 'train'"), ({"way": 15, "within": "group"}, "in one group"), ({"shot": 9}, "items a class")],
)
def test_more_than_the_pool_has_is_told(small_pool: Pool, change: dict, words: str) -> None:
    with pytest.raises(InputError, match="5ma115") as told:
        draw(replace(SPEC, **change), small_pool, 0)
    assert words in str(told.value)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("experiment/*.yaml")))
def test_where_a_class_is_a_task_by_itself_intervals_are_over_classes(name: str) -> None:
    config = compose_plain([f"experiment={name}"])
    if config["tasks"]["way"] == 1:
        assert config["evaluation"]["within"] == "group"


def test_tasks_of_the_same_wave_are_one_group(tmp_path: Path) -> None:
    config = load(["experiment=sinusoid", "domain.source.functions=60"])
    write_pool(sinusoid.build(OPTIONS["sinusoid"](**config.domain.source)), config.domain.splits, "sinusoid", "x" * 64, tmp_path)
    table = draw(TaskSpec("test-1w5s", "test", 1, 5, 5, config.evaluation.within, 200), open_pool(tmp_path), 0)
    waves = table.classes[:, 0]
    assert len(set(zip(waves, table.group, strict=True))) == len(set(waves)) == len(set(table.group)) < 200
