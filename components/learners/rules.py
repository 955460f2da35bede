"""Learned update rules: what an inner step does to the gradient is itself meta-learned, in the inner loop of gradient.py."""

import torch
from torch import Tensor, nn

from components.learners.gradient import Maml
from components.learners.learner import Adapted
from components.learners.options import AlfaOptions, InnerOptions, LstmOptions, MamlPlusPlusOptions
from components.tasks import TaskBatch


def shapes_of(backbone: nn.Module, dim: int) -> dict[str, torch.Size]:
    """Return the shape of every tensor that adaptation moves, one row of the head."""
    return {name: p.shape for name, p in backbone.named_parameters()} | {"head": torch.Size([dim]), "head_bias": torch.Size([])}


def key(name: str) -> str:
    """Return a parameter's name as a ParameterDict takes it: without dots."""
    return name.replace(".", "/")


class LearnedRule(Maml):
    """A learner whose step is meta-learned: it gets the gradient as it is."""

    plain = False

    def scale(self) -> float:
        return 1.0


class MetaSgd(LearnedRule):
    """Meta-SGD (Li et al. 2017, arXiv:1707.09835, Alg. 1): a learned rate for every parameter; the rates are theta_meta."""

    theta_meta = ("log_scale", "rates.")

    def __init__(self, backbone: nn.Module, dim: int, options: InnerOptions) -> None:
        super().__init__(backbone, dim, options)
        self.rates = nn.ParameterDict({key(n): nn.Parameter(torch.full(s, options.inner_lr)) for n, s in shapes_of(backbone, dim).items()})

    def step(self, weights: Adapted, gradients: Adapted, loss: Tensor, memory: Adapted, index: int) -> tuple[Adapted, Adapted]:
        return {name: w - self.rates[key(name)] * gradients[name] for name, w in weights.items()}, memory


