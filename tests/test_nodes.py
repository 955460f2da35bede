"""One fit on two machines: here two torchruns of one process each, which know nothing of each other but the folder and the port."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from workspace import PATIENCE, SMOKE, Workspace, free_port, until

from components.inputs import InputError
from components.launch import CALL
from flows import join

FEW = ["learner.fit.steps=60", "learner.fit.epoch_steps=6", "learner.options.norm=running", "student.count=0", "evaluation.settings=[5w1s]"]


def two_machines() -> list[str]:
    return ["trainer=ddp_sim", "trainer.devices=1", "trainer.nodes=2", f"trainer.rendezvous=127.0.0.1:{free_port()}"]


@pytest.mark.slow
def test_two_machines_train_the_teacher_of_one_and_one_that_is_lost_costs_an_epoch(new_workspace: Callable[[], Workspace]) -> None:
    from safetensors.numpy import load_file

    one, two = new_workspace(), new_workspace()
    one.retrain(SMOKE, *FEW)
    for stage in ("tasksets", "base"):  # the same start: batch statistics of pre-training are those of one process
        shutil.copytree(one.root / "mlruns/stages" / stage, two.root / "mlruns/stages" / stage)
    other = two.start("flows.join", "rank=1")
    first = two.start("flows.retrain", SMOKE, *FEW, *two_machines())
    until(lambda: list((two.root / "mlruns/stages/teacher").glob("*.state/state.previous.ckpt")))
    other.send_signal(signal.SIGKILL)
    _, said = first.communicate(timeout=PATIENCE)
    other.communicate()
    assert first.returncode == 1 and "left no result; run it again to resume" in said.splitlines()[-1], said[-2000:]
    assert not list((two.root / "mlruns/stages").glob(f"*/*/{CALL}")), "nobody is called any more"
    other = two.start("flows.join", "rank=1")
    try:
        again = two.retrain(SMOKE, *FEW, *two_machines())
    finally:
        other.terminate()
        _, told = other.communicate()
    assert "waiting for 1 more of 2 machines" in again.stderr and "resumed teacher" in again.stderr
    assert "cached: tasksets, tasksets-final, base" in again.stdout  # how many machines is in no key
    assert "teacher: training with 127.0.0.1:" in told and "teacher: done" in told
    weights = [load_file(next((w.root / "mlruns/stages/teacher").glob("*/learner.safetensors"))) for w in (one, two)]
    for name, value in weights[0].items():
        if name != "temperature":
            assert abs(value - weights[1][name]).max() < 1e-4, name


def test_other_code_is_told_once_and_does_not_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.json").write_text('{"trainer": {"nodes": 2, "rendezvous": "127.0.0.1:1"}}')
    (tmp_path / CALL).write_text('{"id": "1", "label": "teacher", "code": "another"}')
    done: set[str] = set()
    for _ in range(2):  # the call of a pipeline that was killed stays, and others are answered
        join.answer(tmp_path / CALL, 1, done)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("teacher: ") and "Check out the same commit" in line


def test_rank_0_is_the_pipelines_own() -> None:
    with pytest.raises(InputError, match="rank must be 1 or above"):
        join.join("0")


def test_a_call_for_fewer_machines_is_for_others(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"trainer": {"nodes": 2, "rendezvous": "127.0.0.1:1"}}')
    (tmp_path / CALL).write_text('{"id": "1", "label": "teacher", "code": "another"}')
    join.answer(tmp_path / CALL, 2, done := set())
    join.answer(tmp_path / "gone.json", 1, done)
    assert not done
