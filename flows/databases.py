"""Stores on a database server: asked once before any work begins, and shown without their password."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components.inputs import InputError
from components.plain import masked, one_line

SERVERS = ("postgresql", "mysql", "mssql")
PATIENCE = 10  # seconds until a server that does not answer is given up
AWAY = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED")
FULL = "disk is full"  # sqlite's words, which MLflow wraps in many others
LOCK = 0x6665776C  # the number of the lock of `alone`: any, the same for all


def is_server(uri: str) -> bool:
    """Tell whether an MLflow URI names a database server, which runs write to themselves; neither a file nor an MLflow server (http)."""
    return re.split(r"[+:]", uri, maxsplit=1)[0] in SERVERS


def ask(uri: str) -> None:
    """Connect to a database server once. Raises InputError at once where it does not answer: MLflow alone tries for 100 seconds."""
    with _connected(uri):
        pass


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Wait until no other process of any machine is in here with the same PostgreSQL database; where it is another kind, or a file, go ahead."""
    if not uri.startswith("postgresql"):
        yield
        return
    with _connected(uri) as connection:  # closing it gives the lock back, and so does a death
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({LOCK})")
        yield


def absent(error: Exception) -> bool:
    """Tell whether MLflow answered that it has no such model, version or alias; a proxy that knows no MLflow, or lets nobody in, says it otherwise."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def full(error: Exception) -> bool:
    """Tell whether there was no room; of a database SQLAlchemy may say so in a later line than the first."""
    return FULL in str(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


def lost(error: Exception) -> bool:
    """Tell whether a write to MLflow failed because it, or its database, did not answer; not because it was refused."""
    import requests
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError

    if isinstance(error, MlflowException):
        if isinstance(error.__cause__, SQLAlchemyError):
            return not isinstance(error.__cause__, IntegrityError) and not full(error)
        own = isinstance(error, RestException) or str(error).startswith("API request")  # a server's word, or that there was none
        return error.error_code in AWAY or (own and error.error_code == "INTERNAL_ERROR")
    if isinstance(error, requests.RequestException):  # of artifacts
        return error.response is None or error.response.status_code >= 500
    return isinstance(error, InputError)  # of `ask`


@contextmanager
def _connected(uri: str) -> Iterator[Any]:
    """Open a connection for a moment. Raises InputError where there is none."""
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    told = f"MLFLOW_TRACKING_URI must name a database that answers, got {masked(uri)}"
    options = {"connect_timeout": PATIENCE} if uri.startswith("postgresql") else {}
    try:
        connection = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=options).connect()
    except ModuleNotFoundError as error:
        raise InputError(f"{told}, whose driver {error.name} is not installed. Install fewloop[postgres], or unset MLFLOW_TRACKING_URI.") from error
    except ArgumentError as error:  # its text repeats the URI
        raise InputError(f"{told}, which cannot be read. Use postgresql://user:password@host:port/database.") from error
    except SQLAlchemyError as error:
        first = one_line(getattr(error, "orig", error))
        raise InputError(f"{told}: {first}. Start it, correct MLFLOW_TRACKING_URI, or unset it.") from error
    with connection:
        yield connection
