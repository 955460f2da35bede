"""What holds for every learner of the family, in every objective that it says it can do."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from tasks_for_tests import ANSWERING, CLASSIFIERS, CONV, EVERY, PICTURES, gradient, predict, spec, tasks

from components.inputs import InputError
from components.learners import store
from components.learners.options import FAMILIES
from components.learners.reference import Nearest, Scratch
from components.plain import to_plain
from components.tasks import Examples, TaskBatch

NAMES = [*ANSWERING, "theta*"]


def fitting(objective: str, kind: str, **more) -> TaskBatch:
    shape = PICTURES if kind == "conv" else (5,)
    return tasks(shape=shape, **more) if objective == "cross_entropy" else tasks(shape=shape, way=1, shot=6, query=4, **more)


@pytest.mark.parametrize("name, objective, kind", EVERY)
def test_every_parameter_gets_a_finite_gradient(name: str, objective: str, kind: str) -> None:
    learner = store.build(spec(name, objective, kind)).train()
    found = gradient(learner, fitting(objective, kind))
    assert set(found) == {n for n, _ in learner.named_parameters()}, "a parameter without a gradient would stall parallel training"
    assert all(torch.isfinite(g).all() for g in found.values())


@pytest.mark.parametrize("name, objective, kind", [case for case in EVERY if case[1:] != ("squared_error", "conv") and case[1:] != ("ranking", "conv")])
def test_training_lowers_the_loss_on_the_tasks_trained_on(name: str, objective: str, kind: str) -> None:
    learner, batch = store.build(spec(name, objective, kind)).train(), fitting(objective, kind, count=2)
    optimizer = torch.optim.Adam(learner.parameters(), 0.003)
    first = learner.meta_loss(batch)[0].item()
    for _ in range(200):
        optimizer.zero_grad()
        loss, _ = learner.meta_loss(batch)
        if loss.item() < 0.97 * first:
            return
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    raise AssertionError(f"the loss went from {first} to {loss.item()} in 200 steps")


@pytest.mark.parametrize("name, objective, kind", EVERY)
def test_mixed_precision_gives_finite_gradients(name: str, objective: str, kind: str) -> None:
    learner = store.build(spec(name, objective, kind)).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = learner.meta_loss(fitting(objective, kind, count=1))
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in learner.parameters())


@pytest.mark.parametrize("name, objective, kind", EVERY)
def test_tasks_of_a_batch_do_not_touch_each_other(name: str, objective: str, kind: str) -> None:
    learner, batch = store.build(spec(name, objective, kind)).double().eval(), fitting(objective, kind, dtype=torch.float64)
    together = predict(learner, batch)
    for t in range(3):  # ten inner steps carry single precision's rounding to 1e-4
        assert torch.allclose(together[t], predict(learner, batch.take(slice(t, t + 1)))[0], atol=1e-9)


@pytest.mark.parametrize("name, objective, kind", EVERY)
def test_one_query_cannot_change_anothers_prediction(name: str, objective: str, kind: str) -> None:
    learner, batch = store.build(spec(name, objective, kind)).eval(), fitting(objective, kind)
    with torch.no_grad():
        adapted = learner.adapt(batch.support)
        whole = learner.predict(adapted, batch.query.x)
        assert torch.allclose(whole[:, :2], learner.predict(adapted, batch.query.x[:, :2]), atol=1e-5)  # nothing is transductive


@pytest.mark.parametrize("name, objective, kind", EVERY)
def test_query_labels_cannot_leak(name: str, objective: str, kind: str) -> None:
    learner, batch = store.build(spec(name, objective, kind)).eval(), fitting(objective, kind)
    other = TaskBatch(batch.support, Examples(batch.query.x, batch.query.y.flip(1) * 0, batch.query.way))
    with torch.no_grad():
        assert torch.equal(learner(batch), learner(other))


ORDERED = ("snail", "mann")


@pytest.mark.parametrize("name, objective, kind", EVERY)
def test_the_order_of_the_support_matters_only_where_a_sequence_is_read(name: str, objective: str, kind: str) -> None:
    learner, batch = store.build(spec(name, objective, kind)).double().eval(), fitting(objective, kind, dtype=torch.float64)
    order = torch.randperm(batch.support.y.shape[1], generator=torch.Generator().manual_seed(1))
    turned = TaskBatch(Examples(batch.support.x[:, order], batch.support.y[:, order], batch.support.way), batch.query)
    same = torch.allclose(predict(learner, batch), predict(learner, turned), atol=1e-7)
    assert same == (name not in ORDERED)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("way, shot", [(2, 1), (9, 3), (100, 1)])
def test_any_way_and_shot(name: str, way: int, shot: int) -> None:
    batch = tasks(count=1, way=way, shot=shot, query=1)
    found = predict(store.build(spec(name)).eval(), batch)
    assert found.shape == (1, way, way) and torch.isfinite(found).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_unequal_shots(name: str) -> None:
    batch = tasks(count=2, way=3, shot=3)
    kept = torch.tensor([0, 3, 4, 6, 7, 8])  # one, two and three examples
    support = Examples(batch.support.x[:, kept], batch.support.y[:, kept], 3)
    assert torch.isfinite(predict(store.build(spec(name)).eval(), TaskBatch(support, batch.query))).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_learner_predicts_the_same(name: str, tmp_path: Path) -> None:
    learner, batch = store.build(spec(name), seed=3).eval(), tasks()
    learner.temperature.fill_(2.5)
    store.save(learner, spec(name), tmp_path, {"domain": "none"})
    loaded, told, about = store.load(tmp_path)
    assert told == spec(name) and about == {"domain": "none"}
    assert torch.equal(predict(loaded, batch), predict(learner, batch))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["learner.json", "learner.safetensors"]
    weights = tmp_path / "learner.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(InputError, match="learner"):
        store.load(tmp_path)


def test_the_weights_of_another_learner_are_refused(tmp_path: Path) -> None:
    for name in ("maml", "meta_sgd"):
        store.save(store.build(spec(name)), spec(name), tmp_path / name, {})
    (tmp_path / "maml" / "learner.safetensors").replace(tmp_path / "meta_sgd" / "learner.safetensors")
    with pytest.raises(InputError, match="that match"):
        store.load(tmp_path / "meta_sgd")


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_theta_or_theta_meta(name: str) -> None:
    learner = store.build(spec(name))
    roles = learner.parameter_roles()
    assert sorted(roles["theta"] + roles["theta_meta"]) == sorted(n for n, _ in learner.named_parameters())
    assert learner.theta_fixed == (name == "theta*" or not FAMILIES[name].inner)
    if name in ("meta_sgd", "alfa", "lstm", "meta_curvature", "mamlpp"):
        assert roles["theta"] and roles["theta_meta"], "the rule is theta_meta, the start of the network theta"


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = store.build(spec("protonet"), 1), store.build(spec("protonet"), 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert (first.backbone.blocks[0].conv.weight != second.backbone.blocks[0].conv.weight).any()


@pytest.mark.parametrize("name, norm", [("protonet", "running"), ("anil", "running"), ("maml", "running"), ("maml", "task")])
def test_fixed_and_task_normalisation_keep_no_statistics(name: str, norm: str) -> None:
    learner = store.build(spec(name, norm=norm)).train()
    before = copy.deepcopy(dict(learner.named_buffers()))
    learner(tasks())
    assert all(torch.equal(value, before[key]) for key, value in learner.named_buffers())


def test_task_statistics_are_transductive_and_say_so() -> None:
    learner, batch = store.build(spec("maml", norm="task")).eval(), tasks()
    adapted = learner.adapt(batch.support)
    assert not torch.allclose(learner.predict(adapted, batch.query.x)[:, :2], learner.predict(adapted, batch.query.x[:, :2]), atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_group_and_instance_normalisation_see_one_item_at_a_time(norm: str) -> None:
    from dataclasses import replace

    learner = store.build(store.spec_of("protonet", spec("protonet")["options"], replace(CONV, norm=norm), PICTURES, "cross_entropy")).train()
    x = torch.rand(6, *PICTURES)
    assert torch.allclose(learner.encode(x)[:2], learner.encode(x[:2]), atol=1e-5)


def test_nearest_is_the_nearest_neighbour() -> None:
    batch = tasks()
    chosen = Nearest()(batch).argmax(-1)
    for t in range(3):
        nearest = cdist(batch.query.x[t].flatten(1).numpy(), batch.support.x[t].flatten(1).numpy()).argmin(1)
        assert (chosen[t].numpy() == batch.support.y[t].numpy()[nearest]).all()


def test_scratch_fits_its_support() -> None:
    from components.networks import build_backbone

    with store.initial_weights(0):
        network = build_backbone(CONV, PICTURES)
    support = tasks(count=1).support
    before = copy.deepcopy(network.state_dict())
    learner = Scratch(network, network.dim, 60, 0.01)
    with torch.no_grad():
        logits = learner.predict(learner.adapt(support), support.x)
    assert torch.equal(logits.argmax(-1), support.y)
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items()), "the shared network must stay untouched"


def test_objectives_equal_loops_in_numpy() -> None:
    from components.objectives import OBJECTIVES

    random = np.random.default_rng(0)
    scores, values = random.normal(size=(2, 5, 1)), random.integers(1, 6, (2, 5)).astype(float)
    for t in range(2):
        pairs = [(i, j) for i in range(5) for j in range(5) if values[t, i] > values[t, j]]
        gaps = np.array([scores[t, i, 0] - scores[t, j, 0] for i, j in pairs])
        args = torch.tensor(scores[t : t + 1]), torch.tensor(values[t : t + 1])
        assert OBJECTIVES["ranking"].loss(*args).item() == pytest.approx(np.log1p(np.exp(-gaps)).mean())
        assert OBJECTIVES["ranking"].score(*args).item() == pytest.approx((gaps > 0).mean())
        assert OBJECTIVES["ranking"].score(args[0], torch.ones(1, 5)).item() == 0.5, "of equal values any order is right"
        assert OBJECTIVES["squared_error"].loss(*args).item() == pytest.approx(((scores[t, :, 0] - values[t]) ** 2).mean())


def test_plain_specifications_survive_json() -> None:
    assert json.loads(json.dumps(to_plain(spec("maml")))) == spec("maml")
