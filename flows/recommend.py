"""Adapt a model of ratings to what users have rated, and rank what they have not: how `python -m flows.adapt` does it for such models."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows import tracking
from flows.paths import into_place


def recommend(folder: Path, model: str, learner: Any, about: dict[str, Any], support: Path, query: Path | None, top: int, target: Path) -> None:
    """Write each user's items in the order of what they are expected to think of them, and record it all as an MLflow run.

    A model that learned an order tells scores, which have no unit; one that learned values tells expected ratings.
    """
    from components.domains.columns import names_in, read_table
    from components.domains.shelf import Shelf
    from components.inputs import require
    from components.plain import describe

    shelf = Shelf.open(folder, about["ratings"])
    known, unknown, strangers = shelf.read(support)
    asked, item = None, shelf.scale["item"]
    if query is not None:
        table = read_table(query, [item])
        require(item in table.column_names, f"query must have the column {item}, but {query} lacks it. Add it.")
        asked, more = shelf.numbers(list(dict.fromkeys(names_in(table, item, query))), query)
        unknown = sorted({*unknown, *more})
    experiment = tracking.open_store(about["domain"])
    with tracking.run(experiment, "adapt", {"stage": "adapt", "model": model}) as run_id:
        ratings = sum(len(one.values) for one in known)
        counts = {"users": len(known), "ratings": ratings, "unknown_items": len(unknown), "unknown_users": len(strangers)}
        tracking.log_params(run_id, {"model": model, "support": str(support), **counts})
        several, count, ordered = bool(known[0].user), 0, learner.objective.name == "ranking"
        with into_place(target) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*([shelf.scale["user"]] if several else []), item, "title", "score" if ordered else shelf.scale["rating"]])
            for one in known:
                for number, value in ranked(learner, shelf, one, asked, top):
                    writer.writerow([*([one.user] if several else []), shelf.names[number], shelf.titles[number], f"{value:.3f}"])
                    count += 1
        tracking.log_file(run_id, target)
    left = f", {len(unknown)} item{'s' * (len(unknown) > 1)} left out that the model does not know ({describe(unknown)})" if unknown else ""
    left += f", {len(strangers)} user{'s' * (len(strangers) > 1)} who named no other ({describe(strangers)})" if strangers else ""
    told = "ratings" if shelf.scale["rating"] else "touched items"
    print(f"{count} items ranked for {len(known)} user{'s' * (len(known) > 1)} from {ratings} {told}{left}: {target}")


def ranked(learner: Any, shelf: Any, known: Any, asked: Any, top: int) -> Iterator[tuple[int, float]]:
    """Yield the numbers of items and their expected ratings or scores, the best first: of those asked for, or of all that the user has not rated."""
    import numpy as np

    from components import serving

    offered = np.setdiff1d(np.arange(len(shelf.names)), known.items) if asked is None else asked
    if not len(offered):  # who has rated all of them
        return
    adapted = serving.adapt(learner, *shelf.examples(known))
    values = serving.answer(learner, adapted, shelf.inputs(offered, known))[:, 0]
    order = np.argsort(-values, kind="stable")[: top or None]
    told = values[order] if learner.objective.name == "ranking" else shelf.told(values[order])
    yield from zip(offered[order].tolist(), told.tolist(), strict=True)
