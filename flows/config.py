"""Compose conf/ into the typed sections of components/contracts.py and components/learning.py. The only place that knows Hydra and OmegaConf."""

import dataclasses
import os
import re
import threading
from collections.abc import Sequence
from functools import reduce
from typing import Any, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from components.contracts import Config
from components.domains.options import OPTIONS as DOMAIN_OPTIONS
from components.inputs import InputError, require
from components.learners.options import FAMILIES, GradientPolicyOptions
from components.plain import fingerprint, to_plain
from flows import paths
from flows.checks import check

LEARNER_OPTIONS = {name: of.options for name, of in FAMILIES.items()}
CONF = paths.HOUSE / "conf"
VERBATIM = (
    "mirror",
    "data.pin",
    "evaluation.challenge",
    "domain.source.root",
    "domain.source.file",
    "backbone.start",
)  # their values are paths, which may contain = and ,
_lock = threading.Lock()  # Hydra composes through a global


def groups() -> dict[str, list[str]]:
    """Return each config group and its choices."""
    return {g.name: sorted(p.stem for p in g.glob("*.yaml")) for g in sorted(CONF.iterdir()) if g.is_dir()}


def load(overrides: Sequence[str] = ()) -> Config:
    """Compose and validate. Raises InputError with one line for anything that is not a listed group, choice, key or value."""
    try:
        config = _typed(compose_plain(overrides))
        check(config)
    except OSError as error:
        raise InputError(f"A path must be one that can be asked for, got {error.strerror}: {str(error.filename)[:100]!r}. Correct it.") from error
    return config


