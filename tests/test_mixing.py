"""Weights of members against a general optimiser: of a mixture, of values, of a greedy choice; and why the joint objective is not over weights alone."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from components.mixing import greedy_weights, least_squares_weights, mixture_weights


def test_mixture_weights_are_those_of_a_general_optimiser() -> None:
    random = np.random.default_rng(0)
    likelihood = random.beta(2, 1, (3, 400)) * np.array([[0.9], [1.0], [0.8]])
    found = mixture_weights(torch.tensor(likelihood).log()).numpy()
    assert found.sum() == pytest.approx(1, abs=1e-6) and (found >= 0).all()
    loss = lambda w: -np.log(w @ likelihood).mean()  # noqa: E731
    best = minimize(loss, np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, method="SLSQP")
    assert loss(found) == pytest.approx(best.fun, abs=1e-5)
    assert np.allclose(found, best.x, atol=0.02)


def test_least_squares_weights_are_those_of_a_general_optimiser() -> None:
    """Of values; one member's errors point the way of another's, so that it gets no weight."""
    random = np.random.default_rng(0)
    truth = random.normal(size=300)
    first, second = random.normal(size=(2, 300))
    values = np.stack([truth + first, truth + 0.8 * second, truth + 1.5 * first + 0.5])
    found = least_squares_weights(torch.tensor(values), torch.tensor(truth)).numpy()
    loss = lambda w: np.square(w @ values - truth).mean()  # noqa: E731
    best = minimize(loss, np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, method="SLSQP", tol=1e-12)
    assert found.sum() == pytest.approx(1, abs=1e-6) and (found >= 0).all() and found[2] == 0
    assert np.allclose(found, best.x, atol=1e-3)


def test_a_member_that_is_always_better_gets_all_the_weight() -> None:
    worse = torch.full((1, 200), 0.3).log()
    assert mixture_weights(torch.cat([worse, worse + 0.5]))[1] > 0.999


def test_greedy_selection_prefers_who_is_right_where_others_are_wrong() -> None:
    strong = torch.tensor([0.9] * 80 + [0.05] * 20)
    twin = strong * 0.999
    other = torch.tensor([0.45] * 80 + [0.9] * 20)  # worse alone, right where the strong one fails
    found = greedy_weights(torch.stack([strong, twin, other]).log(), None, rounds=40)
    assert found[2] > 0.3 and found[1] == 0
    best = mixture_weights(torch.stack([strong, other]).log())
    assert abs(found[2] - best[1]) < 0.05  # on this convex problem greedy comes near the optimum
    values, targets = torch.tensor([[1.0, 0.0, 1.0], [3.0, 2.0, 3.0]]), torch.tensor([2.0, 1.0, 2.0])
    assert greedy_weights(values, targets).tolist() == pytest.approx([0.5, 0.5])


def test_over_the_weights_alone_the_joint_objective_collapses_to_the_best_member() -> None:
    # sum_i w_i L_i is linear in w: its minimum over the simplex is a corner, however much a mixture would gain. That is why `joint` trains
    # parameters, and takes its weights from the mixture's own loss.
    random = np.random.default_rng(1)
    likelihood = random.beta(2, 1, (3, 400))
    losses = -np.log(likelihood).mean(1)
    bounds, total = [(0, 1)] * 3, {"type": "eq", "fun": lambda w: w.sum() - 1}
    corner = minimize(lambda w: w @ losses, np.full(3, 1 / 3), bounds=bounds, constraints=total, method="SLSQP").x
    assert corner[losses.argmin()] == pytest.approx(1, abs=1e-6)
    mixed = mixture_weights(torch.tensor(likelihood).log()).numpy()
    assert -np.log(mixed @ likelihood).mean() < losses.min() - 0.03 and mixed.max() < 0.9
