"""Figures: what they read is what the evaluation reported, and what they show is what they read."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from outcomes import outcome
from workspace import SMOKE, Workspace

from components.domains.pool import Pool
from components.figures import trade_off
from components.score_figures import Bins, TaskScores, by_setting, distribution, inner_steps, learning, read_bins, reliability, versus, weights
from components.scores import costs
from components.sweep_figures import places
from components.task_figures import MOST, sample_task
from components.tasksets import TaskTable, read_table
from flows.sweeps import Point
from flows.sweeps import drawn as drawn_sweep


def drawn(figure: Figure) -> np.ndarray:
    """Return the figure's pixels [H, W, 3]."""
    canvas = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


SCORES = TaskScores({"5w1s": {"ours": np.array([0.2, 0.6, 0.6, 0.8]), "other": np.array([0.4, 0.4, 0.4, 0.8]), "few": np.array([0.2, 0.3])}})


def test_who_is_better_in_how_many_tasks_is_counted() -> None:
    figure = versus(SCORES, "ours", "other", "title", "accuracy, %", 100, 1)
    (panel,) = figure.axes
    assert panel.get_title() == "5w1s: ours better in 2, worse in 1 of 4 tasks"
    assert panel.collections[0].get_sizes().tolist() == [24, 48, 24], "two tasks at one place"
    assert panel.get_xlim() == panel.get_ylim()
    (fewer,) = versus(SCORES, "ours", "few", "title", "error", 1, -1).axes
    assert fewer.get_title() == "5w1s: ours better in 0, worse in 1 of 2 tasks", "less is better, on the tasks that both have"
    assert len(np.unique(drawn(figure).reshape(-1, 3), axis=0)) > 10


def test_boxes_are_in_the_order_asked_for_whatever_the_number_of_settings() -> None:
    for settings in (["a"], ["a", "b"], ["a", "b", "c"]):
        figure = distribution(TaskScores(dict.fromkeys(settings, SCORES.of["5w1s"])), ["few", "ours", "absent"], "title", "accuracy, %", 100)
        bottom, top = figure.axes[0].get_ylim()
        assert bottom > top, "the first is at the top"
        assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["few", "ours"]


def test_marks_stand_at_the_mean_with_the_interval() -> None:
    metrics = {"test/a/x/accuracy": 0.5, "test/a/x/accuracy_ci95": 0.1, "test/b/x/accuracy": 0.7, "test/b/x/accuracy_ci95": 0.2}
    (panel,) = by_setting(metrics, ["a", "b"], ["x"], "accuracy", "title", "accuracy, %", 100).axes
    (container,) = panel.containers
    assert container[0].get_ydata().tolist() == [50, 70]
    (bars,) = container[2]
    assert np.allclose([segment[:, 1] for segment in bars.get_segments()], [[40, 60], [50, 90]])


def test_a_long_title_is_whole() -> None:
    figure = weights(["one", "two"], [0.25, 0.75], "glyphs, seed 0, 5w1s, fused: who counts how much in it, and more that is to be said of the same")
    drawn(figure)
    (title,) = figure.texts
    place, (width, height) = title.get_window_extent(), figure.get_size_inches() * figure.dpi
    assert place.x0 >= 0 and place.x1 <= width and place.y1 <= height
    assert place.y0 >= figure.axes[0].get_window_extent().y1, "and beside what is drawn"


def test_weights_and_bins_are_shown_as_they_are() -> None:
    (panel,) = weights(["one", "two"], [0.25, 0.75], "title").axes
    assert [bar.get_width() for bar in panel.patches] == [25, 75]
    own = Bins(np.array([10.0, 30.0]), np.array([0.3, 0.9]), np.array([0.5, 0.8]))
    (panel,) = reliability({"5w1s": {"fused": own}}, "title").axes
    assert np.allclose(panel.collections[0].get_offsets(), [[30, 50], [90, 80]])


def test_curves_of_learning_and_of_inner_steps_are_drawn_as_they_are() -> None:
    (panel,) = learning({"base": [(40, 0.5), (80, 0.75)]}, "title", "accuracy, %", 100).axes
    assert panel.get_lines()[0].get_xydata().tolist() == [[40, 50], [80, 75]]
    (panel,) = inner_steps({"5w1s": [(0, 0.25, 0.125), (1, 0.5, 0.25)]}, "title", "accuracy, %", 100).axes
    (container,) = panel.containers
    assert container[0].get_xydata().tolist() == [[0, 25], [1, 50]]
    assert [segment[:, 1].tolist() for segment in container[2][0].get_segments()] == [[12.5, 37.5], [25, 75]]


