"""The peers agree with fewloop on the same weights and tasks, and the benchmark's pieces run."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import write_run

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_values_and_gradients_agree_with_the_peers() -> None:
    """`make agreement` sets the peers up and compares; it fails where one differs by more than 1e-6."""
    ended = subprocess.run(["make", "agreement"], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    told = ended.stdout
    for name in ("maml with learn2learn, 5 steps", "meta_sgd with learn2learn", "anil with learn2learn", "maml with higher", "maml with torchopt", "easyfsl"):
        assert name in told


@pytest.mark.slow
def test_maml_learns_sine_waves_as_its_paper_says(tmp_path: Path) -> None:
    """Finn et al. 2017, fig. 3: with 10 points, most of the error is gone after one step, and more goes with ten."""
    from benchmarks import sinusoid

    pool = sinusoid.prepare(tmp_path, seed=0)
    sinusoid.train("maml", tmp_path, seed=0, steps=8000)  # of 60,000 in the experiment; three seeds: 0.45 to 0.49 and 0.12 to 0.15
    found = sinusoid.errors("maml", tmp_path, pool)
    assert found[1][0] < 0.6, found
    assert found[10][0] < 0.2, found


def test_the_challenges_own_baseline_on_a_known_answer(tmp_path: Path) -> None:
    """A moved copy is no distance away; of 20 test pictures, copies of known ones in another order, two bear each other's labels."""
    from benchmarks import lookalike

    random = np.random.default_rng(0)
    a, b = random.random((7, 2)), random.random((5, 2))
    nearest = [[min(np.hypot(*(p - q)) for q in other) for p in one] for one, other in ((a, b), (b, a))]
    assert lookalike.distance(a, b) == pytest.approx(max(np.mean(nearest[0]), np.mean(nearest[1])))
    drawing = np.full((105, 105), 255, np.uint8)
    drawing[10:30, 20:25] = drawing[40:44, 20:60] = 0
    for name, shift in (("here", 0), ("there", 30)):
        Image.fromarray(np.roll(drawing, shift, axis=(0, 1))).save(tmp_path / f"{name}.png")
    assert lookalike.distance(*(lookalike.points(tmp_path / f"{name}.png") for name in ("here", "there"))) == pytest.approx(0, abs=1e-9)
    shown = [*range(3, 20), 0, 1, 2]
    write_run(tmp_path / "run01", list(zip(shown, [4, 3, *shown[2:]], strict=True)))
    assert lookalike.errors(tmp_path / "run01") == (10.0, 10.0)


@pytest.mark.slow
def test_what_one_more_costs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import units

    units.pool(4_000, tmp_path)
    units.ingest(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    told = {line[:28].strip(): float(line[28:].split()[0]) for line in lines}
    assert {"write a pool", "digest a pool", "draw and write task sets", "read a folder of pictures", "read a table"} <= set(told)
    assert all(value >= 0 for value in told.values())
    assert "bytes a task on disk" in lines[-3] and 784 < float(lines[0].split(", ")[1].split()[0]) < 820, "an item is 784 bytes and its share of the tables"
