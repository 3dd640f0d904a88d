"""A pair loss with its miner, classes sampled evenly: only the imports differ between the libraries.

python examples/migrate/pair_and_miner.py                 LIBRARY=pml for pytorch-metric-learning
"""

import os

import icons
import torch
from torch.utils.data import DataLoader, TensorDataset

if os.environ.get("LIBRARY") == "pml":
    from pytorch_metric_learning import losses, miners, samplers
else:
    from fastdml import losses, miners, samplers


def main():
    args = icons.arguments(epochs=12, batch=1024)
    train, test = icons.start(args.seed, args.classes)
    net = icons.network()
    loss_func = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    mining_func = miners.MultiSimilarityMiner(epsilon=0.1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    sampler = samplers.MPerClassSampler(
        train.labels, m=4, batch_size=args.batch, length_before_new_iter=max(len(train), args.batch)
    )
    loader = DataLoader(TensorDataset(train.pixels, train.labels), args.batch, sampler=sampler)
    clock = icons.Clock()
    for _ in range(args.epochs):
        net.train()
        for pixels, labels in loader:
            embeddings = net(icons.views(pixels))

            def loss(e, labels=labels):
                indices_tuple = mining_func(e, labels)
                return loss_func(e, labels, indices_tuple)

            optimizer.zero_grad()
            embeddings.backward(clock.loss(loss, embeddings))
            optimizer.step()
    return clock.report(net, test)


if __name__ == "__main__":
    main()
