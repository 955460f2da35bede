"""Environments whose hidden parameters vary: many episodes of many of them, side by side.

An episode is a row of numbers: its environment's parameters, then its own number, of which all its chance is a pure function. So a task of
reinforcement learning is a table of episodes like any other, and whoever plays one twice the same way sees the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from components.draws import bits, key_of


class Episodes(Protocol):
    """N episodes under way."""

    observation: Tensor  # [N, O]

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Act: [N, A] numbers, or [N] choices; return rewards [N] and whether each episode is over [N]."""


@dataclass(frozen=True)
class Environment:
    """A family of environments: what varies in it, and how its episodes begin.

    `parameters`: what is hidden, by name, each with its least and its greatest value. `signed`: of these, the ones that are negative in half
    of all environments. `actions` numbers, or that many choices where they are `discrete`.
    """

    parameters: dict[str, tuple[float, float]]
    observation: int
    actions: int
    discrete: bool
    horizon: int
    begin: Callable[[Tensor], Episodes]  # rows [N, P + 1]
    signed: tuple[str, ...] = ()

    def draw(self, count: int, seed: int) -> np.ndarray:
        """Draw the hidden parameters [count, P] of environments, uniformly."""
        columns = []
        for name, (low, high) in self.parameters.items():
            numbers = np.arange(count, dtype=np.uint64)  # environment i is the same however many there are
            value = low + (high - low) * _unit(bits(key_of(seed, "environment", name), numbers))
            negative = bits(key_of(seed, "environment sign", name), numbers) % np.uint64(2) == 1
            columns.append(np.where(negative, -value, value) if name in self.signed else value)
        return np.stack(columns, 1).astype(np.float32)


