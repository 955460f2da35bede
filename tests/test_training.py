"""Fits: the same batches on any number of processes, exact resume, damaged checkpoints, losses that blow up."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tasks_for_tests import spec

from components.batches import ItemBatches, TaskBatches, bent
from components.contracts import AugmentSection
from components.domains import images
from components.domains.pool import Pool
from components.goals import Goal
from components.job import FitJob, Watch
from components.launch import fit
from components.learners import store
from components.learning import FitSection
from components.lineage import trained_on
from components.tasksets import read_table
from components.training import Fit
from flows.config import load

AUGMENT = AugmentSection(9, 0.15, 0.15, 0.05, 0.03)
CONFIG = load(["experiment=smoke"])
SECTION = FitSection(steps=12, epoch_steps=3, lr=0.005, weight_decay=0.01, keep="last")


def job(pool: Pool, tasksets: Path, folder: Path, objective: str, **more) -> FitJob:
    backbone = replace(CONFIG.backbone, widths=[4, 6, 8, 8])
    made = FitJob(
        objective=objective, out=str(folder / "out"), state=str(folder / "state"), pool=str(pool.path), tasksets=str(tasksets), seed=0,
        domain=CONFIG.domain, backbone=backbone, fit=SECTION, trainer=replace(CONFIG.trainer, threads=1), base=replace(CONFIG.base, batch=64),
        learner=CONFIG.student.learner, tasks_per_step=2,
    )  # fmt: skip
    return replace(made, **more)


def outcome(folder: Path, metrics: dict[str, float]) -> tuple[bytes, dict[str, float]]:
    return (folder / "out" / "learner.safetensors").read_bytes(), {k: v for k, v in metrics.items() if not k.endswith("/seconds")}


def test_two_processes_make_the_batch_of_one(small_pool: Pool, small_tasksets: Path) -> None:
    items = ItemBatches(small_pool, 4, 128, 3, AUGMENT)
    whole, labels = items(5, 0, 1)
    parts = [items(5, rank, 2) for rank in (0, 1)]
    shards = [torch.cat(pair) for pair in zip(*(x.split(32) for x, _ in parts), strict=True)]
    assert torch.equal(torch.cat(shards), whole)
    assert sorted(torch.cat([y for _, y in parts]).tolist()) == sorted(labels.tolist())
    drawn = TaskBatches(small_pool, read_table(small_tasksets, "train"), 4, 3, AUGMENT)
    one, ranks = drawn(7, 0, 1), [drawn(7, rank, 2) for rank in (0, 1)]
    for i in range(4):
        assert torch.equal(one.query.x[i], ranks[i % 2].query.x[i // 2])
    assert not torch.equal(one.query.x, drawn(8, 0, 1).query.x)


def test_labels_name_class_and_turn(small_pool: Pool) -> None:
    x, y = ItemBatches(small_pool, 4, 64, 0, AugmentSection(0, 0, 0, 0, 0))(0, 0, 1)
    classes = small_pool.split("train")
    for picture, label in zip(x[:10], y[:10], strict=True):
        own = small_pool.items(classes[[label // 4]])
        turned = np.stack([np.rot90(np.asarray(small_pool.inputs[i]), int(label) % 4) for i in own]) / 255
        assert abs(turned - picture[0].numpy()).max((1, 2)).min() < 1e-4


def test_bending_is_torchs_affine_grid_and_an_interpolated_field() -> None:
    x, draws = torch.rand(3, 1, 28, 28), images.draws(3, torch.Generator().manual_seed(4))
    found = images.bend(x, draws, AUGMENT)
    for i, row in enumerate(draws):
        angle = np.radians(9) * row[0].item()
        sx, sy, shear = 1 + 0.15 * row[1], 1 + 0.15 * row[2], 0.15 * row[3]
        theta = torch.tensor([[np.cos(angle) * sx, (shear - np.sin(angle)) * sy, 0.1 * row[4]], [np.sin(angle) * sx, np.cos(angle) * sy, 0.1 * row[5]]])
        grid = torch.nn.functional.affine_grid(theta[None].float(), [1, 1, 28, 28], align_corners=False)
        field = torch.nn.functional.interpolate(row[7:].view(1, 2, 4, 4) * 0.06, (28, 28), mode="bicubic", align_corners=True)
        wanted = torch.nn.functional.grid_sample(x[i : i + 1], grid + field.permute(0, 2, 3, 1), align_corners=False)
        assert torch.allclose(found[i : i + 1], wanted, atol=1e-4)


def test_no_augmentation_is_the_identity_and_some_is_not() -> None:
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    draws = images.draws(5, torch.Generator().manual_seed(1))
    assert torch.allclose(images.bend(x, draws, AugmentSection(0, 0, 0, 0, 0)), x, atol=1e-4)
    first, second = (bent(x, AUGMENT, 5, [s]) for s in (1, 1))
    assert torch.equal(first, second) and not torch.allclose(first, x, atol=0.1)


class StopError(Exception):
    """Stands for a kill at the end of an epoch."""


class Heard(Watch):
    """Keep all that is told; stop the fit at the end of the epoch of a step."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.steps, self.epochs, self.again = stop, [], {}, []

    def step(self, step: int) -> None:
        self.steps.append(step)

    def epoch(self, step: int, metrics: dict[str, float], again: bool) -> None:
        assert step not in self.epochs, "told twice"
        self.epochs[step] = metrics
        self.again += [step] * again
        if step == self.stop:
            raise StopError


