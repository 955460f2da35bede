"""Adapt a registered model to a handful of labelled examples and name others: `python -m flows.adapt model=... support=... query=... out=...`"""

import csv
import sys
from pathlib import Path
from typing import Any

from flows import cli
from flows.paths import into_place, target_file, target_folder

HELP = """python -m flows.adapt model=models:/<name>@champion support=<folder or file> query=<folder or file> out=<csv>

  model    a registered model, the folder of a learner, or what save= wrote
  support  the examples: <folder>/<class>/* of pictures, one sub-folder a class; or a CSV or Parquet file of rows with their labels;
           or of ratings by one user, or by several, or of what they touched
  query    what is to be named: <folder>/* of pictures, or <picture>,<picture>,...; or a file of rows;
           of ratings (optional) a file of items, else all not rated yet
  out      predictions: file or row (from 0), class, probability, then each class's probability; of ratings the items, the best first
  abstain  (optional) leave the class empty where its probability is lower than this
  top      (optional, of ratings) so many items a user; all where it is left out
  save     (optional) keep the adapted model in this new folder: model=<that folder> then needs no support
"""


def read_support(support: Path, shape: list[int], columns: dict[str, Any] | None) -> tuple[Any, Any, list[str]]:
    """Return examples as a pool stores them [S, ...], their labels [S] and the classes' names, for a model of inputs `shape` or of `columns`."""
    if columns is None:
        from components.domains import pictures

        return pictures.read_support(support, shape[-1], shape[0] == 3)
    import numpy as np

    from components.domains.columns import Columns, names_in, read_table
    from components.inputs import require

    own = Columns(**columns)
    table = read_table(support, [own.label])
    require(own.label in table.column_names, f"support must have the labels in column {own.label}, but {support} lacks it. Add it.")
    classes, y = np.unique(names_in(table, own.label, support), return_inverse=True)
    require(len(classes) >= 2, f"support needs examples of two classes at least, got {len(classes)} in {support}. Add rows of another class.")
    return own.take(table, support), y, classes.tolist()


def read_query(query: str, shape: list[int], columns: dict[str, Any] | None) -> tuple[Any, list[str]]:
    """Return what is to be named [Q, ...] as a pool stores it, and the name of each: of a picture its file, of a row its number."""
    if columns is None:
        import numpy as np

        from components.domains import pictures

        files = pictures.listed(query)
        names = [f.name for f in files]
        once = len(set(names)) == len(names)
        return np.stack([pictures.read_picture(f, shape[-1], shape[0] == 3) for f in files]), names if once else [str(f) for f in files]
    from components.domains.columns import Columns, read_table
    from components.inputs import require

    table = read_table(Path(query))
    require(len(table) > 0, f"query needs rows, got none in {query}. Add some.")
    return Columns(**columns).take(table, Path(query)), [str(i) for i in range(len(table))]


def adapt(model: str, out: str, query: str = "", support: str = "", abstain: str = "0", save: str = "", top: str = "0") -> None:
    """Adapt once, predict all, write the table, and record it all as an MLflow run."""
    from components.inputs import require
    from flows import tracking

    target, kept = target_file(out, model, support, save, *query.split(",")), target_folder(save, "save") if save else None
    least = _probability(abstain)
    folder = tracking.model_folder(model)
    from components import serving
    from components.domains import pictures
    from components.learners import store
    from components.plain import describe

    learner, spec, about = store.load(folder)
    columns, shape = about.get("columns"), spec["input_shape"]
    if "ratings" in about:
        from flows.recommend import recommend

        require(support != "", "support must be a file of ratings, got none. Give support=<csv>.")
        require(not least, f"abstain is of models that tell classes apart, got {abstain} for one of ratings. Leave it out; top=20 keeps the best.")
        require(not save, "save keeps a model that tells classes apart; one of ratings adapts anew in milliseconds. Leave save out.")
        recommend(folder, model, learner, about, Path(support), Path(query) if query else None, _count(top), target)
        return
    require(top == "0", f"top is of models of ratings, got {top} for one that tells classes apart. Leave it out; abstain=0.7 leaves doubtful ones open.")
    require(query != "", "query must be what is to be named, got none. Give query=<folder or file>.")
    require(
        spec["objective"] == "cross_entropy" and (len(shape) == 3 or columns is not None),
        f"adapt names pictures or rows, but model {model} takes inputs {shape} and predicts by {spec['objective']}. Serve it with python -m flows.endpoint.",
    )
    known = read_support(Path(support), shape, columns) if support else None
    asked, names = read_query(query, shape, columns)
    losses: list[float] = []
    if known is not None:
        x, y, classes = known
        adapted, shots = serving.adapt(learner, x, y, losses), {"support": support, "shots": len(y)}
    else:
        (adapted, classes), shots = store.load_adapted(folder), {}
    columns_of = ("row" if columns else "file", "class", "probability")
    odd = [name for name in classes if name in columns_of]
    require(not odd, f"classes need other names than the columns {', '.join(columns_of)} of the table, got {describe(odd)}. Rename them.")
    experiment = tracking.open_store(about["domain"])
    with tracking.run(experiment, "adapt", {"stage": "adapt", "model": model}) as run_id:
        tracking.log_params(run_id, {"model": model, "query": query, "way": len(classes), "abstain": least, **shots})
        for step, loss in enumerate(losses):
            tracking.log_metrics(run_id, {"adapt/loss": loss}, step)
        probabilities = serving.answer(learner, adapted, asked)
        sure = probabilities.max(1) >= least
        with into_place(target) as partial, partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*columns_of, *classes])
            for name, known, row in zip(names, sure, probabilities, strict=True):
                writer.writerow([name, classes[int(row.argmax())] if known else "", f"{row.max():.4f}", *(f"{p:.4f}" for p in row)])
        if kept is not None:
            with into_place(kept) as partial:
                store.save(learner, spec, partial, about)
                store.save_adapted(adapted, partial, classes)
        tracking.log_file(run_id, target)
        tracking.log_metrics(run_id, {"confidence": float(probabilities.max(1).mean()), "abstained": float((~sure).mean())})
    if losses:
        print(f"loss on the examples, step by step: {' '.join(f'{loss:.3f}' for loss in losses)}")
    named = int(sure.sum())
    left = f", {len(names) - named} left open" if least > 0 else ""
    if columns is None and (others := pictures.others(support, query)):
        left += f", {len(others)} other file{'s' * (len(others) > 1)} left out ({describe(others)})"
    what = ("row" if columns else "picture") + "s" * (named != 1)
    print(f"{named} {what} named among {', '.join(classes)}{left}: {target}")


def _count(given: str) -> int:
    from components.inputs import require

    require(given.isdecimal(), f"top must be a number of items, got {given!r}. Use 20, or leave it out for all.")
    return int(given)


def _probability(given: str) -> float:
    from components.inputs import require

    try:
        value = float(given)
    except ValueError:
        value = -1.0
    require(0 <= value <= 1, f"abstain must be a probability in [0, 1], got {given!r}. Use 0.5, or leave it out.")
    return value


if __name__ == "__main__":
    cli.entry(adapt, sys.argv[1:], HELP)
