"""Statistics against known answers: intervals, calibration, pairing."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from outcomes import outcome
from scipy import stats
from scipy.optimize import minimize_scalar
from sklearn import metrics
from tasks_for_tests import CONV, predict, spec, tasks

from components.answers import BINS, Scores, interval, paired, pooled, read_answers, score, write_answers
from components.contracts import RegistrySection
from components.domains.pool import Pool
from components.domains.seen import misfit
from components.evaluation import class_ids, evaluate, operations
from components.examination import compared, references
from components.inputs import InputError
from components.learners import store
from components.learners.reference import Linear, Nearest
from components.objectives import MEASURES, OBJECTIVES, order_loss
from components.tasks import Examples
from components.tasksets import TaskSpec, batch, draw, read_table, write_tasksets
from components.validation import Validation, calibrate, encode_items, validate
from flows.config import load
from flows.sweeps import Point, Row, _pooled


def test_with_one_group_the_interval_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(0.7, 0.1, 1_000)
    mean, half = interval(values, np.zeros(1_000))
    assert mean == values.mean()
    assert half == pytest.approx(1.96 * values.std() / np.sqrt(1_000), rel=0.01)


def test_with_groups_of_one_size_the_interval_is_the_t_interval_of_their_means() -> None:
    values = np.random.default_rng(1).random((6, 30)) + np.linspace(0, 1, 6)[:, None]
    low, high = stats.ttest_1samp(values.mean(1), 0).confidence_interval(0.95)
    mean, half = interval(values.ravel(), np.repeat(np.arange(6), 30))
    assert (mean - half, mean + half) == pytest.approx((low, high))


@pytest.mark.parametrize(("groups", "between"), [(2, 0.02), (5, 0.07), (5, 0.0), (20, 0.1), (150, 0.1)])
def test_the_interval_covers_the_truth_as_often_as_it_says(groups: int, between: float) -> None:
    random, hits, trials = np.random.default_rng(groups), 0, 1_000
    for _ in range(trials):
        own = random.integers(groups, size=300)  # as tasks are drawn: of some groups more than of others
        mean, half = interval(random.normal(0, between, groups)[own] + random.normal(0, 0.08, 300), own)
        hits += abs(mean) <= half
    assert 0.93 <= hits / trials <= 0.97


@pytest.mark.parametrize("classes", [6, 40])
def test_of_tasks_across_groups_the_interval_is_over_their_classes(classes: int) -> None:
    random, trials = np.random.default_rng(classes), 400
    hits = {"classes": 0, "tasks": 0}
    for _ in range(trials):
        own = np.argsort(random.random((500, classes)), 1)[:, :5]  # five-way tasks of the same few classes
        shares = random.normal(0, 0.03, classes)[own] + random.normal(0, 0.1, own.shape)
        apart = Scores({"accuracy": shares.mean(1)}, np.full(500, -1), np.zeros((BINS, 3)), shares, own)
        for name, (mean, half) in (("classes", pooled([apart], "accuracy")), ("tasks", interval(shares.mean(1), apart.group))):
            assert mean == pytest.approx(shares.mean())
            hits[name] += abs(mean) <= half
    assert 0.92 <= hits["classes"] / trials <= 0.98 and hits["tasks"] / trials < 0.8


def test_the_classes_of_tasks_across_groups_are_kept_with_what_each_scored(small_pool: Pool, tmp_path: Path) -> None:
    specs = [TaskSpec("test-4w2s", "test", 4, 2, 3, "all", 40), TaskSpec("test-2w1s", "test", 2, 1, 3, "all", 30)]
    write_tasksets(specs, small_pool, 0, tmp_path / "tasks")
    roles, pair = {"one": Nearest(), "other": store.build(spec("protonet"), 1)}, {"one - other": ("one", "other")}
    metrics = evaluate(roles, {}, pair, ["4w2s", "2w1s"], "test", small_pool, str(tmp_path / "tasks"), tmp_path)
    rows, ids = pq.read_table(tmp_path / "scores-test.parquet").to_pandas(), class_ids(small_pool)
    for setting in ("4w2s", "2w1s"):
        table = read_table(tmp_path / "tasks", f"test-{setting}")
        for role in ("one", "other", "one - other"):
            own = rows[(rows.setting == setting) & (rows.role == role)]
            shares, members = np.stack(own["shares"]), np.stack(own["members"])
            assert np.array_equal(members, ids[table.classes]) and shares.mean(1) == pytest.approx(own["score"].to_numpy())
            means = np.array([(shares[members == one] - own.score.mean()).sum() for one in np.unique(members)]) / shares.shape[1]
            error = np.sqrt(len(means) / (len(means) - 1) * np.square(means).sum()) / len(own)
            wanted = stats.t.ppf(0.975, len(means) - 1) * error
            assert metrics[f"test/{setting}/{role}/accuracy_ci95"] == pytest.approx(wanted, rel=1e-9)
    both = rows[rows.role == "one - other"]
    assert metrics["test/one - other/accuracy"] == pytest.approx(both.score.mean()), "every task counts once, whatever its ways"
    point = Point([], outcome(tmp_path, metrics, judged="one"))
    assert _pooled(Row("", "one", [point]), [rows], ["4w2s"])[0][:2] == pytest.approx([metrics[f"test/4w2s/one/accuracy{end}"] for end in ("", "_ci95")])


def test_of_tasks_within_the_only_group_the_interval_is_over_its_classes(small_pool: Pool, tmp_path: Path) -> None:
    kept = small_pool.classes
    alone = replace(small_pool, classes=kept.set_column(kept.column_names.index("group"), "group", pa.array(["one"] * len(kept))))
    metrics = []
    for name, pool, within in (("alone", alone, "group"), ("all", small_pool, "all")):
        write_tasksets([TaskSpec("test-4w2s", "test", 4, 2, 3, within, 200)], pool, 0, tmp_path / name)
        found = evaluate({"one": Nearest()}, {}, {}, ["4w2s"], "test", pool, str(tmp_path / name), tmp_path)
        metrics.append({key: value for key, value in found.items() if not key.endswith("seconds")})
    assert metrics[0] == metrics[1], "classes from the only group are classes from everywhere"


def test_settings_of_several_groups_and_of_one_are_pooled_by_groups(small_pool: Pool, tmp_path: Path) -> None:
    """Of three scripts one may have twenty classes: where that asks its own classes alone, these still lie in it."""
    random, classes = np.random.default_rng(0), np.arange(80).reshape(40, 2) % 6
    shares = random.random((40, 2))
    alone = Scores({"accuracy": shares.mean(1)}, np.full(40, 2), np.zeros((BINS, 3)), shares, classes)
    several = Scores({"accuracy": random.random(60)}, np.arange(60) % 3, np.zeros((BINS, 3)))
    values, groups = (np.concatenate([a, b]) for a, b in ((alone.scores["accuracy"], several.scores["accuracy"]), (alone.group, several.group)))
    assert pooled([alone, several], "accuracy") == pytest.approx(interval(values, groups))
    few = small_pool.classes.to_pandas()
    first = few[few["split"] == "test"]["group"].iloc[0]
    others = (few["split"] == "test") & (few["group"] != first)
    few.loc[others, "group"] = [f"pair {i // 2}" for i in range(int(others.sum()))]
    pool = replace(small_pool, classes=pa.Table.from_pandas(few, preserve_index=False))
    write_tasksets([TaskSpec(f"test-{way}w2s", "test", way, 2, 3, "group", 40) for way in (2, 4)], pool, 0, tmp_path / "tasks")
    evaluate({"one": Nearest()}, {}, {}, ["2w2s", "4w2s"], "test", pool, str(tmp_path / "tasks"), tmp_path)
    rows = pq.read_table(tmp_path / "scores-test.parquet").to_pandas()
    assert rows[rows.setting == "2w2s"]["shares"].isna().all() and rows[rows.setting == "4w2s"]["shares"].notna().all()


def test_of_tasks_of_one_class_from_everywhere_the_class_is_the_group(small_pool: Pool) -> None:
    table = draw(TaskSpec("test-1w2s", "test", 1, 2, 3, "all", 50), small_pool, 0)
    assert np.array_equal(table.group, table.classes[:, 0]) and len(np.unique(table.group)) > 1
    assert (draw(TaskSpec("test-2w2s", "test", 2, 2, 3, "all", 50), small_pool, 0).group == -1).all()


def test_a_single_task_says_nothing_of_others() -> None:
    assert interval(np.array([0.5]), np.array([3])) == (0.5, np.inf)


def test_ece_of_a_hand_made_diagram() -> None:
    bins = np.zeros((BINS, 3))
    bins[7] = (10, 5.0, 4.0)  # ten queries at confidence 0.5, four right
    bins[14] = (30, 29.0, 30.0)
    assert Scores({"accuracy": np.zeros(1)}, np.zeros(1), bins).ece == pytest.approx((1.0 + 1.0) / 40)


def test_differences_are_paired_task_by_task() -> None:
    a = Scores({"mse": np.array([0.5, 0.9, 0.7]), "mae": np.array([3.0, 2.0, 1.0])}, np.array([0, 1, 1]), np.zeros((BINS, 3)))
    b = Scores({"mse": np.array([0.4, 1.0]), "mae": np.array([1.0, 1.0])}, np.array([0, 1]), np.zeros((BINS, 3)))
    gap = paired(a, b)
    assert np.allclose(gap.scores["mse"], [0.1, -0.1]) and np.allclose(gap.scores["mae"], [2, 1]) and gap.group.tolist() == [0, 1]


@pytest.mark.parametrize("across", [True, False])
def test_answers_that_were_kept_are_paired_like_those_at_hand(across: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    group, classes = (np.full(8, -1), np.arange(24).reshape(8, 3) % 5) if across else (np.arange(8) % 3, None)
    found = []
    for name in ("one", "two"):
        shares = random.random((8, 3))
        found.append(Scores({"accuracy": shares.mean(1)}, group, np.zeros((BINS, 3)), *((shares, classes) if across else ())))
        (tmp_path / name).mkdir()
        write_answers(found[-1], tmp_path / name)
    kept = [read_answers(tmp_path / name, "accuracy") for name in ("one", "two")]
    assert pooled([paired(*kept)], "accuracy") == pooled([paired(*found)], "accuracy")
    assert paired(*kept).scores["accuracy"] == pytest.approx(found[0].scores["accuracy"] - found[1].scores["accuracy"], abs=0)


def test_scores_equal_a_loop_over_raw_tasks(small_pool: Pool, small_tasksets) -> None:
    learner = Nearest()
    found = score(learner, Validation(small_pool, small_tasksets, "test-4w2s"))
    table = read_table(small_tasksets, "test-4w2s")
    items = torch.from_numpy(np.array(small_pool.inputs)).unsqueeze(1).float() / 255
    for row in range(len(table)):
        task = batch(table, np.array([row]), items)
        hits = learner.predict(learner.adapt(task.support), task.query.x).argmax(-1) == task.query.y
        assert found.scores["accuracy"][row] == pytest.approx(hits.double().mean().item())
    assert found.bins[:, 0].sum() == len(table) * 12
    assert found.bins[:, 2].sum() == pytest.approx(found.scores["accuracy"].sum() * 12)


def test_calibration_finds_the_temperature_of_least_loss_and_keeps_the_choices(small_pool: Pool, small_tasksets) -> None:
    learner, validation = Nearest(), Validation(small_pool, small_tasksets)
    before = validate(learner, validation)
    found = calibrate(learner, validation)
    after = validate(learner, validation)
    assert after["accuracy"] == before["accuracy"] and after["loss"] < before["loss"]
    features = encode_items(learner, validation.items)
    parts = [(learner.predict_features(learner.adapt_features(t.support), t.query.x), t.query.y) for t in validation.task_batches(features)]
    logits, labels = torch.cat([x.flatten(0, 1) for x, _ in parts]), torch.cat([y.flatten() for _, y in parts])
    loss = lambda log_t: torch.nn.functional.cross_entropy(logits / np.exp(log_t), labels).item()  # noqa: E731
    best = minimize_scalar(loss, bounds=(-4, 6), method="bounded", options={"xatol": 1e-6})
    assert np.log(found) == pytest.approx(best.x, abs=1e-2)


def test_promotion_needs_the_whole_interval_above_the_margin() -> None:
    from flows.promotion import judge

    evidence = "gate/fused-minus-champion/accuracy"
    gap = {evidence: 0.02, f"{evidence}_ci95": 0.015}
    assert judge(gap, True, 0, 0.0)[0]
    assert not judge(gap, True, 0, 0.01)[0]
    assert not judge(gap | {f"{evidence}_ci95": 0.03}, True, 0, 0.0)[0]
    assert judge({}, False, 0, 0.0) == (True, "there was no champion")
    refused, reason = judge({"gate/5w1s/fused/accuracy": 0.9}, True, 0, 0.0)
    assert not refused and "takes other inputs" in reason
    errors = {"gate/fused-minus-champion/mse": -0.02, "gate/fused-minus-champion/mse_ci95": 0.015}
    assert judge(errors, True, 0, 0.0)[0], "of an error less is better"
    assert not judge({k: abs(v) for k, v in errors.items()}, True, 0, 0.0)[0]
    refused, reason = judge(gap, True, 12, 0.0)
    assert not refused and "trained on 12" in reason


def test_a_batch_norm_network_scores_the_same_in_any_batch(small_pool: Pool, small_tasksets) -> None:
    learner = store.build(spec("protonet"))
    validation = Validation(small_pool, small_tasksets, "test-4w2s")
    one, other = (score(learner, validation, size=size).scores["accuracy"] for size in (3, 40))
    assert (one == other).all()


@torch.no_grad()
def test_operations_are_those_of_the_shapes() -> None:
    a, b, heads, steps = torch.randn(2, 300, 8), torch.randn(2, 50, 8), torch.randn(2, 4, 10, 16), torch.randn(3, 7, 8)
    assert operations(lambda: torch.cdist(a, b)) == operations(lambda: torch.cdist(a[:, :20], b)) * 15 == 3 * 2 * 300 * 50 * 8  # a difference, a square, a sum
    assert operations(lambda: torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)) == 2 * 2 * 2 * 4 * 10 * 10 * 16
    assert operations(lambda: torch.nn.LSTM(8, 16, batch_first=True, bidirectional=True)(steps)) == 2 * 2 * 3 * 7 * (8 + 16) * 64
    assert operations(lambda: torch.nn.LSTMCell(8, 16)(steps[:, 0])) == 2 * 3 * (8 + 16) * 64
    assert operations(lambda: torch.nn.Conv2d(3, 8, 3, padding=1)(torch.randn(2, 3, 9, 9))) == 2 * 2 * 8 * 81 * 27


def test_the_linear_references_are_shrunk_means_and_ridge_regression() -> None:
    random = np.random.default_rng(3)
    head, x, y, asked = random.normal(size=(4, 1)), random.normal(size=(6, 3)), random.normal(size=6), random.normal(size=(2, 3))
    support = Examples(torch.tensor(x)[None], torch.tensor(y)[None], 1)
    padded = np.concatenate([x, np.ones((6, 1))], 1)
    left = y - (padded @ head)[:, 0]
    wanted = {True: np.array([0, 0, 0, left.sum() / (6 + 2.5)]), False: np.linalg.solve(padded.T @ padded + 2.5 * np.eye(4), padded.T @ left)}
    for constant_alone, moved in wanted.items():
        learner = Linear(torch.tensor(head), 2.5, constant_alone)
        found = learner.predict(learner.adapt(support), torch.tensor(asked)[None])[0, :, 0].numpy()
        assert found == pytest.approx(np.concatenate([asked, np.ones((2, 1))], 1) @ (head[:, 0] + moved), rel=1e-9)


def test_further_scores_of_values_equal_those_of_scikit_learn() -> None:
    random = np.random.default_rng(5)
    stars = random.integers(0, 10, size=(30, 12)) / 2
    told = random.integers(0, 7, size=(30, 12)) / 2  # of few values, so that many are equal
    args = torch.tensor(told)[..., None], torch.tensor(stars)
    for depth in (1, 3, 5):
        wanted = [metrics.ndcg_score([2**y - 1], [x], k=depth) for x, y in zip(told, stars, strict=True)]
        assert MEASURES[f"ndcg_{depth}"](*args).numpy() == pytest.approx(wanted, rel=1e-9)
    assert MEASURES["mae"](*args).numpy() == pytest.approx([metrics.mean_absolute_error(*pair) for pair in zip(stars, told, strict=True)])
    assert MEASURES["rmse"](*args).numpy() == pytest.approx([metrics.root_mean_squared_error(*pair) for pair in zip(stars, told, strict=True)])
    assert MEASURES["ndcg_3"](torch.zeros(1, 4, 1), torch.zeros(1, 4)).item() == 1  # nothing to gain


def test_the_loss_of_an_order_weighs_pairs_by_what_ndcg_would_change() -> None:
    random = np.random.default_rng(8)
    told, wanted = random.normal(size=(3, 7)), random.integers(0, 10, size=(3, 7)) / 2
    expected = []
    for outputs, y in zip(told, wanted, strict=True):
        gain, place = 2 ** (y - y.min()) - 1, np.argsort(np.argsort(-outputs))
        ideal = sum(g / math.log2(2 + i) for i, g in enumerate(sorted(gain, reverse=True)[:5]))
        expected.append(0.0)
        for i, j in itertools.permutations(range(7), 2):
            if y[i] > y[j]:
                changed = abs(gain[i] - gain[j]) * abs(1 / math.log2(2 + place[i]) - 1 / math.log2(2 + place[j])) / ideal
                expected[-1] += changed * math.log1p(math.exp(-2 * (outputs[i] - outputs[j])))
    outputs, targets = torch.tensor(told)[..., None], torch.tensor(wanted)
    assert order_loss(outputs, targets).numpy() == pytest.approx(expected)
    plain = OBJECTIVES["squared_error"]
    ordered = replace(plain, order_weight=3.0, unit=2.0)
    loss, logged = ordered.loss_and_metrics(outputs, targets)
    order = order_loss(outputs / 2, targets / 2).mean()
    assert loss.item() == pytest.approx((plain.loss(outputs, targets).mean() + 3 * order).item()) and logged["order_loss"].item() == pytest.approx(order.item())
    assert torch.equal(ordered.loss(outputs, targets), plain.loss(outputs, targets)), "what chooses and what is reported stays the squared error"
    assert not order_loss(outputs, torch.ones(3, 7)).any(), "where all are equal, any order is as good"


def test_gains_of_any_size_have_an_ndcg() -> None:
    told, counts = torch.tensor([[[3.0], [2.0], [1.0]]]), torch.tensor([[5_000.0, 4_999.0, 0.0]]).double()
    found = MEASURES["ndcg_3"](told.double(), counts).item()
    best = 1 + 0.5 / np.log2(3)
    assert found == pytest.approx(1) and MEASURES["ndcg_3"](-told.double(), counts).item() == pytest.approx((0.5 / np.log2(3) + 1 / np.log2(4)) / best)


def test_a_learner_of_other_inputs_is_told(small_pool: Pool) -> None:
    told = store.spec_of("protonet", {}, CONV, (1, 35, 35), "cross_entropy")
    assert "takes inputs [1, 35, 35], but domain small has [1, 28, 28]" in misfit(told, "cross_entropy", small_pool)
    assert "predicts by cross_entropy, but return" in misfit(told, "return", small_pool)
    played = told | {"input_shape": [1, 28, 28], "environment": "cartpole"}
    assert "acts in cartpole, but domain small has None" in misfit(played, "cross_entropy", small_pool)
    fused = store.fused_spec([played, played], "mixture", [0.5, 0.5], False)
    assert "acts in cartpole" in misfit(fused, "cross_entropy", small_pool)
    assert not misfit(told | {"input_shape": [1, 28, 28]}, "cross_entropy", small_pool)


def test_guard_rails_refuse_what_is_worse_calibrated_larger_or_costlier() -> None:
    from flows.promotion import rails

    told = {"fused/parameters": 1200, "fused/flops": 5e6, "gate/5w1s/fused/ece": 0.09, "gate/5w1s/champion/ece": 0.02, "gate/5w5s/fused/ece": 0.02}
    told |= {"gate/5w5s/champion/ece": 0.03}
    assert rails(told, "fused", RegistrySection("m", 0.0, None, None, None)) == []
    assert rails(told, "fused", RegistrySection("m", 0.0, 0.08, 1200, 5e6)) == [], "at the limit is within it"
    found = rails(told, "fused", RegistrySection("m", 0.0, 0.05, 1199, 4e6))
    assert [f.split(" exceed")[0] for f in found] == ["1,200 parameters", "5,000,000 flops", "ECE on the gate split, 5w1s, 0.090"]
    assert len(rails({"fused/parameters": 2, "fused/flops": 1.0}, "fused", RegistrySection("m", 0.0, 0.05, 1, None))) == 1, "without a champion too"
    with pytest.raises(InputError, match=r"registry.max_flops must be at least 0"):
        RegistrySection("m", 0.0, None, None, -1.0)


def test_fused_is_compared_with_the_plain_mean_of_the_students_their_best_and_the_teacher(small_pool: Pool) -> None:
    loaded = {name: store.build(spec("protonet", norm="running"), seed).eval() for seed, name in enumerate(("base", "teacher", "student-0", "student-1"))}
    found, tasked = references("pixels", loaded, CONV, load().evaluation, 0, small_pool), tasks()
    wanted = torch.stack([predict(loaded[name], tasked).softmax(-1) for name in ("student-0", "student-1")]).mean(0)
    assert torch.allclose(predict(found["students-mean"], tasked).softmax(-1), wanted, atol=1e-6)
    pairs = compared([*found, "fused", "fused-distilled"], "fused", "student-1")
    others = {"students-mean": "students-mean", "teacher": "teacher", "student-best": "student-1"}
    assert {label: pairs[f"fused-minus-{label}"] for label in others} == {label: ("fused", other) for label, other in others.items()}
    assert pairs["fused-distilled-minus-student-best"] == ("fused-distilled", "student-1") and pairs["student-0-minus-teacher"] == ("student-0", "teacher")
