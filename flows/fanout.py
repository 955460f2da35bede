"""Recipes and students side by side, through the Prefect task runner that the config names."""

import dataclasses
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from components.contracts import StageRef
from components.scores import OBJECTIVE_SCORES
from flows import artifacts, stages
from flows.caching import Key, lookup
from flows.plan import student_rows
from flows.stages import Lesson, Pipeline
from flows.versions import Pinned


def runner(kind: str, workers: int) -> TaskRunner[Any]:
    """Return the task runner: threads in this process, or a local Dask cluster of processes."""
    if kind == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    from prefect_dask.task_runners import DaskTaskRunner

    cluster = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=cluster)


def side_by_side(line: Pipeline, plan: dict[str, Key], pool: Pinned, tasksets: StageRef, lessons: dict[str, tuple[list[str], Lesson]]) -> list[StageRef]:
    """Run distillations, each by its stage's name with its teachers' paths, and return their references in order; one that fails fails the flow."""
    kind, before = line.config.trainer.runner, {name: lookup(plan[name]) is not None for name in lessons}
    calls = [
        {"key": plan[name], "pipeline": line, "pool": pool, "tasksets": tasksets, "teachers": teachers, "lesson": lesson}
        for name, (teachers, lesson) in lessons.items()
    ]
    if kind == "sequential" or not calls:
        for call in calls:
            stages.distill(**call)
    else:
        with runner(kind, min(len(calls), 2)) as workers:
            for future in [workers.submit(stages.distill, parameters=call) for call in calls]:
                future.result()
    return [artifacts.link(line, stages.as_ref(plan[name], before[name])) for name in lessons]


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What teaching came to: recipes' trials, students of earlier generations, students, and the recipe that was chosen (empty: the configured one)."""

    trials: list[StageRef]
    earlier: list[StageRef]
    students: list[StageRef]
    recipe: str


def distilled(line: Pipeline, plan: dict[str, Key], pool: Pinned, tasksets: StageRef, teachers: list[str]) -> Distilled:
    """Try the recipes that compete, of which validation tasks choose, then teach every student, generation by generation."""
    config, student, rows = line.config, line.config.student, student_rows(line.config)
    fit, score = student.learner.fit, OBJECTIVE_SCORES[config.domain.objective]
    trials = {f"recipe-{name}": (teachers, Lesson(0, config.seed, dataclasses.replace(fit, steps=student.sweep_steps), name)) for name in student.recipes()}
    tried = side_by_side(line, plan, pool, tasksets, trials if student.count else {})
    best = stages.best_by_validation(tried, score)
    recipe = best.name.removeprefix("recipe-") if best else ""
    artifacts.recipes(line, tried, recipe)
    made: dict[str, StageRef] = {}
    for generation in range(student.generations):
        own = rows[generation * student.count : (generation + 1) * student.count]
        lessons = {r.name: ([made[r.before].path] if r.before else teachers, Lesson(r.index, r.seed, fit, recipe)) for r in own}
        made |= {ref.name: ref for ref in side_by_side(line, plan, pool, tasksets, lessons)}
    return Distilled(tried, [made[r.name] for r in rows if not r.last], [made[r.name] for r in rows if r.last], recipe)
