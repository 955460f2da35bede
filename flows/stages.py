"""One short Prefect task a stage: fingerprint -> run the component -> record -> return a typed reference, as plain data."""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.settings import get_current_settings

from components.contracts import Config, StageRef, TrainerSection
from components.job import FitJob, Watch
from components.learning import FitSection
from components.manifest import file_digest
from components.plain import to_plain
from components.scores import SCORES
from flows import caching, paths, progress, terminal, tracking
from flows.caching import Key, Slot
from flows.notices import say
from flows.versions import Pinned

Log = Callable[[int, dict[str, float]], None]
Work = Callable[[Slot, Log], dict[str, float]]


@dataclass(frozen=True)
class Lesson:
    """What one distillation is: which student (its widths), its seed, its optimisation, the recipe's name (empty: the configured one), and where it
    goes on from (the path of a learner)."""

    index: int
    seed: int
    fit: FitSection
    recipe: str = ""
    start: str | None = None


@dataclass(frozen=True)
class Pipeline:
    """What every stage of one pipeline shares: config, MLflow experiment and parent run, tags."""

    config: Config
    experiment: str
    run_id: str
    tags: dict[str, str]


class OutputPolicy(CachePolicy):
    """Prefect's cache key is the stage's fingerprint, and a hit counts only if the output is there and intact."""

    def compute_key(self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **_: Any) -> str | None:
        return caching.record_key(inputs["key"], records(), get_current_settings().results.local_storage_path)


def records() -> Path:
    return paths.stages() / "records"


