"""Where results are written: never over what is read, a device or a pipe, and never found impossible only after the work."""

import os
from pathlib import Path

import pytest

from components.inputs import InputError
from flows.paths import into_place, target_file, target_folder


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
