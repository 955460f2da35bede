"""Gradient-based learners against finite differences, hand-written loops and limits that are known."""

import copy
from dataclasses import replace

import pytest
import torch
from tasks_for_tests import MLP, OPTIONS, gradient, spec, tasks
from torch import nn

from components.gradients import conjugate_gradients, in_turn, recomputed, solve
from components.learners import store
from components.learners.gradient import Imaml, Maml
from components.learners.learner import Learner
from components.tasks import Examples, TaskBatch

PLAIN = {name: options | {"scale": 0.0} for name, options in OPTIONS.items() if "inner_lr" in options}  # the papers' networks
SECOND_ORDER = ["maml", "anil", "meta_sgd", "mamlpp", "meta_curvature", "alfa"]


class Smooth(nn.Module):
    """A small network in float64 without kinks: differences converge."""

    tasks_at_once = 1_000

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x

    def per_task(self, weights, x: torch.Tensor) -> torch.Tensor:
        for i in range(2):
            x = torch.tanh(x @ weights[f"layers.{i}.weight"].transpose(1, 2) + weights[f"layers.{i}.bias"].unsqueeze(1))
        return x


def smooth(name: str, objective: str = "cross_entropy", seed: int = 0, **options) -> Maml:
    from components.learners.options import family
    from components.objectives import OBJECTIVES

    of = family(name)
    module = __import__(of.path, fromlist=[of.kind])
    with store.initial_weights(seed):
        made = getattr(module, of.kind)(Smooth(), 4, of.options(**PLAIN[name] | {"inner_steps": 2, "test_steps": 2, "inner_lr": 0.3} | options)).double()
        made.objective = OBJECTIVES[objective]
        made.started()
        made = made.double()
        if hasattr(made, "head"):
            nn.init.normal_(made.head)
        if name == "alfa":
            made.generator[1] = made.generator[3] = nn.Softplus()
        for parameter in made.parameters():  # away from zeros and identities, where a wrong term would not show
            parameter.data += 0.05 * torch.randn_like(parameter)
    return made.train()


def vectors(**more) -> TaskBatch:
    return tasks(shape=(5,), dtype=torch.float64, **more)


def differences(learner: Learner, batch: TaskBatch, step: float = 1e-3) -> dict[str, list[tuple[int, float]]]:
    """Return central differences of fourth order of the meta-loss at some coordinates of every parameter."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name, parameter in learner.named_parameters():
        flat = parameter.data.view(-1)
        for i in range(0, len(flat), max(1, len(flat) // 4)):
            was, losses = flat[i].item(), []
            for distance in (1, -1, 2, -2):
                flat[i] = was + distance * step
                losses.append(learner.meta_loss(batch)[0].item())
            flat[i] = was
            found.setdefault(name, []).append((i, (8 * (losses[0] - losses[1]) - (losses[2] - losses[3])) / (12 * step)))
    return found


@pytest.mark.parametrize("name", SECOND_ORDER)
@pytest.mark.parametrize("objective", ["cross_entropy", "squared_error", "ranking"])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_the_second_order_meta_gradient_equals_finite_differences(name: str, objective: str, checkpoint: bool, scale: float) -> None:
    options = {"scale": scale} | ({"annealing": 0.0, "multi_step_loss": not checkpoint} if name == "mamlpp" else {})
    learner = smooth(name, objective, inner_steps=3, inner_lr=0.1, **options)
    learner.checkpoint_inner = checkpoint
    batch = vectors() if objective == "cross_entropy" else vectors(way=1, shot=4)
    found = gradient(learner, batch)
    largest = max(g.abs().max().item() for g in found.values())
    for parameter, entries in differences(learner, batch).items():
        for i, value in entries:
            assert value == pytest.approx(found[parameter].view(-1)[i].item(), abs=1e-6 * largest), parameter


def by_hand(learner: Maml, batch: TaskBatch, rate: float, steps: int) -> dict[str, torch.Tensor]:
    """First-order MAML: one task after the other, by plain SGD on copies."""
    total = {n: torch.zeros_like(p) for n, p in learner.backbone.named_parameters()}
    for t in range(3):
        net = copy.deepcopy(learner.backbone)
        head, bias = learner.head.detach().expand(3, -1).clone(), learner.head_bias.detach().expand(3).clone()
        optimizer = torch.optim.SGD([*net.parameters(), head.requires_grad_(), bias.requires_grad_()], rate)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch.support.x[t]) @ head.T + bias, batch.support.y[t]).backward()
            optimizer.step()
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch.query.x[t]) @ head.T + bias, batch.query.y[t]).backward()
        for n, p in net.named_parameters():
            total[n] += p.grad / 3
    return total


def test_the_first_order_gradient_is_that_of_the_adapted_weights() -> None:
    learner, batch = smooth("fomaml"), vectors()
    found = gradient(learner, batch)
    for name, value in by_hand(learner, batch, 0.3, 2).items():
        assert torch.allclose(found[f"backbone.{name}"], value, rtol=1e-9, atol=1e-12)


def test_first_and_second_order_differ_but_agree_on_the_loss() -> None:
    batch, first, second = vectors(), smooth("fomaml"), smooth("maml")
    assert first.meta_loss(batch)[0].item() == pytest.approx(second.meta_loss(batch)[0].item(), rel=1e-12)
    name = "backbone.layers.0.weight"
    assert not torch.allclose(gradient(first, batch)[name], gradient(second, batch)[name], rtol=1e-3)


def equal_start(name: str, **options) -> Maml:
    """The learner with MAML's weights, its own rule as it starts out."""
    learner = store.build(store.spec_of(name, PLAIN[name] | {"inner_lr": 0.3} | options, MLP, (5,), "cross_entropy")).double().train()
    maml = store.build(store.spec_of("maml", PLAIN["maml"], MLP, (5,), "cross_entropy"), 5).double()
    learner.load_state_dict(maml.state_dict(), strict=False)
    nn.init.constant_(learner.head, 0.1)
    return learner


