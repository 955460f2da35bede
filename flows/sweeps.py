"""What a sweep tells at its end: one row a configuration, its seeds pooled, the best first."""

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


def table(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows, best first by the last setting: scores over all seeds, seconds of the last fit, parameters, times.

    A score's interval resamples groups and, within them, the tasks of all seeds; the range over seeds stands beside it where there are several.
    """
    first = points[0].result
    settings = list(dict.fromkeys(name.split("/")[1] for name in first["metrics"] if name.startswith("test/") and f"/{first['judged']}/" in name))
    score = next(name for name in SCORES if f"test/{settings[0]}/{first['judged']}/{name}" in first["metrics"])
    found = [(_scores(members, settings), label, members) for label, members in varied(points).items()]
    found.sort(key=lambda row: -SCORES[score].sign * row[0][-1][0])
    header = ["", *(f"{setting} {score}" for setting in settings), "fit s", "parameters", "adapt ms", "predict ms"]
    return header, [[label, *(_cell(SCORES[score], *cell) for cell in cells), *_costs(members)] for cells, label, members in found]


def _scores(members: Sequence[Point], settings: Sequence[str]) -> list[tuple[float, float, list[float]]]:
    """Return for each setting the mean over the tasks of all seeds, its half interval, and each seed's own mean."""
    import numpy as np
    import pyarrow.parquet as pq

    from components.evaluation import interval

    frames = [pq.read_table(f"{p.result['evaluation']}/scores-test.parquet").to_pandas() for p in members]
    cells = []
    for setting in settings:
        own = [f[(f["setting"] == setting) & (f["role"] == p.result["judged"])] for f, p in zip(frames, members, strict=True)]
        values, groups = (np.concatenate([f[column].to_numpy() for f in own]) for column in ("score", "group"))
        cells.append((*interval(values, groups, 2000, 0), [float(f["score"].mean()) for f in own]))
    return cells


def _cell(shown: Score, mean: float, half: float, seeds: Sequence[float]) -> str:
    told = [f"{shown.factor * value:.{shown.digits}f}" for value in (mean, half, min(seeds), max(seeds))]
    return f"{told[0]} ± {told[1]}" + (f" ({told[2]}-{told[3]})" if len(seeds) > 1 else "")


def _costs(members: Sequence[Point]) -> list[str]:
    """Return the mean seconds of the last fit, the parameters, and the median milliseconds to adapt and to predict."""
    role, metrics = members[0].result["judged"], [p.result["metrics"] for p in members]
    times = (1000 * statistics.median(m[f"{role}/{t}/seconds"] for m in metrics) for t in ("adapt", "predict"))
    seconds = statistics.mean(p.result["seconds"] for p in members)
    return [f"{seconds:.0f}", f"{int(metrics[0][f'{role}/parameters']):,}", *(f"{t:.1f}" for t in times)]


def publish(points: Sequence[Point], run_id: str) -> None:
    """Print the table of a sweep and keep it with the sweep's MLflow run."""
    from rich.console import Console

    from flows import artifacts, tracking
    from flows.report import framed

    header, body = table(points)
    seeds = max(len(members) for members in varied(points).values())
    title = f"{len(points)} runs, {seeds} seed{'s' * (seeds > 1)} each (range over seeds in brackets), 95 % intervals over groups and tasks"
    console = Console() if Console().is_terminal else Console(width=200)
    console.print(framed(title, header, body))
    tracking.store().log_text(run_id, f"{title}\n\n{artifacts.markdown(header, body)}", "sweep.md")
