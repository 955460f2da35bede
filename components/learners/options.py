"""The options of each learner: typed, validated, standard library only. Values live in conf/learner/."""

from dataclasses import dataclass
from typing import Literal

from components.contracts import positive, require


@dataclass
class ProtoNetOptions:
    """`norm`: `running` keeps pre-training's statistics fixed; `meta_batch` takes them over the meta-batch and averages them for test."""

    distance: Literal["euclidean", "cosine"]
    scale: float
    norm: Literal["running", "meta_batch"]

    def __post_init__(self) -> None:
        positive(**{"learner.options.scale": self.scale})


@dataclass
class MamlOptions:
    """Inner loop: `inner_steps` while training, `test_steps` when adapting for good, both at rate `inner_lr`."""

    inner_steps: int
    test_steps: int
    inner_lr: float
    first_order: bool

    def __post_init__(self) -> None:
        for name in ("inner_steps", "test_steps"):
            value = getattr(self, name)
            require(value >= 0, f"learner.options.{name} must be at least 0, got {value}. 0 means no adaptation.")
        positive(**{"learner.options.inner_lr": self.inner_lr})


OPTIONS: dict[str, type] = {"protonet": ProtoNetOptions, "maml": MamlOptions, "fomaml": MamlOptions, "meta_sgd": MamlOptions}
