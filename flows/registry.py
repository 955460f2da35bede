"""Models that come from outside a pipeline: those that the config names, and the present champion."""

import dataclasses

from components.contracts import Config
from components.plain import fingerprint
from flows import tracking
from flows.caching import Key, file_digest
from flows.plan import Outside, contender, keys


def planned(config: Config, pool: str) -> tuple[dict[str, Key], Outside]:
    """Return the plan and the models from outside that it uses."""
    outside = resolve(config)
    plan = keys(config, pool, outside)
    outside = opponent(config.registry.model, outside, plan[contender(plan)].fingerprint)
    return keys(config, pool, outside), outside


def resolve(config: Config) -> Outside:
    """Fetch the models that the config names and find the champion. Raises InputError where one is missing."""
    start = _model(config.learner.start) if config.learner.start.startswith("models:/") else None
    teachers = {name: _model(name) for name in config.student.teachers() if name.startswith("models:/")}
    return Outside(start, teachers, incumbent(config.registry.model))


def incumbent(model: str) -> tuple[str, str] | None:
    """Return (local folder, fingerprint) of the champion, or None where there is none."""
    if not tracking.store_exists():
        return None
    version = tracking.alias(model, "champion")
    if version is None:
        return None
    return str(tracking.model_folder(f"models:/{model}/{version.version}")), version.tags["fingerprint"]


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
