"""What every domain is made of in a test, small: the user's files, or an archive in the format of a download; and its chain, run once a session."""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from PIL import Image
from workspace import SMOKE, Workspace

from components.domains import omniglot
from flows.config import groups, load
from flows.versions import pin_data


def fits(steps: int) -> list[str]:
    """Return the overrides for fits of so many steps, two epochs each."""
    return [f"{where}.fit.{name}" for where in ("base", "learner", "student.learner", "fusion") for name in (f"steps={steps}", f"epoch_steps={steps // 2}")]


FEW = [*fits(40), "tasks.val=20", "evaluation.tasks=40", "evaluation.gate_tasks=20", "evaluation.scratch_tasks=2", "evaluation.scratch_steps=2"]


def letters(workspace: Workspace, classes: int, each: int) -> np.ndarray:
    """Return pictures [classes, each, 28, 28] of real letters."""
    pool = np.load(workspace.root / "data/glyphs/inputs.npy", mmap_mode="r")
    return np.stack([np.asarray(pool[c * 20 : c * 20 + each]) for c in range(classes)])


def picture_folder(workspace: Workspace, folder: Path) -> list[str]:
    """Write forty letters, each class in a colour of its own."""
    for c, pictures in enumerate(letters(workspace, 40, 8)):
        own = folder / "pictures" / f"letter-{c}"
        own.mkdir(parents=True)
        shade = np.array([255, 40 * (c % 6), 255 - 40 * (c % 6)]) / 255
        for i, picture in enumerate(pictures):
            Image.fromarray((picture[..., None] * shade).astype(np.uint8)).save(own / f"{i}.png")
    asked = ["experiment=image_folder", f"domain.source.root={folder / 'pictures'}", "domain.source.colour=true"]
    return [*asked, *fits(20), "tasks.way=3", "evaluation.settings=[3w1s]"]


def letter_rows(workspace: Workspace) -> pa.Table:
    """Return eight rows each of sixty letters, their 49 columns means of pixels."""
    pixels = letters(workspace, 60, 8).reshape(480, 7, 4, 7, 4).mean((2, 4)).reshape(480, 49)
    return pa.table({f"p{i}": pixels[:, i] for i in range(49)} | {"label": [f"letter-{i // 8}" for i in range(480)]})


def table_file(workspace: Workspace, folder: Path) -> list[str]:
    """Write the rows of the first fifty letters."""
    pyarrow.csv.write_csv(letter_rows(workspace).slice(0, 400), folder / "rows.csv")
    return ["experiment=table", f"domain.source.file={folder / 'rows.csv'}", "tasks.way=3", "evaluation.settings=[3w1s]"]


def ratings_file(folder: Path, users: int = 12, each: int = 9, seed: int = 0) -> Path:
    """Write ratings of users whose taste is one number, of items with one number each, in an order that is not that of time."""
    random = np.random.default_rng(seed)
    taste, quality = random.normal(size=users), random.normal(size=20)
    user = np.repeat(np.arange(users), each)
    item = np.concatenate([random.permutation(20)[:each] for _ in range(users)])
    value = np.clip(3 + taste[user] * quality[item], 1, 5).round(1)
    shuffled = random.permutation(len(user))
    columns = {"user": [f"u{u:02}" for u in user], "item": [f"film {i}" for i in item], "rating": value, "time": np.tile(np.arange(each), users)}
    pyarrow.csv.write_csv(pa.table(columns).take(shuffled), folder / "own.csv")
    return folder / "own.csv"


def ratings(workspace: Workspace, folder: Path) -> list[str]:
    asked = [
        "experiment=ratings",
        f"domain.source.file={ratings_file(folder, users=120, each=14)}",
        "domain.source.min_ratings=14",
        "domain.source.factors=2",
        "domain.source.co_factors=2",
    ]
    asked += ["tasks.shot=8", "tasks.query=4", "evaluation.query=4", "evaluation.settings=[1w2s,1w8s]"]
    return [*asked, *fits(200), "evaluation.tasks=60"]


