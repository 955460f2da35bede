"""How rows of a user's table become inputs: which columns, and the shift and scale of each. A model keeps it for rows that come later."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from components.inputs import InputError, require
from components.plain import describe, one_line, to_plain


@dataclass(frozen=True)
class Columns:
    """`names` of the columns in order, the column of the `label`, and what is subtracted from each number, then divides it."""

    names: list[str]
    label: str
    shift: list[float]
    scale: list[float]
    fill: bool  # missing numbers become 0, the training rows' mean

    def fitted(self, rows: np.ndarray) -> "Columns":
        """Return these columns with shift and scale measured on rows [N, D], where they are still to be measured (empty)."""
        if self.shift or not len(rows):
            return self
        with np.errstate(all="ignore"):
            scale, mean, flat = np.nanstd(rows, axis=0), np.nan_to_num(np.nanmean(rows, axis=0)), constant(rows)
        scale[flat | ~(scale > 0)] = 1.0  # constant over training rows, though not over all; rounding leaves such a column a deviation
        return dataclasses.replace(self, shift=mean.tolist(), scale=scale.tolist())

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return inputs [N, D] float32 of rows [N, D]."""
        moved = (rows - np.array(self.shift)) / np.array(self.scale) if self.shift else rows
        return (np.nan_to_num(moved, nan=0.0) if self.fill else moved).astype(np.float32)

    def keep(self, folder: Path) -> dict[str, Any]:
        return {"columns": to_plain(self)}

    def take(self, table: pa.Table, where: Path) -> np.ndarray:
        """Return inputs [N, D] of another table's rows. Raises InputError naming a column that is missing, or a missing number."""
        lacks = [name for name in self.names if name not in table.column_names]
        require(not lacks, f"{where} must have the columns that the model was trained on, but lacks {describe(lacks)}. Add them.")
        inputs = self.read(numbers(table, self.names, where))
        gaps = int((~np.isfinite(inputs)).any(1).sum())
        require(gaps == 0, f"{where} must hold a number in every cell, got {gaps} rows with a missing one. Fill or remove them.")
        return inputs


def constant(rows: np.ndarray) -> np.ndarray:
    """Return which columns of rows [N, D] hold one number alone, missing ones aside, or none [D]."""
    with np.errstate(all="ignore"):
        found: np.ndarray = np.nanmax(rows, axis=0, initial=-np.inf) <= np.nanmin(rows, axis=0, initial=np.inf)
    return found


def read_table(path: Path, names: Sequence[str | None] = ()) -> pa.Table:
    """Read a CSV file with a header, or a Parquet file. Raises InputError where it cannot be read, or names a column twice.

    Columns in `names` hold names of things: in a CSV they are texts whatever they look like, so that `0012` is not `12`.
    """
    texts = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(filter(None, names), pa.string()))
    try:
        table = pq.read_table(path) if path.suffix.lower() in (".parquet", ".pq") else pyarrow.csv.read_csv(path, convert_options=texts)
        table.validate(full=True)  # texts that are no UTF-8, say
        index = [name for name in (table.schema.pandas_metadata or {}).get("index_columns", []) if name in table.column_names]
        table = table.drop_columns([name for name in index if re.fullmatch(r"__index_level_\d+__", name)])  # pandas' row numbers: no column of the user's
        for name in (name for name, kind in zip(table.column_names, table.schema.types, strict=True) if pa.types.is_binary(kind)):
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))  # texts that nobody declared to be such
        table = _spread(table)
        found = list(table.column_names)  # names that are no UTF-8 either
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a CSV file with a header or a Parquet file, got: {one_line(error)}. Check the file.") from error
    twice = sorted({name for name in found if name and found.count(name) > 1})
    require(not twice, f"{path} must name every column once, got {describe(twice)} more than once. Rename them.")
    return table


def _spread(table: pa.Table) -> pa.Table:
    """Replace each column of lists of n numbers, as embeddings are stored, by n columns <name>_0 and so on; lists of several lengths stay."""
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) or not is_numeric(kind.value_type):
            continue
        column = table.column(name)
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) != 1 or not (size := lengths.pop()):  # none, or a row without a list
            continue
        flat = pc.list_flatten(column)
        place = table.column_names.index(name)
        table = table.remove_column(place)
        for i in range(size):
            table = table.add_column(place + i, f"{name}_{i}", flat.take(pa.array(range(i, len(flat), size))))
    return table


def names_in(table: pa.Table, column: str, where: Path) -> list[str]:
    """Return a column of names as texts, without blanks around them. Raises InputError where a row has none."""
    found = ["" if value is None or value != value else str(value).strip() for value in table.column(column).to_pylist()]
    gaps = found.count("")
    require(gaps == 0, f"{where} must hold a name in every row of column {column}, got {gaps} rows without one. Fill or remove them.")
    return found


def coded(names: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct names, sorted [K] objects, and the place of each name among them [N].

    A numpy array of texts is as wide as its longest: one name of 2,000 characters made 1.6 GB of 200,000 rows.
    """
    distinct = sorted(set(names))
    place = {name: i for i, name in enumerate(distinct)}
    return np.array(distinct, dtype=object), np.fromiter((place[name] for name in names), dtype=np.int64, count=len(names))


def rows_by(codes: np.ndarray) -> list[np.ndarray]:
    """Return the numbers, ascending, of the rows [N] of each code, 0 to the greatest one."""
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def newest(names: Sequence[str], rows: np.ndarray) -> dict[str, list[float]]:
    """Return for every name what its rows [N, U], in the order of time, told last, column by column; NaN where they never told."""
    told = np.array(names, dtype=object)
    last = [dict(zip(told[known].tolist(), column[known].tolist(), strict=True)) for column in rows.T for known in [np.isfinite(column)]]
    return {name: [of.get(name, np.nan) for of in last] for name in dict.fromkeys(told.tolist())}


def is_numeric(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def numbers(table: pa.Table, names: Sequence[str], where: Path) -> np.ndarray:
    """Return columns as [N, D] float64; missing numbers, and those too large for float32, as NaN. Raises InputError naming a column of something else."""
    kinds = {name: table.schema.field(name).type for name in names}
    odd = [f"{name} ({kind})" for name, kind in kinds.items() if not (is_numeric(kind) or pa.types.is_null(kind))]
    require(not odd, f"{where} must hold numbers in its feature columns, got {describe(odd)}. Leave them out, or turn them into numbers.")
    columns = [table.column(name).cast(pa.float64(), safe=False).to_numpy() for name in names]
    rows = np.stack(columns, 1) if columns else np.zeros((len(table), 0))
    return np.where(np.abs(rows) <= np.finfo(np.float32).max, rows, np.nan)
