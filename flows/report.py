"""The table in the terminal and Prefect's artifacts."""

import os
import sys

from prefect.artifacts import create_markdown_artifact
from rich import box
from rich.console import Console
from rich.table import Table

from components.contracts import CELLS, StageRef
from components.plain import masked
from components.scores import SCORES
from flows import paths, tracking
from flows.artifacts import REFERENCES, markdown
from flows.promotion import Decision
from flows.stages import Pipeline
from flows.versions import Pinned

INTERVALS = "95 % intervals over groups, or over classes where tasks mix all"


def score_name(metrics: dict[str, float], where: str) -> str:
    """Return the name of the score that stands under `where`."""
    return next(name for name in SCORES if f"{where}/{name}" in metrics)


def scored(metrics: dict[str, float], where: str, sign: str = "", name: str = "", shorter: int = 0) -> str:
    """Return `mean ± half-width` of the score `name`, or of the objective's own, under `where`, in percent where it is a share.

    It has the digits that the score is shown with, `shorter` ones fewer.
    """
    name = name or score_name(metrics, where)
    shown = SCORES[name]
    mean, half = (shown.factor * metrics[f"{where}/{name}{end}"] for end in ("", "_ci95"))
    digits = shown.digits - shorter
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}"


def roles(metrics: dict[str, float]) -> list[str]:
    """Return the learners and references that an evaluation measured."""
    return [name.removesuffix("/parameters") for name in metrics if name.endswith("/parameters")]


def titled(metrics: dict[str, float], role: str) -> str:
    """Return a learner's name, or a difference's, and with it of how many tasks its scores are where others have more."""
    counts = {name.split("/")[2]: int(value) for name, value in metrics.items() if name.startswith("test/") and name.endswith("/tasks")}
    own, told = min(counts[name] for name in role.split("-minus-") if name in counts), role.replace("-minus-", " - ")
    return told if own == max(counts.values()) else f"{told} ({own} tasks)"


def compared(metrics: dict[str, float]) -> list[str]:
    """Return the labels of the paired differences that an evaluation reports."""
    return sorted({name.split("/")[2] for name in metrics if name.startswith("test/") and "-minus-" in name and name.count("/") == 3})


def further(evaluation: StageRef, places: list[str], name: str) -> list[list[str]]:
    """Return the rows of one score in places such as `test/5w1s`: learners first, then the paired differences."""
    m, told = evaluation.metrics, [(role, "") for role in roles(evaluation.metrics)] + [(label, "+") for label in compared(evaluation.metrics)]
    there = [(role, sign) for role, sign in told if f"{places[0]}/{role}/{name}" in m]
    return [[titled(m, role), *(scored(m, f"{place}/{role}", sign, name) for place in places)] for role, sign in there]


def challenged(metrics: dict[str, float], what: str) -> str:
    """Return the name of a one-shot examination's result: of the runs of a folder, or of their look-alike."""
    return f"look-alike {what}" if metrics.get("challenge/lookalike") else f"challenge {what} ({int(metrics['challenge/runs'])} runs)"


def failed(metrics: dict[str, float], role: str, end: str, sign: str = "") -> str:
    """Return a learner's, or a difference's, error of a one-shot examination with its interval; nothing where it was not examined."""
    place = f"challenge/{role}/{end}"
    return f"{metrics[place]:{sign}.2f} ± {metrics[f'{place}_ci95']:.2f}" if place in metrics else ""


def warned(metrics: dict[str, float]) -> list[str]:
    """Return what must be known to read the scores, a line each."""
    count, who = int(metrics.get("challenge/met", 0)), [name.removesuffix("/transductive") for name in metrics if name.endswith("/transductive")]
    found = [f"{count} pictures of the challenge are drawings that these models were trained on: its errors are not those of new characters"] if count else []
    return found + ([f"transductive, by the statistics of all that a task asks: {', '.join(who)}"] if who else [])


def celled(metrics: dict[str, float]) -> list[str]:
    """Return the cells of a cold start that an evaluation measured."""
    return [cell for cell in CELLS if any(name.startswith(f"{cell}/") for name in metrics)]


