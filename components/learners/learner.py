"""The one type of the house: a learner maps support sets to predictors, T tasks at once.

`encode` is the part that no task changes, so a caller who meets the same items in many tasks may encode each once and work on features.
"""

import torch
from torch import Tensor, nn

from components.networks import channels_last, statistics
from components.objectives import OBJECTIVES, Objective, one_hot
from components.tasks import Examples, TaskBatch

Adapted = dict[str, Tensor]  # what adaptation made, every tensor with leading dimension T


class Learner(nn.Module):
    """A mapping from support sets to predictors; stateless under `adapt`.

    Subclasses implement `adapt_features` and `predict_features`, and `encode` where part of the network is shared by all tasks.
    `theta_meta` names the parameters that tune how the base learns; all others are theta. `theta_fixed` says whether adaptation
    leaves theta as it is. `tasks_at_once` bounds how many tasks a training step holds in memory together.
    """

    theta_meta: tuple[str, ...] = ()
    theta_fixed: bool = True
    of_base: tuple[str, ...] = ("backbone.",)  # what a learner that starts from another takes over from it
    encodes: bool = False  # one encoder serves all tasks
    centroids: bool = False  # adapts by one mean feature a class, compared by cosine
    tasks_at_once: int = 1_000_000
    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.objective: Objective = OBJECTIVES["cross_entropy"]
        self.progress, self.seed = 0.0, 0  # of the fit: how far it is, in [0, 1], and its seed; set by it before every step
        self.register_buffer("temperature", torch.ones(()))  # set on validation tasks (Guo et al. 2017, arXiv:1706.04599, sec. 4.2)

    def started(self) -> None:
        """Take over what depends on the objective or on the backbone's start; called once both are there."""

    def encode(self, x: Tensor) -> Tensor:
        """Map inputs [N, ...] to features [N, ...]; the identity unless a learner shares an encoder between tasks."""
        return x

    def adapt_features(self, support: Examples) -> Adapted:
        """Adapt to support features: support.x [T, S, ...], support.y [T, S]."""
        raise NotImplementedError

    def support_losses(self, support: Examples) -> list[float]:
        """Return the mean loss on the support features before the first and after every step of adaptation; none where there are no steps."""
        return []

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        """Return outputs [T, Q, out] for query features [T, Q, ...]: logits of the classes, or one value."""
        raise NotImplementedError

    def adapt(self, support: Examples) -> Adapted:
        """Adapt to T support sets of inputs: support.x [T, S, ...], support.y [T, S]."""
        return self.adapt_features(Examples(self.encode_tasks(support.x), support.y, support.way))

    def predict(self, adapted: Adapted, query_x: Tensor) -> Tensor:
        """Return calibrated outputs [T, Q, out] for query inputs [T, Q, ...]."""
        return self.predict_features(adapted, self.encode_tasks(query_x)) / self.temperature

    def forward(self, batch: TaskBatch) -> Tensor:
        """Return uncalibrated outputs [T, Q, out]; support and query are encoded in one pass."""
        shots = batch.support.x.shape[1]
        features = self.encode_tasks(torch.cat([batch.support.x, batch.query.x], 1))
        support = Examples(features[:, :shots], batch.support.y, batch.support.way)
        return self.predict_features(self.adapt_features(support), features[:, shots:])

    def meta_loss(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean query loss of the adapted tasks and the metrics to log."""
        return self.objective.loss_and_metrics(self(batch), batch.query.y)

    def parameter_roles(self) -> dict[str, list[str]]:
        """Return the names of the parameters that are theta and of those that are theta_meta."""
        names = [name for name, _ in self.named_parameters()]
        meta = [n for n in names if n.startswith(self.theta_meta)] if self.theta_meta else []
        return {"theta": [n for n in names if n not in meta], "theta_meta": meta}

    def encode_tasks(self, x: Tensor) -> Tensor:
        """Encode the inputs of T tasks: x [T, N, ...] -> [T, N, ...]."""
        features = self.encode(x.flatten(0, 1))
        return features.reshape(*x.shape[:2], *features.shape[1:])


class Encoding(Learner):
    """A learner whose backbone encodes every item alike; what a task changes comes after it. `norm` is `running` or `meta_batch`."""

    encodes = True

    def __init__(self, backbone: nn.Module, norm: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.norm = norm

    def train(self, mode: bool = True) -> "Encoding":
        super().train(mode)
        statistics(self.backbone, self.norm, mode)
        return self

    def encode(self, x: Tensor) -> Tensor:
        features: Tensor = self.backbone(channels_last(x))
        return features


def class_means(x: Tensor, y: Tensor, way: int) -> Tensor:
    """Return each class's mean feature [T, way, D], whatever the number of shots a class. x [T, S, D], y [T, S]."""
    belongs = one_hot(y, way, x.dtype).transpose(1, 2)
    return belongs @ x / belongs.sum(2, keepdim=True)


def transductive(learner: nn.Module) -> bool:
    """Say whether one query's answer depends on the others: the learner, or one within it, takes the statistics of the task at hand."""
    return any(getattr(getattr(module, "options", None), "norm", "") == "task" for module in learner.modules())


def learner_size(learner: Learner) -> float:
    """Return the number of parameters that prediction uses (a base model's classifier over training classes is left out)."""
    return float(sum(p.numel() for name, p in learner.named_parameters() if not name.endswith("classes")))