def test_a_task_is_shown_class_by_class(small_pool: Pool, small_tasksets: Path) -> None:
    table = read_table(small_tasksets, "test-4w2s")
    figure = sample_task(small_pool, table, "title", 3)
    for panel, items in zip(figure.axes, (table.support[3], table.query[3]), strict=True):
        shown = panel.images[0].get_array()
        assert shown.shape == (4 * 30, items.shape[1] * 30), "28 pixels and a frame"
        for row, column in np.ndindex(items.shape):
            picture = shown[30 * row + 1 : 30 * row + 29, 30 * column + 1 : 30 * column + 29]
            assert np.array_equal(picture, 255 - small_pool.inputs[items[row, column]])
    names = [small_pool.classes["name"][int(c)].as_py() for c in table.classes[3]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    many = TaskTable(*(np.repeat(part, 3, 1) for part in (table.classes, table.support, table.query)), table.group)
    figure = sample_task(small_pool, many, "title")
    assert figure.axes[0].images[0].get_array().shape[0] == MOST * 30
    assert figure.get_suptitle() == "title; 4 more classes"


@pytest.mark.slow
def test_a_pipeline_leaves_its_figures_and_they_read_what_was_measured(finished: Workspace) -> None:
    made = finished.outputs("evaluate")[0]  # of the first run: later ones are other tests'
    folder, metrics = Path(made["ref"]["path"]), made["ref"]["metrics"]
    for setting, by_role in TaskScores.read(folder, "test").of.items():
        for role, scores in by_role.items():
            assert scores.mean() == pytest.approx(metrics[f"test/{setting}/{role}/accuracy"]), role
    for setting, by_role in read_bins(folder, "test", ["fused", "teacher"]).items():
        for role, own in by_role.items():
            gap = (own.queries * np.abs(own.confidence - own.accuracy)).sum() / own.queries.sum()
            assert gap == pytest.approx(metrics[f"test/{setting}/{role}/ece"])
            assert own.queries.sum() == metrics[f"test/{setting}/{role}/tasks"] * 5 * 5
    client = finished.mlflow()
    parents = client.search_runs([client.get_experiment_by_name("glyphs").experiment_id], "tags.stage = 'retrain'", order_by=["attributes.start_time"])
    names = {Path(file.path).stem for file in client.list_artifacts(parents[0].info.run_id, "figures")}
    wanted = {f"{name}-{setting}" for name in ("task", "trade-off") for setting in ("5w1s", "5w5s")}
    assert names == wanted | {"scores-by-task", "scores-by-setting", "reliability", "fusion-weights", "learning-curves", "one-task-mapped", "confusions"}
    assert "ran: nothing" in finished.retrain(SMOKE).stdout


def test_a_trade_off_has_each_learner_where_its_score_parameters_and_time_are() -> None:
    told = {
        "teacher": (0.9, 0.02, 5000, 0.3),
        "student-0": (0.8, 0.01, 500, 0.1),
        "fused": (0.95, 0.03, 1500, 0.2),
        "fused-distilled": (0.85, 0.015, 500, 0.15),
        "pixels": (0.4, 0.01, 0, 0.01),
    }
    metrics: dict[str, float] = {}
    for role, (score, half, parameters, seconds) in told.items():
        for setting, lost in (("5w1s", 0.1), ("5w5s", 0.0)):
            at = f"test/{setting}/{role}"
            metrics |= {f"{at}/accuracy": score - lost, f"{at}/accuracy_ci95": half, f"{at}/seconds": seconds + lost, f"{role}/parameters": parameters}
    figure = trade_off(costs(metrics, "5w5s", "accuracy", 100, ["pixels"]), "title", "accuracy")
    for panel, column, factor in zip(figure.axes, (2, 3), (1, 1000), strict=True):
        for drawn, role in zip(panel.containers, [role for role in told if role != "pixels"], strict=True):
            ((x, y),), (bar,) = drawn[0].get_xydata(), drawn[2][0].get_segments()
            assert (x, y) == pytest.approx((factor * told[role][column], 100 * told[role][0])) and drawn.get_label() == role
            assert bar[:, 1] == pytest.approx([y - 100 * told[role][1], y + 100 * told[role][1]])


def test_a_sweeps_values_stand_by_size_by_magnitude_or_evenly() -> None:
    assert places(["1", "2", "5"])[0].tolist() == [0, 0.25, 1]
    assert np.allclose(places(["0.001", "0.01", "0.1"])[0], [0, 0.5, 1])
    where, ticks = places(["maml", "ridge", "maml"])
    assert where.tolist() == [0.25, 0.75, 0.25] and ticks == [(0.25, "maml"), (0.75, "ridge")]
    assert places(["nan", "1"])[1] == [(0.25, "1"), (0.75, "nan")]


def test_a_sweep_is_one_line_a_run_from_its_values_to_its_score() -> None:
    def point(lr: str, learner: str, error: float) -> Point:
        metrics = {"test/1w5s/teacher/mse": 9 - error}
        overrides = [f"learner.fit.lr={lr}", f"learner={learner}", "seed=0", "base.fit.steps=8"]
        return Point(overrides, outcome(Path(), metrics, validation=error))

    figure = drawn_sweep([point("0.1", "ridge", 3.0), point("0.2", "maml", 1.0)])
    assert figure is not None
    (panel,) = figure.axes
    lines = [line.get_ydata().tolist() for line in panel.get_lines() if len(line.get_xdata()) == 3]
    assert lines == [[0, 0.75, 1], [1, 0.25, 0]], "the least error is drawn last"
    assert [label.get_text() for label in panel.get_xticklabels()] == ["learner.fit.lr", "learner", "validation mse"]
    assert drawn_sweep([point("0.1", "ridge", 3.0)] * 2) is None
