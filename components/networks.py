"""Backbones: inputs in, feature vectors out. Safe to call statelessly, with weights of one's own for every task."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from components.learning import BackboneSection


def _of_all(x: Tensor) -> Tensor:
    """Gather x from every process [P, ...]: with gloo half the time of its sum, and sums are small here."""
    every = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(every, x)
    return torch.stack(every)


class _Shared(torch.autograd.Function):
    """Batch normalisation of x [N, C, H, W] by mean and variance [C] over all processes, each of which holds as much and has a loss of its own.

    Gradients as in Ioffe and Szegedy 2015, arXiv:1502.03167, sec. 3. torch's own SyncBatchNorm needs GPUs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        blank = torch.zeros_like(weight)  # left as it is; makes the statistics as exact as the weight, where x is not
        own = torch.stack(torch.batch_norm_update_stats(x, blank, blank.clone(), 0.0))  # mean and variance
        means, variances = _of_all(own).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        fixed = torch.ops.aten.native_batch_norm_backward  # as if mean and variance were constants
        to_x, to_weight, to_bias = fixed(gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True])
        inverse = (variance + ctx.eps).rsqrt()
        per_item = _of_all(torch.stack([to_weight, to_bias])).mean(0) * (x.shape[1] / x.numel())
        slope, shift = weight * inverse * per_item  # what flows through them
        slope = slope * inverse
        shape = (-1, 1, 1)
        return to_x.addcmul_(x, slope.view(shape), value=-1).sub_((shift - mean * slope).view(shape)), to_weight, to_bias, None


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics may also be those of the batch at hand, always (`by_task`), without being kept.

    While training, they may be those of the batches of all processes together (`shared`).
    """

    by_task = shared = False

    def forward(self, x: Tensor) -> Tensor:
        if self.by_task:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        if not (self.shared and self.training):
            return super().forward(x)
        normed: tuple[Tensor, Tensor, Tensor] = _Shared.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        y, mean, variance = normed
        count = x.numel() // x.shape[1] * dist.get_world_size()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return y


def _norm(kind: str, filters: int) -> nn.Module:
    if kind == "batch":
        return BatchNorm(filters)
    # Wu and He 2018, arXiv:1803.08494: four channels a group here; instance normalisation is one channel a group.
    return nn.GroupNorm(filters if kind == "instance" else max(1, filters // 4), filters)


class Separable(nn.Sequential):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution of all of them, with nothing in between.

    Howard et al. 2017, arXiv:1704.04861, sec. 3.1, who normalise in between too: for wide layers a ninth of the parameters and operations.
    """

    def __init__(self, inputs: int, filters: int) -> None:
        depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=nn.Conv2d(inputs, filters, 1, bias=False)))


