"""A model of ratings over HTTP: items by their names, ratings as users give them, or what was touched; the catalogue lies beside the model."""

from typing import Any

import numpy as np
from starlette.requests import Request

from components.contracts import ServingSection
from components.domains.columns import Columns
from components.domains.shelf import Known, Shelf
from components.endpoint import Endpoint, RefusedError
from components.plain import describe


class Rating(Endpoint):
    """The same calls, for one user a request, of whom nothing else is told; items are read as `flows.adapt` reads them."""

    def __init__(self, learner: Any, about: dict[str, Any], spec: dict[str, Any], limits: ServingSection, shelf: Shelf) -> None:
        super().__init__(learner, about, spec, limits)
        self.shelf = shelf
        self.rated = shelf.scale["rating"] is not None
        users = Columns(**shelf.scale["about"]) if "about" in shelf.scale else None
        self.nothing = users.read(np.full((1, len(users.names)), np.nan))[0] if users else np.zeros(0, dtype=np.float32)

    async def model(self, request: Request) -> dict[str, Any]:
        values = f"numbers from {self.shelf.scale['least']:g} to {self.shelf.scale['greatest']:g}" if self.rated else "1 for each touched item"
        inputs = {"item": f"one of {len(self.shelf.names)} names such as {describe(self.shelf.names[:3])}", "support_y": values}
        return self.about | {"input": inputs, "output": "values, on the scale of ratings" if self.rated else "values, which tell an order and have no unit"}

    def _examples(self, told: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        items, values, scale = self._named(told, "support_x"), self._numbers(told, "support_y", 1).astype(np.float64), self.shelf.scale
        least, greatest = (scale["least"], scale["greatest"]) if self.rated else (1, 1)
        if len(np.unique(items)) < len(items):
            raise RefusedError(422, "support_x must name every item once, got one more than once. Keep the newest.")
        if len(values) != len(items):
            raise RefusedError(422, f"support_y needs one value an item, got {len(values)} for {len(items)}. Send them side by side.")
        if values.min() < least or values.max() > greatest:
            raise RefusedError(422, f"support_y must be from {least:g} to {greatest:g}, got others. See /model.")
        return self.shelf.examples(self._who(items, values))

    def _items(self, told: dict[str, Any], name: str) -> np.ndarray:
        items = self._named(told, name)
        return self.shelf.inputs(items, self._who(items, items))

    def _answers(self, outputs: np.ndarray) -> np.ndarray:
        return outputs if self.learner.objective.name == "ranking" else self.shelf.told(outputs)

    def _who(self, items: np.ndarray, values: np.ndarray) -> Known:
        return Known("", items, values, self.nothing)

    def _named(self, told: dict[str, Any], name: str) -> np.ndarray:
        """Return the numbers of items that are named."""
        found = told[name]
        if not isinstance(found, list) or not found or not all(isinstance(one, str) for one in found):
            raise RefusedError(422, f"{name} must be a list of items' names, got something else. See /model.")
        if len(found) > self.limits.examples:
            raise RefusedError(413, f"{name} must hold at most {self.limits.examples} items, got {len(found)}. Send fewer.")
        lacks = sorted({one for one in found if one not in self.shelf.place})
        if lacks:
            raise RefusedError(422, f"{name} must name items that the model knows, got {describe(lacks)[:200]}. Leave them out.")
        return np.array([self.shelf.place[one] for one in found])
