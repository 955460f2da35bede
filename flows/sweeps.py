"""What a sweep tells at its end: one row a configuration, its seeds pooled, the best first; of seeds alone, one row a learner."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.contracts import SCORES, Score


@dataclass(frozen=True)
class Point:
    """One finished run of a sweep: its overrides, and what the pipeline returned."""

    overrides: list[str]
    result: dict[str, Any]


def varied(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Group the points by the overrides in which they differ, the seed left out."""
    common = set.intersection(*(set(p.overrides) for p in points))
    groups: dict[str, list[Point]] = {}
    for point in points:
        name = " ".join(o for o in point.overrides if o not in common and not o.startswith("seed=")) or "all"
        groups.setdefault(name, []).append(point)
    return groups


@dataclass(frozen=True)
class Row:
    """One row of the table: its label, and one learner, or one difference of two, in several points."""

    label: str
    role: str
    members: list[Point]

    @property
    def sign(self) -> str:
        return "+" if "-minus-" in self.role else ""


def rows(points: Sequence[Point]) -> list[Row]:
    """Return what is compared: the judged learner of every configuration; where only the seed differs, every learner and every difference."""
    groups = varied(points)
    if len(groups) > 1 or len(points) == 1:
        return [Row(label, members[0].result["judged"], members) for label, members in groups.items()]
    from flows.report import compared, roles

    metrics = points[0].result["metrics"]
    found = [Row(role.replace("-minus-", " - "), role, list(points)) for role in (*roles(metrics), *compared(metrics))]
    return [row for row in found if all(any(f"/{row.role}/" in m for m in p.result["metrics"]) for p in points)]


def table(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: scores over all seeds, the challenge's errors, seconds of the last fit, parameters, times.

    Configurations are sorted, best first by the last setting. A score's interval resamples groups and, within them, the tasks of all seeds;
    the range over seeds stands beside it where there are several.
    """
    first = points[0].result
    settings = list(dict.fromkeys(name.split("/")[1] for name in first["metrics"] if name.startswith("test/") and f"/{first['judged']}/" in name))
    score = next(name for name in SCORES if f"test/{settings[0]}/{first['judged']}/{name}" in first["metrics"])
    asked = [end for end in ("error", "error_joint") if f"challenge/{first['judged']}/{end}" in first["metrics"]]
    frames = {id(p): _scores_of(p) for p in points}
    found = [(_pooled(row, [frames[id(p)] for p in row.members], settings), row) for row in rows(points)]
    if len(varied(points)) > 1:
        found.sort(key=lambda one: -SCORES[score].sign * one[0][-1][0])
    header = ["", *(f"{setting} {score}" for setting in settings), *(f"challenge {end}" for end in asked), "fit s", "parameters", "adapt ms", "predict ms"]
    body = [
        [row.label, *(_cell(SCORES[score], *c, sign=row.sign) for c in cells), *(_challenge(row, end) for end in asked), *_costs(row)] for cells, row in found
    ]
    return header, body


def _scores_of(point: Point) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(f"{point.result['evaluation']}/scores-test.parquet").to_pandas()


def _pooled(row: Row, frames: Sequence[Any], settings: Sequence[str]) -> list[tuple[float, float, list[float]]]:
    """Return for each setting the mean over the tasks of all seeds, its half interval, and each seed's own mean."""
    import numpy as np

    from components.evaluation import interval

    cells = []
    for setting in settings:
        own = [f[(f["setting"] == setting) & (f["role"] == row.role)] for f in frames]
        values, groups = (np.concatenate([f[column].to_numpy() for f in own]) for column in ("score", "group"))
        cells.append((*interval(values, groups, 2000, 0), [float(f["score"].mean()) for f in own]))
    return cells


def _cell(shown: Score, mean: float, half: float, seeds: Sequence[float], sign: str = "") -> str:
    told = [f"{shown.factor * value:{s}.{shown.digits}f}" for value, s in ((mean, sign), (half, ""), (min(seeds), sign), (max(seeds), sign))]
    return f"{told[0]} ± {told[1]}" + (f" ({told[2]} to {told[3]})" if len(seeds) > 1 else "")


def _challenge(row: Row, end: str) -> str:
    """Return the mean error over seeds, in percent; every seed answers the same runs, so its half interval is the mean of theirs."""
    name = f"challenge/{row.role}/{end}"
    if name not in row.members[0].result["metrics"]:
        return ""
    errors, halves = ([p.result["metrics"][f"{name}{more}"] for p in row.members] for more in ("", "_ci95"))
    return _cell(Score(1, 2, -1), statistics.mean(errors), statistics.mean(halves), errors)


def _costs(row: Row) -> list[str]:
    """Return the mean seconds of the judged learner's fit, the parameters, and the median milliseconds to adapt and to predict."""
    results = [p.result for p in row.members]
    if f"{row.role}/parameters" not in results[0]["metrics"]:
        return [""] * 4  # a difference
    times = (1000 * statistics.median(r["metrics"][f"{row.role}/{t}/seconds"] for r in results) for t in ("adapt", "predict"))
    fit = f"{statistics.mean(r['seconds'] for r in results):.0f}" if row.role == results[0]["judged"] else ""
    return [fit, f"{int(results[0]['metrics'][f'{row.role}/parameters']):,}", *(f"{t:.1f}" for t in times)]


def publish(points: Sequence[Point], run_id: str) -> None:
    """Print the table of a sweep and keep it with the sweep's MLflow run."""
    from rich.console import Console

    from flows import artifacts, tracking
    from flows.report import framed

    header, body = table(points)
    seeds = max(len(members) for members in varied(points).values())
    title = f"{len(points)} runs, {seeds} seed{'s' * (seeds > 1)} each (range over seeds in brackets), 95 % intervals over groups and tasks"
    console = Console() if Console().is_terminal else Console(width=300)
    console.print(framed(title, header, body))
    tracking.store().log_text(run_id, f"{title}\n\n{artifacts.markdown(header, body)}", "sweep.md")
