"""The endpoint: the same answers as in one process, ids that cost no adaptation, and no input that it does not answer in one line."""

import asyncio
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tasks_for_tests import CONV, MLP, PICTURES, VECTORS, spec
from workspace import PATIENCE, Workspace, until

from components import serving
from components.contracts import ServingSection
from components.domains import images
from components.endpoint import Endpoint
from components.inputs import InputError
from components.learners import store
from components.learners.fused import join
from components.learners.learner import transductive
from flows.config import load
from flows.report import warned

LIMITS = load().serving


def endpoint(limits: ServingSection = LIMITS, objective: str = "cross_entropy") -> Endpoint:
    backbone, shape, name = (CONV, PICTURES, "protonet") if objective == "cross_entropy" else (MLP, VECTORS, "ridge")
    options = dataclasses.asdict(load([f"learner={name}", *(["experiment=sinusoid"] if objective != "cross_entropy" else [])]).learner)["options"]
    spec = store.spec_of(name, options, backbone, shape, objective)
    learner = store.build(spec).eval()
    return Endpoint(learner, {"digest": "d", "model": "m"}, spec, limits)


def request(way: int = 3, shot: int = 2, queries: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shape = PICTURES[1:]
    x, q = (random.integers(0, 256, (n, *shape)).astype(np.uint8) for n in (way * shot, queries))
    return {"support_x": x, "support_y": np.repeat(np.arange(way), shot), "query_x": q}


def test_what_is_asked_for_again_is_kept_for_as_long_again() -> None:
    client, told = Client(endpoint(dataclasses.replace(LIMITS, minutes=0.6 / 60))), request()
    support = {k: told[k] for k in ("support_x", "support_y")}
    name = client.post("/adapt", support).json()["id"]
    time.sleep(0.4)
    assert client.post("/adapt", support).json()["id"] == name
    time.sleep(0.4)
    assert client.post("/predict", {"id": name, "query_x": told["query_x"]}).status_code == 200


def test_what_cannot_be_kept_is_told_and_answered_all_the_same() -> None:
    client, told = Client(endpoint(dataclasses.replace(LIMITS, kept_megabytes=1e-6))), request()
    refused = client.post("/adapt", {k: told[k] for k in ("support_x", "support_y")})
    assert refused.status_code == 413 and "serving.kept_megabytes" in refused.json()["error"]
    assert client.post("/predict", told).status_code == 200


@pytest.mark.parametrize("norm", ["running", "task"])
def test_a_large_query_is_answered_in_parts_unless_one_query_changes_another_s_answer(norm: str) -> None:
    options = dataclasses.asdict(load(["learner=maml", f"learner.options.norm={norm}"]).learner)["options"]
    learner, told, sizes = store.build(store.spec_of("maml", options, CONV, PICTURES, "cross_entropy")).eval(), request(queries=150), []
    adapted = serving.adapt(learner, told["support_x"], told["support_y"])
    with torch.no_grad():
        whole = learner.predict(adapted, images.prepare(torch.from_numpy(told["query_x"]))[None])[0].softmax(-1).numpy()
    predict = learner.predict
    learner.predict = lambda adapted, x: (sizes.append(x.shape[1]), predict(adapted, x))[1]
    assert np.allclose(serving.answer(learner, adapted, told["query_x"]), whole, atol=1e-5)
    assert sizes == ([64, 64, 22] if norm == "running" else [150])
    assert transductive(join([learner], "mixture", [1.0], False, PICTURES)) == (norm == "task")
    told = warned({"teacher/transductive": 1.0, "teacher/parameters": 5.0} if norm == "task" else {"teacher/parameters": 5.0})
    assert told == (["transductive, by the statistics of all that a task asks: teacher"] if norm == "task" else [])


class Client:
    """Requests to an endpoint without a server between."""

    def __init__(self, at: Endpoint) -> None:
        self.transport = httpx.ASGITransport(at.application())

    def call(self, verb: str, path: str, body: bytes | None = None) -> httpx.Response:
        async def called() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.transport, base_url="http://test") as client:
                return await client.request(verb, path, content=body)

        return asyncio.run(called())

    def post(self, path: str, told: object) -> httpx.Response:
        return self.call("POST", path, told if isinstance(told, bytes) else orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY))


