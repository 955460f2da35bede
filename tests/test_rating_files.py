"""How ratings are told: releases of MovieLens, altered copies of them, files of ones own and the columns that describe their items."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sources import ratings_file as own

from components.contracts import SplitsSection
from components.domains import rating_files, ratings
from components.domains.options import RatingsOptions
from components.domains.pool import open_pool, write_pool
from components.inputs import InputError
from flows.config import load

OPTIONS = replace(RatingsOptions(**load(["experiment=ratings"]).domain.source), co_factors=2)
SPLITS = SplitsSection(train=None, val=[], gate=[], test=[], shares={"test": 0.5})

LINES = {
    "ml-latest-small": ("ratings.csv", "userId,movieId,rating,timestamp\n7,31,2.5,100\n", "movies.csv", "movieId,title,genres\n31,A (1990),Comedy|War\n"),
    "ml-100k": ("u.data", "7\t31\t2.5\t100\n", "u.item", "31|A (1990)|01-Jan-1990||url" + "|0" * 4 + "|1|1\n"),
    "ml-1m": ("ratings.dat", "7::31::2.5::100\n", "movies.dat", "31::A (1990)::Comedy|War\n"),
}


PEOPLE = {"ml-100k": ("u.user", "7|25|F|writer|12345\n8|40|M|other|12345\n"), "ml-1m": ("users.dat", "7::F::25::20::12345\n8::M::45::0::12345\n")}


@pytest.mark.parametrize("release", LINES)
def test_each_release_is_read_in_its_own_format_and_counted(
    tmp_path: Path, release: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rated, rows, films, titles = LINES[release]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"{release}/{rated}", rows + rows.splitlines()[-1].replace("31", "32") + "\n")
        archive.writestr(f"{release}/{films}", titles)
        if release in PEOPLE:
            archive.writestr(f"{release}/{PEOPLE[release][0]}", PEOPLE[release][1])
    with pytest.raises(InputError, match=r"got 2 of 1 \(an altered copy\)"):
        rating_files.read_movielens(tmp_path / "a.zip", release)
    monkeypatch.setitem(rating_files.PUBLISHED, release, {(2, 1)})
    rating_files.read_movielens(tmp_path / "a.zip", release)
    assert f"a.zip is not the archive that was published: its ratings and users are as many as {release} has" in capsys.readouterr().err
    monkeypatch.setitem(rating_files.ARCHIVES, release, hashlib.sha256((tmp_path / "a.zip").read_bytes()).hexdigest())
    told = rating_files.read_movielens(tmp_path / "a.zip", release)
    assert not capsys.readouterr().err
    assert (told.user.tolist(), told.item.tolist(), told.value.tolist(), told.time.tolist()) == (["7", "7"], ["31", "32"], [2.5, 2.5], [100, 100])
    assert told.sides["31"][-1] == 1.0 and sum(told.sides["31"][:-1]) == 2
    if release in PEOPLE:
        assert told.about[:2] == ["female", "age"] and len(told.about) == 4 and told.people["7"][:2] == [1, 25] and sum(told.people["7"][2:]) == 1


def test_a_file_without_a_needed_column_or_with_text_for_numbers_is_named(tmp_path: Path) -> None:
    path = own(tmp_path)
    table = pyarrow.csv.read_csv(path)
    for changed, told in (
        (table.drop_columns(["time"]), "lacks time"),
        (table.set_column(3, "time", pa.array(["noon"] * len(table))), "numbers in column time"),
        (table.set_column(2, "rating", pa.array([1e39] * len(table))), "a number below 3e38 in every row of rating and time"),
        (table.slice(0, 0), "must hold a row for every rating, got none"),
        (table.slice(0, 9), "needs four users with 5 ratings"),
    ):
        pyarrow.csv.write_csv(changed, tmp_path / "changed.csv")
        with pytest.raises(InputError, match=told):
            ratings.build(replace(OPTIONS, file=str(tmp_path / "changed.csv"), min_ratings=5))
    (tmp_path / "movielens").mkdir()
    (tmp_path / "movielens" / "ml-1m.zip").write_text("no archive")
    with pytest.raises(InputError, match=r"must be MovieLens' ml-1m.zip"):
        ratings.build(replace(OPTIONS, release="ml-1m"), str(tmp_path))


def test_columns_describe_the_items_of_a_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pyarrow.csv.read_csv(own(tmp_path, users=40)).to_pandas()
    number = table.item.str.removeprefix("film ").astype(int)
    table["price"] = (2.5 * number).where(number != 3)  # of one item it is not told
    table["kind"] = np.where(number % 3 == 0, "Drama|War", np.where(number % 3 == 1, "War", None))
    table["place"] = "here"
    table["old"] = 7
    table.to_csv(tmp_path / "told.csv", index=False)
    options = replace(OPTIONS, min_ratings=5, factors=2, file=str(tmp_path / "told.csv"))
    plain, told = (ratings.build(o) for o in (options, replace(options, describes=["price", "kind", "place", "old"])))
    said = capsys.readouterr().err
    assert "column place says the same of all items, and is left out" in said and "column old says" in said and "column price" not in said
    for name, source in (("plain", plain), ("told", told)):
        write_pool(source, SPLITS, "ratings", "x" * 64, tmp_path / name)
    pools = [open_pool(tmp_path / name) for name in ("plain", "told")]
    assert pools[1].inputs.shape[1] == pools[0].inputs.shape[1] + 3
    notes = pq.read_table(tmp_path / "told" / "items.parquet", columns=["note"])["note"].to_pylist()
    numbers = np.array([int(note.removeprefix("film ")) for note in notes])
    prices = 2.5 * np.array([n for n in range(20) if n != 3])
    wanted = np.where(numbers == 3, 0, (2.5 * numbers - prices.mean()) / prices.std())
    assert pools[1].inputs[:, 2] == pytest.approx(wanted, abs=1e-3)
    assert np.array_equal(pools[1].inputs[:, 3:5], np.stack([numbers % 3 == 0, numbers % 3 != 2], 1))
    rest = [0, 1, *range(5, pools[1].inputs.shape[1])]
    assert np.array_equal(pools[1].inputs[:, rest], pools[0].inputs)
    kinds = {
        "tags": pa.array([["a ", "b"] if n % 2 else ["b"] for n in number]),
        "fresh": pa.array(number % 5 == 0),
        "when": pa.array(number.astype("datetime64[s]")),
    }
    kinds |= {"cost": pa.array(number.astype(str)).cast(pa.decimal128(9, 2)), "emb": pa.array([[float(n), 1.0 - n] for n in number])}
    later = (table.groupby("item").time.transform("max") == table.time) & (number % 3 == 0)  # the newest row of some does not tell
    kinds |= {"kind": pa.array(table.kind.where(~later)), "item": pa.array(table.item), "user": pa.array(table.user), "time": pa.array(table.time)}
    pq.write_table(pa.table(kinds | {"rating": pa.array(table.rating)}), tmp_path / "told.parquet")
    options = replace(options, file=str(tmp_path / "told.parquet"), describes=["tags", "fresh", "cost", "emb", "kind"])
    write_pool(ratings.build(options), SPLITS, "ratings", "x" * 64, tmp_path / "kinds")
    found = open_pool(tmp_path / "kinds").inputs
    every = np.arange(20)
    fresh, cost = ((v - v.mean()) / v.std() for v in ((every % 5 == 0).astype(float), every.astype(float)))
    wanted = [numbers % 2, np.ones(len(numbers)), fresh[numbers], cost[numbers], cost[numbers], -cost[numbers], numbers % 3 == 0, numbers % 3 != 2]
    assert found[:, 2:10] == pytest.approx(np.stack(wanted, 1), abs=1e-3)
    with pytest.raises(InputError, match=r"must hold numbers or texts in column when, got timestamp"):
        ratings.build(replace(options, describes=["when"]))
    options = replace(options, file=str(tmp_path / "told.csv"), describes=[])
    table["note"] = ["|".join(f"{i}-{part}" for part in range(6)) for i in range(len(table))]
    table.to_csv(tmp_path / "told.csv", index=False)
    for wrong, why in (({"describes": ["note"]}, "one of 100 things at most in column note, got"), ({"describes": ["colour"]}, "lacks colour")):
        with pytest.raises(InputError, match=why):
            ratings.build(replace(options, **wrong))
    for wrong, why in (
        ({"describes": ["rating"]}, "not user, item, rating or time, got rating"),
        ({"describes": ["x"], "file": None}, "columns of your own file"),
        ({"about": ["x", "x"]}, "each column once"),
    ):
        with pytest.raises(InputError, match=why):
            replace(options, **wrong)


def test_a_copy_with_other_ratings_of_the_same_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[7, 31, 2.5, 100], [7, 32, 4.0, 90], [8, 31, 1.0, 80]])
    name, _, films, titles = LINES["ml-latest-small"]
    text = "userId,movieId,rating,timestamp\n" + "".join(",".join(f"{v:g}" for v in row) + "\n" for row in rows[::-1])
    monkeypatch.setitem(rating_files.PUBLISHED, "ml-latest-small", {(3, 2)})
    monkeypatch.setitem(rating_files.DIGESTS, (3, 2), rating_files.content_digest(rows))
    for told, fine in ((text, True), (text.replace("2.5", "3.5"), False)):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(f"x/{name}", told)
            archive.writestr(f"x/{films}", titles)
        if fine:
            assert len(rating_files.read_movielens(tmp_path / "a.zip", "ml-latest-small").value) == 3  # in another order, the same data
            continue
        with pytest.raises(InputError, match=r"the same number of others \(an altered copy\)"):
            rating_files.read_movielens(tmp_path / "a.zip", "ml-latest-small")
