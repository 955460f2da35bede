"""A pool as a model sees it: the same items, made into inputs by what was measured on the data that the model was trained on.

Columns are shifted and scaled by the rows that trained, and what is known of an item are factors of who rated it: a newer version of the data
gives the same item another input, which the model has never learned to read.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from components.domains.columns import Columns
from components.domains.pool import Pool
from components.domains.shelf import Shelf


def misfit(spec: dict[str, Any], objective: str, pool: Pool) -> str:
    """Say why a learner of a specification cannot be asked for the objective on a pool; empty where it can."""
    if spec["objective"] != objective:
        return f"The model predicts by {spec['objective']}, but {objective} is asked for"
    if spec["input_shape"] != list(pool.input_shape):
        return f"The model takes inputs {spec['input_shape']}, but domain {pool.domain} has {list(pool.input_shape)}"
    environments = {one["environment"] for one in (spec, *spec.get("members", [])) if "environment" in one}
    if environments - {pool.environment}:
        return f"The model acts in {', '.join(sorted(environments))}, but domain {pool.domain} has {pool.environment}"
    return ""


def view(pool: Pool, folder: str | Path, spec: dict[str, Any], about: dict[str, Any], objective: str) -> tuple[Pool | None, str]:
    """Return the pool as the model in `folder` sees it; or None, and why it cannot be asked for the objective on it."""
    seen = seen_by(pool, folder, about)
    reason = misfit(spec, objective, pool if seen is None else seen)
    if seen is None and not reason:
        reason = "The model reads columns, or ratings on a scale, that the data do not have"
    return (None, reason) if reason else (seen, "")


def seen_by(pool: Pool, folder: str | Path, about: dict[str, Any]) -> Pool | None:
    """Return the pool with the inputs of the model in `folder`, the pool itself where they are the same, None where they cannot be told.

    Of ratings, an item that the model does not know has no mean, no count and no factors: zeros.
    """
    if "columns" in pool.kept:
        return _table(pool, about.get("columns"))
    if "ratings" in pool.kept:
        return _ratings(pool, Path(folder), about.get("ratings"))
    return pool


def _table(pool: Pool, told: dict[str, Any] | None) -> Pool | None:
    if told is None or told == pool.kept["columns"]:
        return pool if told else None
    inputs = _columns(pool.inputs, told, pool.kept["columns"])
    return None if inputs is None else replace(pool, inputs=inputs)


def _columns(inputs: np.ndarray, told: dict[str, Any], kept: dict[str, Any]) -> np.ndarray | None:
    """Return inputs [N, D] that were read by columns `kept` as columns `told` read the same rows; None where these name others."""
    own, now = Columns(**told), Columns(**kept)
    if not set(own.names) <= set(now.names):
        return None
    place = [now.names.index(name) for name in own.names]
    return own.read(inputs[:, place] * np.array(now.scale)[place] + np.array(now.shift)[place])


def _ratings(pool: Pool, folder: Path, scale: dict[str, Any] | None) -> Pool | None:
    kept = pool.kept["ratings"]
    if scale is None or any(scale[end] != kept[end] for end in ("least", "greatest")) or ("about" in scale) > ("about" in kept):
        return None
    own, now = Shelf.open(folder, scale), Shelf.open(pool.path, kept)
    if own.names == now.names and np.array_equal(own.vectors, now.vectors) and scale.get("about") == kept.get("about"):
        return pool
    place = {name: i for i, name in enumerate(own.names)}
    notes = pq.read_table(pool.path / "items.parquet", columns=["note"])["note"].to_pylist()
    numbers = np.array([place.get(name, -1) for name in notes])
    vectors = np.concatenate([own.vectors, np.zeros_like(own.vectors[:1])])  # the last one is of what it does not know
    about = _columns(pool.inputs[:, now.vectors.shape[1] :], scale["about"], kept["about"]) if "about" in scale else np.zeros((len(numbers), 0))
    return None if about is None else replace(pool, inputs=np.concatenate([vectors[numbers], about], 1).astype(np.float32))