@contextlib.contextmanager
def serving_by(workspace: Workspace, model: str) -> Iterator[Client]:
    """What `flows.endpoint model=...` answers by in a workspace, without its server."""
    from flows import endpoint, tracking

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWLOOP_ROOT", str(workspace.root))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace.root / 'mlruns' / 'mlflow.db'}")
        folder = Path(tracking.model_folder(model))
    learner, spec, about = store.load(folder)
    yield Client(endpoint.answering(learner, {"digest": "d", "model": model}, spec, LIMITS, about, folder))


def test_an_id_answers_as_the_examples_themselves_and_as_the_model_in_this_process() -> None:
    at = endpoint()
    client, told = Client(at), request()
    name = client.post("/adapt", {k: told[k] for k in ("support_x", "support_y")}).json()
    assert name["way"] == 3
    by_id = client.post("/predict", {"id": name["id"], "query_x": told["query_x"]}).json()
    whole = client.post("/predict", told).json()
    assert by_id == whole and by_id["id"] == name["id"]
    direct = serving.predict(at.learner, told["support_x"], told["support_y"], told["query_x"])
    assert np.allclose(by_id["probabilities"], direct, atol=1e-7)
    assert np.allclose(direct.sum(1), 1, atol=1e-5)


def test_a_regression_answers_values() -> None:
    at = endpoint(objective="squared_error")
    client = Client(at)
    x = np.linspace(-1, 1, 5 * VECTORS[0]).reshape(5, -1).astype(np.float32)
    told = {"support_x": x, "support_y": np.arange(5) / 5, "query_x": x[:2]}
    values = client.post("/predict", told).json()["values"]
    assert np.allclose(values, serving.predict(at.learner, x, told["support_y"], x[:2]), atol=1e-6)


def test_who_reads_the_statistics_of_all_queries_needs_two() -> None:
    learner = store.build(spec("maml", norm="task")).eval()
    x = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)
    adapted = serving.adapt(learner, x[:4], np.array([0, 0, 1, 1]))
    assert serving.answer(learner, adapted, x[4:]).shape == (2, 2)
    with pytest.raises(InputError, match="query needs two items at least"):
        serving.answer(learner, adapted, x[4:5])


def test_rows_far_off_are_no_even_answer() -> None:
    of = spec("protonet", kind="mlp")
    learner, x, y = store.build(of), np.random.default_rng(0).normal(size=(4, *VECTORS)).astype(np.float32), np.array([0, 0, 1, 1])
    for support, query in ((x, 1e30 * x), (1e30 * x, x)):
        with pytest.raises(InputError, match="numbers of at most 1e\\+15, got larger ones"):
            serving.predict(learner, support, y, query)


@pytest.mark.parametrize("size", [1e5, 1e15, 1e25])
def test_numbers_of_another_size_are_answered_in_one_line(size: float) -> None:
    at = endpoint(objective="squared_error")
    x = np.full((6, VECTORS[0]), size, dtype=np.float32)
    found = Client(at).post("/predict", {"support_x": x, "support_y": np.arange(6.0), "query_x": x})
    if found.status_code == 200:
        assert np.isfinite(found.json()["values"]).all()
    else:
        assert found.status_code == 422 and "Check their scale" in found.json()["error"] and "\n" not in found.json()["error"]


