"""Proxy-NCA in both definitions, and ProxyNCA++."""

from __future__ import annotations

from typing import Any

from ...engine import check
from ...engine.distances import metric_of
from .proxies import ProxyLoss
from .softmax_cross_entropy import SoftmaxCrossEntropy

__all__ = ["ProxyNCALoss", "ProxyNCAPlusPlusLoss"]


class ProxyNCALoss(ProxyLoss):
    """Proxy-NCA loss.

    *No Fuss Distance Metric Learning using Proxies*, Movshovitz-Attias et al., ICCV 2017 (arXiv
    1703.07464), equation 4, on squared distances d of the normalised sample and proxies:

        -log(exp(-scale d_y) / sum_{c != y} exp(-scale d_c))

    The paper's sum leaves the sample's own class out (positive_in_denominator=False; the loss can then
    be negative). pytorch-metric-learning and the community's port keep it in: the default here.

    Args:
        num_classes, embedding_size: C and D; the parameter is `proxies` [C, D], normally distributed.
        softmax_scale: factor of the squared distances. Samples and proxies scaled by a and b before the
            distance (3 and 3 in the port) are softmax_scale = a b.
        positive_in_denominator: see above.
        smoothing: label smoothing of the port, 0.1 there.

    With an index tuple only its anchors count, as in pytorch-metric-learning. Rows are samples.
    Other arguments: see `ProxyLoss`.
    """

    function = "proxy_nca"
    default_similarity = "squared_distance"
    weighs_anchors_only = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        softmax_scale: float = 1,
        *,
        positive_in_denominator: bool = True,
        smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, embedding_size, **kwargs)
        self.softmax_scale = softmax_scale
        self.positive_in_denominator = positive_in_denominator
        self.smoothing = smoothing
        self.description()  # checks the parameters

    def description(self) -> SoftmaxCrossEntropy:
        if self.reduction == "nonzero" and not self.positive_in_denominator:
            raise ValueError(
                "reduction: expected another than 'nonzero' with positive_in_denominator=False, whose rows "
                "may be below 0"
            )
        similarity, scale = self.similarity, check.positive(self.softmax_scale, "softmax_scale")
        if similarity == "squared_distance":
            # 2 - 2s: a softmax does not see the 2, and the similarity itself is exact near 1.
            similarity, scale = "cosine", 2 * scale
        elif metric_of(similarity).sign < 0:
            scale = -scale
        return SoftmaxCrossEntropy(
            scale, 0.0, self.smoothing, self.positive_in_denominator, similarity=similarity
        )


class ProxyNCAPlusPlusLoss(ProxyNCALoss):
    """ProxyNCA++ loss.

    *ProxyNCA++: Revisiting and Revitalizing Proxy Neighborhood Component Analysis*, Teh et al., ECCV
    2020 (arXiv 2004.01113), equation 6: Proxy-NCA with the sample's own class in the denominator, and
    a temperature, so that logits are -d / temperature, d the squared distance.

    Args:
        num_classes, embedding_size: C and D; the parameter is `proxies` [C, D], normally distributed.
        temperature: > 0; 1/9 as published.

    Rows are samples. Other arguments: see `ProxyLoss`.
    """

    function = "proxy_nca_plus_plus"
    sets = ("softmax_scale",)

    def __init__(
        self, num_classes: int, embedding_size: int, temperature: float = 1 / 9, **kwargs: Any
    ) -> None:
        scale = 1 / check.positive(temperature, "temperature")
        super().__init__(num_classes, embedding_size, scale, **self.unset(kwargs))

    @property
    def temperature(self) -> Any:
        """One over `softmax_scale`."""
        return 1 / self.softmax_scale

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.softmax_scale = 1 / check.positive(value, "temperature")
