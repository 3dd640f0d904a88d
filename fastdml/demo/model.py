"""A small convolutional network for 32 x 32 grey images."""

from __future__ import annotations

import torch
from torch import nn

EMBEDDING_SIZE = 128


class SmallCNN(nn.Module):
    """`depth` convolutions, mean and maximum over what is left of the image, one linear layer.

    Maps ``[N, 1, 32, 32]`` to ``[N, embedding_size]``, of any norm.
    """

    def __init__(
        self, embedding_size: int = EMBEDDING_SIZE, width: int = 32, depth: int = 5
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(1, width, stride=2),
            _block(width, 2 * width),
            nn.MaxPool2d(2),
            _block(2 * width, 4 * width),
            *(_block(4 * width, 4 * width) for _ in range(depth - 3)),
        )
        self.embed = nn.Linear(4 * width, embedding_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The faster layout for convolutions on a CPU; it spreads from the input.
        maps = self.features(images.contiguous(memory_format=torch.channels_last))
        return self.embed(maps.mean(dim=(2, 3)) + maps.amax(dim=(2, 3)))


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


@torch.no_grad()
def embed(model: nn.Module, images: torch.Tensor, batch_size: int = 512) -> torch.Tensor:
    """Embeddings of any number of images, with the network in evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model(batch) for batch in images.split(batch_size)])
    finally:
        model.train(was_training)
