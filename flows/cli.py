"""The command line of every entry point: flags, exit codes, one line for bad input. Imports no engine and no torch."""

import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from components.inputs import InputError
from components.plain import masked
from flows import config, databases, paths

HELP = """python -m flows.retrain [group=choice | key=value ...]

Runs the whole pipeline: pin data, draw task sets, pre-train, meta-train, distil, fuse, evaluate, promote.
Stages whose config, data and code are unchanged are not run again.

  --help        this text
  --cfg job     compose and check the config, print it, exit
  --dry-run     say which stages would run, why, and how long they took last time
  --multirun    values separated by commas are a grid; the runs end side by side under one parent run.
                With trials=20, Optuna chooses so many points by validation tasks, from lists and from intervals:
                trials=20 learner=protonet,ridge 'learner.fit.lr=tag(log,interval(1e-4,1e-2))'
  reproduce=<run id>   repeat a finished pipeline from nothing: its data version, config and seed; exit code 1 where any metric differs
"""


RESUMED = "stopped; the same command goes on from the last finished epoch"


def fail(error: BaseException) -> NoReturn:
    """Print one line and exit: 2 when the user's input is wrong, 1 for anything else."""
    print(f"error: {masked(' '.join(str(error).split()))}", file=sys.stderr)
    raise SystemExit(2 if isinstance(error, InputError) else 1)


def answer_early(arguments: Sequence[str]) -> None:
    """Answer what needs no engine and exit; return when the pipeline is to run."""
    flags, overrides = _split(arguments)
    try:
        if not flags & {"--help", "--cfg"}:
            paths.root()  # raises where there is none
        if "--help" in flags:
            print(HELP)
            print(config.options_help())
        elif "--cfg" in flags:
            print(config.to_yaml(overrides))
        elif "--dry-run" in flags:
            _dry_run(overrides)
        elif "--multirun" in flags:
            from flows import search

            asked = search.runs(overrides)
            asked.check([config.load(point) for point in asked.samples()])
            return _announce()
        elif _repeats(overrides):
            return _announce()
        else:
            config.load(overrides)
            return _announce()
        sys.stdout.flush()
    except InputError as error:
        fail(error)
    except BrokenPipeError:  # who reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def _announce() -> None:
    """Say on a terminal that the input is right and the engine is coming: its import and its server take seconds."""
    if sys.stderr.isatty():
        print("config is right; starting Prefect", file=sys.stderr, flush=True)


def _split(arguments: Sequence[str]) -> tuple[set[str], list[str]]:
    flags: set[str] = set()
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("--help", "-h"):
            flags.add("--help")
        elif word in ("--dry-run", "--multirun", "-m"):
            flags.add("--multirun" if word == "-m" else word)
        elif word == "--cfg":
            if next(words, None) != "job":
                fail(InputError("--cfg takes 'job', got something else. Use --cfg job."))
            flags.add(word)
        elif word.startswith("-"):
            fail(InputError(f"Flags are --help, --cfg job, --dry-run and --multirun, got {word!r}. See --help."))
        else:
            overrides.append(word)
    return flags, overrides


def _repeats(overrides: Sequence[str]) -> str | None:
    """Return the id of the run that is to be repeated, None where none is. Raises InputError beside other overrides: they are that run's own."""
    found = [o.partition("=")[2] for o in overrides if o.startswith("reproduce=")]
    if found and len(overrides) > 1:
        raise InputError(f"reproduce=<run id> stands alone, got {' '.join(overrides)!r}. Its overrides are those of the run.")
    return found[0] if found else None


def _dry_run(overrides: Sequence[str]) -> None:
    from flows import plan, registry, versions

    loaded = config.load(overrides)
    pool = versions.current_digest(loaded.domain, loaded.data.pin)
    if pool is None:
        print(f"pin_data        run     data/{loaded.domain.name} would be built: its options are not those of the pinned version")
    rows = plan.describe(registry.planned(loaded, pool or "not built yet")[0])
    for name, verdict, reason, seconds in rows:
        took = f"{seconds:.0f} s last time" if seconds is not None else "never timed"
        print(f"{name:<15} {verdict:<7} {reason} ({took})")


