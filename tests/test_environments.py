"""The environments of control: against Gymnasium's own and highway-env's, how they are drawn, and what happens in them by chance."""

import importlib

import gymnasium
import numpy as np
import pytest
import torch

from components.environments import ENVIRONMENTS, chance, noise


def rows(kind: str, tasks: int, episodes: int, first: int = 0) -> torch.Tensor:
    parameters = torch.from_numpy(ENVIRONMENTS[kind].draw(tasks, 1)).unsqueeze(1).expand(-1, episodes, -1)
    return torch.cat([parameters, torch.arange(first, first + episodes).float().view(1, -1, 1).expand(tasks, -1, 1)], -1)


def test_navigation_is_finns_point_robot() -> None:
    flat, random = rows("navigation", 2, 3).flatten(0, 1), np.random.default_rng(0)
    episodes = ENVIRONMENTS["navigation"].begin(flat)
    place = np.zeros((6, 2))
    for _ in range(5):
        action = random.normal(0, 0.2, (6, 2))
        place = place + np.clip(action, -0.1, 0.1)
        reward, over = episodes.step(torch.from_numpy(action).float())
        assert episodes.observation.numpy() == pytest.approx(place, abs=1e-6)
        assert reward.numpy() == pytest.approx(-np.linalg.norm(place - flat[:, :2].numpy(), axis=1), abs=1e-6) and not over.any()


def test_every_cart_moves_as_gymnasiums_own_of_that_physics() -> None:
    flat = rows("cartpole", 4, 1).flatten(0, 1)
    episodes = ENVIRONMENTS["cartpole"].begin(flat)
    start, random = episodes.observation.clone(), np.random.default_rng(1)
    pushes = random.integers(0, 2, (12, 4))
    seen = []
    for push in pushes:
        _, over = episodes.step(torch.from_numpy(push))
        seen.append((episodes.observation.clone(), over))
    for i, (force, length, gravity, _) in enumerate(flat.double().tolist()):
        alone = gymnasium.make("CartPole-v1").unwrapped
        alone.reset(seed=0)
        alone.force_mag, alone.length, alone.gravity, alone.polemass_length = force, length, gravity, alone.masspole * length
        alone.state = start[i].double().numpy()
        for step, push in enumerate(pushes[:, i]):
            wanted, _, fallen, _, _ = alone.step(int(push))
            assert seen[step][0][i].numpy() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
            assert bool(seen[step][1][i]) == fallen
            if fallen:
                break


def test_every_pendulum_swings_as_gymnasiums_own_of_that_mass_length_and_gravity() -> None:
    flat, random = rows("pendulum", 5, 1).flatten(0, 1), np.random.default_rng(2)
    episodes = ENVIRONMENTS["pendulum"].begin(flat)
    alone = [gymnasium.make("Pendulum-v1").unwrapped for _ in flat]
    angle = torch.atan2(episodes.observation[:, 1], episodes.observation[:, 0])
    for i, (one, (mass, length, gravity, _)) in enumerate(zip(alone, flat.double().tolist(), strict=True)):
        one.m, one.l, one.g = mass, length, gravity
        one.state = np.array([angle[i].item(), episodes.observation[i, 2].item()])
    for torque in random.normal(0, 2, (40, 5, 1)):
        reward, over = episodes.step(torch.from_numpy(torque).float())
        for i, one in enumerate(alone):
            wanted, gained, _, _, _ = one.step(torque[i])
            assert episodes.observation[i].numpy() == pytest.approx(wanted, abs=1e-4) and reward[i].item() == pytest.approx(gained, abs=2e-3)
        assert not over.any()


def test_roads_are_highway_envs_own_of_that_traffic() -> None:
    flat = rows("driving", 3, 1).flatten(0, 1)
    episodes, random = ENVIRONMENTS["driving"].begin(flat), np.random.default_rng(1)
    seeds = (2**31 * chance(flat, "traffic", 1)[:, 0]).astype(int)
    gymnasium.register_envs(importlib.import_module("highway_env"))
    own, running = [], np.ones(3, dtype=bool)
    for (density, speed, lanes, _), seed in zip(flat.double().tolist(), seeds.tolist(), strict=True):
        changes = {"vehicles_count": 12, "reward_speed_range": [10, 30], "vehicles_density": density, "lanes_count": int(lanes)}
        action = {"type": "DiscreteMetaAction", "target_speeds": [10, 15, 20, 25, 30]}
        made = gymnasium.make("highway-fast-v0", config=changes | {"action": action})
        made.reset(seed=seed)
        for car in made.unwrapped.road.vehicles[1:]:
            car.speed *= speed
            car.target_speed *= speed
        own.append(made)
    assert sorted(len(made.unwrapped.road.network.lanes_list()) for made in own) == sorted(int(lanes) for lanes in flat[:, 2])
    for _ in range(30):
        choice = random.integers(0, 5, 3)
        reward, over = episodes.step(torch.from_numpy(choice))
        for i in np.flatnonzero(running):
            seen, paid, crashed, _, _ = own[i].step(choice[i])
            assert episodes.observation[i].numpy() == pytest.approx(seen.ravel(), abs=1e-6)
            assert float(reward[i]) == pytest.approx(paid, abs=1e-6) and bool(over[i]) == crashed
            running[i] = not crashed
    assert not running.all(), "who drives at random has an accident"


def test_environments_are_drawn_within_their_bounds_and_signs_both_ways() -> None:
    drawn = ENVIRONMENTS["cartpole"].draw(2_000, 3)
    force = drawn[:, 0]
    assert (np.abs(force) >= 5).all() and (np.abs(force) <= 15).all() and 0.45 < (force > 0).mean() < 0.55
    assert np.array_equal(drawn[:700], ENVIRONMENTS["cartpole"].draw(700, 3)), "more environments leave the others what they are"
    assert np.array_equal(drawn, ENVIRONMENTS["cartpole"].draw(2_000, 3)) and not np.array_equal(drawn, ENVIRONMENTS["cartpole"].draw(2_000, 4))
    assert drawn[:, 1].min() >= 0.25 and drawn[:, 1].max() <= 1.0 and abs(np.corrcoef(drawn[:, 1], drawn[:, 2])[0, 1]) < 0.07


def test_chance_is_normal_and_a_pure_function_of_the_episode() -> None:
    asked = rows("navigation", 30, 20).flatten(0, 1)
    drawn = noise(asked, 50, 2)
    assert abs(drawn.mean()) < 0.01 and abs(drawn.std() - 1) < 0.01
    assert torch.equal(noise(asked[7:9], 50, 2), drawn[7:9])
    assert len(np.unique(chance(asked, "start", 4))) == 600 * 4  # no two episodes, of one environment or of two, share any
