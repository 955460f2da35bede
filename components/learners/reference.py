"""What a learner is measured against: no learning, no pre-training, no adaptation; or being told what is hidden."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from components.domains.catalogue import COUNT, MEAN, SHRINK
from components.draws import seed_of
from components.learners.closed_form import ridge_head, with_one
from components.learners.learner import Adapted, Learner
from components.learners.policy import ContextPolicy, advantage
from components.objectives import OBJECTIVES, code
from components.tasks import Examples

EPISODES = 20  # a round of a policy that is trained on one task


class Nearest(Learner):
    """Nearest neighbour in the space of inputs: no learning.

    Logits are minus the squared distance to each class's nearest support item; a value is that of the nearest item.
    """

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def adapt_features(self, support: Examples) -> Adapted:
        return {"x": support.x, "y": code(support.y, self.objective, support.way, support.x.dtype)}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        distance = torch.cdist(x, adapted["x"]).square()  # [T, Q, S]
        if self.objective.name != "cross_entropy":
            return adapted["y"].gather(1, distance.argmin(2, keepdim=True))
        apart = torch.where(adapted["y"].bool().unsqueeze(1), distance.unsqueeze(-1), torch.inf)
        return -apart.amin(2)


class Unadapted(Learner):
    """theta* before adaptation: its features under a random head, the same for every task. Chance is what to expect."""

    def __init__(self, encoder: Learner, dim: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        generator = torch.Generator().manual_seed(seed_of("untrained head", seed))
        self.register_buffer("head", torch.randn(1000, dim, generator=generator))

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder.encode(x)

    def adapt_features(self, support: Examples) -> Adapted:
        head: Tensor = self.head  # type: ignore[assignment]
        return {"head": head[: self.objective.outputs(support.way)].expand(support.x.shape[0], -1, -1)}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return x.flatten(2) @ adapted["head"].transpose(1, 2)


class WithoutSupport(Learner):
    """A policy before it has played anything; it is not given the support's episodes."""

    def __init__(self, policy: Learner) -> None:
        super().__init__()
        self.policy = policy

    def adapt_features(self, support: Examples) -> Adapted:
        return self.policy.adapt_features(Examples(support.x[:, :0], support.y[:, :0], support.way))

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return self.policy.predict_features(adapted, x)


class Told(WithoutSupport):
    """A policy that is told its environment's hidden parameters: no contender, and a bound only where it has learned to use them."""

    def adapt_features(self, support: Examples) -> Adapted:
        known: Adapted = self.policy.knowing(support.x[:, 0, :-1])  # type: ignore[operator]
        return known


class Trained(Told):
    """That policy, trained on each task alone: `steps` rounds of `EPISODES` episodes, whose returns move all weights by Adam at rate `lr`.

    Where it then plays no better than before, in as many episodes anew, the task keeps what it began with. An oracle too: nobody plays that much.
    """

    def __init__(self, policy: Learner, steps: int, lr: float) -> None:
        super().__init__(policy)
        self.steps, self.lr = steps, lr

    def adapt_features(self, support: Examples) -> Adapted:
        policy: ContextPolicy = self.policy  # type: ignore[assignment]
        hidden = support.x[:, 0, :-1]
        begun = {"context": policy.knowing(hidden)["context"]} | policy.own_weights(len(hidden))
        own = {name: w.detach().clone().requires_grad_() for name, w in begun.items()}
        optimizer = torch.optim.Adam(own.values(), self.lr)
        for step in range(self.steps):
            played = policy.play({name: w.detach() for name, w in own.items()}, self._episodes(hidden, step))
            gain = advantage(played, policy.options)
            with torch.enable_grad():
                for _ in range(policy.options.updates):
                    optimizer.zero_grad()
                    loss = policy.clipped(policy.told(own, played), played, gain).sum()  # a task's own mean each: tasks do not touch each other
                    loss.backward(inputs=list(own.values()))  # type: ignore[no-untyped-call]
                    optimizer.step()
        fresh = self._episodes(hidden, self.steps)
        learned = {name: w.detach() for name, w in own.items()}
        better = policy.play(learned, fresh).returns().mean(1) > policy.play(begun, fresh).returns().mean(1)
        return {name: torch.where(better.view(-1, *[1] * (w.ndim - 1)), learned[name], w) for name, w in begun.items()}

    def _episodes(self, hidden: Tensor, step: int) -> Tensor:
        """Return rows [T, EPISODES, P + 1] that no table has: tables number episodes from 0."""
        numbers = 1_000_000 + EPISODES * step + torch.arange(EPISODES)
        return torch.cat([hidden.unsqueeze(1).expand(-1, EPISODES, -1), numbers.to(hidden).view(1, -1, 1).expand(len(hidden), -1, 1)], 2)


