"""Stored items as network inputs: pictures scaled, turned and randomly bent, in batches; vectors as they are. Nothing here is versioned."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from components.contracts import AugmentSection


def prepare(raw: Tensor) -> Tensor:
    """Scale stored pictures, grey [..., H, W] or colour [..., H, W, 3] uint8, to float inputs [..., C, H, W] in [0, 1]; vectors stay as they are."""
    if raw.dtype != torch.uint8:
        return raw.float()
    picture = raw.movedim(-1, -3) if raw.shape[-1] == 3 else raw.unsqueeze(-3)
    return picture.float().div_(255)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Turn picture i by `turns[i]` in 0-7: quarter turns 0-3, mirrored for 4-7. x [N, C, H, W], H == W."""
    odd, half, mirror = (((turns >> bit) & 1).bool()[:, None, None, None] for bit in (0, 1, 2))
    x = torch.where(odd, x.transpose(2, 3).flip(2), x)
    x = torch.where(half, x.flip((2, 3)), x)
    return torch.where(mirror, x.flip(3), x)


def join_halves(x: Tensor, upright: bool) -> None:
    """Give every picture the right half of the next class's same picture, or the lower one; x [way, n, C, H, W] is changed in place.

    What is joined is a new class, whose pictures still belong together: CutMix (Yun et al. 2019, arXiv:1905.04899) in halves, by class.
    """
    half, following = x.shape[-1] // 2, x.roll(-1, 0)
    if upright:
        x[..., half:] = following[..., half:]
    else:
        x[..., half:, :] = following[..., half:, :]


DRAWS = 7 + 2 * 16  # six of an affine map, one that is not used (without it every batch would be another), a 4 x 4 grid of displacements


def draws(count: int, generator: torch.Generator) -> Tensor:
    """Return the uniform draws in [-1, 1) that `bend` takes for `count` pictures: [count, DRAWS]."""
    return torch.rand(count, DRAWS, generator=generator).mul_(2).sub_(1)


@functools.cache
def _basis(height: int, width: int) -> Tensor:
    """Return [19, H * W]: the x and y of every pixel, one, and the bicubic weight of each of 16 nodes at it."""
    corners = torch.eye(3)[:2].unsqueeze(0)
    grid = F.affine_grid(corners, [1, 1, height, width], align_corners=False).reshape(-1, 2).T
    nodes = F.interpolate(torch.eye(16).view(16, 1, 4, 4), (height, width), mode="bicubic", align_corners=True).view(16, -1)
    return torch.cat([grid, torch.ones(1, height * width), nodes])


def bend(x: Tensor, random: Tensor, options: AugmentSection) -> Tensor:
    """Bend each picture by its own affine map and smooth elastic field. x [N, C, H, W], random [N, DRAWS] -> [N, C, H, W]."""
    height, width = x.shape[2:]
    turned, wide, high, skewed, right, down = random[:, :6].T
    angle = turned * math.radians(options.rotate_degrees)
    scale_x, scale_y, shear = 1 + wide * options.scale, 1 + high * options.scale, skewed * options.shear
    cos, sin = angle.cos(), angle.sin()
    rows = [cos * scale_x, (shear - sin) * scale_y, right * 2 * options.shift, sin * scale_x, cos * scale_y, down * 2 * options.shift]
    affine, nodes = torch.stack(rows, 1).view(-1, 2, 3), random[:, 7:].reshape(-1, 2, 16) * (2 * options.elastic)
    # Where each pixel looks, as one matrix product, for all pictures of a batch.
    looks = torch.cat([affine, nodes], 2) @ _basis(height, width).to(random.device)
    grid = looks.transpose(1, 2).reshape(-1, height, width, 2)
    return F.grid_sample(x, grid.to(x.device), align_corners=False)
