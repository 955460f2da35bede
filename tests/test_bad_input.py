"""Bad input: one line that says what was required, what was received, what to do; exit code 2; before any work."""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from workspace import SMOKE, Workspace

from components.contracts import AugmentSection
from components.inputs import InputError
from components.learners import store
from flows import cli, paths

AUGMENT = [field.name for field in dataclasses.fields(AugmentSection)]
PER_STEP = ["learner=mamlpp", "learner.options.norm=per_step"]
BAD = {
    "unknown group choice": ["learner=resnet"],
    "two choices of one group": ["learner=[maml,protonet]"],
    "a path as a choice": ["experiment=../../etc/passwd"],
    "unknown key": ["tasks.wya=5"],
    "unknown section": ["nothing=1"],
    "added key": ["+trainer.x=1"],
    "forced key": ["++trainer.x=1"],
    "deleted key": ["~trainer"],
    "no value": ["seed"],
    "a value of the environment": ["registry.model=${oc.env:HOME}"],
    "a path that is no key": ["domain.source.root=/tmp"],
    "wrong type": ["tasks.way=many"],
    "wrong literal": ["tasks.within=alphabet"],
    "way below two": ["tasks.way=1"],
    "way of zero": ["tasks.way=0"],
    "two ways of values": ["experiment=sinusoid", "tasks.way=2"],
    "a setting of one way of classes": ["evaluation.settings=[1w5s]"],
    "a learner that cannot do the domain": ["experiment=sinusoid", "learner=protonet"],
    "feature maps of vectors": ["experiment=sinusoid", "learner=local"],
    "no statistics yet": ["learner.start=scratch", "learner=maml"],
    "an inner rate of zero": ["learner=maml", "learner.options.inner_lr=0"],
    "heads that do not divide": ["learner=set_transformer", "learner.options.heads=7"],
    "annealing above one": ["learner=mamlpp", "learner.options.annealing=1.5"],
    "recomputing without an inner loop": ["learner=protonet", "learner.checkpoint_inner=true"],
    "a ridge that is not positive": ["learner=ridge", "learner.options.ridge=-1"],
    "parts that do not divide": ["trainer.accumulate=3"],
    "shares beyond one": ["experiment=sinusoid", "domain.splits.shares.test=1.5"],
    "a scale below zero": ["learner=maml", "learner.options.scale=-1"],
    "a challenge that is no folder": ["domain=omniglot", "evaluation.challenge=/nowhere/runs"],
    "a look-alike without original drawings": ["evaluation.challenge=lookalike"],
    "a challenge of values": ["experiment=sinusoid", "evaluation.challenge=lookalike"],
    "no challenge runs": ["evaluation.challenge_runs=0"],
    "shot of zero": ["tasks.shot=0"],
    "negative rate": ["learner.fit.lr=-0.1"],
    "steps not a multiple": ["base.fit.steps=7"],
    "negative inner steps": ["learner=maml", "learner.options.inner_steps=-1"],
    "bad setting": ["evaluation.settings=[5way]"],
    "no settings": ["evaluation.settings=[]"],
    "a group in two splits": ["domain.splits.val=[Lao]"],
    "too many students": ["student.count=9"],
    "soft weight above one": ["student.recipe.soft_weight=1.5"],
    "a share above one": ["student.recipe.cutmix=1.5"],
    "halves of what is no picture": ["experiment=sinusoid", "student.sweep=[{cutmix: 0.5}]"],
    "a sweep of nothing known": ["student.sweep=[{hardness: 1}]"],
    "a sweep of half examples": ["student.sweep=[{teacher_shots: 1.5}]"],
    "a sweep out of range": ["student.sweep=[{temperature: 0}]"],
    "a sweep that is no whole number of epochs": ["student.sweep=[{noise: 0.1}]", "student.sweep_steps=30"],
    "features of a teacher without an encoder": ["learner=maml", "student.recipe.feature_weight=1"],
    "an endpoint that listens everywhere": ["serving.host="],
    "stars of what was touched or not": ["experiment=clicks", "evaluation.scores=[mae]"],
    "greedy choice by an order": ["experiment=clicks", "fusion.mode=greedy"],
    "an LSTM through its gradients": ["learner=lstm", "learner.options.first_order=false"],
    "a second order of Reptile": ["learner=reptile", "learner.options.first_order=false"],
    "a first order of what is implicit": ["learner=imaml", "learner.options.first_order=true"],
    "another activation of convolutions": ["backbone.activation=tanh"],
    "an order of returns": ["experiment=navigation", "evaluation.scores=[ndcg_5]"],
    "training classes of values": ["experiment=sinusoid", "student.recipe.class_weight=1"],
    "one of several teachers is nobody": ["student.teacher=teacher+someone"],
    "no generations": ["student.generations=0"],
    "a soup of different starts": ["fusion.mode=soup"],
    "a soup of one": ["fusion.mode=soup", "student.same_start=true", "student.count=1"],
    "a temperature of values": ["experiment=ratings", "student.recipe.temperature=2"],
    "temperatures of values that compete": ["experiment=sinusoid", "student.sweep=[{temperature: 2}]", "student.sweep_steps=500"],
    "a sweep without end": ["student.sweep=[{teacher_shots: inf}]"],
    "a sweep of no number": ["student.sweep=[{noise: nan}]"],
    "an endless weight of relations": ["student.recipe.relation_weight=inf"],
    "an endless decay": ["student.learner.fit.weight_decay=inf"],
    "an endless shear": ["domain.augment.shear=inf"],
    "an order of one": ["experiment=clicks", "domain.source.file=pyproject.toml", "tasks.query=1"],
    "a change that changes nothing": ["student.sweep=[{soft_weight: 0.7}]"],
    "no change": ["student.sweep=[{}]"],
    "copies that are all alike": ["learner.views=5", *(f"domain.augment.{name}=0" for name in AUGMENT)],
    "a soup with the teacher": ["fusion.mode=soup", "student.same_start=true", "fusion.members=[students,teacher]"],
    "a mean a class of a gradient-based member": ["learner=maml", "fusion.mode=whitened", "fusion.members=[students,teacher]"],
    "a member twice": ["fusion.members=[students,students]"],
    "conditioned values": ["experiment=sinusoid", "fusion.mode=conditioned"],
    "steps as one of members that take none": ["learner=maml", "fusion.members=[students,teacher]", "fusion.adapt=joint"],
    "conditioned weights of steps as one": ["fusion.mode=conditioned", "fusion.adapt=joint"],
    "policies that adapt as one": ["experiment=navigation", "fusion.adapt=joint"],
    "students' tasks that do not divide": ["trainer.accumulate=4", "learner.tasks_per_step=4", "base.batch=128", "student.learner.tasks_per_step=2"],
    "turns that are no turns": ["tasks.turns=3"],
    "students that start from a model": ["student.learner.start=models:/nothing@champion"],
    "students that start from the base": ["student.learner.start=pretrained"],
    "a batch that does not split": ["base.batch=100"],
    "one pixel to compare": ["backbone.norm=instance"],
    "more separable blocks than there are": ["backbone.separable=5"],
    "separable layers of an mlp": ["experiment=sinusoid", "backbone.separable=1"],
    "students of more separable blocks than they have": ["student.separable=5"],
    "a student without a pixel": ["student.widths=[[8,8,8,8,8]]", "student.pool=[true,true,true,true,true]", "student.count=1"],
    "smoothed values": ["experiment=sinusoid", "base.label_smoothing=0.1"],
    "a batch of one": ["base.batch=1"],
    "a network of vectors for pictures": ["backbone=mlp"],
    "a network of pictures for points": ["experiment=sinusoid", "backbone=conv4"],
    "smoothing beyond one": ["base.label_smoothing=1.5"],
    "no chance at all": ["experiment=navigation", "base.policy.explore=0"],
    "every step and none": ["experiment=navigation", "learner.options.every=0"],
    "steps that outlive what was played": ["experiment=navigation", "learner.options.updates=7"],
    "one task to compare": ["experiment=navigation", "learner.tasks_per_step=1"],
    "fewer query episodes than rounds": ["experiment=navigation", "tasks.query=3"],
    "means of another distance": ["fusion.mode=whitened", "student.learner.options.distance=euclidean"],
    "classes that the fused one cannot teach": [
        *("student.teacher=base", "learner=maml", "fusion.members=[students,teacher]", "fusion.again.steps=100"),
        "student.recipe.class_weight=0.5",
    ],
    "turns of vectors": ["experiment=sinusoid", "tasks.turns=8"],
    "vectors that are bent": ["experiment=ratings", "domain.augment.scale=0.5"],
    "several ways of values": ["experiment=ratings", "evaluation.settings=[5w5s]"],
    "a setting twice": ["evaluation.settings=[5w1s,05w1s]"],
    "ways that are no number": ["evaluation.settings=[²w1s]"],
    "no folder of one's own pictures": ["experiment=image_folder"],
    "a folder of pictures that is not there": ["experiment=image_folder", "domain.source.root=/nowhere/at=all"],
    "no table of one's own": ["experiment=table"],
    "a release that is none": ["experiment=ratings", "domain.source.release=ml-25m"],
    "all items new": ["experiment=ratings", "domain.source.new_items=1"],
    "cells of fewer than none": ["experiment=ratings", "domain.source.new_items=0.2", "domain.source.cells=-1"],
    "cells without new items": ["experiment=ratings", "domain.source.cells=15"],
    "cells of fewer than are asked for": ["experiment=ratings", "domain.source.new_items=0.2", "domain.source.cells=14"],
    "cells of fewer touches than are asked for": ["experiment=clicks", "domain.source.new_items=0.2", "domain.source.cells=9"],
    "no untouched items": ["experiment=clicks", "domain.source.negatives=0"],
    "ratings that are not there": ["experiment=ratings", "domain.source.file=/nowhere.csv"],
    "turned vectors": ["experiment=table", "domain.source.file=README.md", "base.turns=4"],
    "filling what is not standardised": ["experiment=table", "domain.source.missing=mean", "domain.source.standardise=false"],
    "a challenge in colour": ["experiment=image_folder", "domain.source.root=/tmp", "domain.source.colour=true", "evaluation.challenge=/tmp"],
    "a backbone that is not there": ["backbone.start=/nowhere/a=b,c"],
    "frozen without weights": ["backbone.frozen=true"],
    "bad teacher": ["student.teacher=someone"],
    "a model whose name is a path": ["registry.model=a/b"],
    "a model without a name": ["registry.model="],
    "a margin that is no number": ["registry.margin=nan"],
    "an order of classes": ["tasks.order_weight=1"],
    "a linear member of classes": ["fusion.members=[students,linear]"],
    "a linear member alone": ["experiment=ratings", "fusion.members=[linear]"],
    "bad start": ["learner.start=middle"],
    "negative seed": ["seed=-1"],
    "canvas not divisible": ["domain.source.size=29"],
    "no devices": ["trainer.devices=0"],
    "a precision that does not exist": ["trainer.precision=64-true"],
    "a rule of its own loss for a student": ["learner@student.learner=reptile", "backbone.norm=group"],
    "statistics of every step, recomputed": [*PER_STEP, "learner.options.multi_step_loss=false", "learner.checkpoint_inner=true"],
    "statistics of every step on several devices": [*PER_STEP, "trainer=ddp_sim"],
    "no steps on several devices": ["learner=meta_sgd", "learner.options.inner_steps=0", "trainer=ddp_sim"],
    "an endless rate": ["learner.fit.lr=inf"],
    "machines without a place to meet": ["trainer=ddp", "trainer.nodes=2"],
    "a place to meet without a port": ["trainer=ddp", "trainer.nodes=2", "trainer.rendezvous=head"],
    "students at once on two machines": ["trainer=ddp", "trainer.nodes=2", "trainer.rendezvous=head:29500", "trainer.runner=dask"],
    "a list without multirun": ["tasks.way=5,20"],
    "unknown flag": ["--fast"],
    "cfg of something else": ["--cfg", "all"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.answer_early(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.strip().splitlines()) == 1
    assert told.err.startswith("error: ")
    assert len(told.err) < 400


def test_the_line_names_the_key_what_it_takes_and_what_it_got(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["tasks.way=1"], ("tasks.way", "2", "1")),
        (["learner=resnet"], ("learner", "protonet", "resnet")),
        (["tasks.wya=5"], ("tasks.wya", "way")),
    ):
        with pytest.raises(SystemExit):
            cli.answer_early(arguments)
        told = capsys.readouterr().err
        assert all(word in told for word in words), told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fusoin: {views: 2}", "fusoin is not a key; there are experiment,"),
        ("student: {recipe: {cutmx: 0.9}}", "student.recipe.cutmx is not a key; there are temperature,"),
        ("learner: {options: {inner_step: 3}}", "learner.options.inner_step is not a key; there are"),
    ],
)
def test_a_misspelt_key_of_a_file_is_told(text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import config

    shutil.copytree(config.CONF, tmp_path / "conf")
    file = tmp_path / "conf/experiment/own.yaml"
    file.write_text(f"# @package _global_\ndefaults: [smoke]\n{text}\n")
    monkeypatch.setattr(config, "CONF", tmp_path / "conf")
    with pytest.raises(InputError, match=f"^{re.escape(told)}"):
        config.load(["experiment=own"])
    file.write_text("# @package _global_\ndefaults: [smoke]\n")
    config.load(["experiment=own"])


@pytest.mark.parametrize("name", sorted(path.stem for path in (paths.HOUSE / "conf/experiment").glob("*.yaml")))
def test_every_experiment_has_keys_that_do_something(name: str, tmp_path: Path) -> None:
    from flows.config import load

    (tmp_path / "class").mkdir()
    (tmp_path / "rows.csv").write_text("label,a\n")
    own = {"image_folder": f"domain.source.root={tmp_path}", "table": f"domain.source.file={tmp_path / 'rows.csv'}"}
    own["clicks"] = own["table"]
    load([f"experiment={name}", *([own[name]] if name in own else [])])


def test_a_path_key_is_taken_verbatim() -> None:
    from flows.config import load

    assert load(["mirror=/data/a=b,c"]).mirror == "/data/a=b,c"
    assert load(["mirror=/data/${seed}", "evaluation.challenge=null"]).mirror == "/data/${seed}"


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(path.stem for path in (paths.CODE / "flows").glob("*.py") if '__name__ == "__main__"' in path.read_text()))
def test_every_command_tells_how_it_is_called(module: str, tmp_path: Path) -> None:
    asked, own = [sys.executable, "-m", f"flows.{module}", "--help"], os.environ | {"FEWLOOP_ROOT": str(tmp_path)}
    made = subprocess.run(asked, cwd=paths.CODE, env=own, capture_output=True)
    assert made.returncode == 0 and f"flows.{module}" in made.stdout.decode() and not [*tmp_path.iterdir()]


