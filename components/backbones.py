"""A backbone on disk: `backbone.json`, its architecture and the shape of its inputs, and `backbone.safetensors`, its state dict.

Whoever trained it, by whatever means; docs/domains.md names the tensors. What fewloop trained has `lineage.json` beside them: the classes that took part.
"""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from components.inputs import InputError, require
from components.learning import BackboneSection
from components.lineage import trained_on
from components.networks import build_backbone
from components.plain import describe, narrow, one_line, to_plain

SPEC, WEIGHTS, LINEAGE = "backbone.json", "backbone.safetensors", "lineage.json"


def save(backbone: nn.Module, section: BackboneSection, input_shape: tuple[int, ...], folder: Path, behind: dict[str, Any] | None = None) -> None:
    """Write a backbone for inputs [C, H, W] or [D] into a folder; `behind`: what the learner that it is of tells of its classes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}, folder / WEIGHTS)
    (folder / SPEC).write_text(json.dumps(to_plain(narrow(section, BackboneSection)) | {"input_shape": list(input_shape)}, indent=1) + "\n")
    if behind is not None:
        (folder / LINEAGE).write_text(json.dumps(behind, indent=1) + "\n")


def behind(folder: str | Path) -> list[dict[str, Any]]:
    """Return what is told of the classes that the weights were trained on: nothing where others trained them. Raises InputError where it cannot be read."""
    path = Path(folder) / LINEAGE
    try:
        told = [json.loads(path.read_text())] if path.exists() else []
        for one in told:
            trained_on(one, one["domain"])
        return told
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{LINEAGE} must tell the classes of a backbone, got something else in {folder}. Export it again, or remove that file.") from error


def load(folder: str | Path, section: BackboneSection, input_shape: tuple[int, ...] | None) -> dict[str, Tensor]:
    """Load the weights of a backbone as `section` describes it, for inputs [C, H, W] or [D]; None: for those that it was trained on.

    Raises InputError where the folder holds anything else.
    """
    told = _told(Path(folder))
    wanted = to_plain(narrow(section, BackboneSection))
    if section.name == "mlp":  # what only pictures have
        told, wanted = ({name: own.get(name) for name in ("name", "widths", "activation", "input_shape") if name in own} for own in (told, wanted))
    others = [name for name in wanted if wanted[name] != told.get(name)]
    asked = ", ".join(f"backbone.{name}={wanted[name]}" for name in others)
    held = ", ".join(f"{name} {told.get(name)}" for name in others)
    require(not others, f"{asked} must be what backbone.start was trained with, got {held} in {folder}. Set the same values, or take other weights.")
    shape = tuple(told["input_shape"]) if input_shape is None else input_shape
    require(
        list(shape) == told["input_shape"],
        f"backbone.start must be trained on inputs {list(shape)}, as the domain has, got {told['input_shape']} in {folder}. Change the domain's size.",
    )
    try:
        found = load_file(Path(folder) / WEIGHTS)
    except Exception as error:  # safetensors raises its own type
        raise InputError(f"backbone.start must have readable weights, got {WEIGHTS} in {folder}: {one_line(error)}. Save them again.") from error
    with torch.device("meta"):
        expected = build_backbone(section, shape).state_dict()
    problems = [f"no {name}" for name in expected if name not in found] + [f"an unknown {name}" for name in found if name not in expected]
    for name in (name for name in expected if name in found):
        pairs = [(f"{t.dtype}".removeprefix("torch."), list(t.shape)) for t in (found[name], expected[name])]
        if pairs[0] != pairs[1]:
            problems.append(f"{name} {pairs[0][0]} {pairs[0][1]} for {pairs[1][0]} {pairs[1][1]}")
        elif not found[name].isfinite().all():
            problems.append(f"{name} with numbers that are not finite")
    names = "docs/domains.md names them"
    require(not problems, f"backbone.start must hold the tensors of its architecture, got {describe(problems, 3)} in {folder}. Save them so: {names}.")
    return found


def _told(folder: Path) -> dict[str, Any]:
    """Return what `backbone.json` says: the fields of BackboneSection, and `input_shape`."""
    missing = [name for name in (SPEC, WEIGHTS) if not (folder / name).is_file()]
    require(not missing, f"backbone.start must be a folder with {SPEC} and {WEIGHTS}, got {folder} without {' and '.join(missing)}. See docs/domains.md.")
    names = {*(f.name for f in fields(BackboneSection)), "input_shape"}
    try:
        told = {"separable": 0} | json.loads((folder / SPEC).read_text())  # what was written before blocks could be
        ok = isinstance(told, dict) and set(told) == names and all(isinstance(side, int) and side > 0 for side in told["input_shape"])
    except (ValueError, TypeError):
        told, ok = {}, False
    require(ok, f"{SPEC} must hold {', '.join(sorted(names))}, got something else in {folder}. See docs/domains.md.")
    return dict(told)


def digest(folder: str | Path) -> str:
    """Return a digest of the weights: the same numbers under the same names are the same weights, wherever they lie."""
    found = hashlib.sha256()
    for name, tensor in sorted(load_file(Path(folder) / WEIGHTS).items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode() + tensor.numpy().tobytes())
    for told in behind(folder):  # who begins from them keeps it
        found.update(json.dumps(told, sort_keys=True).encode())
    return found.hexdigest()
