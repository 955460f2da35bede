"""What runs and versions say of themselves in MLflow."""

import pytest
from workspace import Workspace

from flows.cards import _fitting


@pytest.mark.slow
def test_a_version_has_a_model_card_and_its_pipeline_the_result(finished: Workspace) -> None:
    client, metrics = finished.mlflow(), finished.outputs("evaluate")[0]["ref"]["metrics"]
    version = client.get_model_version("glyphs", "1")  # the first champion, whatever other tests have promoted since
    run = version.tags["retrain.run_id"]
    score = f"{100 * metrics['test/5w1s/fused/accuracy']:.2f} ± {100 * metrics['test/5w1s/fused/accuracy_ci95']:.2f}"
    parameters = f"{int(metrics['fused/parameters']):,} parameters"
    for part in ("Intended use", "Limits", "Lineage", "there was no champion", score, parameters, f"reproduce={run}", "Armenian"):
        assert part in version.description, part
    note = client.get_run(run).data.tags["mlflow.note.content"]
    assert note.startswith("**glyphs version 1 is champion:** there was no champion") and score in note and "| fused - student-best |" in note


def test_a_note_that_is_too_long_loses_its_end_in_whole_parts() -> None:
    assert _fitting(["a" * 5, "b" * 5, "c" * 5], 11) == "aaaaa\nbbbbb"
