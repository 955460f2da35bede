"""The user's own pictures: layouts, colours, what cannot be used, versions; and the whole chain on them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from workspace import Workspace

from components.contracts import InputError
from components.domains import image_folder, images
from components.domains.options import ImageFolderOptions, content
from flows.config import load
from flows.versions import source_digest

OPTIONS = ImageFolderOptions(None, 28, False, 2, "refuse")


def paint(path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (40, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def layout(root: Path, *folders: str, each: int = 3) -> ImageFolderOptions:
    for place, folder in enumerate(folders):
        for i in range(each):
            paint(root / folder / f"{i}.{('png', 'jpg', 'webp')[i % 3]}", (200, 10 * place, 30))
    return replace(OPTIONS, root=str(root))


def test_classes_are_folders_and_groups_the_folders_above_them(tmp_path: Path) -> None:
    flat = image_folder.build(layout(tmp_path / "flat", "b", "a"))
    assert [(c.name, c.group, c.count) for c in flat.classes] == [("a", "pictures", 3), ("b", "pictures", 3)]
    deep = image_folder.build(layout(tmp_path / "deep", "x/one", "y/one", "y/two"))
    assert [(c.name, c.group) for c in deep.classes] == [("x/one", "x"), ("y/one", "y"), ("y/two", "y")]
    assert deep.inputs.shape == (9, 28, 28) and deep.item_notes[:3] == ["0.png", "1.jpg", "2.webp"]


def test_colours_are_kept_where_they_are_asked_for_and_the_side_ratio_always(tmp_path: Path) -> None:
    layout(tmp_path, "a", "b")
    source = image_folder.build(replace(OPTIONS, root=str(tmp_path), colour=True))
    x = images.prepare(torch.from_numpy(source.inputs))
    assert x.shape == (6, 3, 28, 28)
    assert x[0, :, 14, 14].tolist() == pytest.approx([200 / 255, 0, 30 / 255])
    assert x[0, :, 2, 14].tolist() == [0, 0, 0]  # 40 x 20: bands above and below


PROBLEMS: dict[str, Callable[[Path], object]] = {
    "cannot be read": lambda root: (root / "a" / "text.png").write_text("no picture"),
    "a link out of the folder": lambda root: (root / "a" / "away.png").symlink_to(root.parent / "outside.png"),
    "class thin (1 pictures, needs 2)": lambda root: paint(root / "thin" / "0.png"),
}


@pytest.mark.parametrize("told", PROBLEMS)
def test_what_cannot_be_used_is_named_and_refused_or_skipped_and_counted(tmp_path: Path, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "outside.png")
    options = layout(tmp_path / "root", "a", "b")
    PROBLEMS[told](tmp_path / "root")
    with pytest.raises(InputError) as refused:
        image_folder.build(options)
    assert told in str(refused.value) and "got 1 that cannot be used" in str(refused.value)
    kept = image_folder.build(replace(options, problems="skip"))
    assert [(c.name, c.count) for c in kept.classes] == [("a", 3), ("b", 3)]
    assert "1 skipped" in capsys.readouterr().err


def test_mixed_layouts_and_a_single_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got both"):
        image_folder.build(layout(tmp_path / "mixed", "a", "group/b"))
    beside = layout(tmp_path / "beside", "group/a", "group/b")
    paint(tmp_path / "beside" / "group" / "loose.png")
    with pytest.raises(InputError, match=r"got both \(loose.png\)"):
        image_folder.build(beside)
    with pytest.raises(InputError, match="at least two classes"):
        image_folder.build(layout(tmp_path / "one", "a"))


def test_a_version_is_what_the_folder_holds_and_not_where_it_lies(tmp_path: Path) -> None:
    def digest(folder: str) -> str:
        return source_digest(load(["experiment=image_folder", f"domain.source.root={tmp_path / folder}"]).domain)

    for folder in ("here", "there"):
        layout(tmp_path / folder, "a", "b")
    assert content(tmp_path / "here") == content(tmp_path / "there")
    before = digest("here")
    (tmp_path / "there" / ".thumbnails").write_text("not data")
    assert digest("there") == before
    paint(tmp_path / "there" / "b" / "new.png")
    assert digest("there") != before


@pytest.mark.slow
def test_the_chain_runs_on_a_folder_of_colour_pictures_and_adapts_to_others(new_workspace: Callable[[], Workspace], tmp_path: Path) -> None:
    workspace = new_workspace()
    pool = np.load(workspace.root / "data/glyphs/inputs.npy", mmap_mode="r")
    for c in range(40):  # forty letters, each class in a colour of its own
        folder = tmp_path / "pictures" / f"letter-{c}"
        folder.mkdir(parents=True)
        for i in range(8):
            shade = np.array([255, 40 * (c % 6), 255 - 40 * (c % 6)]) / 255
            Image.fromarray((np.asarray(pool[c * 20 + i])[..., None] * shade).astype(np.uint8)).save(folder / f"{i}.png")
    small = [f"{where}.fit.{name}" for where in ("base", "learner", "student.learner", "fusion") for name in ("steps=20", "epoch_steps=10")]
    small += ["evaluation.tasks=20", "evaluation.gate_tasks=20", "evaluation.scratch_tasks=2", "evaluation.scratch_steps=2", "tasks.val=20"]
    own = ["experiment=image_folder", f"domain.source.root={tmp_path / 'pictures'}", "domain.source.colour=true", "tasks.way=3", "evaluation.settings=[3w1s]"]
    out = workspace.retrain(*own, *small).stdout
    assert "image_folder version 1 is champion" in out
    assert workspace.metrics()["test/3w1s/fused/accuracy"] > 0.5
    assert "ran: nothing" in workspace.retrain(*own, *small).stdout
    (tmp_path / "query").mkdir()
    for c, name in ((3, "x"), (7, "y")):
        (tmp_path / "support").mkdir(exist_ok=True)
        (tmp_path / "pictures" / f"letter-{c}").rename(tmp_path / "support" / name)
        (tmp_path / "support" / name / "0.png").rename(tmp_path / "query" / f"{name}.png")
    arguments = [f"{k}={tmp_path / k}" for k in ("support", "query")] + [f"out={tmp_path / 'out.csv'}"]
    workspace.run("flows.adapt", "model=models:/image_folder@champion", *arguments)
    assert [line.split(",")[:2] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]] == [["x.png", "x"], ["y.png", "y"]]
