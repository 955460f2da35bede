"""The user's own backbone: weights of plain PyTorch, frozen or tuned, what is refused, and the whole chain from them."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tasks_for_tests import CONV, EVERY, MLP, PICTURES, VECTORS, gradient, predict, spec, tasks
from test_training import SECTION, job
from torch import Tensor, nn
from workspace import SMOKE, Workspace

from components import backbones
from components.domains.pool import Pool
from components.inputs import InputError
from components.job import Watch
from components.launch import fit
from components.learners import store
from components.learners.options import FAMILIES
from components.learning import BackboneStartSection
from components.networks import BatchNorm, Separable, build_backbone, freeze, maxima, share_statistics
from components.plain import to_plain
from flows import cli
from flows.config import load
from flows.plan import Outside, keys

OWN = BackboneStartSection("conv", [16, 32], [True, True], 0, "flatten", "batch", "relu", None, False)


def elsewhere(folder: Path, seed: int = 0) -> nn.Sequential:
    """Run the example of docs/domains.md, where training is a few passes that move the statistics; return its network."""
    example = re.search(r"```python\n(.*?)```", (Path(__file__).parent.parent / "docs" / "domains.md").read_text(), re.S)
    assert example is not None
    folder.mkdir()

    def train(net: nn.Module) -> None:
        for _ in range(5):
            net(torch.rand(8, 1, 28, 28))
        net.eval()

    names: dict = {"train": train, "folder": folder}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        exec(example[1], names)
    return names["net"]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "backbone.safetensors")


def within(folder: Path) -> dict[str, Tensor]:
    """Return the backbone of a stored learner."""
    return {n.removeprefix("backbone."): t for n, t in load_file(folder / "learner.safetensors").items() if n.startswith("backbone.")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_base_without_training_has_the_features_of_the_plain_network(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    net = elsewhere(tmp_path / "own")
    asked = job(small_pool, small_tasksets, tmp_path, "base", backbone=replace(OWN, start=str(tmp_path / "own")), fit=replace(SECTION, steps=0))
    fit(asked, Watch(), "base")
    base, x = store.load(tmp_path / "out")[0], torch.rand(6, 1, 28, 28)
    with torch.no_grad():
        assert torch.allclose(base.backbone(x), net(x).flatten(1), atol=1e-5)


PLAIN = {
    "group": (replace(CONV, widths=[8, 12], norm="group"), PICTURES, lambda width: nn.GroupNorm(max(1, width // 4), width)),
    "instance": (replace(CONV, widths=[8, 12], norm="instance", head="average"), PICTURES, lambda width: nn.GroupNorm(width, width)),
    "colours, one block not pooled": (replace(CONV, pool=[True, False]), (3, 35, 35), nn.BatchNorm2d),
    "last block separable": (replace(CONV, widths=[8, 12], separable=1), PICTURES, nn.BatchNorm2d),
    "mlp": (MLP, VECTORS, None),
}


@pytest.mark.parametrize("section, shape, norm", PLAIN.values(), ids=PLAIN.keys())
def test_tensors_have_the_names_that_the_documents_give_them(section, shape, norm, tmp_path: Path) -> None:
    widths, parts, names = [shape[0], *section.widths], [], {}
    for i, (before, width) in enumerate(pairwise(widths)):
        if section.name == "mlp":
            made = {f"layers.{i}": nn.Linear(before, width)}
        else:
            pool, conv = {"pool": nn.MaxPool2d(2)} if section.pool[i] else {}, f"blocks.{i}.conv"
            made = {conv: nn.Conv2d(before, width, 3, padding=1, bias=False)}
            if i >= len(section.widths) - section.separable:
                each = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
                made = {f"{conv}.depthwise": each, f"{conv}.pointwise": nn.Conv2d(before, width, 1, bias=False)}
            made |= {**pool, f"blocks.{i}.norm": norm(width)}
        for name, part in made.items():
            names[str(len(parts))] = name
            parts.append(part)
        parts.append(nn.ReLU())
    net = nn.Sequential(*parts)
    net(torch.rand(16, *shape))
    own = {f"{names[k.partition('.')[0]]}.{k.partition('.')[2]}": t for k, t in net.eval().state_dict().items()}
    save_file(own, tmp_path / "backbone.safetensors")
    (tmp_path / "backbone.json").write_text(json.dumps(to_plain(section) | {"input_shape": shape}))
    backbone, x = build_backbone(section, shape).eval(), torch.rand(4, *shape)
    backbone.load_state_dict(backbones.load(tmp_path, section, shape))
    with torch.no_grad():
        wanted = net(x).mean((2, 3)) if section.head == "average" else net(x).flatten(1)
        assert torch.allclose(backbone(x), wanted, atol=1e-5)


def test_a_separable_convolution_is_one_whose_kernel_is_a_product() -> None:
    both, x = Separable(5, 7).double(), torch.rand(3, 5, 9, 8, dtype=torch.float64)
    each, mixed = both.depthwise.weight, both.pointwise.weight  # [5, 1, 3, 3], [7, 5, 1, 1]
    assert torch.allclose(both(x), nn.functional.conv2d(x, mixed * each.transpose(0, 1), padding=1))
    assert sum(weight.numel() for weight in both.parameters()) == 9 * 5 + 5 * 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_maxima_are_those_of_torchs_pooling_whether_differentiated_or_not(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = torch.randn(3, 5, 9, 6, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=layout)
    x[1, 2, 4, 3] = torch.nan
    wanted = torch.nn.functional.max_pool2d(x, 2)
    with torch.no_grad():
        found = maxima(x)
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num()) and torch.equal(found.isnan(), wanted.isnan())
    assert found.is_contiguous(memory_format=layout), "the next convolution need not lay it out anew"
    with torch.no_grad(), pytest.raises(RuntimeError, match="Output size is too small"):
        maxima(x[..., :1, :])
    tied = x.round().nan_to_num().requires_grad_()  # of equal pixels one alone is moved, as by torch
    (found,), (wanted,) = (torch.autograd.grad(pooled(tied).square().sum(), tied) for pooled in (maxima, lambda x: torch.nn.functional.max_pool2d(x, 2)))
    assert torch.equal(found, wanted)


def test_weights_of_before_blocks_could_be_separable_are_read(tmp_path: Path) -> None:
    own = tmp_path / "own"
    elsewhere(own)
    told = json.loads((own / "backbone.json").read_text())
    (own / "backbone.json").write_text(json.dumps({name: value for name, value in told.items() if name != "separable"}))
    assert same(backbones.load(own, OWN, None), weights(own))


@pytest.mark.parametrize("objective", ["base", "meta"])
def test_frozen_weights_stay_to_the_last_bit_and_tuned_ones_do_not(small_pool: Pool, small_tasksets: Path, tmp_path: Path, objective: str) -> None:
    elsewhere(tmp_path / "own")
    learned = []
    for frozen in (True, False):
        backbone, folder = replace(OWN, start=str(tmp_path / "own"), frozen=frozen), tmp_path / str(frozen)
        fit(job(small_pool, small_tasksets, folder, objective, backbone=backbone), Watch(), "own")  # a learner whose norm is meta_batch
        assert same(within(folder / "out"), weights(tmp_path / "own")) == frozen
        learned.append(load_file(folder / "out" / "learner.safetensors")["log_scale"])
    fresh = store.load(tmp_path / "True" / "out")[1]
    assert learned[0] != store.build(fresh).state_dict()["log_scale"], "the rest of the learner is trained"


def test_frozen_members_stay_when_all_are_trained_jointly(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    elsewhere(tmp_path / "own")
    members = []
    for name, frozen in (("kept", True), ("moved", False)):
        made = job(small_pool, small_tasksets, tmp_path / name, "meta", backbone=replace(OWN, start=str(tmp_path / "own"), frozen=frozen))
        fit(made, Watch(), name)
        members.append(str(tmp_path / name / "out"))
    fit(job(small_pool, small_tasksets, tmp_path / "joint", "joint", members=tuple(members), weights=(0.5, 0.5)), Watch(), "joint")
    joint = load_file(tmp_path / "joint" / "out" / "learner.safetensors")
    for i, (member, kept) in enumerate(zip(members, (True, False), strict=True)):
        own = {n.removeprefix(f"members.{i}.backbone."): t for n, t in joint.items() if n.startswith(f"members.{i}.backbone.")}
        assert same(own, within(Path(member))) == kept


@pytest.mark.parametrize("name, objective, kind", [one for one in EVERY if FAMILIES[one[0]].beside_start], ids="-".join)
def test_every_learner_trains_what_it_has_beside_a_frozen_backbone(name: str, objective: str, kind: str) -> None:
    learner = store.build(spec(name, objective, kind))
    batch = tasks(way=3 if objective == "cross_entropy" else 1, shape=PICTURES if kind == "conv" else VECTORS)
    learner.eval()
    before = predict(learner, batch)
    freeze(learner.backbone)
    assert torch.equal(predict(learner, batch), before), "frozen or not, it adapts in the same way"
    state = {n: t.clone() for n, t in learner.backbone.state_dict().items()}
    found = gradient(learner.train(), batch)
    assert found and not any(n.startswith("backbone.") for n in found)
    assert all(torch.isfinite(g).all() for g in found.values()) and any(g.any() for g in found.values())
    assert same(learner.backbone.state_dict(), state)


def test_a_frozen_start_leaves_the_gradients_of_everything_else_as_they_were() -> None:
    for name in ("maml", "meta_sgd", "alfa", "mamlpp"):
        learner, batch = store.build(spec(name)).double().train(), tasks(dtype=torch.float64)
        whole = gradient(learner, batch)
        freeze(learner.backbone)
        left = gradient(learner, batch)
        assert left.keys() == {n for n in whole if not n.startswith("backbone.")}
        assert all(torch.allclose(left[n], whole[n], rtol=1e-9, atol=1e-12) for n in left), name
        learner.checkpoint_inner = True
        recomputed = gradient(learner, batch)
        assert recomputed.keys() == left.keys() and all(torch.allclose(left[n], recomputed[n], rtol=1e-9, atol=1e-12) for n in left), name


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    for section, shape in ((CONV, PICTURES), (replace(CONV, norm="group", head="average"), (3, 35, 35)), (MLP, VECTORS)):
        net, folder = build_backbone(section, shape), tmp_path / str(len(list(tmp_path.iterdir())))
        backbones.save(net, section, shape, folder)
        assert same(backbones.load(folder, section, shape), net.state_dict())


def test_the_digest_is_of_the_numbers_and_their_names(tmp_path: Path) -> None:
    elsewhere(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    save_file(dict(reversed(weights(tmp_path / "a").items())), tmp_path / "b" / "backbone.safetensors", metadata={"note": "the same"})
    elsewhere(tmp_path / "c", seed=1)
    a, b, c = (backbones.digest(tmp_path / name) for name in "abc")
    assert a == b != c and backbones.behind(tmp_path / "a") == []
    for told in ("{", "[]", '{"domain": 5}', '{"domain": "glyphs", "trained_on": 5}'):
        (tmp_path / "b" / "lineage.json").write_text(told)
        with pytest.raises(InputError, match=r"lineage.json must tell the classes of a backbone, got something else"):
            backbones.digest(tmp_path / "b")
    (tmp_path / "b" / "lineage.json").write_text('{"domain": "glyphs", "trained_on": ["a"]}')
    assert backbones.digest(tmp_path / "b") != a, "who begins from it keeps that"


def test_other_weights_are_another_base_and_the_same_ones_elsewhere_are_not() -> None:
    usual = keys(load([SMOKE]), "pool", Outside())
    one, other = (keys(load([SMOKE]), "pool", Outside(backbone=digest)) for digest in ("one", "other"))
    moved = {name for name in usual if one[name].fingerprint != other[name].fingerprint}
    assert moved == set(usual) - {"tasksets", "tasksets-final"}
    scratch = [SMOKE, "learner.start=scratch", "learner.options.norm=meta_batch"]
    assert "backbone" in keys(load(scratch), "pool", Outside(backbone="one"))["teacher"].upstream
    assert "backbone" not in one["teacher"].upstream and "backbone" in one["base"].upstream


def plain(folder: Path, **more: object) -> None:
    (folder / "backbone.json").write_text(json.dumps(json.loads((folder / "backbone.json").read_text()) | more))


def tensors(folder: Path, change) -> None:
    state = weights(folder)
    change(state)
    save_file(state, folder / "backbone.safetensors")


ASKED = ["backbone.widths=[16,32]", "backbone.pool=[true,true]"]
WRONG = {
    "no folder": (lambda f: shutil.rmtree(f), [], "without backbone.json and backbone.safetensors"),
    "no weights": (lambda f: (f / "backbone.safetensors").unlink(), [], "without backbone.safetensors"),
    "no JSON": (lambda f: (f / "backbone.json").write_text("{"), [], "backbone.json must hold activation, head"),
    "another field": (lambda f: plain(f, depth=3), [], "backbone.json must hold activation, head"),
    "no shape": (lambda f: plain(f, input_shape="28"), [], "backbone.json must hold activation, head"),
    "other widths": (lambda f: None, ["backbone.widths=[16,16]"], "backbone.widths=[16, 16] must be what backbone.start was trained with, got widths [16, 32]"),
    "another norm": (lambda f: plain(f, norm="group"), [], "backbone.norm=batch must be what backbone.start was trained with, got norm group"),
    "another kind": (lambda f: plain(f, name="mlp"), [], "backbone.name=conv must be"),
    "a tensor too few": (lambda f: tensors(f, lambda s: s.pop("blocks.0.conv.weight")), [], "got no blocks.0.conv.weight"),
    "a tensor too many": (lambda f: tensors(f, lambda s: s.update(head=torch.ones(3))), [], "got an unknown head"),
    "another size": (lambda f: tensors(f, lambda s: s.update({"blocks.1.norm.bias": torch.ones(3)})), [], "blocks.1.norm.bias float32 [3] for float32 [32]"),
    "half precision": (lambda f: tensors(f, lambda s: s.update({"blocks.1.norm.bias": torch.ones(32).half()})), [], "float16 [32] for float32 [32]"),
    "not finite": (lambda f: tensors(f, lambda s: s["blocks.1.norm.bias"].fill_(torch.nan)), [], "blocks.1.norm.bias with numbers that are not finite"),
    "damaged": (lambda f: (f / "backbone.safetensors").write_bytes(b"no weights"), [], "must have readable weights"),
    "reptile frozen": (lambda f: None, ["backbone.frozen=true", "learner=reptile"], "Choose one of maml, fomaml, finetune, anil, meta_sgd, mamlpp"),
    "imaml frozen": (lambda f: None, ["backbone.frozen=true", "learner=imaml"], "learner=imaml learns nothing but where weights start"),
    "two starts": (lambda f: None, ["backbone.frozen=true", "learner.start=models:/glyphs@champion"], "brings other weights"),
}


@pytest.mark.parametrize("spoil, more, words", WRONG.values(), ids=WRONG.keys())
def test_weights_that_do_not_fit_end_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil, more: list[str], words: str) -> None:
    own = tmp_path / "a=b,c"
    elsewhere(own)
    asked = [SMOKE, *ASKED, f"backbone.start={own}"]
    load(asked)  # as they are, they fit
    spoil(own)
    with pytest.raises(SystemExit) as ended:
        cli.answer_early([*asked, *more])
    told = capsys.readouterr()
    assert ended.value.code == 2 and not told.out
    assert told.err.startswith("error: ") and len(told.err.strip().splitlines()) == 1 and words in told.err, told.err


def test_frozen_without_weights_and_inputs_of_another_size_are_refused(tmp_path: Path, small_pool: Pool) -> None:
    from flows.checks import check_pool

    with pytest.raises(InputError, match=r"got backbone.start=null"):
        load(["backbone.frozen=true"])
    elsewhere(tmp_path / "own")
    asked = load([SMOKE, *ASKED, f"backbone.start={tmp_path / 'own'}"])
    check_pool(asked, str(small_pool.path))
    plain(tmp_path / "own", input_shape=[1, 35, 35])
    with pytest.raises(InputError, match=r"must be trained on inputs \[1, 28, 28\], as the domain has, got \[1, 35, 35\]"):
        check_pool(asked, str(small_pool.path))


def test_a_learner_may_start_from_weights_without_statistics_of_its_own(tmp_path: Path) -> None:
    elsewhere(tmp_path / "own")
    scratch = ["learner.start=scratch", "learner.options.norm=running"]
    with pytest.raises(InputError, match="no statistics yet"):
        load([SMOKE, *scratch])
    load([SMOKE, *scratch, *ASKED, f"backbone.start={tmp_path / 'own'}"])


def test_the_architecture_alone_is_in_specifications() -> None:
    assert store.spec_of("base", {}, replace(OWN, start="somewhere", frozen=True), PICTURES, "cross_entropy")["backbone"] == to_plain(CONV) | {
        "widths": [16, 32]
    }


@pytest.mark.slow
def test_two_processes_keep_frozen_weights_and_reach_what_one_does(small_pool: Pool, small_tasksets: Path, tmp_path: Path) -> None:
    elsewhere(tmp_path / "own")
    section = load([SMOKE, "learner=meta_sgd"]).learner
    found = []
    for devices in (1, 2):
        trainer = replace(load([SMOKE]).trainer, threads=1, devices=devices)
        backbone = replace(OWN, start=str(tmp_path / "own"), frozen=True)
        asked = job(small_pool, small_tasksets, tmp_path / str(devices), "meta", backbone=backbone, learner=section, trainer=trainer)
        fit(replace(asked, fit=replace(SECTION, steps=6)), Watch(), "own")
        assert same(within(tmp_path / str(devices) / "out"), weights(tmp_path / "own"))
        found.append(load_file(tmp_path / str(devices) / "out" / "learner.safetensors"))
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-5) for n in found[0] if n != "temperature")


def test_a_normalisation_of_every_step_is_not_exported_as_one(tmp_path: Path) -> None:
    from flows.export import export

    for norm in ("per_step", "task", "running"):
        told = spec("mamlpp", norm=norm)
        store.save(store.build(told), told, tmp_path / norm, {"domain": "glyphs", "trained_on": ["a", "b"], "earlier": {"table": ["c"]}, "objective": "any"})
    export(str(tmp_path / "running"), str(tmp_path / "out"))
    for norm in ("per_step", "task"):
        with pytest.raises(InputError, match=r"export needs one normalisation, got .*Train with learner.options.norm"):
            export(str(tmp_path / norm), str(tmp_path / "none"))
    assert backbones.behind(tmp_path / "out") == [{"domain": "glyphs", "trained_on": ["a", "b"], "earlier": {"table": ["c"]}}]
    assert (tmp_path / "out").exists() and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_the_chain_begins_from_what_a_run_exported(finished: Workspace, new_workspace: Callable[[], Workspace], tmp_path: Path) -> None:
    teacher = next((finished.root / "mlruns/stages/teacher").glob("*/stage.json")).parent
    own = tmp_path / "own"
    finished.run("flows.export", f"model={teacher}", f"out={own}")
    assert same(weights(own), within(teacher))
    ended = finished.run("flows.export", "model=models:/glyphs@champion", f"out={tmp_path / 'fused'}", expect=2)
    assert "needs a learner of one backbone" in ended.stderr and not (tmp_path / "fused").exists()
    frozen = [SMOKE, f"backbone.start={own}", "backbone.frozen=true"]
    workspace = new_workspace()
    assert "glyphs version 1 is champion" in workspace.retrain(*frozen).stdout
    for stage in ("base", "teacher"):
        assert same(within(Path(workspace.outputs(stage)[-1]["ref"]["path"])), weights(own)), stage
    client = workspace.mlflow()
    inputs = client.get_run(workspace.outputs("base")[-1]["ref"]["run_id"]).inputs.dataset_inputs
    assert {i.dataset.name: i.dataset.digest for i in inputs}["backbone"] == backbones.digest(own)[:36]
    dry = workspace.run("flows.retrain", *frozen, "--dry-run").stdout
    assert dry.count(" cached ") == len(dry.splitlines())
    shutil.copytree(own, tmp_path / "moved")
    assert workspace.run("flows.retrain", SMOKE, f"backbone.start={tmp_path / 'moved'}", "backbone.frozen=true", "--dry-run").stdout == dry
    tensors(tmp_path / "moved", lambda state: state["blocks.0.conv.weight"].mul_(2))
    dry = workspace.run("flows.retrain", SMOKE, f"backbone.start={tmp_path / 'moved'}", "backbone.frozen=true", "--dry-run").stdout
    assert re.search(r"\nbase +run +backbone changed", dry)
    plain(own, input_shape=[1, 42, 42])
    ended = workspace.retrain(SMOKE, f"backbone.start={own}", expect=2)
    assert "as the domain has, got [1, 42, 42]" in ended.stderr.strip().splitlines()[-1] and "epoch" not in ended.stderr


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 0.05)])
def test_statistics_shared_with_nobody_are_torchs_own(tmp_path: Path, dtype: torch.dtype, near: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(64, 16, 8, 8) * 3 + 5).contiguous(memory_format=torch.channels_last).to(dtype)
    given, weight, bias = torch.randn(64, 16, 8, 8).to(dtype), torch.rand(16) + 0.5, torch.rand(16)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = []
        for shared in (False, True):
            norm = BatchNorm(16).to(torch.float64 if dtype == torch.float64 else torch.float32)
            norm.load_state_dict(norm.state_dict() | {"weight": weight, "bias": bias})
            share_statistics(norm, shared)
            assert norm.shared == shared
            own = x.clone().requires_grad_()
            y = norm(own)
            y.backward(given)
            found.append([y, own.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
    finally:
        torch.distributed.destroy_process_group()
    for alone, together in zip(*found, strict=True):
        assert alone.dtype == together.dtype
        assert torch.allclose(alone, together, rtol=near, atol=near)
    assert norm.num_batches_tracked == 1