class MamlPlusPlus(Maml):
    """MAML++ (Antoniou et al. 2019, arXiv:1810.09502, sec. 4), each part by its own switch.

    Per-layer per-step rates (`per_step_rates`, eq. 4 there), the loss after every step (`multi_step_loss`, eq. 3, its weights moving to
    the last step over the first third of training), per-step batch statistics, scales and shifts (`norm=per_step`), and first-order
    gradients for the first `annealing` part of training. Steps beyond those trained use the last step's values.
    """

    theta_meta = ("log_scale", "rates.", "norms.")
    plain = False
    options: MamlPlusPlusOptions

    def __init__(self, backbone: nn.Module, dim: int, options: MamlPlusPlusOptions) -> None:
        super().__init__(backbone, dim, options)
        count = max(1, options.inner_steps)
        if options.per_step_rates:
            self.rates = nn.ParameterDict({key(n): nn.Parameter(torch.full((count,), options.inner_lr)) for n in shapes_of(backbone, dim)})
        self.norms = nn.ParameterDict()
        if options.norm == "per_step":
            for name, module in backbone.named_modules():
                if isinstance(module, nn.BatchNorm2d):
                    for part in ("weight", "bias"):
                        self.norms[key(f"{name}.{part}")] = nn.Parameter(getattr(module, part).detach().repeat(count + 1, 1))
                    for part in ("running_mean", "running_var"):
                        self.register_buffer(_buffer(f"{name}.{part}"), getattr(module, part).repeat(count + 1, 1))

    def train(self, mode: bool = True) -> "MamlPlusPlus":
        super().train(mode)
        if self.options.norm == "per_step" and not getattr(self.backbone, "frozen", False):
            self.backbone.train(mode)
        return self

    def started(self) -> None:
        """Begin every step's scales, shifts and statistics where the backbone's are."""
        super().started()
        state = self.backbone.state_dict()
        with torch.no_grad():
            for name, into in [*self.norms.items(), *((n.removeprefix("step/"), b) for n, b in self.named_buffers() if n.startswith("step/"))]:
                into.copy_(state[name.replace("/", ".")].expand_as(into))

    def body(self, tasks: int) -> Adapted:
        return {n: w for n, w in super().body(tasks).items() if key(n) not in self.norms}

    def features(self, weights: Adapted, x: Tensor, index: int) -> Tensor:
        if not self.norms:
            return super().features(weights, x, index)
        row = min(index, self.options.inner_steps)
        own = {n.replace("/", "."): p[row].expand(x.shape[0], -1) for n, p in self.norms.items()}
        # The very rows, so that training updates them in place.
        own |= {n.removeprefix("step/").replace("/", "."): b[row].expand(x.shape[0], -1) for n, b in self.named_buffers() if n.startswith("step/")}
        return super().features({**weights, **own}, x, index)

    def scale(self) -> float:
        return 1.0 if self.options.per_step_rates else super().scale()

    def step(self, weights: Adapted, gradients: Adapted, loss: Tensor, memory: Adapted, index: int) -> tuple[Adapted, Adapted]:
        if not self.options.per_step_rates:
            return super().step(weights, gradients, loss, memory, index)
        row = min(index, self.options.inner_steps - 1)
        return {n: w - self.rates[key(n)][row] * gradients[n] for n, w in weights.items()}, memory

    def first_order(self) -> bool:
        return self.options.first_order or (self.training and self.progress < self.options.annealing)

    def step_weights(self) -> list[float]:
        """Return the weight of the query loss after each step: equal at first, the last step's alone from a third of training on."""
        steps = self.options.inner_steps
        rest = (1 - min(1.0, 3 * self.progress)) / steps
        return [rest] * (steps - 1) + [1 - rest * (steps - 1)]

    def meta_loss(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.options.multi_step_loss or self.options.inner_steps < 2 or self.progress >= 1 / 3:
            return super().meta_loss(batch)
        weights = self.start(batch.support)
        memory, total = self.memory(weights), torch.zeros(())
        metrics: dict[str, Tensor] = {}
        for index, share in enumerate(self.step_weights()):
            weights, memory = self.descend(weights, memory, batch.support, range(index, index + 1), graph=True)
            loss, metrics = self.objective.loss_and_metrics(self.outputs(weights, batch.query.x, index + 1), batch.query.y)
            total = total.to(loss) + share * loss
        return total, metrics


class MetaCurvature(LearnedRule):
    """Meta-Curvature (Park and Oliva 2019, arXiv:1902.03356, eq. 9-11): gradients are turned by learned matrices, one a mode.

    A convolution's gradient [out, in, kernel] is multiplied along each of its three modes, a matrix along both, a vector along its one;
    the head, whose number of rows varies, along its features. The matrices start as identities: the first step is MAML's.
    """

    theta_meta = ("log_scale", "curvature.")

    def __init__(self, backbone: nn.Module, dim: int, options: InnerOptions) -> None:
        super().__init__(backbone, dim, options)
        self.curvature = nn.ParameterDict()
        for name, shape in shapes_of(backbone, dim).items():
            for mode, size in enumerate(_modes(shape)):
                self.curvature[f"{key(name)}:{mode}"] = nn.Parameter(torch.eye(size))

    def step(self, weights: Adapted, gradients: Adapted, loss: Tensor, memory: Adapted, index: int) -> tuple[Adapted, Adapted]:
        return {n: w - self.options.inner_lr * self._turned(n, gradients[n]) for n, w in weights.items()}, memory

    def _turned(self, name: str, gradient: Tensor) -> Tensor:
        if name == "head_bias":
            return gradient
        if name == "head":
            turned: Tensor = gradient @ self.curvature["head:0"]
            return turned
        found = gradient.flatten(3) if gradient.ndim > 3 else gradient  # [T, out, in, kernel], [T, out, in] or [T, out]
        for mode in range(found.ndim - 1):
            found = (found.transpose(mode + 1, -1) @ self.curvature[f"{key(name)}:{mode}"]).transpose(mode + 1, -1)
        return found.reshape(gradient.shape)


def _modes(shape: torch.Size) -> list[int]:
    """Return the size of each mode: a convolution's two kernel sides count as one."""
    return [*shape[:2], shape[2:].numel()] if len(shape) > 2 else list(shape)


class Alfa(LearnedRule):
    """ALFA (Baik et al. 2020, arXiv:2011.00209, eq. 3-5): each step's rates and decays come from the state of the task.

    A small network reads the mean of every tensor and of its gradient, and gives each tensor a rate alpha and a decay beta:
    w <- beta w - alpha g. Its last layer starts at zero, where alpha is `inner_lr` and beta 1: the first step is MAML's.
    """

    theta_meta = ("log_scale", "generator.")

    def __init__(self, backbone: nn.Module, dim: int, options: AlfaOptions) -> None:
        super().__init__(backbone, dim, options)
        count = len(shapes_of(backbone, dim))
        self.generator = nn.Sequential(
            nn.Linear(2 * count, options.hidden), nn.ReLU(), nn.Linear(options.hidden, options.hidden), nn.ReLU(), nn.Linear(options.hidden, 2 * count)
        )
        nn.init.zeros_(self.generator[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.generator[-1].bias)  # type: ignore[arg-type]

    def step(self, weights: Adapted, gradients: Adapted, loss: Tensor, memory: Adapted, index: int) -> tuple[Adapted, Adapted]:
        state = [w.flatten(1).mean(1) for w in weights.values()] + [g.flatten(1).mean(1) for g in gradients.values()]
        alpha, beta = self.generator(torch.stack(state, 1)).chunk(2, 1)
        moved = {}
        for i, (name, w) in enumerate(weights.items()):
            each = (-1, *([1] * (w.ndim - 1)))
            moved[name] = (1 + beta[:, i]).view(each) * w - self.options.inner_lr * (1 + alpha[:, i]).view(each) * gradients[name]
        return moved, memory


class LstmLearner(LearnedRule):
    """The LSTM meta-learner (Ravi and Larochelle 2017, ICLR, eq. 3-5): the weights are the cell state of a learned recurrence.

    w <- f w - i g, the gates f and i of every coordinate from its gradient, the task's loss, its weight and its last gates, by one set of
    gate parameters for all coordinates. Gradient and loss enter as (log size, sign) (Andrychowicz et al. 2016, arXiv:1606.04474,
    app. A) and as constants (sec. 3.3 of the former). The gates start at f near 1 and i near `inner_lr`. theta is the learned start c_0.
    """

    theta_meta = ("log_scale", "gates.")

    def __init__(self, backbone: nn.Module, dim: int, options: LstmOptions) -> None:
        super().__init__(backbone, dim, options)
        self.gates = nn.ModuleDict({"hidden": nn.Linear(7, options.hidden), "out": nn.Linear(options.hidden, 2)})
        nn.init.normal_(self.gates["out"].weight, std=0.01)  # type: ignore[arg-type]
        rate = torch.tensor(options.inner_lr).clamp(1e-4, 1 - 1e-4)
        self.gates["out"].bias.data = torch.stack([torch.tensor(6.0), torch.logit(rate)])  # type: ignore[union-attr]

    def memory(self, weights: Adapted) -> Adapted:
        return {f"{gate}/{name}": torch.zeros_like(w) for name, w in weights.items() for gate in ("forget", "input")}

    def step(self, weights: Adapted, gradients: Adapted, loss: Tensor, memory: Adapted, index: int) -> tuple[Adapted, Adapted]:
        moved: Adapted = {}
        state: Adapted = {}
        told = _log_and_sign(loss.detach())
        for name, w in weights.items():
            g = gradients[name].detach()
            each = (*w.shape, 2)
            seen = [_log_and_sign(g), told.view(-1, *([1] * (w.ndim - 1)), 2).expand(each), w.unsqueeze(-1)]
            seen += [memory[f"{gate}/{name}"].unsqueeze(-1) for gate in ("forget", "input")]
            forget, rate = self.gates["out"](torch.tanh(self.gates["hidden"](torch.cat(seen, -1)))).sigmoid().unbind(-1)
            moved[name] = forget * w - rate * gradients[name]
            state |= {f"forget/{name}": forget, f"input/{name}": rate}
        return moved, state

    def first_order(self) -> bool:
        return True


def _log_and_sign(x: Tensor, p: float = 10.0) -> Tensor:
    """Return (log |x| / p, sign x) where |x| >= e^-p, else (-1, e^p x): numbers of very different size on one scale. [...] -> [..., 2]."""
    large = x.abs() >= torch.exp(torch.tensor(-p))
    log = torch.where(large, x.abs().clamp_min(1e-30).log() / p, -torch.ones_like(x))
    return torch.stack([log, torch.where(large, x.sign(), x * torch.exp(torch.tensor(p)).to(x))], -1)


def _buffer(name: str) -> str:
    return "step/" + name.replace(".", "/")
