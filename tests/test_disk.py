"""A disk that is full, or may not be written to: one line, nothing lost, and the same command goes on where there is room."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workspace import SMOKE, Workspace


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Give a disk of its own with the options asked for, and change them."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here; root may")

    def change(options: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)
        return place

    yield change
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
def test_a_disk_without_room_ends_in_one_line_and_nothing_is_lost(
    disk: Callable[[str], Path], new_workspace: Callable[..., Workspace], finished: Workspace
) -> None:
    workspace, runs = new_workspace(), str(disk("size=4m") / "mlruns")
    for size, told in (("1m", "full"), ("4m", "No space left|full")):
        disk(f"size={size}")
        ended = workspace.retrain(SMOKE, expect=1, FEWLOOP_RUNS=runs)
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("error: ") and any(word in last for word in told.split("|")) and "Traceback" not in ended.stderr, ended.stderr
    done = {path.parent.name: path.read_text() for path in Path(runs).glob("stages/*/*/stage.json")}
    assert done, "what was finished is there"
    disk("size=64m")
    again = workspace.retrain(SMOKE, FEWLOOP_RUNS=runs)
    assert all(path.read_text() == done[path.parent.name] for path in Path(runs).glob("stages/*/*/stage.json") if path.parent.name in done)
    assert "base" in again.stdout.split("cached: ")[1].splitlines()[0]
    (made,) = Path(runs).glob("stages/evaluate/*/stage.json")
    undisturbed = finished.root / made.relative_to(Path(runs).parent)
    found, wanted = ({k: v for k, v in json.loads(p.read_text())["ref"]["metrics"].items() if not k.endswith("/seconds")} for p in (made, undisturbed))
    assert found == wanted
    assert not list(Path(runs).glob("stages/*/*.partial"))


@pytest.mark.slow
def test_a_disk_that_may_only_be_read_is_told_before_any_work(disk: Callable[[str], Path], new_workspace: Callable[..., Workspace]) -> None:
    ended = new_workspace().retrain(SMOKE, expect=2, FEWLOOP_RUNS=str(disk("ro") / "mlruns"))
    assert "must be writable" in ended.stderr.splitlines()[-1]
    assert "running" not in ended.stderr
