"""What is drawn anew and what is not; what a fit tells its learner; what scores, costs and confidences are of."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tasks_for_tests import predict, spec
from test_training import AUGMENT, SECTION, Heard, job

from components.answers import score
from components.batches import Epochs, ItemBatches, LessonBatches, TaskBatches
from components.domains import sinusoid
from components.domains.options import OPTIONS
from components.domains.pool import Pool, open_pool, write_pool
from components.draws import seed_of
from components.evaluation import cost, evaluate, task_classes
from components.goals import goal_of, learner_for
from components.job import Watch
from components.launch import fit
from components.learners import store
from components.learners.reference import Nearest
from components.objectives import MEASURES
from components.tasks import TaskBatch
from components.tasksets import TaskSpec, read_table, write_tasksets
from components.training import Fit
from components.validation import Validation, encode_items
from flows.config import load


def test_no_two_pictures_are_drawn_or_bent_by_the_same_numbers(small_pool: Pool, small_tasksets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, items, turned = [], [], []
    monkeypatch.setattr("components.batches.bent", lambda x, options, each, own: (seeds.extend(own), x)[1])
    table = read_table(small_tasksets, "train")
    for seed in (0, 1):
        for step in (0, 1, 25):  # by step 25 the fifty tasks of the table begin a third time
            items.append(ItemBatches(small_pool, 1, 64, seed, AUGMENT)(step, 0, 1)[0].numpy().tobytes())
            turned.append(TaskBatches(small_pool, table, 4, seed, AUGMENT, 8)(step, 0, 1).query.x.numpy().tobytes())
    assert len(set(items)) == len(set(turned)) == 6
    assert len(set(seeds)) == len(seeds) == 6 * (2 + 4)


def test_every_lesson_has_noise_of_its_own(small_pool: Pool, small_tasksets: Path) -> None:
    recipe = replace(load(["experiment=smoke"]).student.recipe, noise=0.3, teacher_shots=0, unlabelled=0, cutmix=0.0)
    table = read_table(small_tasksets, "train")
    given = LessonBatches(small_pool, table, 4, 3, AUGMENT, recipe)(0, 0, 1)
    blurred = given.support.x - given.taught.x
    assert not any(torch.allclose(blurred[i], blurred[j], atol=1e-3) for i in range(4) for j in range(i))


def test_a_fit_takes_every_step_once_and_tells_the_learner_how_far_it_is(
    small_pool: Pool, small_tasksets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.learners.metric import ProtoNet

    drawn, progress, rates = [], [], []
    usual, asked, before = TaskBatches.__call__, ProtoNet.meta_loss, Fit.on_before_optimizer_step
    monkeypatch.setattr(TaskBatches, "__call__", lambda self, step, rank, world: (drawn.append((step, rank, world)), usual(self, step, rank, world))[1])
    monkeypatch.setattr(ProtoNet, "meta_loss", lambda self, batch: (progress.append((self.progress, self.seed)), asked(self, batch))[1])
    monkeypatch.setattr(Fit, "on_before_optimizer_step", lambda self, optimizer: (rates.append(optimizer.param_groups[0]["lr"]), before(self, optimizer))[1])
    fit(job(small_pool, small_tasksets, tmp_path, "meta"), Watch(), "told")
    assert drawn == [(step, 0, 1) for step in range(12)]
    assert progress == [(step / 12, seed_of(0, "meta")) for step in range(12)]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=SECTION.lr)
    schedule, wanted = torch.optim.lr_scheduler.OneCycleLR(optimizer, SECTION.lr, total_steps=12, pct_start=0.15), []
    for _ in range(12):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(wanted)


def test_epochs_go_on_where_the_last_one_ended_in_equal_parts() -> None:
    steps = Epochs(lambda *of: of, 2, 1, 2, 3)  # type: ignore[arg-type]
    steps.epoch = 3
    assert list(steps) == [(step, rank, 6) for step in (6, 7) for rank in (1, 3, 5)]


def test_labels_of_the_base_are_smoothed_as_torch_does(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    plain = job(small_pool, small_tasksets, tmp_path, "base")
    work = replace(plain, base=replace(plain.base, label_smoothing=0.2))
    learner = learner_for(work, small_pool)[0].eval()
    x, y = ItemBatches(small_pool, work.base.turns, 64, 0, AUGMENT)(0, 0, 1)
    with torch.no_grad():
        found = goal_of(work, learner, small_pool).loss((x, y))[0].item()
        assert found == pytest.approx(torch.nn.functional.cross_entropy(learner.outputs(x)[0], y, label_smoothing=0.2).item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["base", "meta"])
def test_another_seed_begins_with_other_weights_unless_the_start_is_named(small_pool: Pool, small_tasksets: Path, tmp_path: Path, objective: str) -> None:
    plain = job(small_pool, small_tasksets, tmp_path, objective)
    begun = {
        name: store.digest(learner_for(replace(plain, **more), small_pool)[0])
        for name, more in {"0": {}, "1": {"seed": 1}, "named": {"seed": 1, "initial_seed": 0}}.items()
    }
    assert begun["0"] != begun["1"] and (objective == "base" or begun["0"] == begun["named"])


def test_the_reliability_diagram_is_of_calibrated_confidences(small_pool: Pool, small_tasksets: Path) -> None:
    learner, validation = store.build(spec("protonet")).eval(), Validation(small_pool, small_tasksets, "test-4w2s")
    learner.temperature.fill_(3.0)
    found = score(learner, validation)
    features = encode_items(learner, validation.items)
    bins = np.zeros((15, 3))
    for task in validation.task_batches(features):
        with torch.no_grad():
            chances = (learner.predict_features(learner.adapt_features(task.support), task.query.x) / 3).softmax(-1)
        for confidence, right in zip(chances.amax(-1).flatten().tolist(), (chances.argmax(-1) == task.query.y).flatten().tolist(), strict=True):
            bins[min(14, int(confidence * 15))] += 1, confidence, right
    assert len(np.flatnonzero(bins[:, 0])) > 1 and found.bins == pytest.approx(bins, rel=1e-5)


def test_gains_are_counted_from_the_lowest_value_of_the_pool_in_fifths_of_its_spread(tmp_path: Path) -> None:
    config = load(["experiment=sinusoid", "domain.source.functions=60"])
    write_pool(sinusoid.build(OPTIONS["sinusoid"](**config.domain.source)), config.domain.splits, "sinusoid", "x" * 64, tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    write_tasksets([TaskSpec("test-1w5s", "test", 1, 5, 6, "group", 30)], pool, 0, tmp_path / "tasks")
    validation, learner = Validation(pool, tmp_path / "tasks", "test-1w5s"), Nearest()
    learner.objective = replace(__import__("components.objectives", fromlist=["OBJECTIVES"]).OBJECTIVES["squared_error"])
    found = score(learner, validation, more=("mae", "ndcg_3")).scores
    targets = np.asarray(pool.targets).astype(np.float64)
    low, unit = targets.min(), max(1.0, (targets.max() - targets.min()) / 5)
    task = validation.task_batches(encode_items(learner, validation.items))[0]
    outputs = learner(task).double()
    assert unit > 1 and found["ndcg_3"] == pytest.approx(MEASURES["ndcg_3"]((outputs - low) / unit, (task.query.y.double() - low) / unit).numpy(), rel=1e-5)
    assert found["mae"] == pytest.approx((outputs[..., 0] - task.query.y).abs().mean(1).numpy(), rel=1e-5)


def test_slow_roles_see_the_first_tasks_alone_and_a_role_its_own_pool(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    blank = replace(small_pool, inputs=np.zeros_like(small_pool.inputs))
    roles = {"all": Nearest(), "few": Nearest(), "blind": Nearest()}
    found = evaluate(roles, {"few": 7}, {}, ["4w2s"], "test", small_pool, str(small_tasksets), tmp_path, seen={"blind": blank})
    assert [found[f"test/4w2s/{role}/tasks"] for role in roles] == [40, 7, 40]
    assert found["test/4w2s/blind/accuracy"] == pytest.approx(0.25) != found["test/4w2s/all/accuracy"]


def test_what_adapting_costs_is_not_what_predicting_costs(small_pool: Pool, small_tasksets: Path) -> None:
    class Slow(Nearest):
        def predict_features(self, adapted, x):
            time.sleep(0.02)
            return super().predict_features(adapted, x)

    spent = cost(Slow(), Validation(small_pool, small_tasksets, "test-4w2s"), 3)
    assert spent["predict/seconds"] > 0.02 > spent["adapt/seconds"]


def test_more_shots_are_taken_from_the_queries(small_pool: Pool, small_tasksets: Path) -> None:
    plain = Validation(small_pool, small_tasksets)
    for more, shots in ((1, 2), (9, 3)):
        moved = plain.with_shots(more)
        for before, after in ((plain.table, moved.table), (plain.compact, moved.compact)):
            assert after.support.shape[2] == shots and after.query.shape[2] == 4 - shots
            assert np.array_equal(np.concatenate([before.support, before.query], 2), np.concatenate([after.support, after.query], 2))


def test_tasks_are_told_apart_by_the_set_of_their_classes(small_pool: Pool) -> None:
    found = task_classes(small_pool, np.array([[0, 1, 2], [2, 0, 1], [0, 1, 3]]))
    assert found[0] == found[1] != found[2]


def test_validation_scores_equal_a_loop_over_raw_tasks(small_pool: Pool, small_tasksets: Path) -> None:
    from components.tasksets import batch
    from components.validation import by_task

    learner = store.build(spec("protonet")).eval()
    learner.temperature.fill_(3.0)
    found, table = by_task(learner, Validation(small_pool, small_tasksets)), read_table(small_tasksets, "val")
    items = torch.from_numpy(np.array(small_pool.inputs)).unsqueeze(1).float() / 255
    for row in range(len(table)):
        task = batch(table, np.array([row]), items)
        outputs, y = predict(learner, task)[0], task.query.y[0]
        assert found["loss"][row].item() == pytest.approx(torch.nn.functional.cross_entropy(outputs, y).item(), abs=1e-5)
        assert found["accuracy"][row].item() == pytest.approx((outputs.argmax(-1) == y).float().mean().item())


def test_the_mean_loss_of_an_epoch_is_of_the_steps_that_counted(
    small_pool: Pool, small_tasksets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.learners.metric import ProtoNet

    usual, losses = ProtoNet.meta_loss, []

    def sometimes(self: ProtoNet, batch: TaskBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, metrics = usual(self, batch)
        losses.append(loss.item())
        broken = torch.nan if len(losses) == 4 else 1.0
        return loss * broken, metrics | {"loss": loss.detach() * broken}

    monkeypatch.setattr(ProtoNet, "meta_loss", sometimes)
    heard = Heard()
    fit(job(small_pool, small_tasksets, tmp_path, "meta"), heard, "sometimes")
    assert heard.epochs[6]["train/skipped"] == 1
    assert heard.epochs[6]["train/loss"] == pytest.approx(sum(losses[4:6]) / 2, rel=1e-4)
