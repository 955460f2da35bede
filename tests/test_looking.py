"""What is looked at in single tasks: counted again one query at a time, and compared with what the evaluation says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sources import Chain
from test_training import SECTION, job

from components.domains import images
from components.domains.pool import Pool, open_pool
from components.evaluation import evaluate
from components.job import Watch
from components.launch import fit
from components.learners import store
from components.looking import by_inner_steps, confusions, episodes, hardest, maps, principal, valued
from components.task_figures import MANY
from components.task_figures import confusions as drawn_confusions
from components.task_figures import episodes as drawn_episodes
from components.task_figures import maps as drawn_maps
from components.task_figures import valued as drawn_valued
from components.tasks import Examples
from components.tasksets import read_table
from flows.config import load

TABLE = "test-4w2s"


@pytest.fixture(scope="module")
def learners(small_pool: Pool, small_tasksets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A prototypical network and a gradient learner of two inner steps, both hardly trained."""
    found, root = {}, tmp_path_factory.mktemp("looking")
    for name, options in (("protonet", ()), ("maml", ("learner.options.test_steps=2", "learner.options.norm=task"))):
        section = replace(load(["experiment=smoke", f"learner={name}", "learner.start=scratch", *options]).learner, fit=SECTION)
        fit(job(small_pool, small_tasksets, root / name, "meta", learner=section), Watch(), name)
        found[name] = str(root / name / "out")
    return found


