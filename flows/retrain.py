"""The pipeline: `python -m flows.retrain [group=choice | key=value ...]`, and the flow that deployments run."""

import sys
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from flows import cli

if __name__ == "__main__":
    cli.answer_early(sys.argv[1:])  # --help, --cfg, --dry-run and bad input end here, before the engine is imported

from prefect import flow, runtime
from pydantic import Field

from components.contracts import StageRef
from components.inputs import InputError, require
from components.plain import masked
from components.scores import OBJECTIVE_SCORES
from flows import artifacts, cards, gallery, leftovers, promotion, registry, report, runlist, stages, terminal, tracking
from flows.caching import lookup
from flows.checks import check_devices, check_new, check_outside, check_pool
from flows.config import groups, load, validated_on
from flows.fanout import distilled
from flows.outcome import Outcome
from flows.plan import contender, fused_of, seed_of_student
from flows.turns import deployed, turn
from flows.versions import pinned


def choices(group: str) -> Any:
    """Return the type of a parameter that Prefect's form shows as a list of a config group's choices; empty is the default one."""
    return Annotated[str, Field(json_schema_extra={"enum": ["", *groups()[group]]})]


def asked(preset: list[str] | None, experiment: str, learner: str, seed: int | None, overrides: list[str] | None) -> list[str]:
    """Return all that was asked for as overrides, the later one the stronger."""
    chosen = {"experiment": experiment, "learner": learner, "seed": "" if seed is None else str(seed)}
    return [*(preset or []), *(f"{key}={value}" for key, value in chosen.items() if value), *(overrides or [])]


def _name() -> str:
    given = runtime.flow_run.parameters
    try:
        config = load(asked(given.get("preset"), given.get("experiment", ""), given.get("learner", ""), given.get("seed"), given.get("overrides")))
    except InputError:  # the flow itself says what is wrong: without a name it would crash without a word
        return "retrain"
    return f"{config.registry.model}-seed{config.seed}-{config.experiment}"


@flow(name="retrain", flow_run_name=_name, persist_result=False)
def retrain(
    experiment: choices("experiment") = "",  # type: ignore[valid-type]
    learner: choices("learner") = "",  # type: ignore[valid-type]
    seed: int | None = None,
    overrides: list[str] | None = None,
    preset: list[str] | None = None,
    sweep: str | None = None,
) -> Outcome:
    """Retrain on the current data and promote the result if it has earned it.

    Args:
        experiment: A whole set of values for one domain; empty for the default experiment, or for the deployment's own.
        learner: How the teacher learns; empty for the experiment's own.
        seed: Of task sets, weights and training; empty for the experiment's own.
        overrides: Further config choices and values, one an entry, such as tasks.way=20 or student.count=0; python -m flows.retrain --help lists them.
        preset: Choices that come before all others; a deployment's own.
        sweep: Id of the MLflow run to file this pipeline under; set by --multirun, which has the best of its runs contend at its end.
    """
    overrides = asked(preset, experiment, learner, seed, overrides)
    config = load(overrides)
    check_devices(config)
    leftovers.claim()
    if deployed():  # the command line has done it before Prefect was started
        leftovers.reap()
    folder = tracking.open_store(config.registry.model)  # MLflow's experiment
    leftovers.bury(tracking.store(), folder)
    tags = stages.environment_tags(runtime.flow_run.id) | {"stage": "retrain", "overrides": " ".join(overrides)}
    tags |= {"mlflow.source.name": f"flows.retrain {tags['overrides']}".strip(), "mlflow.source.type": "LOCAL"}
    wanted = (config.domain, config.data.pin, config.data.write_pin, config.mirror, deployed(), partial(check_new, config))
    own_run = tracking.run(folder, f"{config.experiment}-seed{config.seed}", tags, sweep)
    with turn(config.domain.name), own_run as run_id, pinned(*wanted) as pool:
        check_pool(config, pool.path)
        where = masked(tracking.uri())
        require(tracking.store_exists(), f"{where} must stay while a pipeline waits, or nobody knows the champion; got nothing there. Put it back.")
        plan, outside = registry.planned(config, pool.md5)
        check_outside(config, pool.path, outside)
        line = stages.Pipeline(config, folder, run_id, tags | {"data.md5": pool.data_md5})
        artifacts.open_parent(line, pool, overrides)

        def done(task: Any, name: str, *inputs: Any) -> StageRef:
            before = lookup(plan[name]) is not None
            task(plan[name], line, pool, *inputs)
            return artifacts.link(line, stages.as_ref(plan[name], before))

        with terminal.shown(plan):
            tasksets = done(stages.make_tasksets, "tasksets")
            final = done(stages.make_tasksets, "tasksets-final")
            base = done(stages.pretrain, "base", tasksets)
            start = {"scratch": None, "pretrained": base.path}.get(config.learner.start, outside.start and outside.start[0])
            teacher = done(stages.meta_train, "teacher", tasksets, start)
            made = {"base": base, "teacher": teacher}
            teachers = [made[name].path if name in made else outside.teachers[name][0] for name in config.student.teachers()]
            taught = distilled(line, plan, pool, tasksets, teachers)
            students, recipe = taught.students, taught.recipe
            made |= {ref.name: ref for ref in students}
            joined = [made[name] for name in fused_of(config, [ref.name for ref in students])]
            fused = [done(stages.fuse, "fused", tasksets, joined, teachers, recipe)] if students else []
            best = stages.best_by_validation(students, OBJECTIVE_SCORES[config.domain.objective])
            if best and config.fusion.again.steps:
                again = stages.Lesson(students.index(best), seed_of_student(config.seed, "again"), config.fusion.again, recipe, best.path)
                fused.append(done(stages.distill, "fused-distilled", tasksets, [fused[0].path], again))
            models = {ref.name: ref for ref in (base, teacher, *students, *fused)}
            measured = models | {ref.name: ref for ref in taught.trials if config.evaluation.ablation}
            evaluation = done(stages.evaluate, "evaluation", final, measured, outside.champion and outside.champion[0])
        ours = models[contender(plan)]
        artifacts.headline(line, models, ours.name, evaluation)
        gallery.trade_off(line, evaluation)
        gallery.draw(line, models, ours, evaluation, final, pool)
        decision = promotion.promote(line, pool, ours, evaluation, outside) if sweep is None else promotion.waiting(line)
        line = replace(line, run_id=tracking.known(line.run_id))
        cards.write(line, pool, ours, models, evaluation, decision)
        runlist.summarise(line, ours, evaluation, decision)
        refs = [tasksets, final, base, teacher, *taught.trials, *taught.earlier, *students, *fused, evaluation]
        report.publish(line, pool, refs, evaluation, decision)
        return Outcome(
            run_id=line.run_id,
            model=decision.model,
            version=decision.version,
            champion=decision.champion,
            reason=decision.reason,
            ran=[ref.name for ref in refs if not ref.cached],
            judged=ours.name,
            validation=ours.metrics[f"val/{OBJECTIVE_SCORES[config.domain.objective]}"],
            validated_on=validated_on(config),
            seconds=ours.seconds,
            champion_met=outside.champion and outside.champion[1],
            evaluation=evaluation.path,
            metrics=evaluation.metrics,
            fingerprint=evaluation.fingerprint,
            data=pool.data_md5,
        )


if __name__ == "__main__":
    cli.main(retrain, sys.argv[1:])