def maxima(x: Tensor) -> Tensor:
    """Return the maxima of 2x2 pixels [N, C, H/2, W/2] of maps [N, C, H, W]; an odd last row or column is left out.

    On a processor, where nothing is differentiated, of two rows and then of two columns: torch's pooling also keeps where each maximum lies and takes
    twice as long (benchmarks/encoding.py), but is the faster one to go back through.
    """
    if torch.is_grad_enabled() or not x.is_cpu or min(x.shape[-2:]) < 2:  # of one pixel torch says that there is no maximum
        return F.max_pool2d(x, 2)
    height, width = (side // 2 * 2 for side in x.shape[-2:])
    rows = torch.maximum(x[..., 0:height:2, :width], x[..., 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


class Block(nn.Module):
    """3x3 convolution, 2x2 maximum, normalisation, ReLU.

    Pooling comes before normalisation, which then reads a quarter of the pixels (measured: 1.3 to 2 times faster training on two cores).
    Its statistics are those of the maxima, so it is another network than the usual one, of the same size.
    """

    def __init__(self, inputs: int, filters: int, pool: bool, norm: str, separable: bool) -> None:
        super().__init__()
        self.conv = Separable(inputs, filters) if separable else nn.Conv2d(inputs, filters, 3, padding=1, bias=False)
        self.norm = _norm(norm, filters)
        self.pool = pool

    def forward(self, x: Tensor, pool: bool = True) -> Tensor:
        x = self.conv(x)
        if self.pool and pool:
            x = maxima(x)
        return F.relu(self.norm(x))


class ConvNet(nn.Module):
    """Blocks of `widths` filters; features [N, dim] flattened, or averaged over the remaining pixels."""

    # One task after the other: side by side, convolutions with weights of their own keep every task's activations.
    tasks_at_once = 1
    frozen = False

    def __init__(self, section: BackboneSection, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        section.check_reads(input_shape)
        channels, height, width = input_shape
        widths = [channels, *section.widths]
        full = len(section.widths) - section.separable
        sides = zip(widths, section.widths, section.pool, strict=False)
        self.blocks = nn.ModuleList(Block(a, b, p, section.norm, i >= full) for i, (a, b, p) in enumerate(sides))
        self.average = section.head == "average"
        area = (height >> sum(section.pool)) * (width >> sum(section.pool))
        self.dim = section.widths[-1] * (1 if self.average else area)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3)) if self.average else x.flatten(1)

    def maps(self, x: Tensor, unpooled: int) -> Tensor:
        """Return feature maps [N, F, h, w], the last `unpooled` blocks without their maximum."""
        for i, block in enumerate(self.blocks):
            x = block(x, pool=i < len(self.blocks) - unpooled)
        return x

    def per_task(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return features [T, N, dim] of inputs [T, N, ...] under weights with leading dimension T, one task after the other."""
        return torch.stack([functional_call(self, {k: w[t] for k, w in weights.items()}, (inputs,)) for t, inputs in enumerate(x)])


class Mlp(nn.Module):
    """Linear layers of `widths` units, each with its activation: features [N, dim] of vectors [N, D]."""

    tasks_at_once = 1_000_000  # small matrices: all tasks in one batched product, measured many times faster than in turn
    frozen = False

    def __init__(self, section: BackboneSection, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        section.check_reads(input_shape)
        widths = [*input_shape, *section.widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, section.widths, strict=False))
        self.activation = torch.tanh if section.activation == "tanh" else torch.relu
        self.dim = section.widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return x

    def per_task(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return features [T, N, dim] of inputs [T, N, D] under weights with leading dimension T, by batched matrix products."""
        for i in range(len(self.layers)):
            weight, bias = weights[f"layers.{i}.weight"].transpose(1, 2), weights[f"layers.{i}.bias"].unsqueeze(1)
            # One input is no matrix: as a product of elements its gradient takes a quarter of the time.
            x = self.activation(torch.addcmul(bias, x, weight) if x.shape[-1] == 1 else torch.baddbmm(bias, x, weight))
        return x


Backbone = ConvNet | Mlp


def statistics(backbone: nn.Module, kind: str, training: bool) -> None:
    """Choose whose statistics batch normalisation uses.

    `running`: those of pre-training, fixed. `meta_batch`: those of everything in the batch while training, their running mean after.
    `task`: those of the task at hand, also at test (transductive: one query then changes another's prediction). A frozen backbone keeps its own.
    """
    backbone.train(training and kind == "meta_batch" and not getattr(backbone, "frozen", False))
    for module in backbone.modules():
        if isinstance(module, BatchNorm):
            module.by_task = kind == "task"


def share_statistics(learner: nn.Module, shared: bool) -> None:
    """Choose whether batch normalisation in training reads the batches of all processes together, as one process does with the whole batch."""
    for module in learner.modules():
        if isinstance(module, BatchNorm):
            module.shared = shared


def freeze(backbone: nn.Module) -> None:
    """Keep parameters and statistics as they are, whatever is trained around them."""
    backbone.requires_grad_(False)
    backbone.frozen = True  # type: ignore[assignment]


def channels_last(x: Tensor) -> Tensor:
    """Lay pictures [N, C, H, W] out channels last: measured 1.5 to 2 times faster training on two cores."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def build_backbone(section: BackboneSection, input_shape: tuple[int, ...]) -> Backbone:
    """Build the backbone for inputs [C, H, W] or [D]. Raises InputError where it cannot read such inputs."""
    if section.name == "mlp":
        return Mlp(section, input_shape)
    net = ConvNet(section, input_shape)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net
