"""Learners on disk: a specification in JSON and weights in safetensors. Nothing is unpickled."""

import importlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from components.contracts import BackboneSection, InputError, from_plain, to_plain
from components.learners.learner import Learner
from components.learners.options import OPTIONS
from components.networks import build_backbone

# Families are loaded by name, so that a stage depends on the code of the one that it uses.
FAMILIES = {
    "base": "components.learners.metric:CosineBase",
    "protonet": "components.learners.metric:ProtoNet",
    "maml": "components.learners.gradient:Maml",
    "fomaml": "components.learners.gradient:Maml",
    "meta_sgd": "components.learners.gradient:MetaSgd",
    "fused": "components.learners.fused:FusedLearner",
}
Spec = dict[str, Any]

_init_lock = threading.Lock()


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed` and leave the global generator as it was; one thread at a time."""
    with _init_lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def spec_of(name: str, options: dict[str, Any], backbone: BackboneSection, input_shape: tuple[int, ...]) -> Spec:
    """Return the plain specification of a learner: all that `build` needs."""
    return {"name": name, "options": options, "backbone": to_plain(backbone), "input_shape": list(input_shape)}


def fused_spec(members: list[Spec], combine: str, weights: list[float], joint: bool) -> Spec:
    """Return the specification of a fused learner from its members'."""
    return {"name": "fused", "members": members, "combine": combine, "weights": weights, "joint": joint, "input_shape": members[0]["input_shape"]}


def family(name: str) -> tuple[str, str]:
    """Return (module, class) of a learner. Raises InputError for a name that is not known."""
    if name not in FAMILIES:
        raise InputError(f"learner must be one of {', '.join(sorted(FAMILIES))}, got {name!r}. Choose one of them.")
    module, _, kind = FAMILIES[name].partition(":")
    return module, kind


def build(spec: Spec, seed: int = 0) -> Learner:
    """Build a learner with fresh weights drawn from `seed`."""
    module, kind = family(spec["name"])
    make = getattr(importlib.import_module(module), kind)
    shape = tuple(spec["input_shape"])
    if spec["name"] == "fused":
        learner: Learner = make([build(member) for member in spec["members"]], spec["combine"], spec["weights"], spec["joint"], shape)
        return learner
    with initial_weights(seed):
        backbone = build_backbone(from_plain(BackboneSection, spec["backbone"]), shape)
        options = spec["options"] if spec["name"] == "base" else OPTIONS[spec["name"]](**spec["options"])
        return make(backbone, backbone.dim, options)  # type: ignore[no-any-return]


def save(learner: Learner, spec: Spec, folder: Path, about: dict[str, Any]) -> None:
    """Write `learner.json` (specification, and `about`: domain, training classes) and `learner.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in learner.state_dict().items()}
    save_file(state, folder / "learner.safetensors")
    (folder / "learner.json").write_text(json.dumps({"spec": spec, "about": about}, indent=1, sort_keys=True) + "\n")


def load(folder: str | Path) -> tuple[Learner, Spec, dict[str, Any]]:
    """Load (learner in eval mode, specification, about). Raises InputError naming the file that is missing or damaged."""
    folder = Path(folder)
    try:
        told = json.loads((folder / "learner.json").read_text())
        learner = build(told["spec"])
        learner.load_state_dict(load_file(folder / "learner.safetensors"))
    except InputError:
        raise
    except Exception as error:  # safetensors raises its own type; torch a RuntimeError on shapes
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"A learner needs learner.json and learner.safetensors that match, got in {folder}: {first}. Train or register it again.") from error
    return learner.eval(), told["spec"], told["about"]


def about(folder: str | Path) -> dict[str, Any]:
    """Return what a stored learner says of itself: domain, training classes, objective."""
    return dict(json.loads((Path(folder) / "learner.json").read_text())["about"])
