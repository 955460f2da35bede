"""The outer loss of policies, written out: clipping, exploring, belief, and who is told what is hidden."""

import math

import numpy as np
import pytest
import torch
from test_control import PLAY, policy
from test_environments import rows

from components.learners.policy import CLIP
from components.tasks import Examples, TaskBatch


def played(kind: str = "cartpole") -> tuple:
    learner = policy(kind)
    with torch.no_grad():
        return learner, learner.play(learner.begin(3), rows(kind, 3, 4))


def test_the_outer_loss_is_clipped_and_each_step_counts_once() -> None:
    learner, seen = played()
    random = np.random.default_rng(1)
    gain, told = torch.tensor(random.normal(size=seen.reward.shape)).float(), torch.tensor(random.normal(size=(*seen.reward.shape, 2))).float()
    with torch.no_grad():
        ratio, total, steps = (learner.log_prob(told, seen.action) - seen.log_prob).exp(), 0.0, 0
        for at in zip(*np.nonzero(seen.running.numpy()), strict=True):
            r, g = ratio[at].item(), gain[at].item()
            total, steps = total + min(r * g, min(max(r, 1 - CLIP), 1 + CLIP) * g), steps + 1
        assert learner.surrogate(told, seen, gain).item() == pytest.approx(-total / steps, rel=1e-4)


@pytest.mark.parametrize("kind", ["navigation", "cartpole"])
def test_episodes_to_learn_from_are_played_with_chance_and_others_are_not(kind: str) -> None:
    learner = policy(kind)
    with torch.no_grad():
        if not learner.environment.discrete:
            learner.head.weight[2:], learner.head.bias[2:] = 0, math.log(0.01)
        else:
            learner.head.weight.mul_(100)
        asked = rows(kind, 2, 6)
        for gathering in (False, True):
            seen = learner.play(learner.begin(2), asked, gathering)
            told = learner.told(learner.begin(2), seen)
            told = learner.exploring(told) if gathering else told
            assert torch.allclose(seen.log_prob[seen.running], learner.log_prob(told, seen.action)[seen.running], atol=1e-3)
        if not learner.environment.discrete:
            assert learner.exploring(told)[..., 2:].exp().min().item() == pytest.approx(PLAY["explore"]), "the least deviation"


def test_the_loss_of_a_policy_is_that_after_every_round_and_of_what_it_believes() -> None:
    learner = policy()
    batch = TaskBatch(*(Examples(rows("navigation", 3, n, first), torch.zeros(3, n), 1) for n, first in ((6, 0), (6, 6))))
    found = learner.meta_loss(batch)[0].item()
    hidden, gathered, asked = learner.kept
    with torch.no_grad():
        state, wanted = learner.begin(3), 0.0
        for i, (after, gain) in enumerate(asked):
            if i:
                state = learner.learn(state, gathered[i - 1])
                knows = learner.knowing(hidden)["context"]
                wanted += ((state["context"] - knows) ** 2).mean().item() / knows.var(0).mean().item()  # belief=1
            wanted += learner.surrogate(learner.told(state, after), after, gain).item()
    assert found == pytest.approx(wanted / len(asked), rel=1e-4)


def test_the_base_is_told_what_is_hidden_in_half_of_its_environments() -> None:
    learner, hidden = policy(), rows("navigation", 4, 1)[:, 0, :-1]
    with torch.no_grad():
        state, knows = learner._half(hidden), learner.knowing(hidden)
    assert torch.equal(state["context"][:2], knows["context"][:2]) and knows["context"][:2].any() and not state["context"][2:].any()
