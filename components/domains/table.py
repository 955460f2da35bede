"""The user's own vectors: rows of numbers with a label, from CSV or Parquet; embeddings of any model, or readings of sensors."""

import numpy as np

from components.domains.columns import Columns, coded, constant, is_numeric, names_in, numbers, read_table, rows_by
from components.domains.options import TableOptions
from components.domains.pool import PoolClass, Source
from components.inputs import require
from components.notices import tell
from components.plain import describe


def build(options: TableOptions, mirror: str | None = None) -> Source:
    """Read the rows, class by class. Raises InputError naming the column that is missing or holds something else than numbers."""
    path = options.place
    table = read_table(path, [options.label, options.group])
    needed = [options.label, *([options.group] if options.group else []), *options.features]
    lacks = [name for name in needed if name not in table.column_names]
    require(not lacks, f"{path} must have the columns {', '.join(needed)}, but lacks {describe(lacks)}; it has {describe(table.column_names, 8)}. Name them.")
    kept = {options.label, options.group}
    names = options.features or [f.name for f in table.schema if f.name and f.name not in kept and is_numeric(f.type)]
    others = [] if options.features else [f.name or "(no name)" for f in table.schema if f.name not in {*kept, *names}]
    if others:
        tell(f"{path}: {len(others)} columns left out that have no name, or hold something else than numbers: {describe(others)}")
    named = [name for name in options.features if name in kept]
    require(not named, f"domain.source.features must leave out label and group, which are what is asked for, got {describe(named)} among them. Remove it.")
    rows = numbers(table, names, path)
    gaps = np.isnan(rows).any(1)
    told = f"{path} must hold a number in every cell of its feature columns, got {int(gaps.sum())} of {len(rows)} rows with a missing one"
    require(options.missing != "refuse" or not gaps.any(), f"{told}. Fill them, or set domain.source.missing=drop or mean.")
    labels = np.array(names_in(table, options.label, path), dtype=object)
    groups = np.array(names_in(table, options.group, path) if options.group else ["rows"] * len(rows), dtype=object)
    if options.missing == "drop" and gaps.any():
        tell(f"{path}: {int(gaps.sum())} of {len(rows)} rows dropped for a missing number")
        rows, labels, groups = rows[~gaps], labels[~gaps], groups[~gaps]
    flat = constant(rows)
    if flat.any():
        tell(f"{path}: {int(flat.sum())} constant columns left out: {describe([n for n, f in zip(names, flat, strict=True) if f])}")
        names, rows = [n for n, f in zip(names, flat, strict=True) if not f], rows[:, ~flat]
    require(len(names) > 0, f"{path} must have numeric columns that vary beside {options.label}, got none. Add features.")
    columns = Columns(names, options.label, *(([], []) if options.standardise else ([0.0] * len(names), [1.0] * len(names))), options.missing == "mean")
    return _by_class(rows, labels, groups, columns, options)


def _by_class(rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, columns: Columns, options: TableOptions) -> Source:
    classes, chosen, small = [], [], []
    names, codes = coded(labels)
    for name, own in zip(names, rows_by(codes), strict=True):
        homes = sorted(set(groups[own]))
        require(len(homes) == 1, f"{options.file}: a class must be of one group, but {options.label}={name} is of {describe(homes)}. Rename the classes.")
        if len(own) < options.min_items:
            small.append(name)
            continue
        classes.append(PoolClass(name, homes[0], len(own)))
        chosen.append(own)
    if small:
        tell(f"{options.file}: {len(small)} classes of fewer than {options.min_items} rows left out: {describe(small)}")
    require(len(classes) >= 2, f"{options.file} must hold two classes of {options.min_items} rows at least, got {len(classes)}. Add rows.")
    order = np.concatenate(chosen)
    return Source(classes, rows[order], [""] * len(order), reading=columns)
