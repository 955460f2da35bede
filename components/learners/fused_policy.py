"""Fused policies: several as one. What one plays, all of them learn from; they share what they believe, each says what it would do, and one acts."""

import torch
from torch import Tensor, nn

from components.inputs import require
from components.learners.learner import Adapted
from components.learners.policy import ContextPolicy, Played, Policy


class FusedPolicy(Policy):
    """The weighted product of policies' distributions (logarithmic pooling, Genest and Zidek 1986, Statistical Science 1(1)).

    Of all distributions it is the nearest to the members' by weighted divergence. Normals stay normal: means are weighted by precision, and
    the deviation does not grow where members disagree, as a mixture's does. Members that read their contexts, taught what is hidden, go on from the
    weighted mean of the hidden parameters that these say. The fused policy plays what it learns from, so members need no more episodes than one alone.
    """

    weights: Tensor

    def __init__(self, members: list[Policy], weights: list[float]) -> None:
        first = members[0]
        super().__init__(first.environment, first.options)
        require(
            all(m.environment == first.environment for m in members), "Policies are fused in one environment, got several. Choose members of one environment."
        )
        self.members = nn.ModuleList(members)
        self.objective = first.objective
        self.combine, self.joint = "mixture", False
        self.theta_fixed = all(m.theta_fixed for m in members)
        self.theta_meta = tuple(f"members.{i}.{name}" for i, m in enumerate(members) for name in m.theta_meta)
        self.register_buffer("weights", torch.tensor(weights))
        self.believers = [i for i, m in enumerate(members) if isinstance(m, ContextPolicy) and m.options.belief > 0]

    def _of(self, adapted: Adapted) -> list[tuple[Policy, Adapted]]:
        """Return each member with its own part of what was learned."""
        own: list[tuple[Policy, Adapted]] = []
        for i, member in enumerate(self.members):
            mark = f"{i}/"
            own.append((member, {name.removeprefix(mark): w for name, w in adapted.items() if name.startswith(mark)}))  # type: ignore[arg-type]
        return own

    def begin(self, tasks: int) -> Adapted:
        return {f"{i}/{name}": w for i, member in enumerate(self.members) for name, w in member.begin(tasks).items()}  # type: ignore[operator]

    def knowing(self, hidden: Tensor) -> Adapted:
        return {f"{i}/{name}": w for i, member in enumerate(self.members) for name, w in member.knowing(hidden).items()}  # type: ignore[operator]

    def learn(self, adapted: Adapted, played: Played) -> Adapted:
        parts = [member.learn(own, played) for member, own in self._of(adapted)]
        own = self.weights[self.believers]
        if own.sum() > 0:
            tells = [self.members[i].tell.weight for i in self.believers]  # type: ignore[union-attr]
            said = torch.stack([parts[i]["context"] @ torch.linalg.pinv(tell).T for i, tell in zip(self.believers, tells, strict=True)])  # [M, T, P]
            mean = torch.einsum("m,mtp->tp", own / own.sum(), said)
            for i, one, tell in zip(self.believers, said, tells, strict=True):
                parts[i] = parts[i] | {"context": parts[i]["context"] + (mean - one) @ tell.T}
        return {f"{i}/{name}": w for i, part in enumerate(parts) for name, w in part.items()}

    def act(self, adapted: Adapted, observation: Tensor) -> Tensor:
        told = torch.stack([member.act(own, observation) for member, own in self._of(adapted)])  # [M, T, N, D]
        weight = self.weights.view(-1, 1, 1, 1)
        if self.environment.discrete:
            return (weight * told.log_softmax(-1)).sum(0).log_softmax(-1)
        mean, log_std = told.chunk(2, -1)
        precision = weight * (-2 * log_std).exp()
        total = precision.sum(0)
        return torch.cat([(precision * mean).sum(0) / total, -total.log() / 2], -1)
