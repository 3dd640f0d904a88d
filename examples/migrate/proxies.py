"""A proxy loss with an optimiser of its own: only the imports differ between the libraries.

python examples/migrate/proxies.py                        LIBRARY=pml for pytorch-metric-learning
"""

import os

import icons
import torch
from torch.utils.data import DataLoader, TensorDataset

if os.environ.get("LIBRARY") == "pml":
    from pytorch_metric_learning import losses
else:
    from fastdml import losses


def main():
    args = icons.arguments(epochs=12, batch=1024)
    train, test = icons.start(args.seed, args.classes)
    net = icons.network()
    loss_func = losses.ProxyAnchorLoss(len(train.names), 128, margin=0.1, alpha=32)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loss_optimizer = torch.optim.Adam(loss_func.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(train.pixels, train.labels), args.batch, shuffle=True)
    clock = icons.Clock()
    for _ in range(args.epochs):
        net.train()
        for pixels, labels in loader:
            embeddings = net(icons.views(pixels))

            def loss(e, labels=labels):
                return loss_func(e, labels)

            optimizer.zero_grad()
            loss_optimizer.zero_grad()
            embeddings.backward(clock.loss(loss, embeddings))
            optimizer.step()
            loss_optimizer.step()
    return clock.report(net, test)


if __name__ == "__main__":
    main()
