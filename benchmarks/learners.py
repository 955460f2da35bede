"""The inner loop against its peers: the same networks, weights, tasks and allocator, interleaved in one process on one core.

    .venv-bench/bin/python -m benchmarks.learners [device=cuda] [repeats=7]

Prints, for each piece of work, the median time of each library for one meta-training step's loss and gradient, the ratio to learn2learn
(more is faster), the peak memory above the start, and the share of this core's own ceiling that fewloop reaches: floating-point operations,
counted, over time, to the best rate of a large matrix product measured in the same process.
"""

import copy
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers
from components.gradients import in_turn
from components.learners.gradient import Anil, Maml, Reptile
from components.learners.learner import Learner
from components.learners.metric import ProtoNet
from components.learners.options import AnilOptions, InnerOptions, ProtoNetOptions
from components.learners.rules import MetaSgd
from components.learning import BackboneStartSection
from components.networks import BatchNorm, build_backbone
from components.objectives import OBJECTIVES
from components.tasks import Examples, TaskBatch
from components.training import use_fast_allocator

Step = Callable[[], None]
CONV = BackboneStartSection("conv", [64] * 4, [True] * 4, 0, "flatten", "batch", "relu", None, False)
RATE = 0.01


@dataclass(frozen=True)
class Work:
    """One piece of work: its name, and each library's step on it."""

    name: str
    steps: dict[str, Step]


def batch(tasks: int, way: int, shot: int, query: int, shape: tuple[int, ...], device: str) -> TaskBatch:
    def examples(each: int) -> Examples:
        x = torch.rand(tasks, way * each, *shape, device=device)
        y = torch.arange(way, device=device).repeat_interleave(each).expand(tasks, -1) if way > 1 else torch.randn(tasks, each, device=device)
        return Examples(x, y, way)

    return TaskBatch(examples(shot), examples(query))


class Whole(nn.Module):
    """Body and head as one module, as the peers take it."""

    def __init__(self, body: nn.Module, dim: int, outputs: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x))
        return result


def by_task(net: nn.Module) -> nn.Module:
    """Let batch normalisation take the statistics of the task at hand, as the peers' examples do."""
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.by_task = True
    return net


def fewloop_step(learner: Learner, tasks: TaskBatch) -> Step:
    parameters = list(learner.parameters())
    learner.train()

    def step() -> None:
        learner.zero_grad()
        size = learner.tasks_at_once
        loss, _ = in_turn(learner.meta_loss, parameters, tasks, size) if size < len(tasks.query.y) else learner.meta_loss(tasks)
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs, y) if y.dtype == torch.int64 else F.mse_loss(outputs.squeeze(-1), y)


def learn2learn_step(kind: str, model: Whole, tasks: TaskBatch, inner: int) -> Step:
    """The loop of learn2learn's own examples: clone, adapt, add the query loss's gradient, task by task."""
    library = peers.learn2learn()
    make = library.MetaSGD if kind == "meta_sgd" else library.MAML
    learner = make(model.head if kind == "anil" else model, lr=RATE, first_order=kind in ("fomaml", "reptile"))

    def step() -> None:
        model.zero_grad()
        learner.zero_grad()
        for t in range(len(tasks.query.y)):
            x, y, q, z = tasks.support.x[t], tasks.support.y[t], tasks.query.x[t], tasks.query.y[t]
            clone = learner.clone()
            if kind == "anil":
                features = model.body(torch.cat([x, q]))
                x, q = features[: len(x)], features[len(x) :]
            if kind == "reptile":
                x, y = torch.cat([x, q]), torch.cat([y, z])
            for _ in range(inner):
                clone.adapt(loss_of(clone(x), y))
            if kind == "reptile":
                with torch.no_grad():
                    loss_of(clone(q), z)
                    for p, moved in zip(learner.parameters(), clone.parameters(), strict=True):
                        update = (p - moved) / len(tasks.query.y)
                        p.grad = update if p.grad is None else p.grad.add_(update)
            else:
                (loss_of(clone(q), z) / len(tasks.query.y)).backward()  # type: ignore[no-untyped-call]

    return step


def higher_step(model: Whole, tasks: TaskBatch, inner: int) -> Step:
    library = peers.higher()

    def step() -> None:
        model.zero_grad()
        for t in range(len(tasks.query.y)):
            with library.innerloop_ctx(model, torch.optim.SGD(model.parameters(), RATE), copy_initial_weights=False) as (net, optimizer):
                for _ in range(inner):
                    optimizer.step(loss_of(net(tasks.support.x[t]), tasks.support.y[t]))
                (loss_of(net(tasks.query.x[t]), tasks.query.y[t]) / len(tasks.query.y)).backward()  # type: ignore[no-untyped-call]

    return step