@pytest.mark.parametrize("objective", ["base", "meta", "distill"])
@pytest.mark.parametrize("damaged", [False, True])
def test_an_interrupted_fit_ends_as_an_undisturbed_one(small_pool: Pool, small_tasksets: Path, tmp_path: Path, objective: str, damaged: bool) -> None:
    more = {}
    if objective == "distill":
        fit(job(small_pool, small_tasksets, tmp_path / "teacher", "meta"), Watch(), "teacher")
        recipe = replace(CONFIG.student.recipe, feature_weight=1.0, class_weight=1.0, teacher_shots=2, noise=0.1, unlabelled=3)
        more = {"teachers": (str(tmp_path / "teacher" / "out"),), "recipe": recipe}
    wanted = outcome(tmp_path / "a", fit(job(small_pool, small_tasksets, tmp_path / "a", objective, **more), Watch(), "a"))
    disturbed = job(small_pool, small_tasksets, tmp_path / "b", objective, **more)

    with pytest.raises(StopError):
        fit(disturbed, Heard(9), "b")
    newest = tmp_path / "b" / "state" / "state.ckpt"
    if damaged:
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    heard = Heard()
    found = outcome(tmp_path / "b", fit(disturbed, heard, "b"))
    assert found[0] == wanted[0]
    assert found[1] == wanted[1]
    assert list(heard.epochs) == [3, 6, 9, 12]  # the epochs before the stop are told again, once each
    assert heard.again == [3, 6] if damaged else [3, 6, 9]
    assert heard.steps == list(range(heard.again[-1] + 1, 13))


@pytest.mark.parametrize("name", ["maml", "set_transformer", "ridge", "mamlpp"])
def test_every_kind_of_learner_resumes_exactly(small_pool: Pool, small_tasksets: Path, tmp_path: Path, name: str) -> None:
    section = load(["experiment=smoke", f"learner={name}", "learner.start=pretrained"]).learner
    fit(job(small_pool, small_tasksets, tmp_path / "base", "base"), Watch(), "base")
    more = {"learner": section, "start": str(tmp_path / "base" / "out")}
    wanted = outcome(tmp_path / "a", fit(job(small_pool, small_tasksets, tmp_path / "a", "meta", **more), Watch(), "a"))
    disturbed = job(small_pool, small_tasksets, tmp_path / "b", "meta", **more)

    with pytest.raises(StopError):
        fit(disturbed, Heard(6), "b")
    assert outcome(tmp_path / "b", fit(disturbed, Watch(), "b")) == wanted


