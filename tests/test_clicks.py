"""Ratings without values: what is drawn beside what a user touched, and what it is worth; and what a user likes is ranked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sources import Chain
from sources import touches_file as touches

from components.contracts import CELLS, SplitsSection
from components.domains import ratings
from components.domains.cells import new_ones
from components.domains.options import RatingsOptions
from components.domains.pool import open_pool, write_pool
from components.domains.shelf import Known, Shelf
from components.domains.touches import untouched
from components.draws import bits, key_of
from components.inputs import InputError
from components.splits import split_of
from flows.config import load

CLICKS = replace(RatingsOptions(**load(["experiment=clicks"]).domain.source), co_factors=2)
SPLITS = SplitsSection(train=None, val=[], gate=[], test=[], shares={"test": 0.5})


def test_beside_each_touched_item_stand_others_that_the_user_had_not_touched_by_then(tmp_path: Path) -> None:
    path = touches(tmp_path)
    told = pyarrow.csv.read_csv(path).sort_by([("user", "ascending"), ("time", "ascending")]).to_pandas()
    again = told.assign(time=told.time + 100)  # everything is touched once more, later
    pyarrow.csv.write_csv(pa.Table.from_pandas(pd.concat([again, told])), path)
    source = ratings.build(replace(CLICKS, file=str(path), min_ratings=6, factors=2, negatives=2))
    assert [c.count for c in source.classes] == [18] * 12
    assert source.targets.tolist() == [0.5, -0.5, -0.5] * 72  # 1 and 0, centred
    by_user = np.array(source.item_notes).reshape(12, 6, 3)
    assert by_user[:, :, 0].ravel().tolist() == told["item"].tolist()
    for user, items in zip(source.classes, by_user, strict=True):
        assert len(set(items[:, 1:].ravel())) == 12, "no item twice"
        own = told[told.user == user.name]["item"].tolist()
        assert not any(set(items[i, 1:]) & set(own[: i + 1]) for i in range(6))
    others = ratings.build(replace(CLICKS, file=str(path), min_ratings=6, factors=2, negatives=2, seed=1))
    assert (np.array(others.item_notes).reshape(12, 6, 3)[:, :, 0] == by_user[:, :, 0]).all() and others.item_notes != source.item_notes


def test_beside_a_new_item_stand_new_ones_and_cells_ask_for_touches_with_theirs(tmp_path: Path) -> None:
    path = touches(tmp_path, users=60, each=14, items=60)
    table = pyarrow.csv.read_csv(path).sort_by([("user", "ascending"), ("time", "ascending")]).to_pandas()
    table["new"] = new_ones(table.item.tolist(), 0.3)
    options = replace(CLICKS, file=str(path), min_ratings=4, factors=2, new_items=0.3, cells=2)
    write_pool(ratings.build(options), replace(SPLITS, shares={"test": 0.4, "val": 0.1}), "clicks", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    notes = np.array(pq.read_table(tmp_path / "pool" / "items.parquet", columns=["note"])["note"].to_pylist())
    new = new_ones(notes.tolist(), 0.3)
    assert pool.cells == CELLS
    for cls in range(len(pool.classes)):
        own = pool.items(np.array([cls]))
        assert np.asarray(pool.targets)[own].tolist() == [0.5, -0.5] * (len(own) // 2)
        assert np.array_equal(new[own[::2]], new[own[1::2]]), "that an item is new does not tell which one was touched"
    assert not new[pool.items(pool.split("train"))].any()
    shelf = Shelf.open(pool.path, pool.kept["ratings"])
    assert np.array_equal(shelf.new, new_ones(shelf.names, 0.3))
    cls = int(pool.split("test")[0])  # all that they touched, old and new, as a task has it
    touched = notes[pool.items(np.array([cls]))]
    user = Known(pool.groups[cls], np.array([shelf.place[name] for name in touched[::2]]), np.ones(len(touched) // 2), np.zeros(0))
    assert new_ones(touched.tolist(), 0.3).any()
    assert np.array_equal(shelf.examples(user)[0], pool.inputs[pool.items(np.array([cls]))]), "a model draws as its data did"
    for cell in CELLS:
        for cls in pool.split(cell):
            own = table[table.user == pool.groups[cls]]
            known, asked = own[~own.new].item.tolist(), own[own.new == cell.endswith("new")].item.tolist()[-2:]
            touched = notes[pool.items(np.array([cls]))[::2]].tolist()
            assert touched[-2:] == asked and touched[:-2] == known[:-2], "the first known ones, then the last two of the cell's kind"


def test_what_is_drawn_is_a_function_of_seed_user_and_position(tmp_path: Path) -> None:
    touched = np.array([4, 9, 2, 7])
    drawn = untouched(touched, 50, 3, 5, "ann")
    order = sorted(range(50), key=lambda i: int(bits(key_of("untouched", 5, "ann"), np.array([i]))[0]))
    for i in range(4):
        free = [item for item in order if item not in touched[: i + 1]]
        assert drawn[i].tolist() == free[:3], "the first three in the drawn order"
        order = free[3:]
    assert untouched(touched, 50, 3, 5, "bob").tolist() != drawn.tolist()
    often = np.stack([untouched(touched, 20, 2, 0, str(user)) for user in range(4000)])
    for i in range(4):
        count = np.bincount(often[:, i].ravel(), minlength=20)
        assert (count[touched[: i + 1]] == 0).all() and (count[touched[i + 1 :]] > 0).all(), "what is touched later is not left out"
    count = np.bincount(often.ravel(), minlength=20)
    assert np.abs(np.delete(count, touched) / np.delete(count, touched).mean() - 1).max() < 0.1, "each of the 16 others as often"
    with pytest.raises(InputError, match="need 16 items, but there are 15"):
        untouched(touched, 15, 3, 0, "ann")


def test_examples_tell_nothing_of_what_is_touched_after_them() -> None:
    known = np.arange(20)
    for later in (np.arange(20, 60), np.arange(60, 100)):
        whole = untouched(np.concatenate([known, later]), 200, 1, 0, "ann")
        assert whole[:20].tolist() == untouched(known, 200, 1, 0, "ann").tolist()


def test_users_who_touched_nearly_all_are_left_out_and_popularity_counts_touches_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = touches(tmp_path)
    table = pyarrow.csv.read_csv(path)
    greedy = pa.table({"user": ["u999"] * 16, "item": [f"page {i}" for i in range(16)], "time": list(range(16))})
    pyarrow.csv.write_csv(pa.concat_tables([table, greedy]), path)
    source = ratings.build(replace(CLICKS, file=str(path), min_ratings=6, factors=0, co_factors=0))
    assert [c.name for c in source.classes] == [f"u{i:03}" for i in range(12)] and "1 users left out" in capsys.readouterr().err
    write_pool(source, SPLITS, "clicks", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    shelf = Shelf.open(pool.path, pool.kept["ratings"])
    trains = [c.name for c in source.classes if split_of(SPLITS, c.group, c.name) == "train"]
    told = table.to_pandas()
    count = told[told.user.isin(trains)].groupby("item").size()
    assert pool.popularity == 1
    assert shelf.vectors[:, 1] == pytest.approx([np.log1p(count.get(name, 0)) / 5 for name in shelf.names], abs=6e-4)


def test_what_a_new_user_touched_is_read_as_a_task_would_be(tmp_path: Path) -> None:
    path = touches(tmp_path)
    source = ratings.build(replace(CLICKS, file=str(path), min_ratings=6, factors=2))
    write_pool(source, SPLITS, "clicks", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    shelf = Shelf.open(pool.path, pool.kept["ratings"])
    cls = pool.split("test")[0]
    own, name = pool.items(np.array([cls])), source.classes[cls].name
    table = pyarrow.csv.read_csv(path).sort_by("time")
    table = table.filter(pa.compute.equal(table["user"], name))
    again = table.set_column(2, "time", pa.compute.add(table["time"], 50)).take([3, 1, 0, 5, 4, 2])  # what is touched again counts once
    pyarrow.csv.write_csv(pa.concat_tables([again, table]), tmp_path / "mine.csv")
    known, *_ = shelf.read(tmp_path / "mine.csv")
    inputs, values = shelf.examples(known[0])
    assert np.array_equal(inputs, pool.inputs[own]) and np.array_equal(values, pool.targets[own])
    assert [shelf.names[i] for i in known[0].items] == table["item"].to_pylist()
    most = len(shelf.names) // 2
    for count in (most, most + 1):
        pyarrow.csv.write_csv(pa.table({"item": shelf.names[:count]}), tmp_path / "all.csv")
        if count == most:
            assert len(shelf.read(tmp_path / "all.csv")[0][0].items) == most
    with pytest.raises(InputError, match=f"must be {most} at most, got {most + 1}: .*Give the newest {most}"):
        shelf.read(tmp_path / "all.csv")


@pytest.mark.slow
def test_what_a_user_likes_is_ranked_from_what_they_touched(chain: Callable[[str], Chain], tmp_path: Path) -> None:
    workspace = chain("clicks").workspace
    metrics = workspace.metrics()
    assert metrics["test/1w8s/fused/pairs"] > metrics["test/1w8s/popularity/pairs"] + 0.1, "popularity knows no taste"
    assert metrics["test/1w8s/fused/ndcg_5"] > metrics["test/1w8s/mean/ndcg_5"]
    (tmp_path / "mine.csv").write_text("item\npage 1\npage 3\npage 5\npage 7\n")
    told = workspace.run("flows.adapt", "model=models:/clicks@champion", f"support={tmp_path / 'mine.csv'}", f"out={tmp_path / 'ranked.csv'}").stdout
    assert "26 items ranked for 1 user from 4 touched items" in told
    ranked = pyarrow.csv.read_csv(tmp_path / "ranked.csv")
    assert ranked.column_names == ["item", "title", "score"] and ranked["score"].to_pylist() == sorted(ranked["score"].to_pylist(), reverse=True)
    best = [int(name.removeprefix("page ")) for name in ranked["item"].to_pylist()[:8]]
    assert sum(item % 2 for item in best) >= 7, "who likes odd pages is shown odd pages"