def torchopt_step(model: Whole, tasks: TaskBatch, inner: int) -> Step:
    library = peers.torchopt()

    def step() -> None:
        model.zero_grad()
        start = library.extract_state_dict(model)
        for t in range(len(tasks.query.y)):
            optimizer = library.MetaSGD(model, lr=RATE)
            for _ in range(inner):
                optimizer.step(loss_of(model(tasks.support.x[t]), tasks.support.y[t]))
            (loss_of(model(tasks.query.x[t]), tasks.query.y[t]) / len(tasks.query.y)).backward()  # type: ignore[no-untyped-call]
            library.recover_state_dict(model, start)

    return step


def perceptron(name: str, widths: list[int], inputs: int, tasks: int, shot: int, inner: int, device: str) -> Work:
    section, shape = BackboneStartSection("mlp", widths, [], 0, "flatten", "batch", "relu", None, False), (inputs,)
    learner = Maml(build_backbone(section, shape), widths[-1], InnerOptions(inner, inner, RATE, 0.0, False, "running")).to(device)
    learner.objective = OBJECTIVES["squared_error"]
    learner.started()
    tasks_ = batch(tasks, 1, shot, shot, shape, device)
    model = Whole(copy.deepcopy(learner.backbone), widths[-1], 1).to(device)
    steps = {
        "fewloop": fewloop_step(learner, tasks_),
        "learn2learn": learn2learn_step("maml", model, tasks_, inner),
        "higher": higher_step(copy.deepcopy(model), tasks_, inner),
        "torchopt": torchopt_step(copy.deepcopy(model), tasks_, inner),
    }
    return Work(f"{name}, {tasks} tasks, {inner} step{'s' * (inner > 1)}", steps)


def convolution(kind: str, inner: int, device: str) -> Work:
    makes = {"maml": Maml, "fomaml": Maml, "meta_sgd": MetaSgd, "anil": Anil, "reptile": Reptile}
    first = kind in ("fomaml", "reptile")
    options = AnilOptions(inner, inner, RATE, 0.0, False, "meta_batch") if kind == "anil" else InnerOptions(inner, inner, RATE, 0.0, first, "task")
    net = build_backbone(CONV, (1, 28, 28))
    learner = makes[kind](net, net.dim, options).to(device)
    tasks = batch(16, 5, 1, 15, (1, 28, 28), device)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    model = Whole(by_task(plain), net.dim, 5).to(device)
    return Work(
        f"{kind}, Conv4-64, 16 tasks, {inner} step{'s' * (inner > 1)}",
        {"fewloop": fewloop_step(learner, tasks), "learn2learn": learn2learn_step(kind, model, tasks, inner)},
    )


def prototypes(device: str) -> Work:
    net = build_backbone(CONV, (1, 28, 28))
    learner = ProtoNet(net, net.dim, ProtoNetOptions("meta_batch", "euclidean", 1.0)).to(device)
    tasks = batch(1, 20, 5, 15, (1, 28, 28), device)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format).train().to(device)  # type: ignore[call-overload]
    peer = peers.easyfsl().PrototypicalNetworks(plain)

    def easyfsl() -> None:
        peer.zero_grad()
        peer.process_support_set(tasks.support.x[0], tasks.support.y[0])
        F.cross_entropy(peer(tasks.query.x[0]), tasks.query.y[0]).backward()  # type: ignore[no-untyped-call]

    def by_hand() -> None:  # learn2learn's example: one pass, means, squared distances
        plain.zero_grad()
        features = plain(torch.cat([tasks.support.x[0], tasks.query.x[0]]))
        centres = features[:100].view(20, 5, -1).mean(1)
        F.cross_entropy(-torch.cdist(features[100:], centres).square(), tasks.query.y[0]).backward()  # type: ignore[no-untyped-call]

    return Work("protonet, Conv4-64, 20-way 5-shot", {"fewloop": fewloop_step(learner, tasks), "learn2learn": by_hand, "easyfsl": easyfsl})


