"""The Omniglot reader on an archive in its format, and on the real one where a mirror has it."""

import functools
import http.server
import os
import socketserver
import threading
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sources import omniglot_archive as archive
from sources import png_head
from tasks_for_tests import tasks

from components.domains import omniglot
from components.domains.archives import locate
from components.domains.options import OmniglotOptions
from components.domains.pool import open_pool, write_pool
from components.evaluation import operations
from components.inputs import InputError
from components.learners import store
from components.learners.learner import learner_size
from components.learning import BackboneSection, LearnerSection
from components.splits import split_of
from flows.config import load

MIRROR = os.environ.get("FEWLOOP_MIRROR")


def test_an_archive_becomes_a_pool_that_keeps_its_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(omniglot.DIGESTS, "images_background", archive(tmp_path, {"Greek": 4, "Hebrew": 3, "Latin": 2}))
    source = omniglot.build(OmniglotOptions(35, False, ["Greek", "Hebrew"]), str(tmp_path))
    assert [(c.group, c.count) for c in source.classes] == [("Greek", 3)] * 4 + [("Hebrew", 3)] * 3
    splits = load(["domain=omniglot"]).domain.splits
    write_pool(source, type(splits)(train=None, val=[], gate=[], test=["Hebrew"], shares={}), "omniglot", "x", tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    assert pool.input_shape == (1, 35, 35) and len(pool.split("test")) == 3
    kept = np.unpackbits(np.load(tmp_path / "pool" / "originals.npy"), axis=-1)[:, :, :105]
    assert kept.shape == (21, 105, 105)
    thirds = kept.reshape(21, 35, 3, 35, 3).mean((2, 4)) * 255  # the box filter of a third is the mean of nine
    assert abs(np.asarray(pool.inputs, dtype=float) - thirds).max() <= 1


def test_an_altered_archive_is_refused(tmp_path: Path) -> None:
    archive(tmp_path, {"Greek": 2})
    with pytest.raises(InputError, match=r"got .* \(altered\)"):
        omniglot.build(OmniglotOptions(28, False, []), str(tmp_path))


def test_a_missing_or_damaged_archive_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mirror=.*must hold omniglot/images_background.zip"):
        omniglot.build(OmniglotOptions(28, False, []), str(tmp_path))
    archive(tmp_path, {"Greek": 2})
    path = tmp_path / "omniglot" / "images_background.zip"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read"):
        omniglot.build(OmniglotOptions(28, False, []), str(tmp_path))
    with zipfile.ZipFile(path, "w") as enormous:  # a drawing that claims 3.6 thousand million pixels
        enormous.writestr("images_background/Greek/character01/0_01.png", png_head(60_000))
    with pytest.raises(InputError, match="cannot be read"):
        omniglot.build(OmniglotOptions(28, False, []), str(tmp_path))


def test_an_archive_is_downloaded_once_and_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "served", {"Greek": 2})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/omniglot"
        with pytest.raises(InputError, match="must be downloaded"):
            locate("omniglot/absent.zip", f"{url}/absent.zip", None)
        first = locate("omniglot/images_background.zip", f"{url}/images_background.zip", None)
        server.shutdown()
    assert first.read_bytes() == (tmp_path / "served/omniglot/images_background.zip").read_bytes()
    assert locate("omniglot/images_background.zip", "http://127.0.0.1:9/", None) == first, "the second time nothing is fetched"
    assert [p.name for p in first.parent.iterdir()] == ["images_background.zip"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 9000\r\n\r\nhalf of it",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf of it",
        b"what no server of HTTP says\r\n\r\n",
    ],
)
def test_a_download_that_is_cut_off_is_told_and_leaves_nothing(answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="must be downloaded"):
            locate("omniglot/images_background.zip", f"http://127.0.0.1:{server.server_address[1]}/x.zip", None)
        server.shutdown()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_alphabet_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(omniglot.DIGESTS, "images_background", archive(tmp_path, {"Greek": 2}))
    with pytest.raises(InputError, match="Klingon"):
        omniglot.build(OmniglotOptions(28, False, ["Klingon"]), str(tmp_path))


