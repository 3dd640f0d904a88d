"""A cross-batch memory with its miner beside a self-supervised loss of two views: only the imports differ
between the libraries.

python examples/migrate/memory_and_views.py               LIBRARY=pml for pytorch-metric-learning
"""

import os

import icons
import torch
from torch.utils.data import DataLoader, TensorDataset

if os.environ.get("LIBRARY") == "pml":
    from pytorch_metric_learning import losses, miners
    from pytorch_metric_learning.losses import CrossBatchMemory, SelfSupervisedLoss
else:
    from fastdml import losses, miners
    from fastdml.wrappers import CrossBatchMemory, SelfSupervisedLoss


def main():
    args = icons.arguments(epochs=3, batch=64)
    train, test = icons.start(args.seed, args.classes)
    net = icons.network()
    memory = CrossBatchMemory(
        losses.MultiSimilarityLoss(), 128, memory_size=16 * args.batch, miner=miners.MultiSimilarityMiner()
    )
    two_views = SelfSupervisedLoss(losses.NTXentLoss(temperature=0.1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(train.pixels, train.labels), args.batch, shuffle=True, drop_last=True)
    clock = icons.Clock()
    for _ in range(args.epochs):
        net.train()
        for pixels, labels in loader:
            embeddings = net(torch.cat([icons.views(pixels), icons.views(pixels)]))

            def loss(e, labels=labels):
                one, other = e.chunk(2)
                return memory(one, labels) + two_views(one, other)

            optimizer.zero_grad()
            embeddings.backward(clock.loss(loss, embeddings))
            optimizer.step()
    return clock.report(net, test)


if __name__ == "__main__":
    main()
