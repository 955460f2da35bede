"""Versions of the data: pinned, damaged, lost, changed, brought back; with a real DVC cache and a real remote."""

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from components.contracts import DomainSection, SplitsSection
from components.domains import DOMAINS, glyphs
from components.domains.options import OPTIONS
from components.inputs import InputError
from components.splits import homes, split_of
from flows import gc, paths, versions
from flows.config import load
from flows.repository import read_pin
from flows.versions import current_digest, find_pin, pin_data, pinned, tree_md5

FEW = {"leave_out": [s for s in glyphs.SCRIPTS if s not in ("Hebrew", "Ogham", "Coptic", "Lisu")], "items_per_class": 2}


def domain(**source) -> DomainSection:
    section = load().domain
    splits = SplitsSection(train=None, val=["Ogham"], gate=["Coptic"], test=["Hebrew"], shares={})
    return replace(section, source=section.source | FEW | source, splits=splits)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with a DVC repository, a local remote, and the small pool pinned and committed."""
    root = tmp_path / "project"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(f"[core]\n    analytics = false\n    remote = store\n['remote \"store\"']\n    url = {tmp_path / 'remote'}\n")
    monkeypatch.setenv("FEWLOOP_ROOT", str(root))
    pin_data(domain(), None, True, None)
    git("init", "-q")
    git("add", "data.dvc")
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "pin")
    return root


HOLDS = "import sys; from flows import holds\nwith holds.used('glyphs'): print('held', flush=True); input()"


@contextmanager
def user(project: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses data/glyphs."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=-1, stdout=-1, text=True)
    assert process.stdin is not None and process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_data_in_use_are_shared_and_stay_until_their_user_is_gone(project: Path) -> None:
    before, pin = tree_md5(project / "data/glyphs"), (project / "data.dvc").read_text()
    with user(project):
        assert pin_data(domain(), None, True, None).how == "already there", "the same data are for many"
        with pytest.raises(InputError, match=r"data/glyphs must stay as it is while another pipeline uses it"):
            pin_data(domain(render_seed=5), None, True, None)
        assert tree_md5(project / "data/glyphs") == before and (project / "data.dvc").read_text() == pin
    with pinned(domain(render_seed=5), None, True, None) as found:  # the one that used them was killed
        assert found.new and found.md5 == tree_md5(project / "data/glyphs") != before


def test_data_in_use_are_so_for_whoever_keeps_runs_elsewhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with user(project):
        monkeypatch.setenv("FEWLOOP_RUNS", str(tmp_path / "runs"))
        (tmp_path / "runs").mkdir()
        with pytest.raises(InputError, match="must stay as it is while another pipeline uses it"):
            pin_data(domain(render_seed=5), None, True, None)


def test_a_project_that_may_only_be_read_is_locked_where_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWLOOP_ROOT", "/proc/self")
    monkeypatch.setenv("FEWLOOP_RUNS", str(tmp_path))
    assert paths.locks() == tmp_path


def test_a_pin_is_found_in_a_project_below_its_repository(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = project / "below"
    below.mkdir()
    shutil.copy(project / "data.dvc", below)
    git("add", "below/data.dvc")
    git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "below")
    monkeypatch.setenv("FEWLOOP_ROOT", str(below))
    pin = (below / "data.dvc").read_text()
    (below / "data.dvc").unlink()
    assert find_pin("HEAD") == pin and list(gc._own_pins()) == [pin]


def test_who_is_patient_waits_for_data_in_use(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with user(project) as other:
        threading.Timer(3, other.kill).start()
        with pinned(domain(render_seed=5), None, True, None, patient=True) as found:
            assert found.new and other.wait() != 0
    assert capsys.readouterr().err.count("waiting for the run that uses other data") == 1


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=paths.root(), capture_output=True, text=True, check=True).stdout


def test_data_that_match_the_pin_are_left_alone(project: Path) -> None:
    made = pin_data(domain(), None, True, None)
    assert (made.how, made.new) == ("already there", False)
    assert made.md5 == tree_md5(project / "data/glyphs") == read_pin((project / "data.dvc").read_text())[1]["glyphs"]


@pytest.mark.parametrize("harm", ["changed", "deleted", "emptied"])
def test_damaged_data_are_noticed_and_restored(project: Path, harm: str) -> None:
    folder = project / "data/glyphs"
    before = tree_md5(folder)
    if harm == "changed":
        raw = bytearray((folder / "inputs.npy").read_bytes())
        raw[-1] ^= 1
        (folder / "inputs.npy").write_bytes(raw)
    elif harm == "deleted":
        (folder / "classes.parquet").unlink()
    else:
        shutil.rmtree(folder)
    made = pin_data(domain(), None, True, None)
    assert made.how == "restored by DVC"
    assert tree_md5(folder) == before


def test_a_lost_cache_is_filled_from_the_remote(project: Path) -> None:
    before = tree_md5(project / "data/glyphs")
    shutil.rmtree(project / "data")
    shutil.rmtree(project / ".dvc/cache")
    assert pin_data(domain(), None, True, None).how == "restored by DVC"
    assert tree_md5(project / "data/glyphs") == before


def test_without_cache_and_remote_the_source_gives_the_pinned_bytes(project: Path) -> None:
    for lost in (project / "data", project / ".dvc/cache", project.parent / "remote"):
        shutil.rmtree(lost)
    pin = (project / "data.dvc").read_bytes()
    made = pin_data(domain(), None, True, None)
    assert (made.how, made.new) == ("built from its source, equal to the pin", False)
    assert (project / "data.dvc").read_bytes() == pin


def test_other_options_are_a_new_version_and_the_old_one_comes_back(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = pin_data(domain(), None, True, None)
    assert current_digest(domain(render_seed=5), None) is None  # not known before it is built
    second = pin_data(domain(render_seed=5), None, True, None)
    assert second.new and second.md5 != first.md5
    assert "NEW DATA VERSION" in capsys.readouterr().err
    assert git("status", "--short", "data.dvc").strip() == "M data.dvc"
    old = pin_data(domain(), "HEAD", False, None)  # by git revision
    assert old.md5 == first.md5 == tree_md5(project / "data/glyphs")
    kept = project.parent / "kept.dvc"
    kept.write_text(second.pin)
    assert pin_data(domain(), str(kept), False, None).md5 == second.md5  # by a run's pin file


@pytest.mark.slow
def test_a_pin_that_looks_like_an_option_is_none(project: Path) -> None:
    with pytest.raises(InputError, match=r"data\.pin must be"):
        find_pin(f"--output={project / 'written'}")
    assert not list(project.glob("written*"))


def test_a_deployed_run_leaves_the_pin_file_alone(project: Path) -> None:
    before = (project / "data.dvc").read_bytes()
    made = pin_data(domain(render_seed=6), None, False, None)
    assert (project / "data.dvc").read_bytes() == before
    assert read_pin(made.pin)[1]["glyphs"] == made.md5 != read_pin(before.decode())[1]["glyphs"]


def test_data_that_the_checkout_does_not_pin_are_built_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, newest = (project / "data.dvc").read_text(), domain(render_seed=6)
    made = pin_data(newest, None, False, None)
    capsys.readouterr()
    with user(project):  # of these data, beside which others may use them
        again = pin_data(newest, None, False, None)
    assert (again.how, again.new) == ("already there, newer than data.dvc", False) and not capsys.readouterr().err
    assert (again.md5, again.data_md5, again.pin) == (made.md5, made.data_md5, made.pin)
    assert current_digest(newest, None) == made.md5 and current_digest(domain(), None) is None
    (project / "data/glyphs/pool.json").write_text("{}")
    assert pin_data(newest, None, False, None).how.startswith("built from its source"), "what was changed is no such data"
    assert pin_data(domain(), None, False, None).how == "restored by DVC" and (project / "data.dvc").read_text() == before
    pin_data(newest, None, False, None)
    with user(project):
        written = pin_data(newest, None, True, None)
    assert written.how == "already there, a new version" and read_pin((project / "data.dvc").read_text())[1]["glyphs"] == made.md5
    assert pin_data(newest, None, True, None).how == "already there"


def test_data_that_are_refused_leave_newer_ones_than_the_pin_where_they_are(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newer = pin_data(domain(render_seed=6), None, False, None)
    capsys.readouterr()

    def refuse(pool: Path) -> None:
        raise InputError("too few classes")

    with pytest.raises(InputError, match="too few"), pinned(domain(render_seed=7), None, False, None, accept=refuse):
        pass
    assert tree_md5(project / "data/glyphs") == newer.md5 and "restored" not in capsys.readouterr().err


def test_data_that_are_looked_at_stay(project: Path) -> None:
    changes = "from flows import holds\ntry:\n  with holds.changed('glyphs'): print('changed')\nexcept holds.InUseError: print('in use')"

    def tried() -> str:
        return subprocess.run([sys.executable, "-c", changes], capture_output=True, text=True).stdout.strip()

    with versions.newest(domain(), None):
        assert tried() == "in use"
    assert tried() == "changed"


def test_a_remote_that_takes_nothing_is_told_without_its_password(project: Path) -> None:
    config = project / ".dvc/config"
    config.write_text(re.sub("url = .*", "url = https://bob:S3cret@127.0.0.1:9/x", config.read_text()))
    with pytest.raises(InputError, match=r"DVC remote store .https://bob:.* must take the data") as told:
        pin_data(domain(render_seed=8), None, False, None)
    assert "S3cret" not in str(told.value)


def test_a_second_domain_changes_nothing_of_the_first(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tree_md5(project / "data/glyphs")
    monkeypatch.setitem(DOMAINS, "letters", "components.domains.glyphs")
    monkeypatch.setitem(OPTIONS, "letters", OPTIONS["glyphs"])
    added = pin_data(replace(domain(render_seed=9), name="letters"), None, True, None)
    held = read_pin((project / "data.dvc").read_text())[1]
    assert held == {"glyphs": first, "letters": added.md5}
    assert yaml.safe_load((project / "data.dvc").read_text())["outs"][0]["nfiles"] == 8
    shutil.rmtree(project / "data")
    assert pin_data(domain(), None, True, None).how == "restored by DVC"  # its own sub-tree alone
    assert not (project / "data/letters").exists()


def test_files_of_another_domain_that_are_at_hand_nowhere(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tree_md5(project / "data/glyphs")
    whole = (project / "data.dvc").read_text()
    monkeypatch.setitem(DOMAINS, "letters", "components.domains.glyphs")
    monkeypatch.setitem(OPTIONS, "letters", OPTIONS["glyphs"])
    letters = replace(domain(render_seed=9), name="letters")
    shutil.rmtree(project / "data")
    shutil.rmtree(project / ".dvc/cache")
    shutil.move(project.parent / "remote", project.parent / "away")
    with pytest.raises(InputError, match="Run dvc fetch"):  # where there is a remote, nothing is dropped from the pin behind its back
        pin_data(letters, None, True, None)
    assert (project / "data.dvc").read_text() == whole
    (project / ".dvc" / "config").write_text("[core]\n    analytics = false\n")
    added = pin_data(letters, None, True, None)
    assert read_pin((project / "data.dvc").read_text())[1] == {"glyphs": first, "letters": added.md5}
    assert pin_data(domain(), None, True, None).md5 == first
    assert yaml.safe_load((project / "data.dvc").read_text())["outs"][0]["nfiles"] == 8, "the next run brings its files back into the pin"


def test_splits_stay_when_groups_are_added() -> None:
    splits = domain().splits
    before = {g: split_of(splits, g, g) for g in ("Hebrew", "Ogham", "Coptic", "Lisu")}
    assert before == {"Hebrew": "test", "Ogham": "val", "Coptic": "gate", "Lisu": "train"}
    assert split_of(splits, "NewScript", "x") == "train"


def test_fewer_groups_train_nested_and_no_other_split_moves() -> None:
    classes = [(group, f"{group}/{i}") for group in ("Hebrew", "Ogham", "Coptic", *"abcdefgh") for i in range(2)]
    whole = homes(domain().splits, classes)
    trained = []
    for count in (1, 3, 8):
        found = homes(replace(domain().splits, train=count), classes)
        trained.append({group for (group, _), home in zip(classes, found, strict=True) if home == "train"})
        assert [f if w != "train" else w for f, w in zip(found, whole, strict=True)] == whole
    assert [len(t) for t in trained] == [1, 3, 8] and trained[0] < trained[1] < trained[2]
    with pytest.raises(InputError, match="must be at most 8, the groups that could train, got 9"):
        homes(replace(domain().splits, train=9), classes)
    assert versions.source_digest(replace(domain(), splits=replace(domain().splits, train=3))) != versions.source_digest(domain())


def test_an_unknown_version_is_told(project: Path) -> None:
    with pytest.raises(InputError, match="must be a run id"):
        versions.find_pin("no-such-thing")
