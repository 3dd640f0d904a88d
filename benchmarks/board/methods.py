"""Entries of the methods, each on the host that its paper (or its specification) names first."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdml import losses
from fastdml import methods as M
from fastdml.demo.model import embed
from fastdml.mixing import similarity_mixup

from .networks import source_network
from .plan import D, Plan


def multi_similarity() -> nn.Module:
    return losses.MultiSimilarityLoss(epsilon=0.1)


class DAS(Plan):
    def build(self) -> None:
        sampling = M.DenselyAnchoredSampling(self.classes, D, seed=self.seed, detach=True)
        # The host normalises; DAS remembers and moves what it sees, so that it sees unit vectors.
        self.loss = M.DASLoss(multi_similarity(), sampling)

    def objective(self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor) -> Tensor:
        return self.loss(F.normalize(outputs[0]), labels)


class IAA(Plan):
    """Statistics from all training images once in two epochs, after the first two tenths."""

    def build(self) -> None:
        self.augmentation = M.IntraClassAugmentation(self.classes, D, strength=0.6, seed=self.seed)
        self.loss = M.IAALoss(multi_similarity(), self.augmentation)
        self.host = multi_similarity()

    def begin(self, step: int) -> None:
        start = self.budget.steps // 5
        every = 2 * self.steps_per_epoch()
        self.on = step >= start
        if self.on and (step - start) % every == 0:
            self.augmentation.estimate(self.train_embeddings(), self.labels)
        self.now = self.augmentation.scheduled_strength(step, self.budget.steps)

    def objective(self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor) -> Tensor:
        if not self.on:
            return self.host(outputs[0], labels)
        return self.loss(outputs[0], labels, self.now)


class L2A(Plan):
    """The generator learns from the first step, so that what it makes up is of use after the warm-up.
    Batches are those of its host's entry: one image a class."""

    per_class = 1

    def build(self) -> None:
        host = losses.ProxyAnchorLoss(2 * self.classes, D)
        warm_up = self.budget.steps // 5
        self.loss = M.NovelClasses(host, self.classes, D, warm_up=warm_up, seed=self.seed)
        self.learnt = [host]
        self.generator = torch.optim.Adam(self.loss.generator.parameters(), 3e-3)

    def objective(self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor) -> Tensor:
        self.generator.zero_grad()
        self.loss.generator_loss(outputs[0].detach(), labels).backward()
        self.generator.step()
        return self.loss(outputs[0], labels)