@pytest.mark.parametrize("name", ["meta_sgd", "meta_curvature", "alfa", "mamlpp"])
def test_a_learned_rule_begins_as_maml(name: str) -> None:
    options = {"annealing": 0.0, "multi_step_loss": False} if name == "mamlpp" else {}
    batch, maml, learner = vectors(), equal_start("maml"), equal_start(name, **options)
    wanted, found = gradient(maml, batch), gradient(learner, batch)
    for parameter, value in wanted.items():
        assert torch.allclose(found[parameter], value, rtol=1e-5, atol=1e-9), parameter  # rates are stored in single precision


def test_an_lstm_gate_that_forgets_nothing_and_writes_at_a_rate_is_gradient_descent() -> None:
    batch, maml, learner = vectors(), equal_start("fomaml"), equal_start("lstm")
    nn.init.zeros_(learner.gates["out"].weight)
    learner.gates["out"].bias.data[0] = 60.0  # sigmoid = 1
    a, b = (x.adapt(batch.support) for x in (maml, learner))
    for name, value in a.items():
        assert torch.allclose(b[name], value, rtol=1e-9), name


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_a_task_adapts_alike_with_and_without_the_outer_graph(name: str, scale: float) -> None:
    learner, batch = smooth(name, scale=scale), vectors()
    with torch.enable_grad():
        seen = learner.adapt(batch.support)
    with torch.no_grad():
        unseen = learner.adapt(batch.support)
    for key, value in seen.items():
        assert torch.allclose(unseen[key], value, rtol=1e-9), f"{key}: an inner step moves each tensor by its own part of the gradient"


def test_adapting_with_zero_steps_changes_nothing() -> None:
    for name in SECOND_ORDER:
        learner = smooth(name, inner_steps=0, test_steps=0)
        support = vectors().support
        adapted = learner.adapt(support)
        for key, start in learner.start(support).items():
            assert torch.equal(adapted[key], start)


def test_anil_moves_the_head_alone_and_its_one_step_is_the_closed_form() -> None:
    learner, batch = smooth("anil", inner_steps=1, inner_lr=0.5), vectors()
    adapted = learner.adapt(batch.support)
    assert set(adapted) == {"head", "head_bias"}
    features = learner.backbone(batch.support.x[0]).detach()
    head, bias = learner.head.detach().expand(3, -1), learner.head_bias.detach().expand(3)
    error = (features @ head.T + bias).softmax(-1) - nn.functional.one_hot(batch.support.y[0], 3)
    assert torch.allclose(adapted["head"][0], head - 0.5 * error.T @ features / len(features), rtol=1e-12)
    assert torch.allclose(adapted["head_bias"][0], bias - 0.5 * error.mean(0), rtol=1e-12)


def test_reptile_moves_theta_towards_the_adapted_weights() -> None:
    learner, batch = smooth("reptile", inner_steps=3), vectors()
    both = Examples(torch.cat([batch.support.x, batch.query.x], 1), torch.cat([batch.support.y, batch.query.y], 1), 3)
    with torch.no_grad():
        phi = learner.adapt(both)
    theta = {n: p.detach().clone() for n, p in learner.backbone.named_parameters()}
    epsilon = 0.25
    optimizer = torch.optim.SGD(learner.parameters(), epsilon)
    learner.meta_loss(batch)[0].backward()
    optimizer.step()
    for name, p in learner.backbone.named_parameters():
        assert torch.allclose(p, theta[name] + epsilon * (phi[name].mean(0) - theta[name]), rtol=1e-12), name


