"""The embedded default: real letters, the same bytes everywhere, as hard as drawings."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.domains import glyphs
from components.domains.options import GlyphsOptions
from components.domains.pool import Pool, Source, open_pool, write_pool
from flows.config import load

OPTIONS = GlyphsOptions(**load().domain.source)
FEW = replace(OPTIONS, leave_out=[s for s in glyphs.SCRIPTS if s not in ("Hebrew", "Ogham", "Coptic")], items_per_class=4)
DIGEST = (
    "import hashlib; from components.domains import glyphs; from components.domains.options import GlyphsOptions; import torch;"
    "print(torch.backends.cpu.get_cpu_capability(), hashlib.sha256(glyphs.build({!r}).inputs.tobytes()).hexdigest())"
)


@pytest.fixture(scope="module")
def few() -> Source:
    return glyphs.build(FEW)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    from flows.versions import source_digest

    config = load()
    folder = tmp_path_factory.mktemp("glyphs") / "glyphs"
    write_pool(glyphs.build(OPTIONS), config.domain.splits, "glyphs", source_digest(config.domain), folder)
    return open_pool(folder)


def test_two_cpu_capabilities_render_the_same_bytes(few: Source) -> None:
    here = hashlib.sha256(few.inputs.tobytes()).hexdigest()
    told = set()
    for capability in ("default", "avx2"):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
        out = subprocess.run([sys.executable, "-c", DIGEST.format(FEW)], env=environment, capture_output=True, text=True, check=True).stdout.split()
        told.add(out[0])
        assert out[1] == here
    assert len(told) == 2, "both runs had the same capability: this proves nothing"


def test_no_picture_is_empty_or_cut(few: Source) -> None:
    assert (few.inputs.max((1, 2)) > 100).all()


def test_adding_scripts_changes_no_other_picture(few: Source) -> None:
    alone = glyphs.build(replace(FEW, leave_out=[s for s in glyphs.SCRIPTS if s != "Hebrew"]))
    names = [c.name for c in few.classes]
    start = names.index(alone.classes[0].name) * 4
    assert (few.inputs[start : start + len(alone.inputs)] == alone.inputs).all()


def test_a_missing_font_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="NoSuchFont"):
        glyphs.open_styles(["NoSuchFont"], glyphs.font_folder())


def test_no_class_is_the_missing_glyph_box() -> None:
    from fontTools.ttLib import TTFont

    for style in glyphs.open_styles(OPTIONS.fonts[:3], glyphs.font_folder()):
        cmap = TTFont(glyphs.font_folder() / f"{style.name}.ttf").getBestCmap()
        for script, code in list(glyphs.candidates(OPTIONS))[::7]:
            if code in style.covers:
                assert cmap[code] != ".notdef", (style.name, script, hex(code))


@pytest.mark.slow
def test_there_are_enough_scripts_characters_and_styles(whole: Pool) -> None:
    import pyarrow.parquet as pq

    assert len(set(whole.groups)) >= 20
    assert len(whole.counts) >= 1_000
    items = pq.read_table(whole.path / "items.parquet").to_pandas()
    assert items.groupby("class").note.nunique().min() >= 2


@pytest.mark.slow
def test_no_two_classes_share_a_picture(whole: Pool) -> None:
    digests = Counter(picture.tobytes() for picture in np.asarray(whole.inputs))
    assert max(digests.values()) == 1


@pytest.mark.slow
def test_a_rebuild_equals_the_committed_pin(whole: Pool) -> None:
    from flows.repository import read_pin
    from flows.versions import tree_md5

    pinned = read_pin((Path(__file__).parent.parent / "data.dvc").read_text())[1]["glyphs"]
    assert tree_md5(whole.path) == pinned


@pytest.mark.slow
def test_the_sub_trees_digest_is_dvcs_own(whole: Pool, tmp_path: Path) -> None:
    import shutil

    from dvc.repo import Repo

    from flows.versions import tree_md5

    Repo.init(str(tmp_path), no_scm=True).close()
    shutil.copytree(whole.path, tmp_path / "glyphs")
    with Repo(str(tmp_path)) as repo:
        (stage,) = repo.add(str(tmp_path / "glyphs"))
        assert stage.outs[0].hash_info.value == tree_md5(whole.path)


@pytest.mark.slow
def test_pixels_alone_do_not_solve_it(whole: Pool) -> None:
    """5-way 1-shot within a held-out script by nearest neighbour in pixel space: at most 45 %."""
    random = np.random.default_rng(0)
    pictures = np.asarray(whole.inputs, dtype=np.float32).reshape(len(whole.inputs), -1)
    test = whole.split("test")
    scripts = {g: [c for c in test if whole.groups[c] == g] for g in {whole.groups[c] for c in test}}
    hits = []
    for _ in range(1_500):
        chosen = random.choice(scripts[random.choice(sorted(scripts))], 5, replace=False)
        items = np.stack([random.choice(20, 6, replace=False) for _ in chosen]) + whole.first[chosen][:, None]
        support, query = pictures[items[:, 0]], pictures[items[:, 1:]]
        distance = ((query[:, :, None] - support[None, None]) ** 2).sum(-1)
        hits.append((distance.argmin(-1) == np.arange(5)[:, None]).mean())
    assert 0.30 < np.mean(hits) <= 0.45
