"""The table at the end of a sweep: seeds pooled, intervals over groups, the best first."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from outcomes import outcome
from workspace import SMOKE, Workspace

from components.contracts import CELLS
from flows.sweeps import Point, by_score, cells, contenders, distinct, further, table, varied


def point(folder: Path, overrides: list[str], scores: np.ndarray, name: str = "accuracy") -> Point:
    folder.mkdir(parents=True)
    rows = [("5w1s", "teacher", i, i % 4, float(s)) for i, s in enumerate(scores)] + [("5w1s", "base", 0, 0, 0.1)]
    columns = dict(zip(("setting", "role", "task", "group", "score"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "scores-test.parquet")
    metrics = {f"test/5w1s/teacher/{name}": float(scores.mean()), "test/5w1s/teacher/tasks": 40.0, "teacher/parameters": 1234.0, "teacher/flops": 5e6}
    metrics |= {f"teacher/{t}/seconds": 0.002 for t in ("adapt", "predict")}
    return Point(overrides, outcome(folder, metrics, float(1 - scores.mean())))


def sweep(folder: Path, name: str = "accuracy") -> tuple[list[Point], dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    scores = {learner: 0.5 + 0.1 * rank + 0.1 * random.random((2, 40)) for rank, learner in enumerate(("maml", "ridge"))}
    points = [
        point(folder / f"{learner}{seed}", ["experiment=smoke", f"learner={learner}", f"seed={seed}"], own[seed], name)
        for learner, own in scores.items()
        for seed in (0, 1)
    ]
    return points, scores


def test_points_are_grouped_by_what_differs_and_not_by_seed(tmp_path: Path) -> None:
    points, _ = sweep(tmp_path)
    assert {name: len(members) for name, members in varied(points).items()} == {"learner=maml": 2, "learner=ridge": 2}
    assert list(varied([p for p in points if "learner=maml" in p.overrides])) == ["all"]  # seeds alone


def test_a_row_pools_the_tasks_of_all_seeds_and_tells_their_range(tmp_path: Path) -> None:
    points, scores = sweep(tmp_path)
    header, rows = table(points)
    assert header[1:3] == ["validation accuracy", "5w1s accuracy"]
    assert [row[0] for row in rows] == ["learner=maml", "learner=ridge"], "by validation tasks, whatever test tasks say"
    assert rows[1][1] == f"{100 - 100 * scores['ridge'].mean():.2f}"
    mean, half, spread = rows[1][2].replace("±", "").split(maxsplit=2)
    assert float(mean) == pytest.approx(100 * scores["ridge"].mean(), abs=0.005)
    low, high = (float(x) for x in spread.strip("()").split("to"))
    assert (low, high) == pytest.approx(tuple(sorted(100 * scores["ridge"].mean(1))), abs=0.005)
    groups = np.arange(40) % 4
    by_group = np.array([scores["ridge"][:, groups == g].mean() for g in range(4)])
    assert 0 < float(half) < 200 * by_group.std() + 2  # of the size that four groups allow
    assert rows[1][3:] == ["10", "1,234", "5.0", "2.0", "2.0"]


def test_of_each_model_and_kind_of_tasks_the_best_by_validation_contends(tmp_path: Path) -> None:
    points, _ = sweep(tmp_path)
    best = max(points, key=lambda p: p.result.validation)
    assert contenders(points) == [best]
    points[3] = Point(points[3].overrides, replace(points[3].result, validated_on="another way"))
    assert contenders(points) == [max(points[:3], key=lambda p: p.result.validation), points[3]]
    assert [row[0] for row in table(points[::-1])[1]] == ["learner=ridge", "learner=maml"], "in the order asked: these are no ranking"
    lower, _ = sweep(tmp_path / "errors", "mse")
    assert contenders(lower) == [min(lower, key=lambda p: p.result.validation)]


def test_runs_that_met_several_champions_join_them_in_no_row(tmp_path: Path) -> None:
    points = [p for p in sweep(tmp_path)[0] if "learner=maml" in p.overrides]
    for p in points:
        path = Path(p.result.evaluation) / "scores-test.parquet"
        own = pq.read_table(path).to_pandas()
        more = [own[own["role"] == "teacher"].assign(role=role) for role in ("champion", "teacher-minus-champion")]
        pq.write_table(pa.Table.from_pandas(pd.concat([own, *more]), preserve_index=False), path)
        p.result.metrics.update({f"test/5w1s/{role}/accuracy": 0.5 for role in ("champion", "teacher-minus-champion")})
        p.result.metrics.update({"test/5w1s/champion/tasks": 40.0, "champion/parameters": 9.0, "champion/flops": 1e6})
        p.result.metrics.update({f"champion/{name}/seconds": 0.001 for name in ("adapt", "predict")})
    assert {"champion", "teacher - champion"} <= {row[0] for row in table(points)[1]}
    points[1] = Point(points[1].overrides, replace(points[1].result, champion_met="the first one"))
    assert "teacher" in {row[0] for row in table(points)[1]} and not {"champion", "teacher - champion"} & {row[0] for row in table(points)[1]}


def test_where_less_is_better_the_least_comes_first(tmp_path: Path) -> None:
    points, _ = sweep(tmp_path, "mse")
    assert [row[0] for row in table(points)[1]] == ["learner=ridge", "learner=maml"]


def test_a_further_score_has_a_table_of_its_own(tmp_path: Path) -> None:
    points, _ = sweep(tmp_path, "mse")
    random = np.random.default_rng(2)
    own = {}
    for p in points:
        path = Path(p.result.evaluation) / "scores-test.parquet"
        frame = pq.read_table(path)
        own[tuple(p.overrides)] = random.random(len(frame))
        pq.write_table(frame.append_column("mae", pa.array(own[tuple(p.overrides)])), path)
    header, rows = further(points, "mae")
    assert header == ["", "5w1s mae"]
    for row in rows:
        pooled = np.concatenate([values[:-1] for key, values in own.items() if row[0] in key])  # the last row is the base's
        assert row[1].startswith(f"{pooled.mean():.4f} ± ")


def test_where_only_the_seed_differs_every_learner_and_every_difference_has_its_row(tmp_path: Path) -> None:
    random, points = np.random.default_rng(1), []
    own = {role: random.random((3, 40)) for role in ("base", "teacher")}
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        scores = {"base": own["base"][seed], "teacher": own["teacher"][seed], "teacher-minus-base": own["teacher"][seed] - own["base"][seed]}
        rows = [("5w1s", role, i, i % 4, float(s)) for role, values in scores.items() for i, s in enumerate(values)]
        columns = dict(zip(("setting", "role", "task", "group", "score"), map(list, zip(*rows, strict=True)), strict=True))
        pq.write_table(pa.table(columns), folder / "scores-test.parquet")
        metrics = {f"test/5w1s/{role}/accuracy": float(values.mean()) for role, values in scores.items()}
        metrics |= {f"{role}/{name}": 0.002 for role in own for name in ("parameters", "adapt/seconds", "predict/seconds")}
        metrics |= {"base/flops": 7e6, "teacher/flops": 2e6 + 1e6 * seed}  # as where fusion keeps other members by another seed
        metrics |= {"test/5w1s/base/tasks": 30.0, "test/5w1s/teacher/tasks": 40.0, "challenge/runs": 20.0}
        ends = ("error", "error_ci95", "error_joint", "error_joint_ci95")
        metrics |= {f"challenge/{role}/{end}": 10.0 + seed for role in ("teacher", "teacher-minus-base") for end in ends}
        points.append(Point([f"seed={seed}"], outcome(folder, metrics, 0.5)))
    header, rows_ = table(points)
    told = {row[0]: row[1:] for row in rows_}
    assert list(told) == ["base (30 tasks)", "teacher", "teacher - base (30 tasks)"]
    gaps = 100 * (own["teacher"] - own["base"])
    assert told["teacher - base (30 tasks)"][0].startswith(f"{gaps.mean():+.2f} ± ")
    assert told["teacher - base (30 tasks)"][0].endswith(f"({gaps.mean(1).min():+.2f} to {gaps.mean(1).max():+.2f})")
    operations = header.index("MFLOP") - 1
    assert [told[name][operations] for name in told] == ["7.0", "2.0 to 4.0", ""]
    error = header.index("challenge error (20 runs)") - 1
    assert told["teacher"][error] == "11.00 ± 11.00 (10.00 to 12.00)" and told["teacher - base (30 tasks)"][error] == "+11.00 ± 11.00 (+10.00 to +12.00)"


def test_the_cells_of_a_cold_start_pool_the_seeds_too(tmp_path: Path) -> None:
    points, scores = sweep(tmp_path, "mse")
    points = [p for p in points if "learner=maml" in p.overrides]
    for number, p in enumerate(points):
        whole = pq.read_table(f"{p.result.evaluation}/scores-test.parquet").to_pandas()
        for place, cell in enumerate(CELLS):
            pq.write_table(
                pa.Table.from_pandas(whole.assign(score=whole.score + place, mae=10.0 * place + number)), tmp_path / f"maml{number}/scores-{cell}.parquet"
            )
            p.result.metrics[f"{cell}/5w1s/teacher/mse"] = 0.0
    header, rows = cells(points, "5w1s", "mse")
    assert header == ["", *CELLS] and [row[0] for row in rows] == ["teacher"]
    assert [float(cell.split()[0]) for cell in rows[0][1:]] == pytest.approx([scores["maml"].mean() + place for place in range(4)], abs=1e-4)
    assert cells(points, "5w1s", "mae")[1][0][2].startswith("10.5000 ± ") and cells(points, "5w1s", "mae")[1][0][2].endswith(" (10.0000 to 11.0000)")


def test_a_run_that_was_asked_for_again_is_no_further_seed(tmp_path: Path) -> None:
    points, scores = sweep(tmp_path)
    again = Point(list(reversed(points[1].overrides)), points[1].result)
    assert distinct([*points, again, again]) == [points[0], again, *points[2:]]
    told = {row[0]: row[2] for row in table(distinct([*points, again, again]))[1]}
    assert told["learner=maml"].startswith(f"{100 * scores['maml'].mean():.2f} ± ")


def test_runs_of_other_settings_share_those_that_all_have(tmp_path: Path) -> None:
    points, scores = sweep(tmp_path)
    for p in points[2:]:
        p.result.metrics.update({"test/5w5s/teacher/accuracy": 0.9, "test/1w1s/teacher/accuracy": 0.9})
    header, rows = table([*points[2:], *points[:2]])
    assert header[1:3] == ["validation accuracy", "5w1s accuracy"] and not header[3].endswith("accuracy")
    assert rows[0][2].startswith(f"{100 * scores['maml'].mean():.2f} ± ")
    p = points[0].result.metrics
    for name in ("accuracy", "tasks"):
        p[f"test/20w1s/teacher/{name}"] = p.pop(f"test/5w1s/teacher/{name}")
    assert [name for name in table(points)[0] if name.endswith(" accuracy")] == ["validation accuracy"], "with none in common, validation tasks alone"


def test_accuracies_stand_in_no_table_with_errors(tmp_path: Path) -> None:
    points, others = sweep(tmp_path / "a")[0], sweep(tmp_path / "b", "mse")[0]
    assert by_score([*points, *others]) == {"accuracy": points, "mse": others}


@pytest.mark.slow
def test_a_run_that_fails_is_told_when_it_fails(finished: Workspace) -> None:
    asked = ["student.count=0", "learner.fit.lr=1e30,0.001", "registry.model=swept", "--multirun"]
    told = finished.retrain(SMOKE, *asked, expect=1).stderr
    assert 0 < told.index("sweep 1/2 failed, the others go on: ") < told.index("sweep 2/2: "), "not at the end alone"
    assert "1 of 2 runs failed" in told
