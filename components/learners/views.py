"""A learner that looks at several bent copies of every picture: its features are their mean.

Each picture by itself, so nothing is transductive; it costs as many encodings as there are copies.
"""

import torch
from torch import Tensor, nn

from components.contracts import AugmentSection
from components.domains import images
from components.draws import seed_of
from components.inputs import require
from components.learners.fused import FusedLearner
from components.learners.learner import Adapted, Learner
from components.tasks import Examples


class Views(Learner):
    """Test-time augmentation of an encoder (Krizhevsky et al. 2012, NeurIPS, sec. 4.1, who average predictions; here features).

    The first copy is the picture as it is; the others are bent as training pictures are, by the same draws for every picture. In training it looks
    once: what is drawn then is bent already, anew each time, and every further look costs an encoding.
    """

    draws: Tensor

    def __init__(self, member: Learner, count: int, augment: AugmentSection) -> None:
        super().__init__()
        require(member.encodes, f"views={count} average the features of one encoder for all tasks, which {type(member).__name__} lacks. Set views=1.")
        self.member, self.augment = member, augment
        self.objective = member.objective
        self.encodes, self.centroids, self.theta_fixed = True, member.centroids, member.theta_fixed
        self.theta_meta = tuple(f"member.{name}" for name in member.theta_meta)
        self.tasks_at_once = member.tasks_at_once
        self.register_buffer("draws", images.draws(count - 1, torch.Generator().manual_seed(seed_of("views"))))

    @property
    def backbone(self) -> nn.Module:
        return self.member.backbone  # type: ignore[return-value]

    @property
    def log_scale(self) -> Tensor:
        return self.member.log_scale  # type: ignore[return-value]

    def encode(self, x: Tensor) -> Tensor:
        total = self.member.encode(x)
        if self.training:
            return total
        for draw in self.draws:
            total = total + self.member.encode(images.bend(x, draw.expand(len(x), -1).to(x.device), self.augment))
        return total / (1 + len(self.draws))

    def adapt_features(self, support: Examples) -> Adapted:
        return self.member.adapt_features(support)

    def support_losses(self, support: Examples) -> list[float]:
        return self.member.support_losses(support)

    def predict_features(self, adapted: Adapted, x: Tensor) -> Tensor:
        return self.member.predict_features(adapted, x)


def once(learner: Learner) -> Learner:
    """Return a teacher, or the members that it is fused from, without their further views: lessons are training. Each stays calibrated as it was."""
    if isinstance(learner, Views):
        member = once(learner.member)
        member.temperature.copy_(learner.temperature)
        return member
    if isinstance(learner, FusedLearner):
        learner.members = nn.ModuleList(once(m) for m in learner.members)  # type: ignore[arg-type]
    return learner
