"""Policies that learn from a round of episodes by one step of ascent on its returns."""

from typing import Any

import torch
from torch import nn

from components.environments import Environment
from components.learners.learner import Adapted
from components.learners.options import GradientPolicyOptions
from components.learners.policy import CONTEXT, ContextPolicy, Played, advantage
from components.networks import Mlp

LONGEST = 3.0  # of a task's slope
ROUNDS = 4  # with rates of their own; later ones have those of the last


class GradientPolicy(ContextPolicy):
    """Policy gradients in the inner loop (Finn et al. 2017, arXiv:1703.03400, Alg. 3).

    `moves="weights"`: all weights of network and head, as there. `"context"`: the context alone (Zintgraf et al. 2019, arXiv:1810.03642, "CAVIA").
    Rates are learned, one a round and tensor, or number of the context (Antoniou et al. 2019, arXiv:1810.09502, sec. 4); after the first round they
    begin at half, as the rates of Finn et al. are (sec. A.2). A task's slope is no longer than `LONGEST` (Pascanu et al. 2013, arXiv:1211.5063,
    Alg. 1): where a context leads nowhere, slopes grow from round to round until there are no numbers left.
    """

    theta_meta = ("log_rates",)
    options: GradientPolicyOptions

    def __init__(self, backbone: Mlp, dim: int, options: GradientPolicyOptions, environment: Environment) -> None:
        super().__init__(backbone, dim, options, environment)
        self.theta_fixed = options.moves == "context"
        rates = torch.full((ROUNDS, CONTEXT if self.theta_fixed else len(self.own_weights(1))), options.inner_lr)
        rates[1:] /= 2
        self.log_rates = nn.Parameter(rates.log())

    def begin(self, tasks: int) -> Adapted:
        return super().begin(tasks) | {"round": self.log_rates.new_zeros(tasks)} | ({} if self.theta_fixed else self.own_weights(tasks))

    def learn(self, adapted: Adapted, played: Played) -> Adapted:
        gain, graph = advantage(played, self.options), torch.is_grad_enabled()
        names = [name for name in adapted if name not in ("context", "round")] or ["context"]
        with torch.enable_grad():
            before = [adapted[name] if graph and adapted[name].requires_grad else adapted[name].detach().requires_grad_() for name in names]
            told = self.told(adapted | dict(zip(names, before, strict=True)), played)
            ratio = (self.log_prob(told, played.action) - played.log_prob).exp()
            won = (ratio * gain * played.running).sum((1, 2)) / played.running.sum((1, 2))
            slopes = torch.autograd.grad(won.sum(), before, create_graph=graph and not self.options.first_order)
        length = torch.cat([slope.flatten(1) for slope in slopes], 1).norm(dim=1, keepdim=True)
        rates = self.log_rates[adapted["round"].long().clamp_max(ROUNDS - 1)].exp() / (length / LONGEST).clamp_min(1)  # [T, R]
        every = [rates] if self.theta_fixed else [rate.view(-1, *[1] * (w.ndim - 1)) for rate, w in zip(rates.unbind(1), before, strict=True)]
        moved = {name: w + rate * slope for name, w, rate, slope in zip(names, before, every, slopes, strict=True)}
        return adapted | {"round": adapted["round"] + 1} | {name: w if graph else w.detach() for name, w in moved.items()}


class PolicyBase(GradientPolicy):
    """The base model theta* of control: one policy for all training environments, adapted by plain steps."""

    def __init__(self, backbone: Mlp, dim: int, options: dict[str, Any], environment: Environment) -> None:
        super().__init__(backbone, dim, GradientPolicyOptions(**options["policy"]), environment)
