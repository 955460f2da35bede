"""Fusion against closed forms: what each way of joining promises, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from tasks_for_tests import predict, spec, tasks
from torch.nn.functional import cross_entropy, log_softmax, softmax

from components import mixing
from components.contracts import AugmentSection
from components.domains import images
from components.domains.pool import Pool
from components.fusion import MODES, Candidate, Members, fuse, ranked, save_best, weigh
from components.goals import _weighted_sum
from components.inputs import InputError
from components.learners import store
from components.learners.fused import FusedLearner
from components.learners.learner import Learner, learner_size
from components.learners.metric import ProtoNet
from components.learners.views import once
from components.learning import FusionSection
from components.mixing import soup
from components.networks import BatchNorm
from components.objectives import OBJECTIVES
from components.tasks import Examples
from components.validation import Validation, by_task, calibrate
from flows.config import load

SHAPE = (1, 28, 28)
NONE = AugmentSection(0, 0, 0, 0, 0)


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


def test_what_cannot_be_fused_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="shared encoder"):
        fused(["maml", "protonet"], "concat", [0.5, 0.5])
    with pytest.raises(InputError, match="one family"):
        fused(["maml", "protonet"], "mixture", [0.5, 0.5], joint=True)


@pytest.mark.parametrize(("name", "other"), [("imaml", {}), ("mamlpp", {"norm": "per_step"}), ("maml", {"test_steps": 2}), ("anil", {})])
def test_who_alone_counts_adapts_as_by_itself_whatever_stands_beside_it(name: str, other: dict[str, object]) -> None:
    batch, alone = tasks(), store.build(spec(name, **other), 0).eval()
    for module in alone.modules():  # statistics of each step that differ
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.copy_(torch.rand(module.running_mean.shape, generator=torch.Generator().manual_seed(1)))
    beside = store.build(spec(name, **(other | {"test_steps": 5})), 1).eval()
    both = FusedLearner([alone, beside], "mixture", [1.0, 0.0], True, SHAPE).eval()
    assert torch.allclose(log_softmax(predict(both, batch), -1), log_softmax(predict(alone, batch), -1), atol=1e-4)


def test_joint_adaptation_lowers_the_fused_support_loss_more_than_none() -> None:
    batch, learner = tasks(), fused(["maml", "maml"], "mixture", [0.5, 0.5], joint=True)
    adapted = predict(learner, type(batch)(batch.support, batch.support))
    for member in learner.members:
        member.options.test_steps = 0
    before = predict(learner, type(batch)(batch.support, batch.support))
    loss = lambda logits: cross_entropy(logits.flatten(0, 1), batch.support.y.flatten())  # noqa: E731
    assert loss(adapted) < loss(before) - 1e-4


def stored(folder: Path, learner: Learner, name: str = "protonet", start: str | None = "one") -> str:
    store.save(learner, spec(name), folder, {"domain": "small", "trained_on": [], "start": start})
    return str(folder)


def fusion(mode: str, **more) -> FusionSection:
    return replace(load().fusion, mode=mode, **more)


@pytest.mark.parametrize("mode", ["average", "weights", "greedy", "conditioned", "concat", "soup"])
@pytest.mark.parametrize("name", ["protonet", "ridge"])
def test_a_learner_fused_with_itself_by_any_mode_that_promises_it_is_the_learner(
    mode: str, name: str, small_pool: Pool, small_tasksets: Path, tmp_path: Path
) -> None:
    if mode == "concat" and name == "ridge":
        return
    one = store.build(spec(name, norm="running"), 0).eval()
    mixing.estimate_statistics(one, small_pool)
    paths = [stored(tmp_path / str(i), one, name) for i in range(2)]
    (found,) = fuse(paths, weigh(paths, small_pool, str(small_tasksets)), fusion(mode), NONE, small_pool, str(small_tasksets), {})
    batch = tasks(shot=3)
    alone = log_softmax(predict(one, batch), -1)
    both = predict(found.learner, batch) * found.learner.temperature  # before the fused learner's own calibration
    assert torch.allclose(alone, log_softmax(both, -1), atol=2e-4)
    weights = found.spec.get("weights", [1.0])
    assert sum(weights) == pytest.approx(1, abs=1e-6) and min(weights) > 1e-4


def test_what_validation_tasks_call_best_is_kept_with_the_table_of_all(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    paths = [stored(tmp_path / str(i), store.build(spec("protonet", norm="running"), i), start=str(i)) for i in range(3)]
    found = fuse(paths, weigh(paths, small_pool, str(small_tasksets)), fusion("auto"), NONE, small_pool, str(small_tasksets), {})
    assert {c.mode for c in found} == set(MODES) - {"soup", "joint", "taught"}  # different starts, nothing trained further
    metrics = save_best(found, tmp_path / "out", paths)
    totals = {c.mode: c.scores["accuracy"] + c.scores["more_accuracy"] for c in found}
    for candidate in found:
        assert candidate.by_task.mean() == pytest.approx(totals[candidate.mode])
    loaded, told, about = store.load(tmp_path / "out")
    assert about["objective"] == f"fused: {found[0].mode}" and told == found[0].spec
    batch = tasks()
    assert torch.allclose(predict(loaded, batch), predict(found[0].learner, batch), atol=1e-5)
    assert metrics["val/accuracy"] == found[0].scores["accuracy"]


def test_a_member_that_is_left_out_has_weight_zero_and_the_others_their_own(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    paths = [stored(tmp_path / str(i), store.build(spec("protonet", norm="running"), i), start=str(i)) for i in range(3)]
    (found,) = fuse(paths, [0.25, 0.0, 0.75], fusion("weights"), NONE, small_pool, str(small_tasksets), {})
    assert found.weights == pytest.approx([0.25, 0, 0.75]) and found.spec["weights"] == pytest.approx([0.25, 0.75])
    metrics = save_best([found], tmp_path / "out", paths)
    assert [metrics[f"weights/{i}"] for i in range(3)] == found.weights == json.loads((tmp_path / "out" / "fusion.json").read_text())["weights"]


def test_the_plainest_that_is_not_worse_by_a_standard_error_is_chosen() -> None:
    learner = store.build(spec("protonet"), 0)
    even = torch.tensor([0.5, 0.7] * 50, dtype=torch.float64)
    swing = torch.tensor([0.4, -0.4] * 50, dtype=torch.float64)

    def order(**scores: torch.Tensor | tuple[torch.Tensor, torch.Tensor]) -> list[str]:
        given = {mode: one if isinstance(one, tuple) else (one, torch.zeros(100)) for mode, one in scores.items()}
        return [c.mode for c in ranked([Candidate(mode, learner, {}, [], {"loss": 0.0}, *of_tasks) for mode, of_tasks in given.items()])]

    assert order(average=even, weights=even + swing + 0.01) == ["average", "weights"]  # 0.01 better, by a difference of error 0.04
    assert order(average=even, weights=even + 0.01) == ["weights", "average"]  # on every task
    assert order(average=even * torch.nan, weights=even, greedy=even) == ["weights", "greedy", "average"]
    assert order(average=(even, even + 0.01), weights=(even, even)) == ["weights", "average"]  # as many right answers, and surer of them on every task
    assert order(average=(even, even + swing + 0.01), weights=(even, even)) == ["average", "weights"]
    assert order(average=(even, even + 0.01), weights=(even - 0.01, even)) == ["average", "weights"]  # surer, but worse
    assert order(average=(even, even * torch.nan), weights=(even, even)) == ["weights", "average"]
    learner.objective = OBJECTIVES["ranking"]  # its loss differs with the scale of outputs, which nothing calibrates
    assert order(average=(even, even + 0.01), weights=(even, even)) == ["average", "weights"]
    assert [*MODES][:3] == ["soup", "average", "taught"], "what nothing fits to validation tasks comes before what is fitted to them"


def test_joint_members_are_those_that_were_trained_further_weighed_by_what_they_say_now(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    before, after = ([store.build(spec("protonet", norm="running"), seed).eval() for seed in seeds] for seeds in ((0, 1), (2, 3)))
    batch, weights = tasks(), [0.2, 0.8]
    for member in before:
        mixing.estimate_statistics(member, small_pool)
    paths = [stored(tmp_path / str(i), member, start=str(i)) for i, member in enumerate(before)]
    learner = FusedLearner(after, "mixture", weights, False, SHAPE)
    wanted = sum(w * member.meta_loss(batch)[0].item() for w, member in zip(weights, after, strict=True))
    assert _weighted_sum(learner)(batch)[0].item() == pytest.approx(wanted, rel=1e-5)
    for member in after:  # what a training would leave
        mixing.estimate_statistics(member, small_pool)
    trained = store.fused_spec([spec("protonet", norm="running")] * 2, "mixture", weights, False)
    store.save(learner, trained, tmp_path / "trained", {})
    (found,) = fuse(paths, weights, fusion("joint"), NONE, small_pool, str(small_tasksets), {"joint": str(tmp_path / "trained")})
    for member, theirs in zip(found.learner.members, after, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(member.backbone.parameters(), theirs.backbone.parameters(), strict=True))
    for member in after:
        calibrate(member, Validation(small_pool, str(small_tasksets)))
    again = [stored(tmp_path / f"again-{i}", member, start=str(i)) for i, member in enumerate(after)]
    assert found.weights == pytest.approx(weigh(again, small_pool, str(small_tasksets)), abs=1e-3) and abs(found.weights[0] - 0.2) > 0.05


def test_the_sharpness_of_conditioned_weights_is_the_one_of_least_validation_loss(small_pool: Pool, small_tasksets: Path) -> None:
    learner, validation = fused(["protonet", "base"], "conditioned", [0.5, 0.5]), Validation(small_pool, str(small_tasksets)).with_shots(5)
    losses = {}
    for sharpness in mixing.SHARPNESS:
        learner.sharpness.fill_(sharpness)
        losses[sharpness] = by_task(learner, validation)["loss"].mean().item()
    assert len({round(loss, 5) for loss in losses.values()}) == len(losses)
    assert mixing.sharpen(learner, validation) == min(losses, key=lambda one: losses[one]) == learner.sharpness.item()


def test_evidence_is_each_members_likelihood_of_every_example_left_out() -> None:
    batch = tasks(count=2, way=3, shot=3)
    learner = fused(["protonet", "base"], "conditioned", [0.5, 0.5])
    with torch.no_grad():
        features = learner.encode_tasks(batch.support.x)
        found = learner.evidence(Examples(features, batch.support.y, 3))
        for t in range(2):
            for m, member in enumerate(learner.members):
                total = 0.0
                for held in range(9):
                    kept = [i for i in range(9) if i != held]
                    support = Examples(batch.support.x[t : t + 1, kept], batch.support.y[t : t + 1, kept], 3)
                    outputs = member.predict(member.adapt(support), batch.support.x[t : t + 1, held : held + 1])
                    total += outputs.log_softmax(-1)[0, 0, batch.support.y[t, held]].item()
                assert found[t, m].item() == pytest.approx(total, abs=1e-3)
        weights = learner.adapt(batch.support)["log_weights"].exp()
        assert torch.allclose(weights, found.softmax(-1), atol=1e-4)  # the posterior over members of equal prior


def test_at_one_shot_there_is_no_evidence_and_the_weights_are_those_of_all_tasks() -> None:
    learner = fused(["protonet", "base"], "conditioned", [0.2, 0.8])
    with torch.no_grad():
        weights = learner.adapt(tasks(shot=1).support)["log_weights"].exp()
    assert torch.allclose(weights, torch.tensor([0.2, 0.8]).expand_as(weights))


def test_whitening_makes_the_spread_within_training_classes_alike(small_pool: Pool, small_tasksets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation, classes = Validation(small_pool, small_tasksets), small_pool.split("train")
    for shares in ((1.0,), (0.125, 1.0)):
        learner = fused(["protonet", "base"], "whitened", [0.4, 0.6])
        size = len(learner.centre)
        monkeypatch.setattr(mixing, "DIRECTIONS", shares)
        shrinkage = mixing.whiten(learner, small_pool, validation)
        joined = []
        with torch.no_grad():
            for c in classes:
                x = torch.from_numpy(small_pool.inputs[small_pool.first[c] + np.arange(small_pool.counts[c])]).unsqueeze(1).float() / 255
                features = [torch.nn.functional.normalize(member.encode(x).flatten(1), dim=-1) for member in learner.members]
                parts = [own * weight.sqrt() for own, weight in zip(features, learner.weights, strict=True)]
                joined.append(torch.cat(parts, 1).double().numpy())
        spread = np.concatenate([x - x.mean(0) for x in joined])
        covariance = spread.T @ spread / len(spread)
        shrunk = covariance + shrinkage * np.trace(covariance) / size * np.eye(size)
        axes = learner.axes.detach().double().numpy()
        whole = np.eye(size) - axes @ axes.T
        values, vectors = eigh(shrunk)
        found, kept = vectors.T @ whole @ shrunk @ whole @ vectors, axes.shape[1]
        level = values[0] if kept == size else values[:-kept].mean()
        assert np.allclose(found, np.diag(np.where(np.arange(size) >= size - kept, level, values)), atol=1e-3 * level)
        assert kept == int(shares[0] * size), "of these members a few directions say as much as all"
        assert np.allclose(learner.centre.numpy(), np.concatenate(joined).mean(0), atol=1e-5)
        assert learner_size(learner) == sum(map(learner_size, learner.members)) + size + size * kept, "what is fitted in closed form counts too"


def test_as_few_directions_are_mapped_as_lose_no_more_than_a_standard_error(small_pool: Pool, small_tasksets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = Validation(small_pool, small_tasksets)

    def whitened(*shares: float) -> tuple[int, np.ndarray]:
        learner = fused(["protonet", "base"], "whitened", [0.4, 0.6])
        monkeypatch.setattr(mixing, "DIRECTIONS", shares)
        mixing.whiten(learner, small_pool, validation)
        return learner.axes.shape[1], by_task(learner, validation)["accuracy"].numpy()

    alone = {share: whitened(share) for share in (0.002, 0.02, 1.0)}
    for shares in ((0.002, 0.02, 1.0), (0.002, 1.0), (0.02, 1.0)):
        best = max((alone[share][1] for share in shares), key=np.mean)
        lost = {share: best - alone[share][1] for share in shares}
        fits = [share for share in shares if lost[share].mean() <= lost[share].std(ddof=1) / len(best) ** 0.5]
        assert whitened(*shares)[0] == alone[fits[0]][0], shares


def test_a_soup_is_the_mean_and_that_of_equal_weights_the_identity() -> None:
    one, other = ({n: t.double() for n, t in store.build(spec("protonet"), s).state_dict().items()} for s in (0, 1))
    for name, value in soup([one, one, one]).items():
        assert torch.equal(value, one[name])
    for name, value in soup([one, other]).items():
        assert torch.allclose(value, (one[name] + other[name]) / 2)


def test_a_soup_measures_its_statistics_anew(small_pool: Pool) -> None:
    learner = store.build(spec("protonet"), 0).eval()
    norm = next(m for m in learner.modules() if isinstance(m, BatchNorm))
    norm.running_mean.fill_(5.0)
    mixing.estimate_statistics(learner, small_pool, items=10**6, size=10**6)  # one batch: its statistics are everybody's
    own = small_pool.items(small_pool.split("train"))
    x = torch.from_numpy(small_pool.inputs[own]).unsqueeze(1).float() / 255
    with torch.no_grad():
        maps = torch.nn.functional.max_pool2d(learner.backbone.blocks[0].conv(x), 2)
    assert torch.allclose(norm.running_mean, maps.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(norm.running_var, maps.transpose(0, 1).flatten(1).var(1), rtol=1e-3)
    assert not norm.training


def test_networks_of_different_starts_make_no_soup(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    for starts in (("a", "b"), (None, None)):
        paths = [stored(tmp_path / f"{starts[0]}{i}", store.build(spec("protonet"), i), start=starts[i]) for i in range(2)]
        with pytest.raises(InputError, match="began at the same weights"):
            fuse(paths, [0.5, 0.5], fusion("soup"), NONE, small_pool, str(small_tasksets), {})
    with pytest.raises(InputError, match="two members at least"):
        fuse(paths[:1], [1.0], fusion("soup"), NONE, small_pool, str(small_tasksets), {})


def test_members_that_say_nothing_are_left_out() -> None:
    members = Members(("a", "b", "c"), [store.build(spec("protonet"), s) for s in range(3)], [spec("protonet")] * 3, ["x", "y", "z"])
    own, weights = members.chosen([0.75, 0.0, 0.25])
    assert own.paths == ("a", "c") and own.starts == ["x", "z"] and weights == [0.75, 0.25]


def test_several_views_are_the_mean_of_features_and_one_alone_is_the_picture(tmp_path: Path) -> None:
    augment, batch = AugmentSection(9, 0.15, 0.15, 0.05, 0.03), tasks()
    told = store.views_spec(spec("protonet"), 3, augment)
    learner = store.build(told).eval()
    x = batch.query.x[0]
    with torch.no_grad():
        copies = [x, *(images.bend(x, draw.expand(len(x), -1), augment) for draw in learner.draws)]
        assert torch.allclose(learner.encode(x), torch.stack([learner.member.encode(c) for c in copies]).mean(0), atol=1e-6)
    still = store.build(store.views_spec(spec("protonet"), 4, NONE)).eval()
    assert torch.allclose(predict(still, batch), predict(still.member, batch), atol=1e-3)  # four times the same picture
    store.save(learner, told, tmp_path, {})
    assert torch.equal(predict(store.load(tmp_path)[0], batch), predict(learner, batch))
    with pytest.raises(InputError, match="one encoder"):
        store.build(store.views_spec(spec("maml"), 2, NONE))


def test_training_and_lessons_look_once() -> None:
    augment, batch = AugmentSection(9, 0.15, 0.15, 0.05, 0.03), tasks()
    told = [store.views_spec(spec("protonet"), 3, augment)] * 2
    learner = store.build(store.fused_spec(told, "concat", [0.5, 0.5], False)).train()
    x = batch.query.x[0]
    looked = []
    for member in learner.members:
        member.member.backbone.register_forward_hook(lambda *_: looked.append("look"))
    learner.encode(x)
    assert looked == ["look"] * 2
    learner.eval().encode(x)
    assert looked == ["look"] * (2 + 6)
    seen, plain = learner.encode(x), once(learner).encode(x)
    assert looked == ["look"] * (8 + 6 + 2)
    assert not torch.allclose(seen, plain)
    assert isinstance(once(store.build(told[0])), ProtoNet)


def test_who_looks_once_stays_calibrated() -> None:
    learner = store.build(store.views_spec(spec("protonet"), 3, NONE)).eval()
    learner.temperature.fill_(0.6)
    batch = tasks()
    seen = predict(learner, batch)  # views that are not bent are the picture itself
    assert torch.allclose(predict(once(learner), batch), seen, atol=1e-4)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("names", [["maml", "maml"], ["anil", "anil"]])
def test_a_fused_learner_tells_the_losses_of_its_members_steps(names: list[str], joint: bool) -> None:
    learner, batch = fused(names, "mixture", [0.3, 0.7], joint).eval(), tasks()
    with torch.no_grad():
        support = Examples(learner.encode_tasks(batch.support.x), batch.support.y, batch.support.way)
    losses = learner.support_losses(support)
    assert len(losses) == 1 + learner.members[0].steps()
    with torch.no_grad():
        last = learner.predict_features(learner.adapt_features(support), support.x)
    assert losses[-1] == pytest.approx(learner.objective.loss(last, support.y).mean().item(), rel=1e-5)
    assert losses[-1] < losses[0]
    assert fused(["protonet", "protonet"], "mixture", [0.5, 0.5]).eval().support_losses(support) == []