def answers(path: str, pool: Pool, tasksets: Path, task: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what a learner names each query of one task and what is right, as classes of the pool [way, queries]."""
    learner, table = store.load(path)[0].eval(), read_table(tasksets, TABLE)
    support, query = (torch.from_numpy(np.ascontiguousarray(pool.inputs[rows[task].reshape(-1)])) for rows in (table.support, table.query))
    known = Examples(images.prepare(support)[None], torch.arange(table.way).repeat_interleave(table.support.shape[2])[None], table.way)
    with torch.no_grad():
        choice = learner.predict(learner.adapt(known), images.prepare(query)[None])[0].argmax(-1).numpy()
    classes = table.classes[task]
    return classes[choice].reshape(table.query.shape[1:]), np.repeat(classes[:, None], table.query.shape[2], 1)


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_confusions_are_those_of_a_count_one_task_at_a_time(
    small_pool: Pool, small_tasksets: Path, learners: dict[str, str], tmp_path: Path, name: str
) -> None:
    learner, table = store.load(learners[name])[0].eval(), read_table(small_tasksets, TABLE)
    evaluate({"ours": learner}, {}, {}, ["4w2s"], "test", small_pool, str(small_tasksets), tmp_path)
    tasks = hardest(tmp_path, "4w2s", "ours")
    right = np.array([(taken == truth).mean() for taken, truth in (answers(learners[name], small_pool, small_tasksets, t) for t in range(len(table)))])
    means = {group: right[table.group == group].mean() for group in np.unique(table.group)}
    assert np.array_equal(tasks, np.flatnonzero(table.group == min(means, key=means.get)))
    found = confusions(learners[name], small_pool, small_tasksets, TABLE, tasks, most=1000)
    times, asked = {}, {}
    for task in tasks:
        for taken, truth in zip(*(part.ravel().tolist() for part in answers(learners[name], small_pool, small_tasksets, task)), strict=True):
            for other in set(table.classes[task].tolist()) - {truth}:
                asked[truth, other] = asked.get((truth, other), 0) + 1
            if taken != truth:
                times[truth, taken] = times.get((truth, taken), 0) + 1
    names = small_pool.classes["name"].to_pylist()
    assert times and {(one.truth, one.taken): (one.times, one.asked) for one in found} == {
        (names[a], names[b]): (n, asked[a, b]) for (a, b), n in times.items()
    }
    owner = np.repeat(names, small_pool.counts)
    for one in found:
        assert (owner[one.mistaken], owner[one.of_truth], owner[one.of_taken]) == (one.truth, one.truth, one.taken)
    assert [one.times for one in found] == sorted((one.times for one in found), reverse=True)
    figure = drawn_confusions(small_pool, found[:3], "title")
    shown = figure.axes[0].images[0].get_array()
    for row, one in enumerate(found[:3]):
        for column, item in enumerate((one.mistaken, one.of_truth, one.of_taken)):
            assert np.array_equal(shown[30 * row + 1 : 30 * row + 29, 30 * column + 1 : 30 * column + 29], 255 - small_pool.inputs[item])


def test_principal_axes_keep_what_two_axes_can_keep() -> None:
    random = np.random.default_rng(0)
    flat = random.normal(size=(20, 2)) * [5, 1]
    turned = flat @ np.linalg.qr(random.normal(size=(6, 6)))[0][:2] + 3  # a plane in six dimensions
    found = principal(torch.from_numpy(turned))
    apart = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (flat, found.place)]
    assert np.allclose(*apart) and found.share == pytest.approx(1)
    noisy = random.normal(size=(50, 4)) * [4, 3, 2, 1]
    values = np.sort(np.linalg.eigvalsh(np.cov(noisy.T)))
    assert principal(torch.from_numpy(noisy)).share == pytest.approx(values[2:].sum() / values.sum())


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_a_tasks_items_are_mapped_before_and_after(small_pool: Pool, small_tasksets: Path, learners: dict[str, str], name: str) -> None:
    found, names, labels, known = maps(learners[name], small_pool, small_tasksets, TABLE, 3)
    assert list(found) == ["inputs", "features, before adaptation", "log-probabilities, after adaptation"]
    table = read_table(small_tasksets, TABLE)
    assert names == [small_pool.classes["name"][int(c)].as_py() for c in table.classes[3]]
    assert known.sum() == 4 * 2 and np.bincount(labels).tolist() == [5] * 4
    pixels = small_pool.inputs[np.concatenate([table.support[3].ravel(), table.query[3].ravel()])].reshape(20, -1) / 255.0
    values = np.linalg.svd(pixels - pixels.mean(0), compute_uv=False) ** 2
    assert found["inputs"].share == pytest.approx(values[:2].sum() / values.sum(), abs=1e-5)
    figure = drawn_maps(found, names, labels, known, "title")
    stars = [len(points.get_offsets()) for points in figure.axes[-1].collections]
    assert stars == [3, 2] * 4 and [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == names


def test_the_last_inner_step_is_the_learners_own_score(small_pool: Pool, small_tasksets: Path, learners: dict[str, str]) -> None:
    assert by_inner_steps(learners["protonet"], small_pool, small_tasksets, TABLE, 40) == []
    found = by_inner_steps(learners["maml"], small_pool, small_tasksets, TABLE, 40)
    assert [steps for steps, *_ in found] == [0, 1, 2]
    right = np.mean([np.equal(*answers(learners["maml"], small_pool, small_tasksets, t)).mean() for t in range(40)])
    assert found[-1][1] == pytest.approx(right)


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["ratings", "clicks", "control"])
def test_a_task_without_pictures_is_drawn_from_what_the_learner_does_there(chain: Callable[[str], Chain], domain: str) -> None:
    workspace, asked = chain(domain).workspace, load(chain(domain).asked)
    setting = asked.evaluation.settings[-1]
    client = workspace.mlflow()
    (run,) = client.search_runs([client.get_experiment_by_name(chain(domain).model).experiment_id], "tags.stage = 'retrain'")[-1:]
    assert f"figures/task-{setting}.png" in {file.path for file in client.list_artifacts(run.info.run_id, "figures")}
    pool = open_pool(workspace.root / "data" / asked.domain.name)
    fused = workspace.outputs("fused")[0]["ref"]["path"]
    final = next(m["ref"]["path"] for m in workspace.outputs("tasksets") if m["key"]["name"] == "tasksets-final")
    learner, table = store.load(fused)[0].eval(), read_table(final, f"test-{setting}")
    support, query = (torch.from_numpy(np.ascontiguousarray(pool.inputs[rows[0].ravel()]))[None] for rows in (table.support, table.query))
    values = torch.zeros(support.shape[:2]) if pool.targets is None else torch.from_numpy(pool.targets[table.support[0].ravel()])[None]
    with torch.no_grad():
        said = learner.predict(learner.adapt(Examples(support, values, 1)), query)[0, :, 0].numpy()
    if domain == "control":
        rounds = episodes(fused, pool, final, f"test-{setting}", most=1000)
        assert len(rounds) == 1 + len(learner.rounds(support))
        assert (rounds[-1].reward * rounds[-1].running).sum(1) == pytest.approx(said * float(learner.temperature), abs=1e-3)
        figure = drawn_episodes(rounds, None, "title")
        ends = [line.get_ydata()[-1] for line in figure.axes[-1].get_lines()]
        assert ends == pytest.approx((rounds[-1].reward * rounds[-1].running).sum(1), abs=1e-3)
    else:
        one = valued(fused, pool, final, f"test-{setting}")
        assert [row[2] for row in one.asked] == pytest.approx(said, abs=1e-5)
        assert [row[1] for row in one.asked] == pool.targets[table.query[0].ravel()].tolist()
        assert len(one.known) == support.shape[1]
        (left, right) = drawn_valued(one, "title", "stars").axes
        shown = right.get_lines()[1].get_xdata()
        assert list(shown) == sorted(shown, reverse=True) and len(left.get_lines()[0].get_xdata()) == min(len(one.known), MANY)
