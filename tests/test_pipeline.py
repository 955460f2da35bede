"""The whole chain on the smoke experiment, through the commands that a user types."""

import json
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import write_run
from workspace import SMOKE, Workspace, until

from components.curves import curves
from components.domains.pool import open_pool
from flows.config import load

STAGES = ["tasksets", "tasksets-final", "base", "teacher", "student-0", "student-1", "student-2", "fused", "evaluation"]


def runs_of(workspace: Workspace) -> list:
    client = workspace.mlflow()
    experiment = client.get_experiment_by_name("glyphs")
    return client.search_runs([experiment.experiment_id], max_results=1000)


def test_the_first_run_ends_with_the_table_and_a_champion(finished: Workspace) -> None:
    out = finished.first.stdout
    for role in ("pixels", "scratch", "base-unadapted", "base", "teacher", "student-2", "students-mean", "fused", "chance"):
        assert f"\n {role} " in out, role
    assert "cached: nothing" in out
    assert "glyphs version 1 is champion: there was no champion" in out


@pytest.mark.slow
def test_what_is_told_to_be_next_can_be_typed_where_it_is_told(finished: Workspace) -> None:
    told = finished.first.stdout.splitlines()[-1].removeprefix("next: ").split(" | ")
    assert [command.split()[-2:] for command in told] == [["-m", "flows.ui"], ["flows.adapt", "--help"], ["flows.evaluate", "--help"]]
    for command in told[1:]:
        ended = subprocess.run(command, shell=True, cwd=finished.root, env=finished.environment | {"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
        assert ended.returncode == 0 and ended.stdout, ended.stderr


def test_a_normal_run_warns_of_nothing(finished: Workspace) -> None:
    told = finished.first.stdout + finished.first.stderr
    assert "Warning" not in told
    assert "Traceback" not in told


def test_the_run_tree_has_the_tags_and_metrics_of_the_design(finished: Workspace) -> None:
    runs = runs_of(finished)
    parent = next(r for r in runs if r.data.tags["stage"] == "retrain")
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert sorted(r.data.tags["stage"] for r in children) == sorted(
        ["tasksets", "tasksets", "base", "teacher", "student", "student", "student", "fused", "evaluate"]
    )
    for tag in ("data.md5", "fingerprint", "git.commit", "prefect.flow_run_id"):
        assert all(tag in r.data.tags for r in [parent, *children]), tag
    for name in STAGES:
        assert parent.data.tags[f"stage.{name}.cached"] == "false"
        assert parent.data.tags[f"stage.{name}.run_id"] in {r.info.run_id for r in children}
    for role in ("teacher", "student", "fused"):
        run = next(r for r in children if r.data.tags["stage"] == role)
        assert {"test/5w1s/accuracy", "test/5w1s/accuracy_ci95", "test/5w1s/ece", "val/accuracy"} <= set(run.data.metrics), role
    assert {"test/5w1s/accuracy", "test/5w1s/teacher/accuracy", "test/5w1s/fused-minus-student-best/accuracy_ci95"} <= set(parent.data.metrics)
    assert parent.data.params["learner.name"] == "protonet"
    inputs = finished.mlflow().get_run(parent.info.run_id).inputs.dataset_inputs
    assert [i.dataset.name for i in inputs] == ["glyphs"]


def test_every_epoch_is_in_mlflow_once(finished: Workspace) -> None:
    base = next(r for r in runs_of(finished) if r.data.tags["stage"] == "base")
    history = finished.mlflow().get_metric_history(base.info.run_id, "train/loss")
    assert [m.step for m in history if m.step > 0] == [40, 80, 120]


def test_all_learners_see_the_same_fixed_tasks(finished: Workspace) -> None:
    import pyarrow.parquet as pq

    folder = next((finished.root / "mlruns/stages/evaluate").glob("*/scores-test.parquet"))
    scores = pq.read_table(folder).to_pandas()
    tasks = scores[(scores.setting == "5w1s") & ~scores.role.str.endswith("scratch")].groupby("role").group.apply(list)
    assert all(t == tasks["teacher"] for t in tasks)
    by_role = scores[scores.setting == "5w1s"].groupby("role").score.mean()
    assert by_role["fused-minus-teacher"] == pytest.approx(by_role["fused"] - by_role["teacher"], abs=1e-12)
    means = by_role["fused"]
    assert means == pytest.approx(finished.metrics()["test/5w1s/fused/accuracy"], abs=1e-12)


def test_students_have_at_most_a_quarter_of_the_default_teachers_parameters() -> None:
    from components.networks import build_backbone

    config = load()
    teacher = sum(p.numel() for p in build_backbone(config.backbone, (1, 28, 28)).parameters())
    for i in range(config.student.count):
        assert sum(p.numel() for p in build_backbone(config.student.backbone(i, config.backbone), (1, 28, 28)).parameters()) <= teacher / 4


def test_an_unchanged_second_run_trains_nothing(finished: Workspace) -> None:
    before = finished.metrics()
    again = finished.retrain(SMOKE, PYTHONPROFILEIMPORTTIME="1")
    assert "ran: nothing" in again.stdout
    assert not re.search(r"\| +torch\n", again.stderr), "who trains nothing need not wait for torch"
    assert f"cached: {', '.join(STAGES)}" in again.stdout
    assert "epoch" not in again.stderr
    assert finished.metrics() == before
    newest = max((r for r in runs_of(finished) if r.data.tags["stage"] == "retrain"), key=lambda r: r.info.start_time)
    assert newest.data.tags["stage.teacher.cached"] == "true"


def test_data_and_pin_are_clean_after_a_run(finished: Workspace) -> None:
    assert (finished.root / "data.dvc").read_bytes() == (Path(__file__).parent.parent / "data.dvc").read_bytes()
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status"], cwd=finished.root, env=finished.environment | {"DVC_NO_ANALYTICS": "1"}, capture_output=True, text=True
    )
    assert "up to date" in status.stdout, status.stdout + status.stderr


def test_a_dry_run_says_what_would_run_and_which_key_changed(finished: Workspace) -> None:
    unchanged = finished.run("flows.retrain", SMOKE, "--dry-run").stdout.splitlines()
    assert [line.split()[:2] for line in unchanged] == [[name, "cached"] for name in STAGES]
    changed = finished.run("flows.retrain", SMOKE, "learner.fit.lr=0.003", "--dry-run").stdout
    verdict = {line.split()[0]: line for line in changed.splitlines()}
    assert verdict["base"].split()[1] == "cached"
    assert verdict["teacher"].split()[1] == "run"
    assert "learner.fit.lr 0.002 -> 0.003" in verdict["teacher"]
    assert "last time" in verdict["teacher"]


def test_a_damaged_output_is_noticed_and_made_again_to_the_last_bit(finished: Workspace) -> None:
    teacher = next((finished.root / "mlruns/stages/teacher").glob("*/learner.safetensors"))
    good = teacher.read_bytes()
    teacher.write_bytes(good[:-10])
    again = finished.retrain(SMOKE)
    assert "ran: teacher (" in again.stdout
    assert "student-0" not in again.stdout.split("ran: ")[1].splitlines()[0]
    assert teacher.read_bytes() == good


def test_the_registered_model_takes_any_way_and_shot_and_holds_no_pickle(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{finished.root / 'mlruns' / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model("models:/glyphs@champion")
    pool = np.load(finished.root / "data/glyphs/inputs.npy", mmap_mode="r")
    for way, shot, queries in ((2, 1, 1), (7, 3, 10)):
        items = np.stack([pool[c * 20 + i] for c in range(way) for i in range(shot)])
        out = model.predict({"support_x": items, "support_y": np.repeat(np.arange(way), shot), "query_x": np.asarray(pool[:queries])})
        assert out.shape == (queries, way)
        assert np.allclose(out.sum(1), 1, atol=1e-5)
    with pytest.raises(Exception, match="shape"):
        model.predict({"support_x": items[:, :20], "support_y": np.repeat(np.arange(way), shot), "query_x": items})
    files = [p.name for p in (finished.root / "mlruns").rglob("*") if p.is_file()]
    assert not [f for f in files if f.endswith((".pkl", ".pickle", ".pt", ".pth"))]


def test_adapt_names_new_pictures_from_a_folder_of_examples(finished: Workspace, tmp_path: Path) -> None:
    pool = np.load(finished.root / "data/glyphs/inputs.npy", mmap_mode="r")
    for c, name in enumerate("ab"):
        (tmp_path / "support" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(255 - pool[c * 20 + i]).resize((80, 80)).save(tmp_path / "support" / name / f"{i}.png")
    (tmp_path / "query").mkdir()
    for i in range(4):
        Image.fromarray(np.asarray(pool[i])).save(tmp_path / "query" / f"{i}.png")
    arguments = [f"{k}={tmp_path / k}" for k in ("support", "query")] + [f"out={tmp_path / 'out.csv'}"]
    (tmp_path / "query" / "notes.txt").write_text("none of them")
    told = finished.run("flows.adapt", "model=models:/glyphs@champion", *arguments).stdout
    assert "4 pictures named among a, b, 1 other file left out (notes.txt)" in told
    lines = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert lines[0] == ["file", "class", "probability", "a", "b"]
    assert [line[0] for line in lines[1:]] == ["0.png", "1.png", "2.png", "3.png"]
    assert all(float(line[3]) + float(line[4]) == pytest.approx(1, abs=2e-4) for line in lines[1:])
    assert any(r.data.tags["stage"] == "adapt" for r in runs_of(finished))
    twice = [str(tmp_path / "support" / name / "0.png") for name in "ab"]  # of one name in two folders
    finished.run("flows.adapt", "model=models:/glyphs@champion", arguments[0], f"query={','.join(twice)}", f"out={tmp_path / 'twice.csv'}")
    assert [line.split(",")[0] for line in (tmp_path / "twice.csv").read_text().splitlines()[1:]] == twice
    kept = sorted(str(path) for path in tmp_path.rglob("*"))
    wrong = {tmp_path: "must be a file", ".": "must be a file", twice[0]: "a file of its own", tmp_path / "no" / "out.csv": "a folder that exists"}
    for out, why in wrong.items():
        asked = [arguments[0], f"query={twice[0]}", f"out={out}"]
        assert why in finished.run("flows.adapt", "model=models:/glyphs@champion", *asked, expect=2).stderr
    ended = finished.run("flows.adapt", "model=models:/glyphs@champion", *arguments, "top=3", expect=2)
    assert "top is of models of ratings" in ended.stderr
    assert sorted(str(path) for path in tmp_path.rglob("*")) == kept, "and nothing is left half-written"


def test_evaluate_repeats_the_pipelines_own_score(finished: Workspace) -> None:
    out = finished.run("flows.evaluate", "model=models:/glyphs@champion", "domain=glyphs", SMOKE).stdout
    wanted = 100 * finished.metrics()["test/5w1s/fused/accuracy"]
    assert f"5w1s: model {wanted:.2f}" in out


def test_a_model_is_examined_on_runs_of_ones_own(finished: Workspace, tmp_path: Path) -> None:
    for name, wrong in (("run01", 0), ("run02", 4)):  # of four pictures the labels say another class
        write_run(tmp_path / name, [(i, i if i >= wrong else (i + 1) % wrong) for i in range(20)])
    teacher = finished.outputs("teacher")[0]["ref"]["path"]
    asked = ["model=models:/glyphs@champion", f"against={teacher}", "domain=glyphs", SMOKE, f"evaluation.challenge={tmp_path}"]
    out = finished.run("flows.evaluate", *asked).stdout
    for how in ("independent decisions", "joint assignment"):
        assert re.search(rf"2 runs.*{how}.*: model 10.00 .*against 10.00 .*model - against \+0.00", out), out  # copies of what is known are known again


def test_two_models_are_compared_on_the_same_tasks(finished: Workspace) -> None:
    teacher = finished.outputs("teacher")[0]["ref"]["path"]
    out = finished.run("flows.evaluate", "model=models:/glyphs@champion", f"against={teacher}", "domain=glyphs", SMOKE).stdout
    m = finished.metrics()
    pair = [f"{100 * m[f'test/5w1s/fused-minus-teacher/accuracy{end}']:{sign}.2f}" for end, sign in (("", "+"), ("_ci95", ""))]
    assert f"against {100 * m['test/5w1s/teacher/accuracy']:.2f}" in out and f"model - against {pair[0]} ± {pair[1]}" in out
    assert "of the test classes were training classes" not in out


@pytest.mark.slow
def test_promotion_refuses_an_equal_model_and_goes_back_by_hand(finished: Workspace) -> None:
    out = finished.retrain(SMOKE, "student.count=1").stdout
    found = re.search(r"glyphs version (\d+) stays challenger: fused - champion on the gate split", out)
    assert found is not None and found[1] != "1"
    finished.run("flows.promote", "model=glyphs", f"version={found[1]}")
    assert str(finished.mlflow().get_model_version_by_alias("glyphs", "champion").version) == found[1]
    finished.run("flows.promote", "model=glyphs", "version=1")
    assert str(finished.mlflow().get_model_version_by_alias("glyphs", "champion").version) == "1"


@pytest.mark.slow
def test_a_guard_rail_refuses_with_its_reason(finished: Workspace) -> None:
    out = finished.retrain(SMOKE, "registry.model=guarded", "registry.max_parameters=10").stdout
    assert "ran: nothing" in out and "guarded version 1 stays challenger" in out and "parameters exceed registry.max_parameters=10" in out
    client = finished.mlflow()
    version = client.get_model_version("guarded", "1")
    assert "max_parameters=10" in version.tags["refused"] and version.tags["decision"].startswith("challenger: there was no champion; refused:")
    assert client.get_run(version.tags["retrain.run_id"]).data.tags["refused"] == version.tags["refused"]
    assert "champion" not in client.get_registered_model("guarded").aliases


def test_metrics_are_compared_digit_by_digit() -> None:
    from flows.reproduce import differences

    assert differences({"a": 0.1, "b": 2.0}, {"a": 0.1, "b": 2.0}) == []
    assert differences({"a": 0.3, "b": 2.0}, {"a": 0.1 + 0.2}) == ["a was 0.3, is 0.30000000000000004", "b was 2.0, is None"]


@pytest.mark.slow
def test_a_pipeline_is_repeated_to_the_last_digit(finished: Workspace) -> None:
    finished.retrain(SMOKE, "evaluation.settings=[5w1s, 5w5s]")  # a value with a blank in it
    client = finished.mlflow()
    runs = client.search_runs([client.get_experiment_by_name("glyphs").experiment_id], "tags.stage = 'retrain'", order_by=["attributes.start_time DESC"])
    told = finished.retrain(f"reproduce={runs[0].info.run_id}")
    count = sum(not name.endswith("/seconds") and "champion" not in name for name in runs[0].data.metrics)
    assert told.stdout.splitlines()[-1] == f"reproduced {runs[0].info.run_id}: {count} metrics equal to the last digit"
    assert "cached: nothing" in told.stdout, "nothing of the first run is used"
    assert not list((finished.root / "mlruns").glob("reproduce-*"))
    for wrong, why in ((["reproduce=nothing"], "id of a finished pipeline"), (["reproduce=x", "seed=1"], "stands alone")):
        assert why in finished.retrain(*wrong, expect=2).stderr


SMALL = ["learner.fit.steps=6", "learner.fit.epoch_steps=3", "learner.tasks_per_step=2"]


@pytest.mark.slow
def test_the_chain_runs_with_a_teacher_that_learns_its_rule(finished: Workspace) -> None:
    out = finished.retrain(SMOKE, "learner=meta_sgd", *SMALL).stdout
    assert "base" in out.split("cached: ")[1].splitlines()[0]  # all learners share one pre-training
    found = [p for p in (finished.root / "mlruns/stages/teacher").glob("*/roles.json") if "meta_sgd" in p.with_name("learner.json").read_text()]
    roles = json.loads(found[0].read_text())
    assert roles["theta"] and roles["theta_meta"] and roles["theta_fixed"] is False


@pytest.mark.slow
def test_recipes_compete_generations_follow_and_the_fused_learner_teaches_again(finished: Workspace) -> None:
    changes = ["student.sweep=[{relation_weight: 1}, {teacher_shots: 2, noise: 0.1}]", "student.sweep_steps=40"]
    more = [
        *changes,
        "student.generations=2",
        "student.widths=[[2, 2, 4, 4], [6, 8, 12, 12], [8, 6, 10, 16]]",  # the first cannot be the best
        "student.teacher=teacher+base",
        "fusion.again={steps: 4, epoch_steps: 2}",
        "fusion.members=[students,base]",
        "fusion.lessons={steps: 4, epoch_steps: 2}",
        "evaluation.ablation=true",
    ]
    out = finished.retrain(SMOKE, *more).stdout
    for difference in ("recipe-relation_weight-1 - recipe-plain", "joined-whitened - joined-average", "joined-taught - joined-average"):
        assert re.search(rf"\n {difference} +[+-]\d", out), difference  # the ablation: paired, on the same test tasks
    assert re.search(r"\n fused-distilled +\d", out) and "fused-distilled - student-best" in out
    ran = out.partition("\nran: ")[2].partition("\n")[0]
    assert {"recipe-plain", "student-0-generation-1", "student-0", "fused"} <= {stage.partition(" (")[0] for stage in ran.split(", ")}
    runs = runs_of(finished)
    parent = max((r for r in runs if r.data.tags["stage"] == "retrain"), key=lambda r: r.info.start_time)
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    tried = {name.split("/")[1]: value for name, value in parent.data.metrics.items() if name.startswith("recipes/") and name.endswith("val/accuracy")}
    assert set(tried) == {"plain", "relation_weight-1", "teacher_shots-2-noise-0.1"}
    assert tried[parent.data.tags["recipe"]] == max(tried.values()), "validation tasks choose the recipe"
    table = Path(finished.mlflow().download_artifacts(parent.info.run_id, "recipes.md")).read_text()
    gaps = {name: (gap, chosen) for name, gap, chosen in re.findall(r"^\| ([\w.-]+) \| [\d.]+ \| [\d.]+ \| (.*) \| (.*) \|$", table, re.M)}
    assert set(gaps) == set(tried) and [name for name, (_, chosen) in gaps.items() if chosen == "yes"] == [parent.data.tags["recipe"]], table
    assert gaps.pop("plain")[0] == ""
    for name, (gap, _) in gaps.items():
        assert float(gap.split()[0]) == pytest.approx(100 * (tried[name] - tried["plain"]), abs=0.006)
    assert any(float(gap.split()[2]) > 0 for gap, _ in gaps.values())
    students = [r for r in children if r.data.tags["stage"] == "student"]
    assert all(r.data.tags["recipe"] == parent.data.tags["recipe"] for r in students)
    generations = {r.info.run_name for r in students}
    assert generations == {f"student-{i}{g}" for i in range(3) for g in ("", "-generation-1")} | {"fused-distilled"}
    students = {output["ref"]["path"]: output["ref"] for output in finished.outputs("student")}
    (again,) = (path for path, ref in students.items() if ref["name"] == "fused-distilled")
    lesson = json.loads(Path(again, "job.json").read_text())
    assert [Path(path).parent.name for path in lesson["teachers"]] == ["fused"]
    made = {r.data.tags["fingerprint"] for r in children}
    for path, ref in students.items():
        if ref["fingerprint"] in made and ref["name"] != "fused-distilled":
            teachers = [Path(one) for one in json.loads(Path(path, "job.json").read_text())["teachers"]]
            if ref["name"].endswith("-generation-1"):
                assert [one.parent.name for one in teachers] == ["teacher", "base"]
            else:
                assert [students[str(one)]["name"] for one in teachers] == [f"{ref['name']}-generation-1"]
    own = {path: ref["metrics"] for path, ref in students.items() if re.fullmatch(r"student-\d", ref["name"]) and ref["fingerprint"] in made}
    assert lesson["start"] == max(own, key=lambda path: (own[path]["val/accuracy"], -own[path]["val/loss"])), "it goes on from the best student"
    assert students[lesson["start"]]["name"] != "student-0"
    assert lesson["backbone"] == json.loads(Path(lesson["start"], "job.json").read_text())["backbone"]
    assert "ran: nothing" in finished.retrain(SMOKE, *more).stdout


@pytest.mark.slow
def test_students_of_one_start_make_a_soup(finished: Workspace) -> None:
    out = finished.retrain(SMOKE, "student.same_start=true", "fusion.mode=soup").stdout
    sizes = dict(re.findall(r"\n (student-0|fused) .* ([\d,]+) +[\d.]+ +[\d.]+ +[\d.]+ *(?=\n)", out))
    assert sizes["fused"] == sizes["student-0"], "a soup is as large as one student"


def test_the_trade_off_is_drawn_and_tabled(finished: Workspace) -> None:
    parent = next(r for r in runs_of(finished) if r.data.tags.get("stage.evaluation.cached") == "false")
    files = {a.path for a in finished.mlflow().list_artifacts(parent.info.run_id, "figures")}
    assert files >= {f"figures/trade-off-{setting}.png" for setting in ("5w1s", "5w5s")}
    told = Path(finished.mlflow().download_artifacts(parent.info.run_id, "trade-off.md")).read_text()
    for setting, role in product(("5w1s", "5w5s"), ("teacher", "student-0", "student-1", "student-2", "fused")):
        at = f"test/{setting}/{role}"
        score, half, seconds = (parent.data.metrics[f"{at}/{name}"] for name in ("accuracy", "accuracy_ci95", "seconds"))  # each setting's own time
        wanted = rf"^\| {setting} \| {role} \| {100 * score:.2f} ± {100 * half:.2f} \|.* \| {1000 * seconds:.2f} \|$"
        assert re.search(wanted, told, re.M), (wanted, told)
    assert parent.data.metrics["test/5w5s/teacher/seconds"] != parent.data.metrics["test/5w1s/teacher/seconds"]
    assert parent.data.metrics["student-0/flops"] < parent.data.metrics["teacher/flops"]
    assert parent.data.metrics["students-mean/parameters"] == sum(parent.data.metrics[f"student-{i}/parameters"] for i in range(3))


@pytest.mark.slow
def test_learners_compare_without_students_and_the_teacher_is_registered(finished: Workspace) -> None:
    learners = ["mamlpp", "lstm", "ridge", "local"]
    out = finished.run("flows.retrain", SMOKE, *SMALL, "student.count=0", f"learner={','.join(learners)}", "--multirun").stdout
    assert len(re.findall(r"\n teacher +\d", out)) == len(learners)
    assert not re.search(r"\n (fused|student)", out)
    assert re.search(rf"{len(learners)} runs, 1 seed each", out) and all(re.search(rf"\n learner={name} +\d", out) for name in learners)
    runs = runs_of(finished)
    sweep = max((r for r in runs if r.data.tags["stage"] == "sweep"), key=lambda r: r.info.start_time)
    siblings = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == sweep.info.run_id]
    assert sorted(r.data.params["learner.name"] for r in siblings) == sorted(learners)
    assert all("test/5w1s/accuracy" in r.data.metrics for r in siblings), "the compare view needs the headline on each"
    assert len(re.findall(r"glyphs: of a sweep's runs, the best by validation tasks contends", out)) == len(learners)
    version = finished.mlflow().get_model_version_by_alias("glyphs", "challenger")
    assert version.run_id in {r.data.tags["stage.teacher.run_id"] for r in siblings} and version.tags["retrain.run_id"] in {r.info.run_id for r in siblings}
    fates = [r.data.tags["fate"] for r in siblings]
    assert fates.count("of a sweep") == 3 and {*fates} - {"of a sweep"} <= {"challenger", "champion"}
    assert f"glyphs version {version.version}" in out.splitlines()[-1] and version.description


@pytest.mark.slow
def test_a_regression_is_scored_drawn_and_serves_its_values(chain, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    workspace, out = chain("sinusoid").workspace, chain("sinusoid").out
    assert "1w10s mse" in out and "\n nearest " in out and "ECE" not in out
    metrics = workspace.metrics()
    assert metrics["test/1w10s/fused/mse"] < metrics["test/1w10s/base-unadapted/mse"]
    mlflow.set_tracking_uri(f"sqlite:///{workspace.root / 'mlruns' / 'mlflow.db'}")
    x = np.linspace(-5, 5, 12, dtype=np.float32)[:, None]
    found = mlflow.pyfunc.load_model("models:/sinusoid@champion").predict({"support_x": x, "support_y": 2 * np.sin(x[:, 0]), "query_x": x})
    assert found.shape == (12, 1) and np.isfinite(found).all()
    final = next(p.parent for p in workspace.root.glob("mlruns/stages/*/*/test-1w10s.parquet"))
    fused = next(p.parent for p in workspace.root.glob("mlruns/stages/fused/*/learner.json"))
    drawn = curves({"fused": str(fused)}, open_pool(workspace.root / "data" / "sinusoid"), final, "1w10s", 2)[1]
    (known, values), (_, asked) = drawn.support, drawn.query
    served = mlflow.pyfunc.load_model("models:/sinusoid@champion").predict({"support_x": known[:, None], "support_y": values, "query_x": drawn.x[:, None]})
    assert drawn.by_learner["fused"] == pytest.approx(served[:, 0], abs=1e-5) and len(asked) == 40
    store = workspace.mlflow()
    run = next(r for r in store.search_runs([store.get_experiment_by_name("sinusoid").experiment_id]) if r.data.tags["stage"] == "retrain")
    assert "figures/adapted-curves-1w10s.png" in {a.path for a in store.list_artifacts(run.info.run_id, "figures")}


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["threads", "dask"])
def test_students_side_by_side_equal_students_one_by_one(finished: Workspace, tmp_path: Path, runner: str) -> None:
    wanted = {p.parent.name: p.read_bytes() for p in (finished.root / "mlruns/stages/student").glob("*/learner.safetensors")}
    kept = tmp_path / "student"
    shutil.move(finished.root / "mlruns/stages/student", kept)
    finished.retrain(SMOKE, f"trainer.runner={runner}")
    made = {p.parent.name: p.read_bytes() for p in (finished.root / "mlruns/stages/student").glob("*/learner.safetensors")}
    assert len(made) == 3
    assert all(wanted[name] == weights for name, weights in made.items())
    shutil.copytree(kept, finished.root / "mlruns/stages/student", dirs_exist_ok=True)


@pytest.mark.slow
def test_a_sweep_ends_as_sibling_runs_under_one_parent(finished: Workspace) -> None:
    finished.run("flows.retrain", SMOKE, "fusion.mode=average,weights", "--multirun")
    runs = runs_of(finished)
    sweep = next(r for r in runs if r.data.tags["stage"] == "sweep")
    siblings = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == sweep.info.run_id]
    assert sorted(r.data.params["fusion.mode"] for r in siblings) == ["average", "weights"]
    assert {r.info.status for r in [sweep, *siblings]} == {"FINISHED"}
    assert [file.path for file in finished.mlflow().list_artifacts(sweep.info.run_id, "figures")] == ["figures/sweep.png"]


@pytest.mark.slow
def test_data_stay_what_they_are_while_a_model_is_scored(finished: Workspace) -> None:
    scoring = finished.start("flows.evaluate", "model=models:/glyphs@champion", "domain=glyphs", SMOKE, "evaluation.tasks=20000")
    try:
        until(lambda: [*(finished.root / "mlruns").glob(".evaluate-*")])
        refused = finished.retrain(SMOKE, "domain.source.render_seed=5", expect=2).stderr
        assert scoring.poll() is None and "data/glyphs must stay as it is while another pipeline uses it" in refused
    finally:
        scoring.kill()
        scoring.communicate()
