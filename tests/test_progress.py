"""Progress in Prefect: every fit of a pipeline ends at a hundred percent, and a server that is gone costs no training."""

import pytest
from workspace import SMOKE, Workspace

from flows.progress import bar
from flows.serve import ask


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
