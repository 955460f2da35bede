"""Distillation: a student learns a teacher's outputs on tasks, and what else its recipe names; afterwards it adapts by itself."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.domains import images
from components.domains.pool import Pool
from components.inputs import require
from components.learners.learner import Adapted, Learner, class_means
from components.learning import RecipeSection
from components.tasks import Examples, Lesson

Metrics = dict[str, Tensor]


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return tau^2 KL(teacher || student) of the distributions at temperature tau, averaged over queries.

    Logits [T, Q, way]. Hinton et al. 2015, arXiv:1503.02531, sec. 2: the factor tau^2 keeps the gradient's size.
    """
    target = F.log_softmax(teacher / temperature, -1)
    return F.kl_div(F.log_softmax(student / temperature, -1), target, reduction="none", log_target=True).sum(-1).mean() * temperature**2


def value_loss(student: Tensor, teacher: Tensor, truth: Tensor | None) -> Tensor:
    """Return the squared difference of the outputs [T, Q, 1], where the teacher is nearer to the truth [T, Q] than the student.

    A value has no bounds, and a teacher can be far off (Chen et al. 2017, NeurIPS, sec. 3.3). Without a truth, wherever it is finite.
    """
    own, trusted = student.detach(), torch.isfinite(teacher)
    if truth is not None:
        trusted = trusted & ((teacher - truth.unsqueeze(-1)).square() < (own - truth.unsqueeze(-1)).square())
    return (student - torch.where(trusted, teacher, own)).square().mean()


def rank_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross-entropy of which of two items is the better one, over all pairs of a task, to what the teacher thinks of them.

    Scores [T, Q, 1], whose differences are log-odds (Burges et al. 2005, ICML, eq. 3): neither scale nor offset of a score says how good it is.
    """
    first, second = torch.triu_indices(student.shape[1], student.shape[1], 1, device=student.device)
    own, theirs = (scores[:, first, 0] - scores[:, second, 0] for scores in (student, teacher))
    return F.binary_cross_entropy_with_logits(own, theirs.sigmoid())


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss between the distances within a task, each network's divided by their mean.

    Embeddings [T, N, D] and [T, N, E]. Park et al. 2019, arXiv:1904.05068, eq. 4-5 (distance-wise): no projection is needed.
    """

    def distances(x: Tensor) -> Tensor:
        inner = x @ x.transpose(1, 2)
        square = inner.diagonal(dim1=1, dim2=2)
        # The square root has no slope at zero, where a picture meets itself.
        apart = (square.unsqueeze(1) + square.unsqueeze(2) - 2 * inner).clamp_min(1e-12).sqrt()
        off = ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        pairs = apart[:, off]
        return pairs / pairs.mean(1, keepdim=True)

    return F.smooth_l1_loss(distances(student), distances(teacher))


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of 2 - 2 cosine between projected and wanted features [..., E].

    Romero et al. 2015, arXiv:1412.6550, eq. 3, on features of length one: their squared distance.
    """
    return 2 - 2 * F.cosine_similarity(student, teacher, dim=-1).mean()


class Distillation(nn.Module):
    """The loss of a student on lessons, and the heads that only its training needs: a projection, and vectors of the training classes.

    Teachers and student adapt by themselves; a teacher may have more and clearer examples than its student (Ye, Ming, Zhan and Chao 2021,
    arXiv:2107.00197: a strong classifier of many examples teaches one of few). Several teachers are one fused learner of equal weights.
    """

    def __init__(
        self, student: Learner, teacher: Learner, recipe: RecipeSection, shape: tuple[int, ...], classes: Tensor | None, known: Tensor | None = None
    ) -> None:
        """`classes` [C, E]: the teacher's mean feature of every training class, where the recipe's `class_weight` is on.

        `known` [C, D]: the student's own, where its vectors of the classes begin (Qi, Brown and Lowe 2018, arXiv:1712.07136); drawn without.
        """
        super().__init__()
        self.recipe = recipe
        self._student, self._teacher = [student], [teacher]  # not modules of this one: they are trained and kept elsewhere
        self.heads = nn.ModuleDict()
        if not (recipe.class_weight or recipe.feature_weight or recipe.relation_weight):
            return
        sizes = {role: feature_size(learner, shape) for role, learner in (("the student", student), ("its teacher", teacher))}
        for role, size in sizes.items():
            require(size is not None, f"class_weight, feature_weight and relation_weight need one encoder for all tasks, which {role} lacks. Set them to 0.")
        if recipe.feature_weight:
            self.heads["projection"] = nn.Linear(sizes["the student"] or 0, sizes["its teacher"] or 0)
        if recipe.class_weight:
            assert classes is not None
            self.register_buffer("wanted", F.normalize(classes, dim=-1))
            self.heads["classes"] = nn.Linear(sizes["the student"] or 0, len(classes), bias=False)
            if known is not None:
                self.heads["classes"].weight.data.copy_(F.normalize(known, dim=-1))  # type: ignore[operator, union-attr]

    def forward(self, lesson: Lesson) -> tuple[Tensor, Metrics]:
        """Return the loss of the student on T tasks, and the metrics."""
        recipe, student, teacher = self.recipe, self._student[0], self._teacher[0]
        asked, labelled = torch.cat([lesson.query.x, lesson.unlabelled], 1), lesson.query.y.shape[1]
        outputs, own = _answer(student, lesson.support, asked)
        with torch.no_grad():
            target, theirs = _answer(teacher, lesson.taught, asked)
            target = target / teacher.temperature
        hard, metrics = student.objective.loss_and_metrics(outputs[:, :labelled], lesson.query.y)
        metrics["hard_loss"] = metrics["loss"]
        if student.objective.name == "cross_entropy":
            soft = soft_loss(outputs, target, recipe.temperature)
            metrics["agreement"] = (outputs.argmax(-1) == target.argmax(-1)).float().mean()
        elif student.objective.name == "ranking":
            soft = rank_loss(outputs, target)
        else:
            soft = value_loss(outputs[:, :labelled], target[:, :labelled], lesson.query.y)
            if further := lesson.unlabelled.shape[1]:  # one mean over all that is asked
                soft = (labelled * soft + further * value_loss(outputs[:, labelled:], target[:, labelled:], None)) / (labelled + further)
        metrics["soft_loss"] = soft.detach()
        loss = (1 - recipe.soft_weight) * hard + recipe.soft_weight * soft
        shots = lesson.support.x.shape[1]
        more = lesson.taught.x.shape[1] - shots
        theirs = torch.cat([theirs[:, :shots], theirs[:, shots + more :]], 1)  # of the inputs that both have seen
        for name, weight in (("class", recipe.class_weight), ("feature", recipe.feature_weight), ("relation", recipe.relation_weight)):
            if weight:
                part = getattr(self, f"_{name}_loss")(own.flatten(2), theirs.flatten(2))
                metrics[f"{name}_loss"] = part.detach()
                loss = loss + weight * part
        return loss, metrics | {"loss": loss.detach()}

    def _class_loss(self, own: Tensor, theirs: Tensor) -> Tensor:
        """Soft outputs over the training classes, both by cosine: the teacher's to its class means (Tian et al. 2020, arXiv:2003.11539, sec. 3.3)."""
        vectors: Tensor = self.heads["classes"].weight  # type: ignore[assignment]
        scale = 16.0  # of both cosines
        target = F.normalize(theirs, dim=-1) @ self.wanted.T * scale  # type: ignore[operator]
        return soft_loss(F.normalize(own, dim=-1) @ F.normalize(vectors, dim=-1).T * scale, target, 1.0)

    def _feature_loss(self, own: Tensor, theirs: Tensor) -> Tensor:
        return feature_loss(self.heads["projection"](own), theirs)

    def _relation_loss(self, own: Tensor, theirs: Tensor) -> Tensor:
        return relation_loss(own, theirs)


