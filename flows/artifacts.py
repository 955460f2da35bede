"""What a pipeline leaves on its parent run: config, pin, links to the stages' runs, headline metrics."""

import json

from components.contracts import OBJECTIVE_SCORES, SCORES, StageRef
from components.plain import to_plain
from flows import tracking
from flows.stages import Pipeline
from flows.versions import PIN, Pinned

REFERENCES = ("pixels", "nearest", "linear-constant", "linear", "scratch", "base-unadapted")  # measured beside the learners
SCORED = ("test/", "challenge/")  # what a model's own run repeats of the evaluation


def markdown(head: list[str], body: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]) + "\n"


def open_parent(line: Pipeline, pool: Pinned) -> None:
    """Log what is known before the first stage: config, data version with its pin file, the pool as input."""
    store = tracking.store()
    tracking.log_params(line.run_id, to_plain(line.config))
    store.log_text(line.run_id, json.dumps(to_plain(line.config), indent=1), "config.json")
    store.log_text(line.run_id, pool.pin, PIN)
    store.set_tag(line.run_id, "data.md5", pool.data_md5)
    store.set_tag(line.run_id, "data.how", pool.how)
    tracking.log_input(line.run_id, pool.domain, pool.md5, pool.path, "retrain")


def link(line: Pipeline, ref: StageRef) -> StageRef:
    """Point the parent run at the run that made a stage's output."""
    store = tracking.store()
    store.set_tag(line.run_id, f"stage.{ref.name}.run_id", ref.run_id)
    store.set_tag(line.run_id, f"stage.{ref.name}.cached", str(ref.cached).lower())
    return ref


def headline(line: Pipeline, models: dict[str, StageRef], ours: str, evaluation: StageRef) -> None:
    """Log each model's final scores on its own run under common names, and all of them on the parent run, `ours` also under those names."""
    if not evaluation.cached:
        for name, ref in models.items():
            if not tracking.has_run(ref.run_id):  # its database is gone, the output is not: the parent run holds the scores all the same
                continue
            own = {m.replace(f"/{name}/", "/"): v for m, v in evaluation.metrics.items() if m.startswith(SCORED) and f"/{name}/" in m}
            own |= {m.removeprefix(f"{name}/"): v for m, v in evaluation.metrics.items() if m.startswith(f"{name}/")}
            tracking.log_metrics(ref.run_id, own)
    own = {m.replace(f"/{ours}/", "/"): v for m, v in evaluation.metrics.items() if m.startswith(SCORED) and f"/{ours}/" in m}
    tracking.log_metrics(line.run_id, evaluation.metrics | own)
    tracking.store().set_tag(line.run_id, "fingerprint", evaluation.fingerprint)


def trade_off(line: Pipeline, evaluation: StageRef) -> None:
    """Draw score against size and time, a figure a setting, on the evaluation's run and on the parent run."""
    from components import figures

    config, m = line.config, evaluation.metrics
    score = OBJECTIVE_SCORES[config.domain.objective]
    shown, text = SCORES[score], []
    for setting in config.evaluation.settings:
        found = figures.costs(m, setting, score, shown.factor, REFERENCES)
        title = f"{config.registry.model}, {setting}: {config.evaluation.tasks} test tasks, seed {config.seed}, 95 % intervals"
        figure = figures.trade_off(found, title, f"{score}, %" if shown.factor == 100 else score)
        for run_id in [line.run_id, *([] if evaluation.cached else [evaluation.run_id])]:
            if tracking.has_run(run_id):
                tracking.store().log_figure(run_id, figure, f"figures/trade-off-{setting}.png")
        for c in found:
            text.append([setting, c.role, f"{c.score:.{shown.digits}f} ± {c.half:.{shown.digits}f}", f"{c.parameters:.0f}", f"{1000 * c.seconds:.2f}"])
    head = ["setting", "learner", score, "parameters", "ms a task"]
    tracking.store().log_text(line.run_id, markdown(head, text), "trade-off.md")


def recipes(line: Pipeline, tried: list[StageRef], chosen: str) -> None:
    """Keep with the parent run what each competing recipe came to on validation tasks, and which was chosen."""
    if not tried:
        return
    store = tracking.store()
    scores = {ref.name.removeprefix("recipe-"): {k: v for k, v in ref.metrics.items() if k.startswith("val/")} for ref in tried}
    tracking.log_metrics(line.run_id, {f"recipes/{name}/{k}": v for name, own in scores.items() for k, v in own.items()})
    store.set_tag(line.run_id, "recipe", chosen)
    columns = sorted({k for own in scores.values() for k in own})
    head = ["recipe", *columns, "chosen"]
    body = []
    for name, own in scores.items():
        body.append([name, *(f"{own[k]:.4f}" for k in columns), "yes" if name == chosen else ""])
    store.log_text(line.run_id, markdown(head, body), "recipes.md")
