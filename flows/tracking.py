"""MLflow: one absolute URI, a run tree a pipeline, inputs with their digests, and the registry's aliases."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from components.contracts import InputError
from components.plain import flatten
from flows import paths

Status = Literal["FINISHED", "FAILED", "KILLED"]


def uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the sqlite database under mlruns/ as an absolute URI."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{paths.runs() / 'mlflow.db'}"


@cache
def client(where: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(where)


def store() -> Any:
    """Return the client of the current store."""
    return client(uri())


def store_exists() -> bool:
    """Tell whether there is a store to ask; asking an absent local database would create it."""
    return not uri().startswith("sqlite:///") or Path(uri().removeprefix("sqlite:///")).exists()


def open_store(name: str) -> str:
    """Return the id of experiment `name`, creating database and experiment once. Raises InputError where MLflow does not answer."""
    for setting, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")):
        os.environ.setdefault(setting, value)
    paths.runs().mkdir(parents=True, exist_ok=True)
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # that it creates tables
    try:
        with FileLock(paths.runs() / "mlflow.lock"):  # processes that create the database at once collide
            found = store().get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            local = uri().startswith("sqlite:")
            return str(store().create_experiment(name, artifact_location=(paths.runs() / "artifacts" / name).as_uri() if local else None))
    except (MlflowException, OSError) as error:
        first = str(error).splitlines()[0][:200]
        raise InputError(f"MLflow must answer at {uri()}, got: {first}. Start it (make ui), or unset MLFLOW_TRACKING_URI.") from error


@contextmanager
def run(experiment: str, name: str, tags: dict[str, str], parent: str | None = None) -> Iterator[str]:
    """Open a run and yield its id; it ends FINISHED, FAILED or KILLED as the body does."""
    tags = {"mlflow.runName": name, **tags} | ({"mlflow.parentRunId": parent} if parent else {})
    run_id = store().create_run(experiment, tags=tags, run_name=name).info.run_id
    status: Status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        store().set_terminated(run_id, status)


def log_params(run_id: str, values: dict[str, Any]) -> None:
    """Log nested values as flat parameters; one too long for a parameter goes into an artifact, whole, and the parameter says so."""
    from mlflow.entities import Param

    params = []
    for key, value in flatten(values).items():
        text = str(value)
        if len(text) > 6000:
            store().log_text(run_id, text, f"params/{key}.txt")
            text = f"see artifact params/{key}.txt"
        params.append(Param(key, text))
    for start in range(0, len(params), 100):
        store().log_batch(run_id, params=params[start : start + 100])


def log_metrics(run_id: str, metrics: dict[str, float], step: int = 0) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    entries = [Metric(name, float(value), now, step) for name, value in metrics.items()]
    for start in range(0, len(entries), 900):
        store().log_batch(run_id, metrics=entries[start : start + 900])


def log_input(run_id: str, name: str, digest: str, path: str, context: str) -> None:
    """Log a data set that the run reads, with its digest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = Dataset(name=name, digest=digest[:36], source_type="local", source=f'{{"uri": "{path}"}}')
    store().log_inputs(run_id, [DatasetInput(source, [InputTag("mlflow.data.context", context)])])


def has_run(run_id: str) -> bool:
    """Tell whether the store knows a run."""
    from mlflow.exceptions import MlflowException

    try:
        store().get_run(run_id)
    except MlflowException:
        return False
    return True


def log_outputs(run_id: str, folder: Path) -> None:
    """Log a stage's small files: config, manifest, learner, tables of scores; not the task tables."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and not (p.suffix == ".parquet" and "scores" not in p.name)):
        where = file.parent.relative_to(folder).as_posix()
        store().log_artifact(run_id, str(file), None if where == "." else where)


def run_artifact(run_id: str, name: str) -> str | None:
    """Return the text of a run's artifact, or None where there is no such run or artifact."""
    from mlflow.exceptions import MlflowException

    try:
        return Path(store().download_artifacts(run_id, name)).read_text()
    except (MlflowException, OSError):
        return None


_model_lock = threading.Lock()


def register(run_id: str, model: str, learner: str, pool: str, tags: dict[str, str]) -> str:
    """Log the learner as an MLflow model of the run and register it; return the version."""
    import mlflow

    from components import serving

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every step
    with _model_lock:
        mlflow.set_tracking_uri(uri())
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                loader_module=serving.__name__,
                data_path=learner,
                signature=serving.signature(learner),
                input_example=serving.example(pool),
                code_paths=[str(paths.CODE / "components")],
                pip_requirements=serving.requirements(),
            )
        if not store().search_registered_models(f"name = '{model}'"):
            store().create_registered_model(model)
        version = store().create_model_version(model, info.model_uri, run_id, tags=tags)
    return str(version.version)


def version_with(model: str, tag: str, value: str) -> Any | None:
    """Return the newest version of a registered model whose tag has this value."""
    found = [v for v in versions(model) if v.tags.get(tag) == value]
    return max(found, key=lambda v: int(v.version), default=None)


def versions(model: str) -> list[Any]:
    return list(store().search_model_versions(f"name = '{model}'"))


def alias(model: str, name: str) -> Any | None:
    """Return the version behind an alias, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return store().get_model_version_by_alias(model, name)
    except MlflowException:
        return None


def model_folder(reference: str) -> Path:
    """Return a local folder with the learner of `models:/<name>@<alias>`, `models:/<name>/<version>`, or a path.

    Raises InputError where there is none.
    """
    if not reference.startswith("models:/"):
        path = Path(reference)
        if not (path / "learner.json").exists():
            raise InputError(f"model must be models:/<name>@<alias>, models:/<name>/<version> or a learner's folder, got {reference!r}. See make ui.")
        return path
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        import mlflow

        mlflow.set_tracking_uri(uri())
        found = list(Path(download_artifacts(artifact_uri=reference)).rglob("learner.json"))
        return found[0].parent
    except (MlflowException, OSError, IndexError) as error:
        name = reference.removeprefix("models:/").partition("@")[0].partition("/")[0]
        held = ", ".join(f"{v.name}/{v.version}" for v in versions(name)) if name else ""
        raise InputError(
            f"{reference} must be a registered model, got none of that name (versions there: {held or 'none'}). Run make retrain, or see make ui."
        ) from error