def compose_plain(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose the overrides into plain nested dicts."""
    verbatim: dict[str, str] = {}
    passed = []
    for override in overrides:
        key, sign, value = override.partition("=")
        _check_override(override, key, sign, value)
        if key in VERBATIM:
            verbatim[key] = value
        else:
            passed.append(override)
    with _lock:
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                composed = compose("config", overrides=passed)
                for key in verbatim:
                    OmegaConf.update(composed, key, "")  # which refuses a key that is not there
                plain: Any = OmegaConf.to_container(composed, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(_one_line(error)) from error
        finally:
            GlobalHydra.instance().clear()
    for key, value in verbatim.items():
        *above, last = key.split(".")
        reduce(lambda section, name: section[name], above, plain)[last] = None if value in ("", "null") else value
    plain["mirror"] = plain["mirror"] or os.environ.get("FEWLOOP_MIRROR")
    return dict(plain)


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers from low to high, whole ones where both ends are `int`; on a logarithmic scale with `log`."""

    low: float
    high: float
    log: bool


Axis = tuple[str, list[str] | Interval]  # a key, and the values that a sweep gives it


def axes(overrides: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """Return the overrides that are the same in every run of a sweep, and the axes of the others. Raises InputError for what Hydra cannot parse."""
    fixed, varied = [], list[Axis]()
    for override in overrides:
        key, sign, _ = override.partition("=")
        if key in VERBATIM or not sign:
            fixed.append(override)
            continue
        try:
            parsed = OverridesParser.create().parse_override(override)
        except HydraException as error:
            raise _no_sweep(override, error) from error
        found = parsed.value()
        if isinstance(found, IntervalSweep) and found.start is not None and found.end is not None:
            varied.append((key, Interval(found.start, found.end, "log" in found.tags)))
        elif parsed.is_sweep_override():
            told = f"{override!r} must list its values in one order, got shuffled ones, which differ by every call. List them."
            require(not getattr(found, "shuffle", False), told)
            varied.append((key, _listed(parsed, override)))
        else:
            fixed.append(override)
    return fixed, varied


def _listed(parsed: Any, override: str) -> list[str]:
    """Return the values that a sweep lists. Raises InputError where it lists none."""
    try:
        return [*parsed.sweep_string_iterator()]
    except HydraException as error:
        raise _no_sweep(override, error) from error


def _no_sweep(override: str, error: Exception) -> InputError:
    return InputError(f"{override!r} must be a value or a sweep in Hydra's grammar, got: {' '.join(str(error).split())}.")


def validated_on(config: Config) -> str:
    """Return a digest of what makes validation tasks, their draw by the seed aside: scores on tasks of other kinds are no ranking."""
    domain = dataclasses.replace(config.domain, splits=dataclasses.replace(config.domain.splits, train=None))
    tasks = {name: getattr(config.tasks, name) for name in ("way", "shot", "query", "within", "val")}
    return fingerprint({"domain": to_plain(domain) | {"augment": None}, "tasks": tasks})


def _check_override(override: str, key: str, sign: str, value: str) -> None:
    require(bool(sign), f"An override is key=value or group=choice, got {override!r}. See python -m flows.retrain --help.")
    told = f"An override must be a value or name another key, got {override!r}, which asks for more. Write the value"
    require(key in VERBATIM or not re.search(r"\$\{[^}]*:", value), f"{told}.")  # ${oc.env:...} would put the environment into MLflow
    require(not re.match(r"[+~]", key), f"Only keys that exist can be changed, got {override!r}. Leave out the leading +, ++ or ~.")
    choices = groups()
    if key in choices:
        require(value in choices[key], f"{key} must be one of {', '.join(choices[key])}, got {value!r}. Choose exactly one of them.")


def _typed(plain: dict[str, Any]) -> Config:
    """Turn plain values into the sections, types and ranges checked."""
    for where, table in (
        (("domain", "source"), DOMAIN_OPTIONS),
        (("learner", "options"), LEARNER_OPTIONS),
        (("student", "learner", "options"), LEARNER_OPTIONS),
    ):
        parent = plain
        for name in where[:-1]:
            parent = parent[name]
            require(isinstance(parent, dict), f"{name} must be a group of keys, got {parent!r}. Change its keys one by one, as in --cfg job.")
        kind = table.get(str(parent["name"]))
        require(kind is not None, f"{'.'.join(where[:-1])}.name must be one of {', '.join(sorted(table))}, got {parent['name']!r}. Choose one of them.")
        assert kind is not None
        place, given = ".".join(where), parent[where[-1]]
        if isinstance(given, dict):  # what an experiment sets for its own family stays where another one is chosen, and is none of that one's
            of_others = {f.name for other in table.values() for f in dataclasses.fields(other)} - {f.name for f in dataclasses.fields(kind)}
            given = {key: value for key, value in given.items() if key not in of_others}
        options = _to_section(kind, given, place)
        parent[where[-1]] = dataclasses.asdict(options)
    config: Config = _to_section(Config, plain, "")
    if config.domain.objective == "return":
        config.base.policy = dataclasses.asdict(_to_section(GradientPolicyOptions, config.base.policy, "base.policy"))
    return config


def _to_section(kind: type, plain: dict[str, Any], where: str) -> Any:
    """Check keys, types, choices and ranges. Pydantic does it, keys aside, because OmegaConf's own schemas know no Literal."""
    _check_keys(kind, plain, where)
    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as errors:
        first = errors.errors()[0]
        reason = first.get("ctx", {}).get("error")
        key = ".".join([where, *map(str, first["loc"])]).strip(".")
        if isinstance(reason, InputError):
            raise InputError(_placed(str(reason), key)) from errors
        raise InputError(f"{key}: {first['msg']}, got {first['input']!r}. See the values with --cfg job.") from errors


def _check_keys(kind: type, plain: Any, where: str) -> None:
    """Raise InputError for a key that no section has: Hydra refuses it in an override, but not in a file of conf/, where it would do nothing."""
    if not isinstance(plain, dict):
        return  # of a wrong type, which is told with its value
    kinds = get_type_hints(kind)
    for key, value in plain.items():
        place = f"{where}.{key}".lstrip(".")
        require(key in kinds, f"{place} is not a key; there are {', '.join(kinds)}. Correct the file of conf/ that has it.")
        if dataclasses.is_dataclass(kinds[key]):
            _check_keys(kinds[key], value, place)


def _placed(told: str, place: str) -> str:
    """Name the whole key where a kind of section that stands in several places tells of its own: `steps` of base.fit, `learner.views` of student.learner."""
    key = told.split()[0]
    if not re.fullmatch(r"[a-z_.]+", key):
        return told
    above = key.rpartition(".")[0]
    return f"{place.removesuffix(above).strip('.')}.{told}".lstrip(".") if f".{place}".endswith(f".{above}".rstrip(".")) else told


def _one_line(error: Exception) -> str:
    """Say in one line what Hydra or OmegaConf says in several."""
    cause = error.__cause__ or error
    unknown = getattr(cause, "full_key", None)
    if unknown and isinstance(cause, ConfigKeyError | ConfigAttributeError):
        node = getattr(cause, "parent_node", None)
        known = ", ".join(map(str, node)) if isinstance(node, DictConfig) else "other keys"
        return f"{unknown} is not a key; there are {known}. See the values with python -m flows.retrain --cfg job."
    text = " ".join(line.strip() for line in str(cause).splitlines() if line.strip() and not re.match(r"\s*(object_type|reference_type|full_key)", line))
    if "full_key" not in str(cause) and error.__cause__ is not None:
        text = f"{' '.join(str(error).splitlines()[:1])} {text}"
    return f"{text}. See the groups with python -m flows.retrain --help, the keys with --cfg job."


def options_help() -> str:
    """Return the groups with their choices, for --help."""
    lines = ["groups (choose one of each):"]
    lines += [f"  {name}={'|'.join(choices)}" for name, choices in groups().items()]
    return "\n".join(lines)


def to_yaml(overrides: Sequence[str]) -> str:
    """Return the composed, validated config as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(load(overrides)))))
