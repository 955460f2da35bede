"""Distillation: a student learns a teacher's outputs on tasks, and the tasks' own labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from components.learners.learner import Learner
from components.tasks import TaskBatch


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return tau^2 KL(teacher || student) of the distributions at temperature tau, averaged over queries.

    Logits [T, Q, way]. Hinton et al. 2015, arXiv:1503.02531, sec. 2: the factor tau^2 keeps the gradient's size.
    """
    target = F.log_softmax(teacher / temperature, -1)
    return F.kl_div(F.log_softmax(student / temperature, -1), target, reduction="none", log_target=True).sum(-1).mean() * temperature**2


def distillation_loss(student: Learner, teacher: Learner, batch: TaskBatch, temperature: float, soft_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (1 - a) times the tasks' own loss + a times the soft loss, and the metrics; both networks adapt to the same support by themselves.

    Values have no temperature: their soft loss is the squared difference of the outputs, where the teacher is nearer to the truth than
    the student (a value has no bounds, and a teacher can be far off: Chen et al. 2017, NeurIPS, sec. 3.3).
    """
    logits = student(batch)
    with torch.no_grad():
        target = teacher(batch) / teacher.temperature
    hard, metrics = student.objective.loss_and_metrics(logits, batch.query.y)
    if student.objective.name != "cross_entropy":
        truth, own = batch.query.y.unsqueeze(-1), logits.detach()
        better = (target - truth).square() < (own - truth).square()  # false as well where the teacher's value is not finite
        soft = (logits - torch.where(better, target, own)).square().mean()
        return (1 - soft_weight) * hard + soft_weight * soft, metrics | {"soft_loss": soft.detach()}
    soft = soft_loss(logits, target, temperature)
    agreement = (logits.argmax(-1) == target.argmax(-1)).float().mean()
    return (1 - soft_weight) * hard + soft_weight * soft, metrics | {"soft_loss": soft.detach(), "agreement": agreement}
