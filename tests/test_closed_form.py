"""Closed-form, metric and memory-based learners against numpy, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from tasks_for_tests import MLP, PICTURES, spec, tasks
from torch import nn

from components.learners import store
from components.learners.closed_form import logistic_head, ridge_head
from components.learners.learner import class_means
from components.learners.metric import Local, Matching, ProtoNet
from components.learners.options import LocalOptions, MatchingOptions, ProtoNetOptions
from components.tasks import Examples, TaskBatch

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("examples, features", [(4, 9), (12, 5)])
def test_the_ridge_head_is_numpys_closed_form(examples: int, features: int) -> None:
    x, y = RANDOM.normal(size=(2, examples, features)), RANDOM.normal(size=(2, examples, 3))
    found = ridge_head(torch.tensor(x), torch.tensor(y), torch.tensor(0.7, dtype=torch.float64)).numpy()
    for t in range(2):
        wanted = np.linalg.solve(x[t].T @ x[t] + 0.7 * np.eye(features), x[t].T @ y[t])
        assert np.allclose(found[t], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("examples, features", [(4, 9), (12, 5)])
def test_gradients_pass_through_the_ridge_solution(examples: int, features: int) -> None:
    x, y, strength = torch.randn(1, examples, features).double(), torch.randn(1, examples, 2).double(), torch.tensor(0.5).double()
    assert torch.autograd.gradcheck(ridge_head, (x.requires_grad_(), y.requires_grad_(), strength.requires_grad_()))


def test_the_logistic_head_is_scipys_minimum() -> None:
    x, labels, way = RANDOM.normal(size=(2, 9, 4)), np.stack([RANDOM.permutation(9) % 3 for _ in range(2)]), 3
    found = logistic_head(torch.tensor(x), torch.tensor(labels), way, torch.tensor(0.3, dtype=torch.float64), 15, 60).numpy()
    for t in range(2):

        def loss(flat: np.ndarray, t: int = t) -> float:
            w = flat.reshape(4, 3)
            logits = x[t] @ w
            return (np.log(np.exp(logits).sum(1)) - logits[np.arange(9), labels[t]]).sum() + 0.15 * (w**2).sum()

        best = minimize(loss, np.zeros(12), method="BFGS", options={"gtol": 1e-9})
        assert loss(found[t].ravel()) == pytest.approx(best.fun, abs=1e-9)
        assert np.allclose(found[t], best.x.reshape(4, 3), atol=1e-4)


def test_gradients_pass_through_the_logistic_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 6, 4, generator=generator).double().requires_grad_()
    labels, strength = torch.tensor([[0, 1, 2, 0, 1, 2]]), torch.tensor(0.3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: logistic_head(x, labels, 3, s, 20, 80), (x, strength), atol=1e-5)


def test_prototypes_are_class_means_whatever_the_shots() -> None:
    x, y = torch.randn(1, 6, 5), torch.tensor([[0, 2, 2, 1, 2, 0]])
    means = class_means(x, y, 3)
    for label in range(3):
        assert torch.allclose(means[0, label], x[0, y[0] == label].mean(0), atol=1e-6)


def test_protonet_logits_are_minus_the_squared_distance() -> None:
    learner = ProtoNet(nn.Identity(), 5, ProtoNetOptions("running", "euclidean", 1.0)).eval()
    batch = tasks(shape=(5,))
    logits = learner(batch).detach().numpy()
    for t in range(3):
        prototypes = np.stack([batch.support.x[t][batch.support.y[t] == c].mean(0).numpy() for c in range(3)])
        shift = logits[t] + cdist(batch.query.x[t].numpy(), prototypes) ** 2
        assert np.allclose(shift, shift[:, :1], atol=1e-4)  # -|x|^2 is the same for every class


def test_matching_is_attention_over_the_support() -> None:
    learner = Matching(nn.Identity(), 5, MatchingOptions("running", 3.0, False)).eval()
    batch = tasks(shape=(5,))
    found = learner(batch).detach().exp().numpy()
    for t in range(3):
        weight = np.exp(3.0 * (1 - cdist(batch.query.x[t].numpy(), batch.support.x[t].numpy(), "cosine")))
        weight /= weight.sum(1, keepdims=True)
        wanted = np.stack([weight[:, batch.support.y[t].numpy() == c].sum(1) for c in range(3)], 1)
        assert np.allclose(found[t], wanted, atol=1e-5)


@pytest.mark.parametrize("neighbours", [1, 2])
@pytest.mark.parametrize("shot", [1, 2])
def test_local_descriptors_equal_a_loop(neighbours: int, shot: int) -> None:
    learner = store.build(spec("local", neighbours=neighbours, unpooled=1)).eval()
    assert isinstance(learner, Local) and isinstance(learner.options, LocalOptions)
    batch = tasks(count=1, shot=shot)
    turned = Examples(batch.support.x.flip(1), batch.support.y.flip(1), 3)  # the order of the classes must not matter
    batch = TaskBatch(turned, batch.query)
    with torch.no_grad():
        found = learner(batch)[0].numpy() / learner.log_scale.exp().item()
        support, query = (learner.encode(e.x[0]).numpy() for e in (batch.support, batch.query))
    for q in range(3):
        for c in range(3):
            own = support[batch.support.y[0].numpy() == c].reshape(-1, support.shape[-1])
            nearest = np.sort(query[q] @ own.T, 1)[:, -neighbours:]
            assert found[q, c] == pytest.approx(nearest.sum(1).mean(), abs=1e-4)


def test_a_class_of_one_example_has_no_fewer_neighbours_than_the_others() -> None:
    """49 places a map, 60 neighbours asked for, three examples of class 0, one of class 1: both are compared by 49, as in numpy's loop."""
    learner = store.build(spec("local", neighbours=60)).eval()
    assert isinstance(learner, Local)
    pictures = tasks(count=1, way=2, shot=3)
    batch = TaskBatch(Examples(pictures.support.x[:, :4], torch.tensor([[0, 0, 0, 1]]), 2), pictures.query)
    with torch.no_grad():
        found = learner(batch)[0].numpy() / learner.log_scale.exp().item()
        support, query = (learner.encode(e.x[0]).numpy() for e in (batch.support, batch.query))
    assert support.shape[1] == 49
    for q in range(len(query)):
        for c, own in enumerate((support[:3].reshape(-1, support.shape[-1]), support[3])):
            assert found[q, c] == pytest.approx(np.sort(query[q] @ own.T, 1)[:, -49:].sum(1).mean(), abs=1e-3)


