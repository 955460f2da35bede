"""The table in the terminal and Prefect's artifacts."""

import sys
from typing import Any

from prefect.artifacts import create_markdown_artifact
from rich import box
from rich.console import Console
from rich.table import Table

from components.contracts import SCORES, StageRef
from flows.artifacts import REFERENCES, markdown
from flows.promotion import Decision
from flows.stages import Pipeline
from flows.versions import Pinned


def score_name(metrics: dict[str, float], where: str) -> str:
    """Return the name of the score that stands under `where`."""
    return next(name for name in SCORES if f"{where}/{name}" in metrics)


def scored(metrics: dict[str, float], where: str, sign: str = "") -> str:
    """Return `mean ± half-width` of the score under `where`, in percent where it is a share."""
    name = score_name(metrics, where)
    shown = SCORES[name]
    mean, half = (shown.factor * metrics[f"{where}/{name}{end}"] for end in ("", "_ci95"))
    return f"{mean:{sign}.{shown.digits}f} ± {half:.{shown.digits}f}"


def roles(metrics: dict[str, float]) -> list[str]:
    """Return the learners and references that an evaluation measured."""
    return [name.removesuffix("/parameters") for name in metrics if name.endswith("/parameters")]


def compared(metrics: dict[str, float]) -> list[str]:
    """Return the labels of the paired differences that an evaluation reports."""
    return sorted({name.split("/")[2] for name in metrics if name.startswith("test/") and "-minus-" in name and name.count("/") == 3})


def rows(evaluation: StageRef, settings: list[str]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the result table: one learner a row, scores in percent with their 95 % intervals."""
    m = evaluation.metrics
    score = score_name(m, f"test/{settings[0]}/base")
    asked = [("error", "challenge error"), ("error_joint", "joint")] if "challenge/runs" in m else []
    header = ["learner", *(f"{s} {score}" for s in settings), *(shown for _, shown in asked), "ECE", "parameters", "MFLOP", "adapt ms", "predict ms"]
    table = []
    for role in roles(m):
        cells = [scored(m, f"test/{s}/{role}") for s in settings]
        tasks = int(m[f"test/{settings[0]}/{role}/tasks"])
        name = role if role != "scratch" else f"scratch ({tasks} tasks)"
        size = f"{int(m[f'{role}/parameters']):,}"
        ece = m.get(f"test/{settings[0]}/{role}/ece")
        times = (f"{1000 * m[f'{role}/{t}/seconds']:.1f}" for t in ("adapt", "predict"))
        cells += [f"{m[where]:.2f} ± {m[f'{where}_ci95']:.2f}" if (where := f"challenge/{role}/{e}") in m else "" for e, _ in asked]
        table.append([name, *cells, "" if ece is None else f"{ece:.3f}", size, f"{m[f'{role}/flops'] / 1e6:.1f}", *times])
    if score == "accuracy":
        table.append(["chance", *(f"{100 * m[f'test/{s}/chance/accuracy']:.2f}" for s in settings), *([""] * (5 + len(asked)))])
    return header, table


def differences(evaluation: StageRef, settings: list[str]) -> list[list[str]]:
    """Return the paired differences, one a row, in points with their intervals."""
    m = evaluation.metrics
    return [[label.replace("-minus-", " - "), *(scored(m, f"test/{s}/{label}", "+") for s in settings)] for label in compared(m)]


def publish(line: Pipeline, pool: Pinned, refs: list[StageRef], evaluation: StageRef, decision: Decision) -> dict[str, Any]:
    """Print the tables, leave them as a Prefect artifact, and return the pipeline's result as plain data."""
    settings = line.config.evaluation.settings
    header, body = rows(evaluation, settings)
    gaps = differences(evaluation, settings)
    console = Console() if sys.stdout.isatty() else Console(width=200)  # a log has no width of its own
    title = f"{line.config.registry.model}: {line.config.evaluation.tasks} test tasks a setting, seed {line.config.seed}, 95 % intervals over groups and tasks"
    console.print(framed(title, header, body), framed("paired differences", ["difference", *settings], gaps))
    ran = [f"{r.name} ({r.seconds:.0f} s)" for r in refs if not r.cached]
    cached = [r.name for r in refs if r.cached]
    console.print(f"data: {pool.domain} {pool.md5} ({pool.how})", highlight=False, soft_wrap=True)
    console.print(f"ran: {', '.join(ran) or 'nothing'}", f"cached: {', '.join(cached) or 'nothing'}", sep="\n", highlight=False, soft_wrap=True)
    fate = "is champion" if decision.champion else "stays challenger"
    console.print(f"{decision.model} version {decision.version} {fate}: {decision.reason}", highlight=False, soft_wrap=True)
    console.print("next: make ui | python -m flows.adapt --help | python -m flows.evaluate --help", highlight=False, soft_wrap=True)
    gate = f"**Promotion:** {decision.model} version {decision.version} {fate}: {decision.reason}"
    create_markdown_artifact("\n".join([f"# {title}", "", markdown(header, body), gate, "", f"MLflow run `{line.run_id}`"]), key="result", description=title)
    return {
        "run_id": line.run_id,
        "version": decision.version,
        "champion": decision.champion,
        "reason": decision.reason,
        "ran": [r.name for r in refs if not r.cached],
    }


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
