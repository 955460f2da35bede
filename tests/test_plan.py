"""The plan of a pipeline: what is in a stage's key, by what name an output is found, and why a stage runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_gc import made
from workspace import SMOKE

from flows import caching, plan
from flows.config import load
from flows.plan import Outside, keys, seed_of_student, student_rows


def test_the_reason_to_run_is_what_differs_from_the_nearest_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWLOOP_ROOT", str(tmp_path))
    own = made("teacher", 1, 0.0, pool="ours", base="ours")
    made("teacher", 7, 0.0, pool="of another domain", base="theirs")  # newer
    asked = replace(own, section={"value": 2})
    assert caching.why(asked) == ("value 1 -> 2", 1.0)
    assert caching.why(replace(asked, upstream={"pool": "of another domain", "base": "theirs"}))[0] == "value 7 -> 2"
    assert caching.why(replace(asked, name="base", stage="base")) == ("never run", None)


def test_a_stage_that_another_pipeline_made_has_the_name_by_which_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWLOOP_ROOT", str(tmp_path))
    own = made("recipe-plain", 1, 0.0, pool="ours")
    same = replace(own, name="recipe-class_weight-0.5")
    assert same.fingerprint == own.fingerprint
    found = [caching.lookup(key) for key in (own, same)]
    assert [ref.name for ref in found if ref] == ["recipe-plain", "recipe-class_weight-0.5"]


def test_what_a_stage_does_not_read_is_not_in_its_key() -> None:
    asked = ["experiment=omniglot_small1", "fusion.fit.steps=100"]
    before = keys(load(asked), "pool", Outside())
    for more, own in (
        (["fusion.again.steps=1300"], {"fused-distilled"}),
        (["fusion.mode=average", "fusion.lessons.lr=0.1"], {"fused", "fused-distilled"}),
        (["student.learner.fit.steps=1300"], {"student-0", "student-1", "student-2", "fused", "fused-distilled"}),
    ):
        after = keys(load([*asked, *more]), "pool", Outside())
        assert {name for name in before if after[name].fingerprint != before[name].fingerprint} == own | {"evaluation"}, more
    plain, other = (keys(load([*asked, "fusion.mode=average", f"fusion.lessons.lr={lr}"]), "pool", Outside())["fused"] for lr in (0.1, 0.2))
    assert plain.fingerprint == other.fingerprint, "an average trains nothing"


def test_who_teaches_or_is_champion_runs_by_the_code_of_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, spec in (("cnp", {"name": "views", "member": {"name": "cnp"}}), ("fused", {"name": "fused", "members": [{"name": "maml"}, {"name": "theta*"}]})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "learner.json").write_text(json.dumps({"spec": spec}))
    asked = load(["experiment=smoke", "student.teacher=models:/x@champion"])
    outside = Outside(teachers={"models:/x@champion": (str(tmp_path / "cnp"), "f")}, champion=(str(tmp_path / "fused"), "c"))
    before = keys(asked, "pool", outside)
    usual = plan.code_digest
    for module, own in (("memory", {"student-0", "student-1", "student-2", "fused", "evaluation"}), ("gradient", {"evaluation"})):
        monkeypatch.setattr(plan, "code_digest", lambda *modules, changed=module: usual(*modules) + "!" * (f"components.learners.{changed}" in modules))
        after = keys(asked, "pool", outside)
        assert {name for name in before if after[name].fingerprint != before[name].fingerprint} == own, module


def test_students_of_three_seeds_have_nine_seeds_and_the_one_that_goes_on_its_own() -> None:
    seeds = [row.seed for seed in range(3) for row in student_rows(load([SMOKE, f"seed={seed}"]))]
    seeds += [seed_of_student(seed, "again") for seed in range(3)]
    assert len(set(seeds)) == 12 and all(0 <= seed < 2**31 for seed in seeds)


def test_parts_of_a_batch_are_in_the_keys_of_all_that_is_trained() -> None:
    whole, parts = (keys(load(["trainer=cpu", f"trainer.accumulate={n}"]), "pool", Outside()) for n in (1, 2))
    changed = {name for name in whole if whole[name].fingerprint != parts[name].fingerprint}
    assert changed == set(whole) - {"tasksets", "tasksets-final"}
