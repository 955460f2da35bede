"""The user's own vectors: columns, missing numbers, scaling by training rows alone; and adapting to them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sources import Chain, letter_rows
from tasks_for_tests import MLP, OPTIONS
from test_endpoint import serving_by

from components.contracts import SplitsSection
from components.domains import table
from components.domains.columns import Columns, read_table
from components.domains.options import TableOptions
from components.domains.pool import open_pool, write_pool
from components.domains.seen import seen_by
from components.inputs import InputError
from components.learners import store
from components.splits import split_of
from flows.checks import check_outside
from flows.config import load
from flows.plan import Outside

ALL = SplitsSection(train=None, val=[], gate=[], test=[], shares={})  # everything trains


def options(file: Path, **more: object) -> TableOptions:
    given: dict = {"file": str(file), "label": "label", "group": None, "features": [], "missing": "refuse", "standardise": True, "min_items": 2}
    return TableOptions(**(given | more))


def rows(count: int = 12, gap: int | None = None) -> pa.Table:
    """Return `count` rows of three classes, two features that vary, one that does not, and a text."""
    random = np.random.default_rng(0)
    first = random.normal(5, 3, count)
    if gap is not None:
        first[gap] = np.nan
    columns = {"first": first, "second": np.arange(count), "flat": np.ones(count), "note": ["text"] * count, "label": [f"c{i % 3}" for i in range(count)]}
    return pa.table(columns)


def test_csv_and_parquet_are_the_same_rows_class_by_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pyarrow.csv.write_csv(rows(), tmp_path / "rows.csv")
    pq.write_table(rows(), tmp_path / "rows.parquet")
    from_csv, from_parquet = (table.build(options(tmp_path / name)) for name in ("rows.csv", "rows.parquet"))
    assert np.allclose(from_csv.inputs, from_parquet.inputs)
    assert [(c.name, c.count) for c in from_csv.classes] == [("c0", 4), ("c1", 4), ("c2", 4)]
    assert from_csv.inputs[:4, 1].tolist() == [0, 3, 6, 9]
    assert isinstance(from_csv.reading, Columns) and from_csv.reading.names == ["first", "second"]
    assert "1 constant columns left out: flat" in capsys.readouterr().err


def test_scaling_is_measured_on_training_rows_alone(tmp_path: Path) -> None:
    pq.write_table(rows(), tmp_path / "rows.parquet")
    source = table.build(options(tmp_path / "rows.parquet", features=["first", "second"]))
    splits = SplitsSection(train=None, val=[], gate=[], test=[], shares={"test": 0.5})
    homes = [split_of(splits, "rows", c.name) for c in source.classes]
    assert {"train", "test"} <= set(homes)
    write_pool(source, splits, "table", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    train = pool.items(pool.split("train"))
    assert pool.inputs[train].mean(0) == pytest.approx([0, 0], abs=1e-6) and pool.inputs[train].std(0) == pytest.approx([1, 1], abs=1e-6)
    assert pool.inputs == pytest.approx((source.inputs - source.inputs[train].mean(0)) / source.inputs[train].std(0), abs=1e-5)
    assert "columns" in pool.kept
    later = Columns(**pool.kept["columns"]).take(rows(), tmp_path)  # what comes later is read in the same way
    assert later[::3] == pytest.approx(pool.inputs[:4], abs=1e-5)


def test_missing_numbers_are_refused_dropped_or_filled_with_the_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(rows(gap=4), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="1 of 12 rows with a missing one"):
        table.build(options(tmp_path / "rows.parquet"))
    dropped = table.build(options(tmp_path / "rows.parquet", missing="drop"))
    assert len(dropped.inputs) == 11 and "1 of 12 rows dropped" in capsys.readouterr().err
    filled = table.build(options(tmp_path / "rows.parquet", missing="mean"))
    write_pool(filled, SplitsSection(train=None, val=[], gate=[], test=[], shares={}), "table", "x" * 64, tmp_path / "pool")
    large = rows().set_column(0, "first", [pa.array([1e300, *range(11)])])  # no float32 holds it
    pq.write_table(large, tmp_path / "large.parquet")
    with pytest.raises(InputError, match="1 of 12 rows with a missing one"):
        table.build(options(tmp_path / "large.parquet"))
    inputs = open_pool(tmp_path / "pool").inputs
    assert np.isfinite(inputs).all() and inputs[5, 0] == 0  # the second row of c1
    assert inputs.mean(0) == pytest.approx([0, 0], abs=1e-6)


def test_a_name_of_two_lines_is_told_in_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"first\nsecond": [1.0, 2.0]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="it has first second"):
        table.build(options(tmp_path / "rows.parquet"))


def test_a_column_that_is_missing_or_holds_text_and_a_class_of_two_groups_are_named(tmp_path: Path) -> None:
    pq.write_table(rows().append_column("site", pa.array(["a", "b"] * 6)), tmp_path / "rows.parquet")
    for more, told in (
        ({"label": "species"}, "lacks species"),
        ({"features": ["first", "note"]}, r"note \(string\)"),
        ({"features": ["flat"]}, "numeric columns that vary"),
        ({"group": "site"}, "c0 is of a, b"),
        ({"min_items": 5}, "two classes of 5 rows"),
    ):
        with pytest.raises(InputError, match=told):
            table.build(options(tmp_path / "rows.parquet", **more))
    (tmp_path / "no.csv").write_bytes(b"\x00\xff\n1,2\n3")
    with pytest.raises(InputError, match="must be a CSV file"):
        read_table(tmp_path / "no.csv")
    with pytest.raises(InputError, match="lacks second"):
        Columns(["first", "second"], "label", [0, 0], [1, 1], False).take(rows().drop_columns(["second"]), tmp_path)


def test_columns_far_from_zero_are_scaled_as_they_are(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    pressure, when = 101_325 + 100 * random.normal(size=20_000), 1.7e9 + 50 * random.normal(size=20_000)
    pq.write_table(pa.table({"pressure": pressure, "when": when, "label": np.arange(20_000) % 2}), tmp_path / "rows.parquet")
    write_pool(table.build(options(tmp_path / "rows.parquet")), ALL, "table", "x" * 64, tmp_path / "pool")
    columns = Columns(**open_pool(tmp_path / "pool").kept["columns"])
    assert columns.shift == pytest.approx([pressure.mean(), when.mean()], rel=1e-9)
    assert columns.scale == pytest.approx([pressure.std(), when.std()], rel=1e-6)


def test_a_column_that_varies_only_where_nothing_trains_is_left_as_it_is(tmp_path: Path) -> None:
    splits = SplitsSection(train=None, val=[], gate=[], test=["b"], shares={})
    labels, groups = [f"c{i % 4}" for i in range(40)], ["b" if i % 4 > 1 else "a" for i in range(40)]
    gain = [0.2 if group == "b" else 0.1 for group in groups]  # the deviation of so many 0.1 is no zero, by rounding
    pq.write_table(pa.table({"first": np.arange(40.0), "gain": gain, "label": labels, "site": groups}), tmp_path / "rows.parquet")
    write_pool(table.build(options(tmp_path / "rows.parquet", group="site")), splits, "table", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    assert pool.inputs[pool.items(pool.split("test")), 1] == pytest.approx([0.1] * 20) and np.abs(pool.inputs).max() < 4


def test_row_numbers_that_pandas_keeps_are_no_feature(tmp_path: Path) -> None:
    frame = rows().to_pandas().sample(frac=1, random_state=0)
    frame.to_parquet(tmp_path / "rows.parquet")
    assert "__index_level_0__" in pq.read_table(tmp_path / "rows.parquet").column_names, "what this is about"
    source = table.build(options(tmp_path / "rows.parquet"))
    assert isinstance(source.reading, Columns) and source.reading.names == ["first", "second"]


def test_names_are_texts_and_never_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(("0012", "12", " 12", "0012"))))
    assert [(c.name, c.count) for c in table.build(options(tmp_path / "rows.csv")).classes] == [("0012", 2), ("12", 2)]
    pq.write_table(pa.table({"a": [1.0, 2.0], "label": pa.array([b"x", b"y"], pa.binary())}), tmp_path / "bytes.parquet")
    assert [c.name for c in table.build(options(tmp_path / "bytes.parquet", min_items=1)).classes] == ["x", "y"]
    pq.write_table(pa.table({"a": [1.0, 2.0, 3.0], "label": [1.0, 1.0, np.nan]}), tmp_path / "nan.parquet")
    with pytest.raises(InputError, match="got 1 rows without one"):
        table.build(options(tmp_path / "nan.parquet", min_items=1))
    (tmp_path / "gaps.csv").write_text("a,label\n1,x\n2,\n3,y\n4,\n")
    with pytest.raises(InputError, match="name in every row of column label, got 2 rows without one"):
        table.build(options(tmp_path / "gaps.csv", min_items=1))
    (tmp_path / "latin.csv").write_bytes(b"a,label\n1,caf\xe9\n2,x\n")
    with pytest.raises(InputError, match="must be a CSV file"):
        table.build(options(tmp_path / "latin.csv", min_items=1))


def test_what_is_no_feature_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text(',a,b,label\n0,1,"1,5",x\n1,2,"2,5",x\n2,4,"3,5",y\n3,8,"4,5",y\n')  # pandas' index, and commas for points
    source = table.build(options(tmp_path / "rows.csv"))
    assert isinstance(source.reading, Columns) and source.reading.names == ["a"]
    assert "2 columns left out that have no name, or hold something else than numbers: (no name), b" in capsys.readouterr().err
    (tmp_path / "sheet.csv").write_text("a,label,,\n1,x,,\n2,x,,\n3,y,,\n4,y,,\n")  # as spreadsheets end their lines
    assert len(table.build(options(tmp_path / "sheet.csv")).inputs) == 4
    (tmp_path / "twice.csv").write_text("a,a,label\n1,2,x\n")
    with pytest.raises(InputError, match="every column once, got a more than once"):
        table.build(options(tmp_path / "twice.csv"))
    pq.write_table(pa.table({"a": [2**53 + 1, 5, 7, 9], "label": list("xxyy")}), tmp_path / "long.parquet")
    assert table.build(options(tmp_path / "long.parquet")).inputs[0, 0] == 2**53


def test_a_model_sees_newer_data_by_its_own_columns_and_scales(tmp_path: Path) -> None:
    pq.write_table(rows(), tmp_path / "old.parquet")
    more = rows(24).append_column("third", pa.array(np.random.default_rng(4).normal(size=24)))
    pq.write_table(more, tmp_path / "new.parquet")
    pools = []
    for name in ("old", "new"):
        write_pool(table.build(options(tmp_path / f"{name}.parquet")), ALL, "table", "x" * 64, tmp_path / name)
        pools.append(open_pool(tmp_path / name))
    old, new = pools
    assert seen_by(old, tmp_path, old.kept) is old
    seen = seen_by(new, tmp_path, old.kept)
    assert seen is not None and seen.inputs.shape == (24, 2)
    order = [i for label in range(3) for i in range(label, 24, 3)]  # the pool's, class by class
    assert seen.inputs == pytest.approx(Columns(**old.kept["columns"]).take(more, tmp_path)[order], abs=1e-5)
    assert seen_by(old, tmp_path, new.kept) is None and seen_by(old, tmp_path, {}) is None


def test_weights_for_other_columns_are_no_start(tmp_path: Path) -> None:
    for name, columns in (("kept", ["first", "second"]), ("turned", ["second", "first"])):
        pq.write_table(rows().select([*columns, "label"]), tmp_path / f"{name}.parquet")
        write_pool(table.build(options(tmp_path / f"{name}.parquet")), ALL, "table", "x" * 64, tmp_path / name)
    config = load(["experiment=table", f"domain.source.file={tmp_path / 'kept.parquet'}", "learner.start=models:/table@champion"])
    for name, backbone in (("model", config.backbone), ("narrow", MLP)):
        spec = store.spec_of("protonet", OPTIONS["protonet"], backbone, (2,), "cross_entropy")
        store.save(store.build(spec), spec, tmp_path / name, {"domain": "table", "trained_on": []} | open_pool(tmp_path / "kept").kept)
    start = Outside(start=(str(tmp_path / "model"), "f"))
    with pytest.raises(InputError, match=r"The model has backbone .*, where the config asks for"):
        check_outside(config, str(tmp_path / "kept"), Outside(start=(str(tmp_path / "narrow"), "f")))
    check_outside(config, str(tmp_path / "kept"), start)
    with pytest.raises(InputError, match="The model reads columns first, second, but the data have second, first, in this order"):
        check_outside(config, str(tmp_path / "turned"), start)


def test_a_column_of_lists_is_a_column_for_each_of_their_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random, labels = np.random.default_rng(2), [f"c{i % 3}" for i in range(9)]
    found = random.normal(size=(9, 4)).astype(np.float32)
    uneven = [[1.0] * (1 + i % 2) for i in range(9)]
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(found.reshape(-1)), 4)
    for name, column in (("lists", pa.array(found.tolist())), ("fixed", fixed)):
        pq.write_table(pa.table({"embedding": column, "label": labels, "uneven": uneven}), tmp_path / f"{name}.parquet")
        source = table.build(options(tmp_path / f"{name}.parquet", standardise=False))
        assert isinstance(source.reading, Columns) and source.reading.names == [f"embedding_{i}" for i in range(4)]
        assert np.array_equal(source.inputs, found[[0, 3, 6, 1, 4, 7, 2, 5, 8]]) and "1 columns left out" in capsys.readouterr().err


def test_rows_read_in_parts_are_the_file_that_numpy_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(rows(), tmp_path / "rows.parquet")
    source = table.build(options(tmp_path / "rows.parquet"))
    monkeypatch.setattr("components.domains.pool.AT_ONCE", 5)
    write_pool(source, ALL, "table", "x" * 64, tmp_path / "pool")
    assert source.reading is not None
    np.save(tmp_path / "whole.npy", source.reading.fitted(source.inputs).read(source.inputs))
    assert (tmp_path / "pool" / "inputs.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_the_label_is_no_feature(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0, 2, 4, 8], "label": [1, 1, 2, 2]}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="must leave out label and group, which are what is asked for, got label among them"):
        table.build(options(tmp_path / "rows.parquet", features=["a", "label"]))


@pytest.mark.slow
def test_a_champion_of_rows_adapts_to_new_classes_and_is_kept(chain: Callable[[str], Chain], tmp_path: Path) -> None:
    made = chain("table")
    workspace, own = made.workspace, letter_rows(made.workspace)
    assert workspace.metrics()["test/3w1s/fused/accuracy"] > 0.5
    new = [i for c in (52, 57) for i in range(8 * c, 8 * c + 5)]
    pyarrow.csv.write_csv(own.take(new), tmp_path / "support.csv")
    pyarrow.csv.write_csv(own.take([8 * 52 + 6, 8 * 57 + 6]).drop_columns(["label"]), tmp_path / "query.csv")
    files = [f"{name}={tmp_path / name}.csv" for name in ("support", "query", "out")]
    workspace.run("flows.adapt", "model=models:/table@champion", *files)
    lines = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert lines[0] == ["row", "class", "probability", "letter-52", "letter-57"]
    assert [line[:2] for line in lines[1:]] == [["0", "letter-52"], ["1", "letter-57"]]
    with serving_by(workspace, "models:/table@champion") as client:  # the same rows over HTTP, as they stand in the file
        names = client.call("GET", "/model").json()["input"]["columns"]
        rows = own.select(names).to_pandas().to_numpy()
        asked = {"support_x": rows[new], "support_y": [0] * 5 + [1] * 5, "query_x": rows[[8 * 52 + 6, 8 * 57 + 6]]}
        said = client.post("/predict", asked).json()["probabilities"]
    assert np.array(said) == pytest.approx(np.array([line[3:] for line in lines[1:]], dtype=float), abs=6e-5)
    again = ["model=" + str(tmp_path / "adapted"), f"query={tmp_path / 'query.csv'}", f"out={tmp_path / 'again.csv'}", "abstain=1"]
    workspace.run("flows.adapt", "model=models:/table@champion", *files, f"save={tmp_path / 'adapted'}")
    told = workspace.run("flows.adapt", *again).stdout  # no support: the folder remembers what it was adapted to
    assert "0 rows named among letter-52, letter-57, 2 left open" in told
    kept = [line.split(",") for line in (tmp_path / "again.csv").read_text().splitlines()]
    assert [line[1] for line in kept[1:]] == ["", ""] and [line[2:] for line in kept] == [line[2:] for line in lines]
    ended = workspace.run("flows.adapt", "model=models:/table@champion", *again[1:], expect=2)
    assert "support must be given for a model that is not adapted yet" in ended.stderr
    fewer = workspace.retrain(*made.asked, f"domain.source.features=[{','.join(f'p{i}' for i in range(20))}]").stdout  # the champion reads 49 columns
    assert "the champion takes other inputs than these data have: not compared" in fewer
    ended = workspace.retrain(*made.asked, "domain.source.features=[p0,p1]", "learner.start=models:/table@champion", expect=2)
    assert "The model takes inputs [49], but domain table has [2]" in ended.stderr