@pytest.mark.parametrize("scale, rate, proximal, near", [(0.0, 0.5, 1.0, 1e-7), (8.0, 0.05, 8.0, 1e-5)])  # conjugate gradients end at a residual of 1e-5
def test_the_implicit_gradient_converges_to_the_unrolled_one_as_steps_grow(scale: float, rate: float, proximal: float, near: float) -> None:
    batch, errors = vectors(), []
    for steps in (5, 20, 80, 320):
        learner = smooth("imaml", inner_steps=steps, inner_lr=rate, proximal=proximal, cg_steps=60, scale=scale)
        implicit = gradient(learner, batch)
        learner.zero_grad()
        Maml.meta_loss(learner, batch)[0].backward()  # through every step
        unrolled = {n: p.grad for n, p in learner.named_parameters()}
        errors.append(max((implicit[n] - g).abs().max().item() for n, g in unrolled.items()))
    assert errors[0] > errors[1] > errors[2] and errors[-1] < near


def test_the_implicit_inner_problem_is_solved() -> None:
    learner, batch = smooth("imaml", inner_steps=400, inner_lr=0.5, proximal=1.0), vectors()
    assert isinstance(learner, Imaml)
    phi = {k: v.detach().requires_grad_() for k, v in learner.adapt(batch.support).items()}
    left = torch.autograd.grad(learner.inner_loss(phi, batch.support, 0).sum(), list(phi.values()))
    assert max(g.abs().max().item() for g in left) < 1e-8


def test_conjugate_gradients_solve_many_systems_and_pass_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 7, 7, generator=generator, dtype=torch.float64)
    a = root @ root.transpose(1, 2) + torch.eye(7)
    b = torch.randn(4, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    found = solve(lambda v: torch.einsum("tij,tj->ti", a, v), b, 50)
    assert torch.allclose(found, torch.linalg.solve(a, b), rtol=1e-8)
    (g,) = torch.autograd.grad(found.sum(), b)
    assert torch.allclose(g, torch.linalg.solve(a, torch.ones(4, 7).double()), rtol=1e-8)
    indefinite = conjugate_gradients(lambda v: -v, b.detach(), 5)
    assert torch.isfinite(indefinite).all()


@pytest.mark.parametrize("name", ["maml", "fomaml", "meta_sgd", "alfa"])
def test_tasks_in_turn_give_the_gradient_of_all_at_once(name: str) -> None:
    learner, batch = smooth(name), vectors()
    wanted = gradient(learner, batch)
    for size in (1, 2):
        learner.zero_grad()
        loss, metrics = in_turn(learner.meta_loss, list(learner.parameters()), batch, size)
        loss.backward()
        assert loss.item() == pytest.approx(metrics["loss"].item())
        for parameter, value in learner.named_parameters():
            assert torch.allclose(value.grad, wanted[parameter], rtol=1e-9, atol=1e-14), parameter


def test_recomputing_keeps_the_value_and_the_gradient() -> None:
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    run = lambda tensors: [torch.tanh(tensors[0] @ weight)]  # noqa: E731
    wanted = torch.autograd.grad(run([x])[0].square().sum(), [x, weight])
    found = torch.autograd.grad(recomputed(run, [x], [weight])[0].square().sum(), [x, weight])
    assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))


def test_mamlpp_weighs_all_steps_at_first_and_the_last_alone_later() -> None:
    learner = smooth("mamlpp", inner_steps=4)
    assert learner.step_weights() == [0.25] * 4
    learner.progress = 0.2
    shares = learner.step_weights()
    assert sum(shares) == pytest.approx(1) and shares[-1] > shares[0]
    learner.progress = 0.5
    assert learner.step_weights() == [0, 0, 0, 1]
    assert not learner.first_order()
    learner.progress = 0.1
    assert learner.first_order() == (learner.options.annealing > 0.1)


def test_per_step_statistics_are_kept_step_by_step_and_fixed_at_test() -> None:
    learner = store.build(spec("mamlpp", norm="per_step", multi_step_loss=False)).train()
    before = {n: b.clone() for n, b in learner.named_buffers() if n.startswith("step/")}
    learner.progress = 1.0
    learner.meta_loss(tasks())[0].backward()
    moved = [n for n, b in learner.named_buffers() if n.startswith("step/") and not torch.allclose(b, before[n])]
    assert len(moved) == 4 and all((dict(learner.named_buffers())[n][i] != before[n][i]).any() for n in moved for i in range(learner.options.inner_steps + 1))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in learner.named_parameters() if n.startswith("norms."))
    learner.eval()
    still = {n: b.clone() for n, b in learner.named_buffers()}
    learner.adapt(tasks().support)
    assert all(torch.equal(b, still[n]) for n, b in learner.named_buffers())


