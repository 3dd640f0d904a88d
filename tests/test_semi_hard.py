"""FaceNet's semi-hard triplets, one by one, and at sizes whose triplets nobody could list."""

import pytest
import torch

from fastdml import losses, miners


def brute_force(x, y, ref, ref_y, own, margin=None):
    u, v = (torch.nn.functional.normalize(z.double(), dim=1) for z in (x, ref))
    d = torch.cdist(u, v)
    found = set()
    for a in range(len(x)):
        for p in range(len(ref)):
            if ref_y[p] != y[a] or (own and a == p):
                continue
            farther = [n for n in range(len(ref)) if ref_y[n] != y[a] and d[a, n] > d[a, p] + 1e-9]
            if margin is not None:
                farther = [n for n in farther if d[a, n] < d[a, p] + margin]
            if farther:
                found.add((a, p, min(farther, key=lambda n: (d[a, n], n))))
    return found


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("one_set", [True, False])
@pytest.mark.parametrize("at_once", [1 << 20, 60])
def test_each_positives_nearest_farther_negative(one_set, margin, at_once, monkeypatch):
    """Classes of any size, singletons, positives beyond all negatives."""
    monkeypatch.setattr(miners.SemiHardMiner, "at_once", at_once)
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(23, 3, generator=g), torch.randint(0, 5, (23,), generator=g)
    y[4] = 9
    others = torch.randn(31, 3, generator=g), torch.randint(0, 5, (31,), generator=g)
    ref, ref_y = (x, y) if one_set else others
    miner = miners.SemiHardMiner(margin)
    found = miner(x, y) if one_set else miner(x, y, ref, ref_y)
    expected = brute_force(x, y, ref, ref_y, one_set, margin)
    assert set(zip(*(t.tolist() for t in found))) == expected
    assert len(found[0]) == len(expected) > 10


def test_ties_to_rounding_are_not_farther():
    x = torch.tensor([[1.0, 0], [0, 1], [0, -1], [-1, 0]])
    a, p, n = miners.SemiHardMiner()(x, torch.tensor([0, 0, 1, 1]))
    assert (a[0].item(), p[0].item(), n[0].item()) == (0, 1, 3)  # 2 is as far as 1


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_no_triplet(labels):
    x = torch.randn(3, 4)
    found = miners.SemiHardMiner()(x, torch.tensor(labels))
    assert all(t.shape == (0,) for t in found)
    assert losses.TripletMarginLoss()(x, None, found).item() == 0


def test_margin_is_checked():
    with pytest.raises(ValueError, match="margin: expected a positive number"):
        miners.SemiHardMiner(-1)


def test_many_candidates():
    """A block of rows at a time: all triplets of these would be 10^9."""
    g = torch.Generator().manual_seed(0)
    x, ref = torch.randn(16, 8, generator=g), torch.randn(100_000, 8, generator=g)
    y, ref_y = torch.arange(16), torch.arange(100_000) % 500
    a, p, n = miners.SemiHardMiner()(x, y, ref, ref_y)
    assert len(a) > 16 * 190 and bool((ref_y[p] == y[a]).all()) and bool((ref_y[n] != y[a]).all())
