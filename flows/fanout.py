"""Students side by side, through the Prefect task runner that the config names."""

from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from components.contracts import StageRef
from flows import artifacts, stages
from flows.caching import Key, lookup
from flows.stages import Pipeline
from flows.versions import Pinned


def runner(kind: str, workers: int) -> TaskRunner[Any]:
    """Return the task runner: threads in this process, or a local Dask cluster of processes."""
    if kind == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    from prefect_dask.task_runners import DaskTaskRunner

    cluster = {"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    return DaskTaskRunner(cluster_kwargs=cluster)


def map_stage(line: Pipeline, plan: dict[str, Key], task: Any, pool: Pinned, tasksets: StageRef, teacher: str | None) -> list[StageRef]:
    """Run the student stages and return their references in order; one that fails fails the flow."""
    count, kind = line.config.student.count, line.config.trainer.runner
    names = [f"student-{i}" for i in range(count)]
    before = {name: lookup(plan[name]) is not None for name in names}
    if kind == "sequential":
        plain = [task(plan[name], line, pool, tasksets, teacher, i) for i, name in enumerate(names)]
    else:
        with runner(kind, min(count, 2)) as pool_of_workers:
            calls = [{"key": plan[name], "pipeline": line, "pool": pool, "tasksets": tasksets, "teacher": teacher, "index": i} for i, name in enumerate(names)]
            plain = [future.result() for future in [pool_of_workers.submit(task, parameters=call) for call in calls]]
    return [artifacts.link(line, stages.as_ref(p, before[name])) for p, name in zip(plain, names, strict=True)]
