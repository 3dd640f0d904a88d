"""Multi-head deep metric learning: a local and a global head with second-order attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses, row_loss
from ..engine import check
from ..engine.similarity import unit


class SecondOrderAttention(nn.Module):
    """F + zeta out(softmax(Q K^T) V) over the positions of a feature map, Q, K, V, out 1 x 1 convolutions.

    There is no 1 / sqrt(d) in the softmax. Torch's fused attention does it, without a matrix of positions.

    Args:
        channels: of the map. inner: of Q, K and V; None: channels.
        zeta: weight of what attention adds.
    """

    def __init__(self, channels: int, inner: int | None = None, zeta: float = 1.0) -> None:
        super().__init__()
        check.count(channels, "channels")
        inner = channels if inner is None else check.count(inner, "inner")
        self.zeta = check.finite(zeta, "zeta")
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, channels, H, W] to the same."""
        query, key, value = (
            f(maps).flatten(2).transpose(1, 2).unsqueeze(1)
            for f in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        grid = attended.squeeze(1).transpose(1, 2).unflatten(2, maps.shape[2:])
        return maps + self.zeta * self.out(grid)


class GlobalLocalHeads(nn.Module):
    """Embeddings from a middle and from the last feature map of a network.

    *Multi-Head Deep Metric Learning Using Global and Local Representations*, Ebrahimpour, Qian, Beach,
    WACV 2022 (arXiv 2112.14327), after a third party's detailed reading of the paper: on each map,
    second-order attention, the sum of mean and maximum over positions, and a linear layer; both side by
    side and normalised. There the local map is ResNet's conv4 (14 x 14) and the global one its conv5
    (7 x 7).

    Args:
        local_channels, global_channels: of the maps.
        size: of each head's embedding.
        inner, zeta: see `SecondOrderAttention`.
    """

    def __init__(
        self,
        local_channels: int,
        global_channels: int,
        size: int = 256,
        *,
        inner: int | None = None,
        zeta: float = 1.0,
    ) -> None:
        super().__init__()
        check.count(size, "size")
        self.attention = nn.ModuleList(
            SecondOrderAttention(c, inner, zeta) for c in (local_channels, global_channels)
        )
        self.linear = nn.ModuleList(nn.Linear(c, size) for c in (local_channels, global_channels))

    def forward(self, local_map: Tensor, global_map: Tensor) -> Tensor:
        """[B, channels, H, W] each, of any size, to [B, 2 size] of unit length."""
        found = []
        for maps, attend, linear in zip((local_map, global_map), self.attention, self.linear):
            maps = attend(maps)
            found.append(linear(maps.mean(dim=(2, 3)) + maps.amax(dim=(2, 3))))
        return unit(torch.cat(found, dim=1))


class HybridLoss(nn.Module):
    """Multi-similarity, without mining, plus proxy_weight times Proxy-Anchor: the loss of these heads.

    Args:
        num_classes, embedding_size: of the proxies.
        proxy_weight: 0.03 there.
        alpha, beta, base: of multi-similarity (gamma = 2, beta = 50, sigma = 1 there).
        negative_sign: "minus": exp(beta (s - base)), the usual form (inferred); "plus": exp(beta
            (s + base)), as the paper prints it: with base 1 the term is then 1 + log sum exp(beta s) /
            beta, whose weights never vanish, and the loss runs on the `chunked` executor.
        margin, proxy_alpha: of Proxy-Anchor.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        proxy_weight: float = 0.03,
        *,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 1.0,
        negative_sign: str = "minus",
        margin: float = 0.1,
        proxy_alpha: float = 32.0,
    ) -> None:
        super().__init__()
        if negative_sign not in ("minus", "plus"):
            raise ValueError(f"negative_sign: expected 'minus' or 'plus', got {negative_sign!r}")
        self.proxy_weight = check.non_negative(proxy_weight, "proxy_weight")
        self.pairs: nn.Module = losses.MultiSimilarityLoss(alpha, beta, base)
        if negative_sign == "plus":
            self.pairs = row_loss(_AsPrinted(alpha, beta, base))
        self.proxies = losses.ProxyAnchorLoss(num_classes, embedding_size, margin, proxy_alpha)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings [B, D] with labels [B] in [0, C)."""
        proxies = self.proxies(embeddings, labels)
        return self.pairs(embeddings, labels) + self.proxy_weight * proxies


class _AsPrinted:
    """Multi-similarity with the paper's plus in the negatives' exponent."""

    def __init__(self, alpha: float, beta: float, base: float) -> None:
        self.alpha, self.beta, self.base = alpha, beta, base

    def __call__(self, s: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        parts = (
            (-self.alpha * (s - self.base), positive, self.alpha),
            (self.beta * (s + self.base), negative, self.beta),
        )
        terms = [
            F.pad(z.masked_fill(~mask, -math.inf), (0, 1)).logsumexp(1) / sharpness
            for z, mask, sharpness in parts
        ]
        return terms[0] + terms[1]
