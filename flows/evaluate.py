"""Score any model on any domain's test tasks: `python -m flows.evaluate model=<uri> domain=<name> [key=value ...]`"""

import sys

from flows import cli

HELP = """python -m flows.evaluate model=<uri> domain=<name> [key=value ...]

Adapts the model to every test task of the domain, beside nearest neighbour in the space of inputs (where tasks are environments, beside
the model before it has played), and prints means with 95 % intervals.
  model    models:/<name>@<alias>, models:/<name>/<version>, or the folder of a learner
  others   any key of the config, such as evaluation.tasks=200, or evaluation.challenge=<folder> for one-shot runs
           in the challenge's format (see python -m flows.retrain --help)
"""


def evaluate(*overrides: str, model: str) -> None:
    """Pin the data, draw the test tasks, score, and record it all as an MLflow run."""
    from components.inputs import require
    from flows import tracking
    from flows.config import load
    from flows.report import scored
    from flows.versions import pin_data

    config = load(overrides)
    folder = tracking.model_folder(model)
    experiment = tracking.open_store(config.registry.model)
    from components import challenge
    from components.domains.pool import open_pool
    from components.evaluation import evaluate as score
    from components.learners import store
    from components.learners.reference import Nearest, WithoutSupport
    from components.tasksets import specs, write_tasksets
    from flows import paths

    learner, spec, about = store.load(folder)
    pinned = pin_data(config.domain, config.data.pin, config.data.write_pin, config.mirror)
    pool = open_pool(pinned.path)
    shape = list(pool.input_shape)
    require(
        spec["objective"] == config.domain.objective,
        f"The model predicts by {spec['objective']}, but domain {config.domain.name} asks for {config.domain.objective}. Choose another.",
    )
    beside, other = ("nearest", Nearest()) if pool.environment is None else ("unadapted", WithoutSupport(learner))
    other.objective = learner.objective
    compared = {"model": learner, beside: other}
    require(
        spec["input_shape"] == shape, f"The model takes inputs {spec['input_shape']}, but domain {config.domain.name} has {shape}. Choose a model of that size."
    )
    names = pool.classes["name"].to_pylist()
    met = {names[c] for c in pool.split("test")} & set(about["trained_on"]) if about["domain"] == pool.domain else set()
    with tracking.run(experiment, "evaluate", {"stage": "evaluate", "model": model, "data.md5": pinned.data_md5}) as run_id:
        tracking.log_params(run_id, {"model": model, "overrides": " ".join(overrides), "classes_trained_on": len(met)})
        tracking.log_input(run_id, pinned.domain, pinned.md5, pinned.path, "evaluate")
        import tempfile
        from pathlib import Path

        with tempfile.TemporaryDirectory(dir=paths.runs(), prefix=".evaluate-") as work:
            tables = [s for s in specs(config.tasks, config.evaluation) if s.split == "test"]
            write_tasksets(tables, pool, config.seed, Path(work))
            e = config.evaluation
            metrics = score(compared, {}, {}, e.settings, "test", pool, work, e.bootstrap, config.seed, Path(work), e.scores)
            tracking.log_file(run_id, Path(work) / "scores-test.parquet")
            if e.challenge is not None:
                runs = challenge.open_runs(e.challenge, pool, e.challenge_runs, Path(work))
                metrics |= challenge.examine(compared, runs, e.bootstrap, config.seed)
        tracking.log_metrics(run_id, {m.replace("/model/", "/"): v for m, v in metrics.items()})
    for setting in e.settings:
        for name in ("", *e.scores):
            cells = (f"{role} {scored(metrics, f'test/{setting}/{role}', name=name)}" for role in compared)
            print(f"{config.domain.name} {setting}{f' {name}' if name else ''}: {'   '.join(cells)}   ({e.tasks} tasks, 95 % interval)")
    for error, how in (("error", "independent decisions"), ("error_joint", "joint assignment, which knows that every class is asked for once")):
        if f"challenge/model/{error}" in metrics:
            cells = (f"{role} {metrics[f'challenge/{role}/{error}']:.2f} ± {metrics[f'challenge/{role}/{error}_ci95']:.2f}" for role in compared)
            print(f"challenge error, percent, {how}: {'   '.join(cells)}   ({int(metrics['challenge/runs'])} runs, 95 % interval)")
    if met:
        print(f"{len(met)} of the test classes were training classes of this model: these scores are not those of new classes")


if __name__ == "__main__":
    cli.entry(evaluate, sys.argv[1:], HELP)
