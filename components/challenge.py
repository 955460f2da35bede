"""The one-shot challenge (Lake, Salakhutdinov and Tenenbaum 2015, Science 350): its runs answered and scored, and look-alikes of them."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from components.answers import interval
from components.domains import images
from components.domains.oneshot import ALPHABET, LABELS, WAY, check_runs, large_groups, named
from components.domains.pictures import read_picture
from components.domains.pool import Pool
from components.draws import seed_of
from components.inputs import InputError, require
from components.learners.learner import Learner
from components.tasks import Examples


@dataclass(frozen=True)
class Runs:
    """R runs as R tasks: `known` [R, C, 1, H, W], one picture a class, `asked` [R, Q, 1, H, W], `truth` [R, Q].

    `group` [R]: the number of each run's alphabet, -1 where the runs do not tell. `lookalike`: they were made of a pool's drawings.
    """

    known: Tensor
    asked: Tensor
    truth: Tensor
    group: np.ndarray
    lookalike: bool = False


def read_runs(folder: str | Path, size: int) -> Runs:
    """Read all runs of a folder at the working size [size, size].

    Raises InputError naming the file that is missing, unreadable or not where its run says.
    """
    root = Path(folder)
    check_runs(root)
    found = sorted(p.parent for p in root.glob(f"*/{LABELS}"))
    require(len(found) > 0, f"evaluation.challenge must be a folder of <run>/{LABELS}, got none in {root}. Unpack the runs there.")
    parts = [_read_run(root, run, size) for run in found]
    known, asked = (images.prepare(torch.from_numpy(np.stack([part[i] for part in parts]))) for i in (0, 1))
    alphabets = [(run / ALPHABET).read_text().strip() if (run / ALPHABET).is_file() else "" for run in found]
    group = np.unique(alphabets, return_inverse=True)[1] if all(alphabets) else np.full(len(found), -1)
    return Runs(known, asked, torch.tensor([truth for _, _, truth in parts]), group)


def open_runs(asked: str, pool: Pool, count: int, work: Path) -> Runs:
    """Read the runs of folder `asked`; for `lookalike`, write `count` runs of the pool's test split under `work` first, the same ones always."""
    folder = Path(asked)
    if asked == "lookalike":
        folder = work / "lookalike"
        write_lookalike(pool, "test", count, 0, folder)
    return replace(read_runs(folder, pool.input_shape[-1]), lookalike=asked == "lookalike")


def met(folder: str, pool: Pool, names: Container[str]) -> int:
    """Return how many pictures of the runs in a folder are drawings of the pool's classes of these names, bit by bit; 0 where it keeps no originals."""
    stored = pool.path / "originals.npy"
    if not stored.exists():
        return 0
    originals = np.load(stored, mmap_mode="r")
    classes = [c for c, name in enumerate(pool.classes["name"].to_pylist()) if name in names]
    known = {drawing.tobytes() for c in classes for drawing in originals[pool.first[c] : pool.first[c] + pool.counts[c]]}
    files = [path for labels in Path(folder).glob(f"*/{LABELS}") for part in named(Path(folder), labels.parent)[:2] for path in part]
    return sum(np.packbits(np.asarray(Image.open(path).convert("L")) < 128, axis=-1).tobytes() in known for path in files)


