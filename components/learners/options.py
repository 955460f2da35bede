"""The family of learners: each one's code, options and objectives. Standard library only; the options' values live in conf/learner/."""

import math
from dataclasses import dataclass
from typing import Literal

from components.inputs import positive, require


@dataclass
class EncodingOptions:
    """`norm`: `running` keeps pre-training's statistics fixed; `meta_batch` takes them over the meta-batch and averages them for test."""

    norm: Literal["running", "meta_batch"]


@dataclass
class ProtoNetOptions(EncodingOptions):
    distance: Literal["euclidean", "cosine"]
    scale: float

    def __post_init__(self) -> None:
        positive(**{"learner.options.scale": self.scale})


@dataclass
class MatchingOptions(EncodingOptions):
    """`context` switches full context embeddings on."""

    scale: float
    context: bool

    def __post_init__(self) -> None:
        positive(**{"learner.options.scale": self.scale})


@dataclass
class RelationOptions(EncodingOptions):
    hidden: int

    def __post_init__(self) -> None:
        positive(**{"learner.options.hidden": self.hidden})


@dataclass
class LocalOptions(EncodingOptions):
    """`neighbours` a descriptor; the last `unpooled` blocks keep their resolution."""

    scale: float
    neighbours: int
    unpooled: int

    def __post_init__(self) -> None:
        positive(**{"learner.options.scale": self.scale, "learner.options.neighbours": self.neighbours})
        require(self.unpooled >= 0, f"learner.options.unpooled must be at least 0, got {self.unpooled}. Set 0 to pool every block.")


@dataclass
class RidgeOptions(EncodingOptions):
    ridge: float
    scale: float

    def __post_init__(self) -> None:
        positive(**{"learner.options.ridge": self.ridge, "learner.options.scale": self.scale})


@dataclass
class LogisticOptions(RidgeOptions):
    newton_steps: int
    cg_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(**{"learner.options.newton_steps": self.newton_steps, "learner.options.cg_steps": self.cg_steps})


@dataclass
class InnerOptions:
    """Inner loop: `inner_steps` while training, `test_steps` when adapting for good, both at rate `inner_lr`.

    Where classes are told apart, the head starts at the support's class means and compares directions, at first by `scale` times their
    cosine; 0 is the papers' own start, which training from the base made worse than the base (20-way 1-shot on validation tasks: 76 to 79 %
    after, 86 % before).
    `norm`: `running` keeps pre-training's statistics; `task` takes those of the task at hand, at test as well (transductive).
    """

    inner_steps: int
    test_steps: int
    inner_lr: float
    scale: float
    first_order: bool
    norm: Literal["running", "task"]

    def __post_init__(self) -> None:
        for name in ("inner_steps", "test_steps"):
            value = getattr(self, name)
            require(value >= 0, f"learner.options.{name} must be at least 0, got {value}. 0 means no adaptation.")
        positive(**{"learner.options.inner_lr": self.inner_lr})
        require(self.scale >= 0, f"learner.options.scale must be at least 0, got {self.scale}. Set 0 for a head that starts at one learned vector.")


@dataclass
class AnilOptions(InnerOptions):
    norm: Literal["running", "meta_batch"]  # type: ignore[assignment]


@dataclass
class MamlPlusPlusOptions(InnerOptions):
    """`annealing` is the part of training with first-order gradients."""

    norm: Literal["running", "task", "per_step"]  # type: ignore[assignment]
    per_step_rates: bool
    multi_step_loss: bool
    annealing: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.annealing <= 1, f"learner.options.annealing must lie in [0, 1], got {self.annealing}. Set 0 to switch it off.")


@dataclass
class ReptileOptions(InnerOptions):
    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.first_order, "learner.options.first_order must be true for reptile, which has no second order, got false. Choose learner=maml.")


@dataclass
class ImamlOptions(InnerOptions):
    """`proximal` is lambda, the pull towards theta."""

    proximal: float
    cg_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.first_order, "learner.options.first_order must be false for imaml, whose gradient is implicit, got true. Choose learner=fomaml.")
        positive(**{"learner.options.proximal": self.proximal, "learner.options.cg_steps": self.cg_steps})


@dataclass
class AlfaOptions(InnerOptions):
    hidden: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(**{"learner.options.hidden": self.hidden})


@dataclass
class LstmOptions(AlfaOptions):
    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.first_order, "learner.options.first_order must be true for lstm, whose rule reads gradients as numbers, got false. Choose learner=alfa.")


@dataclass
class CnpOptions(EncodingOptions):
    width: int

    def __post_init__(self) -> None:
        positive(**{"learner.options.width": self.width})


@dataclass
class SetTransformerOptions(CnpOptions):
    heads: int
    layers: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(**{"learner.options.heads": self.heads, "learner.options.layers": self.layers})
        require(self.width % self.heads == 0, f"learner.options.width must be a multiple of heads={self.heads}, got {self.width}. Change one of them.")


@dataclass
class SnailOptions(CnpOptions):
    """`reach`: dilated layers a block, which together see 2^reach examples back."""

    blocks: int
    reach: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(**{"learner.options.blocks": self.blocks, "learner.options.reach": self.reach})


@dataclass
class MannOptions(CnpOptions):
    slots: int
    decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(**{"learner.options.slots": self.slots, "learner.options.decay": self.decay})


