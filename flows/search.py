"""Which runs a --multirun makes: every combination of the values listed, or `trials=N` of them that Optuna chooses by validation tasks.

Values are in Hydra's own grammar of sweeps: `a,b`, `choice(a,b)`, `range(1,5)`, `interval(0.1,1)`, `tag(log,interval(1e-4,1e-2))`,
`int(interval(1,9))`.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from components.contracts import Config
from components.inputs import InputError, require
from flows import config
from flows.config import Axis, Interval


def runs(overrides: Sequence[str]) -> "Grid | Search":
    """Return the runs of a --multirun. Raises InputError for an interval without a number of trials, a number that is none, or without Optuna."""
    trials = [o.partition("=")[2] for o in overrides if o.startswith("trials=")]
    fixed, varied = config.axes([o for o in overrides if not o.startswith("trials=")])
    if not trials:
        endless = [key for key, values in varied if isinstance(values, Interval)]
        require(not endless, f"An interval has no end of values, got one for {', '.join(endless)}. Say how many runs to try: trials=20.")
        return Grid(fixed, varied)
    require(trials[-1].isdecimal() and int(trials[-1]) > 0, f"trials must be a number of runs, got {trials[-1]!r}. Use trials=20.")
    require(bool(varied), "trials=... needs something to choose, got no key with several values. List them: learner.fit.lr=interval(0.001,0.01).")
    return Search(fixed, varied, int(trials[-1]))


def _within(one: Any) -> list[Any]:
    """Return the ends of an interval, and a number of no round share between: of 1.0 to 9.0 both ends would pass for whole ones."""
    return [one.low, one.high] if isinstance(one.low, int) else [one.low, one.high, one.low + 0.382 * (one.high - one.low)]


class Grid:
    """Every combination of the values."""

    def __init__(self, fixed: list[str], varied: list[Axis]) -> None:
        lists = [[f"{key}={value}" for value in values] for key, values in varied if not isinstance(values, Interval)]
        self.points = [[*fixed, *chosen] for chosen in itertools.product(*lists)]

    def __len__(self) -> int:
        return len(self.points)

    def __iter__(self) -> Iterator[list[str]]:
        return iter(self.points)

    def samples(self) -> list[list[str]]:
        """Return the points by which to see whether the config is right."""
        return self.points

    def check(self, loaded: Sequence[Config]) -> None:
        """Every combination is asked for: nothing is chosen."""

    def tell(self, value: float | None) -> None:
        """Hear the validation score of the newest point, None where it failed."""


class Search:
    """So many points, each chosen by what came before, with the tree-structured Parzen estimator (Bergstra et al. 2011, NeurIPS 24, sec. 4).

    Nothing is kept: the sampler is seeded by the config's seed, so that the same command makes the same choices, and stages that are
    there already are not run again. A sweep that was stopped goes on where it was by running it once more.
    """

    def __init__(self, fixed: list[str], varied: list[Axis], trials: int) -> None:
        try:
            from optuna import distributions as known
        except ImportError as error:
            raise InputError("trials=... needs Optuna, got an environment without it. Use python -m pip install 'fewloop[sweep]'.") from error
        told = "trials=... chooses by validation tasks, and a seed is nothing to choose"
        require(all(key != "seed" for key, _ in varied), f"{told}, got several. Name one; run what was chosen with others after: seed=0,1,2 --multirun.")
        self.fixed, self.trials = fixed, trials
        self.axes: dict[str, Any] = {}
        for key, values in varied:
            if not isinstance(values, Interval):
                self.axes[key] = known.CategoricalDistribution(values)
                continue
            low, high, log = values.low, values.high, values.log
            right = low < high < math.inf and low > -math.inf and (low > 0 or not log)
            require(right, f"{key}=interval({low},{high}) must grow between two numbers, from above 0 where it is tagged log. Change its ends.")
            whole = isinstance(low, int) and isinstance(high, int)
            self.axes[key] = known.IntDistribution(int(low), int(high), log) if whole else known.FloatDistribution(low, high, log)

    def __len__(self) -> int:
        return self.trials

    def __iter__(self) -> Iterator[list[str]]:
        import optuna

        from components.scores import OBJECTIVE_SCORES, SCORES

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        loaded = config.load(self.samples()[0])
        sign = SCORES[OBJECTIVE_SCORES[loaded.domain.objective]].sign
        sampler = optuna.samplers.TPESampler(seed=loaded.seed)
        self.study = optuna.create_study(direction="maximize" if sign > 0 else "minimize", sampler=sampler)
        for _ in range(self.trials):
            self.trial = self.study.ask(self.axes)
            yield self.point(self.trial.params)

    def point(self, chosen: dict[str, Any]) -> list[str]:
        return [*self.fixed, *(f"{key}={value}" for key, value in chosen.items())]

    def samples(self) -> list[list[str]]:
        """Return a point for every value of a list, and both ends of an interval and one between, the first of all others: by them the config is checked."""
        ends = {key: list(one.choices) if hasattr(one, "choices") else _within(one) for key, one in self.axes.items()}
        first = {key: values[0] for key, values in ends.items()}
        return [self.point(first | {key: value}) for key, values in ends.items() for value in values]

    def check(self, loaded: Sequence[Config]) -> None:
        """Raise InputError where the configs of `samples` are validated on tasks of several kinds."""
        kinds = {config.validated_on(one) for one in loaded}
        told = "trials=... chooses by validation tasks, which must be of one kind: one domain, tasks.way, tasks.shot, tasks.query, tasks.within and tasks.val"
        require(len(kinds) == 1, f"{told}, got several. Name one of each; what is to be compared over several is a --multirun without trials.")

    def tell(self, value: float | None) -> None:
        import optuna

        if value is None:
            self.study.tell(self.trial, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(self.trial, value)
