"""Policies that learn by gradients: inner steps and outer gradients against finite differences, and an oracle that is trained by them."""

import dataclasses

import numpy as np
import pytest
import torch
from test_control import policy
from test_environments import rows

from components.evaluation import operations
from components.learners.policy import ContextPolicy, Played, advantage
from components.learners.policy_gradient import LONGEST
from components.learners.reference import Trained
from components.tasks import Examples


def test_a_round_moves_the_context_along_the_slope_of_its_returns() -> None:
    learner = policy(memory=False).double()
    begun = learner.begin(2) | {"context": 0.1 * torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    single = policy(memory=False)
    played = single.play({"context": begun["context"].float()}, rows("navigation", 2, 3))
    played = Played(*(part.double() if part.is_floating_point() else part for part in vars(played).values()))
    gain = advantage(played, learner.options)

    def won(context: torch.Tensor) -> torch.Tensor:
        ratio = (learner.log_prob(learner.told({"context": context}, played), played.action) - played.log_prob).exp()
        return (ratio * gain).mean((1, 2))

    with torch.no_grad():
        moved = learner.learn(begun, played)["context"] - begun["context"]
        for place in range(0, 16, 5):
            step = torch.zeros(2, 16, dtype=torch.float64)
            step[:, place] = 1e-5
            slope = (won(begun["context"] + step) - won(begun["context"] - step)) / 2e-5
            assert moved[:, place].numpy() == pytest.approx(0.3 * slope.numpy(), rel=1e-4, abs=1e-9)
        assert (moved.norm(dim=1) < 0.3).all()
        learner.gate.weight.mul_(200)  # now slopes are steep
        played = dataclasses.replace(played, log_prob=learner.log_prob(learner.told(begun, played), played.action))
        steep = learner.learn(begun, played)
        further = learner.learn(begun | {"round": steep["round"]}, played)["context"] - begun["context"]
    far = (steep["context"] - begun["context"]).norm(dim=1).numpy()
    assert far == pytest.approx(0.3 * LONGEST, rel=1e-6), "the rate is as far as a round may go"
    assert further.norm(dim=1).numpy() == pytest.approx(far / 2, rel=1e-6), "and half of that the next one"


def test_a_round_moves_all_weights_along_the_slope_of_its_returns() -> None:
    single, learner, shared = policy(memory=False, moves="weights"), policy(memory=False, moves="weights").double(), policy(memory=False)
    with torch.no_grad():
        played = single.play(single.begin(2), rows("navigation", 2, 3))
        assert torch.allclose(played.reward, shared.play(shared.begin(2), rows("navigation", 2, 3)).reward, atol=1e-5)
        played = Played(*(part.double() if part.is_floating_point() else part for part in vars(played).values()))
        gain = advantage(played, learner.options)
        moved, begun = learner.learn(learner.begin(2), played), learner.begin(2)
        assert not moved["context"].any()
        for name, at in (("backbone.layers.0.weight", (3, 1)), ("backbone.layers.1.bias", (5,)), ("head.weight", (1, 2)), ("head.bias", (3,))):
            own, won = dict(learner.named_parameters())[name], []
            for step in (1e-5, -1e-5):
                own[at] += step
                told = learner.told({"context": begun["context"]}, played)
                won.append((((learner.log_prob(told, played.action) - played.log_prob).exp() * gain).mean((1, 2))).numpy())
                own[at] -= step
            found = (moved[name] - begun[name])[(slice(None), *at)].numpy()
            assert found == pytest.approx(0.3 * (won[0] - won[1]) / 2e-5 / steepness(learner, played), rel=1e-4, abs=1e-9), name


def steepness(learner: ContextPolicy, played: Played) -> np.ndarray:
    """Return by what each task's slope is divided so as to be no longer than `LONGEST`, a task at a time by autograd."""
    found = []
    for t in range(len(played.reward)):
        own = Played(*(part[t : t + 1] for part in vars(played).values()))
        weights = [w for name, w in learner.named_parameters() if name.startswith(("backbone.", "head."))]
        with torch.enable_grad():
            ratio = (learner.log_prob(learner.told({"context": torch.zeros(1, 16).double()}, own), own.action) - own.log_prob).exp()
            slopes = torch.autograd.grad((ratio * advantage(own, learner.options)).mean(), weights)
        found.append(max(1.0, torch.cat([slope.flatten() for slope in slopes]).norm().item() / LONGEST))
    return np.array(found)


def test_the_outer_gradient_goes_through_what_a_round_moved_unless_it_is_of_first_order() -> None:
    found = {}
    for moves in ("weights", "context"):
        for first_order in (False, True):
            learner = policy(memory=False, moves=moves, first_order=first_order).double()
            quiet = policy(memory=False, moves=moves)
            played = quiet.play(quiet.begin(2), rows("navigation", 2, 3))
            played = Played(*(part.double() if part.is_floating_point() else part for part in vars(played).values()))

            def after(learner: ContextPolicy = learner, played: Played = played) -> torch.Tensor:
                return learner.told(learner.learn(learner.begin(2), played), played).square().mean()

            weight = learner.backbone.layers[1].weight
            (slope,) = torch.autograd.grad(after(), weight)
            with torch.no_grad():
                pair = []
                for step in (1e-6, -1e-6):
                    weight[2, 3] += step
                    pair.append(after().item())
                    weight[2, 3] -= step
            found[moves, first_order] = slope[2, 3].item(), (pair[0] - pair[1]) / 2e-6
    for moves in ("weights", "context"):
        slope, truth = found[moves, False]
        assert slope == pytest.approx(truth, rel=1e-5)
        assert found[moves, True][0] != pytest.approx(truth, rel=1e-3), "first order leaves something out"


def test_an_oracle_is_trained_on_its_task_alone_and_keeps_what_plays_better() -> None:
    learner, asked = policy(memory=False), rows("navigation", 3, 12)
    support = Examples(asked[:, :1], torch.zeros(3, 1), 1)
    with torch.no_grad():
        before = learner.play(learner.knowing(asked[:, 0, :-1]), asked).returns().mean(1)
        oracle = Trained(learner, 30, 0.01)
        after = oracle.predict_features(oracle.adapt_features(support), asked)[..., 0].mean(1)
        assert (after > before + 5).all(), "thirty rounds of twenty episodes show where one goal is"
        carts, falling = Trained(policy("cartpole", memory=False), 4, 0.01), rows("cartpole", 3, 12)  # episodes of several lengths
        together = carts.adapt_features(Examples(falling[:, :1], torch.zeros(3, 1), 1))
        alone = carts.adapt_features(Examples(falling[1:2, :1], torch.zeros(1, 1), 1))
        assert all(torch.allclose(together[name][1:2], w, atol=1e-3) for name, w in alone.items()), "tasks do not touch each other"
        assert all(w.grad is None for w in carts.parameters())
        assert operations(lambda: oracle.adapt_features(support)) > 1e6, "what an evaluation counts of everyone"
        lost = Trained(learner, 2, 100.0)
        assert torch.allclose(lost.predict_features(lost.adapt_features(support), asked)[..., 0].mean(1), before, atol=1e-3)
