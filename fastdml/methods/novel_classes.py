"""L2A-NC: a generator of classes that do not exist, for losses over proxies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..engine import check
from ..engine.similarity import unit, wide_type, without_autocast
from ..mining.steps import recomputing
from .draws import Draws


class ConditionalNorm(nn.Module):
    """Batch normalisation with a gain and a bias of each class."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(size, affine=False)
        self.gain = nn.Parameter(torch.empty(classes, size).normal_(1.0, 0.02))
        self.bias = nn.Parameter(torch.empty(classes, size).normal_(0.0, 0.02))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.gain[labels] * self.norm(x) + self.bias[labels]


class ConditionalGenerator(nn.Module):
    """Unit embeddings of a class from noise: two hidden layers, each with the class's batch normalisation
    and a leaky ReLU, and a linear layer. (Inferred.)

    Args:
        classes: how many. noise, hidden, embedding_size: dimensions.
    """

    def __init__(self, classes: int, noise: int, hidden: int, embedding_size: int) -> None:
        super().__init__()
        self.noise = noise
        self.layers = nn.ModuleList(nn.Linear(n, hidden, bias=False) for n in (noise, hidden))
        self.norms = nn.ModuleList(ConditionalNorm(classes, hidden) for _ in range(2))
        self.last = nn.Linear(hidden, embedding_size)

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """[B] and [B, noise] to [B, D] of unit length."""
        x = noise
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.leaky_relu(norm(layer(x), labels), 0.2)
        return unit(self.last(x))


