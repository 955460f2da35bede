"""Learners on disk: a specification in JSON and weights in safetensors. Nothing is unpickled."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from components.contracts import BackboneSection, InputError, from_plain, to_plain
from components.learners.fused import FusedLearner
from components.learners.gradient import Maml, MetaSgd
from components.learners.learner import Learner
from components.learners.metric import CosineBase, ProtoNet
from components.learners.options import OPTIONS
from components.networks import build_backbone

FAMILIES = {"protonet": ProtoNet, "maml": Maml, "fomaml": Maml, "meta_sgd": MetaSgd}
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


def build(spec: Spec, seed: int = 0) -> Learner:
    """Build a learner with fresh weights. Raises InputError for a name that is not known."""
    shape = tuple(spec["input_shape"])
    if spec["name"] == "fused":
        members = [build(member) for member in spec["members"]]
        return FusedLearner(members, spec["combine"], spec["weights"], spec["joint"], shape)
    with initial_weights(seed):
        backbone = build_backbone(from_plain(BackboneSection, spec["backbone"]), shape)
        if spec["name"] == "base":
            return CosineBase(backbone, backbone.dim, spec["options"]["classes"], spec["options"]["scale"])
        if spec["name"] not in FAMILIES:
            raise InputError(f"learner must be one of {', '.join(sorted(FAMILIES))}, got {spec['name']!r}. Choose one of them.")
        options = OPTIONS[spec["name"]](**spec["options"])
        family = FAMILIES[spec["name"]]
        return family(backbone, options) if family is ProtoNet else family(backbone, backbone.dim, options)  # type: ignore[call-arg, arg-type]


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
