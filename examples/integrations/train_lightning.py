"""Icons with Lightning: its trainer, checkpoints and resuming; the module, the loss and the metrics are ours.

python examples/integrations/train_lightning.py --epochs 2 --classes 40
"""

import argparse
import tempfile

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastdml.demo.data import load_icons
from fastdml.demo.model import SmallCNN
from fastdml.integrations.lightning import EmbeddingModule, RetrievalCallback
from fastdml.losses import MultiSimilarityLoss
from fastdml.miners import MultiSimilarityMiner
from fastdml.samplers import MPerClassSampler


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--classes", type=int, default=None, help="of each half, for a quick run")
    args = parser.parse_args()
    pl.seed_everything(0)
    train, test = load_icons(max_classes=args.classes)
    batch = min(512, 4 * len(train.names))
    loader = DataLoader(
        TensorDataset(train.pixels, train.labels), batch,
        sampler=MPerClassSampler(train.labels, m=4, batch_size=batch, length_before_new_iter=len(train)),
    )  # fmt: skip
    unseen = DataLoader(TensorDataset(test.pixels, test.labels), 512)
    # chunk=128: activations of 128 images at a time, whatever the batch.
    module = EmbeddingModule(
        SmallCNN(width=8), MultiSimilarityLoss(), adam, miner=MultiSimilarityMiner(), chunk=128
    )
    with tempfile.TemporaryDirectory() as folder:
        best = pl.callbacks.ModelCheckpoint(folder, monitor="val_recall@1", mode="max", save_last=True)
        trainer = pl.Trainer(
            max_epochs=args.epochs, callbacks=[RetrievalCallback(), best], logger=False, accelerator="cpu",
            enable_progress_bar=False, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(module, loader, unseen)
    score = float(best.best_model_score)
    print(f"recall@1 of unseen classes, best epoch: {score:.3f}")
    return score


if __name__ == "__main__":
    main()
