"""Learners against independent truths: finite differences, hand-written loops, brute force."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn

from components.contracts import BackboneSection, InputError, to_plain
from components.learners import store
from components.learners.gradient import Maml, MetaSgd
from components.learners.learner import Learner, class_means
from components.learners.metric import ProtoNet
from components.learners.options import MamlOptions, ProtoNetOptions
from components.learners.reference import Nearest, Scratch
from components.tasks import Examples, TaskBatch

BACKBONE = BackboneSection("conv", [4, 6], [True, True], "flatten")
FAMILIES = {
    "protonet": {"distance": "cosine", "scale": 8.0, "norm": "meta_batch"},
    "maml": {"inner_steps": 2, "test_steps": 3, "inner_lr": 0.1, "first_order": False},
    "fomaml": {"inner_steps": 2, "test_steps": 3, "inner_lr": 0.1, "first_order": True},
    "meta_sgd": {"inner_steps": 2, "test_steps": 3, "inner_lr": 0.1, "first_order": False},
    "base": {"classes": 10, "scale": 8.0},
}


def tasks(count: int = 3, way: int = 3, shot: int = 2, query: int = 4, shape: tuple[int, ...] = (1, 28, 28), seed: int = 0, dtype=torch.float32) -> TaskBatch:
    generator = torch.Generator().manual_seed(seed)

    def examples(each: int) -> Examples:
        labels = torch.arange(way).repeat_interleave(each).expand(count, -1)
        return Examples(torch.rand(count, way * each, *shape, generator=generator, dtype=dtype), labels, way)

    return TaskBatch(examples(shot), examples(query))


def spec(name: str) -> store.Spec:
    return store.spec_of(name, FAMILIES[name], BACKBONE, (1, 28, 28))


def smooth(kind: type[Maml], steps: int = 2, first_order: bool = False, seed: int = 0) -> Maml:
    """A small smooth learner in float64: rounding flips no ReLU, so differences converge."""
    with store.initial_weights(seed):
        body = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
        learner = kind(body, 4, MamlOptions(steps, steps, 0.3, first_order)).double()
        nn.init.normal_(learner.head)
    return learner.train()


def gradient(learner: Learner, batch: TaskBatch) -> dict[str, torch.Tensor]:
    learner.zero_grad()
    learner.meta_loss(batch)[0].backward()
    return {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", [Maml, MetaSgd])
def test_the_second_order_meta_gradient_equals_finite_differences(kind: type[Maml]) -> None:
    learner, batch = smooth(kind), tasks(shape=(5,), dtype=torch.float64)
    found = gradient(learner, batch)
    largest = max(g.abs().max() for g in found.values())
    step = 1e-5
    for name, parameter in learner.named_parameters():
        flat = parameter.data.view(-1)
        for i in range(0, len(flat), max(1, len(flat) // 4)):
            was, losses = flat[i].item(), []
            for sign in (1, -1):
                flat[i] = was + sign * step
                losses.append(learner.meta_loss(batch)[0].item())
            flat[i] = was
            assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(found[name].view(-1)[i].item(), abs=1e-6 * largest.item()), name


def test_the_first_order_gradient_is_that_of_the_adapted_weights() -> None:
    learner, batch = smooth(Maml, first_order=True), tasks(shape=(5,), dtype=torch.float64)
    found = gradient(learner, batch)
    total = {n: torch.zeros_like(p) for n, p in learner.backbone.named_parameters()}
    for t in range(3):  # one task after the other, by plain SGD on copies
        net, head, bias = copy.deepcopy(learner.backbone), learner.head.detach().expand(3, -1).clone(), torch.zeros(3, dtype=torch.float64)
        leaves = [*net.parameters(), head.requires_grad_(), bias.requires_grad_()]
        optimizer = torch.optim.SGD(leaves, 0.3)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch.support.x[t]) @ head.T + bias, batch.support.y[t]).backward()
            optimizer.step()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch.query.x[t]) @ head.T + bias, batch.query.y[t]).backward()
        for n, p in net.named_parameters():
            total[n] += p.grad / 3
    for name, value in total.items():
        assert torch.allclose(found[f"backbone.{name}"], value, rtol=1e-9, atol=1e-12)


def test_first_and_second_order_differ_but_agree_on_the_loss() -> None:
    batch = tasks(shape=(5,), dtype=torch.float64)
    first, second = smooth(Maml, first_order=True), smooth(Maml)
    assert first.meta_loss(batch)[0].item() == pytest.approx(second.meta_loss(batch)[0].item(), rel=1e-12)
    name = "backbone.0.weight"
    assert not torch.allclose(gradient(first, batch)[name], gradient(second, batch)[name], rtol=1e-3)


def test_meta_sgd_with_equal_rates_is_maml() -> None:
    batch = tasks(shape=(5,), dtype=torch.float64)
    for name, value in gradient(smooth(Maml), batch).items():
        assert torch.allclose(gradient(smooth(MetaSgd), batch)[name], value, rtol=1e-10), name


def test_adapting_with_zero_steps_changes_nothing() -> None:
    learner = smooth(Maml, steps=0)
    adapted = learner.adapt(tasks(shape=(5,), dtype=torch.float64).support)
    for name, parameter in learner.backbone.named_parameters():
        assert (adapted[name] == parameter).all()


def test_prototypes_are_class_means_whatever_the_shots() -> None:
    x, y = torch.randn(1, 6, 5), torch.tensor([[0, 2, 2, 1, 2, 0]])
    means = class_means(x, y, 3)
    for label in range(3):
        assert torch.allclose(means[0, label], x[0, y[0] == label].mean(0), atol=1e-6)


def test_protonet_logits_are_minus_the_squared_distance() -> None:
    learner = ProtoNet(nn.Identity(), 5, ProtoNetOptions("euclidean", 1.0, "running")).eval()
    batch = tasks(shape=(5,))
    logits = learner(batch).detach().numpy()
    for t in range(3):
        prototypes = np.stack([batch.support.x[t][batch.support.y[t] == c].mean(0).numpy() for c in range(3)])
        wanted = -(cdist(batch.query.x[t].numpy(), prototypes) ** 2)
        shift = logits[t] - wanted
        assert np.allclose(shift, shift[:, :1], atol=1e-4)  # -|x|^2 is the same for every class


def test_pixels_is_the_nearest_neighbour() -> None:
    batch = tasks()
    chosen = Nearest()(batch).argmax(-1)
    for t in range(3):
        nearest = cdist(batch.query.x[t].flatten(1).numpy(), batch.support.x[t].flatten(1).numpy()).argmin(1)
        assert (chosen[t].numpy() == batch.support.y[t].numpy()[nearest]).all()


def test_scratch_fits_its_support() -> None:
    from components.networks import build_backbone

    with store.initial_weights(0):
        network = build_backbone(BACKBONE, (1, 28, 28))
    support = tasks(count=1).support
    before = copy.deepcopy(network.state_dict())
    learner = Scratch(network, network.dim, 60, 0.01)
    with torch.no_grad():
        logits = learner.predict(learner.adapt(support), support.x)
    assert (logits.argmax(-1) == support.y).all()
    assert all((network.state_dict()[k] == v).all() for k, v in before.items()), "the shared network must stay untouched"


@pytest.mark.parametrize("name", FAMILIES)
def test_tasks_of_a_batch_do_not_touch_each_other(name: str) -> None:
    learner, batch = store.build(spec(name)).eval(), tasks()
    together = learner.predict(learner.adapt(batch.support), batch.query.x)
    for t in range(3):
        support = Examples(batch.support.x[t : t + 1], batch.support.y[t : t + 1], 3)
        alone = learner.predict(learner.adapt(support), batch.query.x[t : t + 1])
        assert torch.allclose(together[t], alone[0], atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_query_cannot_change_anothers_prediction(name: str) -> None:
    learner, batch = store.build(spec(name)).eval(), tasks()
    adapted = learner.adapt(batch.support)
    whole = learner.predict(adapted, batch.query.x)
    assert torch.allclose(whole[:, :2], learner.predict(adapted, batch.query.x[:, :2]), atol=1e-5)  # nothing is transductive


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("way, shot", [(2, 1), (9, 3)])
def test_any_way_and_shot(name: str, way: int, shot: int) -> None:
    batch = tasks(count=2, way=way, shot=shot)
    learner = store.build(spec(name)).eval()
    with torch.no_grad():
        assert learner.predict(learner.adapt(batch.support), batch.query.x).shape == (2, way * 4, way)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stored_learner_predicts_the_same(name: str, tmp_path: Path) -> None:
    learner, batch = store.build(spec(name), seed=3).eval(), tasks()
    learner.temperature.fill_(2.5)
    store.save(learner, spec(name), tmp_path, {"domain": "none"})
    loaded, told, about = store.load(tmp_path)
    assert told == spec(name) and about == {"domain": "none"}
    assert (loaded.predict(loaded.adapt(batch.support), batch.query.x) == learner.predict(learner.adapt(batch.support), batch.query.x)).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["learner.json", "learner.safetensors"]
    weights = tmp_path / "learner.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(InputError, match="learner"):
        store.load(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_is_theta_or_theta_meta(name: str) -> None:
    learner = store.build(spec(name))
    roles = learner.parameter_roles()
    assert sorted(roles["theta"] + roles["theta_meta"]) == sorted(n for n, _ in learner.named_parameters())
    if name == "meta_sgd":
        assert roles["theta_meta"] and all(n.startswith("rates.") for n in roles["theta_meta"])
    assert learner.theta_fixed == (name in ("protonet", "base"))


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = store.build(spec("protonet"), 1), store.build(spec("protonet"), 2)
    assert (torch.get_rng_state() == before).all()
    assert (first.backbone.blocks[0].conv.weight != second.backbone.blocks[0].conv.weight).any()


def test_frozen_normalisation_stays_frozen_in_training() -> None:
    running = ProtoNet(store.build(spec("protonet")).backbone, 1, ProtoNetOptions("cosine", 1.0, "running")).train()
    before = copy.deepcopy(running.state_dict())
    running(tasks())
    assert all((running.state_dict()[k] == v).all() for k, v in before.items())


def test_plain_specifications_survive_json() -> None:
    import json

    assert json.loads(json.dumps(to_plain(spec("maml")))) == spec("maml")