@pytest.mark.parametrize("variant", ["omniglot", "omniglot_small1", "omniglot_small2"])
def test_every_variant_tests_on_the_same_alphabets_and_never_trains_on_them(variant: str) -> None:
    splits = load([f"domain={variant}"]).domain.splits
    assert splits.test == ["Armenian", "Bengali", "Futurama", "Hebrew", "Tifinagh"]
    assert all(split_of(splits, a, f"{a}/character01") == "test" for a in splits.test)
    if variant != "omniglot":
        domain = load([f"domain={variant}"]).domain
        trained = [a for a in domain.source["alphabets"] if split_of(splits, a, a) == "train"]
        assert len(trained) == 4 and len(splits.val) == 1


@pytest.mark.parametrize("variant", ["omniglot", "omniglot_small1", "omniglot_small2"])
def test_with_the_evaluation_archive_its_twenty_alphabets_are_the_test(variant: str) -> None:
    plain, whole = (load([f"domain={variant}{end}"]).domain for end in ("", "_evaluation"))
    assert whole.name == plain.name and whole.source["evaluation"] and not plain.source["evaluation"]
    assert len(whole.splits.test) == 20 and not {*whole.splits.test} & {*plain.splits.test, *whole.splits.val, *whole.splits.gate}
    if variant != "omniglot":
        five = [a for a in whole.source["alphabets"] if a not in (*whole.splits.test, *whole.splits.gate)]
        assert five == [a for a in plain.source["alphabets"] if a not in (*plain.splits.test, *plain.splits.gate)] and len(five) == 5


def test_across_alphabets_the_tests_share_of_characters_is_that_of_papers() -> None:
    """Papers train on 1,200 of 1,623 characters, some of which choose, and test on the other 423 (Vinyals et al. 2016, sec. 4.1.1)."""
    splits = load(["domain=omniglot_across"]).domain.splits
    found = Counter(split_of(splits, f"alphabet{i % 50}", f"alphabet{i % 50}/character{i}") for i in range(20_000))
    assert found["test"] / 20_000 == pytest.approx(423 / 1_623, abs=0.01)
    assert found["val"] / 20_000 == pytest.approx(0.05, abs=0.005) and found["gate"] / 20_000 == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize("experiment", ["omniglot", "omniglot_small1", "omniglot_small2", "omniglot_across"])
def test_students_have_a_tenth_of_their_teachers_parameters_and_operations(experiment: str) -> None:
    config = load([f"experiment={experiment}"])
    shape = (1, config.domain.source["size"], config.domain.source["size"])
    task = tasks(count=1, way=5, shot=1, query=1, shape=shape)

    def sized(section: LearnerSection, backbone: BackboneSection) -> tuple[float, float]:
        member = store.spec_of(section.name, section.options, backbone, shape, "cross_entropy")
        learner = store.build(store.views_spec(member, section.views, config.domain.augment)).eval()
        with torch.no_grad():
            return learner_size(learner), operations(lambda: learner.predict(learner.adapt(task.support), task.query.x))

    parameters, flops = sized(config.learner, config.backbone)
    for index in range(config.student.count):
        own_parameters, own_flops = sized(config.student.learner, config.student.backbone(index, config.backbone))
        assert own_parameters <= parameters / 10 and own_flops <= flops / 10


@pytest.mark.skipif(not MIRROR, reason="FEWLOOP_MIRROR names no folder with Omniglot")
def test_the_real_archive_has_the_known_counts() -> None:
    options = load(["domain=omniglot"]).domain
    source = omniglot.build(OmniglotOptions(**options.source), MIRROR)
    assert len(source.classes) == 964 and len({c.group for c in source.classes}) == 30
    assert source.inputs.shape == (19_280, 28, 28)
    across = load(["domain=omniglot_across"]).domain.splits
    assert Counter(split_of(across, c.group, c.name) for c in source.classes) == {"train": 600, "val": 46, "gate": 46, "test": 272}
    train = [c for c in source.classes if split_of(options.splits, c.group, c.name) == "train"]
    assert len({c.group for c in train}) == 30 - 5 - 4 - 5
