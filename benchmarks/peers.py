"""The peers, from the environment that `make bench` sets up: learn2learn's algorithms, higher, torchopt, easyfsl.

learn2learn's package does not install on current Pythons, because the C that it ships was generated for older ones; its algorithms are plain
Python, so they are loaded from its source package by themselves. easyfsl's module of default networks needs torchvision, which none of the
functions compared here does.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent.parent / ".venv-bench" / "peers"


def learn2learn() -> Any:
    """Return learn2learn's MAML and MetaSGD as a namespace."""
    if "learn2learn" not in sys.modules:
        root = next(SOURCES.glob("learn2learn-*/learn2learn"))
        for name, folder in (("learn2learn", root), ("learn2learn.algorithms", root / "algorithms")):
            package = types.ModuleType(name)
            package.__path__ = [str(folder)]  # its submodules can be found, its own __init__ is not run
            sys.modules[name] = package
    return types.SimpleNamespace(
        MAML=importlib.import_module("learn2learn.algorithms.maml").MAML, MetaSGD=importlib.import_module("learn2learn.algorithms.meta_sgd").MetaSGD
    )


def higher() -> Any:
    return importlib.import_module("higher")


def torchopt() -> Any:
    return importlib.import_module("torchopt")


def easyfsl() -> Any:
    """Return easyfsl's prototypical and matching networks as a namespace."""
    from torch import nn

    if "easyfsl.modules.predesigned_modules" not in sys.modules:
        modules, networks = types.ModuleType("easyfsl.modules"), types.ModuleType("easyfsl.modules.predesigned_modules")
        # What its documentation gives as defaults (Vinyals et al. 2016): a bidirectional LSTM and an LSTM cell.
        networks.default_matching_networks_support_encoder = lambda d: nn.LSTM(d, d, 1, batch_first=True, bidirectional=True)  # type: ignore[attr-defined]
        networks.default_matching_networks_query_encoder = lambda d: nn.LSTMCell(d * 2, d)  # type: ignore[attr-defined]
        networks.default_relation_module = lambda d, c=8: nn.Identity()  # type: ignore[attr-defined]
        modules.__path__ = []
        sys.modules |= {"easyfsl.modules": modules, "easyfsl.modules.predesigned_modules": networks}
        methods = types.ModuleType("easyfsl.methods")
        methods.__path__ = [str(Path(importlib.import_module("easyfsl").__file__ or "").parent / "methods")]
        sys.modules["easyfsl.methods"] = methods
    proto = importlib.import_module("easyfsl.methods.prototypical_networks").PrototypicalNetworks
    matching = importlib.import_module("easyfsl.methods.matching_networks").MatchingNetworks
    return types.SimpleNamespace(PrototypicalNetworks=proto, MatchingNetworks=matching)
