"""What a sweep tells at its end: one row a configuration, its seeds pooled, the best first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.contracts import SCORES


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
    """Return header and rows: each configuration's scores over its seeds, the seconds of its last fit, its parameters and its times.

    A score's interval resamples groups and, within them, the tasks of all seeds; the spread over seeds stands beside it where there are several.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from components.evaluation import interval

    scored: list[tuple[float, list[str]]] = []
    settings: list[str] = []
    name, shown = "", SCORES["accuracy"]
    for label, members in varied(points).items():
        frames = [pq.read_table(f"{p.result['evaluation']}/scores-test.parquet").to_pandas() for p in members]
        settings = list(dict.fromkeys(frames[0]["setting"]))
        cells, first = [], 0.0
        metrics = [p.result["metrics"] for p in members]
        name = next(n for n in SCORES if f"test/{settings[0]}/{members[0].result['judged']}/{n}" in metrics[0])
        shown = SCORES[name]
        for setting in settings:
            own = [f[(f["setting"] == setting) & (f["role"] == p.result["judged"])] for f, p in zip(frames, members, strict=True)]
            values, groups = (np.concatenate([f[column].to_numpy() for f in own]) for column in ("score", "group"))
            mean, half = (shown.factor * x for x in interval(values, groups, 2000, 0))
            means = [shown.factor * float(f["score"].mean()) for f in own]
            spread = f" ({min(means):.{shown.digits}f}-{max(means):.{shown.digits}f})" if len(means) > 1 else ""
            cells.append(f"{mean:.{shown.digits}f} ± {half:.{shown.digits}f}{spread}")
            first = mean if setting == settings[-1] else first
        seconds = np.mean([p.result["seconds"] for p in members])
        role = members[0].result["judged"]
        times = [1000 * float(np.median([m[f"{role}/{t}/seconds"] for m in metrics])) for t in ("adapt", "predict")]
        row = [label, *cells, f"{seconds:.0f}", f"{int(metrics[0][f'{role}/parameters']):,}", *(f"{t:.1f}" for t in times)]
        scored.append((shown.sign * first, row))
    header = ["", *(f"{s} {name}" for s in settings), "fit s", "parameters", "adapt ms", "predict ms"]
    return header, [row for _, row in sorted(scored, key=lambda pair: -pair[0])]


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
