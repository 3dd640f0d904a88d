"""Icons and their names with open_clip: its model and tokenizer; the loss is ours.

python examples/integrations/train_clip.py --steps 3
"""

import argparse

import open_clip
import torch
from open_clip.model import CLIP
from torch.nn import functional as F

from fastdml.demo.data import load_icons
from fastdml.integrations.open_clip import ClipLoss  # instead of open_clip.ClipLoss
from fastdml.metrics import evaluate


def network():
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
    return CLIP(64, vision, text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    torch.manual_seed(0)
    train, test = load_icons()
    tokenizer = open_clip.SimpleTokenizer(context_length=8)
    tokens, unseen = (tokenizer([name.replace("-", " ") for name in x.names]) for x in (train, test))
    model, loss = network(), ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(args.steps):
        # An icon of each name: what has the same name is no negative.
        names = torch.randperm(len(train.names))[: args.batch]
        images = torch.stack([one_of(train, name) for name in names.tolist()])
        value = loss(*model(images.expand(-1, 3, -1, -1), tokens[names]))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step:4d}   loss {value.item():.3f}")
    model.eval()
    with torch.no_grad():
        images = F.normalize(model.encode_image(test.pixels.expand(-1, 3, -1, -1)), dim=1)
        texts = F.normalize(model.encode_text(unseen), dim=1)
    names = torch.arange(len(texts))
    score = evaluate(images, test.labels, texts, names, metrics="recall", k=10)["recall@10"]
    print(f"name among the first ten of {len(names)} unseen ones: {score:.3f}")
    return score


def one_of(data, label):
    rows = (data.labels == label).nonzero()[:, 0]
    return data.pixels[rows[torch.randint(len(rows), ())]]


if __name__ == "__main__":
    main()