def guarded(body: Callable[[], Any], stopped: str = "stopped") -> None:
    """Run an entry point's body and turn every ending into an exit code; `stopped` is told where it was stopped and says nothing of its own."""
    try:
        body()
    except InputError as error:
        fail(error)
    except KeyboardInterrupt as error:
        fail(KeyboardInterrupt(str(error) or stopped))
    except Exception as error:
        cause = _input_error(error)
        if cause is not None:
            fail(cause)
        if databases.FULL in str(error):
            fail(OSError(f"The disk of {paths.runs()}, or of MLflow's database, is full. Make room: the same command goes on from the last finished epoch"))
        _trace(error)
        fail(error)


def _trace(error: Exception) -> None:
    """Print where an error came from, unless it says by itself what is wrong."""
    if _input_error(error) is None and not isinstance(error, (FloatingPointError, OSError)):
        traceback.print_exception(error)


def _input_error(error: BaseException) -> InputError | None:
    """Find the InputError that an engine wrapped."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InputError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def entry(body: Callable[..., Any], arguments: Sequence[str], text: str) -> None:
    """Run an entry point that takes key=value: those that `body` names go there, the rest are config overrides where it takes any.

    Names without a default must be given.
    """
    if not arguments or {"--help", "-h"} & set(arguments):
        print(text, end="")
        raise SystemExit(0)
    signature = inspect.signature(body).parameters
    named = [name for name, p in signature.items() if p.kind is not p.VAR_POSITIONAL]
    takes_more = len(named) < len(signature)

    def call() -> None:
        given, more = {}, []
        for argument in arguments:
            key, sign, value = argument.partition("=")
            if sign and key in named:
                given[key] = value
            elif takes_more:
                more.append(argument)
            else:
                raise InputError(f"Arguments are {', '.join(f'{n}=...' for n in named)}, got {argument!r}. See --help.")
        missing = [name for name in named if not given.get(name) and signature[name].default is inspect.Parameter.empty]
        if missing:
            raise InputError(f"{', '.join(f'{n}=...' for n in missing)} must be given, got {' '.join(arguments)!r}. See --help.")
        body(*more, **given)

    guarded(call)


def main(retrain: Callable[..., Any], arguments: Sequence[str]) -> None:
    """Run the flow once, or once a point of the grid."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):  # the ending is told once, by `guarded`
        logging.getLogger(name).setLevel(logging.CRITICAL)
    from flows import leftovers

    leftovers.claim()
    leftovers.reap()
    flags, overrides = _split(arguments)
    if run_id := _repeats(overrides):
        from flows.reproduce import reproduce

        guarded(lambda: reproduce(run_id))
    elif "--multirun" in flags:
        guarded(lambda: _multirun(retrain, overrides), RESUMED)
    else:
        guarded(lambda: retrain(overrides=overrides), RESUMED)


def _multirun(retrain: Callable[..., Any], overrides: Sequence[str]) -> None:
    from flows import artifacts, search, stages, sweeps, tracking
    from flows.contend import contend

    points = search.runs(overrides)
    experiment = tracking.open_store(config.load(points.samples()[0]).registry.model)
    done, failed, refused = list[sweeps.Point](), list[str](), []
    endings = list[str]()  # what became of those that contended
    tags = stages.environment_tags(None) | {"stage": "sweep", "overrides": " ".join(overrides)}
    with tracking.run(experiment, f"sweep of {len(points)}", tags) as sweep:
        for number, point in enumerate(points, 1):
            print(f"sweep {number}/{len(points)}: {' '.join(point)}", file=sys.stderr, flush=True)
            try:
                done.append(sweeps.Point(point, retrain(overrides=point, sweep=sweep)))
            except Exception as error:
                _trace(error)
                print(f"sweep {number}/{len(points)} failed, the others go on: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
                failed.append(f"{' '.join(point)}: {error}")
                refused.append(_input_error(error))
                points.tell(None)
                continue
            reached = done[-1].result.validation
            points.tell(reached)
            tracking.log_metrics(sweep, {"validation": reached}, number)
        tracking.log_text(sweep, json.dumps(list(overrides)), artifacts.OVERRIDES)
        for best in sweeps.contenders(done):
            try:
                endings.append(f"{' '.join(best.overrides)}: {contend(best.overrides, best.result.run_id)}")
            except Exception as error:
                failed.append(f"{' '.join(best.overrides)}: {error}")
                refused.append(_input_error(error))
        if done:
            sweeps.publish(done, sweep, failed)
        if endings:
            print(*endings, sep="\n", flush=True)
            tracking.set_tag(sweep, "promotion", "; ".join(endings))
        if failed:
            kind = InputError if all(refused) else RuntimeError
            raise kind(f"{len(failed)} of {len(points)} runs failed: {'; '.join(failed)}")
