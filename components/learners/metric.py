"""Metric learners: adaptation is one mean a class, prediction a distance."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.learners.learner import Adapted, Learner, class_means
from components.learners.options import ProtoNetOptions
from components.networks import channels_last
from components.tasks import Examples


class ProtoNet(Learner):
    """Prototypical networks (Snell et al. 2017, arXiv:1703.05175, eq. 1-2), with Euclidean or scaled cosine distance.

    The cosine form started from a pre-trained base is Meta-Baseline (Chen et al. 2021, arXiv:2003.04390, sec. 3.2).
    The embedding is itself what meta-learning tunes: theta_meta is the backbone and the scale, and a task changes neither.
    """

    theta_meta = ("backbone.", "log_scale")

    def __init__(self, backbone: nn.Module, dim: int, options: ProtoNetOptions) -> None:
        super().__init__()
        self.backbone = backbone
        self.cosine = options.distance == "cosine"
        self.fixed_norm = options.norm == "running"
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)))

    def train(self, mode: bool = True) -> "ProtoNet":
        super().train(mode)
        if self.fixed_norm:
            self.backbone.eval()
        return self

    def encode(self, x: Tensor) -> Tensor:
        features = self.backbone(channels_last(x))
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


class CosineBase(Learner):
    """The base model theta*: one cosine classifier over all training classes, adapted to a task by nearest centroid.

    Its training loss over the union of all training classes is the named surrogate of sum_i L(f(theta, x_i), y_i) for classification
    (Chen et al. 2019, arXiv:1904.04232, "Baseline++"; Gidaris and Komodakis 2018, arXiv:1804.09458).
    """

    def __init__(self, backbone: nn.Module, dim: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = nn.Parameter(torch.randn(options["classes"], dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(options["scale"])))

    def encode(self, x: Tensor) -> Tensor:
        return F.normalize(self.backbone(channels_last(x)), dim=-1)

    def classify(self, x: Tensor) -> Tensor:
        """Return logits [N, classes] over the training classes for inputs [N, ...]."""
        return self.encode(x) @ F.normalize(self.classes, dim=-1).T * self.log_scale.exp()

    def adapt_features(self, support: Examples) -> Adapted:
        return {"prototypes": F.normalize(class_means(support.x, support.y, support.way), dim=-1)}

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return x @ adapted["prototypes"].transpose(1, 2) * self.log_scale.exp()
