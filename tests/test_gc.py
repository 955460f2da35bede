"""What is removed, and what never is."""

import math
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from filelock import FileLock
from test_versions import domain, project  # noqa: F401
from workspace import SMOKE, Workspace

from components.inputs import InputError
from flows import caching, gc, paths, tracking
from flows.caching import Key
from flows.versions import pin_data


def made(name: str, value: int, finished: float, **upstream: str) -> Key:
    """Write an output of a stage as the pipeline does, last used at `finished`."""
    key = Key(name, name.partition("-")[0], {"value": value}, upstream, "code")
    with caching.writing(key) as slot:
        (slot.partial / "weights").write_bytes(b"x" * 1000)
        caching.commit(key, slot, "run", 1.0, {})
    os.utime(key.folder / caching.MANIFEST, (finished, finished))
    return key


def test_what_was_registered_is_kept_with_all_that_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWLOOP_ROOT", str(tmp_path))
    chains = []
    for version in range(3):
        base = made("base", version, 100.0 + version)
        teacher = made("teacher", version, 100.0 + version, base=base.fingerprint, pool="md5 of data")
        chains.append([base, teacher, made("fused", version, 100.0 + version, teacher=teacher.fingerprint)])
    state = chains[0][0].folder.with_suffix(".state")
    state.mkdir()
    os.utime(state, (50, 50))

    def names(before: float, registered: set[str]) -> set[str]:
        return {p.name for p in gc.unused_outputs(before, registered)}

    folders = [{key.folder.name for key in chain} for chain in chains]
    assert names(1000, set()) == folders[0] | folders[1] | {state.name}, "the newest output of each stage is kept"
    assert names(1000, {chains[0][2].fingerprint}) == folders[1] | {state.name}
    assert names(1000, {chains[0][1].fingerprint}) == folders[1] | {chains[0][2].folder.name, state.name}
    assert names(101.0, set()) == folders[0] | folders[1] | {state.name}
    assert names(100.5, set()) == folders[0] | {state.name}, "what was used since is kept"
    with caching.writing(chains[0][0]):
        assert state.name not in names(1000, set()), "somebody writes it"
    for path in list(gc.unused_outputs(1000, {chains[0][2].fingerprint})):
        gc._remove(path, 1000, dry=False)
    assert [[caching.lookup(key) is not None for key in chain] for chain in chains] == [[True] * 3, [False] * 3, [True] * 3]


def test_what_is_used_after_it_was_found_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWLOOP_ROOT", str(tmp_path))
    used, held, unused, _ = (made("base", value, 100.0 + value) for value in range(4))
    found = [*gc.unused_outputs(1000, set())]
    assert {path.name for path in found} == {key.folder.name for key in (used, held, unused)}
    caching.record_key(used, tmp_path, tmp_path)  # a pipeline that begins now
    with FileLock(held.folder.with_suffix(".lock")):
        assert sum(size is not None for size in (gc._remove(path, 1000, dry=False) for path in found)) == 1
    assert [caching.lookup(key) is not None for key in (used, held, unused)] == [True, True, False]


def test_what_a_running_pipeline_has_used_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWLOOP_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    unused, used, _ = (made("base", value, 100.0 + value) for value in range(3))
    experiment = tracking.open_store("glyphs")
    with tracking.run(experiment, "pipeline", {"stage": "retrain"}):
        caching.record_key(used, tmp_path, tmp_path)
        gc.collect("0")
        assert caching.lookup(used) is not None and caching.lookup(unused) is None
    gc.collect("0")
    assert caching.lookup(used) is None


