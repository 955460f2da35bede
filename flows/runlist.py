"""What the list of runs in MLflow's UI shows of a pipeline: tags to read, and a saved view that has them as columns."""

from components.contracts import StageRef
from flows import report, tracking
from flows.promotion import Decision
from flows.stages import Pipeline


def summarise(line: Pipeline, ours: StageRef, evaluation: StageRef, decision: Decision) -> None:
    """Tag the pipeline's run with its fate and, a setting a tag, with its score and interval, a digit short of the table's; save the view.

    Metrics are there too, for charts and for sorting, but a column of theirs shows sixteen digits and, of a name, the beginning.
    """
    settings = line.config.evaluation.settings
    tracking.set_tag(line.run_id, "fate", "champion" if decision.champion else "challenger" if decision.version else "of a sweep")
    for setting in settings:
        tracking.set_tag(line.run_id, setting, report.scored(evaluation.metrics, f"test/{setting}/{ours.name}", shorter=1))
    columns = [("attributes", "Dataset"), ("metrics", "parameters"), ("params", "learner.name")]
    columns += [("tags", name) for name in ("fate", *settings)]
    tracking.save_view(line.run_id, [f"{kind}.`{name}`" for kind, name in columns])