class Scratch(Learner):
    """The same network from its initialisation, trained on one task's support alone: Adam, full batches, `steps` steps.

    Normalisation statistics are those of the support, measured once at the start: the query set is not used.
    """

    theta_fixed = False

    def __init__(self, backbone: nn.Module, dim: int, steps: int, lr: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.dim, self.steps, self.lr = dim, steps, lr

    def adapt_features(self, support: Examples) -> Adapted:
        tasks = [self._train(x, y, self.objective.outputs(support.way)) for x, y in zip(support.x, support.y, strict=True)]
        return {name: torch.stack([task[name] for task in tasks]) for name in tasks[0]}

    def _train(self, x: Tensor, y: Tensor, outputs: int) -> Adapted:
        net = copy.deepcopy(self.backbone)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        head = nn.Linear(self.dim, outputs)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        with torch.no_grad():
            net.train()(x)  # one pass with momentum 1 leaves the support's own statistics
        net.eval()
        optimizer = torch.optim.Adam([*net.parameters(), *head.parameters()], self.lr)
        with torch.enable_grad():
            for _ in range(self.steps):
                optimizer.zero_grad()
                self.objective.loss(head(net(x))[None], y[None]).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        state = {f"net.{k}": v for k, v in net.state_dict().items() if v.is_floating_point()}
        return {k: v.detach() for k, v in (state | {"head": head.weight, "head_bias": head.bias}).items()}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        logits = []
        self.backbone.eval()
        for t, inputs in enumerate(x):
            weights = {k.removeprefix("net."): v[t] for k, v in adapted.items() if k.startswith("net.")}
            logits.append(functional_call(self.backbone, weights, (inputs,)) @ adapted["head"][t].T + adapted["head_bias"][t])
        return torch.stack(logits)


class Linear(Learner):
    """A linear model of the inputs for all tasks, `head` [D + 1, 1]; a task moves it by ridge regression on what it leaves.

    With `constant_alone` nothing but the constant moves: of ratings, that is each user's own mean, shrunk. Strengths are tuned by who builds it.
    """

    ridge: Tensor

    def __init__(self, head: Tensor, ridge: float, constant_alone: bool) -> None:
        super().__init__()
        self.objective = OBJECTIVES["squared_error"]
        self.constant_alone, self.encodes = constant_alone, True
        self.head = nn.Parameter(head, requires_grad=False)
        self.register_buffer("ridge", torch.tensor(ridge, dtype=head.dtype))

    def adapt_features(self, support: Examples) -> Adapted:
        x = with_one(support.x)
        left = support.y.unsqueeze(-1) - x @ self.head
        if self.constant_alone:
            constant = ridge_head(x[..., -1:], left, self.ridge)
            return {"head": self.head + F.pad(constant, (0, 0, len(self.head) - 1, 0))}
        return {"head": self.head + ridge_head(x, left, self.ridge)}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return with_one(x) @ adapted["head"]


class Biases(Linear):
    """A mean of all, an item's bias and a user's, each shrunk by a strength of its own (Koren, Bell, Volinsky 2009, Computer 42(8), eq. 3).

    A catalogue tells an item's bias as it was shrunk by `SHRINK`; it is shrunk by `doubt` > 0 instead. `middle`: the mean of all.
    """

    def __init__(self, middle: float, doubt: float, ridge: float) -> None:
        super().__init__(torch.tensor([[1.0], [middle]]), ridge, True)
        self.doubt = doubt

    def encode(self, x: Tensor) -> Tensor:
        count = (5 * x[:, COUNT]).expm1()
        return (x[:, MEAN] * (count + SHRINK) / (count + self.doubt)).unsqueeze(1)