def test_data_whose_pin_cannot_be_read_stop_it_all(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = pin_data(domain(), None, True, None)
    store, experiment = tracking.store(), tracking.open_store("glyphs")
    with tracking.run(experiment, "pipeline", {"stage": "retrain"}) as run_id:
        tracking.log_text(run_id, first.pin, "data.dvc")
    for number in range(101):  # more than the registry tells at once; ours is the last
        store.create_registered_model(f"model-{number:03d}")
    store.create_model_version("model-100", "source", tags={"retrain.run_id": run_id, "fingerprint": "none"})
    pin_data(domain(render_seed=5), None, True, None)
    (project / "data.dvc").unlink()
    (project / "mlruns/data-glyphs.json").unlink()  # that these are the newest data
    subprocess.run(["rm", "-rf", project / ".git"], check=True)
    whole = set((project / ".dvc/cache/files/md5").glob("*/*"))
    gc.collect("0", "true")
    kept = whole - set(gc.unused_data(2e9, [first.pin]))
    gc.collect("0")
    assert kept <= set((project / ".dvc/cache/files/md5").glob("*/*")) < whole
    shutil.move(project / "mlruns/artifacts", project / "away")
    with pytest.raises(InputError, match=r"data.dvc of model-100 version 1 must be readable"):
        gc.collect("0")
    assert kept <= set((project / ".dvc/cache/files/md5").glob("*/*"))


def test_a_git_that_does_not_answer_stops_it_all(project: Path) -> None:  # noqa: F811
    (project / ".git" / "HEAD").write_text("damaged")
    whole = set((project / ".dvc/cache/files/md5").glob("*/*"))
    with pytest.raises(InputError, match=r"git must tell which versions of data.dvc were committed"):
        gc.collect("0")
    assert set((project / ".dvc/cache/files/md5").glob("*/*")) == whole


def test_a_run_of_another_machine_holds_back_for_a_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FEWLOOP_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store, experiment = tracking.store(), tracking.open_store("glyphs")
    now = time.time()
    store.create_run(experiment, int(1000 * (now - 8 * 86_400)), {"process": "7 123 another"})
    store.create_run(experiment, 0, {"of": "something else"})
    assert gc._oldest_start(store) == math.inf
    young = store.create_run(experiment, int(1000 * (now - 6 * 86_400)), {"process": "7 123 another"})
    assert gc._oldest_start(store) == pytest.approx(now - 6 * 86_400, abs=1)
    assert young.info.run_id in capsys.readouterr().err


def test_a_killed_process_leaves_a_folder_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWLOOP_ROOT", str(tmp_path))
    for name in (".build-a", ".newest-b", ".evaluate-c", "evaluate-of-mine"):
        (paths.runs() / name).mkdir(parents=True)
    os.utime(paths.runs() / ".build-a", (50, 50))
    os.utime(paths.runs() / "evaluate-of-mine", (50, 50))
    assert [path.name for path in gc.scraps(100)] == [".build-a"]
    assert len([*gc.scraps(time.time() + 1)]) == 3


def test_data_that_a_pin_names_stay(project: Path) -> None:  # noqa: F811
    first = pin_data(domain(), None, True, None)
    old = first.pin
    pin_data(domain(render_seed=5), None, True, None)
    now = (project / "data.dvc").read_text()
    cached = set((project / ".dvc/cache/files/md5").glob("*/*"))
    assert set(gc.unused_data(2e9, [])) == cached
    assert not set(gc.unused_data(2e9, [old, now])) and not set(gc.unused_data(0, []))
    gone = set(gc.unused_data(2e9, [now]))
    assert gone and gone < cached
    for path in gone:
        gc._remove(path, 2e9, dry=False)
    shutil.rmtree(project / "data")
    assert pin_data(domain(render_seed=5), None, True, None).how == "restored by DVC"


def test_the_command_keeps_what_the_champion_needs(finished: Workspace) -> None:
    assert "would free 0.0 MB" in finished.run("flows.gc", "days=30", "dry=true").stdout
    finished.run("flows.gc", "days=0")
    told = finished.run("flows.retrain", SMOKE, "--dry-run").stdout.splitlines()
    assert len(told) == 9 and all(line.split()[1] == "cached" for line in told), told
    assert "days must be a whole number" in finished.run("flows.gc", "days=soon", expect=2).stderr
