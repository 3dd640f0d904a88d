"""A small transformer with random weights, and a tokenizer for some texts: nothing is fetched."""

from collections import Counter

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


def embedder(texts, width=64, words=4000):
    """(tokenizer, network). Tokens are whole words."""
    split = pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text.lower()))
    known = ["[PAD]", "[UNK]", *(word for word, _ in counts.most_common(words))]
    cut = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    cut.pre_tokenizer, cut.normalizer = split, normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=cut, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    config = BertConfig(
        vocab_size=len(known), hidden_size=width, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=2 * width, max_position_embeddings=32,
    )  # fmt: skip
    return tokenizer, BertModel(config)
