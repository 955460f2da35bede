"""Fusion and distillation against closed forms."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tasks_for_tests import predict, spec, tasks
from torch.nn.functional import cross_entropy, log_softmax, softmax

from components.contracts import InputError
from components.distillation import distillation_loss, soft_loss
from components.fusion import mixture_weights
from components.learners import store
from components.learners.fused import FusedLearner

SHAPE = (1, 28, 28)


def fused(names: list[str], combine: str, weights: list[float], joint: bool = False, seeds: tuple[int, ...] = (0, 1, 2)) -> FusedLearner:
    return FusedLearner([store.build(spec(n), s) for n, s in zip(names, seeds, strict=False)], combine, weights, joint, SHAPE).eval()


@pytest.mark.parametrize("name", ["protonet", "maml", "base"])
@pytest.mark.parametrize("joint", [False, True])
def test_fusing_a_learner_with_itself_is_the_learner(name: str, joint: bool) -> None:
    batch = tasks()
    alone = log_softmax(predict(store.build(spec(name), 0).eval(), batch), -1)
    # As one model each gradient-based member takes its share of the gradient: its step is whole where its weight is one.
    weights = [1.0, 0.0] if joint and name == "maml" else [0.3, 0.7]
    both = predict(fused([name, name], "mixture", weights, joint, seeds=(0, 0)), batch)
    assert torch.allclose(alone, log_softmax(both, -1), atol=1e-4)


def test_concatenating_a_learner_with_itself_keeps_every_cosine() -> None:
    batch = tasks()
    alone = predict(store.build(spec("protonet"), 0).eval(), batch)
    assert torch.allclose(alone, predict(fused(["protonet"] * 2, "concat", [0.4, 0.6], seeds=(0, 0)), batch), atol=1e-4)


def test_a_mixture_is_the_weighted_mean_of_distributions() -> None:
    batch, weights = tasks(), [0.2, 0.5, 0.3]
    names = ["protonet", "maml", "base"]
    members = [softmax(predict(store.build(spec(n), s).eval(), batch), -1) for s, n in enumerate(names)]
    wanted = sum(w * p for w, p in zip(weights, members, strict=True))
    assert torch.allclose(softmax(predict(fused(names, "mixture", weights), batch), -1), wanted, atol=1e-5)


def test_mixture_weights_are_those_of_a_general_optimiser() -> None:
    random = np.random.default_rng(0)
    likelihood = random.beta(2, 1, (3, 400)) * np.array([[0.9], [1.0], [0.8]])
    found = mixture_weights(torch.tensor(likelihood).log()).numpy()
    assert found.sum() == pytest.approx(1, abs=1e-6) and (found >= 0).all()
    loss = lambda w: -np.log(w @ likelihood).mean()  # noqa: E731
    best = minimize(loss, np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, method="SLSQP")
    assert loss(found) == pytest.approx(best.fun, abs=1e-5)
    assert np.allclose(found, best.x, atol=0.02)


def test_a_member_that_is_always_better_gets_all_the_weight() -> None:
    worse = torch.full((1, 200), 0.3).log()
    assert mixture_weights(torch.cat([worse, worse + 0.5]))[1] > 0.999


def test_what_cannot_be_fused_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="shared encoder"):
        fused(["maml", "protonet"], "concat", [0.5, 0.5])
    with pytest.raises(InputError, match="one family"):
        fused(["maml", "protonet"], "mixture", [0.5, 0.5], joint=True)


def test_joint_adaptation_lowers_the_fused_support_loss_more_than_none() -> None:
    batch, learner = tasks(), fused(["maml", "maml"], "mixture", [0.5, 0.5], joint=True)
    adapted = predict(learner, type(batch)(batch.support, batch.support))
    for member in learner.members:
        member.options.test_steps = 0
    before = predict(learner, type(batch)(batch.support, batch.support))
    loss = lambda logits: cross_entropy(logits.flatten(0, 1), batch.support.y.flatten())  # noqa: E731
    assert loss(adapted) < loss(before) - 1e-4


def test_the_soft_loss_is_the_divergence_at_temperature() -> None:
    random = np.random.default_rng(1)
    student, teacher, tau = random.normal(size=(2, 5, 4)), random.normal(size=(2, 5, 4)), 3.0
    p, q = (np.exp(z / tau) / np.exp(z / tau).sum(-1, keepdims=True) for z in (teacher, student))
    wanted = tau**2 * (p * np.log(p / q)).sum(-1).mean()
    assert soft_loss(torch.tensor(student), torch.tensor(teacher), tau).item() == pytest.approx(wanted, rel=1e-9)
    assert soft_loss(torch.tensor(teacher), torch.tensor(teacher), tau).item() == pytest.approx(0, abs=1e-12)


def test_at_high_temperature_the_gradient_matches_logits() -> None:
    # Hinton et al. 2015, sec. 2.1, eq. 4: for zero-mean logits the gradient tends to (z - v) / N (times tau^2 / tau^2).
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    student.requires_grad_()
    soft_loss(student, teacher, 1e4).backward()
    assert torch.allclose(student.grad * 6, (student - teacher).detach() / 4, atol=1e-3)


def test_weight_zero_is_cross_entropy_and_the_teacher_gets_no_gradient() -> None:
    batch, student, teacher = tasks(), store.build(spec("protonet"), 0), store.build(spec("maml"), 1).eval()
    loss, _ = distillation_loss(student, teacher, batch, 4.0, 0.0)
    assert loss.item() == pytest.approx(cross_entropy(student(batch).flatten(0, 1), batch.query.y.flatten()).item(), rel=1e-5)
    distillation_loss(student, teacher, batch, 4.0, 0.7)[0].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


def test_a_teacher_that_is_far_off_or_not_finite_teaches_no_value() -> None:
    batch = tasks(shape=(5,), way=1, shot=6)
    student, teacher = (store.build(spec(name, "squared_error", "mlp")) for name in ("ridge", "maml"))
    hard = student.meta_loss(batch)[0].item()
    for value in (float("inf"), float("nan"), 1e6):
        teacher.forward = lambda batch, value=value: torch.full_like(batch.query.y.unsqueeze(-1), value)
        student.zero_grad()
        loss, metrics = distillation_loss(student, teacher, batch, 1.0, 0.5)
        loss.backward()
        assert metrics["soft_loss"] == 0 and loss.item() == pytest.approx(hard / 2, rel=1e-5)
        assert all(torch.isfinite(p.grad).all() for p in student.parameters())
    teacher.forward = lambda batch: batch.query.y.unsqueeze(-1)  # knows the truth
    assert distillation_loss(student, teacher, batch, 1.0, 1.0)[0].item() == pytest.approx(hard, rel=1e-5)
