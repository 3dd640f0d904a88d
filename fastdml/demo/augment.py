"""Random small rotations, scalings and shifts of a whole batch at once."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

MAX_ROTATION = math.radians(20)
SCALES = (0.75, 1.1)
MAX_SHIFT = 0.1  # of the image's width


def jitter(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image ``[N, C, H, W]`` (ground 0) rotated, scaled and shifted at random.

    No flips and no large rotations: some icons (arrows) are rotations of one another.
    """
    # One column per random number, each uniform in [-1, 1).
    angle, scale, shift_x, shift_y = (
        torch.rand(4, len(images), generator=generator, device=generator.device) * 2 - 1
    ).to(images)
    angle = angle * MAX_ROTATION
    scale = (SCALES[0] + SCALES[1]) / 2 + scale * (SCALES[1] - SCALES[0]) / 2
    # The grid maps output to input, hence the division; its coordinates span 2 per image.
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    matrix = torch.stack(
        [cos, -sin, shift_x * 2 * MAX_SHIFT, sin, cos, shift_y * 2 * MAX_SHIFT], dim=1
    ).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
