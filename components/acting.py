"""A policy over HTTP: the caller plays in an environment of its own and tells what came of it, the policy learns and says what to do."""

import hashlib
from typing import Any

import numpy as np
import torch
from starlette.requests import Request

from components.contracts import ServingSection
from components.endpoint import Endpoint, RefusedError, State
from components.learners.policy import Played, Policy

PARTS = ("observation", "action", "reward")
SIZE = "needs numbers of the size that the policy was trained on, got such that nothing it learns from them is a number. Check their scale."


class Acting(Endpoint):
    """The same calls for policies. An id stands for what was played so far: each round of episodes gives the next one.

    Actions are taken for drawn from what /predict said under the id that the episodes are told with, `explore` set.
    """

    learner: Policy

    def __init__(self, learner: Any, about: dict[str, Any], spec: dict[str, Any], limits: ServingSection) -> None:
        super().__init__(learner, about, spec, limits)
        self.item, self.shape = np.dtype("float32"), (learner.environment.observation,)

    async def model(self, request: Request) -> dict[str, Any]:
        of = self.learner.environment
        actions = f"whole numbers below {of.actions}" if of.discrete else f"{of.actions} numbers"
        episode = {"observation": ["steps", of.observation], "action": actions, "reward": ["steps"]}
        return self.about | {"input": {"episodes": [episode], "query_x": ["observations", of.observation]}, "output": "actions"}

    async def adapt(self, request: Request) -> dict[str, Any]:
        """Nothing -> the id of a policy that has played nothing; episodes of one round, played under an id -> the id of what it has learned."""
        told = await self._told(request, set(), {"episodes"}, {"id", "episodes"})
        name = self._state_of(told["id"])[0] if "id" in told else self._begun()
        if "episodes" in told:
            name = self._learned(name, told["episodes"])
        return {"id": name, "minutes": self.limits.minutes}

    async def predict(self, request: Request) -> dict[str, Any]:
        """An id and query_x [Q, O] -> the most probable actions, with probabilities [Q, A], or deviations [Q, A]; `explore` widens these."""
        told = await self._told(request, {"id", "query_x"}, {"id", "query_x", "explore"})
        name, state = self._state_of(told["id"])
        explore = told.get("explore", False)
        if not isinstance(explore, bool):
            raise RefusedError(422, f"explore must be true or false, got {str(explore)[:80]!r}. Set it while you gather episodes.")
        seen = torch.from_numpy(self._items(told, "query_x"))[None]
        with torch.no_grad():
            said = self.learner.act(state.adapted, seen)
            said = (self.learner.exploring(said) if explore else said)[0]
        if not said.isfinite().all():
            raise RefusedError(422, f"query_x {SIZE}")
        if self.learner.environment.discrete:
            return {"id": name, "actions": said.argmax(-1).numpy(), "probabilities": said.softmax(-1).numpy()}
        mean, log_std = said.chunk(2, -1)
        return {"id": name, "actions": np.ascontiguousarray(mean.numpy()), "deviations": log_std.exp().numpy()}

    def _begun(self) -> str:
        name = hashlib.sha256(self.about["digest"].encode()).hexdigest()
        with torch.no_grad():
            self._keep(name, self.learner.begin(1))  # for as long again, where it is there
        return name

    def _learned(self, before: str, told: Any) -> str:
        """Learn from a round that was played under the id `before`; return the id of what was learned."""
        episodes = self._episodes(told)
        digest = hashlib.sha256(before.encode())
        for episode in episodes:
            for part in PARTS:
                digest.update(f"{episode[part].shape}".encode() + episode[part].tobytes())
        name = digest.hexdigest()
        if name not in self.states:
            adapted = self._state_of(before)[1].adapted
            try:
                with torch.no_grad():
                    learned = self.learner.learn(adapted, played(self.learner, adapted, episodes))
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise RefusedError(422, f"episodes {SIZE}") from error
            if not all(tensor.isfinite().all() for tensor in learned.values()):
                raise RefusedError(422, f"episodes {SIZE}")
            self._keep(name, learned)
        else:
            self._keep(name, self.states[name].adapted)  # for as long again
        return name

    def _keep(self, name: str, adapted: Any) -> None:
        state = State(adapted, 0, sum(t.numel() * t.element_size() for t in adapted.values()))
        try:
            self.states[name] = state
        except ValueError as error:
            raise RefusedError(413, f"What a policy learns must fit serving.kept_megabytes={self.limits.kept_megabytes:g}. Raise it.") from error

    def _episodes(self, told: Any) -> list[dict[str, np.ndarray]]:
        """Return each episode's arrays by name. Refuses what is none, or of another environment."""
        of = self.learner.environment
        if not isinstance(told, list) or not told or not all(isinstance(one, dict) and set(one) == set(PARTS) for one in told):
            raise RefusedError(422, f"episodes must be a list of objects with {', '.join(PARTS)}, got something else. See /model.")
        if len(told) > self.limits.examples:
            raise RefusedError(413, f"episodes must be at most {self.limits.examples}, got {len(told)}. Send fewer.")
        made = []
        for one in told:
            taken = self._numbers(one, "action", 1 if of.discrete else 2)
            if of.discrete and (taken.dtype.kind not in "iu" or taken.min() < 0 or taken.max() >= of.actions):
                raise RefusedError(422, f"action must be whole numbers below {of.actions}, got others. Send what was done.")
            if not of.discrete and taken.shape[1] != of.actions:
                raise RefusedError(422, f"action must be {of.actions} numbers a step, got {taken.shape[1]}. See /model.")
            seen, reward = self._items(one, "observation"), self._numbers(one, "reward", 1).astype(np.float32)
            if not len(seen) == len(taken) == len(reward):
                raise RefusedError(
                    422, f"An episode must have one observation, action and reward a step, got {len(seen)}, {len(taken)}, {len(reward)}. Leave out the last."
                )
            made.append({"observation": seen, "action": taken.astype(np.int64 if of.discrete else np.float32), "reward": reward})
        if len(made) * max(len(one["reward"]) for one in made) > 100 * self.limits.examples:
            raise RefusedError(413, f"A round must be of at most {100 * self.limits.examples} steps, its longest episode as often as there are, got more.")
        return made


def played(policy: Policy, adapted: Any, episodes: list[dict[str, np.ndarray]]) -> Played:
    """Return episodes of one task, of any lengths, as a round that `policy` has played under `adapted`, exploring."""
    longest = max(len(one["reward"]) for one in episodes)

    def padded(part: str) -> torch.Tensor:
        arrays = [np.pad(one[part], [(0, longest - len(one[part])), *[(0, 0)] * (one[part].ndim - 1)]) for one in episodes]
        return torch.from_numpy(np.stack(arrays))[None]

    lengths = torch.tensor([len(one["reward"]) for one in episodes])
    running = (torch.arange(longest) < lengths[:, None])[None]
    observation, action, reward = (padded(part) for part in PARTS)
    said = policy.exploring(policy.act(adapted, observation.flatten(1, 2))).view(*reward.shape, -1)
    return Played(observation, action, reward, running, policy.log_prob(said, action))
