"""Each write to an MLflow run as plain data, so that one which cannot be made now can be kept and made later."""

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

VIEW = "scores"  # the saved view of an experiment's list of runs
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"


def begin(store: Any, experiment: str, name: str, tags: dict[str, str], at: int) -> str:
    """Open a run that began `at` (milliseconds); return its id."""
    return str(store.create_run(experiment, start_time=at, tags={"mlflow.runName": name, **tags}, run_name=name).info.run_id)


def end(store: Any, run_id: str, status: str, at: int) -> None:
    store.set_terminated(run_id, status, at)


def params(store: Any, run_id: str, values: list[list[str]]) -> None:
    from mlflow.entities import Param

    for start in range(0, len(values), 100):
        store.log_batch(run_id, params=[Param(*value) for value in values[start : start + 100]])


def metrics(store: Any, run_id: str, values: list[list[Any]], at: int, step: int) -> None:
    from mlflow.entities import Metric

    for start in range(0, len(values), 900):
        store.log_batch(run_id, metrics=[Metric(name, value, at, step) for name, value in values[start : start + 900]])


def dataset(store: Any, run_id: str, name: str, digest: str, path: str, context: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = Dataset(name=name, digest=digest[:36], source_type="local", source=json.dumps({"uri": path}))
    store.log_inputs(run_id, [DatasetInput(source, [InputTag("mlflow.data.context", context)])])


def tag(store: Any, run_id: str, name: str, value: str) -> None:
    store.set_tag(run_id, name, value)


def view(store: Any, run_id: str, columns: list[str]) -> None:
    """Save a view of the run's experiment, as MLflow's UI does where a user shares one; it opens by `viewStateShareKey=<name>`."""
    store.set_experiment_tag(store.get_run(run_id).info.experiment_id, VIEW_TAG, json.dumps({"selectedColumns": columns}))


def text(store: Any, run_id: str, value: str, name: str) -> None:
    store.log_text(run_id, value, name)


def file(store: Any, run_id: str, path: str, folder: str | None) -> None:
    store.log_artifact(run_id, path, folder)


def picture(store: Any, run_id: str, png: str, name: str) -> None:
    """Keep a picture, given in base64."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, Path(name).name)
        path.write_bytes(base64.b64decode(png))
        store.log_artifact(run_id, str(path), Path(name).parent.as_posix())