def test_codes_are_drawn_anew_while_training_and_fixed_at_test() -> None:
    learner = store.build(spec("set_transformer")).train()
    first = learner.class_codes(5)
    assert torch.equal(first, learner.class_codes(5))
    learner.progress = 0.5
    assert not torch.equal(first, learner.class_codes(5))
    learner.eval()
    assert torch.equal(learner.class_codes(3), learner.class_codes(5)[:3])


def test_snail_reads_queries_as_the_step_after_the_support() -> None:
    """The queries' short way gives what the whole sequence gives at its last step."""
    from components.learners.memory import Snail

    learner = store.build(store.spec_of("snail", spec("snail")["options"], MLP, (5,), "cross_entropy")).eval()
    assert isinstance(learner, Snail)
    batch = tasks(shape=(5,), count=1)
    with torch.no_grad():
        found = learner(batch)[0, 0]
        told, codes = learner.targets(batch.support)
        features = learner.encode(torch.cat([batch.support.x[0], batch.query.x[0, :1]]))[None]
        steps = learner.pairs(features, torch.cat([told, torch.zeros_like(told[:, :1])], 1))
        for block in learner.layers:
            steps = block(steps, None)
        assert torch.allclose(learner.finish(steps[:, -1:], codes)[0, 0], found, atol=1e-5)


def test_a_process_predicts_a_straight_line_after_training() -> None:
    """Learners of values learn to read a task: lines through the origin, slope told by two points."""
    for name, rate in (("cnp", 0.005), ("set_transformer", 0.002)):
        learner = store.build(store.spec_of(name, spec(name)["options"], MLP, (1,), "squared_error")).train()
        optimizer = torch.optim.Adam(learner.parameters(), rate)
        generator = torch.Generator().manual_seed(0)
        for step in range(400):
            slope = torch.randn(32, 1, generator=generator)
            x = torch.rand(32, 8, 1, generator=generator) * 2 - 1
            y = slope * x[..., 0]
            from components.tasks import Examples, TaskBatch

            batch = TaskBatch(Examples(x[:, :4], y[:, :4], 1), Examples(x[:, 4:], y[:, 4:], 1))
            learner.progress = step / 400
            optimizer.zero_grad()
            loss, _ = learner.meta_loss(batch)
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.15, name  # the variance of the values is 0.33


def test_relation_scores_do_not_depend_on_the_other_classes() -> None:
    learner, batch = store.build(spec("relation")).eval(), tasks(count=1, shape=PICTURES)
    with torch.no_grad():
        whole = learner(batch)
    from components.tasks import Examples, TaskBatch

    first = batch.support.y[0] < 2
    two = TaskBatch(Examples(batch.support.x[:, first], batch.support.y[:, first], 2), batch.query)
    with torch.no_grad():
        assert torch.allclose(learner(two), whole[..., :2], atol=1e-5)


def test_where_tasks_have_values_the_ridge_pulls_towards_a_learned_head() -> None:
    learner = store.build(spec("ridge", "squared_error", "mlp")).eval()
    task = tasks(way=1, shot=6, shape=(5,))
    with torch.no_grad():
        learner.prior.copy_(torch.linspace(-1, 1, len(learner.prior))[:, None])
        features = torch.cat([learner.encode_tasks(task.query.x), torch.ones(*task.query.y.shape, 1)], -1)
        for log_ridge, wanted in ((20.0, features @ learner.prior), (-6.0, None)):
            learner.log_ridge.fill_(log_ridge)
            found = learner.predict(learner.adapt(task.support), task.query.x)
            if wanted is not None:
                assert torch.allclose(found, wanted, atol=1e-4)
        known = learner.predict(learner.adapt(task.support), task.support.x)[..., 0]
    assert torch.allclose(known, task.support.y, atol=0.1), "a weak ridge follows the examples, wherever it pulls"