def _answer(learner: Learner, support: Examples, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Adapt to a support and answer queries [T, Q, ...]; return outputs [T, Q, out] and the features of both, encoded in one pass."""
    shots = support.x.shape[1]
    features = learner.encode_tasks(torch.cat([support.x, asked], 1))
    adapted: Adapted = learner.adapt_features(Examples(features[:, :shots], support.y, support.way))
    return learner.predict_features(adapted, features[:, shots:]), features


def feature_size(learner: Learner, shape: tuple[int, ...]) -> int | None:
    """Return how many numbers the learner's encoder makes of an input of `shape`; None where tasks share no encoder."""
    if not learner.encodes:
        return None
    blank = torch.zeros(1, *shape, device=learner.temperature.device)
    was = learner.training
    with torch.no_grad():
        features = learner.eval().encode(blank)
    learner.train(was)
    return features.numel()


@torch.no_grad()
def class_features(teacher: Learner, pool: Pool, size: int = 1000) -> Tensor:
    """Return the teacher's mean feature [C, E] of every training class, from all of its items, `size` at a time."""
    own = pool.split("train")
    rows, labels = pool.items(own), torch.arange(len(own)).repeat_interleave(torch.from_numpy(pool.counts[own]))
    parts = (images.prepare(torch.from_numpy(np.ascontiguousarray(pool.inputs[rows[i : i + size]]))) for i in range(0, len(rows), size))
    features = torch.cat([teacher.encode(part).flatten(1) for part in parts])
    return class_means(features[None], labels[None], len(own))[0]
