"""Whatever comes in, a value or one line comes out. `make fuzz EXAMPLES=5000` tries that many of each, others every time; the tests a few, always the same."""

import contextlib
import io
import os
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from components.domains import image_folder, omniglot, rating_files, table
from components.domains.columns import read_table
from components.domains.options import ImageFolderOptions, RatingsOptions, TableOptions
from components.inputs import InputError
from flows import config
from flows.repository import read_pin

EXAMPLES = int(os.environ.get("FUZZ", "60"))
tried = settings(max_examples=EXAMPLES, derandomize="FUZZ" not in os.environ, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def told(body: Callable[[], Any]) -> Any:
    """Return what the body returns, or None where it says in one line why not. Anything else that it raises is a failure."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            made = body()
        except InputError as error:
            event("refused")
            line = str(error)
            assert line and len(line) < 1200, line
            assert "\n" not in line, line
            return None
    event("taken")
    return made


@cache
def defaults(domain: str) -> dict[str, Any]:
    return dict(config.compose_plain([f"domain={domain}"])["domain"]["source"])


def options(kind: Callable[..., Any], domain: str, **changed: Any) -> Any:
    return kind(**(defaults(domain) | changed))


@cache
def keys() -> list[str]:
    """Return every key of the config, of every choice of every group."""

    def flat(values: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for name, value in values.items():
            found += [prefix + name, *(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [])]
        return found

    composed = [config.compose_plain([f"{group}={choice}"]) for group, choices in config.groups().items() for choice in choices]
    return sorted({key for plain in composed for key in flat(plain)})


NUMBERS = st.integers() | st.integers(-3, 30) | st.floats() | st.sampled_from(["1e999", "-0", "0x10", "1_000", "9" * 400])
WORDS = st.sampled_from(["null", "true", "[]", "{}", "[1,2]", "{a: 1}", "''", "../..", "/etc/passwd", "$(touch x)", "${oc.env:HOME}", "${seed}", "???", "a b"])
VALUES = NUMBERS.map(str) | WORDS | st.text(max_size=8)


@st.composite
def overrides(draw: st.DrawFn) -> list[str]:
    """Draw choices and keys that exist, with any values; or anything at all."""
    groups = config.groups()
    made = []
    for _ in range(draw(st.integers(1, 3))):
        what = draw(st.sampled_from(["choice", "key", "key", "key", "text"]))
        if what == "choice":
            group = draw(st.sampled_from(sorted(groups)))
            made.append(f"{group}={draw(st.sampled_from(groups[group]) | VALUES)}")
        elif what == "key":
            made.append(f"{draw(st.sampled_from(keys()))}={draw(VALUES)}")
        else:
            made.append(draw(st.text(max_size=20)))
    return made


@tried
@given(overrides())
def test_overrides(given_: list[str]) -> None:
    told(lambda: config.load(given_))


def spoilt(draw: st.DrawFn, whole: bytes) -> bytes:
    """Cut, change or repeat parts of a file."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 40))
        how = draw(st.sampled_from(["cut", "change", "repeat", "end"]))
        if how == "cut":
            del data[at : at + length]
        elif how == "change":
            data[at : at + length] = draw(st.binary(min_size=1, max_size=length))
        elif how == "repeat":
            data[at:at] = data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


def rows() -> pa.Table:
    random = np.random.default_rng(0)
    numbers = {f"x{i}": random.normal(size=24).round(3) for i in range(3)}
    return pa.table(numbers | {"label": np.repeat(list("abcd"), 6), "user": np.repeat(list("uvwx"), 6), "item": np.tile(list("123456"), 4)})


@cache
def whole(kind: str) -> bytes:
    """Return a file as it should be: a table of either form, a picture, an archive."""
    out = io.BytesIO()
    if kind == ".csv":
        pyarrow.csv.write_csv(rows(), out)
    elif kind == ".parquet":
        pq.write_table(rows(), out)
    elif kind in (".png", ".jpg", ".webp"):
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(out, {"jpg": "jpeg"}.get(kind[1:], kind[1:]))
    else:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in MEMBERS[kind].items():
                archive.writestr(name, data)
    return out.getvalue()


def drawing() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((105, 105), 255, dtype=np.uint8)).save(out, "png")
    return out.getvalue()


