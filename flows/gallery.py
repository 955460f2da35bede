"""The figures that a pipeline leaves on its parent run, each for one question. What shows an evaluation alone is drawn once, by who made it."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.contracts import StageRef
from components.scores import OBJECTIVE_SCORES, SCORES, costs
from flows import tracking
from flows.artifacts import REFERENCES, markdown
from flows.plan import fused_of
from flows.stages import Pipeline
from flows.versions import Pinned

LOOKED = 200  # test tasks that are played through once more for a figure
Drawn = Iterator[tuple[str, Any]]


def trade_off(line: Pipeline, evaluation: StageRef) -> None:
    """What does a point of the score cost in parameters and time? A figure a setting of a new evaluation, and a table."""
    config, m = line.config, evaluation.metrics
    score = OBJECTIVE_SCORES[config.domain.objective]
    shown, text, runs = SCORES[score], [], _runs(line, evaluation)
    for setting in config.evaluation.settings:
        found = costs(m, setting, score, shown.factor, REFERENCES)
        if not evaluation.cached:
            from components import figures

            title = f"{config.registry.model}, {setting}: {config.evaluation.tasks} test tasks, seed {config.seed}, 95 % intervals"
            tracking.log_figure(runs, figures.trade_off(found, title, _axis(score)), f"figures/trade-off-{setting}.png")
        for c in found:
            text.append([setting, c.role, f"{c.score:.{shown.digits}f} ± {c.half:.{shown.digits}f}", f"{c.parameters:.0f}", f"{1000 * c.seconds:.2f}"])
    head = ["setting", "learner", score, "parameters", "ms a task"]
    tracking.log_text(line.run_id, markdown(head, text), "trade-off.md")


def draw(line: Pipeline, models: dict[str, StageRef], ours: StageRef, evaluation: StageRef, final: StageRef, pool: Pinned) -> None:
    """Draw all that a new evaluation has to show; nothing for one that was there before."""
    if evaluation.cached:
        return
    runs = _runs(line, evaluation)
    drawn = (_scores(line, models, ours.name, evaluation), _members(line, models), _fits(line, models), _tasks(line, models, ours, final, pool))
    for name, figure in (*itertools.chain(*drawn), *_adapted(line, models, ours, evaluation, final, pool)):
        tracking.log_figure(runs, figure, f"figures/{name}.png")


def _scores(line: Pipeline, models: dict[str, StageRef], ours: str, evaluation: StageRef) -> Drawn:
    """How do tasks differ; what do more shots bring; can its probabilities be believed; where does it beat the champion?"""
    from components import score_figures

    config, folder = line.config, Path(evaluation.path)
    score, settings = OBJECTIVE_SCORES[config.domain.objective], config.evaluation.settings
    factor, about = SCORES[score].factor, f"{config.registry.model}, seed {config.seed}"
    tasks = score_figures.TaskScores.read(folder, "test")
    roles = [role for role in ("scratch", "base-unadapted", *models) if f"{role}/parameters" in evaluation.metrics]
    title = f"{about}: scores of single test tasks; boxes hold half of them, whiskers nine in ten"
    yield "scores-by-task", score_figures.distribution(tasks, roles, title, _axis(score), factor)
    title = f"{about}: {config.evaluation.tasks} test tasks a setting, 95 % intervals"
    yield "scores-by-setting", score_figures.by_setting(evaluation.metrics, settings, roles, score, title, _axis(score), factor)
    bins = score_figures.read_bins(folder, "test", [role for role in ("base", "teacher", "fused") if role in models])
    if bins:
        yield "reliability", score_figures.reliability(bins, f"{about}: how often is it right when it is so sure? Test tasks")
    gate = score_figures.TaskScores.read(folder, "gate")
    if all("champion" in by_role for by_role in gate.of.values()):
        title = f"{about}: challenger against champion on the same gate tasks"
        yield "champion-against-challenger", score_figures.versus(gate, ours, "champion", title, _axis(score), factor, SCORES[score].sign)


def _members(line: Pipeline, models: dict[str, StageRef]) -> Drawn:
    """Who counts how much in the fused learner?"""
    if "fused" not in models:
        return
    from components import score_figures

    told = json.loads((Path(models["fused"].path) / "fusion.json").read_text())
    named = fused_of(line.config, [name for name in models if name.startswith("student-")])
    named += ["linear"] if "linear" in line.config.fusion.members else []
    if told["weights"]:  # a soup has none
        title = f"{line.config.registry.model}, seed {line.config.seed}: weights of the fused learner ({told['chosen']})"
        yield "fusion-weights", score_figures.weights(named, told["weights"], title)


def _fits(line: Pipeline, models: dict[str, StageRef]) -> Drawn:
    """Has every fit come to its end?"""
    from components import score_figures

    score, found = OBJECTIVE_SCORES[line.config.domain.objective], {}
    for name, ref in models.items():
        file = Path(ref.path) / "history.json"
        epochs = json.loads(file.read_text()) if file.exists() else []
        if epochs:
            found[name] = [(int(epoch["step"]), float(epoch[f"val/{score}"])) for epoch in epochs]
    if found:
        title = f"{line.config.registry.model}, seed {line.config.seed}: validation tasks after each epoch"
        yield "learning-curves", score_figures.learning(found, title, _axis(score), SCORES[score].factor)


def _adapted(line: Pipeline, models: dict[str, StageRef], ours: StageRef, evaluation: StageRef, final: StageRef, pool: Pinned) -> Drawn:
    """What does adaptation do to a task's items; which classes are confused; how many inner steps does it take?"""
    from components import looking, score_figures, task_figures
    from components.domains.pool import open_pool

    config, opened, e = line.config, open_pool(pool.path), line.config.evaluation
    score, about, setting = OBJECTIVE_SCORES[config.domain.objective], f"{config.registry.model}, seed {config.seed}", e.settings[0]
    if config.domain.objective == "cross_entropy":
        mapped = looking.maps(ours.path, opened, final.path, f"test-{setting}")
        yield "one-task-mapped", task_figures.maps(*mapped, f"{about}: the first test task of {setting}, as {ours.name} sees it")
    if opened.inputs.ndim > 2:
        tasks = looking.hardest(Path(evaluation.path), setting, ours.name)[:LOOKED]
        pairs = looking.confusions(ours.path, opened, final.path, f"test-{setting}", tasks)
        if pairs:
            where = f"{len(tasks)} tasks" + (", those of the group that it finds hardest" if e.within == "group" else "")
            yield "confusions", task_figures.confusions(opened, pairs, f"{about}, {setting}, {ours.name}: what is taken for what in {where}")
    if opened.environment is None:
        steps = {s: looking.by_inner_steps(models["teacher"].path, opened, final.path, f"test-{s}", LOOKED) for s in e.settings}
        if any(steps.values()):
            title = f"{about}: the teacher on at most {LOOKED} test tasks a setting, 95 % intervals"
            yield "scores-by-inner-steps", score_figures.inner_steps(steps, title, _axis(score), SCORES[score].factor)


