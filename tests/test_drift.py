"""Drift: the same tasks then and now, and when a fall is one."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tasks_for_tests import spec

from components.domains.pool import Pool, open_pool
from components.drift import compare
from components.evaluation import evaluate
from components.inputs import InputError
from components.learners import store
from components.tasksets import TaskSpec, write_tasksets
from flows.drift import judge

ASKED = (5, "all", 3)  # query, within, seed


@pytest.fixture
def clear_pool(small_pool: Pool, tmp_path: Path) -> Pool:
    """The small pool with a picture of its own for each gate class, which even untrained features tell apart."""
    shutil.copytree(small_pool.path, tmp_path / "clear")
    inputs, random = np.load(tmp_path / "clear/inputs.npy"), np.random.default_rng(0)
    for c in small_pool.split("gate"):
        items = small_pool.items(np.array([c]))
        inputs[items] = random.integers(30, 220, inputs.shape[1:]) + random.integers(-30, 30, inputs[items].shape)
    np.save(tmp_path / "clear/inputs.npy", inputs)
    return open_pool(tmp_path / "clear")


@pytest.fixture
def then(clear_pool: Pool, tmp_path: Path) -> tuple[str, str]:
    """A learner's folder, and the file of what it scored on sixty gate tasks of the clear pool."""
    learner = store.build(spec("protonet"), 1)
    store.save(learner, spec("protonet"), tmp_path / "learner", {"domain": "small", "trained_on": []})
    write_tasksets([TaskSpec("gate-3w2s", "gate", 3, 2, 5, "all", 60)], clear_pool, 3, tmp_path / "tasks")
    evaluate({"fused": learner}, {}, {}, ["3w2s"], "gate", clear_pool, str(tmp_path / "tasks"), tmp_path)
    return str(tmp_path / "learner"), str(tmp_path / "scores-gate.parquet")


def changed(pool: Pool, folder: Path, noise: bool = False, renamed: str = "") -> str:
    """Copy a pool, the pictures of its gate classes replaced by noise, or one class renamed."""
    shutil.copytree(pool.path, folder)
    if noise:
        inputs = np.load(folder / "inputs.npy")
        items = pool.items(pool.split("gate"))
        inputs[items] = np.random.default_rng(0).integers(0, 256, inputs[items].shape, dtype=np.uint8)
        np.save(folder / "inputs.npy", inputs)
    if renamed:
        table = pq.read_table(folder / "classes.parquet")
        names = ["other" if name == renamed else name for name in table["name"].to_pylist()]
        pq.write_table(table.set_column(table.column_names.index("name"), "name", pa.array(names)), folder / "classes.parquet")
    return str(folder)


def test_on_unchanged_data_nothing_has_fallen(clear_pool: Pool, then: tuple[str, str]) -> None:
    found = compare(then[0], "fused", then[1], str(clear_pool.path), *ASKED)
    assert (found["paired"], found["tasks"]) == (60, 60)
    assert found["difference/accuracy"] == found["difference/accuracy_ci95"] == 0
    assert found["now/accuracy"] == found["promoted/accuracy"] == np.mean(pq.read_table(then[1])["score"].to_numpy())
    assert not judge(found, "accuracy", 0.0)[0]


def test_pictures_that_became_noise_are_a_fall(clear_pool: Pool, then: tuple[str, str], tmp_path: Path) -> None:
    found = compare(then[0], "fused", then[1], changed(clear_pool, tmp_path / "noise", noise=True), *ASKED)
    assert found["paired"] == 60
    assert found["now/accuracy"] == pytest.approx(1 / 3, abs=0.07)  # chance
    assert found["difference/accuracy"] == pytest.approx(found["now/accuracy"] - found["promoted/accuracy"])
    fell, told = judge(found, "accuracy", 0.0)
    assert fell and told.endswith("fell")
    assert not judge(found, "accuracy", 1.0)[0]  # no fall is larger than that


def test_only_tasks_of_the_same_classes_are_paired(clear_pool: Pool, then: tuple[str, str], tmp_path: Path) -> None:
    name = clear_pool.classes["name"].to_pylist()[int(clear_pool.split("gate")[0])]
    other = changed(clear_pool, tmp_path / "renamed", renamed=name)
    write_tasksets([TaskSpec("gate-3w2s", "gate", 3, 2, 5, "all", 60)], open_pool(other), 3, tmp_path / "again")
    asked = pq.read_table(tmp_path / "again" / "gate-3w2s.parquet")["classes"].to_pylist()
    names = open_pool(other).classes["name"].to_pylist()
    without = sum("other" not in [names[c] for c in task] for task in asked)
    assert compare(then[0], "fused", then[1], other, *ASKED)["paired"] == without < 60


@pytest.mark.parametrize(
    ("score", "mean", "half", "margin", "fell"),
    [("accuracy", -0.05, 0.04, 0.0, True), ("accuracy", -0.05, 0.06, 0.0, False), ("accuracy", -0.05, 0.04, 0.02, False), ("mse", 0.2, 0.1, 0.0, True)],
)
def test_the_whole_interval_must_lie_below(score: str, mean: float, half: float, margin: float, fell: bool) -> None:
    told = {"paired": 50, "tasks": 60, f"difference/{score}": mean, f"difference/{score}_ci95": half}
    assert judge(told, score, margin)[0] is fell
    assert judge(told | {"paired": 29}, score, margin) == (False, judge(told | {"paired": 29}, score, margin)[1])


def test_scores_of_an_older_version_are_told(clear_pool: Pool, then: tuple[str, str], tmp_path: Path) -> None:
    pq.write_table(pq.read_table(then[1]).drop_columns(["classes"]), tmp_path / "old.parquet")
    with pytest.raises(InputError, match="must tell the classes"):
        compare(then[0], "fused", str(tmp_path / "old.parquet"), str(clear_pool.path), *ASKED)