MEMBERS = {
    "omniglot": {f"images_background/Latin/character01/{i:04}_01.png": drawing() for i in range(3)},
    "ml-latest-small": {"ml/ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,4\n", "ml/movies.csv": "movieId,title,genres\n2,Some (1999),Drama\n"},
    "ml-100k": {"ml/u.data": "1\t2\t3\t4\n", "ml/u.item": "2|Some (1999)|01-Jan-1999||url|" + "|".join("0" * 19) + "\n"},
    "ml-1m": {"ml/ratings.dat": "1::2::3::4\n", "ml/movies.dat": "2::Some (1999)::Drama\n"},
}


@st.composite
def files(draw: st.DrawFn, *kinds: str) -> tuple[str, bytes]:
    kind = draw(st.sampled_from(kinds))
    return kind, draw(st.binary(max_size=60)) if draw(st.integers(0, 9)) == 0 else spoilt(draw, whole(kind))


@st.composite
def archives(draw: st.DrawFn) -> tuple[str, bytes]:
    """Draw an archive that is spoilt, or whole with spoilt members, or with members of odd names."""
    kind = draw(st.sampled_from(sorted(MEMBERS)))
    if draw(st.booleans()):
        return kind, spoilt(draw, whole(kind))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in MEMBERS[kind].items():
            raw = data if isinstance(data, bytes) else data.encode()
            odd = st.sampled_from([name, f"../../{name}", f"/{name}", name.replace("/", "\\"), name.rpartition("/")[2]])
            archive.writestr(draw(odd), spoilt(draw, raw) if draw(st.booleans()) else raw)
    return kind, out.getvalue()


@tried
@given(files(".csv", ".parquet"), st.sampled_from(["refuse", "drop", "mean"]))
def test_tables(tmp_path_factory: pytest.TempPathFactory, given_: tuple[str, bytes], missing: Any) -> None:
    file = tmp_path_factory.getbasetemp() / f"fuzz{given_[0]}"
    file.write_bytes(given_[1])
    made = told(lambda: table.build(options(TableOptions, "table", file=str(file), missing=missing, min_items=2)))
    assert made is None or (len(made.inputs) == sum(c.count for c in made.classes) and (missing != "refuse" or np.isfinite(made.inputs).all()))
    told(lambda: rating_files.read_own(options(RatingsOptions, "ratings", file=str(file), rating="x0", time="x1")))
    told(lambda: read_table(file))


@tried
@given(files(".png", ".jpg", ".webp"))
def test_pictures(tmp_path_factory: pytest.TempPathFactory, given_: tuple[str, bytes]) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzz-pictures"
    for name in "ab":
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "0.png").write_bytes(whole(".png"))
    for old in (root / "a").glob("1.*"):
        old.unlink()
    (root / "a" / f"1{given_[0]}").write_bytes(given_[1])
    for problems in ("refuse", "skip"):
        made = told(lambda: image_folder.build(options(ImageFolderOptions, "image_folder", root=str(root), size=14, min_items=1, problems=problems)))  # noqa: B023
        assert problems == "refuse" or (made is not None and made.inputs.shape[1:] == (14, 14))


@tried
@given(archives())
def test_archives(tmp_path_factory: pytest.TempPathFactory, given_: tuple[str, bytes]) -> None:
    kind, data = given_
    folder = tmp_path_factory.getbasetemp() / "fuzz-archives"
    folder.mkdir(exist_ok=True)
    file = folder / "archive.zip"
    file.write_bytes(data)
    told(lambda: list(omniglot.read_archive(file, None)) if kind == "omniglot" else rating_files.read_movielens(file, kind))
    assert [p.name for p in folder.iterdir()] == ["archive.zip"], "nothing is written beside it"


@tried
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | st.builds(lambda a, b: f"outs:\n- {a}: {b}\n".encode(), st.text(max_size=8), VALUES))
def test_pins(given_: bytes) -> None:
    told(lambda: read_pin(given_.decode("utf-8", "replace")))
