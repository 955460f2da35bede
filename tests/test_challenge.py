"""The one-shot challenge: its reader on runs with known answers, both decisions, and the look-alike."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from sources import omniglot_archive as archive
from sources import write_run
from tasks_for_tests import PICTURES, spec

from components import challenge
from components.contracts import SplitsSection
from components.domains import omniglot
from components.domains.oneshot import check_runs
from components.domains.options import OmniglotOptions
from components.domains.pool import Pool, open_pool, write_pool
from components.inputs import InputError
from components.learners import store
from components.learners.learner import Adapted
from components.learners.reference import Nearest
from components.tasks import Examples
from flows.config import load
from flows.paths import CODE


def test_runs_are_read_as_they_were_drawn_and_scored_by_their_labels(tmp_path: Path) -> None:
    drawings = write_run(tmp_path / "run01", [(i, i) for i in reversed(range(20))])
    write_run(tmp_path / "run02", [(i, i if i > 2 else (i + 1) % 3) for i in range(20)], seed=1)  # three labels say something else
    runs = challenge.read_runs(tmp_path, 35)
    assert runs.known.shape == runs.asked.shape == (2, 20, 1, 35, 35)
    assert runs.truth[0].tolist() == list(reversed(range(20)))
    light = 1 - torch.tensor(drawings[0]).float().view(35, 3, 35, 3).mean((1, 3)) / 255
    assert torch.allclose(runs.known[0, 0, 0], light, atol=1 / 255)
    metrics = challenge.examine({"pixels": Nearest()}, runs, {})
    assert metrics["challenge/runs"] == 2
    for error in ("error", "error_joint"):
        assert metrics[f"challenge/pixels/{error}"] == pytest.approx((0 + 15) / 2)  # 3 of 20 in the second run


def test_a_picture_that_looks_like_anothers_class_is_named_rightly_by_the_joint_decision_alone(tmp_path: Path) -> None:
    first, second, *_ = write_run(tmp_path / "run01", [(i, i) for i in range(20)])
    between = np.where(np.random.default_rng(2).random(first.shape) < 0.6, first, second)
    Image.fromarray(between).convert("1").save(tmp_path / "run01" / "test" / "item02.png")  # of the second class, nearer to the first
    metrics = challenge.examine({"pixels": Nearest()}, challenge.read_runs(tmp_path, 105), {})
    assert (metrics["challenge/pixels/error"], metrics["challenge/pixels/error_joint"]) == (5, 0)


def test_where_a_class_is_asked_for_twice_nothing_is_decided_jointly(tmp_path: Path) -> None:
    write_run(tmp_path / "run01", [(max(i, 1), max(i, 1)) for i in range(20)])
    metrics = challenge.examine({"pixels": Nearest()}, challenge.read_runs(tmp_path, 35), {})
    assert metrics["challenge/pixels/error"] == 0 and "challenge/pixels/error_joint" not in metrics


class Farthest(Nearest):
    def predict_features(self, adapted: Adapted, x: torch.Tensor) -> torch.Tensor:
        return -super().predict_features(adapted, x)


def test_two_learners_errors_are_paired_run_by_run(tmp_path: Path) -> None:
    for i, wrong in enumerate((0, 3, 7)):
        write_run(tmp_path / f"run{i + 1:02d}", [(k, k if k >= wrong else (k + 1) % wrong) for k in range(20)], seed=i)
    runs, learners = challenge.read_runs(tmp_path, 35), {"far": Farthest(), "near": Nearest()}
    metrics = challenge.examine(learners, runs, {"far-minus-near": ("far", "near"), "far-minus-nobody": ("far", "nobody")})
    alone = [challenge.examine(learners, replace(runs, **{n: getattr(runs, n)[[i]] for n in ("known", "asked", "truth", "group")}), {}) for i in range(3)]
    gaps = np.array([one["challenge/far/error"] - one["challenge/near/error"] for one in alone])
    assert gaps.std() > 5 and metrics["challenge/far-minus-near/error"] == pytest.approx(gaps.mean())
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(gaps)
    assert metrics["challenge/far-minus-near/error_ci95"] == pytest.approx(half)
    assert not any("nobody" in name for name in metrics)


def test_a_joint_decision_is_the_best_of_all_assignments_and_an_independent_one_is_not() -> None:
    outputs = torch.randn(5, 4, 5, generator=torch.Generator().manual_seed(0))
    logs = outputs.log_softmax(-1)
    for run in range(5):
        best = max(itertools.permutations(range(5), 4), key=lambda p: sum(logs[run, q, c].item() for q, c in enumerate(p)))
        assert challenge.joint(outputs)[run].tolist() == list(best)
    twice = torch.tensor([[[3.0, 2.0], [2.0, 0.0]]])  # both look like class 0, the second more surely so
    assert challenge.independent(twice).tolist() == [[0, 0]]
    assert challenge.joint(twice).tolist() == [[1, 0]]


def test_a_joint_decision_needs_a_class_for_every_picture() -> None:
    with pytest.raises(InputError, match="got 2 for 3"):
        challenge.joint(torch.zeros(1, 3, 2))


@pytest.mark.parametrize(
    "line, told",
    [
        ("run01/test/item01.png", "takes lines"),
        ("run01/test/item01.png run01/training/class99.png", "its own run"),
        ("run01/test/../../../secret.png run01/training/class01.png", "its own run"),
        ("run02/test/item01.png run01/training/class01.png", "its own run"),
        ("", "at least one"),
    ],
)
def test_labels_that_name_no_picture_of_their_run_are_told(tmp_path: Path, line: str, told: str) -> None:
    write_run(tmp_path / "run01", [(0, 0)])
    (tmp_path / "run01" / "class_labels.txt").write_text(line + "\n")
    with pytest.raises(InputError, match=told):
        challenge.read_runs(tmp_path, 28)


def test_labels_that_are_cut_off_and_pictures_that_are_none_are_told_before_any_training(tmp_path: Path) -> None:
    write_run(tmp_path / "run01", [(i, i) for i in range(20)])
    assert load(["domain=omniglot", f"evaluation.challenge={tmp_path}"]).evaluation.challenge == str(tmp_path)
    labels, picture = tmp_path / "run01" / "class_labels.txt", tmp_path / "run01" / "training" / "class03.png"
    whole = labels.read_text()
    labels.write_text("".join(whole.splitlines(keepends=True)[:7]))
    with pytest.raises(InputError, match="every picture of its test folder, got 7 of 20"):
        load(["domain=omniglot", f"evaluation.challenge={tmp_path}"])
    labels.write_text(whole)
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(InputError, match=r"class03.png must be a PNG"):
        load(["domain=omniglot", f"evaluation.challenge={tmp_path}"])


def test_runs_are_read_as_other_systems_pack_them(tmp_path: Path) -> None:
    write_run(tmp_path / "run01", [(i, i) for i in range(20)])
    wanted = challenge.read_runs(tmp_path, 28)
    labels = tmp_path / "run01" / "class_labels.txt"
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes().replace(b"/", b"\\").replace(b"\n", b"\r\n"))
    (tmp_path / "run01" / "training" / "._class01.png").write_bytes(b"\0\5\x16\7 what a Mac leaves")
    (tmp_path / "__MACOSX" / "run01").mkdir(parents=True)
    found = challenge.read_runs(tmp_path, 28)
    assert torch.equal(found.known, wanted.known) and torch.equal(found.asked, wanted.asked) and torch.equal(found.truth, wanted.truth)
    labels.write_bytes(b"\xff\xfe what is no text\n")
    with pytest.raises(InputError, match=r"takes lines|its own run"):
        check_runs(tmp_path)


def test_runs_that_differ_in_size_or_ask_twice_are_told_before_any_picture_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "run01", [(i, i) for i in range(20)])
    write_run(tmp_path / "run02", [(i, i) for i in range(19)])
    with pytest.raises(InputError, match=r"same numbers of classes and test pictures, got \[\(20, 19\), \(20, 20\)\]"):
        check_runs(tmp_path)
    labels = tmp_path / "run02" / "class_labels.txt"
    labels.write_text(labels.read_text() + labels.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match="every test picture once"):
        check_runs(tmp_path)


def test_a_test_picture_changes_no_others_answer_whatever_normalises_them(tmp_path: Path) -> None:
    write_run(tmp_path / "run01", [(i, i) for i in range(20)])
    runs = challenge.read_runs(tmp_path, PICTURES[-1])
    learner = store.build(spec("maml", norm="task"), 0).eval()
    with torch.no_grad():
        adapted = learner.adapt(Examples(runs.known, torch.arange(20)[None], 20))
        alone = torch.cat([learner.predict(adapted, runs.asked[:, i : i + 1]) for i in range(20)], 1)
        assert not torch.allclose(alone, learner.predict(adapted, runs.asked), atol=1e-4), "together they share statistics"
    error = 100 * (challenge.independent(alone) != runs.truth).double().mean().item()
    assert challenge.examine({"maml": learner}, runs, {})["challenge/maml/error"] == pytest.approx(error)


def test_drawings_that_a_model_was_trained_on_are_counted(tmp_path: Path, pool: Pool) -> None:
    challenge.write_lookalike(pool, "test", 2, 0, tmp_path / "runs")
    names = pool.classes["name"].to_pylist()
    greek = {name for name, group in zip(names, pool.groups, strict=True) if group == "Greek"}
    told = {(tmp_path / "runs" / f"run{i:02d}" / "alphabet.txt").read_text().strip() for i in (1, 2)}
    assert told == {"Greek", "Hebrew"}
    assert challenge.met(str(tmp_path / "runs"), pool, set(names)) == 80
    assert challenge.met(str(tmp_path / "runs"), pool, greek) == 40
    assert challenge.met(str(tmp_path / "runs"), pool, set()) == 0


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got none in"):
        challenge.read_runs(tmp_path, 28)


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    alphabets = {"Greek": 22, "Hebrew": 21, "Latin": 5, "Tagalog": 24}
    monkeypatch.setitem(omniglot.DIGESTS, "images_background", archive(tmp_path, alphabets, drawers=4))
    write_pool(
        omniglot.build(OmniglotOptions(35, False, []), str(tmp_path)),
        SplitsSection(None, [], [], ["Greek", "Hebrew", "Latin"], {}),
        "omniglot",
        "x",
        tmp_path / "pool",
    )
    return open_pool(tmp_path / "pool")


def test_the_look_alike_has_the_challenges_protocol(tmp_path: Path, pool: Pool) -> None:
    """One alphabet a run, every class once, one drawer for what is known and another for what is asked, none from outside the split."""
    challenge.write_lookalike(pool, "test", 4, 0, tmp_path / "runs")
    runs = challenge.read_runs(tmp_path / "runs", 35)
    stored = torch.from_numpy(np.array(pool.inputs)).float() / 255

    def item(picture: torch.Tensor) -> int:
        gaps = (stored - picture[0]).abs().amax((1, 2))
        assert gaps.min() <= 1.5 / 255
        return int(gaps.argmin())

    told: dict[int, str] = {}
    for known, asked, truth, group in zip(runs.known, runs.asked, runs.truth.numpy(), runs.group.tolist(), strict=True):
        of, other = [item(p) for p in known], [item(p) for p in asked]
        classes = np.searchsorted(pool.first, of, side="right") - 1
        assert (np.searchsorted(pool.first, other, side="right") - 1)[np.argsort(truth)].tolist() == classes.tolist()
        assert len({pool.groups[c] for c in classes}) == 1 and set(classes) <= set(pool.split("test")) and len(set(classes)) == 20
        first, second = {i - pool.first[c] for i, c in zip(of, classes, strict=True)}, {i - pool.first[c] for i, c in zip(other, classes[truth], strict=True)}
        assert len(first) == len(second) == 1 and first != second
        assert sorted(truth.tolist()) == list(range(20)) != truth.tolist()
        assert told.setdefault(group, pool.groups[classes[0]]) == pool.groups[classes[0]]
    assert len(told) == len(set(told.values())) > 1, "intervals are over alphabets"


def test_what_a_pool_cannot_give_is_told_without_torch(pool: Pool) -> None:
    script = (
        "import sys; from flows.checks import check_pool; from flows.config import load; from components.inputs import InputError\n"
        f"asked = lambda *more: check_pool(load(['experiment=omniglot_small1', 'student.sweep=[]', *more]), {str(pool.path)!r})\n"
        "asked()\n"
        "try: asked('student.recipe.teacher_shots=20')\n"
        "except InputError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=CODE).stdout.splitlines()
    assert told[0].startswith("student.recipe.teacher_shots=20 needs") and told[1] == "False"


def test_the_look_alike_is_the_same_every_time(tmp_path: Path, pool: Pool) -> None:
    for folder in ("a", "b"):
        challenge.write_lookalike(pool, "test", 2, 0, tmp_path / folder)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 2 * 42
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_a_split_without_a_large_alphabet_makes_no_look_alike(tmp_path: Path, pool: Pool) -> None:
    with pytest.raises(InputError, match="an alphabet of 20 characters"):
        challenge.write_lookalike(pool, "val", 2, 0, tmp_path / "runs")
