"""IAA: intra-class adaptive augmentation with neighbour correction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.similarity import exact_distances
from .classes import class_sums
from .draws import Draws


class IntraClassAugmentation(nn.Module):
    """Gaussian copies of embeddings, each as wide as its class.

    *Intra-class Adaptive Augmentation with Neighbor Correction for Deep Metric Learning*, Fu et al., IEEE
    Transactions on Multimedia 2022 (arXiv 2211.16264), sections III-B to III-D: of each class the mean and
    the diagonal covariance S are estimated, those of small classes are mixed with their neighbours',
    and every sample z of class y gets `copies` of z + sqrt(strength S_y) * normal noise.

        iaa = IntraClassAugmentation(num_classes, embedding_size)
        iaa.estimate(all_embeddings, all_labels)              # every few epochs, then
        loss = IAALoss(MultiSimilarityLoss(epsilon=0.1), iaa)(embeddings, labels)

    Correction of class k with n_k <= `few` samples, K the `neighbours` other classes with the smallest
    |m_i^2 - m_k^2| (element-wise squares of means, classes of one sample left out):

        a_k = 1 / (1 + log(1 + beta (n_k - 1)))
        S_k <- (1 - a_k) S_k + a_k ((1 - gamma) sum_K w_i S_i / sum_K w_i + gamma sum n_i S_i / sum n_i)
        w_i = n_i exp(-u_ki^2 / (2 mean_width^2) - v_ki^2 / (2 covariance_width^2))

    u and v are |m_i^2 - m_k^2| and |S_i - S_k|, which the released code maps to [0, 1] by their smallest and
    largest values first, over all classes and class by class (here: over the classes that may be a
    neighbour, as the released code's largest value is its mark of those that may not).
    rescale_distances=False takes them as they are, as printed.

    Args:
        num_classes, embedding_size: C and D; labels are 0 ... C - 1.
        copies: M of every sample.
        strength: of the noise, at least 0 (lambda); `scheduled_strength` gives the released schedule.
        neighbours: K. beta, gamma, mean_width, covariance_width, few, rescale_distances: see above.
        momentum: of `update`, in [0, 1].
        detach: whether no gradient flows through the copies; it does in the released code.
        variant: "paper", or "released" for what the authors' code does: copies are as wide as the class
            without correction, and the square root is taken once more for every copy (S^(1/2),
            S^(1/4), ...); classes of exactly `few` samples are not corrected.
        seed: of the draws.

    State: `mean`, `variance`, `corrected` [C, D], `count` [C] and the place in the stream of draws. A class
    keeps what it has where embeddings of it are not finite. One of which nothing is known yet has a width of
    0: copies are the sample itself.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        copies: int = 3,
        strength: float = 0.8,
        *,
        neighbours: int = 25,
        beta: float = 0.1,
        gamma: float = 0.1,
        mean_width: float = 1.0,
        covariance_width: float = 1.0,
        few: int = 40,
        rescale_distances: bool = True,
        momentum: float = 0.2,
        detach: bool = False,
        variant: str = "paper",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check.variant(variant)
        self.num_classes = check.count(num_classes, "num_classes")
        self.embedding_size = check.count(embedding_size, "embedding_size")
        self.copies = check.count(copies, "copies")
        self.strength = check.non_negative(strength, "strength")
        self.neighbours = check.count(neighbours, "neighbours")
        self.beta = check.non_negative(beta, "beta")
        self.gamma = check.fraction(gamma, "gamma")
        self.mean_width = check.positive(mean_width, "mean_width")
        self.covariance_width = check.positive(covariance_width, "covariance_width")
        self.few = check.count(few, "few")
        self.rescale_distances = rescale_distances
        self.momentum = check.fraction(momentum, "momentum")
        self.detach = detach
        self.variant = variant
        self.draws = Draws(seed)
        shape = (self.num_classes, self.embedding_size)
        for name in ("mean", "variance", "corrected"):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("count", torch.zeros(self.num_classes, dtype=torch.int64))

    mean: Tensor
    variance: Tensor
    corrected: Tensor
    count: Tensor

    def scheduled_strength(self, epoch: int, epochs: int) -> float:
        """The released schedule: `strength` times 1, 0.9, 0.75 and 0.6 up to 40, 60, 80 and 100 % of
        the epochs. Assign it to `strength` of a copy, or hand it to `forward`."""
        done = epoch / epochs
        steps = ((0.4, 1.0), (0.6, 0.9), (0.8, 0.75))
        return self.strength * next((factor for end, factor in steps if done <= end), 0.6)

    @torch.no_grad()
    def estimate(self, embeddings: Tensor, labels: Tensor) -> None:
        """Statistics anew from all training embeddings [N, D], as the network outputs them."""
        self._set(*self._statistics(embeddings, labels))

    @torch.no_grad()
    def update(self, embeddings: Tensor, labels: Tensor, *, by_class: bool = False) -> None:
        """Moves the statistics by a part of the data, as the released code does.

        With w_k = max(n / (n + n_k), 1 - momentum) of a class with n new samples (0 without):
        S <- (1 - w) S + w var + w (1 - w) (m - mean)^2, m <- (1 - w) m + w mean, n_k <- n_k + n.

        So n_k counts visits, by which the correction then goes: a sample that comes again counts again. For
        the whole training set every few epochs there is `estimate`, whose n_k are those of the set.

        by_class: as the released code does for more than 1,000 classes: classes with one new sample
            keep mean, variance and count. (Variant "released": only the last class's count grows.)
        """
        new, mean, variance = self._statistics(embeddings, labels)
        weight = (new / (new + self.count).clamp(min=1)).clamp(min=1 - self.momentum)
        moves = new > int(by_class)
        weight = torch.where(moves, weight, 0.0)[:, None].to(mean.dtype)
        rest = 1 - weight
        spread = weight * rest * (self.mean - mean).square()
        variance = rest * self.variance + weight * variance + spread
        mean = rest * self.mean + weight * mean
        if by_class and self.variant == "released":
            new[:-1] = 0
        else:
            new = new * moves  # samples that left no trace must not weigh later
        self._set(self.count + new, mean, variance)

    def _set(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """New statistics; those of a class with a NaN or an infinity would never be numbers again."""
        finite = (mean.isfinite() & variance.isfinite()).all(1)
        self.count.copy_(torch.where(finite, count, self.count))
        self.mean.copy_(torch.where(finite[:, None], mean, self.mean))
        self.variance.copy_(torch.where(finite[:, None], variance, self.variance))
        self.correct()

    def _statistics(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(counts [C], means [C, D], biased variances [C, D]); 0 for absent classes."""
        labels = self._checked(embeddings, labels)
        x = embeddings.detach().to(self.mean.dtype)
        count = torch.bincount(labels, minlength=self.num_classes)
        size = count.clamp(min=1)[:, None]
        mean = class_sums(x, labels, self.num_classes) / size
        variance = class_sums((x - mean[labels]).square(), labels, self.num_classes) / size
        return count, mean, variance

    @torch.no_grad()
    def correct(self) -> None:
        """Corrects the variances of small classes by their neighbours', as every `estimate` and `update`
        does: O(C^2 D) time, O(C) memory."""
        self.corrected.copy_(self.variance)
        usable = self.count > 1
        eligible = usable.nonzero()[:, 0]
        if self.variant == "released" or len(eligible) == 0:
            return
        own, shares = self.count[eligible].to(self.mean.dtype), self.variance[eligible]
        everywhere = (own[:, None] * shares).sum(0) / own.sum()
        squares = self.mean.square()
        step = max(1, (1 << 22) // len(eligible))
        # A class of one sample is nobody's neighbour: it has all of the others to choose from.
        others = len(eligible) - usable.long()
        small = (self.count > 0) & (self.count <= self.few) & (others > 0)
        for classes in small.nonzero()[:, 0].split(step):
            self_pair = classes[:, None] == eligible
            near = exact_distances(squares[classes], squares[eligible])
            like = exact_distances(self.variance[classes], shares)
            if self.rescale_distances:
                near, like = (_rescaled(d, self_pair) for d in (near, like))
            near = near.masked_fill(self_pair, torch.inf)
            k = min(self.neighbours, len(eligible))
            found, at = near.topk(k, dim=1, largest=False)
            exponent = -found.square() / (2 * self.mean_width**2)
            exponent -= like.gather(1, at).square() / (2 * self.covariance_width**2)
            # (A class's own pair, which is infinitely far, weighs nothing.)
            # The largest exponent is taken out, so that the weights never all vanish.
            weight = own[at] * (exponent - exponent.amax(1, keepdim=True)).exp()
            neighbours = (weight[:, :, None] * shares[at]).sum(1) / weight.sum(1, keepdim=True)
            count = self.count[classes].to(self.mean.dtype)[:, None]
            share = 1 / (1 + (1 + self.beta * (count - 1)).log())
            mixture = (1 - self.gamma) * neighbours + self.gamma * everywhere
            mixed = (1 - share) * self.variance[classes] + share * mixture
            self.corrected[classes] = mixed.to(self.corrected.dtype)

    def forward(
        self, embeddings: Tensor, labels: Tensor, strength: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """The batch followed by its copies.

        Args:
            embeddings: [B, D], as the network outputs them.
            labels: [B] in [0, C).
            strength: in place of the constructor's.

        Returns:
            (candidates [B (1 + M), D], labels [B (1 + M)]): candidate j belongs to sample j mod B.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        labels = self._checked(embeddings, labels)
        strength = self.strength if strength is None else check.non_negative(strength, "strength")
        source = embeddings.detach() if self.detach else embeddings
        generator = self.draws.next(source.device)
        copies = [embeddings]
        wide = self.variance if self.variant == "released" else self.corrected
        width = wide[labels].sqrt()
        for k in range(self.copies):
            if k and self.variant == "released":
                width = width.sqrt()
            noise = torch.randn(source.shape, generator=generator, device=source.device)
            copies.append(source + strength**0.5 * (width * noise).to(source.dtype))
        return torch.cat(copies), labels.repeat(1 + self.copies)

    def _checked(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        check.embeddings_of(self.embedding_size, embeddings, "embeddings")
        labels = check.labels(labels, len(embeddings), embeddings.device, "labels", "embeddings")
        check.class_range(labels, self.num_classes, "labels", False, "those of the statistics")
        return labels


def _rescaled(d: Tensor, left_out: Tensor) -> Tensor:
    """Each row mapped to [0, 1] by its smallest and largest number, without those left out."""
    low = d.masked_fill(left_out, torch.inf).amin(1, keepdim=True)
    high = d.masked_fill(left_out, -torch.inf).amax(1, keepdim=True)
    span = high - low
    return torch.where(span > 0, (d - low) / span, 0.0)


def apart_from_own_copies(labels: Tensor) -> Any:
    """For `indices_tuple=`: pairs of samples [B] and candidates, of which j belongs to sample j mod B.

    Positive: the same label, but not the sample itself or a copy of it. Negative: another label.
    """
    size = len(labels)

    def relation(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        owner = columns % size
        same = labels[rows][:, None] == labels[owner]
        return same & (rows[:, None] != owner), ~same

    return relation


class IAALoss(nn.Module):
    """A host loss whose anchors are the real samples and whose candidates are these and their copies.

    An anchor's own copies are neither positives nor negatives. The relation is a function of index blocks,
    so the host must be a loss over pairs (multi-similarity, contrastive, ...), and runs on the
    `chunked` executor: linear memory on any device, but not the compiled functors.

    Args:
        loss: called as `loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)`; not one of all
            ranks' rows.
        augmentation: makes the copies.
    """

    def __init__(self, loss: nn.Module, augmentation: IntraClassAugmentation) -> None:
        super().__init__()
        if any(hasattr(module, "ranks") for module in loss.modules()):  # `distributed.wrap`
            raise ValueError(
                "loss: expected one of this process's rows, got one of all ranks' rows, whose own copies are "
                "other places"
            )
        self.loss = loss
        self.augmentation = augmentation

    def forward(
        self, embeddings: Tensor, labels: Tensor, strength: float | None = None
    ) -> Tensor:
        """The loss of embeddings [B, D] and labels [B]; strength: as in the augmentation."""
        candidates, classes = self.augmentation(embeddings, labels, strength)
        relation = apart_from_own_copies(labels)
        return self.loss(embeddings, labels, relation, candidates, classes)
