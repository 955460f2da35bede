"""Killed in the middle, started again: the same metrics to the last digit. Two processes instead of one: the flow runs once."""

import os
import shutil
import signal
import time

import pytest
from workspace import SMOKE, Workspace

# Long enough for a kill to fall between two checkpoints.
LONGER = ["learner.fit.steps=60", "learner.fit.epoch_steps=6", "student.count=1", "evaluation.settings=[5w1s]", "tasks.val=200"]


def wait_for(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_killed_in_meta_training_resumes_to_the_same_metrics(new_workspace) -> None:
    undisturbed: Workspace = new_workspace()
    undisturbed.retrain(SMOKE, *LONGER)
    killed: Workspace = new_workspace()
    process = killed.start("flows.retrain", SMOKE, *LONGER)
    teacher = killed.root / "mlruns/stages/teacher"
    wait_for(lambda: list(teacher.glob("*.state/state.previous.ckpt")))
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
    one: Workspace = new_workspace()
    one.retrain(SMOKE, *LONGER, "learner.options.norm=running")
    two: Workspace = new_workspace()
    for stage in ("tasksets", "base"):  # the same start: batch statistics of pre-training are those of one process
        shutil.copytree(one.root / "mlruns/stages" / stage, two.root / "mlruns/stages" / stage)
    out = two.retrain(SMOKE, *LONGER, "learner.options.norm=running", "trainer=ddp_sim")
    assert "cached: tasksets, tasksets-final, base" in out.stdout  # device count is in no key
    client = two.mlflow()
    runs = client.search_runs([client.get_experiment_by_name("glyphs").experiment_id])
    assert len([r for r in runs if r.data.tags["stage"] == "retrain"]) == 1
    assert len([r for r in runs if r.data.tags["stage"] == "teacher"]) == 1
    from safetensors.numpy import load_file

    weights = [load_file(next((w.root / "mlruns/stages/teacher").glob("*/learner.safetensors"))) for w in (one, two)]
    for name, value in weights[0].items():
        if name != "temperature":
            assert abs(value - weights[1][name]).max() < 1e-4, name


@pytest.mark.slow
def test_a_second_pipeline_on_the_same_key_is_told_who_holds_it(new_workspace) -> None:
    workspace: Workspace = new_workspace()
    slow = [*LONGER, "base.fit.steps=1600", "base.fit.epoch_steps=100"]  # still in pre-training when the second one gets there
    first = workspace.start("flows.retrain", SMOKE, *slow)
    wait_for(lambda: list((workspace.root / "mlruns/stages/base").glob("*.owner")))
    second = workspace.retrain(SMOKE, *slow, expect=2)
    line = second.stderr.strip().splitlines()[-1]
    assert line.startswith("error: Stage base") and "process" in line and "is writing it" in line
    first.communicate(timeout=300)
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
