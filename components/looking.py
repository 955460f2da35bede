"""What a learner makes of single tasks, for people to look at: which classes it confuses, where it puts a task's items, what inner steps bring."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from components.answers import pooled, score
from components.domains import images
from components.domains.pool import Pool
from components.learners import store
from components.learners.gradient import Maml
from components.learners.learner import Learner
from components.learners.policy import Policy
from components.task_figures import Confusion, Episodes, Map, Valued
from components.tasks import Examples
from components.tasksets import TaskTable, batch, read_table
from components.validation import Validation, encode_items

AT_ONCE = 20  # tasks, as an evaluation takes them


def hardest(folder: Path, setting: str, role: str) -> np.ndarray:
    """Return the test tasks [N] of the group in which a learner scored least, as an evaluation measured it; all tasks where they have no groups."""
    table = pq.read_table(folder / "scores-test.parquet", filters=[("setting", "=", setting), ("role", "=", role)])
    task, group, value = (table[name].to_numpy() for name in ("task", "group", "score"))
    least = min(np.unique(group), key=lambda g: float(value[group == g].mean()))
    return np.asarray(task[group == least])


@torch.no_grad()
def confusions(path: str, pool: Pool, tasksets: str | Path, table: str, tasks: np.ndarray, most: int = 8) -> list[Confusion]:
    """Return the pairs of classes that a learner confuses most often in these tasks of a table."""
    learner, whole = store.load(path)[0].eval(), read_table(tasksets, table)
    own = TaskTable(whole.classes[tasks], whole.support[tasks], whole.query[tasks], whole.group[tasks])
    items, place = np.unique(np.concatenate([own.support.ravel(), own.query.ravel()]), return_inverse=True)
    features = encode_items(learner, images.prepare(torch.from_numpy(np.ascontiguousarray(pool.inputs[items]))))
    support, query = place[: own.support.size].reshape(own.support.shape), place[own.support.size :].reshape(own.query.shape)
    placed, answers = TaskTable(own.classes, support, query, own.group), []
    for rows in np.array_split(np.arange(len(tasks)), -(-len(tasks) // AT_ONCE)):  # a learner may hold weights of its own for every task
        task = batch(placed, rows, features)
        answers.append((task.query.y.numpy(), learner.predict_features(learner.adapt_features(task.support), task.query.x).argmax(-1).numpy()))
    truth, taken = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    asked = own.query.reshape(len(tasks), -1)
    times: Counter[tuple[int, int]] = Counter()
    first: dict[tuple[int, int], tuple[int, int, int]] = {}
    for t, q in zip(*np.nonzero(truth != taken), strict=True):
        a, b = int(truth[t, q]), int(taken[t, q])
        pair = int(own.classes[t, a]), int(own.classes[t, b])
        times[pair] += 1
        first.setdefault(pair, (int(asked[t, q]), int(own.support[t, a, 0]), int(own.support[t, b, 0])))
    found, each = [], own.query.shape[2]
    for (a, b), count in times.most_common(most):
        both = int(((own.classes == a).any(1) & (own.classes == b).any(1)).sum()) * each
        found.append(Confusion(_name(pool, a), _name(pool, b), count, both, *first[a, b]))
    return found


def _name(pool: Pool, index: int) -> str:
    return str(pool.classes["name"][index].as_py())


@torch.no_grad()
def maps(path: str, pool: Pool, tasksets: str | Path, table: str, index: int = 0) -> tuple[dict[str, Map], list[str], np.ndarray, np.ndarray]:
    """Return maps of one task's items, its classes, the labels [N] and which items are support [N].

    Items are mapped as inputs, as features before adaptation, and by the log-probabilities of the task's classes after it. Learners without
    an encoder of their own, as some fused ones, have no features to show.
    """
    learner, one = store.load(path)[0].eval(), read_table(tasksets, table)
    items = np.concatenate([one.support[index].reshape(-1), one.query[index].reshape(-1)])
    way, shots, queries = one.way, one.support.shape[2], one.query.shape[2]
    labels = np.concatenate([np.repeat(np.arange(way), shots), np.repeat(np.arange(way), queries)])
    known = np.arange(len(items)) < way * shots
    x = images.prepare(torch.from_numpy(np.ascontiguousarray(pool.inputs[items])))
    support = Examples(x[None, : way * shots], torch.from_numpy(labels[known])[None], way)
    found = {"inputs": principal(x.flatten(1))}
    features = before(learner, x, support)
    if features is not None:
        found["features, before adaptation"] = principal(features)
    found["log-probabilities, after adaptation"] = principal(learner.predict(learner.adapt(support), x[None])[0].log_softmax(-1))
    return found, [_name(pool, int(c)) for c in one.classes[index]], labels, known


def before(learner: Learner, x: Tensor, support: Examples) -> Tensor | None:
    """Return the features [N, D] of inputs as they are before a task changes anything; None where there is no encoder."""
    if learner.encodes:
        return learner.encode(x).flatten(1)
    if isinstance(learner, Maml):
        return learner.features(learner.start(support), x[None], 0)[0]
    return None


def principal(x: Tensor) -> Map:
    """Return the rows of x [N, D] on their two principal axes, by the singular value decomposition."""
    x = x.double() - x.double().mean(0)
    left, spread, _ = torch.linalg.svd(x, full_matrices=False)
    total = float((spread**2).sum())
    place = torch.zeros(len(x), 2, dtype=torch.float64)
    place[:, : len(spread[:2])] = (left * spread)[:, :2]
    return Map(place.numpy(), float((spread[:2] ** 2).sum()) / total if total else 1.0)


@torch.no_grad()
def valued(path: str, pool: Pool, tasksets: str | Path, table: str, index: int = 0) -> Valued:
    """Adapt to one task of values, and say what its queries come to."""
    assert pool.targets is not None
    learner, one = store.load(path)[0].eval(), read_table(tasksets, table)
    support, query = one.support[index].ravel(), one.query[index].ravel()
    x, asked, y = (torch.from_numpy(part[None]) for part in (pool.inputs[support], pool.inputs[query], pool.targets[support]))
    said = learner.predict(learner.adapt(Examples(x, y, 1)), asked)[0, :, 0].tolist()
    notes = pq.read_table(pool.path / "items.parquet", columns=["note"])["note"].take(np.concatenate([support, query])).to_pylist()
    known = list(zip(notes, pool.targets[support].tolist(), strict=False))
    return Valued(known, list(zip(notes[len(support) :], pool.targets[query].tolist(), said, strict=True)))


@torch.no_grad()
def episodes(path: str, pool: Pool, tasksets: str | Path, table: str, index: int = 0, most: int = 10) -> list[Episodes]:
    """Play the first episodes of one task's query, before the policy has played anything there and after each round of its support."""
    policy, one = store.load(path)[0].eval(), read_table(tasksets, table)
    assert isinstance(policy, Policy)
    support, query = (torch.from_numpy(np.ascontiguousarray(pool.inputs[rows[index].ravel()]))[None] for rows in (one.support, one.query))
    adapted, found = policy.begin(1), []
    for rows in [None, *policy.rounds(support)]:
        if rows is not None:
            adapted = policy.learn(adapted, policy.play(adapted, rows, gathering=True))
        played = policy.play(adapted, query[:, :most])
        found.append(Episodes(*(part[0].numpy() for part in (played.observation, played.reward, played.running))))
    return found


@torch.no_grad()
def by_inner_steps(path: str, pool: Pool, tasksets: str | Path, table: str, tasks: int) -> list[tuple[int, float, float]]:
    """Return (steps, score, half interval) after 0 to all of the inner steps that a learner takes, ten of them at most; none where it takes none."""
    learner = store.load(path)[0].eval()
    if not isinstance(learner, Maml) or not learner.options.test_steps:
        return []
    most, found, asked = learner.options.test_steps, [], Validation(pool, tasksets, table)
    for steps in sorted({round(step) for step in np.linspace(0, most, min(most, 10) + 1).tolist()}):
        learner.options = replace(learner.options, test_steps=steps)
        own = score(learner, asked, tasks)
        found.append((steps, *pooled([own], next(iter(own.scores)))))
    return found