def stage(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Make a function a Prefect task whose plain result is kept under its fingerprint."""
    policy = OutputPolicy().configure(key_storage=records())
    return task(name=name, cache_policy=policy, persist_result=True, result_serializer="json", task_run_name=name if name != "distill" else "{key.name}")


def perform(key: Key, pipeline: Pipeline, inputs: Iterable[tuple[str, str, str]], work: Work, more: dict[str, str] | None = None) -> dict[str, Any]:
    """Do a stage's work in its own MLflow run, with `more` tags, and commit its output; return the reference. Finished work is not done again."""
    with caching.writing(key) as slot:
        if slot.finished is not None:
            return dict(to_plain(slot.finished))
        terminal.view().begin(key.name, caching.why(key)[0])
        tags = {**pipeline.tags, "stage": key.stage, "fingerprint": key.fingerprint, **{k: v for k, v in (more or {}).items() if v}}
        with tracking.run(pipeline.experiment, key.name, tags, pipeline.run_id) as run_id:
            started = time.monotonic()
            tracking.log_params(run_id, key.section)
            for name, digest, path in inputs:
                tracking.log_input(run_id, name, digest, path, key.stage)
            metrics = work(slot, lambda step, values: tracking.log_metrics(run_id, values, step))
            seconds = time.monotonic() - started
            tracking.log_metrics(run_id, metrics | {"stage/seconds": seconds})
            ref = caching.commit(key, slot, run_id, seconds, metrics)
            tracking.log_outputs(run_id, Path(ref.path))
    return dict(to_plain(ref))


@stage("make_tasksets")
def make_tasksets(key: Key, pipeline: Pipeline, pool: Pinned) -> dict[str, Any]:
    """pool -> task sets: seeded tables of train and val tasks, or of gate and test tasks."""

    def work(slot: Slot, log: Log) -> dict[str, float]:
        from components.domains.pool import open_pool
        from components.tasksets import check, specs, tuning_specs, write_tasksets

        config = pipeline.config
        opened = open_pool(pool.path)
        wanted = ("train", "val") if key.name == "tasksets" else ("gate", "test", *opened.cells)
        tables = [s for s in specs(config.tasks, config.evaluation, opened.cells) if s.split in wanted]
        if key.name == "tasksets-final" and opened.targets is not None:
            for spec in tuning_specs(config.evaluation):  # drawn by the evaluation, and looked at before anything is trained
                check(spec, opened)
        write_tasksets(tables, opened, config.seed, slot.partial)
        return {f"tasks/{s.table}": float(s.tasks) for s in tables}

    return perform(key, pipeline, [(pool.domain, pool.md5, pool.path)], work)


@stage("pretrain")
def pretrain(key: Key, pipeline: Pipeline, pool: Pinned, tasksets: StageRef) -> dict[str, Any]:
    """task sets -> base (theta*): one model over the union of all training tasks."""
    config = pipeline.config

    def work(slot: Slot, log: Log) -> dict[str, float]:
        return _fit(_job("base", slot, pipeline, pool, tasksets, config.base.fit, backbone=config.backbone, base=config.base), log, key.name)

    return perform(key, pipeline, _inputs(pool, tasksets) + _weights(key, config), work)


@stage("meta_train")
def meta_train(key: Key, pipeline: Pipeline, pool: Pinned, tasksets: StageRef, start: str | None) -> dict[str, Any]:
    """task sets x base -> teacher (theta_meta)."""
    config = pipeline.config

    def work(slot: Slot, log: Log) -> dict[str, float]:
        section, backbone = config.learner, config.backbone
        if section.start != "scratch":  # what it starts from brings its own weights
            backbone = dataclasses.replace(backbone, start=None)
        job = _job("meta", slot, pipeline, pool, tasksets, section.fit, backbone=backbone, learner=section, start=start, tasks_per_step=section.tasks_per_step)
        return _fit(job, log, key.name)

    return perform(key, pipeline, _inputs(pool, tasksets) + _weights(key, config), work)


@stage("distill")
def distill(key: Key, pipeline: Pipeline, pool: Pinned, tasksets: StageRef, teachers: list[str], lesson: Lesson) -> dict[str, Any]:
    """task sets x teachers -> student, by one recipe."""
    config = pipeline.config

    def work(slot: Slot, log: Log) -> dict[str, float]:
        section = config.student
        job = _job(
            "distill",
            slot,
            pipeline,
            pool,
            tasksets,
            lesson.fit,
            backbone=section.backbone(lesson.index, config.backbone),
            learner=section.learner,
            recipe=section.named(lesson.recipe),
            start=lesson.start,
            teachers=tuple(teachers),
            seed=lesson.seed,
            initial_seed=config.seed if section.same_start else lesson.seed,
            tasks_per_step=section.learner.tasks_per_step,
            answers=key.name.startswith("recipe-"),
        )
        return _fit(job, log, key.name)

    return perform(key, pipeline, _inputs(pool, tasksets), work, {"recipe": lesson.recipe})


@stage("fuse")
def fuse(key: Key, pipeline: Pipeline, pool: Pinned, tasksets: StageRef, members: list[StageRef], teachers: list[str], recipe: str) -> dict[str, Any]:
    """task sets x members -> fused learner; how they are joined is chosen on validation tasks."""
    config = pipeline.config

    def work(slot: Slot, log: Log) -> dict[str, float]:
        from components import fusion
        from components.domains.pool import open_pool

        own, opened, section = [s.path for s in members], open_pool(pool.path), config.fusion
        if "linear" in section.members:
            own.append(fusion.linear_member(own[0], opened, tasksets.path, slot.partial / "linear"))
        weights, trained = fusion.weigh(own, opened, tasksets.path), {}
        lessons = {"weights": (1 / len(own),) * len(own), "teachers": tuple(teachers), "recipe": config.student.named(recipe)}
        for mode, fit in section.fits().items():
            trained[mode] = str(slot.partial / mode)
            job = _job(
                "joint",
                slot,
                pipeline,
                pool,
                tasksets,
                fit,
                backbone=dataclasses.replace(config.backbone, start=None, frozen=False),  # members bring their own
                members=tuple(own),
                tasks_per_step=section.tasks_per_step,
                out=trained[mode],
                state=str(slot.state / mode),
                **({"weights": tuple(weights)} if mode == "joint" else lessons),
            )
            _fit(job, _prefixed(log, mode), key.name)
        return fusion.save_best(fusion.fuse(own, weights, section, config.domain.augment, opened, tasksets.path, trained), slot.partial, own)

    return perform(key, pipeline, _inputs(pool, tasksets), work)


@stage("evaluate")
def evaluate(key: Key, pipeline: Pipeline, pool: Pinned, tasksets: StageRef, models: dict[str, StageRef], champion: str | None) -> dict[str, Any]:
    """test tasks x all learners -> evaluation, on the same fixed tasks; the gate split for promotion alone."""

    def work(slot: Slot, log: Log) -> dict[str, float]:
        from components.examination import examine
        from components.fusion import CANDIDATES
        from components.objectives import OBJECTIVES

        paths_ = {name: ref.path for name, ref in models.items()} | ({"champion": champion} if champion else {})
        config = pipeline.config
        if config.evaluation.ablation and "fused" in models:
            paths_ |= {f"joined-{p.name}": str(p) for p in sorted(Path(models["fused"].path, CANDIDATES).iterdir())}
        objective = OBJECTIVES[config.domain.objective]
        best = best_by_validation([ref for name, ref in models.items() if name.startswith("student-")], objective.score_name)
        leader, e = best.name if best else None, config.evaluation

        def watch(share: float, told: str) -> None:
            terminal.view().at(key.name, share, told)

        return examine(paths_, leader, config.backbone, e, config.trainer.threads, config.seed, pool.path, tasksets.path, slot.partial, watch)

    return perform(key, pipeline, [(pool.domain, pool.md5, pool.path), ("tasksets-final", tasksets.fingerprint, tasksets.path)], work)


def best_by_validation(refs: Sequence[StageRef], score: str) -> StageRef | None:
    """Return the stage whose learner validation tasks call the best; of equal ones that with the least loss. None of none."""
    sign = SCORES[score].sign
    return max(refs, key=lambda ref: (sign * ref.metrics[f"val/{score}"], -ref.metrics["val/loss"]), default=None)


class Told(Watch):
    """Tell the terminal of every step, MLflow and Prefect of every epoch."""

    def __init__(self, name: str, fit: FitSection, log: Log) -> None:
        self.name, self.fit, self.log = name, fit, log
        self.started, self.reached = time.monotonic(), progress.bar(name, fit.steps)

    def step(self, step: int) -> None:
        terminal.view().at(self.name, step / self.fit.steps)

    def epoch(self, step: int, metrics: dict[str, float], again: bool) -> None:
        self.log(step, metrics)
        self.reached(step)
        number, epochs = step // self.fit.epoch_steps, self.fit.steps // self.fit.epoch_steps
        terminal.view().epoch(self.name, number, epochs, metrics, time.monotonic() - self.started, again)


def _prefixed(log: Log, name: str) -> Log:
    """Return a log of one of a stage's several fits."""
    return lambda step, values: log(step, {f"{name}/{metric}": value for metric, value in values.items()})


def emulates_bf16(trainer: TrainerSection) -> bool:
    """Tell whether the processor is asked for bf16 and has no units for it: float32 is faster there."""
    import torch

    if trainer.precision != "bf16-mixed" or trainer.accelerator == "gpu" or (trainer.accelerator == "auto" and torch.accelerator.is_available()):
        return False
    told = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.11
    able = told() if told else {"bf16": True}
    return not any(able.get(unit) for unit in ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16"))


def _fit(job: FitJob, log: Log, name: str) -> dict[str, float]:
    from components.launch import fit

    if emulates_bf16(job.trainer):
        say(f"{name}: this processor has no units for trainer.precision=bf16-mixed; trainer.precision=32-true is faster here")
    if job.trainer.nodes > 1:
        say(f"{name}: waiting for {job.trainer.nodes - 1} more of {job.trainer.nodes} machines: python -m flows.join rank=1")
    return fit(job, Told(name, job.fit, log), name)


def _inputs(pool: Pinned, tasksets: StageRef) -> list[tuple[str, str, str]]:
    return [(pool.domain, pool.md5, pool.path), ("tasksets", tasksets.fingerprint, tasksets.path)]


def _weights(key: Key, config: Config) -> list[tuple[str, str, str]]:
    """Return the weights that the user brought as an input of the stage, where it begins from them."""
    return [("backbone", key.upstream["backbone"], str(config.backbone.start))] if "backbone" in key.upstream else []


def _job(objective: Any, slot: Slot, pipeline: Pipeline, pool: Pinned, tasksets: StageRef, fit: FitSection, **more: Any) -> FitJob:
    config = pipeline.config
    given: dict[str, Any] = {"seed": config.seed, "out": str(slot.partial), "state": str(slot.state)}
    given |= {"turns": config.tasks.turns, "order_weight": config.tasks.order_weight} | more
    return FitJob(objective=objective, pool=pool.path, tasksets=tasksets.path, domain=config.domain, fit=fit, trainer=config.trainer, **given)


def as_ref(key: Key, cached: bool) -> StageRef:
    """Return the reference to a finished stage, marked cached when its output was there before.

    The output's own manifest tells it. Prefect's result is kept by fingerprint alone, so that another folder of runs may have written it.
    """
    found = caching.lookup(key)
    if found is None:
        raise RuntimeError(f"The output of {key.name} in {key.folder} is gone or was changed since it was made; run the same command again.")
    return dataclasses.replace(found, cached=cached, run_id=tracking.known(found.run_id))


def environment_tags(flow_run_id: str | None) -> dict[str, str]:
    """Return the tags that say where a run came from: git commit, lock digest, hardware, Prefect flow run."""
    import subprocess

    told = subprocess.run(["git", "rev-parse", "HEAD"], cwd=paths.CODE, capture_output=True, text=True)
    tags = {"git.commit": told.stdout.strip() or "none", "prefect.flow_run_id": flow_run_id or "none", "hardware": hardware()}
    lock = paths.HOUSE / "constraints.txt"
    return tags | ({"lock": file_digest(lock)[:16]} if lock.exists() else {})


def hardware() -> str:
    """Say what a process may use: cores and their kind, memory, GPUs."""
    import platform
    import subprocess

    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processor = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in processor.read_text().splitlines() if line.startswith("model name")] if processor.exists() else []
    parts = [f"{cores} cores ({(names or [platform.processor()])[0] or platform.machine()})", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"]
    if shutil.which("nvidia-smi"):
        asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
        parts += [name.strip() for name in asked.stdout.splitlines() if asked.returncode == 0]
    return ", ".join(parts)
