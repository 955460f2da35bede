"""Regression on sine waves: each learner trained by itself, its error on the same test functions after 1 and after 10 adaptation steps.

    python -m benchmarks.sinusoid [learners=maml,anil,meta_sgd,mamlpp,cnp] [seed=0]

The setting is MAML's own (Finn et al. 2017, arXiv:1703.03400, sec. 5.1): 10 points, 40-40 units, one inner step while training.
"""

import sys
import tempfile
import time
from pathlib import Path

from components.answers import interval, score
from components.contracts import TrainerSection
from components.domains import sinusoid
from components.domains.options import OPTIONS
from components.domains.pool import Pool, open_pool, write_pool
from components.job import FitJob, Watch
from components.launch import fit
from components.learners import store
from components.learners.gradient import Maml
from components.tasksets import specs, write_tasksets
from components.validation import Validation
from flows.config import load


def prepare(folder: Path, seed: int) -> Pool:
    """Build the pool and its task sets in `folder`."""
    config = load(["experiment=sinusoid"])
    source = sinusoid.build(OPTIONS["sinusoid"](**config.domain.source))
    write_pool(source, config.domain.splits, "sinusoid", "benchmark", folder / "pool")
    pool = open_pool(folder / "pool")
    write_tasksets(specs(config.tasks, config.evaluation), pool, seed, folder / "tasksets")
    return pool


def train(name: str, folder: Path, seed: int, steps: int | None = None) -> float:
    """Meta-train one learner into `folder/<name>`; return the seconds it took."""
    more = [] if steps is None else [f"learner.fit.steps={steps}", f"learner.fit.epoch_steps={steps // 4}"]
    config = load(["experiment=sinusoid", f"learner={name}", *more])
    trainer: TrainerSection = config.trainer
    job = FitJob(
        objective="meta",
        out=str(folder / name / "out"),
        state=str(folder / name / "state"),
        pool=str(folder / "pool"),
        tasksets=str(folder / "tasksets"),
        seed=seed,
        domain=config.domain,
        backbone=config.backbone,
        fit=config.learner.fit,
        trainer=trainer,
        learner=config.learner,
        tasks_per_step=config.learner.tasks_per_step,
    )
    begin = time.monotonic()
    fit(job, Watch(), name)
    return time.monotonic() - begin


def errors(name: str, folder: Path, pool: Pool, steps: tuple[int, ...] = (1, 10)) -> dict[int, tuple[float, float]]:
    """Return the test error with its 95 % half-width after each number of adaptation steps; learners without steps have one."""
    learner, _, _ = store.load(folder / name / "out")
    found = {}
    for count in steps if isinstance(learner, Maml) else (0,):
        if isinstance(learner, Maml):
            learner.options.test_steps = count
        scores = score(learner, Validation(pool, folder / "tasksets", "test-1w10s"))
        found[count] = interval(scores.scores["mse"], scores.group)
    return found


def main() -> None:
    given = dict(argument.split("=") for argument in sys.argv[1:])
    seed, names = int(given.get("seed", 0)), given.get("learners", "maml,anil,meta_sgd,mamlpp,cnp").split(",")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        pool = prepare(folder, seed)
        print("| learner | squared error, 1 step | 10 steps | training |\n| --- | --- | --- | --- |")
        for name in names:
            seconds = train(name, folder, seed)
            found = errors(name, folder, pool)
            cells = [f"{mean:.4f} ± {half:.4f}" for mean, half in found.values()]
            print(f"| {name} | {cells[0]} | {cells[1] if len(cells) > 1 else 'no steps'} | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
