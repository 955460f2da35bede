"""Ratings: time decides what is known, items are described by training users alone, altered archives are refused; and the whole chain."""

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from workspace import Workspace

from components.contracts import InputError, SplitsSection
from components.domains import ratings
from components.domains.options import RatingsOptions
from components.domains.pool import open_pool, write_pool
from components.tasksets import TaskSpec, draw
from flows.config import load

OPTIONS = RatingsOptions(**load(["experiment=ratings"]).domain.source)
SPLITS = SplitsSection(val=[], gate=[], test=[], shares={"test": 0.5})


def own(folder: Path, users: int = 12, each: int = 9, seed: int = 0) -> Path:
    """Write ratings of users whose taste is one number, of items with one number each, in an order that is not that of time."""
    random = np.random.default_rng(seed)
    taste, quality = random.normal(size=users), random.normal(size=20)
    user = np.repeat(np.arange(users), each)
    item = np.concatenate([random.permutation(20)[:each] for _ in range(users)])
    value = np.clip(3 + taste[user] * quality[item], 1, 5).round(1)
    shuffled = random.permutation(len(user))
    columns = {"user": [f"u{u:02}" for u in user], "item": [f"film {i}" for i in item], "rating": value, "time": np.tile(np.arange(each), users)}
    pyarrow.csv.write_csv(pa.table(columns).take(shuffled), folder / "own.csv")
    return folder / "own.csv"


def test_a_user_is_a_class_whose_items_are_in_the_order_of_time(tmp_path: Path) -> None:
    path = own(tmp_path)
    source = ratings.build(replace(OPTIONS, file=str(path), min_ratings=5, factors=2))
    assert [c.count for c in source.classes] == [9] * 12 and source.classes[0].name == source.classes[0].group == "u00"
    told = pyarrow.csv.read_csv(path).sort_by([("user", "ascending"), ("time", "ascending")])
    assert source.item_notes == told["item"].to_pylist()
    middle = (max(told["rating"].to_pylist()) + min(told["rating"].to_pylist())) / 2
    assert source.targets == pytest.approx(np.array(told["rating"]) - middle, abs=1e-6)


