"""Models that earlier versions of this code saved: each loads, and says what it said then.

Under `past/<commit>/<learner>/` lie a learner as that commit's `store.save` wrote it and, in `told.json`, what its `serving.predict` said of
the request below.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from components import serving
from components.learners import past, store
from components.plain import to_plain
from flows.config import load

SAVED = sorted((Path(__file__).parent / "past").glob("*/*"))


@pytest.mark.parametrize("folder", SAVED, ids=["/".join(folder.parts[-2:]) for folder in SAVED])
def test_what_was_saved_once_says_the_same(folder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    support, query = (random.integers(0, 256, (count, 28, 28)).astype(np.uint8) for count in (6, 4))
    learner, spec, about = store.load(folder)
    told = serving.predict(learner, support, np.repeat(np.arange(3), 2), query)
    assert np.allclose(told, json.loads((folder / "told.json").read_text()), atol=1e-6)
    assert len(np.unique(told.round(4))) > 3, "it tells pictures apart"
    store.save(learner, spec, tmp_path / "again", about)  # as a member or a teacher's copy is
    again = store.load(tmp_path / "again")[0]
    assert np.array_equal(serving.predict(again, support, np.repeat(np.arange(3), 2), query), told)
    assert past.specification(spec) == spec, "what is new stays as it is"


def test_what_an_option_did_not_change_does_not_keep_a_model_from_being_read(tmp_path: Path) -> None:
    for name, odd in (("reptile", False), ("lstm", False), ("imaml", True)):
        config = load(["experiment=smoke", f"learner={name}"])
        spec = {"name": name, "objective": "cross_entropy", "input_shape": [1, 28, 28], "options": config.learner.options}
        spec["backbone"] = {key: value for key, value in to_plain(config.backbone).items() if key not in ("start", "frozen")}
        store.save(store.build(spec), spec, tmp_path / name, {"domain": "glyphs"})
        kept = json.loads((tmp_path / name / "learner.json").read_text())
        kept["spec"]["options"]["first_order"], kept["spec"]["backbone"]["activation"] = odd, "tanh"
        (tmp_path / name / "learner.json").write_text(json.dumps(kept))
        assert store.load(tmp_path / name)[1] == spec


def test_a_policy_whose_rounds_had_one_rate_still_has_it_in_each(tmp_path: Path) -> None:
    config = load(["experiment=navigation", "learner=policy_gradient"])
    options = {name: value for name, value in config.learner.options.items() if name != "moves"}
    spec = {"name": "policy_gradient", "objective": "return", "environment": "navigation", "input_shape": [3], "options": options}
    spec["backbone"] = {key: value for key, value in to_plain(config.backbone).items() if key not in ("start", "frozen")}
    learner = store.build(past.specification(spec))
    store.save(learner, spec, tmp_path, {"domain": "control"})
    weights = load_file(tmp_path / "learner.safetensors")
    save_file(weights | {"log_rates": torch.linspace(-3, 0, 16)}, tmp_path / "learner.safetensors")
    again, told, _ = store.load(tmp_path)
    assert torch.equal(again.log_rates, torch.linspace(-3, 0, 16).expand_as(learner.log_rates)) and told["options"]["moves"] == "context"


def test_what_is_no_learner_is_still_told(tmp_path: Path) -> None:
    shutil.copytree(SAVED[0], tmp_path / "odd")
    silent = json.dumps({"spec": json.loads((SAVED[0] / "learner.json").read_text())["spec"]})
    for text in (silent, "{}", '{"spec": {"name": "fused", "members": 3}, "about": {}}', '{"spec": {"name": "protonet"}, "about": {}}', "[]"):
        (tmp_path / "odd" / "learner.json").write_text(text)
        with pytest.raises(ValueError, match=r"A learner needs learner\.json"):
            store.load(tmp_path / "odd")
