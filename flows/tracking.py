"""MLflow: one absolute URI, a run tree a pipeline, inputs with their digests, and the registry's aliases."""

import base64
import errno
import hashlib
import io
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from components.inputs import InputError
from components.manifest import intact
from components.plain import flatten, masked, one_line
from flows import databases, leftovers, paths, writes
from flows.spool import RefusedError, Spool, UnansweredError

Status = Literal["FINISHED", "FAILED", "KILLED"]


def uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the sqlite database under mlruns/. A file's place is absolute: servers are started in other folders."""
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{paths.runs() / 'mlflow.db'}"
    return f"sqlite:///{Path(given.removeprefix('sqlite:///')).absolute()}" if given.startswith("sqlite:///") else given


@cache
def client(where: str) -> Any:
    """Return MLflow's client of a store. Raises InputError where that is a database server which does not answer."""
    from mlflow import MlflowClient

    for setting, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")):
        os.environ.setdefault(setting, value)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # that it creates tables and engines; traces of what is told in one line
    if databases.is_server(where):
        databases.ask(where)
    else:  # every write finds the file by its name: another one may have been put in its place
        os.environ.setdefault("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    return MlflowClient(where)


def _away(error: Exception) -> InputError:
    return InputError(f"MLflow must answer at {masked(uri())}, got: {one_line(error)}. Start it (make ui), or correct MLFLOW_TRACKING_URI.")


def store() -> Any:
    """Return the client of the current store."""
    return client(uri())


def store_exists() -> bool:
    """Tell whether there is a store to ask; asking an absent local database would create it."""
    return not uri().startswith("sqlite:///") or Path(uri().removeprefix("sqlite:///")).exists()


def open_store(name: str) -> str:
    """Return the id of experiment `name`, creating database and experiment once. Raises InputError where MLflow does not answer."""
    paths.writable()
    _patience()  # a pipeline asks for it at its end
    from mlflow.exceptions import MlflowException

    try:
        with FileLock(paths.runs() / "mlflow.lock"), databases.alone(uri()):  # processes that create the database at once collide
            _create()
            found = store().get_experiment_by_name(name)
            spool().replay()
            if found is not None:
                return str(found.experiment_id)
            own = uri().startswith("sqlite:") or databases.is_server(uri())  # an MLflow server has a place for artifacts of its own
            return str(store().create_experiment(name, artifact_location=(paths.runs() / "artifacts" / name).as_uri() if own else None))
    except (MlflowException, OSError) as error:
        if databases.full(error):
            raise
        raise _away(error) from error


def _create() -> None:
    """Make the local database under another name first: MLflow cannot open one again whose making was killed between two of its migrations."""
    if store_exists():
        return
    place = Path(uri().removeprefix("sqlite:///"))
    partial = place.with_name(f"{place.name}.partial")
    for leftover in place.parent.glob(f"{partial.name}*"):  # sqlite's journal too
        leftover.unlink()
    client(f"sqlite:///{partial}").search_experiments(max_results=1)
    partial.replace(place)


@contextmanager
def run(experiment: str, name: str, tags: dict[str, str], parent: str | None = None) -> Iterator[str]:
    """Open a run and yield its id; it ends FINISHED, FAILED or KILLED as the body does."""
    tags = {"process": leftovers.own(), **tags} | ({"mlflow.parentRunId": parent} if parent else {})
    run_id = spool().write("begin", {"experiment": experiment, "name": name, "tags": tags, "at": _now()})
    assert run_id is not None
    status: Status = "FAILED"
    try:
        yield run_id
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        _write("end", run_id, status=status, at=_now())


def log_params(run_id: str, values: dict[str, Any]) -> None:
    """Log nested values as flat parameters; one too long for a parameter goes into an artifact, whole, and the parameter says so."""
    params = []
    for key, value in flatten(values).items():
        told = str(value)
        if len(told) > 6000:
            log_text(run_id, told, f"params/{key}.txt")
            told = f"see artifact params/{key}.txt"
        params.append([key, told])
    _write("params", run_id, values=params)


def log_metrics(run_id: str, metrics: dict[str, float], step: int = 0) -> None:
    _write("metrics", run_id, values=[[name, float(value)] for name, value in metrics.items()], at=_now(), step=step)


def log_input(run_id: str, name: str, digest: str, path: str, context: str) -> None:
    """Log a data set that the run reads, with its digest."""
    _write("dataset", run_id, name=name, digest=digest, path=path, context=context)


def set_tag(run_id: str, name: str, value: str) -> None:
    _write("tag", run_id, name=name, value=value)


def save_view(run_id: str, columns: list[str]) -> None:
    """Save which columns the list of runs of the run's experiment shows."""
    _write("view", run_id, columns=columns)


def log_text(run_id: str, text: str, name: str) -> None:
    _write("text", run_id, value=text, name=name)


def log_file(run_id: str, path: Path, folder: str | None = None) -> None:
    _write("file", run_id, path=str(path.absolute()), folder=folder)


def log_figure(run_ids: Iterable[str], figure: Any, name: str) -> None:
    """Log a matplotlib figure as a PNG to each of the runs; it is drawn once."""
    png = io.BytesIO()
    figure.savefig(png, format="png")
    for run_id in run_ids:
        _write("picture", run_id, png=base64.b64encode(png.getvalue()).decode(), name=name)


def log_outputs(run_id: str, folder: Path) -> None:
    """Log a stage's small files: config, manifest, learner, tables of scores; not the task tables."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and not (p.suffix == ".parquet" and "scores" not in p.name)):
        where = file.parent.relative_to(folder).as_posix()
        log_file(run_id, file, None if where == "." else where)


def settle() -> None:
    """Wait until MLflow has all that it was told, before it is asked. Raises InputError when it does not answer for FEWLOOP_PATIENCE seconds (600)."""
    spool().settle(_patience())


def _patience() -> float:
    given = os.environ.get("FEWLOOP_PATIENCE") or "600"
    try:
        return float(given)
    except ValueError as error:
        raise InputError(f"FEWLOOP_PATIENCE must be a number of seconds, got {given!r}. Use 600.") from error


def known(run_id: str) -> str:
    """Return MLflow's id of a run; one that was opened while MLflow did not answer has another name until it does."""
    try:
        return str(spool().known(run_id))
    except UnansweredError:
        return run_id


def _now() -> int:
    return int(time.time() * 1000)


def _write(what: str, run_id: str, **values: Any) -> None:
    spool().write(what, {"run_id": run_id, **values})


def spool() -> Spool:
    """Return what waits for the current store."""
    return _spool(uri(), paths.runs())


@cache
def _spool(where: str, runs: Path) -> Spool:
    def do(name: str, values: dict[str, Any]) -> str | None:
        import requests
        from mlflow.exceptions import MlflowException

        if where.startswith("sqlite:///") and not Path(where.removeprefix("sqlite:///")).exists():
            raise UnansweredError("its database is gone")  # asking would make an empty one
        try:
            made = getattr(writes, name)(client(where), **values)
        except (MlflowException, FileNotFoundError, requests.RequestException, InputError) as error:
            full = databases.full(error)
            told = databases.FULL if full else one_line(error)
            if databases.lost(error):
                raise UnansweredError(told) from error
            if full:  # neither silence nor a refusal: it ends the work, which goes on where there is room
                raise OSError(errno.ENOSPC, told) from error
            raise RefusedError(told) from error
        return made if isinstance(made, str) else None

    return Spool(runs / "spool" / hashlib.sha256(where.encode()).hexdigest()[:16], do)


def _found(run_id: str) -> Any | None:
    """Return a run, None where there is none, or it was deleted. Raises UnansweredError where the store is away, at once if it was so before."""
    from mlflow.exceptions import MlflowException

    if not store_exists() or spool().waits():
        raise UnansweredError("it was away")
    try:
        found = store().get_run(spool().known(run_id))
    except (MlflowException, InputError) as error:
        if databases.lost(error):
            raise UnansweredError(one_line(error)) from error
        return None
    return found if found.info.lifecycle_stage == "active" else None


def has_run(run_id: str) -> bool:
    """Tell whether the store knows a run, or will: where it does not answer at the moment, that is assumed."""
    try:
        return _found(run_id) is not None
    except UnansweredError:
        return True


def lacks(run_id: str, metrics: Iterable[str]) -> bool:
    """Tell whether the store knows a run that has not all of these metrics."""
    try:
        found = _found(run_id)
    except UnansweredError:
        return False
    return found is not None and not set(metrics) <= set(found.data.metrics)


def unfinished(run_id: str) -> bool:
    """Tell whether the store knows a run whose process ended before the run did."""
    try:
        found = _found(run_id)
    except UnansweredError:
        return False
    return found is not None and found.info.status in ("FAILED", "KILLED")


def finish(run_id: str) -> None:
    _write("end", run_id, status="FINISHED", at=_now())


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
        version = store().create_model_version(model, info.model_uri, run_id, tags=tags, model_id=info.model_id)  # a server asks for the id
    return str(version.version)


def version_with(model: str, tag: str, value: str) -> Any | None:
    """Return the newest version of a registered model whose tag has this value."""
    found = [v for v in versions(model) if v.tags.get(tag) == value]
    return max(found, key=lambda v: int(v.version), default=None)


def versions(model: str) -> list[Any]:
    """Return all versions of a registered model. Raises InputError where MLflow does not answer."""
    from mlflow.exceptions import MlflowException

    if "'" in model:  # which the registry's own query cannot say
        return []
    try:
        return list(store().search_model_versions(f"name = '{model}'"))
    except MlflowException as error:
        raise _away(error) from error


def alias(model: str, name: str) -> Any | None:
    """Return the version behind an alias, or None. Raises InputError where MLflow does not answer: nobody knows then whether there is one."""
    from mlflow.exceptions import MlflowException

    try:
        return store().get_model_version_by_alias(model, name)
    except MlflowException as error:
        if not databases.absent(error):
            raise _away(error) from error
        return None


def version_of(reference: str) -> Any:
    """Return the registered version behind `models:/<name>@<alias>` or `models:/<name>/<version>`. Raises InputError where there is none."""
    from mlflow.exceptions import MlflowException

    name, _, number = reference.removeprefix("models:/").partition("/")
    name, _, known = name.partition("@")
    try:
        return store().get_model_version(name, number) if number else store().get_model_version_by_alias(name, known)
    except MlflowException as error:
        if not databases.absent(error):
            raise _away(error) from error
        held = ", ".join(f"{v.name}/{v.version}" for v in versions(name)) if name else ""
        told = f"{reference} must be a registered model, got none of that name (versions there: {held or 'none'})"
        raise InputError(f"{told}. Run make retrain, or see make ui.") from error


def teacher_folder(version: Any) -> Path:
    """Return a local folder with the teacher of the pipeline that made a registered version. Raises InputError where it is kept no more."""
    from mlflow.exceptions import MlflowException

    try:
        pipeline = store().get_run(version.tags["retrain.run_id"])
        folder = Path(store().download_artifacts(pipeline.data.tags["stage.teacher.run_id"], ""))
        if (folder / "learner.json").exists():
            return folder
        reason = "no learner.json"
    except (MlflowException, OSError, KeyError) as error:
        reason = one_line(error)
    told = f"models:/{version.name}/{version.version} is fused, so its pipeline's teacher must be kept, got: {reason}"
    raise InputError(f"{told}. Use learner.start=pretrained.")


def model_folder(reference: str) -> Path:
    """Return a local folder with the learner of `models:/<name>@<alias>`, `models:/<name>/<version>`, or a path.

    Raises InputError where there is none, or a registered one whose files were changed since.
    """
    if not reference.startswith("models:/"):
        path = Path(reference)
        if not (path / "learner.json").exists():
            raise InputError(f"model must be models:/<name>@<alias>, models:/<name>/<version> or a learner's folder, got {reference!r}. See make ui.")
        return path
    import mlflow
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    version = version_of(reference)
    try:
        mlflow.set_tracking_uri(uri())
        found = list(Path(download_artifacts(artifact_uri=reference)).rglob("learner.json"))
        folder = min(found, key=lambda path: len(path.parts)).parent
    except (MlflowException, OSError, ValueError) as error:
        raise InputError(f"{reference} must have its files where the registry says, got none that can be read: {error}. Register it again.") from error
    intact(folder, version.tags.get("digest"))
    return folder
