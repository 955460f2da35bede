"""What a terminal shows of a pipeline, read from the screen of a terminal emulator; and what a pipe gets."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte
import pytest
from workspace import PATIENCE, SMOKE, Workspace

ROWS, COLUMNS = 50, 150


def watched(workspace: Workspace, *overrides: str, out: Path | None = None) -> tuple[list[str], list[str]]:
    """Retrain on a terminal, its standard output in a file where `out` names one; return the screen each time it changed, and all that was ever on it."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
    stream = pyte.ByteStream(screen)
    command, environment = [sys.executable, "-m", "flows.retrain", *overrides], workspace.environment | {"TERM": "xterm-256color"}
    with (out or Path(os.devnull)).open("w") as file:
        stdout = file if out else slave
        process = subprocess.Popen(command, cwd=workspace.root, env=environment, stdin=slave, stdout=stdout, stderr=slave, start_new_session=True)
    os.close(slave)
    screens, deadline = [], time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            stream.feed(os.read(master, 65536))
        except OSError:  # nobody writes any more
            break
        screens.append("\n".join(screen.display))
    os.close(master)
    assert process.wait(PATIENCE) == 0, screens[-1]
    past = ["".join(line[i].data for i in range(COLUMNS)) for line in screen.history.top]
    return screens, [line.rstrip() for line in [*past, *screen.display]]


def row(screen: str, stage: str) -> str:
    return next((line for line in screen.split("\n") if re.match(rf"{stage} +━", line)), "")


@pytest.mark.slow
def test_on_a_terminal_every_stage_has_a_row_and_no_epoch_a_line(new_workspace) -> None:
    workspace: Workspace = new_workspace()
    screens, lines = watched(workspace, SMOKE, "base.fit.steps=80", "base.fit.epoch_steps=20")
    assert "starting Prefect" in screens[0]
    under_way = [s for s in screens if re.search(r"\d:\d\d, \d:\d\d left", row(s, "base"))]
    assert under_way and "validation accuracy" in row(under_way[-1], "base"), "a bar that moves, the time left, the score so far"
    coming = {row(s, "teacher").rstrip() for s in under_way} - {""}  # nothing where the screen was caught half drawn
    assert all(re.fullmatch(r"teacher +━+", line) for line in coming), coming  # neither time nor score yet
    assert any("test 5w1s" in row(s, "evaluation") for s in screens)
    measured = workspace.metrics("base")["val/accuracy"]
    last = {name: row("\n".join(lines), name) for name in ("tasksets", "base", "teacher", "student-0", "student-2", "fused", "evaluation")}
    assert re.fullmatch(rf"base +━+ \d:\d\d +validation accuracy {100 * measured:.2f}", last["base"]), last["base"]
    assert all(re.search(r"━ \d:\d\d", line) for line in last.values()), last
    assert not [line for line in lines if "epoch" in line or "index" in line], "nor of what an engine does inside"
    assert [line for line in lines if "is champion: there was no champion" in line]
    _, lines = watched(workspace, SMOKE, "base.fit.steps=80", "base.fit.epoch_steps=20", out=workspace.root / "out")
    assert all(re.search(r"━ +cached(, validation accuracy \d+\.\d\d)?$", row("\n".join(lines), name)) for name in last), "\n".join(lines)
    table = (workspace.root / "out").read_text()
    assert "ran: nothing" in table and "paired differences" in table and "\x1b" not in table
    assert not [line for line in lines if "paired differences" in line]
    screens, _ = watched(workspace, SMOKE, "base.fit.steps=80", "base.fit.epoch_steps=20", "learner=maml", "student.count=0")
    reason = r"━ 0:0\d +learner.fit.lr 0.002 -> 0.0003; .*…"
    assert any(re.search(reason, row(s, "teacher")) for s in screens), "one that is too long leaves the rest in place"


def test_in_a_pipe_an_epoch_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    from flows import terminal

    with terminal.shown({}):
        terminal.view().begin("base", "never run")
        terminal.view().at("base", 0.5)
        terminal.view().epoch("base", 1, 4, {"train/loss": 0.25, "val/accuracy": 0.5}, 12.3, False)
        terminal.view().epoch("base", 1, 4, {"train/loss": 0.25}, 0.3, True)
        terminal.view().end("base", {}, False)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "base: running (never run)",
        "base  epoch 1/4  train/loss 0.250  val/accuracy 0.500  12 s",
        "resumed base  epoch 1/4  train/loss 0.250  0 s",
    ]