@dataclass
class PolicyOptions:
    """A round is `episodes` long. `discount` and `gae` weigh what comes later; what was played serves `updates` outer steps; `std` of actions at first.

    `explore`: the least deviation, or share of random choices, while gathering. `belief`: how much it counts how far the context is from what is hidden.
    """

    episodes: int
    discount: float
    gae: float
    updates: int
    std: float
    belief: float
    explore: float

    def __post_init__(self) -> None:
        positive(**{f"learner.options.{name}, base.policy.{name}": getattr(self, name) for name in ("episodes", "updates", "std")})
        told = "learner.options.belief, base.policy.belief must be 0 or greater, how much what is believed counts beside returns"
        require(0 <= self.belief < math.inf, f"{told}, got {self.belief}. Use 0 or 10.")
        told = "learner.options.explore, base.policy.explore must lie in (0, 1), the least deviation or share of random choices"
        require(0 < self.explore < 1, f"{told}, got {self.explore}. Use 0.1.")
        for name in ("discount", "gae"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"learner.options.{name}, base.policy.{name} must lie in [0, 1], got {value}. Use 0.99.")


@dataclass
class GradientPolicyOptions(PolicyOptions):
    """Steps begin at rate `inner_lr`, which is learned. `moves`: what they move, `weights` or the `context`."""

    inner_lr: float
    first_order: bool
    moves: str

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(**{"learner.options.inner_lr, base.policy.inner_lr": self.inner_lr})
        told = "learner.options.moves, base.policy.moves must be context or weights"
        require(self.moves in ("context", "weights"), f"{told}, got {self.moves!r}. Use weights for MAML, context for CAVIA.")
        told = "learner.options.belief, base.policy.belief must be 0 where weights move: it is how far the context is from what is hidden"
        require(self.moves == "context" or self.belief == 0, f"{told}, got {self.belief}. Set it to 0.")


@dataclass
class MemoryPolicyOptions(PolicyOptions):
    """`questions` are asked of every `every`-th step; what is read has `width` numbers."""

    width: int
    questions: int
    every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(**{f"learner.options.{name}": getattr(self, name) for name in ("width", "questions", "every")})


ALL = ("cross_entropy", "squared_error", "ranking")
CLASSES, VALUES, RETURN = ("cross_entropy",), ("squared_error", "ranking"), ("return",)


@dataclass(frozen=True)
class Family:
    """Where a learner's code is, what options it takes, which objectives it can learn, and why not the others.

    `inner`: it adapts by the inner loop of gradient.py. `encodes`: one encoder serves all tasks. `centroids`: it keeps one mean a class, by cosine.
    `beside_start`: meta-training tunes something beside the weights that it starts from.
    """

    module: str
    kind: str
    options: type
    objectives: tuple[str, ...] = ALL
    why: str = ""
    inner: bool = False
    encodes: bool = True
    centroids: bool = False
    beside_start: bool = True

    @property
    def path(self) -> str:
        return f"components.learners.{self.module}"


_MEANS = "it keeps one mean a class, and values have no classes"
_PLAYS = "it learns from episodes that it plays itself"
FAMILIES: dict[str, Family] = {
    "maml": Family("gradient", "Maml", InnerOptions, inner=True, encodes=False),
    "fomaml": Family("gradient", "Maml", InnerOptions, inner=True, encodes=False),
    "finetune": Family("gradient", "Maml", InnerOptions, inner=True, encodes=False),
    "anil": Family("gradient", "Anil", AnilOptions, inner=True),
    "meta_sgd": Family("rules", "MetaSgd", InnerOptions, inner=True, encodes=False),
    "reptile": Family("gradient", "Reptile", ReptileOptions, inner=True, encodes=False, beside_start=False),
    "imaml": Family("gradient", "Imaml", ImamlOptions, inner=True, encodes=False, beside_start=False),
    "mamlpp": Family("rules", "MamlPlusPlus", MamlPlusPlusOptions, inner=True, encodes=False),
    "meta_curvature": Family("rules", "MetaCurvature", InnerOptions, inner=True, encodes=False),
    "alfa": Family("rules", "Alfa", AlfaOptions, inner=True, encodes=False),
    "lstm": Family("rules", "LstmLearner", LstmOptions, inner=True, encodes=False),
    "ridge": Family("closed_form", "Ridge", RidgeOptions),
    "logistic": Family("closed_form", "Logistic", LogisticOptions, CLASSES, "a logistic head tells classes apart"),
    "rfs": Family("closed_form", "Logistic", LogisticOptions, CLASSES, "a logistic head tells classes apart"),
    "protonet": Family("metric", "ProtoNet", ProtoNetOptions, CLASSES, _MEANS, centroids=True),
    "base": Family("metric", "ProtoNet", ProtoNetOptions, CLASSES, _MEANS, centroids=True),
    "matching": Family("metric", "Matching", MatchingOptions),
    "relation": Family("metric", "Relation", RelationOptions, CLASSES, "it scores classes, and values have none"),
    "local": Family("metric", "Local", LocalOptions, CLASSES, "it compares places of feature maps class by class"),
    "mann": Family("memory", "Mann", MannOptions),
    "snail": Family("memory", "Snail", SnailOptions),
    "cnp": Family("memory", "Cnp", CnpOptions),
    "set_transformer": Family("memory", "SetTransformer", SetTransformerOptions),
    "policy_gradient": Family("policy_gradient", "GradientPolicy", GradientPolicyOptions, RETURN, _PLAYS, encodes=False),
    "policy_memory": Family("policy", "MemoryPolicy", MemoryPolicyOptions, RETURN, _PLAYS, encodes=False),
}
BASES = {
    "cross_entropy": ("metric", "CosineBase"),
    "squared_error": ("closed_form", "LinearBase"),
    "ranking": ("closed_form", "LinearBase"),
    "return": ("policy_gradient", "PolicyBase"),
}


def family(name: str) -> Family:
    """Return a learner's family. Raises InputError for a name that is not known."""
    require(name in FAMILIES, f"learner must be one of {', '.join(sorted(FAMILIES))}, got {name!r}. Choose one of them.")
    return FAMILIES[name]
