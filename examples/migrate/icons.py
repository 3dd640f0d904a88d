"""What the three scripts share and no library is in: images, a network, the score."""

import argparse
import json
import random
import time

import numpy as np
import torch
from torch import nn

from fastdml.demo.augment import jitter
from fastdml.demo.data import load_icons


def arguments(epochs, batch):
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--classes", type=int, default=None, help="of each half, for a quick run")
    return parser.parse_args()


def start(seed, classes):
    """Every generator from the seed; training and test images, half of the classes each."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    train, test = load_icons(max_classes=classes)
    # The test images are turned and moved too: as they are, raw pixels find nearly all.
    moved = jitter(test.pixels, torch.Generator().manual_seed(1))
    return train, (moved, test.labels)


def network(dim=128):
    """Small, so that a step shows what its loss costs."""
    return nn.Sequential(
        nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(256, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, dim),
    )  # fmt: skip


def views(pixels):
    """A batch as it is seen this time."""
    return jitter(pixels, torch.Generator().manual_seed(int(torch.randint(1 << 31, ()))))


@torch.no_grad()
def recall_at_1(net, test):
    pixels, labels = test
    net.eval()
    e = nn.functional.normalize(net(pixels), dim=1)
    s = e @ e.t()
    s.fill_diagonal_(-2)
    return float((labels[s.argmax(1)] == labels).float().mean())


class Clock:
    """Seconds of training, and of it those of the losses, forward and backward."""

    def __init__(self):
        self.began = time.perf_counter()
        self.of_loss = 0.0

    def loss(self, function, embeddings):
        """The loss of embeddings, whose gradient it puts where backward goes on from."""
        start = time.perf_counter()
        leaf = embeddings.detach().requires_grad_()
        function(leaf).backward()
        self.of_loss += time.perf_counter() - start
        return leaf.grad

    def report(self, net, test):
        seconds = time.perf_counter() - self.began
        score = recall_at_1(net, test)
        print(json.dumps({"recall@1": score, "seconds": seconds, "loss_seconds": self.of_loss}))
        return score