LATER = {
    "way beyond the pool": (["tasks.way=500"], "way=500 needs 500 classes"),
    "shots beyond the items": (["tasks.shot=30"], "items a class"),
    "missing data version": (["data.pin=nowhere"], "data.pin must be a run id, a git revision or a data.dvc file"),
    "missing champion to start from": (["learner.start=models:/nobody@champion"], "must be a registered model"),
    "scratch without statistics": (["learner.start=scratch", "learner.options.norm=running"], "no statistics yet"),
    "a split that the source lacks": (["domain.splits.test=[Klingon]"], "Klingon"),
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides, words", LATER.values(), ids=LATER.keys())
def test_what_only_data_or_registry_can_tell_is_told_before_training(new_workspace, overrides: list[str], words: str) -> None:
    workspace = new_workspace()
    ended = workspace.retrain("experiment=smoke", *overrides, expect=2)
    line = ended.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and words in line, ended.stderr
    assert "epoch" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not workspace.outputs("base")


@pytest.mark.slow
def test_an_mlflow_that_does_not_answer_is_told_before_training(new_workspace) -> None:
    workspace = new_workspace()
    ended = workspace.retrain("experiment=smoke", expect=2, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert "MLflow must answer at http://127.0.0.1:9" in ended.stderr.strip().splitlines()[-1]
    assert not workspace.outputs("base")


@pytest.mark.slow
def test_an_unreadable_pin_is_told(new_workspace) -> None:
    workspace = new_workspace()
    (workspace.root / "data.dvc").write_text("outs: 3\n")
    ended = workspace.retrain("experiment=smoke", expect=2)
    assert "data.dvc must be a DVC file" in ended.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_taken_port_is_told(new_workspace) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = new_workspace().run("flows.ui", str(taken.getsockname()[1]), expect=2)
    assert "must be free" in ended.stderr


@pytest.mark.slow
def test_a_text_file_as_a_picture_is_told(finished, tmp_path) -> None:
    for name in "ab":
        (tmp_path / "support" / name).mkdir(parents=True)
        (tmp_path / "support" / name / "0.png").write_text("not a picture")
    (tmp_path / "query").mkdir()
    arguments = [f"{k}={tmp_path / k}" for k in ("support", "query")] + [f"out={tmp_path / 'out.csv'}"]
    ended = finished.run("flows.adapt", "model=models:/glyphs@champion", *arguments, expect=2)
    assert "must be a PNG, JPEG or WebP picture" in ended.stderr
    assert not (tmp_path / "out.csv").exists()


def test_a_gpu_that_is_not_there_is_told_where_training_would_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from flows.checks import check_devices
    from flows.config import load

    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        check_devices(load(["trainer=cpu"]))
        with pytest.raises(InputError, match=r"trainer.accelerator=gpu needs a GPU") if not there else contextlib.nullcontext():
            check_devices(load(["trainer=gpu"]))


@pytest.mark.slow
def test_what_is_refused_leaves_data_and_pin_as_they_were(new_workspace, finished: Workspace) -> None:
    def kept(of: Workspace) -> tuple[str, list[str]]:
        return (of.root / "data.dvc").read_text(), sorted(str(p) for p in (of.root / "data").rglob("*"))

    before = kept(finished)
    ended = finished.run("flows.evaluate", "model=models:/glyphs@champion", "experiment=sinusoid", expect=2)
    assert (
        ended.stderr
        == "error: models:/glyphs@champion predicts by cross_entropy, but domain sinusoid asks for squared_error. Choose another model or another domain.\n"
    )
    ended = finished.run("flows.evaluate", "model=models:/glyphs@champion", SMOKE, "domain.source.size=21", expect=2)
    assert "The model takes inputs [1, 28, 28], but domain glyphs has [1, 21, 21]" in ended.stderr and kept(finished) == before
    smaller = finished.root / "smaller"  # a learner of 14x14 pixels
    _, spec, about = store.load(finished.outputs("teacher")[0]["ref"]["path"])
    spec |= {"input_shape": [1, 14, 14], "backbone": spec["backbone"] | {"widths": [8], "pool": [True]}}
    store.save(store.build(spec), spec, smaller, about)
    ended = finished.run("flows.evaluate", "model=models:/glyphs@champion", f"against={smaller}", SMOKE, expect=2)
    assert "The model takes inputs [1, 14, 14], but domain glyphs has [1, 28, 28] (against=). Choose another" in ended.stderr
    workspace = new_workspace()
    before = kept(workspace)
    ended = workspace.retrain(SMOKE, "domain.source.render_seed=3", "tasks.shot=30", expect=2)
    assert "items a class" in ended.stderr and "NEW DATA VERSION" not in ended.stderr and kept(workspace) == before
