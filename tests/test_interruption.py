"""Killed in the middle, started again: the same metrics to the last digit. Two processes instead of one: the flow runs once."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import chaos
import numpy as np
import psutil
import pytest
from workspace import PATIENCE, SMOKE, Workspace, until

from flows import leftovers

# Long enough for a kill to fall between two checkpoints.
LONGER = ["learner.fit.steps=60", "learner.fit.epoch_steps=6", "student.count=1", "evaluation.settings=[5w1s]", "tasks.val=200"]
ONE = ["student.count=1", "evaluation.settings=[5w1s]"]


@pytest.mark.slow
def test_a_run_killed_in_meta_training_resumes_to_the_same_metrics(new_workspace) -> None:
    undisturbed: Workspace = new_workspace()
    undisturbed.retrain(SMOKE, *LONGER)
    killed: Workspace = new_workspace()
    process = killed.start("flows.retrain", SMOKE, *LONGER)
    teacher = killed.root / "mlruns/stages/teacher"
    until(lambda: list(teacher.glob("*.state/state.previous.ckpt")))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not killed.outputs("teacher"), "the kill came too late"
    again = killed.retrain(SMOKE, *LONGER)
    assert "resumed teacher" in again.stderr
    assert "cached: tasksets, tasksets-final, base" in again.stdout
    assert killed.metrics() == undisturbed.metrics()
    assert killed.metrics("teacher") == undisturbed.metrics("teacher")
    assert not list(teacher.glob("*.state")), "training state is dropped once the output is there"


@pytest.mark.slow
def test_two_processes_train_one_flow_run_and_the_same_teacher(new_workspace) -> None:
    asked = [*LONGER, "learner.fit.steps=12"]  # rounding grows step by step: sixty of them with another number of threads end 5 % apart on one processor
    one: Workspace = new_workspace()
    one.retrain(SMOKE, *asked)
    two: Workspace = new_workspace()
    for stage in ("tasksets", "base"):  # the same start: over the steps of pre-training rounding grows
        shutil.copytree(one.root / "mlruns/stages" / stage, two.root / "mlruns/stages" / stage)
    out = two.retrain(SMOKE, *asked, "trainer=ddp_sim")
    assert "cached: tasksets, tasksets-final, base" in out.stdout  # device count is in no key
    client = two.mlflow()
    runs = client.search_runs([client.get_experiment_by_name("glyphs").experiment_id])
    assert len([r for r in runs if r.data.tags["stage"] == "retrain"]) == 1
    assert len([r for r in runs if r.data.tags["stage"] == "teacher"]) == 1
    from safetensors.numpy import load_file

    places = ((one, "base"), (one, "teacher"), (two, "teacher"))
    base, alone, both = (load_file(next((w.root / "mlruns/stages" / stage).glob("*/learner.safetensors"))) for w, stage in places)
    shared = [name for name in base if name.startswith("backbone.") and not name.endswith("num_batches_tracked")]
    moved, apart = (sum(np.square(alone[name] - other[name]).sum() for name in shared) ** 0.5 for other in (base, both))
    assert apart < 0.03 * moved, "what two processes train differs by rounding from what one does (measured: 0.4 % of how far training moved it)"


@pytest.mark.slow
def test_a_second_pipeline_on_the_same_key_is_told_who_holds_it(new_workspace) -> None:
    workspace: Workspace = new_workspace()
    slow = [*LONGER, "base.fit.steps=1600", "base.fit.epoch_steps=100"]  # still in pre-training when the second one gets there
    first = workspace.start("flows.retrain", SMOKE, *slow)
    until(lambda: list((workspace.root / "mlruns/stages/base").glob("*.owner")))
    second = workspace.retrain(SMOKE, *slow, expect=2)
    line = second.stderr.strip().splitlines()[-1]
    assert line.startswith("error: Stage base") and "process" in line and "is writing it" in line
    third = workspace.retrain(SMOKE, "domain.source.render_seed=1", expect=2)  # other data of the domain
    assert "data/glyphs must stay as it is while another pipeline uses it" in third.stderr.strip().splitlines()[-1]
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 0


@pytest.mark.slow
def test_a_deployed_run_leaves_pin_and_checkout_alone_on_new_data(new_workspace) -> None:
    workspace: Workspace = new_workspace()
    before = (workspace.root / "data.dvc").read_bytes()
    out = workspace.retrain(SMOKE, "data.write_pin=false", "domain.source.render_seed=1", *LONGER, "learner.fit.steps=6")
    assert "NEW DATA VERSION" in out.stderr
    assert (workspace.root / "data.dvc").read_bytes() == before
    client = workspace.mlflow()
    parent = next(r for r in client.search_runs([client.get_experiment_by_name("glyphs").experiment_id]) if r.data.tags["stage"] == "retrain")
    pin = client.download_artifacts(parent.info.run_id, "data.dvc")
    with open(pin) as file:
        assert file.read().encode() != before


def test_a_process_is_gone_once_it_has_ended_and_not_before() -> None:
    assert not leftovers.gone(leftovers.own())
    child = subprocess.Popen([sys.executable, "-c", "from flows import leftovers; print(leftovers.own()); input()"], stdin=-1, stdout=-1, text=True)
    assert child.stdin is not None and child.stdout is not None
    name = child.stdout.readline().strip()
    assert not leftovers.gone(name)
    number, started, host = name.split(" ")
    assert leftovers.gone(f"{number} {int(started) - 1} {host}"), "the same number, given again"
    assert not leftovers.gone(f"{number} {started} elsewhere"), "of another machine nobody here can say"
    child.communicate("")
    assert leftovers.gone(name)


def test_children_of_a_killed_pipeline_are_ended_and_no_others() -> None:
    begun = "import os, subprocess, sys; from flows import leftovers; leftovers.claim(); print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
    pipelines = [subprocess.Popen([sys.executable, "-c", begun], stdin=-1, stdout=-1, text=True) for _ in range(2)]
    children = [psutil.Process(int(p.stdout.readline())) for p in pipelines]
    pipelines[0].kill()
    pipelines[0].wait()
    assert leftovers.reap() == 1
    assert not children[0].is_running() and children[1].is_running()
    pipelines[1].kill()
    pipelines[1].wait()
    assert leftovers.reap() == 1


def test_a_process_ends_whose_parent_was_killed_while_it_was_still_importing() -> None:
    child = "import time; time.sleep(1); from components import parent; parent.end_with_parent(); print('on', flush=True); time.sleep(60)"
    begun = f"import subprocess, sys, os; from components import parent; subprocess.Popen([sys.executable, '-c', {child!r}], env=os.environ | parent.told())"
    begun += "; print('begun', flush=True)"
    started = subprocess.Popen([sys.executable, "-c", begun], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None and started.stdout.readline() == "begun\n"
    started.wait()
    began = time.monotonic()
    rest = started.stdout.read()  # to its end: the child holds the other side until it ends
    assert rest in ("on\n", "") and time.monotonic() - began < 30


@pytest.mark.slow
def test_pipelines_killed_at_any_moment_recover(new_workspace: Callable[..., Workspace], own_prefect: dict[str, str]) -> None:
    """Each with a Prefect server of its own: that one is left over too."""
    undisturbed = new_workspace(own_prefect)
    begin = time.monotonic()
    undisturbed.retrain(SMOKE, *ONE)
    whole = time.monotonic() - begin
    done = chaos.kills(2, 0, lambda: new_workspace(own_prefect), whole, {stage: undisturbed.metrics(stage) for stage in chaos.STAGES}, *ONE)
    assert [k.wrong for k in done] == [[], []]


@pytest.mark.slow
def test_the_ranks_of_a_killed_pipeline_end_with_it(new_workspace: Callable[[], Workspace]) -> None:
    workspace = new_workspace()
    process = workspace.start("flows.retrain", SMOKE, "trainer=ddp_sim", "base.fit.steps=1600", "base.fit.epoch_steps=40")
    until(lambda: list((workspace.root / "mlruns/stages/base").glob("*.state/state.ckpt")))
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "components.launch" in p.cmdline()]
    assert len(ranks) == 3, "torchrun and two ranks"
    process.kill()
    process.wait()  # not communicate: that waits for whoever else has the pipes
    assert not psutil.wait_procs(ranks, 15)[1]


def revisions(database: Path) -> list[str]:
    """Return the version of MLflow's tables in a database; nothing where it has none yet."""
    with contextlib.closing(sqlite3.connect(database)) as held, contextlib.suppress(sqlite3.OperationalError):
        return [version for (version,) in held.execute("SELECT version_num FROM alembic_version")]
    return []


@pytest.mark.slow
def test_a_database_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    database, found = tmp_path / "mlflow.db", []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")} | {"FEWLOOP_RUNS": str(tmp_path)}
    command = [sys.executable, "-c", "from flows import tracking; print(tracking.open_store('some'))"]
    for later in (0.0, 0.3, 0.6):  # making its tables takes a second or two
        process = subprocess.Popen(command, env=environment)
        until(lambda: list(tmp_path.glob("mlflow.db*")))
        time.sleep(later)
        process.kill()
        process.wait()
        found += [revisions(database)] if database.exists() else []
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.stdout.strip().isdigit(), ended.stderr
    assert [path.name for path in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]
    assert all(one == revisions(database) != [] for one in found)