def test_accumulated_parts_reach_the_weights_of_the_whole(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    found = []
    for parts in (1, 2):
        trainer = replace(CONFIG.trainer, threads=1, accumulate=parts)
        section = load(["experiment=smoke", "learner=maml"]).learner
        fit(job(small_pool, small_tasksets, tmp_path / str(parts), "meta", learner=section, trainer=trainer), Watch(), "parts")
        found.append(load_file(tmp_path / str(parts) / "out" / "learner.safetensors"))
    for name, value in found[0].items():
        if name != "temperature":
            assert np.allclose(value, found[1][name], atol=1e-5), name


def test_no_steps_take_the_start_as_it_is(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    of_base = fit(job(small_pool, small_tasksets, tmp_path / "base", "base"), Watch(), "base")
    base = tmp_path / "base" / "out"
    for name in ("base", "rfs", "finetune"):
        section = load(["experiment=smoke", f"learner={name}", "learner.fit.steps=0", "learner.fit.epoch_steps=10"]).learner
        metrics = fit(job(small_pool, small_tasksets, tmp_path / name, "meta", learner=section, fit=section.fit, start=str(base)), Watch(), name)
        learner, start = store.load(tmp_path / name / "out")[0], store.load(base)[0]
        for (a, one), (b, other) in zip(learner.backbone.named_parameters(), start.backbone.named_parameters(), strict=True):
            assert a == b and torch.equal(one, other)
        assert name != "base" or metrics["val/accuracy"] == pytest.approx(of_base["val/accuracy"])  # the same centroids


def test_a_start_that_looks_at_several_views_brings_its_weights(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    taught = load(["experiment=smoke", "learner=protonet", "learner.views=2", "learner.start=scratch"]).learner
    assert fit(job(small_pool, small_tasksets, tmp_path / "one", "meta", learner=taught, fit=taught.fit), Watch(), "one")
    none = load(["experiment=smoke", "learner=protonet", "learner.fit.steps=0", "learner.fit.epoch_steps=10"]).learner
    start = str(tmp_path / "one" / "out")
    fit(job(small_pool, small_tasksets, tmp_path / "two", "meta", learner=none, fit=none.fit, start=start), Watch(), "two")
    for one, two in zip(store.load(start)[0].backbone.parameters(), store.load(tmp_path / "two" / "out")[0].backbone.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_learner_tells_the_classes_of_all_that_it_was_made_of(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    own = [small_pool.classes["name"][int(c)].as_py() for c in small_pool.split("train")]
    none = load(["experiment=smoke", "learner=protonet", "learner.fit.steps=0", "learner.fit.epoch_steps=10"]).learner
    like = store.spec_of("protonet", none.options, replace(CONFIG.backbone, widths=[4, 6, 8, 8]), small_pool.input_shape, "cross_entropy")
    for name, of, classes in (("old", "omniglot-across", ["Lao/1"]), ("other", small_pool.domain, [own[0], "gone"])):
        store.save(store.build(like, 1), like, tmp_path / name, {"domain": of, "trained_on": classes})
    more = {"learner": none, "fit": none.fit}
    fit(job(small_pool, small_tasksets, tmp_path / "made", "meta", start=str(tmp_path / "old"), **more), Watch(), "made")
    taught = {"teachers": (str(tmp_path / "made" / "out"), str(tmp_path / "other")), "recipe": CONFIG.student.recipe}
    fit(job(small_pool, small_tasksets, tmp_path / "student", "distill", **more, **taught), Watch(), "student")
    about = store.about(tmp_path / "student" / "out")
    assert (about["trained_on"], about["earlier"]) == (own, {small_pool.domain: ["gone"], "omniglot-across": ["Lao/1"]})
    assert trained_on(about, small_pool.domain) == {*own, "gone"} and trained_on(about, "omniglot") == {"Lao/1"} and trained_on(about, "table") == set()


def test_a_student_that_goes_on_takes_over_all_that_it_was(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    for name in ("relation", "set_transformer", "protonet"):
        start, own = tmp_path / name / "start", load(["experiment=smoke", f"learner={name}", "learner.fit.steps=0", "learner.fit.epoch_steps=10"]).learner
        told = store.spec_of(name, own.options, replace(CONFIG.backbone, widths=[4, 6, 8, 8]), small_pool.input_shape, "cross_entropy")
        begun = store.build(told, 5)
        store.save(begun, told, start, {"domain": "small", "trained_on": []}, small_pool.path)
        more = {"learner": own, "fit": own.fit, "start": str(start), "teachers": (str(start),), "recipe": CONFIG.student.recipe}
        fit(job(small_pool, small_tasksets, tmp_path / name, "distill", **more), Watch(), name)
        made = store.load(tmp_path / name / "out")[0].state_dict()
        assert all(torch.equal(value, made[key]) for key, value in begun.state_dict().items() if key != "temperature"), name


def test_the_best_epoch_is_kept_where_that_is_asked_for_after_a_kill_too(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    wild, found = replace(SECTION, lr=1.0), {}
    for keep, stop in (("last", None), ("best", None), ("best", 9)):
        work = job(small_pool, small_tasksets, tmp_path / f"{keep}-{stop}", "meta", fit=replace(wild, keep=keep))
        if stop:
            with pytest.raises(StopError):
                fit(work, Heard(stop), keep)
        heard = Heard()
        found[keep, stop] = outcome(tmp_path / f"{keep}-{stop}", fit(work, heard, keep))
    losses = {step: metrics["val/loss"] for step, metrics in heard.epochs.items()}
    best = min(losses, key=losses.get)
    assert best != 12, "the last epoch is the best of this fit: it shows nothing"
    accuracy = [found[keep, None][1]["val/accuracy"] for keep in ("best", "last")]
    assert accuracy == pytest.approx([heard.epochs[step]["val/accuracy"] for step in (best, 12)])
    assert found["best", None] == found["best", 9]


def test_who_goes_on_keeps_what_it_knows_of_the_training_classes(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    fit(job(small_pool, small_tasksets, tmp_path / "one", "meta", fit=replace(SECTION, steps=60, epoch_steps=30)), Watch(), "one")
    own, lost = str(tmp_path / "one" / "out"), []
    for name, more in (("anew", {}), ("goes on", {"start": own}), ("as one", {"members": (own, own), "weights": (0.5, 0.5)})):
        heard, recipe = Heard(), replace(CONFIG.student.recipe, class_weight=1.0)
        taught = {"fit": replace(SECTION, steps=3, lr=1e-6), "teachers": (own,), "recipe": recipe}
        fit(job(small_pool, small_tasksets, tmp_path / name, "joint" if "members" in more else "distill", **taught, **more), heard, name)
        lost.append(heard.epochs[3]["train/class_loss"])
    assert max(lost[1:]) < lost[0] / 4, lost


def test_members_taught_as_one_come_nearer_to_their_teacher(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    paths, heard = [str(tmp_path / name) for name in ("teacher", "one", "two")], Heard()
    for seed, path in enumerate(paths):
        store.save(store.build(spec("protonet"), seed), spec("protonet"), Path(path), {"domain": "small", "trained_on": []}, small_pool.path)
    more = {"members": tuple(paths[1:]), "weights": (0.5, 0.5), "teachers": (paths[0],), "recipe": replace(CONFIG.student.recipe, temperature=1.0)}
    fit(job(small_pool, small_tasksets, tmp_path / "taught", "joint", fit=replace(SECTION, steps=60), **more), heard, "taught")
    apart = [metrics["train/soft_loss"] for metrics in heard.epochs.values()]
    assert sum(apart[-3:]) < 0.6 * sum(apart[:3])
    for path, member in zip(paths[1:], store.load(tmp_path / "taught" / "out")[0].members, strict=True):
        before = store.load(path)[0].backbone.parameters()
        assert all(not torch.equal(one, two) for one, two in zip(before, member.backbone.parameters(), strict=True)), "all of them learn"


def test_one_step_that_is_not_finite_is_left_out_and_counted(small_pool: Pool, small_tasksets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.learners.metric import ProtoNet

    usual, calls = ProtoNet.meta_loss, []

    def sometimes(self, batch):
        calls.append(None)
        loss, metrics = usual(self, batch)
        if len(calls) != 4:
            return loss, metrics
        for name, buffer in self.named_buffers():
            if name.endswith("running_mean"):
                buffer.data.fill_(float("nan"))  # as a batch leaves them that is not finite
        return loss * float("nan"), metrics | {"loss": loss.detach() * float("nan")}

    monkeypatch.setattr(ProtoNet, "meta_loss", sometimes)
    heard = Heard()
    fit(job(small_pool, small_tasksets, tmp_path, "meta"), heard, "sometimes")
    assert {step: metrics.get("train/skipped") for step, metrics in heard.epochs.items()} == {3: None, 6: 1.0, 9: None, 12: None}
    assert all(math.isfinite(value) for metrics in heard.epochs.values() for value in metrics.values())
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "out" / "learner.safetensors").values())


def test_a_fit_that_had_ended_tells_its_epochs_to_the_run_that_takes_it_up(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    fit(job(small_pool, small_tasksets, tmp_path, "meta"), Heard(), "once")
    heard = Heard()
    fit(job(small_pool, small_tasksets, tmp_path, "meta"), heard, "killed while it was calibrated")
    assert heard.again == [3, 6, 9, 12] and not heard.steps


@pytest.mark.parametrize(("name", "learned"), [("meta_sgd", "rates."), ("mamlpp", "norms."), ("meta_curvature", "curvature.")])
def test_what_is_learned_of_the_steps_is_not_pulled_to_zero(name: str, learned: str) -> None:
    learner = store.build(spec(name, **({"norm": "per_step"} if name == "mamlpp" else {})), 0)
    made = Fit(learner, Goal(learner.meta_loss), SECTION, None, None)  # type: ignore[arg-type]
    decayed = {id(p) for group in made.configure_optimizers()["optimizer"].param_groups if group["weight_decay"] for p in group["params"]}
    named = dict(learner.named_parameters())
    assert any(n.startswith(learned) and p.ndim > 1 for n, p in named.items())
    assert {n for n, p in named.items() if id(p) in decayed} == {n for n, p in named.items() if p.ndim > 1 and not n.startswith(learned)}


def test_a_picture_is_bent_where_its_draws_are(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, asked = images._basis, []

    class Elsewhere:  # as a tensor of another device, it multiplies nothing here
        def __init__(self, height: int, width: int) -> None:
            self.sides = height, width

        def to(self, device: torch.device) -> torch.Tensor:
            asked.append(device)
            return usual(*self.sides)

    monkeypatch.setattr(images, "_basis", Elsewhere)
    draws = images.draws(2, torch.Generator().manual_seed(4))
    assert images.bend(torch.rand(2, 1, 28, 28), draws, AUGMENT).shape == (2, 1, 28, 28) and asked == [draws.device]


def test_a_loss_that_is_not_finite_stops_the_fit(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    wild = job(small_pool, small_tasksets, tmp_path, "base", fit=replace(SECTION, lr=1e30))
    with pytest.raises(FloatingPointError, match="Lower lr"):
        fit(wild, Watch(), "wild")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["base", "distill", "protonet", "maml", "imaml", "set_transformer", "ridge", "meta_sgd"])
def test_two_gloo_processes_reach_the_weights_of_one(small_pool: Pool, small_tasksets: Path, tmp_path: Path, kind: str) -> None:
    """Gradients, the statistics of batch normalisation and what is told of a step are those of the whole batch."""
    from safetensors.numpy import load_file

    if kind == "base":
        objective, more = "base", {}
    elif kind == "distill":
        fit(job(small_pool, small_tasksets, tmp_path / "teacher", "meta"), Watch(), "teacher")
        objective, more = "distill", {"teachers": (str(tmp_path / "teacher" / "out"),), "recipe": CONFIG.student.recipe}
    else:
        objective, more = "meta", {"learner": replace(load(["experiment=smoke", f"learner={kind}"]).learner, start="scratch")}
    heard = []
    for name, devices in (("one", 1), ("two", 2)):
        trainer = replace(CONFIG.trainer, threads=1, devices=devices)
        heard.append(Heard())
        fit(job(small_pool, small_tasksets, tmp_path / name, objective, trainer=trainer, fit=replace(SECTION, steps=6, lr=0.001), **more), heard[-1], name)
    one, two = (load_file(tmp_path / name / "out" / "learner.safetensors") for name in ("one", "two"))
    apart = {name: abs(value - two[name]).ravel() for name, value in one.items() if name != "temperature"}  # a search on validation tasks, not a weight
    furthest, all_of_them = max(apart, key=lambda name: apart[name].max()), np.concatenate([*apart.values()])
    # Adam divides by a gradient's size: where attention's is all rounding, an entry may go either way by the rate.
    near = (all_of_them < 1e-5).mean() > 0.999 if kind == "set_transformer" else all_of_them.max() < 1e-5
    assert near and all_of_them.max() < 1e-2, f"{furthest}: {apart[furthest].max():.1e}"
    for alone, together in zip(*(list(h.epochs.values()) for h in heard), strict=True):
        assert alone == pytest.approx(together, rel=1e-4)