@pytest.mark.parametrize("objective", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("name", ["maml", "fomaml"])
@pytest.mark.parametrize("widths", [[7], [7, 5], [6, 5, 4]])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_descent_by_hand_is_what_autograd_finds(objective: str, name: str, widths: list[int], activation: str) -> None:
    made = store.spec_of(name, PLAIN[name] | {"inner_steps": 3, "inner_lr": 0.2}, replace(MLP, widths=widths, activation=activation), (5,), objective)
    learner = store.build(made).double().train()
    nn.init.normal_(learner.head)
    batch = vectors() if objective == "cross_entropy" else vectors(way=1, shot=6)
    by_hand = gradient(learner, batch)
    adapted = learner.adapt(batch.support)
    learner.plain = False
    for parameter, value in gradient(learner, batch).items():
        assert torch.allclose(by_hand[parameter], value, rtol=1e-10, atol=1e-13), parameter
    for key, value in learner.adapt(batch.support).items():
        assert torch.allclose(adapted[key], value, rtol=1e-12), key


def test_slopes_and_bends_are_derivatives_of_the_losses() -> None:
    from components.objectives import OBJECTIVES

    for name in ("cross_entropy", "squared_error"):
        objective, way = OBJECTIVES[name], 4 if name == "cross_entropy" else 1
        outputs, direction = (torch.randn(2, 6, way).double().requires_grad_() for _ in range(2))
        targets = torch.randint(0, 4, (2, 6)) if way > 1 else torch.randn(2, 6).double()
        (slope,) = torch.autograd.grad(objective.loss(outputs, targets).sum(), outputs, create_graph=True)
        assert torch.allclose(objective.slope(outputs, targets), slope)
        (bend,) = torch.autograd.grad((slope * direction.detach()).sum(), outputs)
        assert torch.allclose(objective.bend(outputs, targets, direction), bend)


def test_batched_weights_of_a_perceptron_equal_one_network_after_another() -> None:
    from components.networks import Mlp

    net = Mlp(replace(MLP, widths=[7, 5]), (5,)).double()
    weights = {n: torch.randn(3, *p.shape, dtype=torch.float64) for n, p in net.named_parameters()}
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    wanted = torch.stack([torch.func.functional_call(net, {k: v[t] for k, v in weights.items()}, (x[t],)) for t in range(3)])
    assert torch.allclose(net.per_task(weights, x), wanted)


@pytest.mark.parametrize("name", ["maml", "meta_sgd", "mamlpp", "alfa", "lstm"])
def test_the_losses_told_are_those_of_the_steps_that_adaptation_takes(name: str) -> None:
    learner, task = store.build(spec(name, kind="mlp")).eval(), tasks(shape=(5,))
    losses = learner.support_losses(task.support)
    assert len(losses) == learner.steps() + 1
    last = learner.inner_loss(learner.adapt_features(task.support), task.support, learner.steps())
    assert losses[-1] == pytest.approx(last.mean().item(), rel=1e-6)


@pytest.mark.parametrize("name", ["maml", "meta_sgd", "mamlpp", "meta_curvature"])
def test_steps_that_grow_instead_of_shrinking_are_not_what_a_task_is_left_with(name: str) -> None:
    more = {"per_step_rates": False} if name == "mamlpp" else {}
    learner, batch = smooth(name, "squared_error", inner_lr=0.4, test_steps=12, **more).eval(), vectors()
    size = torch.tensor([0.01, 40.0, 0.01], dtype=torch.float64)[:, None, None]  # one task of three for which the rate is short enough
    support = Examples(size * batch.support.x, batch.support.y, batch.support.way)
    with torch.no_grad():
        weights, losses = learner.start(support), []
        memory = learner.memory(weights)
        for index in range(13):
            losses.append(learner.inner_loss(weights, support, index))
            weights, memory = learner.descend(weights, memory, support, range(index, index + 1), False)
        found = learner.inner_loss(learner.adapt(support), support, 12)
    steps = torch.stack(losses)
    lost = steps[-1] > 10
    assert lost.tolist() == [True, False, True]
    assert torch.allclose(found, torch.where(lost, steps.min(0).values, steps[-1]))