def _unit(random_bits: np.ndarray) -> np.ndarray:
    """Map 64 random bits to numbers in (0, 1)."""
    return ((random_bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def chance(rows: Tensor, name: str, size: int) -> np.ndarray:
    """Return numbers [N, size] in (0, 1) for what happens by chance in the episodes of rows [N, P + 1]."""
    numbers = rows[:, -1].numpy().astype(np.uint64)[:, None] * np.uint64(size) + np.arange(size, dtype=np.uint64)
    # Episodes of two environments share numbers; their parameters keep what happens in them apart.
    own = np.frombuffer(np.ascontiguousarray(rows[:, :-1].numpy()).tobytes(), dtype=np.uint32).reshape(len(rows), -1).astype(np.uint64)
    mixed: np.ndarray = np.zeros(len(rows), dtype=np.uint64)
    for column in own.T:
        mixed = bits(key_of("episode", name), np.bitwise_xor(mixed, column))
    return _unit(bits(key_of(name), np.bitwise_xor(numbers, mixed[:, None])))


def noise(rows: Tensor, steps: int, size: int) -> Tensor:
    """Return standard normal draws [N, steps, size] for the actions in the episodes of rows [N, P + 1]."""
    return torch.from_numpy(ndtri(chance(rows, "actions", steps * size))).float().view(len(rows), steps, size)


class Navigation:
    """A point in the plane that knows where it is, not where its goal is (Finn et al. 2017, arXiv:1703.03400, sec. 5.3.1).

    Every step it moves by at most 0.1 along each axis and is rewarded by minus its distance to the goal, as in the code of the paper (its text
    squares the distance).
    """

    def __init__(self, rows: Tensor) -> None:
        self.goal = rows[:, :2]
        self.observation = torch.zeros_like(self.goal)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        self.observation = self.observation + action.clamp(-0.1, 0.1)
        reward = -(self.observation - self.goal).square().sum(1).sqrt()
        return reward, torch.zeros(len(reward), dtype=torch.bool)


class CartPole:
    """Gymnasium's CartPole-v1 (Barto, Sutton and Anderson 1983), every cart with its own push, direction of it, pole and gravity."""

    def __init__(self, rows: Tensor) -> None:
        import gymnasium

        force, length, gravity = rows[:, :3].double().numpy().T
        made: Any = gymnasium.make_vec("CartPole-v1", num_envs=len(rows), vectorization_mode="vector_entry_point")
        self.env = made.unwrapped
        self.env.reset(seed=0)
        self.env.force_mag, self.env.length, self.env.gravity = force, length, gravity
        self.env.polemass_length = self.env.masspole * length
        start = 0.1 * chance(rows, "start", 4) - 0.05  # where Gymnasium's own begins
        self.env.state = start.T.copy()
        self.observation = torch.from_numpy(start).float()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        observation, reward, fallen, _, _ = self.env.step(action.numpy())
        self.observation = torch.from_numpy(observation)
        return torch.from_numpy(reward), torch.from_numpy(fallen.copy())


class Pendulum:
    """Gymnasium's Pendulum-v1, every one with its own mass, length and gravity.

    It has no vector entry point; its arithmetic is element by element, so that one environment whose state is arrays swings them all.
    """

    def __init__(self, rows: Tensor) -> None:
        import gymnasium

        made: Any = gymnasium.make("Pendulum-v1")
        self.env = made.unwrapped
        self.env.m, self.env.l, self.env.g = rows[:, :3].double().numpy().T
        self.env.state = ((2 * chance(rows, "start", 2) - 1) * np.array([np.pi, 1.0])).T  # where Gymnasium's own begins
        self.observation = self._seen(self.env._get_obs())

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        observation, reward, _, _, _ = self.env.step(action.double().numpy().T)
        self.observation = self._seen(observation)
        return torch.from_numpy(reward).float(), torch.zeros(len(reward), dtype=torch.bool)

    @staticmethod
    def _seen(observation: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(observation.T))


class Driving:
    """Highway-env's fast highway (Leurent 2018), every road with its own density of traffic, speed of it, and number of lanes.

    A driver sees itself and the four cars ahead that are nearest, changes lanes and speed once a second, and is paid until a crash: two thirds of what
    can be had for being on the road, the rest for speed from 10 to 30 m/s and for the right lane.
    Each episode is a simulation of its own in Python, some 17 ms of processor time a second of it; those that are over cost nothing.
    """

    SPEEDS = (10, 15, 20, 25, 30)  # m/s; highway-env's default begins at 20, which is a crash where traffic is slow

    def __init__(self, rows: Tensor) -> None:
        from highway_env.envs.highway_env import HighwayEnvFast

        self.envs, seeds = [], (2**31 * chance(rows, "traffic", 1)[:, 0]).astype(int)
        self.over = np.zeros(len(rows), dtype=bool)
        for (density, speed, lanes), seed in zip(rows[:, :3].double().tolist(), seeds.tolist(), strict=True):
            action = {"type": "DiscreteMetaAction", "target_speeds": list(self.SPEEDS)}
            config = {"vehicles_density": density, "lanes_count": int(lanes), "vehicles_count": 12, "action": action}
            env = HighwayEnvFast(config | {"reward_speed_range": [self.SPEEDS[0], self.SPEEDS[-1]]})
            env.reset(seed=seed)
            for car in env.road.vehicles[1:]:
                car.speed, car.target_speed = speed * car.speed, speed * car.target_speed
            self.envs.append(env)
        self.observation = torch.from_numpy(np.stack([env.observation_type.observe().ravel() for env in self.envs])).float()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        reward, seen = np.zeros(len(self.envs), dtype=np.float32), self.observation.numpy().copy()
        for i in np.flatnonzero(~self.over):
            observation, reward[i], self.over[i], _, _ = self.envs[i].step(int(action[i]))
            seen[i] = observation.ravel()
        self.observation = torch.from_numpy(seen)
        return torch.from_numpy(reward), torch.from_numpy(self.over.copy())


ENVIRONMENTS = {
    "navigation": Environment({"goal_x": (-0.5, 0.5), "goal_y": (-0.5, 0.5)}, 2, 2, False, 100, Navigation),
    # A push to the left may go to the right: whoever does not find out falls over at once.
    "cartpole": Environment({"force": (5.0, 15.0), "length": (0.25, 1.0), "gravity": (7.0, 13.0)}, 4, 2, True, 200, CartPole, ("force",)),
    "pendulum": Environment({"mass": (0.5, 2.0), "length": (0.5, 1.5), "gravity": (5.0, 15.0)}, 3, 1, False, 200, Pendulum),
    # Lanes are the whole part: two, three or four. Densities are highway-env's own measure, one being its default.
    "driving": Environment({"density": (0.5, 2.0), "speed": (0.5, 1.2), "lanes": (2.0, 4.99)}, 25, 5, True, 30, Driving),
}
