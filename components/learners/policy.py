"""Policies: learners whose support is what they themselves gather. They play the support's episodes, learn from them, and play the query's.

Outputs are returns: what an episode of the query came to under the adapted policy. Episodes are played in rounds of `episodes`; after each
the policy has moved, so more support is more steps of adaptation.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.environments import Environment, noise
from components.inputs import require
from components.learners.learner import Adapted, Learner
from components.learners.options import MemoryPolicyOptions, PolicyOptions
from components.networks import Mlp
from components.tasks import Examples, TaskBatch

CONTEXT = 16  # numbers that say which environment it is
RIDGE = 1.0  # of what is expected, steps' worth of doubt: few episodes have fewer steps than their baseline has features, which would follow their chances
CLIP = 0.2  # of the ratio of two policies (Schulman et al. 2017, arXiv:1707.06347, eq. 7)


@dataclass(frozen=True)
class Played:
    """Episodes of T tasks as they went: observation [T, E, H, O], action [T, E, H, A] (or choice [T, E, H]), reward and running [T, E, H].

    `log_prob` [T, E, H]: of each action under the policy that took it. A step counts while `running`.
    """

    observation: Tensor
    action: Tensor
    reward: Tensor
    running: Tensor
    log_prob: Tensor

    def returns(self) -> Tensor:
        """Return what every episode came to [T, E]."""
        return (self.reward * self.running).sum(2)


class Policy(Learner):
    """What all policies share: playing, and the arithmetic of action distributions.

    A distribution is the last dimension of `act`: logits of the choices, or mean and log standard deviation of independent normals.
    Subclasses give what holds before anything was played (`begin`), what a round of episodes changes (`learn`), and `act`.
    """

    def __init__(self, environment: Environment, options: PolicyOptions) -> None:
        super().__init__()
        self.environment = environment
        self.options = options
        self.kept: tuple[Tensor, list[Played], list[tuple[Played, Tensor]]] | None = None  # what the next outer steps go on with
        self.uses = 0
        self.wanted: list[Tensor] = []  # what a teacher would have done in them

    @property
    def outputs_of_act(self) -> int:
        return self.environment.actions * (1 if self.environment.discrete else 2)

    def begin(self, tasks: int) -> Adapted:
        raise NotImplementedError

    def knowing(self, hidden: Tensor) -> Adapted:
        """Return the state of a policy that is told the hidden parameters [T, P]."""
        raise NotImplementedError

    def learn(self, adapted: Adapted, played: Played) -> Adapted:
        raise NotImplementedError

    def act(self, adapted: Adapted, observation: Tensor) -> Tensor:
        """Return action distributions [T, N, D] for observations [T, N, O]."""
        raise NotImplementedError

    @torch.no_grad()
    def play(self, adapted: Adapted, rows: Tensor, gathering: bool = False) -> Played:
        """Play the episodes of rows [T, E, P + 1]; `gathering` ones to learn from, with at least `options.explore` of chance."""
        tasks, count = rows.shape[:2]
        kind, flat = self.environment, rows.flatten(0, 1)
        episodes, drawn = kind.begin(flat), noise(flat, kind.horizon, kind.actions)
        running = torch.ones(tasks, count, dtype=torch.bool)
        kept: list[tuple[Tensor, ...]] = []
        for step in range(kind.horizon):
            seen = episodes.observation.view(tasks, count, -1)
            told = self.act(adapted, seen)
            told = self.exploring(told) if gathering else told
            action = self.sample(told, drawn[:, step].view(tasks, count, -1))
            reward, over = episodes.step(action.flatten(0, 1))
            kept.append((seen, action, reward.view(tasks, count), running, self.log_prob(told, action)))
            running = running & ~over.view(tasks, count)
            if not running.any():
                break
        return Played(*(torch.stack(parts, 2) for parts in zip(*kept, strict=True)))

    def sample(self, told: Tensor, drawn: Tensor) -> Tensor:
        """Return actions from distributions [T, N, D] and standard normal draws [T, N, A]."""
        if self.environment.discrete:  # the largest of logits plus Gumbel noise (Gumbel 1954) is a draw
            uniform = torch.special.ndtr(drawn).clamp(1e-6, 1 - 1e-6)
            chosen: Tensor = (told - (-uniform.log()).log()).argmax(-1)
            return chosen
        mean, log_std = told.chunk(2, -1)
        return mean + log_std.exp() * drawn

    def exploring(self, told: Tensor) -> Tensor:
        """Return distributions with a standard deviation, or a share of choices made at random, of `options.explore` at least."""
        least = self.options.explore
        if self.environment.discrete:
            return ((1 - least) * told.softmax(-1) + least / told.shape[-1]).log()
        mean, log_std = told.chunk(2, -1)
        return torch.cat([mean, log_std.clamp_min(math.log(least))], -1)

    def log_prob(self, told: Tensor, action: Tensor) -> Tensor:
        if self.environment.discrete:
            return told.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        mean, log_std = told.chunk(2, -1)
        return (-0.5 * ((action - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def divergence(self, told: Tensor, wanted: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence of distributions from the wanted ones, both [..., D]: [...]."""
        if self.environment.discrete:
            return (wanted.softmax(-1) * (wanted.log_softmax(-1) - told.log_softmax(-1))).sum(-1)
        (mean, log_std), (goal, log_goal) = told.chunk(2, -1), wanted.chunk(2, -1)
        return (log_std - log_goal + ((2 * log_goal).exp() + (mean - goal).square()) / (2 * (2 * log_std).exp()) - 0.5).sum(-1)

    def told(self, adapted: Adapted, played: Played) -> Tensor:
        """Return the distributions [T, E, H, D] that a policy would have had in episodes that were played."""
        shape = played.reward.shape
        return self.act(adapted, played.observation.flatten(1, 2)).view(*shape, -1)

    def rounds(self, rows: Tensor) -> list[Tensor]:
        """Cut episodes [T, E, P + 1] into the rounds after each of which the policy learns."""
        return list(torch.split(rows, self.options.episodes, 1)) if rows.shape[1] else []

    def adapt_features(self, support: Examples) -> Adapted:
        adapted = self.begin(len(support.x))
        for rows in self.rounds(support.x):
            adapted = self.learn(adapted, self.play(adapted, rows, gathering=True))
        return adapted

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return self.play(adapted, x).returns().unsqueeze(-1)

    def meta_loss(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the policy in the query's episodes, before any round and after each of them, which share the episodes out.

        Clipped (Rothfuss et al. 2019, arXiv:1810.06784, sec. 5, "ProMP"): what was played serves `options.updates` steps. The gradient
        goes through what the policy learned from its rounds, not through which episodes it came to play. Added is `options.belief` times
        how far the context is from what the policy would be told of the hidden parameters (Humplik et al. 2019, arXiv:1905.06424).
        """
        return self._loss(batch)[:2]

    def _loss(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
        """Return the loss, the metrics, and the distributions in the query's episodes, before any round and after each."""
        if self.kept is None or self.uses == self.options.updates:
            self.kept, self.uses = self._play_all(batch), 0
        self.uses += 1
        hidden, gathered, asked = self.kept
        adapted, parts, told, returns = self.begin(len(hidden)), [], [], {}
        for i, (after, gain) in enumerate(asked):
            adapted = adapted if i == 0 else self.learn(adapted, gathered[i - 1])
            told.append(self.told(adapted, after))
            parts.append(self.surrogate(told[-1], after, gain))
            if self.options.belief > 0 and i > 0:
                parts.append(self.options.belief * self.misread(adapted, hidden))
            returns[f"return_{i}"] = after.returns().mean()
        loss = torch.stack(parts).sum() / len(asked)
        return loss, {"loss": loss.detach(), "return": after.returns().mean(), **returns}, told

    def distil_loss(self, teacher: "Policy", batch: TaskBatch, soft: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (1 - soft) times the own loss and soft times how far actions are from a teacher's, in episodes that the student plays.

        Rusu et al. 2016, arXiv:1511.06295, eq. 4, on the states that the student itself visits (Ross et al. 2011, AISTATS). The teacher learns from
        the student's rounds; what the student does when it is told the hidden parameters follows the teacher at its best.
        """
        own, metrics, told = self._loss(batch)
        assert self.kept is not None
        hidden, gathered, asked = self.kept
        if self.uses == 1:
            with torch.no_grad():
                theirs, self.wanted = teacher.begin(len(hidden)), []
                for i, (after, _) in enumerate(asked):
                    theirs = theirs if i == 0 else teacher.learn(theirs, gathered[i - 1])
                    self.wanted.append(teacher.told(theirs, after))
        apart = [self.unlike(one, after, wanted) for one, (after, _), wanted in zip(told, asked, self.wanted, strict=True)]
        last = asked[-1][0]
        apart.append(self.unlike(self.told(self.knowing(hidden), last), last, self.wanted[-1]))
        far = torch.stack(apart).mean()
        loss = (1 - soft) * own + soft * far
        return loss, metrics | {"loss": loss.detach(), "soft_loss": far.detach()}

    def unlike(self, told: Tensor, played: Played, wanted: Tensor) -> Tensor:
        """Return the mean divergence of distributions from the wanted ones, both [T, E, H, D], in episodes that were played."""
        apart = self.divergence(told, wanted)
        return (apart * played.running).sum() / played.running.sum()

    @torch.no_grad()
    def _play_all(self, batch: TaskBatch) -> tuple[Tensor, list[Played], list[tuple[Played, Tensor]]]:
        """Play the support's rounds, and before and after each of them a share of the query's episodes."""
        rounds = self.rounds(batch.support.x)
        shares = torch.tensor_split(batch.query.x, len(rounds) + 1, 1)
        require(shares[-1].shape[1] > 0, f"tasks.query must be at least {len(rounds) + 1}, an episode a round and one more. Raise it.")
        adapted = self.begin(len(batch.query.x))
        gathered: list[Played] = []
        asked = [self.play(adapted, shares[0])]
        for rows, share in zip(rounds, shares[1:], strict=True):
            gathered.append(self.play(adapted, rows, gathering=True))
            adapted = self.learn(adapted, gathered[-1])
            asked.append(self.play(adapted, share))
        return batch.query.x[:, 0, :-1], gathered, [(played, advantage(played, self.options)) for played in asked]

    def pretrain_loss(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the clipped loss of theta*: told the hidden parameters of one half of the environments, one policy for all of the other."""
        if self.kept is None or self.uses == self.options.updates:
            hidden = batch.query.x[:, 0, :-1]
            with torch.no_grad():
                played = self.play(self._half(hidden), batch.query.x)
            self.kept, self.uses = (hidden, [], [(played, advantage(played, self.options))]), 0
        self.uses += 1
        hidden, _, ((played, gain),) = self.kept
        loss, value = self.surrogate(self.told(self._half(hidden), played), played, gain), played.returns().mean(1)
        half = len(hidden) // 2
        return loss, {"loss": loss.detach(), "return": value[half:].mean(), "return_knowing": value[:half].mean()}

    def _half(self, hidden: Tensor) -> Adapted:
        knowing, begun = self.knowing(hidden), self.begin(len(hidden))
        half = (torch.arange(len(hidden)) < len(hidden) // 2).to(hidden)
        return {name: torch.where(half.view(-1, *[1] * (w.ndim - 1)) > 0, knowing[name], w) for name, w in begun.items()}

    def misread(self, adapted: Adapted, hidden: Tensor) -> Tensor:
        """Return how far what was learned is from what the policy would be told, over the spread of that."""
        wanted = self.knowing(hidden)["context"].detach()
        return (adapted["context"] - wanted).square().mean() / wanted.var(0).mean()

    def surrogate(self, told: Tensor, played: Played, gain: Tensor) -> Tensor:
        """Return the clipped surrogate loss, the mean over the steps of all tasks."""
        steps = played.running.sum((1, 2))
        return (self.clipped(told, played, gain) * steps).sum() / steps.sum()

    def clipped(self, told: Tensor, played: Played, gain: Tensor) -> Tensor:
        """Return each task's clipped surrogate loss [T], the mean over its steps."""
        ratio = (self.log_prob(told, played.action) - played.log_prob).exp()
        won = torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain) * played.running
        return -won.sum((1, 2)) / played.running.sum((1, 2))


class ContextPolicy(Policy):
    """One network for all environments, whose context says which one it is in: zeros before anything is known of it.

    It is the network's last inputs, and scales its features (Perez et al. 2018, arXiv:1709.07871, sec. 2.1): what an observation asks for may
    turn into its opposite from one environment to another, which sums of the two learn slowly. A task may bring weights of its own.
    """

    of_base = ("backbone.", "head.", "tell.", "gate.")

    size: Tensor

    def __init__(self, backbone: Mlp, dim: int, options: PolicyOptions, environment: Environment) -> None:
        super().__init__(environment, options)
        self.backbone = backbone
        self.head = nn.Linear(dim, self.outputs_of_act)
        nn.init.orthogonal_(self.head.weight, 0.01)
        nn.init.zeros_(self.head.bias)
        if not environment.discrete:
            with torch.no_grad():
                self.head.bias[environment.actions :] = math.log(options.std)
        low, high = torch.tensor(list(environment.parameters.values())).T
        self.register_buffer("size", torch.maximum(low.abs(), high.abs()))
        self.tell = nn.Linear(len(environment.parameters), CONTEXT, bias=False)
        self.gate = nn.Linear(CONTEXT, dim, bias=False)

    def knowing(self, hidden: Tensor) -> Adapted:
        """Return the state of a policy that is told the hidden parameters [T, P]."""
        return self.begin(len(hidden)) | {"context": self.tell(hidden / self.size)}

    def begin(self, tasks: int) -> Adapted:
        return {"context": self.tell.weight.new_zeros(tasks, CONTEXT)}

    def own_weights(self, tasks: int) -> Adapted:
        """Return the weights of network and head once a task [T, ...]: beside a context, what a task acts by instead of those of all."""
        return {name: w.expand(tasks, *w.shape) for name, w in self.named_parameters() if name.startswith(("backbone.", "head."))}

    def act(self, adapted: Adapted, observation: Tensor) -> Tensor:
        context = adapted["context"].unsqueeze(1)
        x, scale = torch.cat([observation, context.expand(-1, observation.shape[1], -1)], -1), 1 + self.gate(context)
        if "head.weight" not in adapted:
            told: Tensor = self.head(self.backbone(x) * scale)
            return told
        features = self.backbone.per_task({name.removeprefix("backbone."): w for name, w in adapted.items() if name.startswith("backbone.")}, x)
        return torch.baddbmm(adapted["head.bias"].unsqueeze(1), features * scale, adapted["head.weight"].transpose(1, 2))


class MemoryPolicy(ContextPolicy):
    """A policy that reads its context from what it has played (Duan et al. 2016, arXiv:1611.02779, "RL^2"): learned questions attend to all steps
    of all rounds (Lee et al. 2019, arXiv:1810.00825, eq. 11).

    What attention has read is kept as sums, so a further round is added and no old one is read again; the order does not matter.
    """

    theta_meta = ("reading", "questions", "answer")
    options: MemoryPolicyOptions

    def __init__(self, backbone: Mlp, dim: int, options: MemoryPolicyOptions, environment: Environment) -> None:
        super().__init__(backbone, dim, options, environment)
        width, step = options.width, 2 * environment.observation + environment.actions + 1
        self.reading = nn.Sequential(nn.Linear(step, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.questions = nn.Linear(width, options.questions, bias=False)  # the key is the feature itself: one product gives all scores
        self.answer = nn.Sequential(nn.Linear(options.questions * width, width), nn.ReLU(), nn.Linear(width, CONTEXT))

    def begin(self, tasks: int) -> Adapted:
        at, o = self.questions.weight, self.options
        empty = {"total": at.new_full((tasks, o.questions), -1e9), "found": at.new_zeros(tasks, o.questions, o.width)}
        return super().begin(tasks) | empty

    def learn(self, adapted: Adapted, played: Played) -> Adapted:
        taken = F.one_hot(played.action, self.environment.actions).to(played.reward) if self.environment.discrete else played.action
        now = torch.cat([played.observation, taken, played.reward.unsqueeze(-1)], -1)[:, :, :-1]
        every = self.options.every
        steps = torch.cat([now, played.observation[:, :, 1:]], -1)[:, :, ::every].flatten(1, 2)
        read = self.reading(steps)  # [T, N, width]
        going = played.running[:, :, 1::every].flatten(1, 2).unsqueeze(-1)
        score = torch.where(going, self.questions(read), -1e9)  # [T, N, questions]
        total = score.logsumexp(1)
        found = score.softmax(1).transpose(1, 2) @ read
        both = torch.logaddexp(adapted["total"], total)
        old, new = ((part - both).exp().unsqueeze(-1) for part in (adapted["total"], total))
        found = old * adapted["found"] + new * found
        return {"context": self.answer(found.flatten(1)), "total": both, "found": found}


def advantage(played: Played, options: PolicyOptions) -> Tensor:
    """Return how much better than expected each step went [T, E, H], of mean 0 and deviation 1 in every task.

    What is expected is linear in observation, its square and time, fitted to the task's own returns by ridge regression of strength `RIDGE` (Duan
    et al. 2016, arXiv:1604.06778, suppl. 2) on features of mean 0 and deviation 1: an angle is small, and would be shrunk away. Differences are
    discounted as Schulman et al. 2016, arXiv:1506.02438, eq. 16.
    """
    tasks, episodes, horizon = played.reward.shape
    alive = played.running.to(played.reward)
    reward = played.reward * alive
    time = torch.arange(horizon).to(reward) / 100
    clock = torch.stack([time, time**2, time**3], -1).expand(tasks, episodes, horizon, 3)
    x = torch.cat([played.observation, played.observation.square(), clock], -1).flatten(1, 2).double()
    to_go = torch.zeros_like(reward)
    ahead = torch.zeros_like(reward[..., 0])
    for step in range(horizon - 1, -1, -1):
        ahead = reward[..., step] + options.discount * ahead
        to_go[..., step] = ahead
    wanted, there = to_go.flatten(1, 2).double().unsqueeze(-1), alive.flatten(1, 2).double().unsqueeze(-1)
    steps = there.sum(1, keepdim=True)
    x = (x - (x * there).sum(1, keepdim=True) / steps) * there
    x = x / (x.square().sum(1, keepdim=True) / steps).sqrt().clamp_min(1e-8)
    usual = (wanted * there).sum(1, keepdim=True) / steps
    gram = x.transpose(1, 2) @ x + RIDGE * torch.eye(x.shape[-1], dtype=torch.float64)
    expected = (usual + x @ torch.linalg.solve(gram, x.transpose(1, 2) @ ((wanted - usual) * there))) * there
    expected = expected.view_as(reward).to(reward)
    after = F.pad(expected[..., 1:], (0, 1))
    surprise = (reward + options.discount * after - expected) * alive
    gain = torch.zeros_like(reward)
    ahead = torch.zeros_like(reward[..., 0])
    for step in range(horizon - 1, -1, -1):
        ahead = surprise[..., step] + options.discount * options.gae * ahead
        gain[..., step] = ahead
    count = alive.sum((1, 2), keepdim=True)
    middle = (gain * alive).sum((1, 2), keepdim=True) / count
    spread = ((gain - middle).square() * alive).sum((1, 2), keepdim=True) / count
    return (gain - middle) / (spread.sqrt() + 1e-8) * alive
