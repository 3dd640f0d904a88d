"""DAS: densely-anchored sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.similarity import lengths, unit, wide_type
from ..mining.steps import recomputing
from .classes import ordered_pairs, place_in_class
from .draws import Draws


class DenselyAnchoredSampling(nn.Module):
    """Produces further embeddings around those of a batch.

    *DAS: Densely-Anchored Sampling for Deep Metric Learning*, Liu et al., ECCV 2022 (arXiv
    2208.00119), sections 3.2 to 3.4. A class remembers how often each channel was among the
    `channels` largest of its samples, and its last `memory` differences of two samples. Each sample v
    of class y then gives `produced` more:

        v' = normalise(gamma * v + shift * t),  gamma = 1 but in the class's `channels` most frequent
                                                channels, where it is uniform in [low, high)

    with t a stored difference of the class, drawn uniformly (0 while there is none).

        das = DenselyAnchoredSampling(num_classes, embedding_size)
        loss = loss_fn(*das(embeddings, labels))

    Args:
        num_classes, embedding_size: C and D; labels are 0 ... C - 1.
        produced: T, embeddings made of each sample.
        channels: K, at most D.
        memory: Z, differences that a class remembers.
        scale: (low, high) of gamma. (0.99, 1.01) as published; the released settings for Stanford
            Online Products are (0.5, 2.0).
        shift: factor of the difference (r_b).
        detach: whether no gradient flows through what is produced.
        normalize: whether what is produced is normalised; not for losses of embeddings of any length.
        seed: of the draws.

    State (in `state_dict`): `frequency` [C, D] int32, `differences` [C, Z, D], `stored` and `next`
    [C], and the place in the stream of draws. Evaluation mode leaves it as it is, and so do embeddings that
    are not finite.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        produced: int = 3,
        channels: int = 4,
        memory: int = 10,
        scale: tuple[float, float] = (0.99, 1.01),
        shift: float = 0.01,
        *,
        detach: bool = False,
        normalize: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = check.count(num_classes, "num_classes")
        self.embedding_size = check.count(embedding_size, "embedding_size")
        self.produced = check.count(produced, "produced")
        self.channels = check.integer(channels, "channels", 1, self.embedding_size)
        self.memory = check.count(memory, "memory")
        bounds = [check.finite(b, "scale") for b in check.sequence(scale, "scale", "(low, high)")]
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise ValueError(f"scale: expected (low, high) with low <= high, got {scale}")
        self.low, self.high = bounds
        self.shift = check.finite(shift, "shift")
        self.detach = detach
        self.normalize = normalize
        self.draws = Draws(seed)
        classes, size = self.num_classes, self.embedding_size
        self.register_buffer("frequency", torch.zeros(classes, size, dtype=torch.int32))
        self.register_buffer("differences", torch.zeros(classes, self.memory, size))
        self.register_buffer("stored", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("next", torch.zeros(classes, dtype=torch.int64))

    frequency: Tensor
    differences: Tensor
    stored: Tensor
    next: Tensor

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch, as it is, followed by what is produced.

        Args:
            embeddings: [B, D], as the host loss takes them.
            labels: [B] in [0, C).

        Returns:
            (embeddings [B (1 + T), D], labels [B (1 + T)]): the batch, then T times its B samples.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        check.embeddings_of(self.embedding_size, embeddings, "embeddings")
        labels = check.labels(labels, len(embeddings), embeddings.device, "labels", "embeddings")
        check.class_range(labels, self.num_classes, "labels", False, "those of the memory")
        if self.training and not recomputing():
            self.remember(embeddings, labels)
        produced = self.produce(embeddings, labels)
        return torch.cat([embeddings, produced]), labels.repeat(1 + self.produced)

    @torch.no_grad()
    def remember(self, embeddings: Tensor, labels: Tensor) -> None:
        """Counts the batch's frequent channels, and stores its differences within classes."""
        finite = embeddings.isfinite().all(1)
        embeddings, labels = embeddings[finite], labels[finite]
        largest = embeddings.topk(self.channels, dim=1).indices
        at = labels[:, None] * self.embedding_size + largest
        self.frequency.view(-1).scatter_add_(
            0, at.view(-1), torch.ones_like(at, dtype=torch.int32).view(-1)
        )
        first, second = self._last_differences(embeddings, labels)
        classes = labels[first]
        place, size = place_in_class(classes)
        # The last `memory` of them, each in a slot of its own.
        kept = (size - place <= self.memory).nonzero()[:, 0]
        first, second, classes, place = (t[kept] for t in (first, second, classes, place))
        slot = (self.next[classes] + place) % self.memory
        x = embeddings.to(wide_type(embeddings))  # differences of narrow types may overflow
        difference = x[first] - x[second]
        self.differences[classes, slot] = difference.to(self.differences.dtype)
        count = torch.zeros_like(self.next)
        count[classes] = size[kept]
        self.next.add_(count).remainder_(self.memory)
        self.stored.add_(count).clamp_(max=self.memory)

    def _last_differences(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs (i, j) of a class whose rows differ, i-major; of each class at least the last Z.

        Unless a class is one point, each of its samples differs from another: the last Z samples have
        Z differences. So at most B Z pairs are listed, however large classes are.
        """
        first, second = ordered_pairs(labels, self.memory)
        differs = torch.empty_like(first, dtype=torch.bool)
        block = max(1, (1 << 20) // self.embedding_size)
        for part in range(0, len(first), block):
            rows = slice(part, part + block)
            differs[rows] = (embeddings[first[rows]] != embeddings[second[rows]]).any(1)
        return first[differs], second[differs]

    def produce(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """[T B, D]: what is produced from the batch [B, D] and the memory."""
        source = embeddings.detach() if self.detach else embeddings
        source = source.to(wide_type(source))
        generator = self.draws.next(source.device)
        shape = (self.produced, len(source))
        draw: dict[str, Any] = {"generator": generator, "device": source.device, "dtype": torch.float32}
        gamma = torch.rand(*shape, self.channels, **draw) * (self.high - self.low) + self.low
        chance = torch.rand(shape, **draw)
        with torch.no_grad():
            stored = self.stored[labels]
            # Empty memories hold zeros; a float32 below 1 times a count may round up to the count.
            which = torch.minimum((chance * stored).long(), (stored - 1).clamp(min=0))
            moved = self.shift * self.differences[labels, which].to(source.dtype)
            channels = self._frequent_channels(labels)
        change = (gamma.to(source.dtype) - 1) * source.gather(1, channels)
        made = (source + moved).scatter_add(2, channels.expand(*shape, -1), change)
        made = made.flatten(0, 1)
        return (unit(made) if self.normalize else made).to(embeddings.dtype)

    def _frequent_channels(self, labels: Tensor) -> Tensor:
        """[B, K] most frequent channels of each sample's class; of equal ones the first."""
        size = self.embedding_size
        order = torch.arange(size - 1, -1, -1, device=labels.device)
        return (self.frequency[labels].long() * size + order).topk(self.channels, dim=1).indices

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, embedding_size={self.embedding_size}, "
            f"produced={self.produced}, channels={self.channels}, memory={self.memory}, "
            f"scale=({self.low}, {self.high}), shift={self.shift}, detach={self.detach}"
        )


class DASLoss(nn.Module):
    """A host loss of the batch with what DAS produces of it.

    Args:
        loss: any loss called as `loss(embeddings, labels)`.
        sampling: the producer.
        auxiliary: w of loss(batch) + w loss(batch and produced), the released option for losses that
            produced anchors harm; None: loss(batch and produced) alone.
    """

    def __init__(
        self,
        loss: nn.Module,
        sampling: DenselyAnchoredSampling,
        auxiliary: float | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        self.sampling = sampling
        self.auxiliary = None if auxiliary is None else check.non_negative(auxiliary, "auxiliary")

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings [B, D] and labels [B]."""
        together = self.loss(*self.sampling(embeddings, labels))
        if self.auxiliary is None:
            return together
        return self.loss(embeddings, labels) + self.auxiliary * together


class NormConstraint(nn.Module):
    """SEC: pulls the lengths of embeddings, before they are normalised, to their running mean.

    weight mean (|v| - m)^2, with m the average of batch means of |v|, as released beside DAS (arXiv
    2208.00119): after *Deep Metric Learning with Spherical Embedding*, Zhang et al., NeurIPS 2020.

    Args:
        weight: of the term.
        momentum: of the running mean, in [0, 1): m <- momentum m + (1 - momentum) mean |v|.

    State: `mean`, a scalar; NaN before the first batch, whose mean it then is (in evaluation mode too, which
    leaves the state). A batch whose mean is not finite, or that has no rows, leaves it.
    """

    def __init__(self, weight: float = 0.01, momentum: float = 0.999) -> None:
        super().__init__()
        self.weight = check.non_negative(weight, "weight")
        self.momentum = check.share(momentum, "momentum")
        self.register_buffer("mean", torch.tensor(float("nan")))

    mean: Tensor

    def forward(self, embeddings: Tensor) -> Tensor:
        """The term for embeddings [B, D] of any length, in float32, or float64 for such embeddings."""
        check.embeddings(embeddings, "embeddings")
        length = lengths(embeddings)[:, 0]
        now = length.detach().mean().to(self.mean.dtype)
        known = self.mean.isfinite()
        if self.training and not recomputing():
            moved = self.momentum * self.mean + (1 - self.momentum) * now
            moved = torch.where(known, moved, now)
            self.mean.copy_(torch.where(now.isfinite(), moved, self.mean))
        mean = torch.where(known, self.mean, now)
        apart = (length - mean.to(length.dtype)).square()
        return self.weight * (apart.mean() if len(apart) else apart.sum())
