"""Progress in Prefect: every fit of a pipeline ends at a hundred percent, and a server that is gone costs no training. What slows a fit is told."""

from dataclasses import replace

import pytest
import torch
from workspace import SMOKE, Workspace

from flows.config import load
from flows.progress import bar
from flows.serve import ask
from flows.stages import emulates_bf16


@pytest.mark.slow
def test_every_fit_shows_its_progress(new_workspace, prefect: dict[str, str]) -> None:
    workspace: Workspace = new_workspace()
    out = workspace.retrain(SMOKE, "student.count=1", "evaluation.settings=[5w1s]")
    asked = {"artifacts": {"type": {"any_": ["progress"]}}, "sort": "UPDATED_DESC"}
    made = ask(f"{prefect['PREFECT_API_URL']}/artifacts/filter", asked)
    found = {one["description"].partition(":")[0]: one["data"] for one in reversed(made)}
    for name in ("base", "teacher", "student-0", "fused"):
        assert found[name] == 100, (name, found, out.stderr)


def test_without_a_server_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    reached = bar("base", 100)
    for step in (50, 100, 150):
        reached(step)


@pytest.mark.parametrize(("units", "emulated"), [({"avx2": True}, True), ({"avx512_bf16": True}, False), ({"neon": True, "bf16": True}, False)])
def test_bf16_on_a_processor_without_its_units_is_told(monkeypatch: pytest.MonkeyPatch, units: dict[str, bool], emulated: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    trainer = load(["experiment=omniglot_small1"]).trainer
    assert emulates_bf16(trainer) == emulated
    assert not emulates_bf16(replace(trainer, precision="32-true"))
    assert not emulates_bf16(replace(trainer, accelerator="gpu"))