def _tasks(line: Pipeline, models: dict[str, StageRef], ours: StageRef, final: StageRef, pool: Pinned) -> Drawn:
    """What is a task? Pictures as they are; values and what is said of them; curves; episodes before and after each round."""
    from components import task_figures
    from components.domains.pool import open_pool
    from components.tasksets import read_table

    opened, config = open_pool(pool.path), line.config
    settings = config.evaluation.settings
    first = f"{config.registry.model}, seed {config.seed}: the first test task of"
    if opened.inputs.ndim > 2:
        for s in settings:
            yield f"task-{s}", task_figures.sample_task(opened, read_table(final.path, f"test-{s}"), f"{first} {s}")
    elif opened.environment is not None:
        from components import looking
        from components.environments import ENVIRONMENTS

        longest = f"test-{settings[-1]}"
        hidden = opened.inputs[read_table(final.path, longest).query[0, 0, 0], :2]
        goal = hidden if "goal_x" in ENVIRONMENTS[opened.environment].parameters else None
        told = f"{first} {settings[-1]}, {ours.name}"
        yield f"task-{settings[-1]}", task_figures.episodes(looking.episodes(ours.path, opened, final.path, longest), goal, told)
    elif opened.input_shape == (1,) and config.domain.objective == "squared_error":
        from components import curves, figures  # here: torch takes seconds, and most domains draw no curves

        shown = {name: ref.path for name, ref in models.items() if not name.startswith("student-")}
        for s in settings:
            found = curves.curves(shown, opened, final.path, s)
            title = f"{config.registry.model}, {s}: the first {len(found)} test tasks, after adaptation"
            yield f"adapted-curves-{s}", figures.adapted_curves(found, title)
    elif opened.targets is not None:
        from components import looking

        axis = "value" if config.domain.objective == "squared_error" else "touched (1) or not (0); what is said puts them in order"
        for s in settings:
            yield f"task-{s}", task_figures.valued(looking.valued(ours.path, opened, final.path, f"test-{s}"), f"{first} {s}, {ours.name}", axis)


def _axis(score: str) -> str:
    return f"{score}, %" if SCORES[score].factor == 100 else score


def _runs(line: Pipeline, evaluation: StageRef) -> list[str]:
    """Return whose figures these are: the parent run's, and those of the run of the evaluation, if that is this pipeline's."""
    own = [] if evaluation.cached else [evaluation.run_id]
    return [run_id for run_id in (line.run_id, *own) if tracking.has_run(run_id)]