def test_a_known_id_adapts_nothing_and_states_go_by_size_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    at = endpoint()
    calls: list[int] = []
    adapt = at.learner.adapt_features
    monkeypatch.setattr(at.learner, "adapt_features", lambda support: (calls.append(1), adapt(support))[1])
    client, told = Client(at), request()
    for _ in range(3):
        client.post("/predict", told)
    assert len(calls) == 1
    size = next(iter(at.states.values())).size
    assert size > sum(4 * t.numel() for t in next(iter(at.states.values())).adapted.values()) + 1000, "a state is more than its numbers"
    small = endpoint(dataclasses.replace(LIMITS, kept_megabytes=2.5 * size / 2**20, minutes=0.2 / 60))
    client = Client(small)
    ids = [client.post("/adapt", {k: v for k, v in request(seed=i).items() if k != "query_x"}).json()["id"] for i in range(3)]
    assert len(set(ids)) == 3 and len(small.states) == 2
    asked = [client.post("/predict", {"id": name, "query_x": told["query_x"]}).status_code for name in ids]
    assert asked == [404, 200, 200], "the longest unused goes first"
    time.sleep(0.25)
    assert client.post("/predict", {"id": ids[2], "query_x": told["query_x"]}).status_code == 404
    assert client.call("GET", "/health").json() == {"status": "ok", "states": 0, "kept_bytes": 0}


FEW = request(2, 1, 1)
ODD = {
    "no JSON": (b"{", 400, "must be JSON"),
    "not a number": (b'{"support_x": [[NaN]]}', 400, "must be JSON"),
    "a number beyond all numbers": (b'{"query_x": [1e999]}', 400, "must be JSON"),
    "too deep": (b"[" * 100_000, 400, "must be JSON"),
    "no object": ([1], 422, "must be an object"),
    "a name that is missing": ({"query_x": FEW["query_x"]}, 422, "must have query_x, support_x, support_y or id, query_x, got query_x"),
    "a name too many": (FEW | {"way": 5}, 422, "must have"),
    "an id beside the examples": (FEW | {"id": "x"}, 422, "must have"),
    "an id that nobody gave": ({"id": "../../etc/passwd", "query_x": FEW["query_x"]}, 404, "id must be one"),
    "an id that is a number": ({"id": 7, "query_x": FEW["query_x"]}, 404, "id must be one"),
    "an id that is a list": ({"id": [], "query_x": FEW["query_x"]}, 404, "id must be one"),
    "another size": (FEW | {"query_x": np.zeros((1, 5, 5), int)}, 422, "must be items of shape"),
    "rows of several lengths": (FEW | {"query_x": [[[1, 2], [1]]]}, 422, "in 3 dimensions"),
    "text": (FEW | {"query_x": "abc"}, 422, "in 3 dimensions"),
    "truth values": (FEW | {"query_x": np.ones((1, *PICTURES[1:]), bool)}, 422, "in 3 dimensions"),
    "nothing": (FEW | {"query_x": []}, 422, "in 3 dimensions"),
    "null": (FEW | {"query_x": None}, 422, "in 3 dimensions"),
    "a negative pixel": (FEW | {"query_x": -np.ones((1, *PICTURES[1:]), int)}, 422, "from 0 to 255"),
    "scaled pixels": (FEW | {"query_x": np.full((1, *PICTURES[1:]), 0.5)}, 422, "from 0 to 255"),
    "a number beyond all": (FEW | {"support_y": [0, 10**18]}, 422, "at most 200 classes"),
    "a million ways": (FEW | {"support_y": [0, 999_999]}, 422, "at most 200 classes"),
    "a class left out": (FEW | {"support_y": [0, 2]}, 422, "none left out"),
    "one class": (FEW | {"support_y": [0, 0]}, 422, "at least two"),
    "fewer labels than examples": (FEW | {"support_y": [0, 1, 1]}, 422, "one label an example"),
    "labels in two dimensions": (FEW | {"support_y": [[0, 1]]}, 422, "in 1 dimensions"),
    "too many examples": (FEW | {"query_x": np.zeros((1001, *PICTURES[1:]), np.uint8)}, 413, "at most 1000 examples"),
    "too many bytes": (b" " * (17 << 20), 413, "at most 16 MB"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_cannot_be_answered_is_told_and_the_next_request_is_answered(case: str) -> None:
    told, status, why = ODD[case]
    client = Client(SHARED)
    answer = client.post("/predict", told)
    assert answer.status_code == status and why in answer.json()["error"], answer.text
    assert client.post("/predict", FEW).status_code == 200


SHARED = endpoint()
ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4), max_leaves=20)
PICTURE = st.lists(st.lists(st.lists(st.integers(-1, 256), min_size=PICTURES[2], max_size=PICTURES[2]), min_size=PICTURES[1], max_size=PICTURES[1]), max_size=3)