def _read_run(root: Path, run: Path, size: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    known, asked, truth = named(root, run)
    return np.stack([read_picture(p, size) for p in known]), np.stack([read_picture(p, size) for p in asked]), truth


def independent(outputs: Tensor) -> Tensor:
    """Name every test picture by itself: outputs [R, Q, C] -> classes [R, Q]."""
    return outputs.argmax(-1)


def joint(outputs: Tensor) -> Tensor:
    """Name a run's test pictures together, each class at most once: the assignment with the largest likelihood (Hungarian method).

    This uses what the independent decision does not know: that every class is asked for once. Raises InputError for more pictures than classes.
    """
    from scipy.optimize import linear_sum_assignment

    asked, classes = outputs.shape[1:]
    require(asked <= classes, f"A joint decision needs as many classes as test pictures, got {classes} for {asked}. Use the independent error.")
    cost = -outputs.double().log_softmax(-1)
    return torch.stack([torch.as_tensor(linear_sum_assignment(run.numpy())[1]) for run in cost])


DECISIONS = {"error": independent, "error_joint": joint}


@torch.no_grad()
def examine(learners: Mapping[str, Learner], runs: Runs, pairs: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Return `challenge/<role>/error` and `error_joint`, means over runs in percent, each with its 95 % interval over alphabets, or over runs.

    Where a run asks for a class twice, there is no joint decision.
    `pairs` names differences of two learners on the same runs; those of a learner that is not here are left out.
    Every learner sees one run's known pictures and one test picture at a time: none of them changes another's answer.
    """
    metrics: dict[str, float] = {"challenge/runs": float(len(runs.truth)), "challenge/lookalike": float(runs.lookalike)}
    way = runs.known.shape[1]
    labels = torch.arange(way)
    once = all(len(own.unique()) == len(own) for own in runs.truth)  # what a joint decision takes for granted
    errors: dict[tuple[str, str], np.ndarray] = {}
    for role, learner in learners.items():
        learner.eval()
        parts = []
        for known, asked in zip(runs.known, runs.asked, strict=True):
            adapted = learner.adapt(Examples(known[None], labels[None], way))
            each = asked[None].split(asked.shape[0] if learner.encodes else 1, 1)  # without one encoder, pictures may share statistics
            parts.append(torch.cat([learner.predict(adapted, some) for some in each], 1))
        outputs = torch.cat(parts)
        for name, decide in DECISIONS.items():
            if name == "error" or once:
                errors[role, name] = 100 * (decide(outputs) != runs.truth).double().mean(1).numpy()
    for label, (a, b) in pairs.items():
        errors |= {(label, name): errors[a, name] - errors[b, name] for name in DECISIONS if (a, name) in errors and (b, name) in errors}
    for (role, name), own in errors.items():
        mean, half = interval(own, runs.group)
        metrics |= {f"challenge/{role}/{name}": mean, f"challenge/{role}/{name}_ci95": half}
    return metrics


def write_lookalike(pool: Pool, split: str, runs: int, seed: int, out: Path) -> None:
    """Write `runs` runs in the challenge's format from the original drawings of a split.

    As there, a run takes 20 characters of one alphabet; one drawer drew the known pictures, another the test pictures, in another order. A
    drawer is an item's place within its class. Raises InputError where the pool keeps no originals, or no alphabet has 20 characters.
    """
    stored = pool.path / "originals.npy"
    require(stored.exists(), f"A look-alike of the challenge needs original drawings, which domain {pool.domain} does not keep. Use domain=omniglot.")
    originals = np.load(stored, mmap_mode="r")
    own, large = pool.split(split), large_groups(pool, split)
    if out.exists():
        raise InputError(f"{out} must not exist yet. Remove it, or name another folder.")
    random = np.random.Generator(np.random.Philox(seed_of("look-alike", seed)))
    for number in range(1, runs + 1):
        group = large[(number - 1) % len(large)]
        members = np.array([c for c in own if pool.groups[c] == group])
        classes = random.permutation(members)[:WAY]
        drawers = random.permutation(int(pool.counts[classes].min()))[:2]
        order, run = random.permutation(WAY), f"run{number:02d}"
        lines = []
        for folder in ("training", "test"):
            (out / run / folder).mkdir(parents=True)
        for place, cls in enumerate(classes):
            _write(originals[pool.first[cls] + drawers[0]], out / run / "training" / f"class{place + 1:02d}.png")
        for place, of in enumerate(order):
            name = f"{run}/test/item{place + 1:02d}.png"
            _write(originals[pool.first[classes[of]] + drawers[1]], out / name)
            lines.append(f"{name} {run}/training/class{of + 1:02d}.png")
        (out / run / LABELS).write_text("\n".join(lines) + "\n")
        (out / run / ALPHABET).write_text(f"{group}\n")


def _write(packed: np.ndarray, path: Path) -> None:
    """Write one drawing, stored as packed bits light on dark, as a picture with dark strokes on light."""
    ink = np.unpackbits(packed, axis=-1, count=packed.shape[0])
    Image.fromarray(((1 - ink) * 255).astype(np.uint8)).save(path)
