"""The heads and the hybrid loss against their formulas."""

import pytest
import torch
from method_tools import batches, randn
from torch.nn import functional as F

from fastdml import losses
from fastdml.methods import GlobalLocalHeads, HybridLoss, SecondOrderAttention


def attended(layer, maps):
    """Position by position."""
    b, _, h, w = maps.shape
    q, k, v = (f(maps).flatten(2) for f in (layer.query, layer.key, layer.value))
    out = torch.zeros_like(q)
    for n in range(b):
        for i in range(h * w):
            weights = torch.stack([q[n, :, i] @ k[n, :, j] for j in range(h * w)]).softmax(0)
            out[n, :, i] = sum(weights[j] * v[n, :, j] for j in range(h * w))
    return maps + layer.zeta * layer.out(out.view(b, -1, h, w))


@pytest.mark.parametrize("inner", [None, 3])
def test_second_order_attention(inner):
    torch.manual_seed(0)
    layer, maps = SecondOrderAttention(5, inner, zeta=0.7).double(), randn(2, 5, 3, 2)
    assert torch.allclose(layer(maps), attended(layer, maps))


def test_heads():
    torch.manual_seed(0)
    heads = GlobalLocalHeads(4, 6, 3).double()
    maps = randn(2, 4, 4, 4), randn(2, 6, 2, 2, seed=1)
    parts = []
    for f, attend, linear in zip(maps, heads.attention, heads.linear):
        f = attended(attend, f)
        parts.append(linear(f.mean((2, 3)) + f.amax((2, 3))))
    found = heads(*maps)
    assert torch.allclose(found, F.normalize(torch.cat(parts, 1)))
    assert found.shape == (2, 6)


def test_heads_in_half_precision():
    """A row of zeros, and one that is longer than float16 holds."""
    heads = GlobalLocalHeads(4, 6, 3, zeta=0.0)
    for linear in heads.linear:
        torch.nn.init.zeros_(linear.bias), torch.nn.init.constant_(linear.weight, 3e3)
    maps = [torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, c, 2, 2) for c in (4, 6)]
    expected = heads(*maps)
    found = heads.half()(*(m.half() for m in maps))
    assert found.dtype == torch.float16 and torch.allclose(found.float(), expected, atol=1e-3)


@pytest.mark.parametrize("sign, direction", [("minus", -1), ("plus", 1)])
def test_hybrid_loss(sign, direction):
    torch.manual_seed(0)
    x, y = batches(1, 13, 6, 4)[0]
    x = x.requires_grad_()
    loss = HybridLoss(4, 6, 0.3, base=0.8, negative_sign=sign).double()
    s = F.normalize(x) @ F.normalize(x).T
    same, eye = y[:, None] == y, torch.eye(13, dtype=torch.bool)
    one = torch.zeros(13, 1).double()
    parts = ((-2 * (s - 0.8), same & ~eye, 2), (50 * (s + direction * 0.8), ~same, 50))
    true = sum(
        torch.cat([z.masked_fill(~mask, -torch.inf), one], 1).logsumexp(1).mean() / k
        for z, mask, k in parts
    )
    anchor = losses.ProxyAnchorLoss(4, 6).double()
    anchor.load_state_dict(loss.proxies.state_dict())
    true = true + 0.3 * anchor(x, y)
    found = loss(x, y)
    assert torch.allclose(found, true)
    grads = [torch.autograd.grad(v, x, retain_graph=True)[0] for v in (found, true)]
    assert torch.allclose(*grads, atol=1e-9)


def test_refuses():
    with pytest.raises(ValueError, match="negative_sign: expected"):
        HybridLoss(4, 6, negative_sign="+")
