"""Score any model on any domain's test tasks: `python -m flows.evaluate model=<uri> domain=<name> | experiment=<name> [against=<uri>] [key=value ...]`"""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts import Config
from components.inputs import require
from flows import cli

if TYPE_CHECKING:  # torch stays out of what starts a command
    from components.domains.pool import Pool
    from components.learners.learner import Learner
    from components.tasksets import TaskSpec

Loaded = tuple["Learner", dict[str, Any], dict[str, Any]]  # a learner, its specification, and what it says of itself
DIFFERENCE = "model-minus-against"
HELP = """python -m flows.evaluate model=<uri> domain=<name> | experiment=<name> [against=<uri>] [key=value ...]

Adapts the model to every test task of the domain, beside nearest neighbour in the space of inputs (where tasks are environments, beside
the model before it has played), and prints means with 95 % intervals.
  model    models:/<name>@<alias>, models:/<name>/<version>, or the folder of a learner
  domain   of pictures; of ratings, tables, policies or sine waves, the experiment that trains such models
  against  another model, adapted to the same tasks: the differences on these are paired
  others   any key of the config, such as evaluation.tasks=200, or evaluation.challenge=<folder> for one-shot runs
           in the challenge's format: <run>/class_labels.txt, which names the pictures of <run>/training and <run>/test
"""


def evaluate(*overrides: str, model: str, against: str = "") -> None:
    """Pin the data, draw the test tasks, score one or two models, and record it all as an MLflow run."""
    from components.domains.pool import open_pool
    from components.learners import store
    from components.tasksets import check
    from flows import tracking
    from flows.config import load
    from flows.versions import pinned

    config = load(overrides)
    named = {"model": model} | ({"against": against} if against else {})
    folders = {name: tracking.model_folder(uri) for name, uri in named.items()}
    experiment = tracking.open_store(config.registry.model)
    models = {name: (folder, store.load(folder)) for name, folder in folders.items()}
    asked = config.domain.objective
    for name, (_, (_, spec, _)) in models.items():
        told = f"{named[name]} predicts by {spec['objective']}, but domain {config.domain.name} asks for {asked}"
        require(spec["objective"] == asked, f"{told}. Choose another model or another domain.")

    def accept(made: Path) -> None:
        """Look at new data before they take the place of what is there."""
        pool = open_pool(made)
        _compared(models, config, pool)
        for table in _tables(config):
            check(table, pool)

    with pinned(config.domain, config.data.pin, config.data.write_pin, config.mirror, accept=accept) as data:
        pool = open_pool(data.path)
        compared, trained, seen = _compared(models, config, pool)
        names = pool.classes["name"].to_pylist()
        met = {name: len({names[c] for c in pool.split("test")} & own) for name, own in trained.items()}
        with tracking.run(experiment, "evaluate", {"stage": "evaluate", **named, "data.md5": data.data_md5}) as run_id:
            tracking.log_params(run_id, {**named, "overrides": " ".join(overrides), "classes_trained_on": met["model"]})
            tracking.log_input(run_id, data.domain, data.md5, data.path, "evaluate")
            metrics = _scores(compared, config, pool, seen, set().union(*trained.values()), run_id)
            tracking.log_metrics(run_id, {m.replace("/model/", "/"): v for m, v in metrics.items()})
    _tell(metrics, [*compared], config)
    for name, count in met.items():
        if count:
            print(f"{count} of the test classes were training classes of {named[name]}: these scores are not those of new classes")


def _compared(models: dict[str, tuple[Path, Loaded]], config: Config, pool: "Pool") -> tuple[dict[str, "Learner"], dict[str, set[str]], dict[str, "Pool"]]:
    """Return the models and what they are compared with; of each the classes that it was trained on, and the pool as it sees it, where that differs.

    Raises InputError where one fits no task.
    """
    from components.domains.seen import view
    from components.learners.reference import Nearest, WithoutSupport
    from components.lineage import trained_on

    seen: dict[str, Pool] = {}
    for name, (folder, (_, spec, about)) in models.items():
        own, reason = view(pool, folder, spec, about, config.domain.objective)
        which = "" if name == "model" else f" ({name}=)"
        require(own is not None, f"{reason}{which}. Choose another model, another domain, or the experiment that it was trained by.")
        assert own is not None
        seen |= {} if own is pool else {name: own}
    learners = {name: learner for name, (_, (learner, _, _)) in models.items()}
    beside, other = ("nearest", Nearest()) if pool.environment is None else ("unadapted", WithoutSupport(learners["model"]))
    other.objective = learners["model"].objective
    names = pool.classes["name"].to_pylist()
    trained = {name: {*names} & trained_on(about, pool.domain) for name, (_, (_, _, about)) in models.items()}
    return learners | {beside: other}, trained, seen


def _tables(config: Config) -> "list[TaskSpec]":
    from components.tasksets import specs

    return [s for s in specs(config.tasks, config.evaluation) if s.split == "test"]


def _scores(compared: dict[str, "Learner"], config: Config, pool: "Pool", seen: dict[str, "Pool"], trained: set[str], run_id: str) -> dict[str, float]:
    """Draw the test tasks, score everyone on them, and keep the scores task by task with the run."""
    from components import challenge
    from components.evaluation import evaluate as score
    from components.learners.learner import transductive
    from components.tasksets import write_tasksets
    from flows import paths, tracking

    e, pairs = config.evaluation, {DIFFERENCE: ("model", "against")}
    with tempfile.TemporaryDirectory(dir=paths.runs(), prefix=".evaluate-") as work:
        write_tasksets(_tables(config), pool, config.seed, Path(work))
        metrics = score(compared, {}, pairs, e.settings, "test", pool, work, Path(work), e.scores, seen=seen)
        metrics |= {f"{role}/transductive": 1.0 for role, learner in compared.items() if transductive(learner)}
        tracking.log_file(run_id, Path(work) / "scores-test.parquet")
        if e.challenge is not None:
            runs = challenge.open_runs(e.challenge, pool, e.challenge_runs, Path(work))
            metrics |= challenge.examine(compared, runs, pairs) | {"challenge/met": float(0 if runs.lookalike else challenge.met(e.challenge, pool, trained))}
    return metrics


def _tell(metrics: dict[str, float], roles: list[str], config: Config) -> None:
    """Print every score with its interval."""
    from flows.report import challenged, failed, scored, warned

    e = config.evaluation
    for setting in e.settings:
        for name in ("", *e.scores):
            cells = [f"{role} {scored(metrics, f'test/{setting}/{role}', name=name)}" for role in roles]
            gap = f"test/{setting}/{DIFFERENCE}"
            cells += [f"model - against {scored(metrics, gap, '+', name)}"] if "against" in roles else []
            print(f"{config.domain.name} {setting}{f' {name}' if name else ''}: {'   '.join(cells)}   ({e.tasks} tasks, 95 % interval)")
    for error, how in (("error", "independent decisions"), ("error_joint", "joint assignment, which knows that every class is asked for once")):
        if f"challenge/model/{error}" in metrics:
            cells = [f"{role} {failed(metrics, role, error)}" for role in roles]
            cells += [f"model - against {failed(metrics, DIFFERENCE, error, '+')}"] if "against" in roles else []
            print(f"{challenged(metrics, 'error')}, percent, {how}: {'   '.join(cells)}   (95 % interval)")
    for told in warned(metrics):
        print(told)


if __name__ == "__main__":
    cli.entry(evaluate, sys.argv[1:], HELP)