class CCP(Plan):
    """An evaluation on the validation classes every tenth of the budget; patience 2. The host is the
    board's contrastive loss, of normalised rows: so are the proxies, which otherwise move too slowly to
    follow a network that learns fast. Pairs of samples count as much as those with proxies, as
    validation classes prefer it to the released tenth."""

    def build(self) -> None:
        self.loss = M.ChanceConstraints(
            self.model,
            self.classes,
            D,
            losses.ContrastiveLoss(),
            proxies_per_class=4,
            pool_size=7,
            patience=2,
            sample_weight=1.0,
        )
        self.learnt = [self.loss]
        self.draws = torch.Generator().manual_seed(self.seed)

    def draw(self, count: int) -> Tensor:
        rows = M.draw_each_class(self.labels, count, self.draws)
        return F.normalize(self.embed(self.images(rows.flatten()))).view(self.classes, count, D)

    def begin(self, step: int) -> None:
        if step == 0:
            self.loss.relocate(self.draw)

    def gradients(self) -> None:
        self.loss.proximal.add_to_gradients()

    def end(self, step: int) -> None:
        if (step + 1) % max(1, self.budget.steps // 10) == 0:
            self.loss.evaluated(self.validation(), self.draw)


class Projections(Plan):
    """Four periods; classes are mined by the representatives' embeddings."""

    mined = True

    def build(self) -> None:
        period = max(1, self.budget.steps // 4)
        size = min(self.budget.batch // 4, self.classes)
        self.sampler = M.RepresentativeSampler(
            self.labels,
            size,
            4,
            period,
            self.budget.steps,
            embed=self.of_rows if self.mined else None,
            seed=self.seed,
        )
        self.loss = M.AlternatingProjections(self.model, losses.MultiSimilarityLoss(), size, period)

    def of_rows(self, rows: Tensor) -> Tensor:
        return self.embed(self.task.train.pixels[rows])

    def batches(self) -> Iterator[Tensor]:
        while True:
            for rows in self.sampler:
                yield torch.tensor(rows)

    def gradients(self) -> None:
        self.loss.proximal.add_to_gradients()


class UniformProjections(Projections):
    mined = False


class NivMF(Plan):
    """The network's last layer starts larger, so that lengths are concentrations. Classes begin at 10 and
    the temperature stays at 0.3: logits have the range of cosines with a usual temperature of 0.03. (The
    released 0.003 is for networks trained before, at rates of 1e-5.)"""

    metric, per_class = "el-nivmf", 2

    def build(self) -> None:
        self.loss = M.NonIsotropicVMFLoss(
            self.classes, D, self.metric, temperature=0.3, learn_temperature=False, seed=self.seed
        )
        self.learnt = [self.loss]
        with torch.no_grad():
            self.model.embed.weight.mul_(30)

    def begin(self, step: int) -> None:
        if step == 0:
            self.loss.warm_start(self.train_embeddings(), self.labels)


class NivMFToPoint(NivMF):
    metric = "nivmf"


class LSD(Plan):
    average: float | None = None

    def build(self) -> None:
        epochs = max(1, self.budget.steps // self.steps_per_epoch())
        self.loss = M.SelfDistillation(
            self.model, multi_similarity(), epochs, alpha=50, average=self.average
        )
        self.epochs = epochs

    def begin(self, step: int) -> None:
        epoch, place = divmod(step, self.steps_per_epoch())
        if place == 0:
            self.loss.begin_epoch(min(epoch, self.epochs))

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model(images),)

    def objective(self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor) -> Tensor:
        return self.loss(outputs[0], labels, images)

    def end(self, step: int) -> None:
        self.loss.step()


class UnitLSD(LSD):
    """Products of unit vectors, as in the released code, whose networks normalise."""

    def build(self) -> None:
        super().build()
        self.loss.distillation = losses.ListwiseSelfDistillationLoss(similarity="cosine")


class AveragedLSD(UnitLSD):
    average = 0.98


class SmallTarget(Plan):
    """Embedding transfer to half the dimension, with relaxed contrastive loss."""

    views = 2

    def build(self) -> None:
        self.loss = M.EmbeddingTransfer(source_network(self))
        torch.manual_seed(self.seed + 1)
        self.model = self.network(D // 2)

    def objective(self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor) -> Tensor:
        return self.loss(outputs[0], images)


class WEL(Plan):
    def build(self) -> None:
        members = [
            multi_similarity(),
            losses.ProxyAnchorLoss(self.classes, D),
            losses.BinomialDevianceLoss(),
        ]
        self.loss = M.LossEnsemble(members)
        self.learnt = [self.loss]


class WEDL(Plan):
    """A linear head of D / 2 dimensions for each loss."""

    def build(self) -> None:
        size = D // 2
        members = [
            multi_similarity(),
            losses.ProxyAnchorLoss(self.classes, size),
            losses.BinomialDevianceLoss(),
        ]
        self.loss = M.LossEnsemble(members)
        self.learnt = [self.loss]
        self.model.embed = nn.Linear(self.model.embed.in_features, 3 * size)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.normalize(h) for h in x.chunk(3, dim=1))

    def outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        return self.heads(self.model(images))

    def objective(self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor) -> Tensor:
        return self.loss(list(outputs), labels)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        return self.loss.embed(self.heads(embed(self.model, images)))


class TwoMaps(nn.Module):
    """The small network with its map before the last two blocks, and its last one, under two heads."""

    def __init__(self, trunk: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        channels = [m.out_channels for m in self.trunk.modules() if isinstance(m, nn.Conv2d)]
        self.heads = M.GlobalLocalHeads(channels[-3], channels[-1], D // 2, inner=32)

    def forward(self, images: Tensor) -> Tensor:
        local = self.trunk[:-2](images.contiguous(memory_format=torch.channels_last))
        return self.heads(local, self.trunk[-2:](local))


class MultiHead(Plan):
    def build(self) -> None:
        torch.manual_seed(self.seed)
        self.model = TwoMaps(self.network().features)
        self.loss = M.HybridLoss(self.classes, D, base=0.5)
        self.learnt = [self.loss]


class HybridAlone(Plan):
    """The multi-head method's loss on the plain network."""

    def build(self) -> None:
        self.loss = M.HybridLoss(self.classes, D, base=0.5)
        self.learnt = [self.loss]


class SiMix(Plan):
    def build(self) -> None:
        self.loss = losses.RecallAtKLoss(similarity="dot")
        self.draws = torch.Generator().manual_seed(self.seed)

    def objective(self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor) -> Tensor:
        return self.loss(*similarity_mixup(outputs[0], labels, generator=self.draws))


class HalfLabels(Plan):
    """ProxyNCA++ with labels for every other class; the rest is not used."""

    per_class, pseudo = 2, False

    def build(self) -> None:
        self.known = self.task.train.labels % 2 == 0
        self.truth = self.task.train.labels // 2
        self.own = int(self.truth[self.known].max()) + 1
        self.rows = self.known.nonzero()[:, 0]
        self.labels = self.truth[self.rows]
        self.clusters = self.classes - self.own
        self.classes = self.own
        every = self.own + (self.clusters if self.pseudo else 0)
        self.loss = losses.ProxyNCAPlusPlusLoss(every, D)
        self.learnt = [self.loss]
        self.place = 0

    def begin(self, step: int) -> None:
        start, every = self.budget.steps // 4, max(1, self.budget.steps // 8)
        if not self.pseudo or step < start or (step - start) % every:
            return
        given = torch.where(self.known, self.truth, -1)
        self.labels = M.label_the_rest(
            self.train_embeddings(), given, self.clusters, seed=self.seed
        )
        self.rows = torch.arange(len(self.labels))
        self.classes = self.own + self.clusters

    def batches(self) -> Iterator[Tensor]:
        """Of the labels as they are at each step; indices of all training images."""
        source, labels = super().batches(), self.labels
        while True:
            if labels is not self.labels:
                source, labels = super().batches(), self.labels
            yield self.rows[next(source)]

    def targets(self, rows: Tensor) -> Tensor:
        if len(self.rows) == len(self.task.train):
            return self.labels[rows]
        return self.truth[rows]


class PseudoLabels(HalfLabels):
    """The same, with pseudo-classes for the other half from a quarter of the budget on."""

    pseudo = True


METHODS: dict[str, type[Plan]] = {
    "DAS (multi-similarity)": DAS,
    "IAA (multi-similarity)": IAA,
    "L2A-NC (Proxy-Anchor)": L2A,
    "CCP (contrastive)": CCP,
    "alternating projections (multi-similarity)": UniformProjections,
    "alternating projections, mined classes": Projections,
    "EL-nivMF": NivMF,
    "nivMF to point": NivMFToPoint,
    "list-wise self-distillation (multi-similarity)": UnitLSD,
    "list-wise self-distillation, averaged teacher": AveragedLSD,
    "embedding transfer to half the dimension": SmallTarget,
    "WEL (three losses)": WEL,
    "WEDL (three heads)": WEDL,
    "multi-head (hybrid loss)": MultiHead,
    "hybrid loss alone": HybridAlone,
    "SiMix (Recall@k)": SiMix,
    "ProxyNCA++, half the labels": HalfLabels,
    "ProxyNCA++, half the labels, pseudo-labels": PseudoLabels,
}
# Whose figures say whether a method helped.
HOSTS = {
    "DAS (multi-similarity)": "multi_similarity",
    "IAA (multi-similarity)": "multi_similarity",
    "L2A-NC (Proxy-Anchor)": "proxy_anchor",
    "CCP (contrastive)": "contrastive",
    "alternating projections (multi-similarity)": "multi_similarity",
    "alternating projections, mined classes": "multi_similarity",
    "list-wise self-distillation (multi-similarity)": "multi_similarity",
    "list-wise self-distillation, averaged teacher": "multi_similarity",
    "embedding transfer to half the dimension": "multi_similarity",
    "WEL (three losses)": "multi_similarity",
    "WEDL (three heads)": "multi_similarity",
    "multi-head (hybrid loss)": "hybrid loss alone",
    "SiMix (Recall@k)": "recall_at_k",
    "ProxyNCA++, half the labels, pseudo-labels": "ProxyNCA++, half the labels",
}
