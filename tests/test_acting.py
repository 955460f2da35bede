"""Served policies: who plays through the endpoint comes to what the policy comes to that plays by itself."""

import dataclasses
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from test_endpoint import LIMITS, Client
from workspace import free_port, until

from components.acting import Acting, played
from components.contracts import ServingSection
from components.environments import ENVIRONMENTS, noise
from components.learners import store
from components.learners.policy import Policy
from components.tasks import Examples
from flows.config import load

LEARNERS = {"policy_memory": "navigation", "policy_gradient": "navigation", "fused": "cartpole"}


def policy(name: str, environment: str) -> tuple[Policy, dict[str, Any]]:
    of = ENVIRONMENTS[environment]
    member = "policy_memory" if name == "fused" else name
    config = load([f"experiment={environment}", f"learner={member}", "backbone.widths=[8,8]"])
    specs = [store.spec_of(member, dataclasses.asdict(config.learner)["options"], config.backbone, (len(of.parameters) + 1,), "return", environment)]
    spec = store.fused_spec(specs * 2, "mixture", [0.3, 0.7], False) if name == "fused" else specs[0]
    learner = store.build(spec, 3).eval()
    assert isinstance(learner, Policy)
    with torch.no_grad():  # policies begin with actions that hardly depend on anything
        for own in learner.parameters():
            own += 0.1 * torch.randn(own.shape, generator=torch.Generator().manual_seed(own.numel()))
    return learner, spec


def served(name: str, environment: str, limits: ServingSection = LIMITS) -> tuple[Client, Policy]:
    learner, spec = policy(name, environment)
    return Client(Acting(learner, {"digest": "d", "model": "m"}, spec, limits)), learner


def play(client: Client, learner: Policy, name: str, rows: torch.Tensor) -> list[dict[str, Any]]:
    """Play a round as a caller would, with the draws of chance that the policy itself has: what the endpoint says, sampled."""
    of = learner.environment
    going, drawn = of.begin(rows), noise(rows, of.horizon, of.actions)
    told: list[dict[str, Any]] = [{"observation": [], "action": [], "reward": []} for _ in rows]
    alive = np.ones(len(rows), dtype=bool)
    for step in range(of.horizon):
        seen = np.ascontiguousarray(going.observation.numpy())
        said = client.post("/predict", {"id": name, "query_x": seen, "explore": True}).json()
        if of.discrete:
            parts = torch.tensor(said["probabilities"]).log()
        else:
            parts = torch.cat([torch.tensor(said["actions"]), torch.tensor(said["deviations"]).log()], -1)
        action = learner.sample(parts, drawn[:, step])
        reward, over = going.step(action)
        for i in np.flatnonzero(alive):
            for part, value in (("observation", seen), ("action", action.numpy()), ("reward", reward.numpy())):
                told[i][part].append(value[i].tolist())
        alive &= ~over.numpy()
        if not alive.any():
            break
    return told


@pytest.mark.parametrize("name", LEARNERS)
def test_who_plays_through_the_endpoint_learns_what_the_policy_learns_by_itself(name: str) -> None:
    environment = LEARNERS[name]
    client, learner = served(name, environment)
    of, rounds = learner.environment, 2
    count = learner.options.episodes
    hidden = torch.from_numpy(of.draw(1, 0)).repeat(rounds * count, 1)
    rows = torch.cat([hidden, torch.arange(rounds * count).float()[:, None]], 1)
    state = client.post("/adapt", {}).json()["id"]
    begun = state
    for round_ in rows.split(count):
        episodes = play(client, learner, state, round_)
        asked = {"id": state, "episodes": episodes}
        state = client.post("/adapt", asked).json()["id"]
        assert client.post("/adapt", asked).json()["id"] == state, "told again, nothing is learned twice"
    with torch.no_grad():
        adapted = learner.adapt(Examples(rows[None], torch.zeros(1, len(rows)), 1))
        seen = torch.randn(5, of.observation, generator=torch.Generator().manual_seed(0))
        wanted = learner.act(adapted, seen[None])[0]
    said = client.post("/predict", {"id": state, "query_x": seen.numpy()}).json()
    if of.discrete:
        assert len({len(one["reward"]) for one in episodes}) > 1, "episodes of several lengths"
        assert np.allclose(said["probabilities"], wanted.softmax(-1), atol=1e-4)
        assert said["actions"] == wanted.argmax(-1).tolist()
    else:
        assert np.allclose(said["actions"], wanted.chunk(2, -1)[0], atol=1e-4)
        assert np.allclose(np.log(said["deviations"]), wanted.chunk(2, -1)[1], atol=1e-4)
    before = client.post("/predict", {"id": begun, "query_x": seen.numpy()}).json()
    assert not np.allclose(before["actions" if not of.discrete else "probabilities"], said["actions" if not of.discrete else "probabilities"], atol=1e-3)


