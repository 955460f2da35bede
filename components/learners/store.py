"""Learners on disk: a specification in JSON and weights in safetensors. Nothing is unpickled."""

import hashlib
import importlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from components.contracts import AugmentSection
from components.domains.pool import KEPT
from components.inputs import InputError, require
from components.learners import past
from components.learners.learner import Adapted, Learner
from components.learners.options import BASES, family
from components.learning import BackboneSection
from components.networks import build_backbone
from components.objectives import OBJECTIVES
from components.plain import from_plain, narrow, one_line, to_plain

Spec = dict[str, Any]

_init_lock = threading.Lock()


@contextmanager
def initial_weights(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed` and leave the global generator as it was; one thread at a time."""
    with _init_lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def spec_of(
    name: str, options: dict[str, Any], backbone: BackboneSection, input_shape: tuple[int, ...], objective: str, environment: str | None = None
) -> Spec:
    """Return the plain specification of a learner: all that `build` needs. `theta*` is the name of a base model."""
    spec = {"name": name, "options": options, "backbone": to_plain(narrow(backbone, BackboneSection)), "input_shape": list(input_shape), "objective": objective}
    return spec | ({"environment": environment} if environment is not None else {})


def fused_spec(members: list[Spec], combine: str, weights: list[float], joint: bool) -> Spec:
    """Return the specification of a fused learner from its members'."""
    shared = {name: members[0][name] for name in ("input_shape", "objective")}
    return {"name": "fused", "members": members, "combine": combine, "weights": weights, "joint": joint, **shared}


def views_spec(member: Spec, count: int, augment: AugmentSection) -> Spec:
    """Return the specification of a learner that looks at `count` copies of every picture."""
    shared = {name: member[name] for name in ("input_shape", "objective")}
    return {"name": "views", "member": member, "count": count, "augment": to_plain(augment), **shared}


def build(spec: Spec, seed: int = 0) -> Learner:
    """Build a learner with fresh weights drawn from `seed`. Raises InputError for a name, objective or backbone that does not fit."""
    shape, objective = tuple(spec["input_shape"]), spec["objective"]
    if spec["name"] == "fused":
        fused = importlib.import_module("components.learners.fused")
        members = [build(member) for member in spec["members"]]
        learner: Learner = fused.join(members, spec["combine"], spec["weights"], spec["joint"], shape, spec.get("directions"))
        return learner
    if spec["name"] == "views":
        views = importlib.import_module("components.learners.views").Views
        looking: Learner = views(build(spec["member"], seed), spec["count"], from_plain(AugmentSection, spec["augment"]))
        return looking
    if spec["name"] == "linear":
        of_inputs: Learner = importlib.import_module("components.learners.reference").Linear(torch.zeros(shape[0] + 1, 1), 1.0, False)
        return of_inputs
    more: tuple[Any, ...] = ()
    if objective == "return":
        from components.environments import ENVIRONMENTS
        from components.learners.policy import CONTEXT

        more = (ENVIRONMENTS[spec["environment"]],)
        shape = (more[0].observation + CONTEXT,)
    with initial_weights(seed):
        backbone = build_backbone(from_plain(BackboneSection, spec["backbone"]), shape)
        if spec["name"] == "theta*":
            module, kind = BASES[objective]
            made = getattr(importlib.import_module(f"components.learners.{module}"), kind)(backbone, backbone.dim, spec["options"], *more)
        else:
            of = family(spec["name"])
            made = getattr(importlib.import_module(of.path), of.kind)(backbone, backbone.dim, of.options(**spec["options"]), *more)
        made.objective = OBJECTIVES[objective]
        made.started()
    return made  # type: ignore[no-any-return]


def save(learner: Learner, spec: Spec, folder: Path, about: dict[str, Any], beside: Path | None = None) -> None:
    """Write `learner.json` (specification, and `about`: domain, training classes) and `learner.safetensors`.

    What a model keeps to read rows that come later is taken from the folder `beside`, where there is any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in learner.state_dict().items()}
    save_file(state, folder / "learner.safetensors")
    if beside is not None and (beside / KEPT).exists():
        shutil.copy(beside / KEPT, folder)
    (folder / "learner.json").write_text(json.dumps({"spec": spec, "about": about}, indent=1, sort_keys=True) + "\n")


def load(folder: str | Path) -> tuple[Learner, Spec, dict[str, Any]]:
    """Load (learner in eval mode, specification, about). Raises InputError naming the file that is missing or damaged."""
    folder = Path(folder)
    try:
        told = json.loads((folder / "learner.json").read_text())
        spec = past.specification(told["spec"])
        learner = build(spec)
        learner.load_state_dict(past.weights(spec, load_file(folder / "learner.safetensors")))
        about = dict(told["about"])
    except InputError:
        raise
    except Exception as error:  # safetensors raises its own type; torch a RuntimeError on shapes
        raise InputError(
            f"A learner needs learner.json and learner.safetensors that match, got in {folder}: {one_line(error)}. Train or register it again."
        ) from error
    return learner.eval(), spec, about


def save_adapted(adapted: Adapted, folder: Path, classes: list[str]) -> None:
    """Write what a learner in `folder` was adapted to: `adapted.safetensors`, and the names of the classes."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in adapted.items()}, folder / "adapted.safetensors")
    (folder / "adapted.json").write_text(json.dumps({"classes": classes}, indent=1) + "\n")


def load_adapted(folder: str | Path) -> tuple[Adapted, list[str]]:
    """Load what `save_adapted` wrote. Raises InputError where the learner was not adapted, or the file is damaged."""
    path = Path(folder) / "adapted.safetensors"
    require(path.exists(), f"support must be given for a model that is not adapted yet, got none, and {folder} has no {path.name}. Give support=...")
    try:
        return load_file(path), list(json.loads((Path(folder) / "adapted.json").read_text())["classes"])
    except Exception as error:  # safetensors raises its own type
        raise InputError(f"{path} must be readable, got: {one_line(error)}. Adapt and save again.") from error


def digest(learner: Learner) -> str:
    """Return a digest of a learner's weights: two learners with the same one began, or stand, at the same place."""
    found = hashlib.sha256()
    for name, tensor in learner.state_dict().items():
        found.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def about(folder: str | Path) -> dict[str, Any]:
    """Return what a stored learner says of itself: domain, training classes, objective."""
    return dict(json.loads((Path(folder) / "learner.json").read_text())["about"])
