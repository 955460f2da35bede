"""The user's own pictures: layouts, colours, what cannot be used, versions; and adapting to them."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sources import Chain, png_head

from components.contracts import SplitsSection
from components.domains import image_folder, images
from components.domains.options import ImageFolderOptions, content
from components.domains.pictures import listed, others, read_picture, read_support
from components.inputs import InputError
from components.splits import split_of
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


def test_classes_are_folders_and_groups_the_folders_above_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = image_folder.build(layout(tmp_path / "flat", "b", "a"))
    assert [(c.name, c.group, c.count) for c in flat.classes] == [("a", "pictures", 3), ("b", "pictures", 3)]
    deep = image_folder.build(layout(tmp_path / "deep", "x/one", "y/one", "y/two"))
    assert [(c.name, c.group) for c in deep.classes] == [("x/one", "x"), ("y/one", "y"), ("y/two", "y")]
    assert deep.inputs.shape == (9, 28, 28) and deep.item_notes[:3] == ["0.png", "1.jpg", "2.webp"]
    assert "1 class names are in several groups (one): a class of its own in each" in capsys.readouterr().err


def test_colours_are_kept_where_they_are_asked_for_and_the_side_ratio_always(tmp_path: Path) -> None:
    layout(tmp_path, "a", "b")
    source = image_folder.build(replace(OPTIONS, root=str(tmp_path), colour=True))
    x = images.prepare(torch.from_numpy(source.inputs))
    assert x.shape == (6, 3, 28, 28)
    assert x[0, :, 14, 14].tolist() == pytest.approx([200 / 255, 0, 30 / 255])
    assert x[0, :, 2, 14].tolist() == [0, 0, 0]  # 40 x 20: bands above and below


PROBLEMS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "text": ("(cannot be read)", lambda root: (root / "a" / "text.png").write_text("no picture")),
    "another format": ("(cannot be read)", lambda root: Image.new("L", (9, 9)).save(root / "a" / "tga.png", format="TGA")),
    "a bomb": ("(cannot be read)", lambda root: (root / "a" / "large.png").write_bytes(png_head(60_000))),
    "a link": ("a link out of the folder", lambda root: (root / "a" / "away.png").symlink_to(root.parent / "outside.png")),
    "a linked class": ("class again (a linked folder)", lambda root: (root / "again").symlink_to(root / "a")),
    "a note": ("a/notes.txt (no picture)", lambda root: (root / "a" / "notes.txt").write_text("note")),
    "another suffix": ("a/9.bmp (no picture)", lambda root: Image.new("L", (9, 9)).save(root / "a" / "9.bmp")),
    "a name in no UTF-8": ("a/caf\\udce9.png (a name that cannot be written)", lambda root: paint(root / "a" / os.fsdecode(b"caf\xe9.png"))),
    "a class in no UTF-8": ("class 'caf\\udce9' (a name that cannot be written)", lambda root: paint(root / os.fsdecode(b"caf\xe9") / "0.png")),
    "a thin class": ("class thin (1 pictures, needs 2)", lambda root: paint(root / "thin" / "0.png")),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_what_cannot_be_used_is_named_and_refused_or_skipped_and_counted(tmp_path: Path, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "outside.png")
    options = layout(tmp_path / "root", "a", "b")
    told, spoil = PROBLEMS[problem]
    spoil(tmp_path / "root")
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
    layout(tmp_path / "deep", "group/a", "group/b")
    paint(tmp_path / "deep" / "group" / "a" / "train" / "0.png")
    with pytest.raises(InputError, match=r"group/a/train \(a folder in that of a class\)"):
        image_folder.build(replace(OPTIONS, root=str(tmp_path / "deep")))


def test_a_version_is_what_the_folder_holds_and_not_where_it_lies(tmp_path: Path) -> None:
    def digest(folder: str) -> str:
        return source_digest(load(["experiment=image_folder", f"domain.source.root={tmp_path / folder}"]).domain)

    for folder in ("here", "there"):
        layout(tmp_path / folder, "a", "b")
    assert content(tmp_path / "here") == content(tmp_path / "there")
    before = digest("here")
    (tmp_path / "there" / ".thumbnails").write_text("not data")
    assert digest("there") == before
    paint(tmp_path / "there" / ".cache" / "b" / "seen.png")
    assert digest("there") == before, "what is in a hidden folder is hidden"
    paint(tmp_path / "there" / "b" / "new.png")
    assert digest("there") != before


def test_what_a_picture_shows_is_what_is_kept(tmp_path: Path) -> None:
    """Sixteen bits, and strokes of any shade on transparent ground in each of the forms that PNG has."""
    ramp = np.linspace(0, 40_000, 28 * 28).reshape(28, 28)  # dark in the mean: nothing is inverted
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png", 28) == pytest.approx(ramp / 257, abs=1)
    stroke = np.zeros((28, 28), dtype=bool)
    stroke[10:18, 4:24] = True
    for shade in (0, 255):
        rgba = Image.fromarray(np.dstack([np.full((28, 28, 3), shade, np.uint8), np.where(stroke, 255, 0).astype(np.uint8)]))
        for mode in ("RGBA", "LA", "P"):
            picture = rgba.quantize(4) if mode == "P" else rgba.convert(mode)
            picture.save(tmp_path / "stroke.png")
            assert (read_picture(tmp_path / "stroke.png", 28) > 127).tolist() == stroke.tolist(), (mode, shade)
            seen = read_picture(tmp_path / "stroke.png", 28, True).astype(int)
            assert abs(seen[14, 14] - seen[0, 0]).min() > 127, (mode, shade)


def test_a_picture_too_large_to_open_is_told(tmp_path: Path) -> None:
    Image.new("1", (10_001, 10_001)).save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large.png must have 89,000,000 pixels at most, got 10001 x 10001"):
        read_picture(tmp_path / "large.png", 28)


def test_no_example_is_left_out_without_a_word(tmp_path: Path) -> None:
    layout(tmp_path / "support", "a", "b")
    assert len(read_support(tmp_path / "support", 28)[0]) == 6
    for extra in ("loose.png", "a/more/0.png"):
        paint(tmp_path / "support" / extra)
        with pytest.raises(InputError, match="support must hold pictures in sub-folders, one a class, got"):
            read_support(tmp_path / "support", 28)
        shutil.rmtree(tmp_path / "support" / "a" / "more", ignore_errors=True)
        (tmp_path / "support" / "loose.png").unlink(missing_ok=True)
    layout(tmp_path / "query", "more")
    (tmp_path / "query" / "notes.txt").write_text("note")
    assert others(str(tmp_path / "support"), str(tmp_path / "query")) == ["more/", "notes.txt"]


def test_pictures_are_named_one_by_one_however_many_and_by_names_that_can_be_written(tmp_path: Path) -> None:
    names = [f"drawing {i:03}.png" for i in range(299)] + ["screen at 9.41\u202fAM.png"]
    for name in names:
        paint(tmp_path / name, size=(4, 4))
    asked = ",".join(str(tmp_path / name) for name in names)
    assert len(asked) > 4_096, "longer than a path may be"
    assert [path.name for path in listed(asked)] == names and others("", asked) == []
    with pytest.raises(InputError, match=r"got .*none\.png, which is no file"):
        listed(f"{asked},{tmp_path / 'none.png'}")
    paint(tmp_path / os.fsdecode(b"caf\xe9.png"))
    for folder in (lambda: listed(str(tmp_path)), lambda: listed(str(tmp_path / os.fsdecode(b"caf\xe9.png")))):
        with pytest.raises(InputError, match="names that can be written"):
            folder()
    assert len(content(tmp_path)) == 64


def test_a_split_that_names_its_groups_takes_no_share_of_others() -> None:
    splits = SplitsSection(train=None, val=[], gate=[], test=["site-b"], shares={"val": 0.15, "gate": 0.1, "test": 0.25})
    found = [split_of(splits, "site-a", f"class {i}") for i in range(400)]
    assert "test" not in found and 0.1 < found.count("val") / 400 < 0.2
    assert split_of(splits, "site-b", "class 1") == "test"


@pytest.mark.slow
def test_a_champion_of_colour_pictures_adapts_to_others(chain: Callable[[str], Chain], tmp_path: Path) -> None:
    made = chain("image_folder")
    assert made.workspace.metrics()["test/3w1s/fused/accuracy"] > 0.5
    (tmp_path / "query").mkdir()
    for c, name in ((3, "x"), (7, "y")):
        shutil.copytree(made.folder / "pictures" / f"letter-{c}", tmp_path / "support" / name)
        (tmp_path / "support" / name / "0.png").rename(tmp_path / "query" / f"{name}.png")
    arguments = [f"{k}={tmp_path / k}" for k in ("support", "query")] + [f"out={tmp_path / 'out.csv'}"]
    made.workspace.run("flows.adapt", "model=models:/image_folder@champion", *arguments)
    assert [line.split(",")[:2] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]] == [["x.png", "x"], ["y.png", "y"]]
