"""Control: the arithmetic of policies against torch.distributions, learning against slopes, fused and distilled policies, and the whole chain."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sources import Chain
from test_environments import rows
from torch import distributions
from workspace import Workspace

from components.contracts import SplitsSection
from components.domains import control
from components.domains.options import ControlOptions
from components.domains.pool import open_pool, write_pool
from components.environments import ENVIRONMENTS
from components.inputs import InputError
from components.learners import store
from components.learners.fused import join
from components.learners.learner import Learner
from components.learners.options import GradientPolicyOptions, MemoryPolicyOptions, PolicyOptions
from components.learners.policy import ContextPolicy, MemoryPolicy, Played, advantage
from components.learners.policy_gradient import GradientPolicy
from components.learning import BackboneSection
from components.mixing import return_weights
from components.networks import Mlp
from components.objectives import OBJECTIVES
from components.tasks import Examples, TaskBatch
from components.tasksets import TaskSpec, write_tasksets
from components.validation import Validation, validate

PLAY = {"episodes": 3, "discount": 0.9, "gae": 0.8, "updates": 2, "std": 0.1, "explore": 0.2}


def policy(kind: str = "navigation", memory: bool = True, seed: int = 0, moves: str = "context", first_order: bool = False) -> ContextPolicy:
    environment, backbone = ENVIRONMENTS[kind], BackboneSection("mlp", [8, 8], [], 0, "flatten", "batch", "tanh")
    with store.initial_weights(seed):
        net = Mlp(backbone, (environment.observation + 16,))
        if memory:
            made: ContextPolicy = MemoryPolicy(net, net.dim, MemoryPolicyOptions(**PLAY, belief=1.0, width=6, questions=2, every=1), environment)
        else:
            options = GradientPolicyOptions(**PLAY, belief=0.0, inner_lr=0.3, first_order=first_order, moves=moves)
            made = GradientPolicy(net, net.dim, options, environment)
        torch.nn.init.normal_(made.head.weight, std=0.3)
    return made


def test_a_context_may_turn_what_is_done_into_its_opposite() -> None:
    learner, context = policy("cartpole"), torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in learner.backbone.layers[:1]:
            layer.weight[:, 4:] = 0  # the context as an input alone cannot do this
        learner.gate.weight.copy_(-2 * context.expand_as(learner.gate.weight) / context.square().sum())
        seen = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1))
        before, after = (learner.act({"context": c}, seen) for c in (torch.zeros(1, 16), context))
    assert torch.allclose(after, -before, atol=1e-5) and before.abs().max() > 0.1


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_an_episode_goes_the_same_in_any_company(kind: str) -> None:
    learner, asked = policy(kind), rows(kind, 3, 4)
    whole = learner.play(learner.begin(3), asked)
    alone = learner.play(learner.begin(1), asked[1:2, 2:])
    length = alone.reward.shape[2]
    assert torch.allclose(whole.returns()[1:2, 2:], alone.returns(), atol=1e-4)
    seen, wanted = whole.observation[1:2, 2:, :length], alone.observation
    assert torch.allclose(seen * alone.running.unsqueeze(-1), wanted * alone.running.unsqueeze(-1), atol=1e-4)


def test_distributions_are_those_of_torch() -> None:
    torch.manual_seed(0)
    told, wanted, action = torch.randn(5, 4), torch.randn(5, 4), torch.randn(5, 2)
    learner = policy("navigation")
    normals = [distributions.Independent(distributions.Normal(t[:, :2], t[:, 2:].exp()), 1) for t in (told, wanted)]
    assert torch.allclose(learner.log_prob(told, action), normals[0].log_prob(action), atol=1e-5)
    assert torch.allclose(learner.divergence(told, wanted), distributions.kl_divergence(normals[1], normals[0]), rtol=1e-4)
    learner = policy("cartpole")
    logits, goal, choice = torch.randn(5, 2), torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    kinds = [distributions.Categorical(logits=t) for t in (logits, goal)]
    assert torch.allclose(learner.log_prob(logits, choice), kinds[0].log_prob(choice), atol=1e-6)
    assert torch.allclose(learner.divergence(logits, goal), distributions.kl_divergence(kinds[1], kinds[0]), atol=1e-6)
    many = learner.sample(logits[:1].expand(1, 100_000, 2), torch.randn(1, 100_000, 2))
    assert many.float().mean().item() == pytest.approx(kinds[0].probs[0, 1].item(), abs=0.005)
    explored = learner.exploring(torch.tensor([[[0.0, 50.0]]])).softmax(-1)[0, 0]
    assert explored.tolist() == pytest.approx([0.1, 0.9], abs=1e-5)  # a fifth of choices at random


def test_advantages_equal_a_loop_over_steps() -> None:
    random, options = np.random.default_rng(2), PolicyOptions(**PLAY, belief=0.0)
    observation, reward = random.normal(size=(1, 3, 6, 2)), random.normal(size=(1, 3, 6))
    length = [6, 4, 2]
    running = np.array([[[t < n for t in range(6)] for n in length]])
    told = [torch.tensor(a) for a in (observation, observation, reward, running, reward)]
    found = advantage(Played(*told), options)[0].numpy()
    features, returns, where = [], [], []
    for e, n in enumerate(length):
        ahead = 0.0
        for t in range(n - 1, -1, -1):
            ahead = reward[0, e, t] + options.discount * ahead
            o, time = observation[0, e, t], t / 100
            features.append([*o, *(o**2), time, time**2, time**3])
            returns.append(ahead)
            where.append((e, t))
    x = np.array(features)
    expected = dict(zip(where, make_pipeline(StandardScaler(), Ridge(alpha=1.0)).fit(x, returns).predict(x), strict=True))
    gain = np.zeros((3, 6))
    for e, n in enumerate(length):
        ahead = 0.0
        for t in range(n - 1, -1, -1):
            surprise = reward[0, e, t] + options.discount * expected.get((e, t + 1), 0.0) - expected[e, t]
            ahead = surprise + options.discount * options.gae * ahead
            gain[e, t] = ahead
    own = gain[running[0]]
    assert found[running[0]] == pytest.approx((own - own.mean()) / own.std(), rel=1e-4, abs=1e-6)
    assert not found[~running[0]].any()


def test_a_memory_reads_rounds_in_any_order_and_in_any_pieces() -> None:
    learner = policy("cartpole")
    first, second = (learner.play(learner.begin(2), rows("cartpole", 2, 3, start)) for start in (0, 3))
    with torch.no_grad():
        one, other = ([learner.learn(learner.learn(learner.begin(2), a), b)["context"]] for a, b in ((first, second), (second, first)))
        length = max(first.reward.shape[2], second.reward.shape[2])

        def grown(part: torch.Tensor) -> torch.Tensor:
            shape = list(part.shape)
            shape[2] = length - shape[2]
            return torch.cat([part, part.new_zeros(shape)], 2)

        both = Played(*(torch.cat([grown(a), grown(b)], 1) for a, b in zip(vars(first).values(), vars(second).values(), strict=True)))
        whole = learner.learn(learner.begin(2), both)["context"]
    assert torch.allclose(one[0], other[0], atol=1e-5) and torch.allclose(one[0], whole, atol=1e-5)


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_fused_policies_act_by_the_weighted_product(kind: str) -> None:
    members: list[Learner] = [policy(kind, seed=s) for s in (0, 1)]
    twice = join([members[0], members[0]], "mixture", [0.5, 0.5], False, (3,))
    pooled = join(members, "mixture", [0.25, 0.75], False, (3,))
    asked = torch.randn(2, 5, ENVIRONMENTS[kind].observation, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = [m.act(m.begin(2), asked) for m in members]  # type: ignore[operator]
        again = twice.act(twice.begin(2), asked)  # type: ignore[operator]
        told = pooled.act(pooled.begin(2), asked)  # type: ignore[operator]
    if ENVIRONMENTS[kind].discrete:
        assert torch.allclose(again, alone[0].log_softmax(-1), atol=1e-5)
        product = alone[0].softmax(-1) ** 0.25 * alone[1].softmax(-1) ** 0.75
        assert torch.allclose(told.exp(), product / product.sum(-1, keepdim=True), atol=1e-5)
        return
    assert torch.allclose(again, alone[0], atol=1e-5)
    place = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    means, spreads = ([a.double().chunk(2, -1)[part][0, 0, 0] for a in alone] for part in (0, 1))
    logs = [distributions.Normal(m, s.exp()).log_prob(place) for m, s in zip(means, spreads, strict=True)]
    density = (0.25 * logs[0] + 0.75 * logs[1]).softmax(0)  # on a grid, without the closed form
    mean = (density * place).sum()
    assert told[0, 0, 0].item() == pytest.approx(mean.item(), abs=1e-5)
    assert told.chunk(2, -1)[1][0, 0, 0].exp().item() == pytest.approx((density * (place - mean).square()).sum().sqrt().item(), rel=1e-4)


def test_members_that_read_go_on_from_the_weighted_mean_of_what_they_say_is_hidden() -> None:
    members: list[Learner] = [policy(seed=s) for s in (0, 1)]
    members.append(policy(memory=False, seed=2))  # believes nothing, and is heard in what to do alone
    fused = join(members, "mixture", [0.2, 0.6, 0.2], False, (3,))
    played = members[0].play(members[0].begin(2), rows("navigation", 2, 3))  # type: ignore[operator]
    with torch.no_grad():
        own = [m.learn(m.begin(2), played)["context"] for m in members]  # type: ignore[operator]
        found = fused.learn(fused.begin(2), played)  # type: ignore[operator]

        def said(i: int, context: torch.Tensor) -> torch.Tensor:
            return torch.linalg.lstsq(members[i].tell.weight, context.T).solution.T  # type: ignore[union-attr, arg-type, no-any-return]

        mean = (said(0, own[0]) + 3 * said(1, own[1])) / 4
        for i in (0, 1):
            assert torch.allclose(said(i, found[f"{i}/context"]), mean, atol=1e-5)
            rest = own[i] - members[i].tell(said(i, own[i]))  # type: ignore[operator]
            assert torch.allclose(found[f"{i}/context"] - members[i].tell(mean), rest, atol=1e-5)  # type: ignore[operator]
        assert torch.allclose(found["2/context"], own[2])
        last = join(members, "mixture", [0.0, 1.0, 0.0], False, (3,))
        assert torch.allclose(last.learn(last.begin(2), played)["1/context"], own[1], atol=1e-5)  # who alone speaks hears nobody
    deaf = join([policy(memory=False, seed=s) for s in (0, 1)], "mixture", [0.5, 0.5], False, (3,))
    with torch.no_grad():
        apart = deaf.learn(deaf.begin(2), played)  # type: ignore[operator]
        assert torch.allclose(apart["1/context"], deaf.members[1].learn(deaf.members[1].begin(2), played)["context"])  # type: ignore[operator, union-attr]


def test_weights_of_policies_are_as_good_on_validation_as_the_best_alone_and_as_all_alike(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    splits = SplitsSection(None, [], [], [], {"val": 0.3, "gate": 0.2, "test": 0.2})
    write_pool(control.build(ControlOptions("navigation", 60, 12, 0)), splits, "control", "c0" * 30, pool)
    write_tasksets([TaskSpec("val", "val", 1, 6, 4, "group", 30)], open_pool(pool), 0, tmp_path / "tasksets")
    validation = Validation(open_pool(pool), tmp_path / "tasksets")
    members: list[Learner] = [policy(seed=s) for s in (0, 1, 2)]
    for i, member in enumerate(members):
        member.objective = OBJECTIVES["return"]
        with torch.no_grad():
            member.head.bias[2:] = math.log(0.02 + 0.4 * i)  # type: ignore[union-attr, operator, index]

    def joined(weights: list[float]) -> Learner:
        return join(members, "mixture", weights, False, (3,)).eval()

    found, alone = return_weights(joined, members, validation), [validate(m, validation)["return"] for m in members]
    assert sum(found) == pytest.approx(1, abs=1e-5) and np.argmax(found) == np.argmax(alone)
    assert validate(joined(found), validation)["return"] >= max(*alone, validate(joined([1 / 3] * 3), validation)["return"]) - 1e-4


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    student, teacher = policy(seed=3), policy(seed=3)
    batch = TaskBatch(*(Examples(rows("navigation", 2, n, first), torch.zeros(2, n), 1) for n, first in ((6, 0), (6, 6))))
    _, metrics = student.distil_loss(teacher, batch, 1.0)
    # What it is told is another thing than what it has read, so the last part alone is above zero.
    hidden, gathered, asked = student.kept
    state, stages = student.begin(2), []
    for i, (after, _) in enumerate(asked):
        state = state if i == 0 else student.learn(state, gathered[i - 1])
        stages.append(student.unlike(student.told(state, after), after, student.wanted[i]).item())
    assert stages == pytest.approx([0, 0, 0], abs=1e-6)
    alone = student.unlike(student.told(student.knowing(hidden), after), after, student.wanted[-1]).item()
    assert metrics["soft_loss"].item() == pytest.approx(alone / 4, rel=1e-5) and alone > 0


def test_what_was_played_serves_some_steps_and_then_is_played_anew() -> None:
    learner = policy()
    batches = [TaskBatch(*(Examples(rows("navigation", 2, 6, f), torch.zeros(2, 6), 1) for f in (first, first + 6))) for first in (0, 12, 24)]
    kept = []
    for batch in batches:
        learner.meta_loss(batch)
        kept.append(learner.kept)
    assert kept[0] is kept[1] and kept[1] is not kept[2]  # updates=2


@pytest.mark.parametrize("asked", [3, 4, 5, 7])
def test_query_episodes_are_shared_among_the_rounds_however_many_they_are(asked: int) -> None:
    learner = policy()
    learner.meta_loss(TaskBatch(*(Examples(rows("navigation", 2, n), torch.zeros(2, n), 1) for n in (6, asked))))
    shares = [played.reward.shape[1] for played, _ in learner.kept[2]]
    assert sum(shares) == asked and len(shares) == 3 and max(shares) - min(shares) <= 1


def test_too_few_query_episodes_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tasks.query must be at least 3"):
        policy().meta_loss(TaskBatch(*(Examples(rows("navigation", 2, n), torch.zeros(2, n), 1) for n in (6, 2))))


def test_a_pool_of_control_holds_its_environments_and_episodes() -> None:
    source = control.build(ControlOptions("cartpole", 7, 5, 0))
    assert source.inputs.shape == (35, 4) and source.environment == "cartpole" and [c.count for c in source.classes] == [5] * 7
    assert np.array_equal(source.inputs[:5, :3], np.repeat(ENVIRONMENTS["cartpole"].draw(7, 0)[:1], 5, 0)) and source.inputs[:5, 3].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_who_is_told_where_the_goal_is_goes_there_and_a_stored_policy_plays_alike(chain: Callable[[str], Chain]) -> None:
    made = chain("control")
    metrics = made.workspace.metrics()
    assert metrics["test/1w20s/oracle/return"] > metrics["test/1w20s/base-unadapted/return"] + 10
    assert metrics["test/1w20s/teacher/tasks"] == 40 and metrics["test/1w20s/oracle-trained/tasks"] == 2
    scored = made.workspace.run("flows.evaluate", "model=models:/navigation@champion", *made.asked).stdout
    told = re.search(r"control 1w20s: model (\S+) ± \S+   unadapted (\S+) ±", scored)
    assert told and float(told[1]) == pytest.approx(metrics["test/1w20s/fused/return"], abs=0.006)
    assert float(told[2]) == pytest.approx(metrics["test/1w20s/fused-unadapted/return"], abs=0.006)


@pytest.mark.slow
def test_who_is_told_which_way_a_push_goes_balances_the_pole(new_workspace: Callable[[], Workspace]) -> None:
    """What is expected of a step decides whether this is learned: with angles shrunk away it came to 144 of 200, without a ridge to 197."""
    workspace, few = new_workspace(), ["evaluation.settings=[1w5s]", "evaluation.tasks=40", "evaluation.gate_tasks=20", "tasks.val=20"]
    alone = ["student.count=0", "evaluation.scratch_steps=0"]
    workspace.retrain("experiment=cartpole", *alone, "learner.fit.steps=80", "learner.fit.epoch_steps=80", *few)
    metrics = workspace.metrics()
    assert metrics["test/1w5s/oracle/return"] > 180 and metrics["test/1w5s/base-unadapted/return"] < 150


@pytest.mark.slow
def test_gradients_alone_find_the_goal(new_workspace: Callable[[], Workspace]) -> None:
    workspace, few = new_workspace(), ["base.batch=240", "base.fit.steps=8", "base.fit.epoch_steps=8", "tasks.val=20", "evaluation.scratch_steps=0"]
    fit = ["learner=policy_gradient", "learner.fit.steps=40", "learner.fit.epoch_steps=20", "learner.tasks_per_step=20", "student.count=0"]
    workspace.retrain("experiment=navigation", *few, *fit, "evaluation.settings=[1w60s]", "evaluation.tasks=40", "evaluation.gate_tasks=20")
    metrics = workspace.metrics()
    assert metrics["test/1w60s/teacher/return"] > metrics["test/1w60s/teacher-unadapted/return"] + 10


@pytest.mark.slow
def test_policies_learn_in_two_processes(chain: Callable[[str], Chain], new_workspace: Callable[[], Workspace]) -> None:
    made = chain("control")
    two = new_workspace()
    out = two.retrain(*made.asked, "trainer=ddp_sim", "student.count=0")
    assert "base (" in out.stdout and "teacher (" in out.stdout
    knowing = [w.metrics()["test/1w20s/oracle/return"] - w.metrics()["test/1w20s/base-unadapted/return"] for w in (made.workspace, two)]
    assert min(knowing) > 10, "two processes learn as one does to go where they are told"


@pytest.mark.slow
def test_what_control_cannot_have_is_told_in_one_line(finished: Workspace) -> None:
    for wrong, told in (
        ("fusion.mode=greedy", "fusion.mode must be average or weights"),
        ("domain.source.environment=chess", "domain.source.environment"),
        ("learner=ridge", "which asks for return. Choose one of policy_gradient, policy_memory."),
        ("base.policy.inner_lr=abc", "base.policy.inner_lr: Input should be a valid number"),
        ("base.policy.std=0", "base.policy.std must be above 0"),
        ("base.batch=119", "base.batch must be at least 2 times tasks.query=60"),
        ("student.recipe.noise=0.1", "takes soft_weight alone"),
        ("trainer.accumulate=2", "trainer.accumulate must be 1"),
        ("base.fit.epoch_steps=10", "multiple of the policy's updates=4"),
        ("base.policy.moves=all", "must be context or weights"),
        ("base.policy.moves=weights base.policy.belief=1", "must be 0 where weights move"),
    ):
        assert told in finished.retrain("experiment=navigation", *wrong.split(), expect=2).stderr, wrong
