"""Ensembles of losses whose weights are learnt: WEL and WEDL."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.similarity import lengths, wide_type
from ..losses.representation import ExactNumbers
from ..mining.steps import recomputing


class LossEnsemble(ExactNumbers):
    """Several losses with learnt weights, on one embedding (WEL) or on a head for each (WEDL).

    *Ensemble of Loss Functions to Improve Generalizability of Deep Metric Learning methods*, Zabihzadeh et
    al., 2021 (arXiv 2107.01130), in the form of the released code:

        sum_j w_j (m / m_j) l_j + 100 eta (sum_j w_j - 1)^2,   w_j = c_j^2 + a,  a = 1 / (4 J)

    with m_j the arithmetic mean of loss j since the beginning, the present value included, m the mean of
    the m_j, and c_j learnt (their optimiser's group should have no weight decay). With several heads

        + diversity [2 - mean over pairs of heads and samples |f_j(x) - f_l(x)|]_+

        wel = LossEnsemble([MultiSimilarityLoss(), ProxyNCALoss(C, D)], prior=[2, 1])
        loss = wel(embeddings, labels)                       # or wel([head_1, head_2], labels)

    A loss whose mean is 0 or negative has no meaningful weight here: ones that can be, such as
    Proxy-NCA without the positive in the denominator, do not fit.

    Args:
        losses: J, each called as `loss(embeddings, labels)`.
        prior: of the weights, positive; None: equal. A share of the sum below a cannot be reached, and one of
            a would stay: the derivative by c_j is 0 there.
        eta: of the constraint.
        diversity: of the heads' term, whose heads should have unit length.

    State: `c` [J] (a parameter), `totals` [J] float64 and `steps`. Evaluation mode leaves the means, and so
    does a batch of which a loss is not finite.
    """

    constants = ("totals",)

    def __init__(
        self,
        losses: Sequence[nn.Module],
        prior: Sequence[float] | None = None,
        *,
        eta: float = 100.0,
        diversity: float = 0.01,
    ) -> None:
        super().__init__()
        count = len(losses)
        if not count:
            raise ValueError("losses: expected at least one, got none")
        self.losses = nn.ModuleList(losses)
        self.floor = 1 / (4 * count)
        self.eta = check.non_negative(eta, "eta")
        self.diversity = check.non_negative(diversity, "diversity")
        shares = [1.0] * count if prior is None else [check.positive(p, "prior") for p in prior]
        if len(shares) != count:
            raise ValueError(f"prior: expected {count} numbers, one per loss, got {len(shares)}")
        start = torch.tensor(shares, dtype=torch.float64) / sum(shares) - self.floor
        if not bool((start > 0).all()):
            raise ValueError(
                f"prior: expected shares above {self.floor:g} of the sum, got {list(prior or [])}"
            )
        self.c = nn.Parameter(start.sqrt().float())
        self.register_buffer("totals", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    totals: Tensor
    steps: Tensor

    @property
    def weights(self) -> Tensor:
        """[J] w_j."""
        return self.c.square() + self.floor

    def forward(self, embeddings: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
        """The loss of embeddings [B, D], or of J heads [B, any], with labels [B]; with diversity the heads
        are of one width."""
        heads = self._heads(embeddings)
        apart = not isinstance(embeddings, Tensor) and self._apart(heads)
        each = [loss(h, labels) for loss, h in zip(self.losses, heads, strict=True)]
        for loss, value in zip(self.losses, each, strict=True):
            if not isinstance(value, Tensor) or value.dim():
                name = type(loss).__name__
                raise ValueError(f"losses: expected one number of {name}, got {check.seen(value)}")
        values = torch.stack(each)
        means = self._means(values)
        weights = self.weights.to(values.dtype)
        scaled = weights * (means.mean() / means).to(values.dtype) * values
        total = scaled.sum() + 100 * self.eta * (weights.sum() - 1).square()
        if not apart:
            return total
        return total + self.diversity * (2 - mean_head_distance(heads)).relu()

    @torch.no_grad()
    def _means(self, values: Tensor) -> Tensor:
        """[J] of each loss so far; the present value where there is no history."""
        if self.training and not recomputing():
            finite = values.isfinite().all()
            self.totals += torch.where(finite, values.double(), 0.0)
            self.steps += finite
        means = self.totals / self.steps.clamp(min=1)
        means = torch.where(self.steps > 0, means, values.double())
        return means.clamp(min=1e-12)

    def _heads(self, embeddings: Tensor | Sequence[Tensor]) -> list[Tensor]:
        if isinstance(embeddings, Tensor):
            return [embeddings] * len(self.losses)
        if len(embeddings) != len(self.losses):
            raise ValueError(
                f"embeddings: expected {len(self.losses)} heads, one per loss, got {len(embeddings)}"
            )
        return list(embeddings)

    def _apart(self, heads: list[Tensor]) -> bool:
        """Whether heads are kept apart, which takes distances between them."""
        if not self.diversity or len(heads) < 2 or not len(heads[0]):
            return False
        shapes = {tuple(h.shape) for h in heads}
        if len(shapes) > 1:
            raise ValueError(
                f"embeddings: expected heads of one shape with diversity, got {sorted(shapes)}"
            )
        return True

    def embed(self, heads: Sequence[Tensor]) -> Tensor:
        """The test embedding: heads times sqrt(w_j), side by side, so that squared distances are the
        weighted sum of the heads'."""
        scale = self.weights.sqrt()
        parts = zip(self._heads(heads), scale, strict=True)
        return torch.cat([h * s.to(h.dtype) for h, s in parts], dim=1)


def mean_head_distance(heads: Sequence[Tensor]) -> Tensor:
    """The mean Euclidean distance of a sample's heads [B, D], over pairs of heads and samples; 0 of none."""
    pairs = [(j, k) for k in range(len(heads)) for j in range(k)]
    heads = [h.to(wide_type(*heads)) for h in heads]
    distances = torch.stack([lengths(heads[j] - heads[k])[:, 0] for j, k in pairs])
    return distances.mean() if distances.numel() else distances.sum()


class CompressionHead(nn.Module):
    """A small network that shortens an embedding and keeps the proportions of its distances.

    From the released code of the same paper: two linear layers with a tanh between, trained by
    B^2 |D / sum D - E / sum E| (Frobenius), D and E the squared distances of a batch before and after.

    Args:
        inputs, outputs: dimensions; 2 D outputs for heads of D dimensions there. The hidden layer has as
            many units as the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        check.count(inputs, "inputs")
        check.count(outputs, "outputs")
        self.layers = nn.Sequential(
            nn.Linear(inputs, outputs), nn.Tanh(), nn.Linear(outputs, outputs)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        return self.layers(embeddings)

    def loss(self, embeddings: Tensor) -> Tensor:
        """How far proportions of distances of [B, inputs] are from being kept; `embeddings` as given."""
        return proportion_loss(self(embeddings), embeddings.detach())


def proportion_loss(embeddings: Tensor, teacher: Tensor) -> Tensor:
    """B^2 |D / sum D - E / sum E|, Frobenius norm, of squared distances of [B, D] and a teacher's [B, E].

    With centred rows X and Y scaled so that the sums are 1, differences of squared norms u, the square
    is 2 B |u|^2 + 2 (sum u)^2 + 4 |X^T X|^2 + 4 |Y^T Y|^2 - 8 |X^T Y|^2: no [B, B] matrix. In float64,
    because these terms cancel where little is left to learn. Rows that are all equal have a loss and
    gradient of 0.
    """
    check.embeddings(embeddings, "embeddings")
    check.embeddings(teacher, "teacher")
    size = len(embeddings)
    if len(teacher) != size:
        raise ValueError(f"teacher: expected {size} rows, got {len(teacher)}")
    x, y = (_scaled(t.double()) for t in (embeddings, teacher))
    u = x.square().sum(1) - y.square().sum(1)
    square = 2 * size * u.square().sum() + 2 * u.sum().square()
    for a, b, factor in ((x, x, 4), (y, y, 4), (x, y, -8)):
        square = square + factor * (a.T @ b).square().sum()
    # Rounding may leave less than nothing; the root of 0 has no derivative.
    loss = size**2 * square.clamp(min=1e-24).sqrt()
    return loss.to(torch.promote_types(embeddings.dtype, torch.float32))


def _scaled(x: Tensor) -> Tensor:
    """Centred rows whose squared distances sum to 1 (2 B times the sum of squared norms)."""
    x = x - x[:1].detach()  # equal rows are 0 then, not what the mean's rounding leaves
    x = x - x.mean(0)
    return x / (2 * len(x) * x.square().sum()).clamp(min=1e-30).sqrt()
