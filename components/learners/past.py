"""What earlier versions wrote, read as this one writes it: a model that was champion once can be loaded, and says what it said then.

Whoever gives an option, a key or a part of a learner another name, or adds one, adds a line here: the value under which nothing changes.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from components.learners.options import FAMILIES

KEYS = {"objective": "cross_entropy"}  # of a specification
BACKBONE: dict[str, Any] = {"norm": "batch", "activation": "relu", "separable": 0}
OPTIONS = {"scale": 0.0, "moves": "context"}  # a head that starts at one learned vector; a policy's rounds move its context
UNREAD = {"reptile": {"first_order": True}, "lstm": {"first_order": True}, "imaml": {"first_order": False}}  # what other values did not change
PARTS = {"snail": {"blocks.": "layers."}}


def specification(told: dict[str, Any]) -> dict[str, Any]:
    """Return a specification with all that was not there when it was written."""
    spec = KEYS | told
    if "members" in spec:
        return spec | {"members": [specification(member) for member in spec["members"]]}
    if "member" in spec:
        return spec | {"member": specification(spec["member"])}
    if "backbone" in spec:
        spec["backbone"] = BACKBONE | spec["backbone"] | ({"activation": "relu"} if spec["backbone"].get("name") == "conv" else {})
    if spec["name"] in FAMILIES:
        known = {field.name for field in dataclasses.fields(FAMILIES[spec["name"]].options)}
        spec["options"] = {name: value for name, value in OPTIONS.items() if name in known} | spec["options"] | UNREAD.get(spec["name"], {})
    return spec


def weights(spec: dict[str, Any], state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return weights under the names, and in the shapes, that they have now."""
    inner = [(f"{prefix}members.{i}.", member) for i, member in enumerate(spec.get("members", []))]
    inner += [(f"{prefix}member.", spec["member"])] if "member" in spec else []
    for place, member in inner:
        state = weights(member, state, place)
    for before, now in PARTS.get(spec["name"], {}).items():
        state = {prefix + now + key.removeprefix(prefix + before) if key.startswith(prefix + before) else key: value for key, value in state.items()}
    rates = prefix + "log_rates"
    if spec["objective"] == "return" and rates in state and state[rates].ndim == 1:  # all rounds had the same
        from components.learners.policy_gradient import ROUNDS

        state = state | {rates: state[rates].expand(ROUNDS, -1)}
    if f"{prefix}projection" in state and spec["name"] == "fused":  # x @ M; a cosine does not see that M is 1 - A A^T but for its scale
        values, vectors = torch.linalg.eigh(state[f"{prefix}projection"].double())
        axes = (vectors * (1 - values / values.max()).clamp_min(0).sqrt()).float()
        state = {key: value for key, value in state.items() if key != f"{prefix}projection"} | {f"{prefix}axes": axes}
    return state
