"""A model over HTTP: adapt once, predict many times by the id of what was adapted. JSON in and out; nothing is unpickled, nothing decompressed.

One process answers one request at a time, in its event loop: a request is a few milliseconds of arithmetic, and threads would wait for each other.
"""

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import orjson
from cachetools import TTLCache
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from components import serving
from components.contracts import ServingSection
from components.domains.columns import Columns
from components.inputs import InputError


class RefusedError(Exception):
    """A request that cannot be answered: its status and, in one line, what was required, what came and what to do."""

    def __init__(self, status: int, told: str) -> None:
        super().__init__(told)
        self.status = status


@dataclass(frozen=True)
class State:
    """What adaptation made of one support set, and the memory that it takes."""

    adapted: Any
    way: int
    size: int


OVERHEAD = 1500  # bytes of memory that a state takes beside its numbers: measured, of the smallest ones


class Endpoint:
    """One model behind /adapt, /predict, /model and /health.

    An id is the digest of model and examples: the same examples, sent again, cost nothing, and no id is another's by chance.
    """

    def __init__(self, learner: Any, about: dict[str, Any], spec: dict[str, Any], limits: ServingSection, columns: Columns | None = None) -> None:
        self.learner, self.about, self.limits, self.columns = learner, about, limits, columns
        self.item, self.shape = serving.stored(spec)
        self.classes = spec["objective"] == "cross_entropy"
        kept: Callable[[State], int] = lambda state: state.size  # noqa: E731
        self.states: TTLCache[str, State] = TTLCache(limits.kept_megabytes * 2**20, 60 * limits.minutes, getsizeof=kept)

    def application(self) -> Starlette:
        calls = {"/adapt": ("POST", self.adapt), "/predict": ("POST", self.predict), "/model": ("GET", self.model), "/health": ("GET", self.health)}
        return Starlette(routes=[Route(path, _answering(call), methods=[verb]) for path, (verb, call) in calls.items()])

    async def health(self, request: Request) -> dict[str, Any]:
        return {"status": "ok", "states": len(self.states), "kept_bytes": int(self.states.currsize)}

    async def model(self, request: Request) -> dict[str, Any]:
        labels = "labels 0..way-1" if self.classes else "values"
        inputs = {"item": self.item.name, "shape": list(self.shape), "support_y": labels}
        if self.columns is not None:
            inputs["columns"] = self.columns.names
        elif self.item == np.uint8 and len(self.shape) == 2:
            inputs["picture"] = "light on dark"
        return self.about | {"input": inputs, "output": "probabilities" if self.classes else "values"}

    async def adapt(self, request: Request) -> dict[str, Any]:
        """support_x [S, ...], support_y [S] -> the id of the adapted state."""
        told = await self._told(request, {"support_x", "support_y"})
        name, state = self._state(told)
        if name not in self.states:
            most = f"serving.kept_megabytes={self.limits.kept_megabytes:g}"
            raise RefusedError(413, f"What is adapted must fit {most}, got {state.size:,} bytes. Raise it, or send the support with the query.")
        return {"id": name, "way": state.way, "minutes": self.limits.minutes}

    async def predict(self, request: Request) -> dict[str, Any]:
        """query_x [Q, ...] with an id, or with the support itself -> probabilities [Q, way], or values [Q, 1]."""
        told = await self._told(request, {"query_x", "support_x", "support_y"}, {"id", "query_x"})
        query = self._items(told, "query_x")
        name, state = self._state_of(told["id"]) if "id" in told else self._state(told)
        outputs = _asked(lambda: serving.answer(self.learner, state.adapted, query))
        return {"id": name, "probabilities" if self.classes else "values": self._answers(outputs)}

    def _state_of(self, name: Any) -> tuple[str, State]:
        """Return the state that an id stands for. Refuses one that nobody gave, or that is kept no more."""
        state = self.states.get(name) if isinstance(name, str) else None
        if state is None:
            raise RefusedError(404, f"id must be one that /adapt gave within {self.limits.minutes:g} minutes, got {str(name)[:80]!r}. Adapt again.")
        return name, state

    def _state(self, told: dict[str, Any]) -> tuple[str, State]:
        """Return what the support adapts the model to, made anew only where it is not kept."""
        x, y = _asked(lambda: self._examples(told))
        digest = hashlib.sha256(f"{self.about['digest']} {x.shape}".encode())
        digest.update(x.tobytes())
        digest.update(y.tobytes())
        name = digest.hexdigest()
        state = self.states.get(name)
        if state is None:
            adapted = _asked(lambda: serving.adapt(self.learner, x, y))
            state = State(adapted, int(y.max()) + 1 if self.classes else 1, OVERHEAD + sum(t.numel() * t.element_size() for t in adapted.values()))
        with contextlib.suppress(ValueError):  # larger than all that may be kept: answered, and not kept
            self.states[name] = state  # what was there is kept anew, for as long
        return name, state

    def _examples(self, told: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return self._items(told, "support_x"), self._labels(told)

    def _answers(self, outputs: np.ndarray) -> np.ndarray:
        return outputs

    async def _told(self, request: Request, *either: set[str]) -> dict[str, Any]:
        """Return the request's object, which has the names of one of `either`. Refuses what is too large or too slow, or is no JSON object."""
        most, body = int(self.limits.megabytes * 2**20), bytearray()
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise RefusedError(413, f"A request must be of at most {self.limits.megabytes:g} MB, got more. Send fewer items.")
        except TimeoutError as error:
            raise RefusedError(408, f"A request must arrive within {self.limits.seconds:g} seconds, got a part of one. Send it again.") from error
        try:
            told = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise RefusedError(400, f"A request must be JSON, got something else: {error}.") from error
        names = " or ".join(", ".join(sorted(one)) or "nothing" for one in either)
        if not isinstance(told, dict):
            raise RefusedError(422, f"A request must be an object with {names}, got {type(told).__name__}.")
        if set(told) not in either:
            raise RefusedError(422, f"A request must have {names}, got {', '.join(sorted(told))[:200] or 'nothing'}. See /model.")
        return told

    def _items(self, told: dict[str, Any], name: str) -> np.ndarray:
        items = self._numbers(told, name, 1 + len(self.shape))
        if items.shape[1:] != self.shape:
            raise RefusedError(422, f"{name} must be items of shape {list(self.shape)}, got {list(items.shape[1:])}. See /model.")
        if self.item == np.uint8 and not (items.dtype.kind in "iu" and items.min() >= 0 and items.max() <= 255):
            raise RefusedError(422, f"{name} must be whole numbers from 0 to 255, got others. Send pictures as they are stored, not scaled.")
        return items.astype(self.item) if self.columns is None else self.columns.read(items)

    def _labels(self, told: dict[str, Any]) -> np.ndarray:
        labels = self._numbers(told, "support_y", 1)
        if not self.classes:
            return labels.astype(np.float32)
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= self.limits.way:
            raise RefusedError(422, f"support_y must be whole numbers from 0, of at most {self.limits.way} classes, got others. Number the classes from 0.")
        return labels.astype(np.int64)

    def _numbers(self, told: dict[str, Any], name: str, dimensions: int) -> np.ndarray:
        """Return finite numbers of so many dimensions, the first of them a number of examples within the limits."""
        given = told[name]
        if isinstance(given, list) and len(given) > self.limits.examples:
            raise RefusedError(413, f"{name} must hold at most {self.limits.examples} examples, got {len(given)}. Send fewer.")
        found = np.array(given) if _regular(given, dimensions) else np.array(None)
        if found.dtype.kind not in "iuf":  # integers beyond 64 bits are none of these
            raise RefusedError(422, f"{name} must be an array of numbers in {dimensions} dimensions, got something else. See /model.")
        largest = np.abs(found).max()
        if not math.isfinite(largest) or largest > 1e30:
            raise RefusedError(422, f"{name} must hold numbers of at most 1e30, got larger ones. Check the scale.")
        return found


def _regular(given: Any, dimensions: int) -> bool:
    """Tell whether these are lists of lists of numbers, all as long at each depth: an array of texts would take the longest one's memory for each."""
    level = [given]
    for _ in range(dimensions):
        if set(map(type, level)) != {list} or len(set(map(len, level))) > 1:
            return False
        level = list(chain.from_iterable(level))
    return bool(level) and set(map(type, level)) <= {int, float}


T = TypeVar("T")


def _asked(work: Callable[[], T]) -> T:
    """Ask the learner; what it cannot make of the numbers that came is the client's to change."""
    try:
        return work()
    except InputError as error:
        raise RefusedError(422, str(error)) from error


def _answering(call: Callable[[Request], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[Response]]:
    """Turn what a call returns, or why it refuses, into a response."""

    async def answered(request: Request) -> Response:
        try:
            status, told = 200, await call(request)
        except RefusedError as refused:
            status, told = refused.status, {"error": str(refused)}
        except ClientDisconnect:
            status, told = 400, {"error": "The client went away."}
        return Response(orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")

    return answered
