"""What the terminal shows while a pipeline runs: on a terminal a live row a stage, elsewhere a line when a stage begins and one an epoch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components.scores import SCORES
from flows.caching import Key
from flows.notices import say
from flows.plan import describe


class Lines:
    """A line an event: for logs, pipes, and the workers of a cluster."""

    def begin(self, name: str, reason: str) -> None:
        """A stage begins."""
        say(f"{name}: running ({reason})")

    def at(self, name: str, share: float, told: str = "") -> None:
        """A stage is done to this share; `told` says where it is."""

    def epoch(self, name: str, number: int, epochs: int, metrics: dict[str, float], seconds: float, again: bool) -> None:
        """An epoch of a fit has ended; `again` where an earlier run, which this one resumes, has told it."""
        shown = "  ".join(f"{metric} {value:.3f}" for metric, value in metrics.items())
        say(f"{'resumed ' if again else ''}{name}  epoch {number}/{epochs}  {shown}  {seconds:.0f} s")

    def end(self, name: str, metrics: dict[str, float], cached: bool) -> None:
        """A stage's output is there; `cached` where it was before."""


class Rows(Lines):
    """A row a stage, redrawn in place: its bar, the time it has taken and will take, the newest score on validation tasks."""

    def __init__(self, plan: dict[str, Key]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
        from rich.table import Column
        from rich.text import Text

        class Clock(ProgressColumn):
            max_refresh = 0.5

            def render(self, task: Task) -> Text:
                if task.elapsed is None:  # waiting, or cached
                    return Text("")
                if task.finished_time is not None:
                    return Text(clock(task.finished_time))
                left = "" if task.time_remaining is None else f", {clock(task.time_remaining)} left"
                return Text(clock(task.elapsed) + left)

        # What is told gives way where there is no room, and no name does.
        told = TextColumn("{task.fields[told]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(24),
            Clock(),
            told,
            console=Console(stderr=True),
            expand=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file or a pipe stays there
            speed_estimate_period=120,
        )
        self.rows = {}
        for name, verdict, _, seconds in describe(plan):
            last = "" if seconds is None else f"{seconds:.0f} s last time"
            self.rows[name] = self.progress.add_task(name, start=False, total=1.0, told=last)
            if verdict == "cached":
                self.progress.update(self.rows[name], completed=1.0, told="cached")

    def begin(self, name: str, reason: str) -> None:
        self.progress.reset(self.rows[name], told=reason)  # which starts its clock

    def at(self, name: str, share: float, told: str = "") -> None:
        more: dict[str, Any] = {"told": told} if told else {}
        self.progress.update(self.rows[name], completed=min(share, 0.99), **more)  # a stage ends when its output is in place

    def epoch(self, name: str, number: int, epochs: int, metrics: dict[str, float], seconds: float, again: bool) -> None:
        self.at(name, number / epochs, validated(metrics))

    def end(self, name: str, metrics: dict[str, float], cached: bool) -> None:
        told = [*(["cached"] if cached else []), validated(metrics)]
        self.progress.update(self.rows[name], completed=1.0, told=", ".join(part for part in told if part))


def clock(seconds: float) -> str:
    """Return minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def validated(metrics: dict[str, float]) -> str:
    """Return the score on validation tasks as it is shown, empty where there is none."""
    for name, shown in SCORES.items():
        if f"val/{name}" in metrics:
            return f"validation {name} {shown.factor * metrics[f'val/{name}']:.{shown.digits}f}"
    return ""


_view = Lines()


def view() -> Lines:
    """Return what this process tells its stages to."""
    return _view


@contextmanager
def shown(plan: dict[str, Key]) -> Iterator[None]:
    """Show a pipeline's stages: live where standard error is a terminal."""
    global _view
    if not sys.stderr.isatty():
        yield
        return
    rows = _view = Rows(plan)
    try:
        with rows.progress:
            yield
    finally:
        _view = Lines()
