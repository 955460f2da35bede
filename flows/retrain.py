"""The pipeline: `python -m flows.retrain [group=choice | key=value ...]`, and the flow that deployments run."""

import sys
from typing import Any

from flows import cli

if __name__ == "__main__":
    cli.answer_early(sys.argv[1:])  # --help, --cfg, --dry-run and bad input end here, before the engine is imported

from prefect import flow, runtime

from components.contracts import StageRef
from flows import artifacts, promotion, registry, report, stages, tracking
from flows.caching import lookup
from flows.config import load
from flows.fanout import distilled
from flows.plan import contender
from flows.versions import pin_data


def _name() -> str:
    given = runtime.flow_run.parameters
    config = load([*(given.get("preset") or []), *(given.get("overrides") or [])])
    return f"{config.registry.model}-seed{config.seed}-{config.experiment}"


@flow(name="retrain", flow_run_name=_name, persist_result=False)
def retrain(overrides: list[str] | None = None, preset: list[str] | None = None, sweep: str | None = None) -> dict[str, Any]:
    """Retrain on the current data and promote the result if it has earned it.

    Args:
        overrides: config choices and values, such as ["learner=maml", "seed=1"]; empty for the default experiment.
        preset: choices that come before the overrides; a deployment's own.
        sweep: id of the MLflow run to file this pipeline under; set by --multirun.
    """
    overrides = [*(preset or []), *(overrides or [])]
    config = load(overrides)
    experiment = tracking.open_store(config.registry.model)
    tags = stages.environment_tags(runtime.flow_run.id) | {"stage": "retrain", "overrides": " ".join(overrides)}
    with tracking.run(experiment, f"{config.experiment}-seed{config.seed}", tags, sweep) as run_id:
        pool = pin_data(config.domain, config.data.pin, config.data.write_pin, config.mirror)
        plan, outside = registry.planned(config, pool.md5)
        line = stages.Pipeline(config, experiment, run_id, tags | {"data.md5": pool.data_md5})
        artifacts.open_parent(line, pool)

        def done(task: Any, name: str, *inputs: Any) -> StageRef:
            before = lookup(plan[name]) is not None
            return artifacts.link(line, stages.as_ref(task(plan[name], line, pool, *inputs), before))

        tasksets = done(stages.make_tasksets, "tasksets")
        final = done(stages.make_tasksets, "tasksets-final")
        base = done(stages.pretrain, "base", tasksets)
        start = {"scratch": None, "pretrained": base.path}.get(config.learner.start, outside.start and outside.start[0])
        teacher = done(stages.meta_train, "teacher", tasksets, start)
        made = {"base": base, "teacher": teacher}
        teachers = [made[name].path if name in made else outside.teachers[name][0] for name in config.student.teachers()]
        students, tried, recipe = distilled(line, plan, pool, tasksets, teachers)
        joined = [ref for kind in config.fusion.members for ref in (students if kind == "students" else [made[kind]])]
        fused = [done(stages.fuse, "fused", tasksets, joined)] if students else []
        if students and config.fusion.again:
            again = stages.Lesson(0, config.seed, config.student.learner.fit.steps, recipe)
            fused.append(done(stages.distill, "fused-distilled", tasksets, [fused[0].path], again))
        models = {ref.name: ref for ref in (base, teacher, *students, *fused)}
        measured = models | {ref.name: ref for ref in tried if config.evaluation.ablation}
        evaluation = done(stages.evaluate, "evaluation", final, measured, outside.champion and outside.champion[0])
        ours = models[contender(plan)]
        artifacts.headline(line, models, ours.name, evaluation)
        artifacts.trade_off(line, evaluation)
        decision = promotion.promote(line, pool, ours, evaluation, outside)
        told = report.publish(line, pool, [tasksets, final, *models.values(), evaluation], evaluation, decision)
        return told | {"judged": ours.name, "seconds": ours.seconds, "evaluation": evaluation.path, "metrics": evaluation.metrics}


if __name__ == "__main__":
    cli.main(retrain, sys.argv[1:])
