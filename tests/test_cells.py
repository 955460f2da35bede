"""Cold start: what is held out trains nothing and describes nothing, and every cell asks its own users for its own items."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sources import FEW, SOURCES, ratings_file
from workspace import Workspace

from components.contracts import CELLS, SplitsSection
from components.domains import ratings
from components.domains.cells import new_ones
from components.domains.options import RatingsOptions
from components.domains.pool import Pool, open_pool, write_pool
from components.domains.shelf import Shelf
from components.inputs import InputError
from components.plain import fingerprint, to_plain
from components.splits import split_of
from components.tasksets import TaskSpec, draw
from flows.config import load
from flows.versions import source_digest

SPLITS = SplitsSection(train=None, val=[], gate=[], test=[], shares={"test": 0.3, "val": 0.1, "gate": 0.1})
OPTIONS = replace(RatingsOptions(**load(["experiment=ratings"]).domain.source), min_ratings=4, factors=2, co_factors=2)
COLD = {"new_items": 0.3, "cells": 2}


def written(folder: Path, file: Path, **options: object) -> Pool:
    write_pool(ratings.build(replace(OPTIONS, file=str(file), **options)), SPLITS, "ratings", "x" * 64, folder)
    return open_pool(folder)


def told(file: Path) -> pd.DataFrame:
    """Return the ratings in the order of users and times, with the split of each user, whether the item is new, and its number among those of its kind."""
    table = pd.read_csv(file).sort_values(["user", "time"], ignore_index=True)
    table["split"] = [split_of(SPLITS, user, user) for user in table.user]
    table["new"] = new_ones(table.item.tolist(), COLD["new_items"])
    table["later"] = table.groupby(["user", "new"]).cumcount(ascending=False)  # 0: the last of its kind
    return table


def held_out(table: pd.DataFrame) -> pd.Series:
    """Return which ratings are to train nothing: of training users those of new items, and the last two of known ones where cells ask for them."""
    known, new = (table[table.new == kind].groupby("user").size().reindex(table.user, fill_value=0).to_numpy() for kind in (False, True))
    asked = (known >= 4 + 2) & (new >= 2)
    assert 10 < table[asked].user.nunique() < table.user.nunique()
    return (table.split == "train") & (table.new | (asked & (table.later < 2)))


def test_what_is_new_is_a_function_of_the_name() -> None:
    names = [f"film {i}" for i in range(4000)]
    new = new_ones(names, 0.2)
    assert new.mean() == pytest.approx(0.2, abs=0.02)
    assert new_ones(names[::-1][:100], 0.2).tolist() == new[::-1][:100].tolist()
    assert not (new & ~new_ones(names, 0.3)).any(), "a larger share holds the smaller one"
    assert not new_ones(names, 0.0).any()


def test_the_catalogue_and_training_are_those_of_a_file_without_what_is_held_out(tmp_path: Path) -> None:
    file = ratings_file(tmp_path, users=80, each=11)
    table = told(file)
    out = held_out(table)
    assert out.sum() > 100
    table[~out].drop(columns=["split", "new", "later"]).to_csv(tmp_path / "less.csv", index=False)
    cold, less = written(tmp_path / "cold", file, **COLD), written(tmp_path / "less", tmp_path / "less.csv")
    whole = written(tmp_path / "whole", file)
    vectors = [Shelf.open(pool.path, pool.kept["ratings"]).vectors for pool in (cold, less, whole)]
    assert np.array_equal(vectors[0], vectors[1]) and not np.array_equal(vectors[0], vectors[2])
    new = new_ones(Shelf.open(cold.path, cold.kept["ratings"]).names, COLD["new_items"])
    assert new.any() and not vectors[0][new].any() and vectors[0][~new, :2].any(1).all()
    for split in ("train", "val", "gate", "test"):
        found = [(pool.inputs[items], pool.targets[items]) for pool in (cold, less) for items in [pool.items(pool.split(split))]]
        if split != "train":  # they are asked for what they are asked for without cells
            own = whole.items(whole.split(split))
            assert np.array_equal(found[0][1], whole.targets[own])
        assert np.array_equal(found[0][0], found[1][0]) and np.array_equal(found[0][1], found[1][1])
        assert [cold.classes["name"][int(c)] for c in cold.split(split)] == [less.classes["name"][int(c)] for c in less.split(split)]
    other = table.assign(rating=np.where(out, 6 - table.rating, table.rating))
    other.to_csv(tmp_path / "other.csv", index=False)
    changed = written(tmp_path / "changed", tmp_path / "other.csv", **COLD)
    assert np.array_equal(changed.inputs, cold.inputs) and not np.array_equal(changed.targets, cold.targets)


def test_each_cell_asks_its_own_users_for_its_own_items_from_their_first_known_ratings(tmp_path: Path) -> None:
    file = ratings_file(tmp_path, users=80, each=11)
    table, pool = told(file), written(tmp_path / "pool", file, **COLD)
    notes, values = ratings_notes(pool), np.asarray(pool.targets) + 3  # ratings lie from 1 to 5
    assert pool.cells == CELLS
    for cell in CELLS:
        users, items = cell.split("-")
        tasks = draw(TaskSpec(f"test-1w3s-{cell}", cell, 1, 3, 2, "group", 100), pool, 0)
        groups = {pool.groups[c] for c in tasks.classes[:, 0]}
        assert {split_of(SPLITS, user, user) for user in groups} == {"train" if users == "known" else "test"} and len(groups) > 5
        for cls, support, query in zip(tasks.classes[:, 0], tasks.support[:, 0], tasks.query[:, 0], strict=True):
            own = table[table.user == pool.groups[cls]]
            first = own[~own.new].head(3)
            assert [notes[i] for i in support] == first.item.tolist() and values[support] == pytest.approx(first.rating.to_numpy(), abs=1e-6)
            asked = own[(own.new == (items == "new")) & (own.later < 2)]
            assert {notes[i] for i in query} == set(asked.item) and len(query) == 2
            for i in query:
                assert values[i] == pytest.approx(asked[asked.item == notes[i]].rating.iloc[0], abs=1e-6)
    with pytest.raises(InputError, match="need that many items before and among those asked for"):
        draw(TaskSpec("test-1w3s-new-new", "new-new", 1, 3, 3, "group", 10), pool, 0)


def ratings_notes(pool: Pool) -> list[str]:
    found: list[str] = pd.read_parquet(pool.path / "items.parquet").note.tolist()
    return found


def test_without_new_items_the_data_are_the_version_that_they_were() -> None:
    domain = load(["experiment=ratings"]).domain
    older = {name: value for name, value in domain.source.items() if name not in RatingsOptions.younger}
    splits = {name: value for name, value in to_plain(domain.splits).items() if value is not None}
    assert source_digest(domain) == fingerprint({"name": "ratings", "source": older | {"reading": RatingsOptions.reading}, "splits": splits})
    assert source_digest(replace(domain, source=domain.source | COLD)) != source_digest(domain)
    large = {name: domain.source | {"release": name} for name in ("ml-100k", "ml-1m")}
    plain = [fingerprint({"name": "ratings", "source": older | {"release": name}, "splits": splits}) for name in large]
    assert not {source_digest(replace(domain, source=source)) for source in large.values()} & set(plain), "these tell of their users since"


def test_what_cells_cannot_be_made_of_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ratings_file(tmp_path, users=80, each=11)
    with pytest.raises(InputError, match=r"cells=8 need four users with 12 ratings of known items and 8 of new ones, got 0\. Lower cells or min_ratings\."):
        ratings.build(replace(OPTIONS, file=str(file), new_items=0.3, cells=8))
    capsys.readouterr()
    ratings.build(replace(OPTIONS, file=str(file), **COLD))
    assert (
        capsys.readouterr().err
        == "4 of 20 items are new to who trains, and nothing describes them: neither genres and years nor columns of domain.source.describes\n"
    )


@pytest.mark.slow
def test_the_cells_are_reported_beside_the_test_split_and_decide_nothing(new_workspace, tmp_path: Path) -> None:
    workspace: Workspace = new_workspace()
    asked = [*FEW, *SOURCES["ratings"](workspace, tmp_path), f"domain.source.file={ratings_file(tmp_path, users=120, each=20)}"]
    asked += ["evaluation.settings=[1w8s]", "evaluation.scores=[mae]", "domain.source.min_ratings=12", "domain.source.new_items=0.2", "domain.source.cells=2"]
    out = workspace.retrain(*asked, "evaluation.query=2", "tasks.query=2").stdout
    evaluation = workspace.outputs("evaluate")[-1]["ref"]
    m = evaluation["metrics"]
    for name in ("mse", "mae"):
        for cell in CELLS:
            scores = pd.read_parquet(Path(evaluation["path"]) / f"scores-{cell}.parquet")
            for role in ("fused", "teacher", "linear", "popularity", "mean", "fused-minus-linear", "fused-minus-teacher"):
                own = scores[scores.role == role]["score" if name == "mse" else name]
                assert len(own) == 60 and m[f"{cell}/1w8s/{role}/{name}"] == pytest.approx(own.mean()) and m[f"{cell}/1w8s/{role}/{name}_ci95"] > 0
        lines = [line for line in out.split(f"\n{name}, 1w8s, users-items")[1].splitlines() if line.strip()]
        assert lines[0].split() == list(CELLS)
        row = next(line for line in lines if line.strip().startswith("fused - linear "))
        assert f"{m[f'known-new/1w8s/fused-minus-linear/{name}']:+.4f}" in row
    assert {name.split("/")[2] for name in m if name.startswith("gate/")} == {"fused"}, "there was no champion to compare with"
    parent = max(workspace.mlflow().search_runs(["1"]), key=lambda run: "stage.fused.run_id" in run.data.tags)
    assert parent.data.metrics["new-new/1w8s/fused/mae"] == m["new-new/1w8s/fused/mae"] == parent.data.metrics["new-new/1w8s/mae"]
    assert "cells.md" in {file.path for file in workspace.mlflow().list_artifacts(parent.info.run_id)}
    workspace.retrain(*asked, "evaluation.query=2", "tasks.query=2", "seed=1")
    later = workspace.outputs("evaluate")[-1]["ref"]["metrics"]
    compared = {name.split("/")[0] for name in later if "champion" in name}
    assert {"test", "gate"} <= compared and not compared & set(CELLS), "what a champion has seen of known users its data do not say"
