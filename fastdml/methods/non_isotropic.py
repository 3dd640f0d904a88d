"""nivMF: images and class proxies as von Mises-Fisher distributions, and its family of similarities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .. import functional, row_loss
from ..engine import check
from ..engine.autograd import evaluate, once
from ..engine.call import Call
from ..engine.similarity import EPSILON, unit, without_autocast
from ..losses.proxy.expected_softmax import ExpectedSoftmax
from . import von_mises_fisher as vmf
from .classes import class_sums
from .directions import direction_and_length
from .draws import Draws

METRICS = ("el-nivmf", "nivmf", "el-vmf", "b-vmf", "kl-vmf", "l2", "cos")
_SMALLEST = 0.1  # concentration of a class
_SHORTEST = _SMALLEST / 2  # a K v is longer, but that of a proxy without a direction
_AT_ONCE = 1 << 20  # pairs of a block, where a similarity is not a product
_IN_CACHE = 2048  # classes


class NonIsotropicVMFLoss(nn.Module):
    """Cross-entropy over classes of the expected likelihood of images and classes as distributions.

    *A Non-isotropic Probabilistic Take on Proxy-based Deep Metric Learning*, Kirchhof et al., ECCV 2022
    (arXiv 2207.03784). An image is a von Mises-Fisher distribution: its embedding's direction mu and its
    length kappa, the certainty. A class has a direction v and a concentration: K [D] of its own for every
    dimension ("el-nivmf", "nivmf"), or one number k. Similarities, each divided by the temperature:

        el-nivmf  log mean_t exp(sigma_t), sigma_t = z_t . (K v) + a (before the mean divided by
                  the temperature), z_1 ... z_T drawn from vMF(mu, kappa); sections 3.3 and 3.4
        nivmf     mu . (K^2 v) / |K mu| + a: the class's density at the image's direction
        el-vmf, b-vmf   rho (log C(kappa) + log C(k)) - log C(rho |kappa mu + k v|), rho = 1 or 1/2
        kl-vmf    minus the divergence of image and class
        l2, cos   -|kappa mu - k v|^2, mu . v

    with a = log C(|K v|) + sum log K - log |K v| and C the normaliser of the von Mises-Fisher
    distribution in D dimensions.

    Memory is linear: the products of "el-nivmf", "kl-vmf", "l2" and "cos" with all classes run on the
    engine ([B T, C] and [B, C] matrices never exist), and the others in blocks of about a million pairs
    that backward makes again.

    Args:
        num_classes, embedding_size: C and D; labels are 0 ... C - 1.
        metric: see above.
        concentration: of every class at the start (6 to 22 in the released settings).
        temperature: > 0, learnt as a parameter unless learn_temperature is False.
        samples: T.
        guidance: weight of the Proxy-Anchor-like term on mu and v (0.1 to 5 in the released settings),
            with alpha = 32, positive and negative deltas 0.1 and -0.1; its positive terms are averaged
            over samples, not over present classes.
        density: "released": sigma as above; "paper": (K z) . (K v) / |K z| + a, the density as the
            paper defines it, at the price of blocks. For "el-nivmf".
        variant: "paper", or "released": quadratic fits for log C (at D = 128 one of its own in "el-nivmf"
            alone; else the one for 512), the biased sampler of draws, and "kl-vmf" with the sign of
            mu . v inverted and the mean cosine of the image taken for 1.
        gradient: of draws by kappa; see `von_mises_fisher.sample`.
        seed: of the draws.

    Parameters: `proxies` [C, D] (directions; one of zeros has none, and products of 0), `concentrations`
    [C, D] or [C] (0.1 at least), and `temperature` []. In the released settings the network's learning rate
    is multiplied by 5,000 for proxies (7,500 on Cars), 20,000 for concentrations (7,500) and 200 for the
    temperature: `parameter_groups`. The network must not normalise; its last layer starts 10 to 50 times
    larger than usual there, so that kappa begins in the range where it matters. State: the parameters and
    the place in the draws.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        metric: str = "el-nivmf",
        *,
        concentration: float = 10.0,
        temperature: float = 0.003,
        learn_temperature: bool = True,
        samples: int = 5,
        guidance: float = 0.0,
        density: str = "released",
        variant: str = "paper",
        gradient: str = "exact",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if metric not in METRICS:
            raise ValueError(f"metric: expected one of {METRICS}, got {metric!r}")
        check.variant(variant)
        if density not in ("released", "paper"):
            raise ValueError(f"density: expected 'released' or 'paper', got {density!r}")
        self.num_classes = check.count(num_classes, "num_classes")
        self.embedding_size = check.integer(embedding_size, "embedding_size", 3, 1 << 30)
        self.metric = metric
        self.samples = check.count(samples, "samples")
        self.guidance = check.non_negative(guidance, "guidance")
        self.density = density
        self.variant = variant
        self.gradient = gradient
        start = check.positive(concentration, "concentration")
        self.proxies = nn.Parameter(torch.empty(self.num_classes, self.embedding_size))
        nn.init.xavier_normal_(self.proxies)
        shape = (self.num_classes, self.embedding_size) if "nivmf" in metric else (self.num_classes,)
        self.concentrations = nn.Parameter(torch.full(shape, start))
        value = torch.tensor(check.positive(temperature, "temperature"))
        self.temperature = nn.Parameter(value, requires_grad=learn_temperature)
        self.draws = Draws(seed)

    @torch.no_grad()
    def warm_start(self, embeddings: Tensor, labels: Tensor) -> None:
        """Directions become the mean embeddings of classes; every class must have a sample."""
        check.embeddings_of(self.embedding_size, embeddings, "embeddings")
        labels = self._labels(embeddings, labels)
        sums = class_sums(embeddings.to(self.proxies.dtype), labels, self.num_classes)
        if not bool((torch.bincount(labels, minlength=self.num_classes) > 0).all()):
            raise ValueError("labels: expected a sample of every class")
        self.proxies.copy_(sums)

    def parameter_groups(
        self, rate: float, proxies: float = 5000, concentrations: float = 20000, temperature: float = 200
    ) -> list[dict[str, object]]:
        """Groups for an optimiser whose network learns at `rate`, with the released multiples."""
        parts = (
            (self.proxies, proxies),
            (self.concentrations, concentrations),
            (self.temperature, temperature),
        )
        return [{"params": [p], "lr": rate * factor} for p, factor in parts]

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of embeddings [B, D], not normalised, with labels [B] in [0, C).

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        check.embeddings_of(self.embedding_size, embeddings, "embeddings")
        labels = self._labels(embeddings, labels)
        x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        # Similarities are divided by a temperature of thousandths: narrow types have no digits left.
        with without_autocast(x.device):
            return self._loss(x, labels)

    def _loss(self, x: Tensor, labels: Tensor) -> Tensor:
        mean, kappa = direction_and_length(x)
        terms = {
            "el-nivmf": self._expected,
            "nivmf": self._at_point,
            "el-vmf": self._product_kernel,
            "b-vmf": self._product_kernel,
            "kl-vmf": self._divergence,
            "l2": self._euclidean,
            "cos": self._cosine,
        }
        loss = terms[self.metric](mean, kappa, labels)
        if self.guidance:
            loss = loss + self.guidance * _guidance(mean, unit(self.proxies.to(x.dtype)), labels)
        return loss

    def _classes(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Directions [C, D] and concentrations [C, D] or [C], in the type of the samples' directions."""
        directions = unit(self.proxies.to(mean.dtype))
        return directions, self.concentrations.to(mean.dtype).clamp(min=_SMALLEST)

    def _labels(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        labels = check.labels(labels, len(embeddings), embeddings.device, "labels", "embeddings")
        check.class_range(labels, self.num_classes, "labels", False)
        return labels

    def _log_c(self, kappa: Tensor) -> Tensor:
        """log C, up to a constant."""
        if self.variant == "paper":
            return vmf.log_normalizer(kappa, self.embedding_size)
        if self.metric == "el-nivmf" and self.embedding_size == 128:
            return -0.01909 * kappa - 0.003355 * kappa.square()
        return -0.0002662 * kappa - 0.0009685 * kappa.square()

    def _height(self, length: Tensor, log_k: Tensor) -> Tensor:
        """[C] a of |K v| and the sum of log K, in float64, as it is divided by a small temperature."""
        length = length.clamp(min=_SHORTEST)
        return self._log_c(length).double() + log_k - length.double().log()

    def _bias(self, height: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(height / temperature [C], temperature). Only differences of heights count, so that their mean is
        taken out before they are scaled and rounded."""
        tau = self.temperature.to(dtype)
        return ((height - height.detach().mean()) / tau).to(dtype), tau

    def _softmax(self, rows: Tensor, columns: Tensor, height: Tensor | None, labels: Tensor) -> Tensor:
        """Cross-entropy of (rows . columns + height) / temperature, height [C]."""
        bias, tau = None, self.temperature.to(rows.dtype)
        if height is not None:
            bias, tau = self._bias(height, rows.dtype)
        return functional.smoothed_cross_entropy(rows / tau, labels, columns, bias, smoothing=0.0)

    def _expected(self, mean: Tensor, kappa: Tensor, labels: Tensor) -> Tensor:
        generator = self.draws.next(mean.device)
        z = vmf.sample(
            mean,
            kappa,
            self.samples,
            generator=generator,
            gradient=self.gradient,
            variant=self.variant,
        ).flatten(0, 1)
        if self.density == "paper":
            directions, wide = self._classes(mean)
            height = self._height(*_length_and_log(directions, wide))
            return self._by_blocks(_density, z, (directions, wide), height, labels, self.samples)
        columns, length, log_k = _ClassTerms.apply(
            self.proxies.to(z.dtype), self.concentrations.to(z.dtype)
        )
        bias, tau = self._bias(self._height(length, log_k), z.dtype)
        return evaluate(
            Call(
                ExpectedSoftmax(self.samples),
                z / tau,
                columns,
                anchor_labels=labels.repeat_interleave(self.samples),
                candidate_labels=torch.arange(self.num_classes, device=labels.device),
                col_values=bias[None],
            )
        )

    def _at_point(self, mean: Tensor, kappa: Tensor, labels: Tensor) -> Tensor:
        directions, wide = self._classes(mean)
        height = self._height(*_length_and_log(directions, wide))
        return self._by_blocks(_density, mean, (directions, wide), height, labels, 1)

    def _product_kernel(self, mean: Tensor, kappa: Tensor, labels: Tensor) -> Tensor:
        directions, wide = self._classes(mean)
        rho = 1.0 if self.metric == "el-vmf" else 0.5
        columns = wide[:, None] * directions

        def similarity(x: Tensor, proxies: Tensor) -> Tensor:
            squares = x.square().sum(1)[:, None] + proxies.square().sum(1) + 2 * x @ proxies.T
            return -self._log_c(rho * squares.clamp(min=1e-12).sqrt())

        height = rho * self._log_c(wide).double()
        return self._by_blocks(
            similarity, kappa[:, None] * mean, (columns,), height, labels, 1
        )

    def _divergence(self, mean: Tensor, kappa: Tensor, labels: Tensor) -> Tensor:
        directions, wide = self._classes(mean)
        height = self._log_c(wide).double()
        if self.variant == "released":
            return self._softmax(-mean, wide[:, None] * directions, -height, labels)
        certain = vmf.mean_cosine(kappa, self.embedding_size)[:, None]
        return self._softmax(certain * mean, wide[:, None] * directions, height, labels)

    def _euclidean(self, mean: Tensor, kappa: Tensor, labels: Tensor) -> Tensor:
        directions, wide = self._classes(mean)
        rows = 2 * kappa[:, None] * mean
        return self._softmax(rows, wide[:, None] * directions, -wide.double().square(), labels)

    def _cosine(self, mean: Tensor, kappa: Tensor, labels: Tensor) -> Tensor:
        directions = unit(self.proxies.to(mean.dtype))
        return self._softmax(mean, directions, None, labels)

    def _by_blocks(
        self,
        similarity: Callable[..., Tensor],
        rows: Tensor,
        columns: tuple[Tensor, ...],
        height: Tensor,
        labels: Tensor,
        group: int,
    ) -> Tensor:
        """The mean over samples of log sum_(t, c) - log sum_t of exp((similarity + height) / temperature),
        a block of rows at a time; `group` rows belong to a sample."""
        height = (height - height.detach().mean()).to(rows.dtype)
        tau = self.temperature.to(rows.dtype)

        def block(x: Tensor, y: Tensor, height: Tensor, tau: Tensor, *columns: Tensor) -> Tensor:
            sigma = ((similarity(x, *columns) + height) / tau).view(len(y), group, self.num_classes)
            target = sigma.gather(2, y[:, None, None].expand(-1, group, 1))[:, :, 0]
            return (sigma.flatten(1).logsumexp(1) - target.logsumexp(1)).sum()

        step = max(1, _AT_ONCE // (self.num_classes * group))
        total = rows.new_zeros(())
        for start in range(0, max(1, len(labels)), step):  # one of nothing, for a gradient of zeros
            x = rows[start * group : (start + step) * group]
            y = labels[start : start + step]
            total = total + checkpoint(block, x, y, height, tau, *columns, use_reentrant=False)
        return total / max(1, len(labels))

    def extra_repr(self) -> str:
        return (
            f"{self.num_classes}, {self.embedding_size}, metric={self.metric!r}, "
            f"samples={self.samples}, guidance={self.guidance}, variant={self.variant!r}"
        )


class _ClassTerms(torch.autograd.Function):
    """(K v [C, D], |K v| [C], sum of log K [C] in float64) of proxies and concentrations [C, D].

    By hand, and some classes at a time: with many classes the two dozen passes over [C, D] that autograd
    would make, most into memory that the system must find first, take as long as a product.
    """

    @staticmethod
    def forward(ctx: Any, proxies: Tensor, concentrations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        columns, scale = torch.empty_like(proxies), proxies.new_empty(len(proxies), 1)
        length, logs = proxies.new_empty(len(proxies)), proxies.new_empty(len(proxies), dtype=torch.float64)
        for v, k, kv, inverse, size, log in _some(proxies, concentrations, columns, scale, length, logs):
            wide = k.clamp(min=_SMALLEST)
            norm = v.norm(dim=1, keepdim=True)
            torch.reciprocal(norm, out=inverse).masked_fill_(norm <= EPSILON, 0.0)
            torch.mul(wide, v, out=kv).mul_(inverse)
            size.copy_(kv.norm(dim=1))
            log.copy_(wide.log_().sum(1, dtype=torch.float64))
        ctx.save_for_backward(proxies, concentrations, scale, length)
        return columns, length, logs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        proxies, concentrations, scale, length = ctx.saved_tensors
        found = _class_gradients(proxies, concentrations, scale, length, *upstream)
        return tuple(once(found, (proxies, concentrations)))


@torch.no_grad()  # results go into memory that is there, which autograd refuses
def _class_gradients(
    proxies: Tensor, concentrations: Tensor, scale: Tensor, length: Tensor,
    upstream: Tensor, of_length: Tensor, of_log: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    d_proxies, d_concentrations = torch.empty_like(proxies), torch.empty_like(proxies)
    # Of K v: what comes from above, and through |K v| a multiple of K v itself.
    radial = scale * (of_length / length.clamp(min=_SHORTEST))[:, None]
    by_log = of_log.to(proxies.dtype)[:, None]
    parts = (proxies, concentrations, scale, radial, by_log, upstream, d_proxies, d_concentrations)
    for v, k, inverse, multiple, per_log, given, through, d_wide in _some(*parts):
        wide = k.clamp(min=_SMALLEST)
        torch.mul(wide, v, out=through).mul_(multiple).add_(given)
        torch.mul(through, v, out=d_wide).mul_(inverse)
        along = torch.linalg.vecdot(d_wide, wide)[:, None].mul_(inverse.square())
        d_wide.addcdiv_(per_log.expand_as(wide), wide).masked_fill_(k < _SMALLEST, 0)
        through.mul_(wide).mul_(inverse).addcmul_(v, along, value=-1)
    return d_proxies, d_concentrations


def _some(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Of tensors [C, ...] some classes at a time, whose passes find each other's results in the cache."""
    return zip(*(t.split(_IN_CACHE) for t in tensors))


def _length_and_log(directions: Tensor, wide: Tensor) -> tuple[Tensor, Tensor]:
    """(|K v|, sum of log K in float64) by autograd."""
    return (wide * directions).norm(dim=1), wide.log().sum(1, dtype=torch.float64)


def _density(x: Tensor, directions: Tensor, wide: Tensor) -> Tensor:
    """(K x) . (K v) / |K x| of rows x and all classes; 0 of a row of zeros."""
    squares = wide.square()
    lengths = x.square() @ squares.T
    there = lengths > 0
    return there * (x @ (squares * directions).T) / lengths.where(there, 1.0).sqrt()


def _log1p_sum_exp(z: Tensor, mask: Tensor) -> Tensor:
    """log(1 + sum of exp(z) over the mask), by row."""
    return F.pad(z.masked_fill(~mask, -math.inf), (0, 1)).logsumexp(1)


_ALPHA, _DELTA = 32.0, 0.1
_pull = row_loss(
    lambda s, positive, negative: _log1p_sum_exp(-_ALPHA * (s - _DELTA), positive), reduction="none"
)
_push = row_loss(lambda s, positive, negative: _log1p_sum_exp(_ALPHA * (s + _DELTA), negative))


def _guidance(mean: Tensor, directions: Tensor, labels: Tensor) -> Tensor:
    """Proxy-Anchor over the batch; every sample's proxy counts once for its sample."""
    present, count = labels.unique(return_counts=True)
    pull = _pull(directions[present], present, None, mean, labels)
    classes = torch.arange(len(directions), device=labels.device)
    push = _push(directions, classes, None, mean, labels)
    return (pull * count).sum() / max(1, len(labels)) + push
