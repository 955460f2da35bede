"""A page of results out of MLflow: `python -m flows.results out=<file.md> [model=<name>]`"""

import json
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from components.inputs import InputError, require
from flows import cli, paths, tracking

HELP = """python -m flows.results out=<file.md> [model=<name>]

Writes what MLflow holds as one page in Markdown: of every model the newest finished sweep or pipeline of each command, with its table and intervals, when it
ran and for how long, on which hardware, of which code and data.
"""


def entries(store: Any, experiment: str) -> list[Any]:
    """Return the newest finished run of every command, a sweep for its pipelines, the oldest first; of runs that only found it there, the one that made it."""
    found: list[Any] = []
    for stage in ("sweep", "retrain"):
        token = None
        while token != "":
            some = store.search_runs([experiment], f"tags.stage = '{stage}' AND attributes.status = 'FINISHED'", page_token=token)
            found, token = found + list(some), some.token or ""
    newest: dict[tuple[str, str], Any] = {}
    for run in sorted(found, key=lambda run: int(run.info.start_time)):
        tags = run.data.tags
        before = newest.get((tags["stage"], tags["overrides"]))
        same = before is not None and "fingerprint" in tags and before.data.tags.get("fingerprint") == tags["fingerprint"]
        if "mlflow.parentRunId" not in tags and not same:
            newest[tags["stage"], tags["overrides"]] = run
    return sorted(newest.values(), key=lambda run: int(run.info.start_time))


def section(run: Any) -> str:
    """Return one entry: its command as the heading, what it ran on, its table."""
    tags = run.data.tags
    sweep = " --multirun" if tags["stage"] == "sweep" else ""
    table = tracking.run_artifact(run.info.run_id, "sweep.md") if sweep else _tables(tags.get("mlflow.note.content", ""))
    began, seconds = datetime.fromtimestamp(run.info.start_time / 1000, UTC), (run.info.end_time - run.info.start_time) / 1000
    about = [f"{began:%Y-%m-%d}", f"{int(seconds // 60)} min {int(seconds % 60):02d} s", tags.get("hardware", ""), *_made_of(tags)]
    kept = tracking.run_artifact(run.info.run_id, "overrides.json")
    command = f"python -m flows.retrain {shlex.join(json.loads(kept)) if kept else tags['overrides']}".rstrip() + sweep
    return f"### `{command}`\n\n{', '.join(part for part in about if part)}.\n\n{(table or 'No table was kept.').strip()}\n"


def _made_of(tags: dict[str, str]) -> list[str]:
    return [f"{told} `{tags[name][:12]}`" for told, name in (("code", "git.commit"), ("data", "data.md5")) if name in tags]


def _tables(note: str) -> str:
    """Return a pipeline's description from what it says of the tasks on: its fate is of that day."""
    _, sign, rest = note.partition("\n\n")
    return rest if sign else note


def page(models: Iterable[tuple[str, list[Any]]]) -> str:
    """Return the whole page. Scores are in percent where they are shares; intervals hold 95 %."""
    parts = [
        "# Results\n",
        "Written by `python -m flows.results` from MLflow's runs. Scores with 95 % intervals over groups, or over classes where tasks mix all;",
        "differences are paired. Times are of that call on the clock, beside other work; stages that were cached took none.\n",
    ]
    for name, runs in models:
        parts += [f"## {name}\n", *map(section, runs)]
    return "\n".join(parts)


def results(out: str, model: str = "") -> None:
    """Write the page. Raises InputError where it cannot be written, or there is no store, no such model, or no run in it."""
    target = paths.target_file(out)
    require(tracking.store_exists(), f"There must be runs, got no MLflow database in {paths.runs()}. Run make retrain.")
    store = tracking.store()
    known = sorted((one.name, one.experiment_id) for one in store.search_experiments() if one.name != "Default")
    chosen = [(name, found) for name, number in known if model in ("", name) and (found := entries(store, number))]
    if not chosen:
        raise InputError(f"There must be finished runs{f' of {model}' if model else ''}, got {', '.join(n for n, _ in known) or 'none'}. Run make retrain.")
    paths.write(target, page(chosen))
    print(f"{target}: {sum(len(runs) for _, runs in chosen)} results of {', '.join(name for name, _ in chosen)}")


if __name__ == "__main__":
    cli.entry(results, sys.argv[1:], HELP)
