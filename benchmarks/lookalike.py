"""How hard are one-shot runs? The error of the challenge's own baseline, the modified Hausdorff distance between the inked pixels of two drawings.

    .venv/bin/python -m benchmarks.lookalike [runs=<folder in the official format>] [mirror=<folder with the Omniglot archive>]

Without `runs`, of the look-alike that `evaluation.challenge=lookalike` makes of the test alphabets. On the official runs the baseline errs in 38.8 % of 400
trials (Lake et al. 2015, Science 350, and the demonstration that comes with the runs). Points are taken about their mean; the distance is the larger one of
the two mean distances to the nearest point of the other drawing (Dubuisson and Jain 1994, ICPR).
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from components.answers import interval
from components.challenge import write_lookalike
from components.domains import omniglot
from components.domains.oneshot import ALPHABET, LABELS, named
from components.domains.options import OmniglotOptions
from components.domains.pool import open_pool, write_pool
from components.inputs import require
from flows.config import load


def points(path: Path) -> np.ndarray:
    """Return the places [N, 2] of a drawing's dark pixels about their mean."""
    places = np.argwhere(np.asarray(Image.open(path).convert("L")) < 128)
    centred: np.ndarray = places - places.mean(0)
    return centred


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the modified Hausdorff distance between points [N, 2] and [M, 2]."""
    apart = cdist(a, b)
    return float(max(apart.min(0).mean(), apart.min(1).mean()))


def errors(run: Path) -> tuple[float, float]:
    """Return a run's error in percent, each test picture by itself and all together, each class once."""
    known, asked, truth = named(run.parent, run)
    held = [points(path) for path in known]
    apart = np.array([[distance(points(path), one) for one in held] for path in asked])
    return 100 * float(np.mean(apart.argmin(1) != truth)), 100 * float(np.mean(linear_sum_assignment(apart)[1] != truth))


def make(folder: Path, mirror: str | None) -> Path:
    """Write the look-alike of `domain=omniglot`, 20 runs of its test alphabets, and return where."""
    domain = load(["domain=omniglot"]).domain
    write_pool(omniglot.build(OmniglotOptions(**domain.source), mirror), domain.splits, domain.name, "benchmark", folder / "pool")
    write_lookalike(open_pool(folder / "pool"), "test", 20, 0, folder / "runs")
    return folder / "runs"


def main(runs: str | None = None, mirror: str | None = None) -> None:
    """Print both errors with their 95 % intervals, over alphabets where the runs tell theirs."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(runs) if runs else make(Path(folder), mirror)
        found = sorted(labels.parent for labels in root.glob(f"*/{LABELS}"))
        require(len(found) > 0, f"runs must be a folder of <run>/{LABELS}, got none in {root}. Unpack the runs there.")
        told = np.array([errors(run) for run in found])
        alphabets = [(run / ALPHABET).read_text() if (run / ALPHABET).is_file() else run.name for run in found]
    for name, column in zip(("each by itself", "all together"), told.T, strict=True):
        mean, half = interval(column, np.unique(alphabets, return_inverse=True)[1])
        print(f"modified Hausdorff distance, {len(found)} runs, {name}: error {mean:.2f} ± {half:.2f} %")


if __name__ == "__main__":
    main(**dict(argument.split("=", 1) for argument in sys.argv[1:]))  # type: ignore[arg-type]
