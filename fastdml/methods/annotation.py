"""Annotation-efficient training: the ProxyNCA++ recipe, and pseudo-labels for what nobody has labelled."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.similarity import unit


class MaxPoolEmbedding(nn.Module):
    """The head of ProxyNCA++: global maximum, layer normalisation without affine, a linear layer.

    *ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component Analysis*, Teh et al., ECCV 2020
    (arXiv 2004.01113), sections 4.2 and 4.4.

    Args:
        channels: of the feature map. embedding_size: D.
    """

    def __init__(self, channels: int, embedding_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.linear = nn.Linear(channels, embedding_size)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, channels, H, W] to [B, D]."""
        return self.linear(self.norm(maps.amax(dim=(2, 3))))


def fast_moving_proxies(
    model: nn.Module, loss: nn.Module, rate: float = 4e-3, proxy_rate: float = 4e2
) -> torch.optim.Adam:
    """The optimiser of ProxyNCA++: Adam with eps = 1, no weight decay, and proxies that move fast.

    (4e-3, 4e2) are the released rates for CUB and Cars; In-Shop takes 6 times both (2.4e-2, 2.4e3), and
    Stanford Online Products (2.4e-2, 2.4e2).
    """
    groups = [
        {"params": list(model.parameters()), "lr": check.positive(rate, "rate")},
        {"params": list(loss.parameters()), "lr": check.positive(proxy_rate, "proxy_rate")},
    ]
    return torch.optim.Adam(groups, eps=1.0)


class RecordedPlateaus:
    """The two runs of ProxyNCA++: milestones found on a validation split, replayed on all classes.

    First run: `step(score)` after every epoch lowers the rates where the score has not improved for more
    than `patience` epochs, and notes the epoch. Second run: `replay(optimizer)` lowers them at the same
    epochs.

    Args:
        optimizer: of the first run.
        factor: of the rates at a milestone. patience: in epochs, 4 there.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, factor: float = 0.1, patience: int = 4
    ) -> None:
        self.factor = check.number(factor, "factor", "a number in (0, 1)", lambda v: 0 < v < 1)
        self._schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", factor=self.factor, patience=patience
        )
        self._optimizer = optimizer
        self.milestones: list[int] = []  # epochs, from 1, after which the rates fell
        self.epoch = 0

    def step(self, score: float) -> bool:
        """Tells of the validation score (larger is better) after an epoch; True at a milestone."""
        self.epoch += 1
        before = self._rates()
        # An improvement is a share of the best score, which below 0 must count upwards too.
        self._schedule.threshold = math.copysign(self._schedule.threshold, self._schedule.best)
        self._schedule.step(score)
        fell = before != self._rates()
        if fell:
            self.milestones.append(self.epoch)
        return fell

    def _rates(self) -> list[float]:
        # Numbers: a rate that is a tensor is changed in place.
        return [float(group["lr"]) for group in self._optimizer.param_groups]

    def replay(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.MultiStepLR:
        """A schedule for another optimiser; call its `step` after every epoch."""
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones, self.factor)

    def state_dict(self) -> dict[str, Any]:
        return {
            "schedule": self._schedule.state_dict(),
            "milestones": list(self.milestones),
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._schedule.load_state_dict(state["schedule"])
        self.milestones, self.epoch = list(state["milestones"]), int(state["epoch"])


def label_the_rest(
    embeddings: Tensor, labels: Tensor, clusters: int, *, seed: int = 0
) -> Tensor:
    """Labels with pseudo-classes for the samples that have none.

    Normalised embeddings of unlabelled samples are clustered by scikit-learn's mini-batch k-means (the
    combination with ProxyNCA++ is inferred: the thesis that names annotation-efficient learning,
    *Embracing Annotation Efficient Learning*, Teh, has no such experiment in its chapter on
    metric learning). Refresh them every few epochs, with proxies for C + clusters classes.

    Args:
        embeddings: [N, D], of the network as it is, in evaluation mode.
        labels: [N]: classes 0 ... C - 1, and -1 for unlabelled samples.
        clusters: at most the number of unlabelled samples.
        seed: of the clustering.

    Returns:
        [N] labels: the given ones, and C ... C + clusters - 1.

    Raises:
        ImportError: scikit-learn is missing (pip install fastdml[methods]).
    """
    check.embeddings(embeddings, "embeddings", validate=True)
    labels = check.labels(labels, len(embeddings), embeddings.device, "labels", "embeddings")
    if bool((labels < -1).any()):
        raise ValueError("labels: expected classes from 0, or -1 for unlabelled samples")
    rest = labels < 0
    clusters = check.integer(clusters, "clusters", 1, max(1, int(rest.sum())))
    if not bool(rest.any()):
        raise ValueError("labels: expected unlabelled samples (-1), got none")
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ModuleNotFoundError as error:
        raise ImportError(
            "pseudo-labels need scikit-learn, which is not installed: pip install fastdml[methods]"
        ) from error
    points = unit(embeddings.detach()[rest].float()).cpu().numpy()
    means = MiniBatchKMeans(clusters, random_state=seed, n_init=3, batch_size=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct points than clusters
        found = torch.from_numpy(means.fit_predict(points)).long().to(labels.device)
    completed = labels.clone()
    completed[rest] = found + int(labels.max()) + 1
    return completed
