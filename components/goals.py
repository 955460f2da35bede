"""What a fit begins with and what it lowers: the learner of a job, and its loss: of tasks, of training classes, of teachers, of members."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from components import backbones
from components.distillation import Distillation, class_features
from components.domains.pool import Pool
from components.draws import seed_of
from components.inputs import InputError
from components.job import FitJob
from components.learners import store
from components.learners.fused import join
from components.learners.gradient import Maml
from components.learners.learner import Learner
from components.learners.policy import Policy
from components.learners.views import once
from components.networks import freeze
from components.objectives import OBJECTIVES

Loss = Callable[[Any], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Goal:
    """What a fit lowers: the loss of a batch, heads that are trained for it and dropped after, and frozen networks that it reads."""

    loss: Loss
    heads: torch.nn.Module = field(default_factory=torch.nn.Module)
    extra: torch.nn.Module = field(default_factory=torch.nn.Module)


def learner_for(job: FitJob, pool: Pool) -> tuple[Learner, store.Spec]:
    """Build the learner that the job trains, from its start where it has one."""
    if job.objective == "base":
        return _base(job, pool)
    if job.objective == "joint":
        return _as_one(job)
    assert job.learner is not None
    shape = pool.input_shape
    spec = store.spec_of(job.learner.name, job.learner.options, job.backbone, shape, job.domain.objective, pool.environment)
    initial = job.seed if job.initial_seed is None else job.initial_seed
    learner = store.build(spec, seed_of(initial, job.learner.name, job.objective))
    if job.start is not None:
        _take_over(learner, spec, job.start, job.objective == "distill")
    if isinstance(learner, Maml):
        learner.checkpoint_inner = job.learner.checkpoint_inner
    return _begun(learner, job, shape), spec


def _base(job: FitJob, pool: Pool) -> tuple[Learner, store.Spec]:
    assert job.base is not None
    shape, asked = pool.input_shape, job.domain.objective
    options: dict[str, Any] = {"classes": len(pool.split("train")) * job.base.turns, "scale": job.base.scale, "ridge": job.base.ridge}
    options |= {"policy": job.base.policy} if asked == "return" else {}
    spec = store.spec_of("theta*", options, job.backbone, shape, asked, pool.environment)
    return _begun(store.build(spec, seed_of(job.seed, "base")), job, shape), spec


def _as_one(job: FitJob) -> tuple[Learner, store.Spec]:
    """Build a mixture of the members, to be trained further together."""
    loaded = [store.load(path) for path in job.members]
    spec = store.fused_spec([s for _, s, _ in loaded], "mixture", list(job.weights), False)
    learner = store.build(spec)
    for member, (trained, _, about) in zip(learner.members, loaded, strict=True):  # type: ignore[arg-type]
        member.load_state_dict(trained.state_dict())
        for name, parameter in member.named_parameters():  # a base's vectors of the training classes take no part in tasks
            parameter.requires_grad_(parameter.requires_grad and not name.endswith("classes"))
        if about.get("frozen"):
            freeze(member.backbone)  # type: ignore[arg-type]
    return learner, spec


def _take_over(learner: Learner, spec: store.Spec, path: str, whole: bool) -> None:
    """Begin with the weights of the learner at path: all of them, as a student that goes on, or what its base has learned."""
    start, start_spec, _ = store.load(path)
    start_spec = start_spec.get("member", start_spec)  # of a learner that looks at several views
    if start_spec.get("backbone") != spec["backbone"]:
        raise InputError(
            f"learner.start needs the same backbone, got {start_spec.get('backbone')} for {spec['backbone']}. Use that backbone, or learner.start=scratch."
        )
    begun = {name: w for name, w in once(start).state_dict().items() if name != "temperature" and (whole or name.startswith(learner.of_base))}
    learner.load_state_dict(learner.state_dict() | begun)
    learner.started()


def _begun(learner: Learner, job: FitJob, shape: tuple[int, ...]) -> Learner:
    """Give the learner's backbone the weights that the user brought, and freeze it where that is asked for."""
    if job.backbone.start is not None:
        learner.backbone.load_state_dict(backbones.load(job.backbone.start, job.backbone, shape))  # type: ignore[union-attr, operator]
        learner.started()
    if job.backbone.frozen:
        freeze(learner.backbone)  # type: ignore[arg-type]
    return learner


def goal_of(job: FitJob, learner: Learner, pool: Pool) -> Goal:
    """Return what the job's fit lowers."""
    if job.objective == "base":
        return Goal(learner.pretrain_loss if isinstance(learner, Policy) else _over_training_classes(job, learner))
    if job.teachers:
        return _taught(job, learner, pool)
    if job.objective == "joint":
        return Goal(_weighted_sum(learner))
    return Goal(learner.meta_loss)


def _over_training_classes(job: FitJob, learner: Learner) -> Loss:
    assert job.base is not None
    smoothing = job.base.label_smoothing
    # One score cannot rank the items of all users: a base learns the values themselves.
    measure = OBJECTIVES["squared_error" if job.domain.objective == "ranking" else job.domain.objective]

    def loss_of(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        outputs, y = learner.outputs(batch[0]), batch[1].unsqueeze(0)  # type: ignore[operator]
        loss, metrics = measure.loss_and_metrics(outputs, y)
        if smoothing > 0:
            loss = (1 - smoothing) * loss - smoothing * outputs.log_softmax(-1).mean()
        return loss, metrics | {"loss": loss.detach()}

    return loss_of


def _taught(job: FitJob, learner: Learner, pool: Pool) -> Goal:
    """Return the goal of a student, or of several that learn as one."""
    assert job.recipe is not None
    teacher, soft = teacher_of(job.teachers, pool.input_shape), job.recipe.soft_weight
    if isinstance(learner, Policy) and isinstance(teacher, Policy):
        return Goal(lambda batch: learner.distil_loss(teacher, batch, soft), extra=teacher)
    classes = known = None
    if job.recipe.class_weight:
        classes = class_features(teacher, pool)
        if job.start is not None or job.members:  # who knows the classes already would unlearn by vectors drawn anew
            known = class_features(learner.eval(), pool)
    with store.initial_weights(seed_of(job.seed, "heads")):
        distillation = Distillation(learner, teacher, job.recipe, pool.input_shape, classes, known)
    return Goal(distillation, distillation, teacher)


def teacher_of(paths: tuple[str, ...], shape: tuple[int, ...]) -> Learner:
    """Load the teacher; several become one fused learner of equal weights."""
    loaded = [once(store.load(path)[0]) for path in paths]
    return loaded[0] if len(loaded) == 1 else join(loaded, "mixture", [1 / len(loaded)] * len(loaded), False, shape).eval()


def _weighted_sum(learner: Learner) -> Loss:
    """Return sum w_i L(y_i, y) over the members of a mixture."""
    members: list[Learner] = list(learner.members)  # type: ignore[arg-type]

    def loss_of(batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        parts = [member.meta_loss(batch) for member in members]
        loss = torch.stack([w * part for w, (part, _) in zip(learner.weights, parts, strict=True)]).sum()  # type: ignore[arg-type]
        name = learner.objective.score_name
        return loss, {"loss": loss.detach(), name: torch.stack([metrics[name] for _, metrics in parts]).mean()}

    return loss_of
