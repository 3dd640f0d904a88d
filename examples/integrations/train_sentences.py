"""Sentence embeddings with sentence-transformers: its model, its trainer, its evaluator; the loss is ours.

python examples/integrations/train_sentences.py --steps 3
"""

import argparse
import tempfile

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from small_bert import embedder
from texts import pairs

from fastdml.integrations.sentence_transformers import (  # instead of sentence_transformers' own
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
)


def sentence_transformer(texts, folder):
    """A small model with random weights, by way of a folder, as models come."""
    for part in embedder(texts):
        part.save_pretrained(folder)
    transformer = Transformer(folder)
    return SentenceTransformer(modules=[transformer, Pooling(64, "mean")], device="cpu")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--model", default=None, help="a SentenceTransformer's folder, not a small one")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = pairs(1024)
    if args.model:
        model = SentenceTransformer(args.model, device="cpu")
    else:
        with tempfile.TemporaryDirectory() as folder:
            model = sentence_transformer([text for pair in found for text in pair], folder)
    train, test = found[::2], found[1::2]
    ranked = CachedMultipleNegativesRankingLoss(model, mini_batch_size=64)
    width = model.get_embedding_dimension()
    loss = MatryoshkaLoss(model, ranked, matryoshka_dims=[width, width // 2, width // 4])
    evaluator = InformationRetrievalEvaluator(
        queries={str(i): question for i, (question, _) in enumerate(test)},
        corpus={str(i): answer for i, (_, answer) in enumerate(test)},
        relevant_docs={str(i): {str(i)} for i in range(len(test))},
        accuracy_at_k=[10], precision_recall_at_k=[10], mrr_at_k=[10], ndcg_at_k=[10], map_at_k=[10],
    )  # fmt: skip
    questions, answers = zip(*train)
    with tempfile.TemporaryDirectory() as folder:
        settings = SentenceTransformerTrainingArguments(
            folder, max_steps=args.steps, per_device_train_batch_size=args.batch, learning_rate=3e-3,
            save_strategy="no", report_to="none", use_cpu=True,
        )  # fmt: skip
        data = Dataset.from_dict({"anchor": questions, "positive": answers})
        SentenceTransformerTrainer(model, settings, train_dataset=data, loss=loss).train()
    score = evaluator(model)["cosine_accuracy@10"]
    print(f"right answer among ten of {len(test)}: {score:.3f}")
    return score


if __name__ == "__main__":
    main()
