"""Figures, returned and never saved: whoever asks for one knows where it goes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

MARKS = {"base": "s", "teacher": "D", "fused": "*", "fused-distilled": "P", "champion": "v"}


@dataclass(frozen=True)
class Cost:
    """One learner in the trade-off: its score and half interval as shown, its parameters, and seconds to adapt to and predict one task."""

    role: str
    score: float
    half: float
    parameters: float
    seconds: float


def costs(metrics: Mapping[str, float], setting: str, score: str, factor: float, leave_out: Sequence[str]) -> list[Cost]:
    """Read from an evaluation's metrics what each learner costs and scores in one setting; references in `leave_out` are not learners."""
    roles = [name.removesuffix("/parameters") for name in metrics if name.endswith("/parameters")]
    found = []
    for role in (r for r in roles if r not in leave_out):
        where = f"test/{setting}/{role}/{score}"
        seconds = metrics[f"{role}/adapt/seconds"] + metrics[f"{role}/predict/seconds"]
        found.append(Cost(role, factor * metrics[where], factor * metrics[f"{where}_ci95"], metrics[f"{role}/parameters"], seconds))
    return found


def trade_off(learners: Sequence[Cost], title: str, axis: str) -> Figure:
    """Draw score against parameters, and against time for one task; bars are 95 % intervals. An ablation's rows are for the table."""
    learners = [cost for cost in learners if not cost.role.startswith(("recipe-", "joined-"))]
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, name, values in (
        (panels[0], "parameters", [c.parameters for c in learners]),
        (panels[1], "milliseconds to adapt to a task and predict its queries, one core", [1000 * c.seconds for c in learners]),
    ):
        for i, (cost, value) in enumerate(zip(learners, values, strict=True)):
            panel.errorbar(value, cost.score, cost.half, marker=MARKS.get(cost.role, "o"), color=f"C{i % 10}", capsize=3, markersize=8, label=cost.role)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(name)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(axis)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.suptitle(title)
    return figure
