"""A step of sentence-transformers with its own losses and with ours, each in a process of its own.

python benchmarks/sentences.py                       --small for a look

Contenders take turns, round after round; a row is the least time of a step over the rounds, forward and
backward of a small transformer on random tokens, and the growth of the resident set over what the process had
after one step of a few texts (network, gradients and libraries; glibc gives freed memory back at once). The
large batch is eight times the small one, which is what a loss without caching is given.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAIN, CACHED = "MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"


def network(width: int, layers: int):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from torch import nn
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=1000, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip

    class Bert(nn.Module):
        """The transformer as a module of theirs: tokens come as they are."""

        def __init__(self):
            super().__init__()
            self.bert = BertModel(config, add_pooling_layer=False)

        def forward(self, features, **more):
            found = self.bert(features["input_ids"], features["attention_mask"])
            return {**features, "token_embeddings": found.last_hidden_state}

    return SentenceTransformer(modules=[Bert(), Pooling(width, "mean")], device="cpu")


def one_step(library: str, name: str, rows: int, args: argparse.Namespace) -> None:
    """In a process of its own: seconds and bytes of a step, and its loss."""
    import torch
    from sentence_transformers.sentence_transformer import losses as theirs

    if library == "fastdml":
        from fastdml.integrations import sentence_transformers as losses
    else:
        losses = theirs
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = network(args.width, args.layers)
    options = {"mini_batch_size": args.chunk} if name == CACHED else {}
    loss = getattr(losses, name)(model, **options)

    def step(rows: int) -> float:
        g = torch.Generator().manual_seed(rows)
        ids = torch.randint(1000, (2, rows, args.tokens), generator=g)
        batch = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in ids]
        value = loss(batch, None)
        value.backward()
        return value.item()

    step(args.chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time() if args.threads == 1 else time.perf_counter()
    value = step(rows)
    end = time.process_time() if args.threads == 1 else time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": end - start, "mib": (after - before) / 1024, "loss": value}))


def measure(library: str, name: str, rows: int, arguments: list[str]) -> dict[str, float]:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive",
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--one", library, name, str(rows)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048, help="of a loss without caching")
    parser.add_argument("--chunk", type=int, default=32, help="mini_batch_size, of both; 32 is its default")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a batch of 64")
    parser.add_argument("--output", type=Path, default=None, help="a file for the table")
    parser.add_argument("--one", nargs=3, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        library, name, rows = args.one
        return one_step(library, name, int(rows), args)
    if args.small:
        args.batch = 64
    given = [f"--{k}={getattr(args, k)}" for k in ("chunk", "width", "layers", "tokens", "threads")]
    rows = [(args.batch, PLAIN), (args.batch, CACHED), (8 * args.batch, CACHED)]
    contenders = [(library, name, n) for n, name in rows for library in ("sentence-transformers", "fastdml")]
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {c: [] for c in contenders}
    for _ in range(args.rounds):
        for contender in contenders:
            found[contender].append(measure(*contender, given))
    lines = ["| batch | loss | of | seconds a step | MiB beside the network | value |", "|---" * 6 + "|"]
    for (library, name, n), each in found.items():
        seconds, mib = (min(e[k] for e in each) for k in ("seconds", "mib"))
        lines.append(f"| {n:,} | {name} | {library} | {seconds:.2f} | {mib:.0f} | {each[0]['loss']:.5f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
