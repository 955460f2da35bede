"""The same weights and tasks through fewloop and its peers, in float64: values and meta-gradients must agree to 1e-6, relative.

    .venv-bench/bin/python -m benchmarks.agreement

Smooth activations: with ReLU and maximum pooling, rounding flips selections and a gradient moves by 1e-3 with nothing wrong.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from components.learners.gradient import Anil, Maml
from components.learners.metric import Matching, ProtoNet
from components.learners.options import AnilOptions, InnerOptions, MatchingOptions, ProtoNetOptions
from components.learners.rules import MetaSgd
from components.tasks import Examples, TaskBatch

WAY, RATE = 3, 0.2


class Smooth(nn.Module):
    """Two layers without kinks."""

    tasks_at_once = 1_000

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def per_task(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        for name in ("first", "second"):
            x = torch.tanh(x @ weights[f"{name}.weight"].transpose(1, 2) + weights[f"{name}.bias"].unsqueeze(1))
        return x


class Whole(nn.Module):
    """Body and head as one module, as the peers take it."""

    def __init__(self, learner: Maml) -> None:
        super().__init__()
        self.body = copy.deepcopy(learner.backbone)
        self.head = nn.Linear(5, WAY).double()
        self.head.weight.data = learner.head.detach().expand(WAY, -1).clone()
        self.head.bias.data = learner.head_bias.detach().expand(WAY).clone()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x))
        return result


def batch() -> TaskBatch:
    def examples(each: int) -> Examples:
        return Examples(torch.randn(4, WAY * each, 6).double(), torch.arange(WAY).repeat_interleave(each).expand(4, -1), WAY)

    return TaskBatch(examples(2), examples(3))


def ours(learner: Maml, tasks: TaskBatch) -> tuple[float, dict[str, Tensor]]:
    loss = learner.meta_loss(tasks)[0]
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}
    return loss.item(), {n.removeprefix("backbone."): g for n, g in gradients.items()}


def theirs(model: nn.Module, tasks: TaskBatch, adapted_loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss and gradients of a peer that adapts one task at a time; the head's rows share one start."""
    model.zero_grad()
    parts = [adapted_loss(tasks.support.x[t], tasks.support.y[t], tasks.query.x[t], tasks.query.y[t]) for t in range(4)]
    loss = torch.stack(parts).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    names = [n.removeprefix("module.").removeprefix("body.") for n, _ in model.named_parameters() if not n.startswith("lrs.")]
    found = {}
    for name, parameter in model.named_parameters():
        short = name.removeprefix("module.").removeprefix("body.")
        rate = short.startswith("lrs.")  # of Meta-SGD, in the order of the parameters
        of = names[int(short.removeprefix("lrs."))] if rate else short
        of = {"head.weight": "head", "head.bias": "head_bias"}.get(of, of)
        if parameter.grad is not None:
            value = parameter.grad.sum(0) if of.startswith("head") else parameter.grad
            found[f"rates.{of.replace('.', '/')}" if rate else of] = value
    return loss.item(), found


def compare(name: str, a: tuple[float, dict[str, Tensor]], b: tuple[float, dict[str, Tensor]]) -> None:
    worst = abs(a[0] - b[0]) / abs(b[0])
    largest = max(g.abs().max().item() for g in b[1].values())
    for parameter, value in b[1].items():
        worst = max(worst, (a[1][parameter] - value).abs().max().item() / largest)
    print(f"{name:50s} largest relative difference {worst:.1e}")
    assert b[1], f"{name}: nothing was compared"
    assert worst < 1e-6, f"{name} disagrees by {worst:.1e}"


def maml_with_learn2learn(kind: str, steps: int) -> None:
    torch.manual_seed(0)
    l2l, first_order = peers.learn2learn(), kind == "fomaml"
    options = InnerOptions(steps, steps, RATE, 0.0, first_order, "running")
    learner: Maml = {"meta_sgd": MetaSgd}.get(kind, Maml)(Smooth(), 5, options).double().train()
    nn.init.normal_(learner.head)
    model = (l2l.MetaSGD if kind == "meta_sgd" else l2l.MAML)(Whole(learner), lr=RATE, first_order=first_order)

    def adapted(x: Tensor, y: Tensor, q: Tensor, z: Tensor) -> Tensor:
        clone = model.clone()
        for _ in range(steps):
            clone.adapt(F.cross_entropy(clone(x), y))
        return F.cross_entropy(clone(q), z)

    tasks = batch()
    compare(f"{kind} with learn2learn, {steps} steps", ours(learner, tasks), theirs(model, tasks, adapted))


