"""Metric learners: adaptation keeps a mean a class, or the examples themselves; prediction compares."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.learners.learner import Adapted, Encoding, class_means
from components.learners.options import LocalOptions, MatchingOptions, ProtoNetOptions, RelationOptions
from components.networks import channels_last
from components.objectives import code, one_hot
from components.tasks import Examples


class ProtoNet(Encoding):
    """Prototypical networks (Snell et al. 2017, arXiv:1703.05175, eq. 1-2), with Euclidean or scaled cosine distance.

    The cosine form started from a pre-trained base is Meta-Baseline (Chen et al. 2021, arXiv:2003.04390, sec. 3.2).
    The embedding is itself what meta-learning tunes: theta_meta is the backbone and the scale, and a task changes neither.
    """

    theta_meta = ("backbone.", "log_scale")

    def __init__(self, backbone: nn.Module, dim: int, options: ProtoNetOptions) -> None:
        super().__init__(backbone, options.norm)
        self.cosine = self.centroids = options.distance == "cosine"
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)))

    def encode(self, x: Tensor) -> Tensor:
        features = super().encode(x)
        return F.normalize(features, dim=-1) if self.cosine else features

    def adapt_features(self, support: Examples) -> Adapted:
        means = class_means(support.x, support.y, support.way)
        return {"prototypes": F.normalize(means, dim=-1) if self.cosine else means}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        prototypes = adapted["prototypes"]
        scores = x @ prototypes.transpose(1, 2)
        if not self.cosine:  # -|x - c|^2 without |x|^2, which is the same for every class
            scores = 2 * scores - prototypes.square().sum(-1).unsqueeze(1)
        return scores * self.log_scale.exp()


class CosineBase(Encoding):
    """The base model theta*: one cosine classifier over all training classes, adapted to a task by nearest centroid.

    Its training loss over the union of all training classes is the named surrogate of sum_i L(f(theta, x_i), y_i) for classification
    (Chen et al. 2019, arXiv:1904.04232, "Baseline++"; Gidaris and Komodakis 2018, arXiv:1804.09458).
    """

    centroids = True

    def __init__(self, backbone: nn.Module, dim: int, options: dict[str, Any]) -> None:
        super().__init__(backbone, "meta_batch")
        self.classes = nn.Parameter(torch.randn(options["classes"], dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(options["scale"])))

    def encode(self, x: Tensor) -> Tensor:
        return F.normalize(super().encode(x), dim=-1)

    def outputs(self, x: Tensor) -> Tensor:
        """Return logits [1, N, classes] over the training classes for inputs [N, ...]."""
        logits: Tensor = self.encode(x) @ F.normalize(self.classes, dim=-1).T * self.log_scale.exp()
        return logits.unsqueeze(0)

    def adapt_features(self, support: Examples) -> Adapted:
        return {"prototypes": F.normalize(class_means(support.x, support.y, support.way), dim=-1)}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return x @ adapted["prototypes"].transpose(1, 2) * self.log_scale.exp()


class Matching(Encoding):
    """Matching networks (Vinyals et al. 2016, arXiv:1606.04080, eq. 1): the support's targets, weighted by attention to each example.

    With `context`, support features pass through a bidirectional LSTM over the support and queries through attention steps on it (sec.
    2.1.2, "full context embeddings"): predictions then depend on the order of the support. With values as targets it is kernel
    regression with a learned kernel.
    """

    theta_meta = ("backbone.", "log_scale", "support_lstm.", "query_lstm.")

    def __init__(self, backbone: nn.Module, dim: int, options: MatchingOptions) -> None:
        super().__init__(backbone, options.norm)
        self.context, self.dim = options.context, dim
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)))
        if self.context:
            self.support_lstm = nn.LSTM(dim, dim, batch_first=True, bidirectional=True)
            self.query_lstm = nn.LSTMCell(2 * dim, dim)

    def adapt_features(self, support: Examples) -> Adapted:
        features = support.x
        if self.context:
            both = self.support_lstm(features)[0]
            features = features + both[..., : self.dim] + both[..., self.dim :]
        return {"keys": features, "targets": code(support.y, self.objective, support.way, features.dtype)}

    def _in_context(self, x: Tensor, keys: Tensor) -> Tensor:
        hidden, cell = x, torch.zeros_like(x)
        for _ in range(keys.shape[1]):
            attended = (hidden @ keys.transpose(1, 2)).softmax(-1) @ keys
            flat, state = torch.cat([x, attended], -1).flatten(0, 1), (hidden.flatten(0, 1), cell.flatten(0, 1))
            new, moved = self.query_lstm(flat, state)
            hidden, cell = new.view_as(x) + x, moved.view_as(x)
        return hidden

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        keys = adapted["keys"]
        if self.context:
            x = self._in_context(x, keys)
        attention = (F.normalize(x, dim=-1) @ F.normalize(keys, dim=-1).transpose(1, 2) * self.log_scale.exp()).softmax(-1)
        found = attention @ adapted["targets"]
        return (found + 1e-6).log() if self.objective.name == "cross_entropy" else found


class Relation(Encoding):
    """Relation networks (Sung et al. 2018, arXiv:1711.06025, eq. 1): a network scores each pair of class and query.

    The relation network reads the two feature vectors side by side. A class is the mean of its features rather than their sum (sec. 3.3),
    which a network trained on one shot has never met at five (measured: 95 % at 5-way 1-shot, 52 % at 5-shot). Scores are trained by
    cross-entropy rather than by the squared error of eq. 2, as every learner here is.
    """

    theta_meta = ("backbone.", "relation.")

    def __init__(self, backbone: nn.Module, dim: int, options: RelationOptions) -> None:
        super().__init__(backbone, options.norm)
        self.relation = nn.Sequential(nn.Linear(dim, options.hidden), nn.ReLU(), nn.Linear(options.hidden, 1))
        self.query_part = nn.Linear(dim, options.hidden, bias=False)

    def adapt_features(self, support: Examples) -> Adapted:
        # The first layer of the network on (class, query) is a sum of two parts: the class's is worked out once.
        return {"classes": self.relation[0](class_means(support.x, support.y, support.way))}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        pairs = adapted["classes"].unsqueeze(1) + self.query_part(x).unsqueeze(2)
        scores: Tensor = self.relation[1:](pairs).squeeze(-1)
        return scores


class Local(Encoding):
    """Image-to-class measure of local descriptors (DN4, Li et al. 2019, arXiv:1903.12290, eq. 2), for classes that differ in detail.

    Every place of the feature map is a descriptor; a class's score is the mean, over a query's descriptors, of the sum of cosines to their
    nearest `neighbours` among all descriptors of the class's support, or as many as one map has places. The last `unpooled` blocks keep
    their resolution.
    """

    theta_meta = ("backbone.", "log_scale")

    def __init__(self, backbone: nn.Module, dim: int, options: LocalOptions) -> None:
        super().__init__(backbone, options.norm)
        self.options = options
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)))

    def encode(self, x: Tensor) -> Tensor:
        maps: Tensor = self.backbone.maps(channels_last(x), self.options.unpooled)  # type: ignore[operator]
        return F.normalize(maps.flatten(2).transpose(1, 2), dim=-1)  # [N, places, F]

    def adapt_features(self, support: Examples) -> Adapted:
        return {"descriptors": support.x, "of": one_hot(support.y, support.way, support.x.dtype).transpose(1, 2)}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        held, of = adapted["descriptors"], adapted["of"]
        tasks, examples, places, _ = held.shape
        cosines = x.flatten(1, 2) @ held.flatten(1, 2).transpose(1, 2)  # [T, Q * places, S * places]
        # A class's nearest are among the nearest of each of its examples: most of the map is looked at once, not once a class.
        apart, count = cosines.view(tasks, -1, examples, places), min(places, self.options.neighbours)
        best = apart.amax(-1, keepdim=True) if count == 1 else apart.topk(count, -1).values
        if examples == of.shape[1]:  # one example a class: its nearest are the class's
            each = best.sum(-1).view(tasks, x.shape[1], -1, examples).mean(2)
            return each @ of.transpose(1, 2) * self.log_scale.exp()
        scores = []
        for label in range(of.shape[1]):
            own = of[:, label].bool()[:, None, :, None]
            nearest = torch.where(own, best, -2.0).flatten(2).topk(min(self.options.neighbours, best.shape[-1]), -1).values
            scores.append(nearest.sum(-1).view(tasks, x.shape[1], -1).mean(-1))
        return torch.stack(scores, -1) * self.log_scale.exp()
