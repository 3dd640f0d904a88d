"""Texts by their subject with the Hugging Face Trainer: its training, evaluation and checkpoints; the loss,
with its proxies, and the metrics are ours.

python examples/integrations/train_trainer.py --steps 3
"""

import argparse
import tempfile

import torch
from small_bert import embedder
from texts import functions
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from fastdml.integrations.transformers import EmbedderWithLoss, compute_metrics
from fastdml.losses import ProxyAnchorLoss


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.manual_seed(0)
    found = functions(1024)
    modules = sorted({module for module, _, _ in found})
    texts = [said for _, _, said in found]
    tokenizer, network = embedder(texts)
    rows = [
        {**tokenizer(text, truncation=True), "label": modules.index(module)}
        for text, (module, _, _) in zip(texts, found)
    ]
    model = EmbedderWithLoss(network, ProxyAnchorLoss(len(modules), network.config.hidden_size))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=args.steps, per_device_train_batch_size=64, learning_rate=1e-3,
            remove_unused_columns=False, save_strategy="no", report_to="none", use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(
            model, settings, DataCollatorWithPadding(tokenizer), rows[::2], rows[1::2],
            compute_metrics=compute_metrics(metrics="recall", k=1),
        )  # fmt: skip
        trainer.train()
        score = trainer.evaluate()["eval_recall@1"]
    print(f"nearest other text is of the same module: {score:.3f}")
    return score


if __name__ == "__main__":
    main()
