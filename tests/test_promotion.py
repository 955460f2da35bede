"""Promotion with a real registry: who is compared with whom, and what two pipelines at once, a kill or a silent MLflow may not do."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from tasks_for_tests import CONV
from workspace import SMOKE, free_port

from components.contracts import StageRef
from components.domains.pool import Pool
from components.inputs import InputError
from components.learners import store
from flows import evaluate, paths, promotion, registry, spool, tracking
from flows.checks import check_outside
from flows.config import load
from flows.plan import Outside
from flows.promote import promote
from flows.stages import Pipeline
from flows.versions import Pinned

BETTER = {"gate/fused-minus-champion/accuracy": 0.1, "gate/fused-minus-champion/accuracy_ci95": 0.01}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A registered model with versions 1, 2, 3 of fingerprints a, b, c."""
    monkeypatch.setenv("FEWLOOP_RUNS", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking.open_store("glyphs")
    tracking.store().create_registered_model("glyphs")
    for fingerprint in "abc":
        tracking.store().create_model_version("glyphs", "source", tags={"fingerprint": fingerprint})
    yield "glyphs"
    tracking.client.cache_clear()


def decided(folder: Path, pool: Pool, ours: str, compared: str | None, margin: float = 0.0, trained: Sequence[str] = ()) -> promotion.Decision:
    """Decide about the version of fingerprint `ours`, which was better than that of `compared`, and trained on these classes."""
    (folder / "learner.json").write_text(json.dumps({"about": {"domain": "glyphs", "trained_on": [*trained]}}))
    experiment = tracking.open_store("glyphs")
    with tracking.run(experiment, "pipeline", {"stage": "retrain"}) as run_id:
        line = Pipeline(load([SMOKE, f"registry.margin={margin}"]), experiment, run_id, {"data.md5": "x"})
        pinned = Pinned("glyphs", str(pool.path), "x", "x", "", "already there", False)
        fused, evaluation = (
            StageRef(name, name, str(folder), ours, "d", run_id, 1.0, False, BETTER if name == "evaluation" else {}) for name in ("fused", "evaluation")
        )
        return promotion._promote(line, pinned, fused, evaluation, Outside(champion=(str(folder), compared) if compared else None))


def test_classes_are_met_again_in_a_variant_of_the_domain_that_a_model_trained_on(small_pool: Pool, tmp_path: Path) -> None:
    config, names = load([SMOKE]), small_pool.classes["name"].to_pylist()
    tested, gated = ([names[int(c)] for c in small_pool.split(split)] for split in ("test", "gate"))
    spec = store.spec_of("protonet", config.learner.options, config.backbone, small_pool.input_shape, "cross_entropy")
    pool = replace(small_pool, domain="omniglot")
    pinned = Pinned("omniglot", str(pool.path), "x", "x", "", "already there", False)
    for of, behind, met in (("omniglot-across", "table", 2), ("table", "omniglot-across", 1), ("table", "ratings", 0)):
        about = {"domain": of, "trained_on": tested[:2], "earlier": {behind: [tested[2], "none of these"]}}
        store.save(store.build(spec), spec, tmp_path / of / behind, about)
        model = {"model": (tmp_path / of / behind, store.load(tmp_path / of / behind))}
        assert len(evaluate._compared(model, config, pool)[1]["model"]) == met
        store.save(store.build(spec), spec, tmp_path / of / behind, about | {"trained_on": [tested[0], gated[0]]})
        assert promotion._met(str(tmp_path / of / behind), pinned) == met


def champion() -> str | None:
    found = tracking.alias("glyphs", "champion")
    return found.tags["fingerprint"] if found else None


def test_who_beat_a_champion_that_is_one_no_more_waits_for_the_next_run(model: str, small_pool: Pool, tmp_path: Path) -> None:
    tracking.store().set_registered_model_alias(model, "champion", "1")
    assert decided(tmp_path, small_pool, "b", "a").champion and champion() == "b"
    late = decided(tmp_path, small_pool, "c", "a")  # planned before b was promoted
    assert not late.champion and "version 2 became champion meanwhile" in late.reason and champion() == "b"
    assert "decision" not in tracking.version_with(model, "fingerprint", "c").tags
    assert decided(tmp_path, small_pool, "c", "b").champion and champion() == "c"


def test_who_stayed_challenger_is_judged_anew_on_other_terms_and_who_was_champion_is_not(model: str, small_pool: Pool, tmp_path: Path) -> None:
    store = tracking.store()
    store.set_registered_model_alias(model, "champion", "1")
    assert not decided(tmp_path, small_pool, "b", "a", margin=0.5).champion
    assert decided(tmp_path, small_pool, "b", "a", margin=0.5).reason.startswith("decided before: challenger")
    assert decided(tmp_path, small_pool, "b", "a").champion and champion() == "b", "another margin"
    store.set_registered_model_alias(model, "champion", "3")  # by hand
    assert decided(tmp_path, small_pool, "b", "c", margin=0.0).reason.startswith("decided before: champion") and champion() == "c"


def test_who_knows_the_test_classes_becomes_champion_by_hand_alone(model: str, small_pool: Pool, tmp_path: Path) -> None:
    tested = small_pool.classes["name"].to_pylist()[int(small_pool.split("test")[0])]
    for compared in (None, "a"):
        decision = decided(tmp_path, small_pool, "b" if compared else "c", compared, trained=[tested])
        assert not decision.champion and "trained on 1 of the gate and test classes" in decision.reason and champion() is None


def test_of_two_first_pipelines_the_second_is_no_champion_unseen(model: str, small_pool: Pool, tmp_path: Path) -> None:
    assert decided(tmp_path, small_pool, "a", None).reason == "there was no champion"
    assert not decided(tmp_path, small_pool, "b", None).champion and champion() == "a"


def test_a_kill_between_the_alias_and_its_reason_changes_no_history(model: str, small_pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking.store().set_registered_model_alias(model, "champion", "1")
    usual = tracking.client(tracking.uri()).set_model_version_tag

    def killed(name: str, version: str, tag: str, value: str) -> None:
        if tag == "decision":
            raise KeyboardInterrupt
        usual(name, version, tag, value)

    with monkeypatch.context() as patched:
        patched.setattr(tracking.client(tracking.uri()), "set_model_version_tag", killed)
        with pytest.raises(KeyboardInterrupt):
            decided(tmp_path, small_pool, "b", "a")
    assert champion() == "b" and tracking.version_with(model, "fingerprint", "b").tags["incumbent"] == "a"
    monkeypatch.setattr(tracking, "model_folder", lambda reference: tmp_path)  # these versions have no files
    again = registry.opponent(model, Outside(champion=(str(tmp_path), "b")), "b")
    assert again.champion == (str(tmp_path), "a"), "it is judged against whom it beat"
    assert decided(tmp_path, small_pool, "b", "a").champion and "better by it" in tracking.version_with(model, "fingerprint", "b").tags["decision"]


def test_a_kill_between_other_terms_and_the_alias_leaves_no_old_decision_beside_them(
    model: str, small_pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.store().set_registered_model_alias(model, "champion", "1")
    assert not decided(tmp_path, small_pool, "b", "a", margin=0.5).champion

    def killed(name: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tracking.client(tracking.uri()), "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            decided(tmp_path, small_pool, "b", "a")
    assert decided(tmp_path, small_pool, "b", "a").champion and champion() == "b"


def test_by_hand_one_waits_for_a_pipeline_that_decides(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "check_made", lambda version: None)
    monkeypatch.setattr(registry, "alone", lambda model: FileLock(paths.runs() / f"promote-{model}.lock", timeout=0.2))
    with FileLock(paths.runs() / f"promote-{model}.lock"), pytest.raises(Timeout):
        promote(model, "3")
    assert champion() is None
    promote(model, "3")
    assert champion() == "c"


def test_a_run_that_was_opened_while_mlflow_was_silent_decides_under_the_name_that_it_has_then(
    model: str, small_pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "RETRY", 0.0)
    experiment, database = tracking.open_store("glyphs"), tmp_path / "mlflow.db"
    (tmp_path / "learner.json").write_text(json.dumps({"about": {"domain": "glyphs", "trained_on": []}}))
    away = database.rename(tmp_path / "away")
    with tracking.run(experiment, "pipeline", {"stage": "retrain"}) as run_id:
        away.rename(database)
        line = Pipeline(load([SMOKE]), experiment, run_id, {"data.md5": "x"})
        pinned = Pinned("glyphs", str(small_pool.path), "x", "x", "", "already there", False)
        fused = StageRef("fused", "fused", str(tmp_path), "b", "d", run_id, 1.0, False, {})
        told = promotion.promote.fn(line, pinned, fused, replace(fused, name="evaluation"), Outside())
    assert told.champion and tracking.known(run_id) != run_id
    assert tracking.store().get_run(tracking.known(run_id)).data.tags["promotion"] == told.reason


def test_a_version_that_no_pipeline_registered_is_no_champion(model: str) -> None:
    with pytest.raises(InputError, match=r"got version 2, which has no tag retrain.run_id. Choose another one: python -m flows.promote"):
        promote(model, "2")
    assert champion() is None
    tracking.store().set_registered_model_alias(model, "champion", "2")  # in MLflow's pages
    with pytest.raises(InputError, match="champion of glyphs must be a version that a pipeline registered"):
        registry.incumbent(model)


def test_an_mlflow_that_does_not_answer_is_no_sign_of_no_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for ask in (lambda: registry.incumbent("glyphs"), lambda: tracking.version_of("models:/glyphs@champion"), lambda: tracking.versions("glyphs")):
        with pytest.raises(InputError, match="MLflow must answer at http"):
            ask()
    tracking.client.cache_clear()


def test_a_name_that_no_query_can_say_is_no_models(model: str) -> None:
    assert tracking.versions("o'brien") == []
    with pytest.raises(InputError, match="must be a registered model"):
        tracking.version_of("models:/o'brien@champion")


def test_a_start_of_an_early_version_fits_or_is_told(small_pool: Pool, tmp_path: Path) -> None:
    spec = store.spec_of("protonet", {}, CONV, (1, 28, 28), "cross_entropy")
    del spec["objective"]  # as it was written then
    for size in (28, 35):
        (tmp_path / str(size)).mkdir()
        (tmp_path / str(size) / "learner.json").write_text(json.dumps({"spec": spec | {"input_shape": [1, size, size]}, "about": {}}))
    like = [f"backbone.widths={CONV.widths}", f"backbone.pool={str(CONV.pool).lower()}"]
    check_outside(load([SMOKE, *like, "student.count=0"]), str(small_pool.path), Outside(start=(str(tmp_path / "28"), "f")))
    for outside in (Outside(start=(str(tmp_path / "35"), "f")), Outside(teachers={"models:/x/1": (str(tmp_path / "35"), "f")})):
        with pytest.raises(InputError, match=r"takes inputs \[1, 35, 35\], but domain small has \[1, 28, 28\]"):
            check_outside(load([SMOKE]), str(small_pool.path), outside)
