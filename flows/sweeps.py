"""What a sweep tells at its end: one row a configuration, its seeds pooled, the best first; of seeds alone, one row a learner."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from components.plain import fingerprint
from components.scores import SCORES, Score
from flows.outcome import Outcome


@dataclass(frozen=True)
class Point:
    """One finished run of a sweep: its overrides, and what the pipeline returned."""

    overrides: list[str]
    result: Outcome


def distinct(points: Sequence[Point]) -> list[Point]:
    """Return every run once: an optimiser may ask for the same one again, which is no further seed."""
    return list({tuple(sorted(p.overrides)): p for p in points}.values())


def by_score(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Group the points by their objective's own score: accuracies stand in no table with errors."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(_score(point), []).append(point)
    return groups


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
        return [Row(label, members[0].result.judged, members) for label, members in groups.items()]
    from flows.report import compared, roles, titled

    metrics = points[0].result.metrics
    found = [Row(titled(metrics, role), role, list(points)) for role in (*roles(metrics), *compared(metrics))]
    if len({p.result.champion_met for p in points}) > 1:  # a row would join several learners
        found = [row for row in found if "champion" not in row.role.split("-minus-")]
    return [row for row in found if all(any(f"/{row.role}/" in m for m in p.result.metrics) for p in points)]


def contenders(points: Sequence[Point]) -> list[Point]:
    """Return the runs that are judged against a champion: of each model, objective and kind of validation tasks the best by these."""
    best: dict[tuple[str, ...], Point] = {}
    for point in points:
        score, result = _score(point), point.result
        kind, sign = (result.model, score, result.validated_on), SCORES[score].sign
        if kind not in best or sign * result.validation > sign * best[kind].result.validation:
            best[kind] = point
    return list(best.values())


def further(points: Sequence[Point], name: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of one further score, in the order of `rows`."""
    settings, frames = _settings(points), {id(p): _scores_of(p) for p in points}
    body = []
    for row in rows(points):
        cells = _pooled(row, [frames[id(p)] for p in row.members], settings, name)
        body.append([row.label, *(_cell(SCORES[name], *c, sign=row.sign) for c in cells)])
    return ["", *(f"{setting} {name}" for setting in settings)], body


