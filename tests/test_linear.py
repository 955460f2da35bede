"""Linear models of values: what they are fitted to, what chooses how far a task moves them, and that they are stored and fused as they are."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from sources import ratings_file as own

from components.contracts import SplitsSection
from components.domains import ratings
from components.domains.options import RatingsOptions
from components.domains.pool import open_pool, write_pool
from components.examination import tuning_tasks
from components.fusion import linear_member
from components.inputs import InputError
from components.learners import store
from components.learners.fused import join
from components.learners.learner import learner_size
from components.learners.reference import Linear
from components.linear import DOUBTS, RIDGES, biases, head, member, references
from components.objectives import OBJECTIVES
from components.tasks import Examples
from components.tasksets import TUNING, TaskSpec, batch, draw, write_tasksets
from flows.checks import check_new
from flows.config import load

OPTIONS = replace(RatingsOptions(**load(["experiment=ratings"]).domain.source), co_factors=2)
THREE = SplitsSection(train=None, val=[], gate=[], test=[], shares={"test": 0.3, "val": 0.3})


def test_the_linear_references_read_a_pool_as_it_lies_on_disk(tmp_path: Path) -> None:
    write_pool(ratings.build(replace(OPTIONS, file=str(own(tmp_path, users=40)), min_ratings=5, factors=2)), THREE, "ratings", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    section = replace(load(["experiment=ratings"]).evaluation, settings=["1w3s"], query=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as torch's of read-only memory
        found = references(pool, tuning_tasks(pool, section, 0), OBJECTIVES["squared_error"])
    train = np.asarray(pool.targets)[pool.items(pool.split("train"))]
    mean = found["mean"].predict(
        found["mean"].adapt(Examples(torch.ones(1, 3, pool.inputs.shape[1]), torch.ones(1, 3), 1)), torch.zeros(1, 2, pool.inputs.shape[1])
    )
    assert mean.flatten().numpy() == pytest.approx(train.sum() / (len(train) + 1), abs=1e-6)


def test_the_strength_of_a_linear_reference_is_the_best_by_the_objectives_own_score(tmp_path: Path) -> None:
    write_pool(ratings.build(replace(OPTIONS, file=str(own(tmp_path, users=40)), min_ratings=5, factors=2)), THREE, "ratings", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    section = replace(load(["experiment=ratings"]).evaluation, settings=["1w3s"], query=4)
    items, table = pool.items(pool.split("val")), draw(TaskSpec("references-1w3s", "val", 1, 3, 4, section.within, TUNING), pool, 0)
    task = batch(table, np.arange(TUNING), torch.from_numpy(np.array(pool.inputs)), torch.from_numpy(np.array(pool.targets)))
    assert set(np.unique(table.support)) <= set(items)
    for name in ("ranking", "squared_error"):
        found = references(pool, tuning_tasks(pool, section, 0), OBJECTIVES[name])
        for role, alone in (("linear", False), ("linear-constant", True)):
            reached = [OBJECTIVES[name].score(Linear(found[role].head, float(r), alone)(task), task.query.y).mean().item() for r in RIDGES]
            own_score = OBJECTIVES[name].score(found[role](task), task.query.y).mean().item()
            assert own_score == pytest.approx(max(reached) if name == "ranking" else min(reached), abs=1e-6), (name, role)
            assert min(reached) < max(reached) or (name, alone) == ("ranking", True), "a constant changes no order"


def test_a_linear_model_hears_every_user_alike_and_is_stored_as_it_is(tmp_path: Path) -> None:
    table = pyarrow.csv.read_csv(own(tmp_path, users=40)).to_pandas()
    few = table[~table.user.isin(sorted(table.user.unique())[::2]) | (table.groupby("user").cumcount() < 7)]  # half of the users rate less
    few.to_csv(tmp_path / "few.csv", index=False)
    source = ratings.build(replace(OPTIONS, file=str(tmp_path / "few.csv"), min_ratings=5, factors=2))
    write_pool(source, THREE, "ratings", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    train = pool.split("train")
    assert len(set(pool.counts[train])) > 1
    means = [np.asarray(pool.targets)[pool.first[c] : pool.first[c] + pool.counts[c]].mean() for c in train]
    rows = pool.counts[train].sum()
    constant = head(pool, [pool.input_shape[0]])
    assert constant[-1].item() == pytest.approx(np.mean(means) * rows / (rows + 1), abs=1e-6) and not constant[:-1].any()
    tasks = tuning_tasks(pool, replace(load(["experiment=ratings"]).evaluation, settings=["1w3s"], query=4), 0)
    learner, spec = member(pool, tasks)
    store.save(learner, spec, tmp_path / "linear", {"domain": "ratings"}, tmp_path / "pool")
    store.save(learner, spec, tmp_path / "frozen", {"domain": "ratings", "frozen": True})
    write_tasksets([TaskSpec("val", "val", 1, 3, 4, "group", 50)], pool, 0, tmp_path / "tasks")
    beside = linear_member(str(tmp_path / "frozen"), pool, str(tmp_path / "tasks"), tmp_path / "beside")
    assert store.about(beside) == {"domain": "ratings", "objective": "linear", "start": None}, "it has no backbone that could be frozen"
    again, _, _ = store.load(tmp_path / "linear")
    assert torch.equal(again(tasks[0]), learner(tasks[0])) and learner_size(again) == pool.input_shape[0] + 1
    both = join([again, again], "mixture", [0.5, 0.5], False, pool.input_shape)
    assert torch.allclose(both(tasks[0]), learner(tasks[0]), atol=1e-6)


def test_users_by_whom_references_are_tuned_are_looked_at_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pool(
        ratings.build(replace(OPTIONS, file=str(own(tmp_path, users=40)), min_ratings=9, factors=2)),
        replace(THREE, shares=THREE.shares | {"gate": 0.2}),
        "ratings",
        "x" * 64,
        tmp_path / "pool",
    )
    pool = open_pool(tmp_path / "pool")
    config = load(["experiment=ratings", "evaluation.settings=[1w5s]", "evaluation.query=4", "tasks.shot=1", "tasks.query=1"])
    check_new(config, pool.path)
    column, counts = pool.classes.column_names.index("count"), pool.counts.copy()
    counts[pool.split("val")] = 8  # enough for validation tasks
    fewer = replace(pool, classes=pool.classes.set_column(column, "count", pa.array(counts)))
    monkeypatch.setattr("components.domains.pool.open_pool", lambda path: fewer)
    with pytest.raises(InputError, match=r"references-1w5s: shot=5 and query=4 need 9 items a class in split 'val'.*has 8"):
        check_new(config, pool.path)


def test_biases_are_shrunk_means_of_what_was_said_tuned_on_validation_users(tmp_path: Path) -> None:
    table = pyarrow.csv.read_csv(own(tmp_path, users=40)).to_pandas()
    once = np.arange(len(table)) % 4 == 0  # every fourth rating is of an item that nobody else rated
    table.loc[once, "item"] = [f"rare {i}" for i in range(once.sum())]
    table.to_csv(tmp_path / "rare.csv", index=False)
    write_pool(ratings.build(replace(OPTIONS, file=str(tmp_path / "rare.csv"), min_ratings=5, factors=2)), THREE, "ratings", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    tasks = tuning_tasks(pool, replace(load(["experiment=ratings"]).evaluation, settings=["1w3s"], query=4), 0)
    found = biases(pool, tasks, OBJECTIVES["squared_error"])
    train, targets = pool.split("train"), np.asarray(pool.targets).astype(np.float64)
    names = pq.read_table(pool.path / "items.parquet", columns=["note"])["note"].to_pylist()
    said: dict[str, list[float]] = {}
    for i in pool.items(train).tolist():
        said.setdefault(names[i], []).append(targets[i])
    of_all = np.mean([value for values in said.values() for value in values])

    def bias(i: int, doubt: float) -> float:
        values = said.get(names[i], [])
        return float(np.sum(np.array(values) - of_all) / (len(values) + doubt)) if values else 0.0

    def error(doubt: float, ridge: float) -> float:
        """The mean squared error on the validation tasks, from the ratings themselves."""
        left = targets - np.array([bias(i, doubt) for i in range(len(names))])
        left -= np.mean([left[pool.items(np.array([c]))].mean() for c in train])
        user = left[support].sum(1, keepdims=True) / (support.shape[1] + ridge)
        return float(np.square(left[query] - user).mean())

    table = draw(TaskSpec("references-1w3s", "val", 1, 3, 4, "group", TUNING), pool, 0)
    support, query = (part.reshape(TUNING, -1) for part in (table.support, table.query))
    least = error(found.doubt, found.ridge.item())
    assert (found(tasks[0])[..., 0] - tasks[0].query.y).square().mean().item() == pytest.approx(least, rel=2e-3)  # a catalogue keeps three decimals
    assert all(least <= error(doubt, ridge) + 2e-3 for doubt in DOUBTS for ridge in RIDGES[::4])