def anil_with_learn2learn(steps: int) -> None:
    torch.manual_seed(1)
    learner = Anil(Smooth(), 5, AnilOptions(steps, steps, RATE, 0.0, False, "running")).double().train()
    nn.init.normal_(learner.head)
    whole = Whole(learner)
    head = peers.learn2learn().MAML(whole.head, lr=RATE)

    def adapted(x: Tensor, y: Tensor, q: Tensor, z: Tensor) -> Tensor:
        clone = head.clone()
        for _ in range(steps):
            clone.adapt(F.cross_entropy(clone(whole.body(x)), y))
        return F.cross_entropy(clone(whole.body(q)), z)

    tasks = batch()
    compare(f"anil with learn2learn, {steps} steps", ours(learner, tasks), theirs(whole, tasks, adapted))


def maml_with(library: str, steps: int) -> None:
    torch.manual_seed(2)
    learner = Maml(Smooth(), 5, InnerOptions(steps, steps, RATE, 0.0, False, "running")).double().train()
    nn.init.normal_(learner.head)
    model = Whole(learner)

    def with_higher(x: Tensor, y: Tensor, q: Tensor, z: Tensor) -> Tensor:
        with peers.higher().innerloop_ctx(model, torch.optim.SGD(model.parameters(), RATE), copy_initial_weights=False) as (net, optimizer):
            for _ in range(steps):
                optimizer.step(F.cross_entropy(net(x), y))
            result: Tensor = F.cross_entropy(net(q), z)
            return result

    def with_torchopt(x: Tensor, y: Tensor, q: Tensor, z: Tensor) -> Tensor:
        library = peers.torchopt()
        optimizer = library.MetaSGD(model, lr=RATE)
        start = library.extract_state_dict(model)
        for _ in range(steps):
            optimizer.step(F.cross_entropy(model(x), y))
        result: Tensor = F.cross_entropy(model(q), z)
        library.recover_state_dict(model, start)
        return result

    tasks = batch()
    compare(f"maml with {library}, {steps} steps", ours(learner, tasks), theirs(model, tasks, {"higher": with_higher, "torchopt": with_torchopt}[library]))


def metric_with_easyfsl() -> None:
    torch.manual_seed(3)
    library: Any = peers.easyfsl()
    tasks = batch()
    proto = ProtoNet(nn.Identity(), 6, ProtoNetOptions("running", "euclidean", 1.0)).double().eval()
    peer = library.PrototypicalNetworks(nn.Identity())
    matching = Matching(nn.Identity(), 6, MatchingOptions("running", 1.0, True)).double().eval()
    other = library.MatchingNetworks(nn.Identity(), feature_dimension=6).double()
    other.support_features_encoder.load_state_dict(matching.support_lstm.state_dict())
    other.query_features_encoding_cell.load_state_dict(matching.query_lstm.state_dict())
    chosen = worst = 0.0
    with torch.no_grad():
        logits, keys = proto(tasks), matching.adapt(tasks.support)["keys"]
        read = matching._in_context(tasks.query.x, keys)
        for t in range(4):
            peer.process_support_set(tasks.support.x[t], tasks.support.y[t])
            wanted = peer(tasks.query.x[t])  # minus the distance: the order of classes is that of minus its square
            chosen = max(chosen, (logits[t].argsort(-1) != wanted.argsort(-1)).double().mean().item())
            other.process_support_set(tasks.support.x[t], tasks.support.y[t])
            worst = max(worst, (keys[t] - other.contextualized_support_features).abs().max().item())
            worst = max(worst, (read[t] - other.encode_query_features(tasks.query.x[t])).abs().max().item())
    print(f"{'protonet with easyfsl, order of the classes':50s} share that differs {chosen:.1e}")
    print(f"{'matching with easyfsl, both context embeddings':50s} largest difference {worst:.1e}")
    assert chosen == 0 and worst < 1e-9


def main() -> None:
    for steps in (1, 5):
        for kind in ("maml", "fomaml", "meta_sgd"):
            maml_with_learn2learn(kind, steps)
        anil_with_learn2learn(steps)
        for library in ("higher", "torchopt"):
            maml_with(library, steps)
    metric_with_easyfsl()


if __name__ == "__main__":
    main()