def timed(step: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak(step: Step, device: str) -> float:
    """Return the memory in MB that one step takes above what is held before it; on a CPU, call it in a process of its own."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = float(torch.cuda.memory_allocated())
        step()
        return float(torch.cuda.max_memory_allocated() - before) / 1e6
    before = _resident()
    step()
    return max(0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before)


def alone(function: Callable[[], float]) -> float:
    """Return function() from a child of this process: what has run before leaves its memory here, not there."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, str(function()).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    told = os.read(read, 100)
    os.close(read)
    return float(told)


def _resident() -> float:
    with open("/proc/self/statm") as file:
        return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def ceiling(device: str) -> float:
    """Return the best rate of a large matrix product, in operations a second."""
    a = torch.randn(1024, 1024, device=device)
    return 2 * 1024**3 / min(timed(lambda: torch.mm(a, a), device) for _ in range(30))


def operations(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def measure(work: Work, memory: dict[str, float], repeats: int, best: float, device: str) -> str:
    for step in work.steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in work.steps}
    for _ in range(repeats):
        for name, step in work.steps.items():
            times[name].append(timed(step, device))
    median = {name: statistics.median(t) for name, t in times.items()}
    ratios = sorted(b / a for a, b in zip(times["fewloop"], times["learn2learn"], strict=True))
    share = operations(work.steps["fewloop"]) / median["fewloop"] / best
    others = "  ".join(f"{name} {1e3 * t:.1f} ms" for name, t in median.items() if name not in ("fewloop", "learn2learn"))
    row = f"| {work.name} | {1e3 * median['fewloop']:.1f} | {1e3 * median['learn2learn']:.1f} | **{statistics.median(ratios):.2f}** "
    row += f"({ratios[0]:.2f}-{ratios[-1]:.2f}) | {memory['fewloop']:.0f} / {memory['learn2learn']:.0f} | {100 * share:.0f} % | {others} |"
    return row


def works(device: str) -> list[Callable[[], Work]]:
    listed: list[Callable[[], Work]] = [
        lambda: perceptron("maml, 1-40-40-1", [40, 40], 1, 100, 10, 5, device),
        lambda: perceptron("maml, 1-40-40-1", [40, 40], 1, 25, 10, 1, device),
        lambda: perceptron("maml, 64-64-64-1", [64, 64], 64, 64, 20, 5, device),
        lambda: perceptron("maml, 64-64-64-1", [64, 64], 64, 64, 20, 1, device),
        lambda: prototypes(device),
    ]
    for kind in ("maml", "fomaml", "meta_sgd", "anil", "reptile"):
        listed += [lambda kind=kind, inner=inner: convolution(kind, inner, device) for inner in (1, 5)]  # type: ignore[misc]
    return listed


def growth(device: str) -> str:
    """Return the memory of second-order MAML over inner steps, with and without recomputation."""

    def one(recompute: bool, inner: int) -> float:
        net = build_backbone(CONV, (1, 28, 28))
        learner = Maml(net, net.dim, InnerOptions(inner, inner, RATE, 0.0, False, "task")).to(device)
        learner.checkpoint_inner = recompute
        return peak(fewloop_step(learner, batch(2, 5, 1, 15, (1, 28, 28), device)), device)

    found = {(r, n): alone(lambda r=r, n=n: one(r, n)) for r in (False, True) for n in (5, 20)}  # type: ignore[misc]
    plain, kept = (f"{found[r, 5]:.0f} -> {found[r, 20]:.0f} MB ({found[r, 20] / found[r, 5]:.1f} times)" for r in (False, True))
    return f"maml, Conv4-64, 5 -> 20 inner steps: {plain}; with learner.checkpoint_inner=true: {kept}"


def main() -> None:
    given = dict(argument.split("=") for argument in sys.argv[1:])
    device, repeats = given.get("device", "cpu"), int(given.get("repeats", 7))
    use_fast_allocator()  # of the process: every library has it
    torch.set_num_threads(1)
    torch.manual_seed(0)
    memory = []
    for make in works(device):  # before anything has run
        names = list(make().steps)
        memory.append({n: alone(lambda make=make, n=n: peak(make().steps[n], device)) for n in names if n in ("fewloop", "learn2learn")})  # type: ignore[misc]
    told = growth(device)
    best = ceiling(device)
    print(f"torch {torch.__version__}, {device}, one thread, a matrix product reaches {best / 1e9:.0f} GFLOP/s; times in ms, memory in MB above the start\n")
    print("| work | fewloop | learn2learn | ratio (range) | memory fewloop / learn2learn | share of ceiling | others |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for make, held in zip(works(device), memory, strict=True):
        print(measure(make(), held, repeats, best, device), flush=True)
    print(f"\n{told}")


if __name__ == "__main__":
    main()