def cells(evaluation: StageRef, settings: list[str], scores: list[str]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, header and rows of the tables of a cold start, one a score and setting: a cell, users-items, a column."""
    m, found = evaluation.metrics, celled(evaluation.metrics)
    asked = [(name, s) for name in (score_name(m, f"test/{settings[0]}/base"), *scores) for s in settings if found]
    return [(f"{name}, {s}, users-items", ["", *found], further(evaluation, [f"{cell}/{s}" for cell in found], name)) for name, s in asked]


def rows(evaluation: StageRef, settings: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the result table: one learner a row, scores in percent with their 95 % intervals."""
    m = evaluation.metrics
    score = score_name(m, f"test/{settings[0]}/base")
    asked = _asked(m)
    calibrated = ["ECE"] if any(f"test/{settings[0]}/{role}/ece" in m for role in roles(m)) else []  # values and returns are not sure of anything
    header = ["learner", *(f"{s} {score}" for s in settings), *(shown for _, shown in asked), *calibrated, "parameters", "MFLOP", "adapt ms", "predict ms"]
    table = []
    for role in roles(m):
        cells = [scored(m, f"test/{s}/{role}") for s in settings]
        size = f"{int(m[f'{role}/parameters']):,}"
        ece = m.get(f"test/{settings[0]}/{role}/ece")
        sure = ["" if ece is None else f"{ece:.3f}"] if calibrated else []
        times = (f"{1000 * m[f'{role}/{t}/seconds']:.1f}" for t in ("adapt", "predict"))
        cells += [failed(m, role, end) for end, _ in asked]
        table.append([titled(m, role), *cells, *sure, size, f"{m[f'{role}/flops'] / 1e6:.1f}", *times])
    if score == "accuracy":
        table.append(["chance", *(f"{100 * m[f'test/{s}/chance/accuracy']:.2f}" for s in settings), *([""] * (len(header) - 1 - len(settings)))])
    return header, table


def _asked(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Return both errors of a one-shot examination, with what they are called; none where there was none."""
    return [("error", challenged(metrics, "error")), ("error_joint", "joint")] if "challenge/runs" in metrics else []


def differences(evaluation: StageRef, settings: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the paired differences, one a row, in points with their intervals."""
    m, asked = evaluation.metrics, _asked(evaluation.metrics)
    table = []
    for label in compared(m):
        errors = (failed(m, label, end, "+") for end, _ in asked)
        table.append([titled(m, label), *(scored(m, f"test/{s}/{label}", "+") for s in settings), *errors])
    return ["difference", *settings, *(shown for _, shown in asked)], table


def publish(line: Pipeline, pool: Pinned, refs: list[StageRef], evaluation: StageRef, decision: Decision) -> None:
    """Print the tables, and leave them as a Prefect artifact."""
    settings = line.config.evaluation.settings
    header, body = rows(evaluation, settings)
    gaps = differences(evaluation, settings)
    console = Console() if sys.stdout.isatty() else Console(width=200)  # a log has no width of its own
    title = f"{line.config.registry.model}: {line.config.evaluation.tasks} test tasks a setting, seed {line.config.seed}, {INTERVALS}"
    title += f"; what stands right of them is of {settings[0]}" if len(settings) > 1 else ""
    console.print(framed(title, header, body), framed("paired differences", *gaps))
    for name in line.config.evaluation.scores:
        console.print(framed(name, ["", *settings], further(evaluation, [f"test/{s}" for s in settings], name)))
    cold = cells(evaluation, settings, list(line.config.evaluation.scores))
    for one in cold:
        console.print(framed(*one))
    ran = [f"{r.name} ({r.seconds:.0f} s)" for r in refs if not r.cached]
    cached = [r.name for r in refs if r.cached]
    console.print(f"data: {pool.domain} {pool.md5} ({pool.how})", highlight=False, soft_wrap=True)
    console.print(f"ran: {', '.join(ran) or 'nothing'}", f"cached: {', '.join(cached) or 'nothing'}", sep="\n", highlight=False, soft_wrap=True)
    console.print(decision.told, highlight=False, soft_wrap=True)
    for told in warned(evaluation.metrics):
        console.print(told, highlight=False, soft_wrap=True)
    python = paths.typed("python")
    console.print(f"next: {paths.made('ui', 'flows.ui')} | {python} -m flows.adapt --help | {python} -m flows.evaluate --help", highlight=False, soft_wrap=True)
    gate = f"**Promotion:** {decision.told}"
    shown = [f"## {name}\n\n{markdown(head, found)}" for name, head, found in cold]
    there = f"[MLflow run]({server()}/#/experiments/{line.experiment}/runs/{line.run_id}?workflowType=machine_learning), `{line.run_id}`"
    text = [f"# {title}", "", markdown(header, body), gate, "", *shown, there]
    create_markdown_artifact("\n".join(text), key="result", description=title)
    if shown:
        tracking.log_text(line.run_id, "\n".join(shown), "cells.md")


def server() -> str:
    """Return where MLflow's pages are, or will be: its own server, else the one of `make ui` and `make serve-flows`."""
    given = tracking.uri()
    return masked(given) if given.startswith("http") else f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"


def framed(title: str, header: list[str], body: list[list[str]]) -> Table:
    """Return a table for the terminal, the best measured learner in bold."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    measured = [row for row in body if row[0].split(" ")[0] not in (*REFERENCES, "chance")]
    best = None
    if header[0] == "learner":
        sign = SCORES[header[1].split()[-1]].sign
        best = max(measured, key=lambda row: sign * float(row[1].split()[0]), default=None)
    for row in body:
        table.add_row(*row, style="bold" if row is best else "")
    return table
