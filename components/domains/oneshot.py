"""The format of the one-shot challenge's runs (Lake, Salakhutdinov and Tenenbaum 2015, Science 350), read without opening a picture.

A run is `<run>/training/*.png`, `<run>/test/*.png` and `<run>/class_labels.txt` with lines `<test picture> <training picture of its class>`,
paths from the folder that holds the runs. A look-alike tells each run's alphabet besides, in `<run>/alphabet.txt`.
"""

from pathlib import Path

from components.domains.pool import Pool
from components.inputs import require

LABELS, ALPHABET = "class_labels.txt", "alphabet.txt"
WAY = 20


def check_runs(folder: str | Path) -> None:
    """Raise InputError where a run's labels are not as they must be, or runs differ in size; no picture is read."""
    sizes = set()
    for labels in sorted(Path(folder).glob(f"*/{LABELS}")):
        known, asked, _ = named(Path(folder), labels.parent)
        sizes.add((len(known), len(asked)))
    require(len(sizes) < 2, f"Runs must have the same numbers of classes and test pictures, got {sorted(sizes)} in {folder}. Score them in groups.")


def check_pictures(folder: str | Path) -> None:
    """Raise InputError for a picture of a run that cannot be read."""
    from components.domains.pictures import read_picture

    for labels in sorted(Path(folder).glob(f"*/{LABELS}")):
        for path in (p for part in named(Path(folder), labels.parent)[:2] for p in part):
            read_picture(path, 1)


def named(root: Path, run: Path) -> tuple[list[Path], list[Path], list[int]]:
    """Return a run's known pictures, its test pictures, and the place of each one's class among the known."""
    text = (run / LABELS).read_text(encoding="utf-8-sig", errors="replace").replace("\\", "/")  # as other systems pack them
    lines = [line.split() for line in text.splitlines() if line.strip()]
    known = sorted(p for p in (run / "training").glob("*.png") if not p.name.startswith("."))  # what a Mac leaves beside them
    places = {path.resolve(): i for i, path in enumerate(known)}
    asked, truth = [], []
    for line in lines:
        require(len(line) == 2, f"{run / LABELS} takes lines <test picture> <training picture>, got {' '.join(line)!r}. Repair it.")
        test, training = ((root / name).resolve() for name in line)
        require(
            training in places and test.parent == (run / "test").resolve() and test.is_file(),
            f"{run / LABELS} must name pictures of its own run, got {' '.join(line)!r}. Unpack the runs again.",
        )
        asked.append(test)
        truth.append(places[training])
    require(len(set(asked)) == len(asked), f"{run / LABELS} must name every test picture once, got one more than once. Unpack the runs again.")
    require(len(asked) > 0, f"{run / LABELS} must name at least one test picture, got an empty file. Unpack the runs again.")
    there = sum(not path.name.startswith(".") for path in (run / "test").glob("*.png"))
    require(len(asked) == there, f"{run / LABELS} must name every picture of its test folder, got {len(asked)} of {there}. Unpack the runs again.")
    return known, asked, truth


def large_groups(pool: Pool, split: str) -> list[str]:
    """Return the alphabets of a split that have characters enough for a run. Raises InputError where none has."""
    own = pool.split(split)
    large = [g for g in sorted({pool.groups[c] for c in own}) if sum(pool.groups[c] == g for c in own) >= WAY]
    require(len(large) > 0, f"A look-alike of the challenge needs an alphabet of {WAY} characters in split {split}, got none. Use evaluation.challenge=null.")
    return large
