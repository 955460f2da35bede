"""Where results are written: never over what is read, a device or a pipe, and never found impossible only after the work."""

import os
from pathlib import Path

import pytest

from components.inputs import InputError
from flows import tracking
from flows.paths import into_place, runs, target_file, target_folder


def test_a_result_replaces_a_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    with into_place(target_file(str(tmp_path / "link.csv"))) as partial:
        partial.write_text("new")
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to the pipe").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "to the pipe"):
        with pytest.raises(InputError, match=r"got .*, a device or a pipe"):
            target_file(str(tmp_path / name))


def test_what_is_read_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "query").mkdir()
    for name in ("0.png", "named.csv"):
        (tmp_path / "query" / name).write_text("there")
    (tmp_path / "rows.csv").write_text("there")
    for out in ("query/0.png", "rows.csv"):
        with pytest.raises(InputError, match="which is read"):
            target_file(str(tmp_path / out), "models:/glyphs@champion", "", str(tmp_path / "query"), str(tmp_path / "rows.csv"))
    assert target_file(str(tmp_path / "query" / "named.csv"), str(tmp_path / "query")).name == "named.csv", "the table of an earlier call"
    assert target_file(str(tmp_path / "query" / "new.txt"), str(tmp_path / "query")).name == "new.txt"


def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    for out in (tmp_path / ("n" * 250), Path("/proc/named.csv")):
        with pytest.raises(InputError, match=r"out must be where files can be written, got .*: .*\. Choose another place\."):
            target_file(str(out))
        with pytest.raises(InputError, match="save must be where files can be written"):
            target_folder(str(out), "save")
    assert not [*tmp_path.iterdir()]


def test_two_processes_that_write_one_file_and_one_that_was_killed_are_in_nobodys_way(tmp_path: Path) -> None:
    target, others, left = tmp_path / "named.csv", tmp_path / ".named.csv.1.partial", tmp_path / ".named.csv.2.partial"
    others.write_text("half of it")
    left.mkdir()
    os.utime(left, (1, 1))
    assert target_file(str(target)) == target
    assert others.exists() and not left.exists()
    with into_place(target) as partial:
        partial.write_text("whole")
        assert others.read_text() == "half of it"
    assert target.read_text() == "whole"


def test_a_relative_place_of_runs_or_of_their_database_is_one_for_all_that_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWLOOP_RUNS", "own")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert runs() == tmp_path.resolve() / "own" and tracking.uri() == f"sqlite:///{tmp_path / 'mine.db'}"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.uri() == f"sqlite:///{runs() / 'mlflow.db'}"


def test_a_patience_that_is_no_number_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWLOOP_RUNS", str(tmp_path))
    monkeypatch.setenv("FEWLOOP_PATIENCE", "10m")
    with pytest.raises(InputError, match="FEWLOOP_PATIENCE must be a number of seconds, got '10m'"):
        tracking.open_store("some")