def touches_file(folder: Path, users: int = 12, each: int = 6, items: int = 30, seed: int = 0) -> Path:
    """Write what users touched, in no order: nine in ten times an item of the half that they like."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        liked = np.where(np.arange(items) % 2 == user % 2, 9.0, 1.0)
        rows += [(f"u{user:03}", f"page {item}", time) for time, item in enumerate(random.choice(items, each, False, liked / liked.sum()))]
    random.shuffle(rows)
    pyarrow.csv.write_csv(pa.table({name: [row[i] for row in rows] for i, name in enumerate(("user", "item", "time"))}), folder / "touches.csv")
    return folder / "touches.csv"


def clicks(workspace: Workspace, folder: Path) -> list[str]:
    asked = [
        "experiment=clicks",
        f"domain.source.file={touches_file(folder, users=120, each=8)}",
        "domain.source.min_ratings=8",
        "domain.source.factors=2",
        "domain.source.co_factors=2",
    ]
    asked += ["tasks.shot=8", "tasks.query=6", "evaluation.query=6", "evaluation.settings=[1w4s,1w8s]", "evaluation.tasks=60"]
    return [*asked, *fits(60)]


def sine_waves(workspace: Workspace, folder: Path) -> list[str]:
    return ["experiment=sinusoid", *fits(100)]


def environments(workspace: Workspace, folder: Path) -> list[str]:
    few = ["domain.source.environments=400", "tasks.query=12", "tasks.shot=40", "tasks.val=10"]
    few += ["base.batch=240", "base.fit.steps=80", "base.fit.epoch_steps=40", "learner.tasks_per_step=8", "student.learner.tasks_per_step=4"]
    return ["experiment=navigation", *few, "evaluation.settings=[1w20s]"]


def png_head(side: int) -> bytes:
    """Return a PNG whose head claims side x side pixels and whose body holds none."""
    head = b"IHDR" + struct.pack(">2I5B", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def omniglot_archive(folder: Path, alphabets: dict[str, int], drawers: int = 3, seed: int = 0, name: str = "images_background") -> str:
    """Write an archive in Omniglot's layout; return its digest."""
    random, digest = np.random.default_rng(seed), hashlib.sha256()
    (folder / "omniglot").mkdir(parents=True, exist_ok=True)
    entries = {}
    for alphabet, characters in alphabets.items():
        for c in range(characters):
            for d in range(drawers):
                entries[f"{name}/{alphabet}/character{c + 1:02d}/{c:04d}_{d + 1:02d}.png"] = (random.random((105, 105)) < 0.9) * np.uint8(255)
    with zipfile.ZipFile(folder / "omniglot" / f"{name}.zip", "w") as file:
        for path, drawing in entries.items():
            with file.open(path, "w") as entry:
                Image.fromarray(drawing).convert("1").save(entry, "PNG")
    for path in sorted(entries):
        digest.update(path.encode())
        digest.update(entries[path].tobytes())
    return digest.hexdigest()


def handwriting(choice: str, workspace: Workspace, folder: Path) -> list[str]:
    """Write archives with the alphabets that a variant of Omniglot names, and pin the pool made of them: only here are their digests the right ones."""
    asked = [SMOKE, f"domain={choice}", "evaluation.within=all", "evaluation.settings=[5w1s]", "evaluation.query=3", f"mirror={folder}"]
    domain = load(asked).domain
    named = sorted({*domain.source["alphabets"], *domain.splits.val, *domain.splits.gate, *domain.splits.test}) or [f"Alphabet-{i}" for i in range(30)]
    if not domain.source["alphabets"]:  # the rest trains
        named += ["Hangul", "Kanji"]
    later = domain.splits.test if domain.source["evaluation"] else []
    archives = {"images_background": [a for a in named if a not in later]} | ({"images_evaluation": later} if later else {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWLOOP_ROOT", str(workspace.root))
        for name, alphabets in archives.items():
            patch.setitem(omniglot.DIGESTS, name, omniglot_archive(folder, dict.fromkeys(alphabets, 6), drawers=5, name=name))
        pin_data(domain, None, True, str(folder))
    return asked


# By the names of conf/domain: writes what the domain is made of into a folder, and returns the overrides that ask for it.
SOURCES: dict[str, Callable[[Workspace, Path], list[str]]] = {
    "clicks": clicks,
    "control": environments,
    "glyphs": lambda workspace, folder: [SMOKE],
    "image_folder": picture_folder,
    "ratings": ratings,
    "sinusoid": sine_waves,
    "table": table_file,
    **{choice: partial(handwriting, choice) for choice in groups()["domain"] if choice.startswith("omniglot")},
}


@dataclass(frozen=True)
class Chain:
    """A domain's chain after its first run: where it ran, the folder of what it was made of, what was asked for, and what it printed."""

    workspace: Workspace
    folder: Path
    asked: list[str]
    out: str

    @property
    def model(self) -> str:
        return load(self.asked).registry.model


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, prefect: dict[str, str], finished: Workspace) -> Callable[[str], Chain]:
    """Run a domain's whole chain on tiny budgets, once a session; what needs its champion shares it."""
    made: dict[str, Chain] = {}

    def of(domain: str) -> Chain:
        told = "Add a function that makes it small, and returns the overrides that ask for it."
        assert domain in SOURCES, f"conf/domain/{domain}.yaml has no entry in SOURCES of tests/sources.py. {told}"
        if domain not in made:
            folder = tmp_path_factory.mktemp(domain)
            workspace = Workspace(folder / "project", prefect, finished.root / "data")
            asked = [*FEW, *SOURCES[domain](workspace, folder)]
            made[domain] = Chain(workspace, folder, asked, workspace.retrain(*asked).stdout)
        return made[domain]

    return of


def write_run(folder: Path, pairs: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    """Write a run of a one-shot examination, of 20 classes; test picture i is a copy of class pairs[i][0]'s, and its label says pairs[i][1]."""
    random = np.random.default_rng(seed)
    drawings = [((random.random((105, 105)) < 0.9) * 255).astype(np.uint8) for _ in range(20)]
    for part in ("training", "test"):
        (folder / part).mkdir(parents=True)
    for i, drawing in enumerate(drawings):
        Image.fromarray(drawing).convert("1").save(folder / "training" / f"class{i + 1:02d}.png")
    lines = []
    for i, (shown, said) in enumerate(pairs):
        Image.fromarray(drawings[shown]).convert("1").save(folder / "test" / f"item{i + 1:02d}.png")
        lines.append(f"{folder.name}/test/item{i + 1:02d}.png {folder.name}/training/class{said + 1:02d}.png")
    (folder / "class_labels.txt").write_text("\n".join(lines) + "\n")
    return drawings
