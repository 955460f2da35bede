"""What comes from outside a pipeline: models and weights that the config names, and the present champion."""

import dataclasses
import json
from typing import Any

from filelock import FileLock

from components.contracts import Config
from components.inputs import require
from components.manifest import file_digest
from components.plain import fingerprint
from flows import paths, tracking
from flows.caching import Key
from flows.plan import Outside, contender, keys


def alone(model: str) -> FileLock:
    """Return the lock of whoever gives versions of a model their names: pipelines register and decide one after the other, and so does one by hand."""
    return FileLock(paths.runs() / f"promote-{model}.lock")


def planned(config: Config, pool: str) -> tuple[dict[str, Key], Outside]:
    """Return the plan and the models from outside that it uses."""
    outside = resolve(config)
    plan = keys(config, pool, outside)
    before = _start_of(outside.started) if config.learner.start == f"models:/{config.registry.model}@champion" else None
    if before is not None:  # the champion may be what this very run made, from the champion before it
        earlier = _started(outside, before)
        repeated = keys(config, pool, earlier)
        if outside.champion is not None and repeated[contender(repeated)].fingerprint == outside.champion[1]:
            outside, plan = earlier, repeated
    outside = opponent(config.registry.model, outside, plan[contender(plan)].fingerprint)
    return keys(config, pool, outside), outside


def resolve(config: Config) -> Outside:
    """Fetch the models and weights that the config names and find the champion. Raises InputError where one is missing."""
    teachers = {name: _model(name) for name in config.student.teachers() if name.startswith("models:/")}
    backbone = None
    if config.backbone.start is not None:
        from components import backbones

        backbone = backbones.digest(config.backbone.start)
    outside = Outside(None, teachers, incumbent(config.registry.model), backbone)
    return _started(outside, config.learner.start) if config.learner.start.startswith("models:/") else outside


def _started(outside: Outside, reference: str) -> Outside:
    """Return `outside` with the model that a teacher starts from. Raises InputError where it has no single network to start from."""
    version = tracking.version_of(reference)
    folder = tracking.model_folder(reference)
    spec = json.loads((folder / "learner.json").read_text())["spec"]
    if spec.get("member", spec)["name"] == "fused":  # several networks, none of the teacher's size: the teacher that taught them stands for them
        folder = tracking.teacher_folder(version)
    learned = {name: file_digest(folder / name) for name in ("learner.json", "learner.safetensors")}
    return dataclasses.replace(outside, start=(str(folder), fingerprint(learned)), started=f"models:/{version.name}/{version.version}")


def _start_of(reference: str | None) -> str | None:
    """Return the version that the teacher of a version started from, None where it started from none."""
    return tracking.version_of(reference).tags.get("started") if reference else None


def incumbent(model: str) -> tuple[str, str] | None:
    """Return (local folder, fingerprint) of the champion, or None where there is none."""
    if not tracking.store_exists():
        return None
    version = tracking.alias(model, "champion")
    if version is None:
        return None
    check_made(version)
    return str(tracking.model_folder(f"models:/{model}/{version.version}")), version.tags["fingerprint"]


def check_made(version: Any) -> None:
    """Raise InputError unless a pipeline made the version: what is judged beside a champion, and asked for again, is what the pipeline has recorded."""
    told = f"The champion of {version.name} must be a version that a pipeline registered, got version {version.version}, which has no tag"
    for tag in ("fingerprint", "retrain.run_id"):
        require(tag in version.tags, f"{told} {tag}. Choose another one: python -m flows.promote model={version.name} version=<n>.")


def opponent(model: str, outside: Outside, ours: str) -> Outside:
    """Return `outside` with the champion that our learner has to beat, or had to beat when it was judged before.

    Once our learner is champion itself, an unchanged run must find the evaluation that made it so.
    """
    if outside.champion is None or outside.champion[1] != ours:
        return outside
    version = tracking.version_with(model, "fingerprint", ours)
    beaten = tracking.version_with(model, "fingerprint", version.tags.get("incumbent", "none")) if version is not None else None
    if beaten is None:
        return dataclasses.replace(outside, champion=None)
    return dataclasses.replace(outside, champion=(str(tracking.model_folder(f"models:/{model}/{beaten.version}")), beaten.tags["fingerprint"]))


def _model(reference: str) -> tuple[str, str]:
    folder = tracking.model_folder(reference)
    return str(folder), fingerprint({p.name: file_digest(p) for p in sorted(folder.iterdir()) if p.is_file()})
