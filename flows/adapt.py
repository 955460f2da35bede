"""Adapt a registered model to a handful of labelled pictures and name others: `python -m flows.adapt model=... support=... query=... out=...`"""

import csv
import os
import sys
from pathlib import Path

from flows import cli

HELP = """python -m flows.adapt model=models:/<name>@champion support=<folder> query=<folder> out=<csv>

  model    a registered model, or the folder of a learner
  support  <folder>/<class>/*: the examples, one sub-folder a class, any number of each
  query    <folder>/*: the pictures to name
  out      predictions: file, class, probability, then each class's probability
"""


def adapt(model: str, support: str, query: str, out: str) -> None:
    """Adapt once, predict all, write the table, and record it all as an MLflow run."""
    from components.contracts import require
    from components.domains.pictures import list_pictures, read_picture, read_support
    from flows import tracking

    target = Path(out)
    require(target.parent.is_dir(), f"out must lie in a folder that exists, got {target.parent}. Create it.")
    folder = tracking.model_folder(model)
    from components.learners import store
    from components.serving import predict

    learner, spec, about = store.load(folder)
    require(
        len(spec["input_shape"]) == 3 and spec["objective"] == "cross_entropy",
        f"adapt names pictures, but model {model} takes inputs {spec['input_shape']} and predicts by {spec['objective']}. Serve it with mlflow models serve.",
    )
    size, colour = spec["input_shape"][-1], spec["input_shape"][0] == 3
    x, y, names = read_support(Path(support), size, colour)
    files = list_pictures(Path(query))
    import numpy as np

    queries = np.stack([read_picture(f, size, colour) for f in files])
    experiment = tracking.open_store(about["domain"])
    with tracking.run(experiment, "adapt", {"stage": "adapt", "model": model}) as run_id:
        tracking.log_params(run_id, {"model": model, "support": support, "query": query, "way": len(names), "shots": len(y)})
        probabilities = predict(learner, x, y, queries)
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "class", "probability", *names])
            for path, row in zip(files, probabilities, strict=True):
                writer.writerow([path.name, names[int(row.argmax())], f"{row.max():.4f}", *(f"{p:.4f}" for p in row)])
        os.replace(partial, target)
        tracking.store().log_artifact(run_id, str(target))
        tracking.log_metrics(run_id, {"confidence": float(probabilities.max(1).mean())})
    print(f"{len(files)} pictures named among {', '.join(names)}: {target}")


if __name__ == "__main__":
    cli.entry(adapt, sys.argv[1:], HELP)
