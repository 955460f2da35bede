"""Learners against the equations of their papers, written out as loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tasks_for_tests import MLP, predict, spec, tasks
from torch import nn

from components.contracts import AugmentSection
from components.learners import store
from components.learners.learner import Learner
from components.learners.metric import Matching
from components.learners.options import MatchingOptions
from components.tasks import Examples, TaskBatch

BENT, NONE = AugmentSection(9, 0.15, 0.15, 0.05, 0.03), AugmentSection(0, 0, 0, 0, 0)


@pytest.mark.parametrize("name", ["protonet", "theta*"])
def test_the_cosine_form_compares_directions_with_the_mean_of_directions(name: str) -> None:
    learner, batch = store.build(spec(name, kind="mlp")).eval(), tasks(shape=(5,))
    with torch.no_grad():
        found = learner(batch).numpy() / learner.log_scale.exp().item()
        support, query = (learner.backbone(e.x).numpy() for e in (batch.support, batch.query))

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    for t in range(3):
        means = np.stack([unit(support[t])[batch.support.y[t].numpy() == c].mean(0) for c in range(3)])
        assert found[t] == pytest.approx(unit(query[t]) @ unit(means).T, abs=1e-5)


@pytest.mark.parametrize("name", ["protonet", "theta*", "relation", "cnp", "matching", "anil", "maml"])
def test_a_support_shown_twice_says_what_it_says_once(name: str) -> None:
    learner, batch = store.build(spec(name, kind="mlp")).eval(), tasks(shape=(5,))
    twice = Examples(torch.cat([batch.support.x] * 2, 1), torch.cat([batch.support.y] * 2, 1), 3)
    assert torch.allclose(predict(learner, batch), predict(learner, TaskBatch(twice, batch.query)), atol=1e-4)


def test_full_context_embeddings_equal_a_loop_over_queries() -> None:
    with store.initial_weights(0):
        learner = Matching(nn.Identity(), 5, MatchingOptions("running", 3.0, True)).eval()
    batch = tasks(shape=(5,), count=1)
    with torch.no_grad():
        found, x, y = learner(batch)[0].exp(), batch.support.x[0], F.one_hot(batch.support.y[0], 3).float()
        onward, back = learner.support_lstm(x)[0].chunk(2, -1)
        keys = x + onward + back
        for query, told in zip(batch.query.x[0], found, strict=True):
            hidden, cell = query, torch.zeros(5)
            for _ in range(len(x)):
                hidden, cell = learner.query_lstm(torch.cat([query, (keys @ hidden).softmax(0) @ keys]), (hidden, cell))
                hidden = hidden + query
            attention = (3 * F.cosine_similarity(hidden[None], keys)).softmax(0)
            assert torch.allclose(told, attention @ y, atol=1e-5)


def test_a_memory_is_written_over_what_was_least_used_as_santoros_equations_say() -> None:
    learner = store.build(spec("mann", kind="mlp", slots=4)).eval()
    batch = tasks(shape=(5,), count=1, shot=3)  # nine examples: slots are used again
    with torch.no_grad():
        adapted = learner.adapt(batch.support)
        told, _ = learner.targets(batch.support)
        items = learner.items(learner.encode_tasks(batch.support.x))[0]
        width = items.shape[1]
        memory, keys, state = torch.zeros(4, width), torch.zeros(4, width), torch.zeros(width)
        usage, before = torch.zeros(4), torch.zeros(4)
        for item, target in zip(items, told[0], strict=True):
            asked = learner.key(item)
            now = (learner.strength.exp() * F.cosine_similarity(asked[None], keys + 1e-6)).softmax(0)
            state = learner.controller(torch.cat([item, target, now @ memory]), state)
            least, gate = int(usage.argmin()), torch.sigmoid(learner.gate(state)).item()
            write = gate * before
            write[least] += 1 - gate
            memory[least], keys[least] = 0.0, 0.0
            memory = memory + write[:, None] * learner.content(torch.cat([state, target]))
            keys = keys + write[:, None] * asked
            usage, before = learner.decay * usage + now + write, now
    assert torch.allclose(adapted["memory"][0], memory, atol=1e-4) and torch.allclose(adapted["keys"][0], keys, atol=1e-4)


def test_each_temporal_convolution_reaches_twice_as_far_back() -> None:
    from components.learners.memory import _TemporalConvolutions

    x = torch.randn(1, 12, 6, requires_grad=True)
    _TemporalConvolutions(6, 3)(x, None)[0, -1].square().sum().backward()
    assert x.grad is not None and (x.grad[0].abs().sum(1) > 0).tolist() == [False] * 4 + [True] * 8


@pytest.mark.parametrize("name", ["cnp", "mann", "snail", "set_transformer"])
def test_of_classes_readers_see_the_direction_of_features_alone(name: str) -> None:
    learner, batch = store.build(spec(name, kind="mlp")).eval(), tasks(shape=(5,))
    with torch.no_grad():
        support, query = (learner.encode_tasks(e.x) for e in (batch.support, batch.query))
        one, other = (learner.predict_features(learner.adapt_features(Examples(size * support, batch.support.y, 3)), size * query) for size in (1.0, 3.0))
    assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("name", ["logistic", "rfs"])
def test_a_logistic_head_reads_features_of_length_one(name: str) -> None:
    learner = store.build(spec(name, kind="mlp")).eval()
    assert learner.encode(tasks(shape=(5,)).query.x[0]).norm(dim=-1).tolist() == pytest.approx([1.0] * 12, abs=1e-5)


def test_the_base_of_values_adds_ridge_regression_of_what_it_leaves() -> None:
    learner = store.build(spec("theta*", "squared_error", "mlp")).eval()
    task = tasks(way=1, shot=6, shape=(5,))
    with torch.no_grad():
        nn.init.normal_(learner.head.weight)
        found = predict(learner, task)[..., 0].numpy()
        x, q = (learner.backbone(e.x).double().numpy() for e in (task.support, task.query))
        own = [learner.head(learner.backbone(e.x))[..., 0].double().numpy() for e in (task.support, task.query)]
    for t in range(3):
        one, asked = (np.concatenate([a[t], np.ones((len(a[t]), 1))], 1) for a in (x, q))
        moved = np.linalg.solve(one.T @ one + 0.1 * np.eye(17), one.T @ (task.support.y[t].double().numpy() - own[0][t]))
        assert found[t] == pytest.approx(own[1][t] + asked @ moved, abs=1e-3)


def small(name: str, **options) -> Learner:
    made = store.spec_of(name, spec(name)["options"] | {"scale": 0.0} | options, MLP, (5,), "cross_entropy")
    learner = store.build(made).double().train()
    nn.init.normal_(learner.head, std=0.3, generator=torch.Generator().manual_seed(2))
    return learner


def test_alfa_reads_the_means_of_weights_and_gradients_and_scales_every_tensor() -> None:
    learner, told = small("alfa", inner_lr=0.3), []
    weights = learner.start(tasks(shape=(5,), dtype=torch.float64).support)
    gradients = {name: torch.randn_like(w) for name, w in weights.items()}
    alpha, beta = (torch.randn(3, len(weights), dtype=torch.float64) for _ in range(2))
    learner.generator.forward = lambda x: (told.append(x), torch.cat([alpha, beta], 1))[1]
    moved, _ = learner.step(weights, gradients, torch.zeros(3), {}, 0)
    for t in range(3):
        assert told[0][t].tolist() == pytest.approx([w[t].mean().item() for group in (weights, gradients) for w in group.values()])
        for i, (name, w) in enumerate(weights.items()):
            assert torch.allclose(moved[name][t], (1 + beta[t, i]) * w[t] - 0.3 * (1 + alpha[t, i]) * gradients[name][t]), name


def test_the_gates_of_the_lstm_read_gradient_loss_weight_and_last_gates() -> None:
    learner = small("lstm")
    weights = learner.start(tasks(shape=(5,), dtype=torch.float64).support)
    with torch.no_grad():
        nn.init.normal_(learner.gates["out"].weight)
    gradients = {name: 10 ** (-8 * torch.rand_like(w)) * torch.randn_like(w).sign() for name, w in weights.items()}  # on both sides of e^-10
    loss, memory, name = torch.tensor([1e-6, 0.3, 5.0], dtype=torch.float64), learner.memory(weights), "head"

    def sized(x: float) -> list[float]:
        return [math.log(abs(x)) / 10, math.copysign(1.0, x)] if abs(x) >= math.exp(-10) else [-1.0, math.exp(10) * x]

    last: dict[tuple[int, ...], list[float]] = {}
    with torch.no_grad():
        for _ in range(2):
            moved, state = learner.step(weights, gradients, loss, memory, 0)
            for at in ((0, 0, 1), (1, 2, 3), (2, 1, 0), (0, 1, 5), (1, 0, 7)):
                g, w = gradients[name][at].item(), weights[name][at].item()
                seen = torch.tensor([*sized(g), *sized(loss[at[0]].item()), w, *last.get(at, [0.0, 0.0])], dtype=torch.float64)
                last[at] = learner.gates["out"](learner.gates["hidden"](seen).tanh()).sigmoid().tolist()
                assert moved[name][at].item() == pytest.approx(last[at][0] * w - last[at][1] * g, rel=1e-9)
            weights, memory = moved, state


def test_mamlpp_takes_every_step_at_its_own_rate_and_later_ones_at_the_last() -> None:
    learner, support = small("mamlpp", inner_steps=2, test_steps=4).eval(), tasks(shape=(5,), dtype=torch.float64).support
    with torch.no_grad():
        for rates in learner.rates.values():
            rates.copy_(torch.tensor([0.3, 0.0]))
        start, first, *later = list(learner.path(support))
    assert len(later) == 3 and not torch.equal(start["head"], first["head"])
    assert all(torch.equal(w[name], first[name]) for w in later for name in first), "the second rate is zero, and that of all further steps"


@pytest.mark.parametrize("progress", [0.0, 0.2])
def test_mamlpp_weighs_the_loss_after_each_step(progress: float) -> None:
    learner, batch = small("mamlpp", inner_steps=3, test_steps=3, multi_step_loss=True), tasks(shape=(5,), dtype=torch.float64)
    learner.progress = progress
    losses = [learner.objective.loss(learner.outputs(w, batch.query.x, i), batch.query.y).mean().item() for i, w in enumerate(learner.path(batch.support))]
    assert learner.meta_loss(batch)[0].item() == pytest.approx(np.dot(learner.step_weights(), losses[1:]), rel=1e-9)
