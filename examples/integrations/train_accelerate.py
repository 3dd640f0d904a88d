"""Icons with Accelerate: its devices, precision and checkpoints; the loss, and batches as large as one likes,
are ours. The loss, `wrap`ped, compares the images of all processes that `accelerate launch` starts.

python examples/integrations/train_accelerate.py --steps 2
"""

import argparse

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

from fastdml.demo.data import load_icons
from fastdml.demo.model import SmallCNN, embed
from fastdml.distributed import wrap
from fastdml.large_batch import GradientCache
from fastdml.losses import MultiSimilarityLoss
from fastdml.metrics import evaluate
from fastdml.samplers import MPerClassSampler


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    train, test = load_icons()
    # num_replicas=1: `prepare` deals the batches out to processes.
    sampler = MPerClassSampler(
        train.labels, m=4, batch_size=512, length_before_new_iter=512 * args.steps, num_replicas=1
    )
    loader = DataLoader(TensorDataset(train.pixels, train.labels), 512, sampler=sampler)
    network, loss = SmallCNN(width=8), wrap(MultiSimilarityLoss())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    for step, (images, labels) in enumerate(loader):
        optimizer.zero_grad()
        with GradientCache(chunk=128) as cache:  # activations of 128 images at a time
            value = loss(cache.embed(network, images), labels)
            accelerator.backward(value)
        optimizer.step()
        if step % 20 == 0:
            accelerator.print(f"step {step:4d}   loss {value.item():.3f}")
    embeddings = embed(accelerator.unwrap_model(network), test.pixels)
    score = evaluate(embeddings, test.labels, metrics="recall", k=1)["recall@1"]
    accelerator.print(f"recall@1 of unseen classes: {score:.3f}")
    return score


if __name__ == "__main__":
    main()
