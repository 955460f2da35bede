"""Features of pictures where nothing is differentiated: a teacher's in distillation, everybody's in evaluation and serving.

    python -m benchmarks.encoding [repeats=15]

Against the same blocks of torch's own layers (Conv2d, MaxPool2d, BatchNorm2d, ReLU), of the same weights and layout, interleaved in one process on one
core; both give the same numbers.
"""

import statistics
import sys

import torch
from torch import nn

from benchmarks.learners import timed
from components.learning import BackboneSection
from components.networks import Block, ConvNet, build_backbone
from components.training import use_fast_allocator
from flows.config import load

PICTURES = (40, 400)


def plain(net: ConvNet) -> nn.Module:
    """Return the same network of torch's own layers."""
    blocks = []
    for block in net.blocks:
        assert isinstance(block, Block)
        blocks += [block.conv, *([nn.MaxPool2d(2)] if block.pool else []), block.norm, nn.ReLU()]
    return nn.Sequential(*blocks, *([nn.AdaptiveAvgPool2d(1)] if net.average else []), nn.Flatten())


def networks() -> dict[str, tuple[BackboneSection, int]]:
    """Return backbones that experiments use, and the side of the pictures that they read."""
    default, omniglot = load(), load(["experiment=omniglot"])
    return {
        "glyphs, teacher": (default.backbone, default.domain.source["size"]),
        "omniglot, teacher": (omniglot.backbone, omniglot.domain.source["size"]),
        "omniglot, student 0": (omniglot.student.backbone(0, omniglot.backbone), omniglot.domain.source["size"]),
    }


@torch.no_grad()
def main() -> None:
    repeats = int(dict(argument.split("=") for argument in sys.argv[1:]).get("repeats", 15))
    use_fast_allocator()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| network | pictures | precision | fewloop, ms | torch's layers, ms | ratio (range) |\n| --- | --- | --- | --- | --- | --- |")
    for name, (section, side) in networks().items():
        own = build_backbone(section, (1, side, side)).eval()
        assert isinstance(own, ConvNet)
        peer = plain(own).eval()
        for count in PICTURES:
            x = torch.rand(count, 1, side, side).contiguous(memory_format=torch.channels_last)
            for precision, low in (("32-true", False), ("bf16-mixed", True)):
                with torch.autocast("cpu", torch.bfloat16, enabled=low):
                    assert torch.allclose(own(x), peer(x), atol=1e-2 if low else 1e-6)
                    pairs = [(timed(lambda: own(x), "cpu"), timed(lambda: peer(x), "cpu")) for _ in range(repeats)]  # noqa: B023
                ratios = sorted(b / a for a, b in pairs)
                ours, theirs = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
                told = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f}-{ratios[-1]:.2f})"
                print(f"| {name} | {count} | {precision} | {ours:.1f} | {theirs:.1f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
