"""Ratings: time decides what is known, items are described by training users alone, altered archives are refused; and adaptation helps."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from sources import Chain
from sources import ratings_file as own
from test_endpoint import serving_by

from components.contracts import SplitsSection
from components.domains import ratings
from components.domains.catalogue import Catalogue
from components.domains.options import RatingsOptions
from components.domains.pool import open_pool, write_pool
from components.domains.seen import seen_by
from components.domains.shelf import Shelf
from components.inputs import InputError
from components.learners import store
from components.splits import split_of
from components.tasks import Examples
from components.tasksets import TaskSpec, draw
from flows.config import load

OPTIONS = replace(RatingsOptions(**load(["experiment=ratings"]).domain.source), co_factors=2)
SPLITS = SplitsSection(train=None, val=[], gate=[], test=[], shares={"test": 0.5})
THREE = SplitsSection(train=None, val=[], gate=[], test=[], shares={"test": 0.3, "val": 0.3})


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
    tests = {c.name for c in source.classes if split_of(SPLITS, c.group, c.name) == "test"}
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
    catalogue = Catalogue(3, 2, 15, np.zeros((10, 0))).fitted(rows)
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
    assert np.abs(vectors[:, 2:5])[:, ::-1] == pytest.approx(wanted, abs=1e-3)
    dense[user, item] = 1
    _, size, directions = np.linalg.svd(dense / np.sqrt(dense.sum(1, keepdims=True)) / np.sqrt(dense.sum(0) + 5))
    assert np.abs(vectors[:, 5:])[:, ::-1] == pytest.approx(np.abs(directions[:2].T * size[:2]) * np.sqrt(10) / 4, abs=1e-3)


def test_a_training_users_own_ratings_describe_no_item_to_them(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    rows = np.stack([np.repeat(np.arange(20), 8), np.concatenate([random.permutation(12)[:8] for _ in range(20)]), random.normal(size=160)], 1)
    other = rows.copy()
    other[rows[:, 0] == 3, 2] *= -1
    before, after = (Catalogue(0, 0, 20, np.zeros((12, 0))).fitted(r).read(r) for r in (rows, other))
    own = rows[:, 0] == 3
    assert np.array_equal(before[own], after[own])
    assert not np.array_equal(before[~own], after[~own])


def test_a_file_of_ratings_is_read_as_the_model_knows_its_items(tmp_path: Path) -> None:
    source = ratings.build(replace(OPTIONS, file=str(own(tmp_path)), min_ratings=5, factors=2))
    write_pool(source, SPLITS, "ratings", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    shelf = Shelf.open(pool.path, pool.kept["ratings"])
    held_out = pool.items(pool.split("test"))  # who did not describe the items reads what the shelf holds
    items = [source.item_notes[i] for i in held_out]
    found, lacks = shelf.numbers(items, tmp_path)
    assert np.array_equal(shelf.vectors[found], pool.inputs[held_out]) and not lacks
    (tmp_path / "mine.csv").write_text("item,rating,user\nfilm 3,4.5,c\nno such film,1,d\nfilm 7,2,b\nfilm 9,3,c\nno such film,3,c\nfilm 3,1,b\n")
    known, lacks, strangers = shelf.read(tmp_path / "mine.csv")
    assert [(one.user, [shelf.names[i] for i in one.items], one.values.tolist()) for one in known] == [
        ("c", ["film 3", "film 9"], [4.5, 3.0]),
        ("b", ["film 7", "film 3"], [2.0, 1.0]),
    ]
    assert (lacks, strangers) == (["no such film"], ["d"])
    (tmp_path / "mine.csv").write_text("item,rating,time\nfilm 3,2,30\nfilm 7,5,20\nfilm 3,4,10\n")
    (known,), _, _ = shelf.read(tmp_path / "mine.csv")
    assert ([shelf.names[i] for i in known.items], known.values.tolist()) == (["film 7", "film 3"], [5.0, 2.0]), "the newest of two counts"
    for text, told in (
        ("item,stars\nfilm 3,4\n", "lacks rating"),
        ("item,rating,time\nfilm 3,4,t10\n", "numbers in column time, got string"),
        ("item,rating\nfilm 3,9\n", "ratings from 1 to 5, got 9"),
        ("item,rating\nfilm 3,good\n", "numbers in column rating"),
        ("item,rating\nfilm 3,4\nfilm 3,2\n", "one rating an item, got several of film 3"),
        ("item,rating\nno such film,4\n", "must name items that the model knows, such as film 0"),
    ):
        (tmp_path / "mine.csv").write_text(text)
        with pytest.raises(InputError, match=told):
            shelf.read(tmp_path / "mine.csv")


def test_what_is_rated_again_counts_once_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pyarrow.csv.read_csv(own(tmp_path)).to_pandas()
    first = table[table.user == "u00"].sort_values("time")
    again = first.head(3).assign(rating=1.25, time=table.time.max() + 1 + np.arange(3))
    pd.concat([table, again]).to_csv(tmp_path / "again.csv", index=False)
    source = ratings.build(replace(OPTIONS, file=str(tmp_path / "again.csv"), min_ratings=5, factors=2))
    assert source.item_notes[:9] == first.item.tolist()[3:] + first.item.tolist()[:3]
    assert len(set(source.targets[6:9].tolist())) == 1 and "3 ratings left out" in capsys.readouterr().err


def test_ratings_of_too_few_who_train_are_refused_by_their_number(tmp_path: Path) -> None:
    source = ratings.build(replace(OPTIONS, file=str(own(tmp_path)), min_ratings=5, factors=2))
    names = [c.name for c in source.classes]
    for trains in (0, 1):
        with pytest.raises(InputError, match=f"two users that train, .*got {trains}"):
            write_pool(source, SplitsSection(train=None, val=[], gate=[], test=names[trains:], shares={}), "ratings", "x" * 64, tmp_path / "pool")


def test_a_long_name_takes_its_own_room_alone(tmp_path: Path) -> None:
    table = pyarrow.csv.read_csv(own(tmp_path)).to_pandas()
    many = pd.concat([table] * 40)
    many["time"] = np.arange(len(many))
    many.loc[many.item == "film 3", "item"] = "film 3" * 4_000
    many.to_csv(tmp_path / "long.csv", index=False)
    tracemalloc.start()
    ratings.build(replace(OPTIONS, file=str(tmp_path / "long.csv"), min_ratings=5, factors=2))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < len(many) * len("film 3") * 4_000 * 4 / 3, "an array of texts is as wide as its longest, four bytes a character"


def test_ratings_that_describe_nothing_are_refused(tmp_path: Path) -> None:
    path = own(tmp_path)
    with pytest.raises(InputError, match="factors must be below 12"):
        ratings.build(replace(OPTIONS, file=str(path), min_ratings=5, factors=16))
    pyarrow.csv.read_csv(path).to_pandas().assign(rating=1).to_csv(tmp_path / "flat.csv", index=False)
    with pytest.raises(InputError, match="must hold ratings that differ, got 1 in every row"):
        ratings.build(replace(OPTIONS, file=str(tmp_path / "flat.csv"), min_ratings=5, factors=2))


def test_ratings_off_the_scale_are_refused_and_users_with_few_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pyarrow.csv.read_csv(own(tmp_path)).to_pandas()
    table.loc[[2, 5], "rating"] = [99, -3]
    table = table.drop(table[table.user == "u00"].index[4:])
    table.to_csv(tmp_path / "odd.csv", index=False)
    odd = replace(OPTIONS, file=str(tmp_path / "odd.csv"), min_ratings=5, factors=2)
    with pytest.raises(InputError, match=r"must hold ratings from 0.5 to 5, got 2 rows with others: -3, 99"):
        ratings.build(replace(odd, scale=[0.5, 5]))
    assert f"1 of {table.user.nunique()} users left out, who have fewer than min_ratings=5" in capsys.readouterr().err
    table[table.rating.between(0.5, 5)].to_csv(tmp_path / "even.csv", index=False)
    source = ratings.build(replace(odd, file=str(tmp_path / "even.csv"), scale=[0, 6]))
    assert isinstance(source.reading, Catalogue) and [source.reading.scale[end] for end in ("least", "middle", "greatest")] == [0, 3, 6]
    for wrong in ({"scale": [5, 1]}, {"scale": [1]}, {"scale": [1, 5], "file": None}):
        with pytest.raises(InputError, match=r"domain.source.scale must be the least and the greatest"):
            replace(odd, **wrong)  # type: ignore[arg-type]


def test_an_item_is_found_by_its_name_as_it_is_written(tmp_path: Path) -> None:
    table = pyarrow.csv.read_csv(own(tmp_path)).to_pandas()
    names = sorted(set(table.item))
    table["item"] = table.item.map({name: f"{i:04d}" + "X" * (i == 0) for i, name in enumerate(names)})  # as of books: one ends with an X
    table.to_csv(tmp_path / "books.csv", index=False)
    write_pool(ratings.build(replace(OPTIONS, file=str(tmp_path / "books.csv"), min_ratings=5, factors=2)), SPLITS, "ratings", "x" * 64, tmp_path / "pool")
    shelf = Shelf.open(tmp_path / "pool", open_pool(tmp_path / "pool").kept["ratings"])
    (tmp_path / "one.csv").write_text("item,rating\n0001,2\n0002,3\n")
    known, unknown, _ = shelf.read(tmp_path / "one.csv")
    assert [shelf.names[i] for i in known[0].items] == ["0001", "0002"] and unknown == []
    (tmp_path / "two.csv").write_text("item,rating\n1,2\n0002,3\n")
    assert shelf.read(tmp_path / "two.csv")[1] == ["1"]


def test_what_is_told_of_users_stands_beside_their_items(tmp_path: Path) -> None:
    table = pyarrow.csv.read_csv(own(tmp_path)).to_pandas()
    age = {user: 20.0 + 3 * i for i, user in enumerate(sorted(set(table.user)))}
    table["age"] = [age[user] for user in table.user]
    table.to_csv(tmp_path / "aged.csv", index=False)
    options = replace(OPTIONS, min_ratings=5, factors=2, file=str(tmp_path / "aged.csv"))
    plain, told = (ratings.build(o) for o in (options, replace(options, about=["age"])))
    pools = []
    for name, source in (("plain", plain), ("told", told)):
        write_pool(source, SPLITS, "ratings", "x" * 64, tmp_path / name)
        pools.append(open_pool(tmp_path / name))
    assert np.array_equal(pools[1].inputs[:, :-1], pools[0].inputs)
    names = pools[1].classes["name"].to_pylist()
    train = np.array([age[names[c]] for c in pools[1].split("train")])
    wanted = np.repeat([(age[name] - train.mean()) / train.std() for name in names], pools[1].counts)
    assert pools[1].inputs[:, -1] == pytest.approx(wanted, abs=1e-5)
    shelf = Shelf.open(tmp_path / "told", pools[1].kept["ratings"])
    (tmp_path / "mine.csv").write_text("item,rating,age\nfilm 3,4.5,50\nfilm 7,2,50\n")
    (tmp_path / "shy.csv").write_text("item,rating\nfilm 3,4.5\n")
    known, shy = (shelf.read(tmp_path / f"{name}.csv")[0][0] for name in ("mine", "shy"))
    assert shelf.examples(known)[0][:, -1] == pytest.approx([(50 - train.mean()) / train.std()] * 2, abs=1e-5)
    assert shelf.examples(shy)[0][:, -1].tolist() == [0], "who does not tell is taken for the mean"
    some = table.sort_values("time").assign(age=lambda t: t.age.where(t.time != t.time.max()) + t.time)  # it grows, and the last row does not tell
    some.sample(frac=1, random_state=0).to_csv(tmp_path / "grown.csv", index=False)
    write_pool(ratings.build(replace(options, file=str(tmp_path / "grown.csv"), about=["age"])), SPLITS, "ratings", "x" * 64, tmp_path / "grown")
    grown = open_pool(tmp_path / "grown")
    cls = int(grown.split("test")[0])
    some[some.user == names[cls]].sample(frac=1, random_state=1).to_csv(tmp_path / "one.csv", index=False)
    (one,), *_ = Shelf.open(tmp_path / "grown", grown.kept["ratings"]).read(tmp_path / "one.csv")
    trained = np.array([age[names[c]] for c in grown.split("train")])
    newest = (age[names[cls]] - trained.mean()) / trained.std()  # all have grown alike
    assert one.about == pytest.approx([newest], abs=1e-5) and grown.inputs[grown.first[cls], -1] == pytest.approx(newest, abs=1e-5)
    assert seen_by(pools[1], tmp_path / "told", pools[1].kept) is pools[1]
    again = seen_by(pools[1], tmp_path / "plain", pools[0].kept)
    held_out = pools[0].items(pools[0].split("test"))  # who describes no item reads them as every model does
    assert again is not None and np.array_equal(again.inputs[held_out], pools[0].inputs[held_out])
    assert seen_by(pools[0], tmp_path / "told", pools[1].kept) is None
    with pytest.raises(InputError, match="about names columns of your own file"):
        replace(OPTIONS, about=["age"])


def test_a_model_sees_newer_ratings_by_what_it_knows_of_their_items(tmp_path: Path) -> None:
    table = pyarrow.csv.read_csv(own(tmp_path)).to_pandas()
    new = table.assign(item=table.item.where(table.item != table.item[0], "newcomer"))
    pools = []
    for name, told in (("old", table), ("new", new)):
        told.to_csv(tmp_path / f"{name}.csv", index=False)
        source = ratings.build(replace(OPTIONS, file=str(tmp_path / f"{name}.csv"), min_ratings=5, factors=2))
        write_pool(source, SPLITS, "ratings", "x" * 64, tmp_path / name)
        pools.append(open_pool(tmp_path / name))
    before, after = pools
    assert seen_by(before, tmp_path / "old", before.kept) is before
    seen = seen_by(after, tmp_path / "old", before.kept)
    assert seen is not None
    shelf = Shelf.open(tmp_path / "old", before.kept["ratings"])
    place = {name: i for i, name in enumerate(shelf.names)}
    notes = pq.read_table(tmp_path / "new" / "items.parquet")["note"].to_pylist()
    assert "newcomer" in notes
    wanted = np.stack([shelf.vectors[place[name]] if name in place else np.zeros(shelf.vectors.shape[1]) for name in notes])
    assert np.array_equal(seen.inputs, wanted.astype(np.float32)) and not np.allclose(seen.inputs, after.inputs)
    assert seen_by(after, tmp_path / "old", {"ratings": before.kept["ratings"] | {"greatest": 10.0}}) is None


@pytest.mark.slow
def test_eight_ratings_tell_a_taste_of_one_number_better_than_two(chain: Callable[[str], Chain]) -> None:
    metrics = chain("ratings").workspace.metrics()
    assert metrics["test/1w8s/teacher/mse"] < 0.8 * metrics["test/1w2s/teacher/mse"]
    assert metrics["test/1w8s/fused/mse"] < metrics["test/1w8s/nearest/mse"]


@pytest.mark.slow
def test_a_users_items_are_ranked_from_a_few_ratings(chain: Callable[[str], Chain], tmp_path: Path) -> None:
    workspace = chain("ratings").workspace
    (tmp_path / "mine.csv").write_text("item,rating\nfilm 3,4.5\nfilm 7,2\nfilm 9,3\n")
    told = workspace.run("flows.adapt", "model=models:/ratings@champion", f"support={tmp_path / 'mine.csv'}", f"out={tmp_path / 'ranked.csv'}").stdout
    assert "17 items ranked for 1 user from 3 ratings" in told
    everything = "".join(f"cat,film {i},3\n" for i in range(20))
    (tmp_path / "some.csv").write_text(f"user,item,rating\nann,film 3,4.5\nbob,no such film,2\nann,film 7,2\n{everything}")
    told = workspace.run("flows.adapt", "model=models:/ratings@champion", f"support={tmp_path / 'some.csv'}", f"out={tmp_path / 'some-ranked.csv'}").stdout
    left = "1 item left out that the model does not know (no such film), 1 user who named no other (bob)"
    assert f"18 items ranked for 2 users from 22 ratings, {left}: " in told, "cat has rated all there is"
    ranked = pyarrow.csv.read_csv(tmp_path / "ranked.csv")
    folder = next(workspace.root.glob("mlruns/stages/fused/*/learner.json")).parent
    learner, _, about = store.load(folder)
    shelf = Shelf.open(folder, about["ratings"])
    x = torch.from_numpy(shelf.vectors.copy())[None]
    rated = [shelf.names.index(name) for name in ("film 3", "film 7", "film 9")]
    middle = about["ratings"]["middle"]
    with torch.no_grad():
        adapted = learner.adapt(Examples(x[:, rated], torch.tensor([[4.5, 2, 3]]) - middle, 1))
        wanted = learner.predict(adapted, x)[0, :, 0] + middle
    left = [i for i in np.argsort(-wanted.numpy(), kind="stable") if i not in rated]
    assert ranked["item"].to_pylist() == [shelf.names[i] for i in left]
    assert ranked["rating"].to_pylist() == pytest.approx(wanted[left].clamp(1, 5).tolist(), abs=6e-4)
    with serving_by(workspace, "models:/ratings@champion") as client:
        mine = {"support_x": ["film 3", "film 7", "film 9"], "support_y": [4.5, 2, 3]}
        said = client.post("/predict", mine | {"query_x": ranked["item"].to_pylist()}).json()
        assert np.array(said["values"])[:, 0] == pytest.approx(ranked["rating"].to_pylist(), abs=6e-4)
        assert client.post("/predict", {"id": said["id"], "query_x": ranked["item"].to_pylist()}).json() == said
        told = client.call("GET", "/model").json()
        assert told["input"] == {"item": "one of 20 names such as film 0, film 1, film 10", "support_y": "numbers from 1 to 5"}, told
        for odd, why in (
            ({"support_x": ["film 3"], "support_y": [9]}, "must be from 1 to 5"),
            ({"support_x": ["film 3", "film 3"], "support_y": [2, 3]}, "every item once"),
            ({"support_x": ["film 3"], "support_y": [2, 3]}, "one value an item"),
            ({"support_x": ["Metropolis"], "support_y": [2]}, "the model knows, got Metropolis"),
            ({"support_x": [[0.5] * 16], "support_y": [2]}, "a list of items' names"),
        ):
            answer = client.post("/adapt", odd)
            assert answer.status_code == 422 and why in answer.json()["error"], answer.text
    for more, why in ((["abstain=0.5"], "abstain is of models"), (["top=²"], "top must be a number")):
        support = [f"support={tmp_path / 'mine.csv'}", f"out={tmp_path / 'no.csv'}"]
        assert why in workspace.run("flows.adapt", "model=models:/ratings@champion", *support, *more, expect=2).stderr
    (tmp_path / "asked.csv").write_text("item\nfilm 1\nfilm 2\nfilm 3\n")
    query = [f"query={tmp_path / 'asked.csv'}", "top=2"]
    workspace.run("flows.adapt", "model=models:/ratings@champion", f"support={tmp_path / 'mine.csv'}", f"out={tmp_path / 'two.csv'}", *query)
    assert len(pyarrow.csv.read_csv(tmp_path / "two.csv")) == 2
    wrong = workspace.run("flows.adapt", "model=models:/ratings@champion", f"support={tmp_path / 'asked.csv'}", f"out={tmp_path / 'no.csv'}", expect=2)
    assert "lacks rating" in wrong.stderr
