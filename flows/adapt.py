"""Adapt a registered model to a handful of labelled examples and name others: `python -m flows.adapt model=... support=... query=... out=...`"""

import csv
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import cli

HELP = """python -m flows.adapt model=models:/<name>@champion support=<folder or file> query=<folder or file> out=<csv>

  model    a registered model, or the folder of a learner
  support  the examples: <folder>/<class>/* of pictures, one sub-folder a class; or a CSV or Parquet file of rows with their labels
  query    what is to be named: <folder>/* of pictures, or a file of rows
  out      predictions: file or row (from 0), class, probability, then each class's probability
"""


@dataclass(frozen=True)
class Given:
    """Examples as a pool stores them [S, ...], their labels [S], the classes' names, and what is to be named [Q, ...] with its names."""

    x: Any
    y: Any
    classes: list[str]
    query: Any
    names: list[str]


def read_pictures(support: Path, query: Path, shape: list[int]) -> Given:
    """Read folders of pictures as a model of inputs [C, H, W] takes them."""
    import numpy as np

    from components.domains.pictures import list_pictures, read_picture, read_support

    size, colour = shape[-1], shape[0] == 3
    x, y, classes = read_support(support, size, colour)
    files = list_pictures(query)
    return Given(x, y, classes, np.stack([read_picture(f, size, colour) for f in files]), [f.name for f in files])


def read_rows(support: Path, query: Path, columns: dict[str, Any]) -> Given:
    """Read tables of rows through the columns that the model was trained on."""
    import numpy as np

    from components.contracts import require
    from components.domains.columns import Columns, read_table

    own = Columns(**columns)
    known, asked = read_table(support), read_table(query)
    require(own.label in known.column_names, f"support must have the labels in column {own.label}, but {support} lacks it. Add it.")
    classes, y = np.unique([str(value) for value in known.column(own.label).to_pylist()], return_inverse=True)
    require(len(classes) >= 2, f"support needs examples of two classes at least, got {len(classes)} in {support}. Add rows of another class.")
    require(len(asked) > 0, f"query needs rows, got none in {query}. Add some.")
    return Given(own.take(known, support), y, classes.tolist(), own.take(asked, query), [str(i) for i in range(len(asked))])


def adapt(model: str, support: str, query: str, out: str) -> None:
    """Adapt once, predict all, write the table, and record it all as an MLflow run."""
    from components.contracts import require
    from flows import tracking

    target = Path(out)
    require(target.parent.is_dir(), f"out must lie in a folder that exists, got {target.parent}. Create it.")
    folder = tracking.model_folder(model)
    from components.learners import store
    from components.serving import predict

    learner, spec, about = store.load(folder)
    columns, shape = about.get("columns"), spec["input_shape"]
    require(
        spec["objective"] == "cross_entropy" and (len(shape) == 3 or columns is not None),
        f"adapt names pictures or rows, but model {model} takes inputs {shape} and predicts by {spec['objective']}. Serve it with mlflow models serve.",
    )
    given = read_rows(Path(support), Path(query), columns) if columns else read_pictures(Path(support), Path(query), shape)
    experiment = tracking.open_store(about["domain"])
    with tracking.run(experiment, "adapt", {"stage": "adapt", "model": model}) as run_id:
        tracking.log_params(run_id, {"model": model, "support": support, "query": query, "way": len(given.classes), "shots": len(given.y)})
        probabilities = predict(learner, given.x, given.y, given.query)
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row" if columns else "file", "class", "probability", *given.classes])
            for name, row in zip(given.names, probabilities, strict=True):
                writer.writerow([name, given.classes[int(row.argmax())], f"{row.max():.4f}", *(f"{p:.4f}" for p in row)])
        os.replace(partial, target)
        tracking.store().log_artifact(run_id, str(target))
        tracking.log_metrics(run_id, {"confidence": float(probabilities.max(1).mean())})
    print(f"{len(given.names)} {'rows' if columns else 'pictures'} named among {', '.join(given.classes)}: {target}")


if __name__ == "__main__":
    cli.entry(adapt, sys.argv[1:], HELP)
