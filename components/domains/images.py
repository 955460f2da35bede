"""Stored items as network inputs: pictures scaled, turned and randomly bent, in batches; vectors as they are. Nothing here is versioned."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from components.contracts import AugmentSection


def prepare(raw: Tensor) -> Tensor:
    """Scale stored pictures [..., H, W] uint8 to float inputs [..., 1, H, W] in [0, 1]; vectors [..., D] stay as they are."""
    if raw.dtype != torch.uint8:
        return raw.float()
    return raw.unsqueeze(-3).float().div_(255)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Turn picture i by `turns[i]` in 0-7: quarter turns 0-3, mirrored for 4-7. x [N, C, H, W], H == W."""
    odd, half, mirror = (((turns >> bit) & 1).bool()[:, None, None, None] for bit in (0, 1, 2))
    x = torch.where(odd, x.transpose(2, 3).flip(2), x)
    x = torch.where(half, x.flip((2, 3)), x)
    return torch.where(mirror, x.flip(3), x)


def augment(x: Tensor, options: AugmentSection, generator: torch.Generator) -> Tensor:
    """Bend each picture by its own random affine map and smooth elastic field. x [N, C, H, W] -> the same shape. Vectors stay."""
    if x.ndim != 4:
        return x
    count, _, height, width = x.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).mul_(2).sub_(1)

    angle = uniform(count) * math.radians(options.rotate_degrees)
    scale_x, scale_y = 1 + uniform(count) * options.scale, 1 + uniform(count) * options.scale
    shear = uniform(count) * options.shear
    shift_x, shift_y = uniform(count) * 2 * options.shift, uniform(count) * 2 * options.shift
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([cos * scale_x, (shear - sin) * scale_y, shift_x, sin * scale_x, cos * scale_y, shift_y], 1).view(count, 2, 3)
    grid = F.affine_grid(theta.to(x.device), [count, 1, height, width], align_corners=False)
    if options.elastic > 0:
        nodes = uniform(count, 2, 4, 4).mul_(2 * options.elastic).to(x.device)
        grid = grid + F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, align_corners=False)