def cells(points: Sequence[Point], setting: str, name: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of one score in the cells of a cold start, in the order of `rows`; roles that no cell measured are left out."""
    from flows.report import celled

    found, body = celled(points[0].result.metrics), []
    frames = {cell: {id(p): _scores_of(p, cell) for p in points} for cell in found}
    for row in rows(points):
        if all(row.role in set(frames[found[0]][id(p)]["role"]) for p in row.members):
            pooled = [_pooled(row, [frames[cell][id(p)] for p in row.members], [setting], name)[0] for cell in found]
            body.append([row.label, *(_cell(SCORES[name], *c, sign=row.sign) for c in pooled)])
    return ["", *found], body


def _settings(points: Sequence[Point]) -> list[str]:
    """Return the settings that all points were asked in, in the order of the first."""
    asked = [dict.fromkeys(n.split("/")[1] for n in p.result.metrics if n.startswith("test/") and f"/{p.result.judged}/" in n) for p in points]
    return [setting for setting in asked[0] if all(setting in others for others in asked)]


def _score(point: Point) -> str:
    """Return the name of the objective's own score."""
    metrics, (setting, *_) = point.result.metrics, _settings([point])
    return next(name for name in SCORES if f"test/{setting}/{point.result.judged}/{name}" in metrics)


def table(points: Sequence[Point]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: scores over all seeds, the challenge's errors, seconds of the last fit, parameters, times.

    Configurations are sorted by their score on validation tasks, the best first, where these are of one kind: test tasks choose nothing. A score's
    interval is over groups, with the tasks of all seeds: it is of the models that these seeds made, and how much others would differ, the range
    over seeds tells, which stands beside it where there are several.
    """
    from flows.report import challenged

    first = points[0].result
    settings = _settings(points)
    score = _score(points[0])
    asked = [end for end in ("error", "error_joint") if f"challenge/{first.judged}/{end}" in first.metrics]
    frames = {id(p): _scores_of(p) for p in points}
    found = [(_pooled(row, [frames[id(p)] for p in row.members], settings), row) for row in rows(points)]
    chosen = len(varied(points)) > 1  # else every learner has a row, and seeds are no choice
    if chosen and len({p.result.validated_on for p in points}) == 1:
        found.sort(key=lambda one: -SCORES[score].sign * _validated(one[1]))
    first_columns = ["", *([f"validation {score}"] if chosen else []), *(f"{setting} {score}" for setting in settings)]
    header = [*first_columns, *(challenged(first.metrics, end) for end in asked), "fit s", "parameters", "MFLOP", "adapt ms", "predict ms"]
    body = []
    for cells, row in found:
        validated = [f"{SCORES[score].factor * _validated(row):.{SCORES[score].digits}f}"] if chosen else []
        scores = (_cell(SCORES[score], *c, sign=row.sign) for c in cells)
        body.append([row.label, *validated, *scores, *(_challenge(row, end) for end in asked), *_costs(row)])
    return header, body


def _validated(row: Row) -> float:
    """Return the judged learner's mean score on validation tasks, over the seeds."""
    return statistics.mean(point.result.validation for point in row.members)


def _scores_of(point: Point, split: str = "test") -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(f"{point.result.evaluation}/scores-{split}.parquet").to_pandas()


def _pooled(row: Row, frames: Sequence[Any], settings: Sequence[str], score: str = "score") -> list[tuple[float, float, list[float]]]:
    """Return for each setting the mean over the tasks of all seeds, its half interval, and each seed's own mean."""

    from components.answers import interval, together

    cells, column = [], score if score in frames[0].columns else "score"  # the objective's own has no other name
    for setting in settings:
        own = [f[(f["setting"] == setting) & (f["role"] == row.role)] for f in frames]
        told = [(f[column].to_numpy(), f["group"].to_numpy(), *_shares(f)) for f in own]
        cells.append((*interval(*together(told)), [float(f[column].mean()) for f in own]))
    return cells


def _shares(frame: Any) -> tuple[Any, Any]:
    """Return every class's share in tasks [N, way], and which class it is, of tasks that take theirs from everywhere."""
    import numpy as np

    if "shares" not in frame.columns or frame["shares"].isna().any():
        return None, None
    return np.stack(frame["shares"].to_list()), np.stack(frame["members"].to_list())


def _cell(shown: Score, mean: float, half: float, seeds: Sequence[float], sign: str = "") -> str:
    told = [f"{shown.factor * value:{s}.{shown.digits}f}" for value, s in ((mean, sign), (half, ""), (min(seeds), sign), (max(seeds), sign))]
    return f"{told[0]} ± {told[1]}" + (f" ({told[2]} to {told[3]})" if len(seeds) > 1 else "")


def _challenge(row: Row, end: str) -> str:
    """Return the mean error over seeds, in percent; every seed answers the same runs, so its half interval is the mean of theirs."""
    name = f"challenge/{row.role}/{end}"
    if name not in row.members[0].result.metrics:
        return ""
    errors, halves = ([p.result.metrics[f"{name}{more}"] for p in row.members] for more in ("", "_ci95"))
    return _cell(Score(1, 2, -1), statistics.mean(errors), statistics.mean(halves), errors, sign=row.sign)


def _costs(row: Row) -> list[str]:
    """Return mean seconds of the judged learner's fit, parameters, millions of operations a task, and median milliseconds to adapt and to predict."""
    results = [p.result for p in row.members]
    if f"{row.role}/parameters" not in results[0].metrics:
        return [""] * 5  # a difference

    def least_and_most(name: str, shown: Callable[[float], str]) -> str:  # fusion may keep other members by another seed
        found = sorted(r.metrics[f"{row.role}/{name}"] for r in results)
        return " to ".join(dict.fromkeys((shown(found[0]), shown(found[-1]))))

    times = (1000 * statistics.median(r.metrics[f"{row.role}/{t}/seconds"] for r in results) for t in ("adapt", "predict"))
    fit = f"{statistics.mean(r.seconds for r in results):.0f}" if row.role == results[0].judged else ""
    sizes = least_and_most("parameters", lambda size: f"{int(size):,}")
    return [fit, sizes, least_and_most("flops", lambda flops: f"{flops / 1e6:.1f}"), *(f"{t:.1f}" for t in times)]


def drawn(points: Sequence[Point]) -> Any | None:
    """Return the figure of a sweep, by the judged learner's score on validation tasks; None where nothing but the seed was varied."""
    chosen = [dict(o.partition("=")[::2] for o in point.overrides) for point in points]
    keys = [key for key in chosen[0] if key != "seed" and len({one.get(key, "") for one in chosen}) > 1]
    if not keys:
        return None
    from components.sweep_figures import parallel

    score = _score(points[0])
    shown = SCORES[score]
    scores = [shown.factor * point.result.validation for point in points]
    axis = f"validation {score}" + (", %" if shown.factor == 100 else "")
    return parallel({key: [one[key] for one in chosen] for key in keys}, scores, f"{len(points)} runs", axis, shown.sign)


def publish(points: Sequence[Point], run_id: str, failed: Sequence[str] = ()) -> None:
    """Print the tables of a sweep and keep them, what failed, and its figure, with the sweep's MLflow run."""
    from rich.console import Console

    from flows import artifacts, tracking
    from flows.report import framed

    console, text = Console() if Console().is_terminal else Console(width=300), []
    groups = by_score(distinct(points))
    for number, own in enumerate(groups.values()):
        for title, header, body in _tables(own):
            console.print(framed(title, header, body))
            text += [title, artifacts.markdown(header, body)]
        figure = drawn(own)
        if figure is not None:
            tracking.log_figure([run_id], figure, f"figures/sweep{f'-{number}' * (len(groups) > 1)}.png")
    tracking.log_text(run_id, "\n\n".join([*text, *(f"failed: {one}" for one in failed)]), "sweep.md")
    data = {point.result.data for point in points}
    if len(data) == 1:
        tracking.set_tag(run_id, "data.md5", data.pop())
    tracking.set_tag(run_id, "fingerprint", fingerprint(sorted({point.result.fingerprint for point in points})))


def _tables(points: Sequence[Point]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, header and rows of every table: the objective's own score, further ones, the cells of a cold start."""
    from flows.report import INTERVALS, celled

    sizes = sorted({len(members) for members in varied(points).values()})
    seeds = f"{' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))} seed{'s' * (sizes[-1] > 1)} each"
    yield f"{len(points)} runs, {seeds} (range over seeds in brackets), {INTERVALS}, for the models that these seeds made", *table(points)
    more = [c for c in _scores_of(points[0]).columns if c in SCORES and all(c in _scores_of(p).columns for p in points)]
    for name in more:
        yield name, *further(points, name)
    cold = all(celled(point.result.metrics) for point in points)
    for name, setting in [(name, setting) for name in (_score(points[0]), *more) for setting in _settings(points) if cold]:
        yield f"{name}, {setting}, users-items", *cells(points, setting, name)
