"""Which runs a sweep makes: lists and ranges as Hydra reads them, and trials as Optuna chooses them."""

import contextlib
import re

import optuna
import pytest
from workspace import SMOKE, Workspace

from components.inputs import InputError
from flows import cli
from flows.search import Grid, Search, runs

optuna.logging.set_verbosity(optuna.logging.WARNING)
LR = "learner.fit.lr=tag(log,interval(0.0001,0.1))"


def test_a_grid_is_every_combination_in_hydras_grammar() -> None:
    found = runs([SMOKE, "learner=protonet,ridge", "seed=range(0,2)", "student.sweep=[{noise: 0.1},{noise: 0.2}]", "mirror=/a,b=c"])
    assert isinstance(found, Grid) and len(found) == 4
    fixed = [SMOKE, "student.sweep=[{noise: 0.1},{noise: 0.2}]", "mirror=/a,b=c"]
    assert list(found) == [[*fixed, f"learner={learner}", f"seed={seed}"] for learner in ("protonet", "ridge") for seed in (0, 1)]
    assert list(runs(["student.widths=[[4,4],[8,8]],[[2,2],[3,3]]"])) == [["student.widths=[[4,4],[8,8]]"], ["student.widths=[[2,2],[3,3]]"]]


REFUSED = {
    "trials must be a number": ["trials=some", LR],
    "got no key with several values": ["trials=3", SMOKE],
    "got one for learner.fit.lr. Say how many": [LR],
    "a seed is nothing to choose": ["trials=3", LR, "seed=0,1"],
    "must grow between two numbers, from above 0": ["trials=3", "learner.fit.lr=interval(3,2)"],
    "interval(0.1,inf) must grow": ["trials=3", "learner.fit.lr=interval(0.1,inf)"],
    "'learner.fit.lr=interval(0.1' must be a value or a sweep in Hydra's grammar": ["learner.fit.lr=interval(0.1"],
    "'learner=glob(*)' must be a value or a sweep in Hydra's grammar": ["learner=glob(*)"],
    "must list its values in one order": ["trials=3", "learner=shuffle(maml,ridge)"],
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_cannot_be_swept_is_told(told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        runs(REFUSED[told])


@pytest.mark.parametrize(
    "axis", ["tasks.way=2,5", "tasks.val=20,40", "domain=glyphs,omniglot_small1", "domain.source.render_seed=0,1", "experiment=smoke,sinusoid"]
)
def test_trials_choose_by_one_kind_of_validation_tasks(axis: str, capsys: pytest.CaptureFixture[str]) -> None:
    for asked in (["trials=3"], []):
        with contextlib.nullcontext() if not asked else pytest.raises(SystemExit):
            cli.answer_early([SMOKE, "--multirun", *asked, axis])
    assert "which must be of one kind" in capsys.readouterr().err
    cli.answer_early([SMOKE, "--multirun", "trials=3", "domain.splits.train=3,5", "learner=maml,ridge"])


def test_a_number_between_the_ends_is_checked_too() -> None:
    with pytest.raises(SystemExit):
        cli.answer_early([SMOKE, "--multirun", "trials=4", "learner.tasks_per_step=interval(1,9)"])
    cli.answer_early([SMOKE, "--multirun", "trials=4", "learner.tasks_per_step=int(interval(1,9))"])


def test_trials_are_those_of_optunas_own_loop() -> None:
    def score(lr: float, learner: str) -> float:
        return -((lr - 0.003) ** 2) + (0.001 if learner == "ridge" else 0.0)

    search = runs([SMOKE, "seed=7", "trials=15", LR, "learner=protonet,ridge"])
    assert isinstance(search, Search) and len(search) == 15
    chosen = []
    for point in search:
        values = dict(override.split("=") for override in point)
        chosen.append((float(values["learner.fit.lr"]), values["learner"]))
        search.tell(None if len(chosen) == 4 else score(*chosen[-1]))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=7))
    for number, (lr, learner) in enumerate(chosen, 1):
        trial = study.ask({"learner.fit.lr": optuna.distributions.FloatDistribution(1e-4, 0.1, log=True)} | {
            "learner": optuna.distributions.CategoricalDistribution(["protonet", "ridge"])
        })  # fmt: skip
        assert (trial.params["learner.fit.lr"], trial.params["learner"]) == pytest.approx((lr, learner)), number
        study.tell(trial, None if number == 4 else score(lr, learner), state=optuna.trial.TrialState.FAIL if number == 4 else None)


def test_ends_and_choices_are_checked_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = runs(["trials=2", "tasks.way=int(interval(2,9))", "learner=protonet,ridge"])
    assert found.samples() == [[f"tasks.way={way}", f"learner={learner}"] for way, learner in ((2, "protonet"), (9, "protonet"), (2, "protonet"), (2, "ridge"))]
    with pytest.raises(SystemExit) as ended:
        cli.answer_early([SMOKE, "--multirun", "trials=2", "learner.fit.lr=interval(-1.0,0.1)"])
    assert ended.value.code == 2 and capsys.readouterr().err == "error: learner.fit.lr must be above 0, got -1.0. Set it to a positive number.\n"


@pytest.mark.slow
def test_a_search_is_chosen_by_validation_tasks_and_goes_on_where_it_was(finished: Workspace) -> None:
    asked = [SMOKE, "student.count=0", "learner.fit.lr=tag(log,interval(0.0001,0.1))", "--multirun"]
    first = finished.run("flows.retrain", *asked, "trials=2")
    more = finished.run("flows.retrain", *asked, "trials=3")
    chosen = [re.findall(r"sweep \d/\d: .*learner.fit.lr=(\S+)", out.stderr) for out in (first, more)]
    assert chosen[1][:2] == chosen[0] and len(set(chosen[1])) == 3
    assert more.stdout.count("ran: nothing") == 2, "the third alone is new"
    client = finished.mlflow()
    runs = client.search_runs([client.get_experiment_by_name("glyphs").experiment_id], "tags.stage = 'sweep'", order_by=["attributes.start_time DESC"])
    told = {m.step: m.value for m in client.get_metric_history(runs[0].info.run_id, "validation")}
    own = {m["key"]["section"]["learner"]["fit"]["lr"]: m["ref"]["metrics"]["val/accuracy"] for m in finished.outputs("teacher")[-3:]}
    assert {float(lr): told[i] for i, lr in enumerate(chosen[1], 1)} == pytest.approx(own)
    table = more.stdout[more.stdout.rindex("3 runs, 1 seed each") :]
    shown = [float(value) for value in re.findall(r"learner.fit.lr=\S+ +(\d+\.\d+)", table)]
    assert shown == sorted((round(100 * value, 2) for value in told.values()), reverse=True)