class NovelClasses(nn.Module):
    """Trains a proxy loss on real classes and on classes that a generator makes up.

    *Learning to Generate Novel Classes for Deep Metric Learning*, Lee et al., BMVC 2021 (arXiv
    2201.01008). Inferred: there is no released code, and of the paper only the abstract was at hand: a
    conditional generator makes random embeddings of a class; novel classes with proxies of their own
    augment a proxy loss; the generator is trained to be realistic and diverse. Architecture, divergence
    and alternation are this library's.

        l2a = NovelClasses(ProxyAnchorLoss(2 * C, D), C, D, warm_up=steps_of_two_epochs)
        loss = l2a(model(images), labels)          # network and proxies; generator frozen
        if l2a.ready:
            l2a.generator_loss(embeddings, labels) # generator alone, in an optimiser of its own

    Args:
        loss: over C + novel classes, called as `loss(embeddings, labels)`; the first C are the real
            ones. Throw the others away after training.
        num_classes, embedding_size: C and D.
        novel: how many novel classes; None: C.
        noise, hidden: dimensions of the generator's noise and hidden layers.
        per_class: embeddings of every novel class that a step draws.
        rows: novel embeddings of a step; None: as many as the batch.
        divergence: weight of the Sinkhorn divergence between the batch and generated embeddings of its
            classes.
        blur, iterations: of that divergence (cost 1 - cosine).
        warm_up: steps on real data only.
        seed: of the draws.

    State: host, generator, number of steps and the place in the draws.
    """

    def __init__(
        self,
        loss: nn.Module,
        num_classes: int,
        embedding_size: int,
        novel: int | None = None,
        *,
        noise: int = 16,
        hidden: int = 512,
        per_class: int = 4,
        rows: int | None = None,
        divergence: float = 1.0,
        blur: float = 0.05,
        iterations: int = 50,
        warm_up: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = check.count(num_classes, "num_classes")
        self.novel = self.num_classes if novel is None else check.count(novel, "novel")
        every = self.num_classes + self.novel
        known = getattr(loss, "num_classes", every)
        if known != every:
            raise ValueError(
                f"loss: expected one of {every} classes, {num_classes} real ones and "
                f"{self.novel} novel ones, got {known}"
            )
        self.embedding_size = check.count(embedding_size, "embedding_size")
        known = getattr(loss, "embedding_size", embedding_size)
        if known != embedding_size:
            raise ValueError(f"loss: expected one of {embedding_size} dimensions, got {known}")
        self.loss = loss
        self.per_class = check.count(per_class, "per_class")
        self.rows = None if rows is None else check.count(rows, "rows")
        self.divergence = check.non_negative(divergence, "divergence")
        self.blur = check.positive(blur, "blur")
        self.iterations = check.count(iterations, "iterations")
        self.warm_up = check.integer(warm_up, "warm_up", 0, 1 << 62)
        self.generator = ConditionalGenerator(
            every,
            check.count(noise, "noise"),
            check.count(hidden, "hidden"),
            self.embedding_size,
        )
        self.draws = Draws(seed)
        self.steps = 0

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over: whether novel classes take part in the next step."""
        return self.steps >= self.warm_up

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """A step of the network and the proxies: the host's loss of embeddings [B, D] with labels [B] in
        [0, C), and of novel embeddings after the warm-up. No gradient reaches the generator."""
        labels = self._checked(embeddings, labels)
        novel = self.ready
        if self.training and not recomputing():
            self.steps += 1
        if not novel:
            return self.loss(embeddings, labels)
        source = self.draws.next(embeddings.device)
        made_up = self._novel_labels(len(labels), embeddings.device, source)
        was_training = self.generator.training
        self.generator.eval()
        with torch.no_grad():
            made = self._generate(made_up, source)
        self.generator.train(was_training)
        every = torch.cat([embeddings, made.to(embeddings.dtype)])
        return self.loss(every, torch.cat([labels, made_up]))

    def generator_loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """A step of the generator: the host's loss of embeddings made of the batch's classes and of novel
        ones, plus the divergence from the batch. Gradients reach the generator alone."""
        labels = self._checked(embeddings, labels)
        source = self.draws.next(embeddings.device)
        made_up = self._novel_labels(len(labels), embeddings.device, source)
        every = torch.cat([labels, made_up])
        if self.generator.training and len(every) == 1:  # no statistics for a batch normalisation
            raise ValueError("embeddings: expected rows beside the one novel embedding of a step, got none")
        made = self._generate(every, source)
        frozen = {name: p.detach() for name, p in self.loss.named_parameters()}
        loss = functional_call(self.loss, frozen, (made, every))
        if not self.divergence:
            return loss
        real, fake = embeddings.detach().to(made.dtype), made[: len(labels)]
        apart = sinkhorn_divergence(fake, real, self.blur, self.iterations)
        return loss + self.divergence * apart

    def _generate(self, labels: Tensor, source: torch.Generator) -> Tensor:
        dtype = self.generator.last.weight.dtype
        shape = (len(labels), self.generator.noise)
        noise = torch.randn(shape, generator=source, dtype=dtype, device=labels.device)
        return self.generator(labels, noise)

    def _novel_labels(
        self, batch: int, device: torch.device, source: torch.Generator
    ) -> Tensor:
        """`per_class` of each of as many random novel classes as make up the rows of a step."""
        rows = batch if self.rows is None else self.rows
        classes = min(self.novel, max(1, rows // self.per_class))
        order = torch.randperm(self.novel, generator=source, device=device)[:classes]
        return (self.num_classes + order).repeat_interleave(self.per_class)

    def _checked(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        check.embeddings_of(self.embedding_size, embeddings, "embeddings")
        labels = check.labels(labels, len(embeddings), embeddings.device, "labels", "embeddings")
        check.class_range(labels, self.num_classes, "labels", False, "the real classes")
        return labels

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: Any) -> None:
        self.steps = int(state["steps"])


def sinkhorn_divergence(
    x: Tensor, y: Tensor, blur: float = 0.05, iterations: int = 50
) -> Tensor:
    """W(x, y) - W(x, x) / 2 - W(y, y) / 2 of points [B, D] and [N, D] with equal weights.

    W is entropic optimal transport, with an entropy of weight `blur`, of the cost 1 - cosine (*Interpolating
    between Optimal Transport and MMD using Sinkhorn Divergences*, Feydy et al., AISTATS 2019). The
    potentials come from iterations without a graph; at the optimum the derivative is that of the costs
    under the plan (the envelope theorem). Holds a [B, N] matrix of costs at a time and one for autograd.
    Without points of one kind it is 0. In float32, or float64 for such points.
    """
    check.embeddings(x, "x")
    check.embeddings(y, "y")
    check.same_space(x, y, "x", "y")
    kind = wide_type(x, y)
    x, y = unit(x.to(kind)), unit(y.to(kind))
    if not len(x) or not len(y):
        return (x @ y.T).sum()  # 0, with a gradient of zeros
    with without_autocast(x.device):  # costs are divided by a small blur
        total = _transport(x, y, blur, iterations)
        return total - (_transport(x, x, blur, iterations) + _transport(y, y, blur, iterations)) / 2


def _transport(x: Tensor, y: Tensor, blur: float, iterations: int) -> Tensor:
    cost = 1 - x @ y.T
    with torch.no_grad():
        fixed = cost / blur
        f, g = fixed.new_zeros(len(x)), fixed.new_zeros(len(y))
        log_a, log_b = -fixed.new_tensor([float(len(x)), float(len(y))]).log()
        for _ in range(iterations):
            f = -(g + log_b - fixed).logsumexp(1)
            g = -((f + log_a)[:, None] - fixed).logsumexp(0)
        plan = (f[:, None] + g - fixed + log_a + log_b).exp()
        # After a half-step for g the plan's columns are exact, and the dual's value is f's and g's mean.
        value = blur * (f.mean() + g.mean())
    moved = (plan * cost).sum()
    return moved + (value - moved.detach())