@settings(max_examples=int(os.environ.get("FUZZ", "400")), derandomize="FUZZ" not in os.environ, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(["id", "support_x", "support_y", "query_x"]), ANY | PICTURE | st.lists(st.integers(-1, 3), max_size=4)) | ANY)
def test_no_json_brings_it_down(told: object) -> None:
    client = Client(SHARED)
    try:
        body = orjson.dumps(told)
    except (TypeError, orjson.JSONEncodeError):
        return  # no JSON has integers beyond 64 bits
    for path in ("/adapt", "/predict"):
        answer = client.post(path, body)
        assert answer.status_code in (200, 400, 404, 413, 422)
        assert answer.status_code == 200 or answer.json()["error"]


def test_a_file_changed_since_is_refused(finished: Workspace, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "project"
    shutil.copytree(finished.root, copy)
    database = copy / "mlruns" / "mlflow.db"
    with sqlite3.connect(database) as opened:  # the copy's own artifacts
        for table, column in (
            ("runs", "artifact_uri"),
            ("experiments", "artifact_location"),
            ("model_versions", "storage_location"),
            ("logged_models", "artifact_location"),
        ):
            opened.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(finished.root), str(copy)))
    weights = next((copy / "mlruns" / "artifacts").rglob("models/*/artifacts/data/*/learner.safetensors"))
    state = load_file(weights)
    name = next(n for n, t in state.items() if t.dtype == torch.float32 and t.numel() > 10)
    state[name] = state[name] + 1
    save_file(state, weights)
    moved = Workspace.__new__(Workspace)
    moved.root, moved.environment = copy, finished.environment | {"FEWLOOP_ROOT": str(copy)}
    for module, more in (("flows.endpoint", []), ("flows.evaluate", ["domain=glyphs"])):
        ended = moved.run(module, "model=models:/glyphs@champion", *more, expect=2)
        assert "files were changed" in ended.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_command_answers_on_loopback_and_ends_on_a_signal(finished: Workspace) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.listen()
        ended = finished.run("flows.endpoint", "model=models:/glyphs@champion", f"serving.port={port}", expect=2)
        assert f"Port {port} of 127.0.0.1 must be free" in ended.stderr
    process = finished.start("flows.endpoint", "model=models:/glyphs@champion", f"serving.port={port}", "serving.clients=4", "serving.seconds=2")
    try:
        assert process.stdout is not None and f"answers at http://127.0.0.1:{port}" in process.stdout.readline()
        at = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                told = httpx.get(f"{at}/model").json()
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        assert told["input"] == {"item": "uint8", "shape": [28, 28], "support_y": "labels 0..way-1", "picture": "light on dark"}
        pool = np.load(finished.root / "data/glyphs/inputs.npy", mmap_mode="r")
        items = {"support_x": pool[[0, 1, 20, 21]].tolist(), "support_y": [0, 0, 1, 1], "query_x": pool[[2, 22]].tolist()}
        answer = httpx.post(f"{at}/predict", json=items).json()
        from flows import tracking

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEWLOOP_ROOT", str(finished.root))
            patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished.root / 'mlruns' / 'mlflow.db'}")
            learner = store.load(tracking.model_folder("models:/glyphs@champion"))[0]
        direct = serving.predict(
            learner, *(np.array(items[k]) if k == "support_y" else np.array(items[k], np.uint8) for k in ("support_x", "support_y", "query_x"))
        )
        assert np.allclose(answer["probabilities"], direct, atol=1e-5)
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as endless, pytest.raises(ConnectionError):
            endless.sendall(b"GET /health HTTP/1.1\r\nX: ")
            for _ in range(100):
                endless.sendall(b"a" * 10**6)
        silent = [socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) for _ in range(4)]
        silent[0].sendall(b"GET /health HTT")
        until(lambda: httpx.get(f"{at}/health").status_code == 200)  # before, they kept all others out until they went by themselves
        assert [one.recv(1) for one in silent] == [b""] * 4
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0 and "error" not in err, err
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=PATIENCE)