def test_a_task_knows_a_users_first_ratings_and_asks_for_later_ones(tmp_path: Path) -> None:
    source = ratings.build(replace(OPTIONS, file=str(own(tmp_path)), min_ratings=5, factors=2))
    write_pool(source, SPLITS, "ratings", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    table = draw(TaskSpec("test", "test", 1, 3, 4, "group", 200), pool, 0)
    first = pool.first[table.classes]
    assert (table.support - first[..., None] == np.arange(3)).all()
    later = table.query - first[..., None]
    assert later.min() == 3 and later.max() == 8
    assert all(len(set(row)) == 4 for row in later[:, 0])
    assert len({tuple(sorted(row)) for row in later[:, 0]}) > 10, "which later ones are asked for is drawn"


def test_what_test_users_say_describes_no_item(tmp_path: Path) -> None:
    path = own(tmp_path)
    options = replace(OPTIONS, file=str(path), min_ratings=5, factors=2)
    source = ratings.build(options)
    tests = {c.name for c in source.classes if SPLITS.split_of(c.group, c.name) == "test"}
    assert 0 < len(tests) < 12
    table = pyarrow.csv.read_csv(path).to_pandas()
    table.loc[table.user.isin(tests), "rating"] = 6 - table[table.user.isin(tests)].rating  # they change their minds
    table.to_csv(tmp_path / "changed.csv", index=False)
    inputs = []
    for number, file in enumerate((path, tmp_path / "changed.csv")):
        write_pool(ratings.build(replace(options, file=str(file))), SPLITS, "ratings", "x" * 64, tmp_path / str(number))
        inputs.append(open_pool(tmp_path / str(number)).inputs)
    assert np.array_equal(*inputs)


def test_item_means_are_shrunk_and_factors_are_those_of_numpy(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = np.stack([random.integers(0, 15, 80), random.integers(0, 10, 80), random.normal(size=80)], 1)
    rows = rows[np.unique(rows[:, 0] * 100 + rows[:, 1], return_index=True)[1]]
    catalogue = ratings.Catalogue(3, 15, np.zeros((10, 0))).fitted(rows)
    assert catalogue.vectors is not None and catalogue.fold is not None
    vectors = catalogue.vectors[0]
    user, item, value = rows[:, 0].astype(int), rows[:, 1].astype(int), rows[:, 2]
    of_item = np.array([(value[item == i] - value.mean()).sum() / ((item == i).sum() + 5) for i in range(10)])
    assert vectors[:, 0] == pytest.approx(of_item, abs=6e-4)
    rest = value - value.mean() - of_item[item]
    of_user = np.array([rest[user == u].sum() / ((user == u).sum() + 5) for u in range(15)])
    dense = np.zeros((15, 10))
    dense[user, item] = rest - of_user[user]
    _, size, directions = np.linalg.svd(dense)
    wanted = np.abs(directions[:3].T * size[:3]) / np.sqrt(len(value) / 10)
    assert np.abs(vectors[:, 2:])[:, ::-1] == pytest.approx(wanted, abs=1e-3)


def test_a_training_users_own_ratings_describe_no_item_to_them(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    rows = np.stack([np.repeat(np.arange(20), 8), np.concatenate([random.permutation(12)[:8] for _ in range(20)]), random.normal(size=160)], 1)
    other = rows.copy()
    other[rows[:, 0] == 3, 2] *= -1
    before, after = (ratings.Catalogue(0, 20, np.zeros((12, 0))).fitted(r).read(r) for r in (rows, other))
    own = rows[:, 0] == 3
    assert np.array_equal(before[own], after[own])
    assert not np.array_equal(before[~own], after[~own])


LINES = {
    "ml-latest-small": ("ratings.csv", "userId,movieId,rating,timestamp\n7,31,2.5,100\n", "movies.csv", "movieId,title,genres\n31,A (1990),Comedy|War\n"),
    "ml-100k": ("u.data", "7\t31\t2.5\t100\n", "u.item", "31|A (1990)|01-Jan-1990||url" + "|0" * 4 + "|1|1\n"),
    "ml-1m": ("ratings.dat", "7::31::2.5::100\n", "movies.dat", "31::A (1990)::Comedy|War\n"),
}


@pytest.mark.parametrize("release", LINES)
def test_each_release_is_read_in_its_own_format_and_counted(tmp_path: Path, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rated, rows, films, titles = LINES[release]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"{release}/{rated}", rows + rows.splitlines()[-1].replace("31", "32") + "\n")
        archive.writestr(f"{release}/{films}", titles)
    with pytest.raises(InputError, match=r"got 2 of 1 \(an altered copy\)"):
        ratings.read_movielens(tmp_path / "a.zip", release)
    monkeypatch.setitem(ratings.PUBLISHED, release, {(2, 1)})
    told = ratings.read_movielens(tmp_path / "a.zip", release)
    assert (told.user.tolist(), told.item.tolist(), told.value.tolist(), told.time.tolist()) == (["7", "7"], ["31", "32"], [2.5, 2.5], [100, 100])
    assert told.sides["31"][-1] == 1.0 and sum(told.sides["31"][:-1]) == 2


def test_a_file_without_a_needed_column_or_with_text_for_numbers_is_named(tmp_path: Path) -> None:
    path = own(tmp_path)
    table = pyarrow.csv.read_csv(path)
    for changed, told in (
        (table.drop_columns(["time"]), "lacks time"),
        (table.set_column(3, "time", pa.array(["noon"] * len(table))), "numbers in column time"),
        (table.slice(0, 9), "needs four users with 5 ratings"),
    ):
        pyarrow.csv.write_csv(changed, tmp_path / "changed.csv")
        with pytest.raises(InputError, match=told):
            ratings.build(replace(OPTIONS, file=str(tmp_path / "changed.csv"), min_ratings=5))
    (tmp_path / "movielens").mkdir()
    (tmp_path / "movielens" / "ml-1m.zip").write_text("no archive")
    with pytest.raises(InputError, match=r"must be MovieLens' archive ml-1m.zip"):
        ratings.build(replace(OPTIONS, release="ml-1m"), str(tmp_path))


@pytest.mark.slow
def test_the_chain_runs_on_ratings_and_adaptation_helps(new_workspace: Callable[[], Workspace], tmp_path: Path) -> None:
    workspace = new_workspace()
    file = own(tmp_path, users=120, each=14)
    small = [f"{where}.fit.{name}" for where in ("base", "learner", "student.learner", "fusion") for name in ("steps=200", "epoch_steps=100")]
    small += ["evaluation.tasks=60", "evaluation.gate_tasks=30", "evaluation.scratch_tasks=4", "tasks.query=4", "evaluation.query=4", "tasks.shot=8"]
    asked = ["experiment=ratings", f"domain.source.file={file}", "domain.source.min_ratings=14", "evaluation.settings=[1w2s,1w8s]", "domain.source.factors=2"]
    out = workspace.retrain(*asked, *small).stdout
    assert "ratings version 1 is champion" in out
    metrics = workspace.metrics()
    assert metrics["test/1w8s/teacher/mse"] < 0.8 * metrics["test/1w2s/teacher/mse"], "eight ratings tell a taste of one number better than two"
    assert metrics["test/1w8s/fused/mse"] < metrics["test/1w8s/nearest/mse"]
    assert "ran: nothing" in workspace.retrain(*asked, *small).stdout
