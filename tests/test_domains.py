"""Every domain, from versioned data to champion: a new one is covered by being there."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sources import SOURCES, Chain
from workspace import Workspace

from components.domains import DOMAINS, images
from components.domains.options import OPTIONS, SinusoidOptions
from components.domains.pool import open_pool
from components.learners import store
from components.tasks import Examples
from components.tasksets import draw, specs
from flows.config import groups, load

ROOT = Path(__file__).parent.parent
CHOICES = groups()["domain"]
NAMES = {choice: yaml.safe_load((ROOT / "conf" / "domain" / f"{choice}.yaml").read_text())["name"] for choice in CHOICES}
VARIANTS = [choice for choice in CHOICES if choice != NAMES[choice]]  # a domain with other data or splits: its chain is the same


def test_every_domain_has_its_source_its_options_and_its_values() -> None:
    missing = set(CHOICES) - set(SOURCES)
    assert not missing, f"{', '.join(sorted(missing))} of conf/domain: add what it is made of in a test to SOURCES of tests/sources.py"
    assert set(NAMES.values()) == set(OPTIONS) == set(DOMAINS)
    assert {DOMAINS[NAMES[choice]] for choice in CHOICES if choice not in VARIANTS} == set(DOMAINS.values()), "a domain's file has no chain"


def test_what_the_documents_say_of_the_smallest_domain_is_so() -> None:
    told = (ROOT / "docs" / "domains.md").read_text()
    source, values = (ROOT / "components" / "domains" / "sinusoid.py").read_text(), (ROOT / "conf" / "domain" / "sinusoid.yaml").read_text()
    shown = re.search(r"```python\n(def build.*?)```", told, re.S)
    assert shown is not None and source.endswith(shown[1])
    said = [int(re.search(where, told)[1]) for where in (r"has (\d+) lines", r"(\d+) lines for sine waves", r"\((\d+) lines: objective")]
    options = len(inspect.getsource(SinusoidOptions).splitlines())
    assert said == [len(source.splitlines()), options, len(values.splitlines())]


@pytest.mark.slow
@pytest.mark.parametrize("choice", VARIANTS)
def test_a_variant_of_a_domain_has_tasks_of_every_split(new_workspace: Callable[[], Workspace], tmp_path: Path, choice: str) -> None:
    workspace = new_workspace()
    config = load(SOURCES[choice](workspace, tmp_path))
    pool = open_pool(workspace.root / "data" / config.domain.name)
    drawn = {spec.split: draw(spec, pool, config.seed) for spec in specs(config.tasks, config.evaluation)}
    assert set(drawn) == {"train", "val", "gate", "test"}
    for split, table in drawn.items():
        assert {pool.classes["split"][int(c)].as_py() for c in np.unique(table.classes)} == {split}


@pytest.mark.slow
@pytest.mark.parametrize("domain", [choice for choice in CHOICES if choice not in VARIANTS])
def test_a_domain_runs_from_versioned_data_to_champion_and_then_trains_nothing(chain: Callable[[str], Chain], domain: str) -> None:
    made = chain(domain)
    assert f"{made.model} version 1 is champion: there was no champion" in made.out
    for role in ("base-unadapted", "base", "teacher", "student-2", "fused"):
        assert f"\n {role} " in made.out, role
    own = load(made.asked).domain.name
    pinned = yaml.safe_load((made.workspace.root / "data.dvc").read_text())["meta"]["domains"]
    assert set(pinned) == {"glyphs", own}
    told = made.workspace.run("flows.retrain", *made.asked, "--dry-run").stdout.splitlines()
    assert len(told) == 9 and all(line.split()[1] == "cached" for line in told), told


@pytest.mark.slow
def test_a_model_of_type_is_asked_for_handwriting_by_its_support_alone(chain: Callable[[str], Chain], finished: Workspace) -> None:
    made, model = chain("omniglot"), finished.outputs("fused")[0]["ref"]["path"]
    told = made.workspace.run("flows.evaluate", f"model={model}", *made.asked).stdout
    config, pool, learner = load(made.asked), open_pool(made.workspace.root / "data" / "omniglot"), store.load(model)[0]
    table = draw(next(spec for spec in specs(config.tasks, config.evaluation) if spec.split == "test"), pool, config.seed)
    right = []
    for task in range(len(table)):  # one at a time
        support, query = (images.prepare(torch.from_numpy(np.ascontiguousarray(pool.inputs[rows[task].reshape(-1)]))) for rows in (table.support, table.query))
        known = Examples(support[None], torch.arange(table.way).repeat_interleave(table.support.shape[2])[None], table.way)
        with torch.no_grad():
            choice = learner.predict(learner.adapt(known), query[None])[0].argmax(-1)
        right.append((choice == torch.arange(table.way).repeat_interleave(table.query.shape[2])).float().mean().item())
    assert f"omniglot 5w1s: model {100 * np.mean(right):.2f} " in told