EPISODE = {"observation": [[0.0, 0.0]], "action": [[0.1, 0.1]], "reward": [-1.0]}
ODD = {
    "examples": ({"support_x": [[0.0]], "support_y": [0.0]}, 422, "must have nothing or episodes or episodes, id"),
    "an id that nobody gave": ({"id": "x", "episodes": [EPISODE]}, 404, "id must be one"),
    "no list": ({"episodes": EPISODE}, 422, "must be a list"),
    "no episodes": ({"episodes": []}, 422, "must be a list"),
    "an episode without rewards": ({"episodes": [{k: v for k, v in EPISODE.items() if k != "reward"}]}, 422, "must be a list of objects with observation"),
    "another environment": ({"episodes": [EPISODE | {"observation": [[0.0] * 4]}]}, 422, "observation must be items of shape [2]"),
    "one action too few": ({"episodes": [EPISODE | {"action": [[0.1]]}]}, 422, "must be 2 numbers a step"),
    "a last observation": ({"episodes": [EPISODE | {"observation": [[0.0, 0.0]] * 2}]}, 422, "Leave out the last"),
    "no numbers": ({"episodes": [EPISODE | {"reward": ["a"]}]}, 422, "reward must be an array of numbers"),
    "too many": ({"episodes": [EPISODE] * 1001}, 413, "at most 1000"),
    "a step that is much too long for all": ({"episodes": [EPISODE] * 900 + [{k: v * 500 for k, v in EPISODE.items()}]}, 413, "at most 100000 steps"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_no_round_is_told_and_the_next_is_learned_from(case: str) -> None:
    told, status, why = ODD[case]
    client, _ = served("policy_memory", "navigation")
    answer = client.post("/adapt", told)
    assert answer.status_code == status and why in answer.json()["error"], answer.text
    state = client.post("/adapt", {"episodes": [EPISODE]}).json()["id"]
    assert client.post("/predict", {"id": state, "query_x": [[0.0, 0.0]]}).status_code == 200


def test_a_choice_that_is_none_is_told() -> None:
    client, _ = served("fused", "cartpole")
    episode = {"observation": [[0.0] * 4], "reward": [1.0]}
    for action in ([2], [-1], [0.5]):
        answer = client.post("/adapt", {"episodes": [episode | {"action": action}]})
        assert answer.status_code == 422 and "whole numbers below 2" in answer.json()["error"]


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("size", [1e3, 1e5, 1e15, 1e25, 1e30])
def test_episodes_of_another_size_are_answered_in_one_line(name: str, size: float) -> None:
    client, learner = served(name, LEARNERS[name])
    of = learner.environment
    seen, action = [[size] * of.observation] * 4, [0, 1, 0, 1] if of.discrete else [[size] * of.actions] * 4
    told = client.post("/adapt", {"episodes": [{"observation": seen, "action": action, "reward": [size, -size, size, 1.0]}]})
    assert told.status_code in (200, 422) and (told.status_code == 200 or "Check their scale" in told.json()["error"]), told.text
    asked = {"id": told.json().get("id") or client.post("/adapt", {}).json()["id"], "query_x": [[size] * of.observation, [0.0] * of.observation]}
    said = client.post("/predict", asked)
    assert "null" not in said.text and said.status_code in (200, 422), said.text


def test_memory_for_nothing_is_told() -> None:
    client, _ = served("policy_memory", "navigation", dataclasses.replace(LIMITS, kept_megabytes=1e-6))
    assert client.post("/adapt", {}).status_code == 413


def test_the_caller_of_the_documents_plays_gymnasium() -> None:
    """Run the example of docs/serving.md against a server."""
    import gymnasium

    example = re.search(r"```python\n(.*?)```", (Path(__file__).parent.parent / "docs" / "serving.md").read_text(), re.S)
    assert example is not None
    learner, spec = policy("fused", "cartpole")
    told: dict[str, Any] = {}
    exec(example[1], told)
    port = int(free_port())
    app = Acting(learner, {"digest": "d", "model": "m"}, spec, LIMITS).application()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        url, environment = f"http://127.0.0.1:{port}", gymnasium.make("CartPole-v1")
        state = told["learn"](url, environment, 2)
        episode = told["play"](url, environment, state, False, 7)
    finally:
        server.should_exit = True
        thread.join()
    assert len(episode["reward"]) == len(episode["observation"]) == len(episode["action"]) >= 8  # no cart falls in fewer
    played_ = [{part: np.array(one[part], dtype=np.int64 if part == "action" else np.float32) for part in one} for one in [episode]]
    with torch.no_grad():
        round_ = played(learner, learner.begin(1), played_)
    assert round_.returns().item() == sum(episode["reward"])
