"""Icons with pytorch-metric-learning's trainer: the loss, the miner and the sampler are ours.

python examples/integrations/train_pml.py --steps 2
"""

import argparse

import torch
from pytorch_metric_learning import trainers

from fastdml.demo.data import load_icons
from fastdml.demo.model import SmallCNN, embed
from fastdml.losses import MultiSimilarityLoss
from fastdml.metrics import evaluate
from fastdml.miners import MultiSimilarityMiner
from fastdml.samplers import MPerClassSampler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.manual_seed(0)
    train, test = load_icons()
    network = SmallCNN(width=8)
    trainer = trainers.MetricLossOnly(
        models={"trunk": network},
        optimizers={"trunk_optimizer": torch.optim.Adam(network.parameters(), lr=1e-3)},
        batch_size=256,
        loss_funcs={"metric_loss": MultiSimilarityLoss()},
        mining_funcs={"tuple_miner": MultiSimilarityMiner()},
        dataset=torch.utils.data.TensorDataset(train.pixels, train.labels),
        sampler=MPerClassSampler(train.labels, m=4, batch_size=256, length_before_new_iter=256 * args.steps),
        iterations_per_epoch=args.steps,
        dataloader_num_workers=0,
    )
    trainer.train(num_epochs=1)
    score = evaluate(embed(network, test.pixels), test.labels, metrics="recall", k=1)["recall@1"]
    print(f"recall@1 of unseen classes: {score:.3f}")
    return score


if __name__ == "__main__":
    main()
