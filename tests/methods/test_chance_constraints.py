"""CCP: relocation and the loss against the release's golden values, the schedule against a loop."""

import copy

import numpy as np
import pytest
import torch
from conftest import ROOT
from method_tools import batches, randn, same_state, saved
from torch import nn

from fastdml import losses
from fastdml.methods import ChanceConstraints, ProximalTerm, draw_each_class, greedy_k_centers

GOLDEN, FULL = ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"
C, D, K = 5, 6, 3


def load(case):
    with np.load(GOLDEN / f"{case}.npz") as stored:
        return {name: torch.from_numpy(np.array(stored[name])) for name in stored}


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set of golden values is not here")
def test_copy_equals_the_full_set():
    name = "ccp_greedy_k_center.npz"
    assert (GOLDEN / name).read_bytes() == (FULL / name).read_bytes()


def test_golden_k_center_picks():
    stored = load("ccp_greedy_k_center")
    found = greedy_k_centers(stored["pool"], stored["init"], 4)
    assert torch.equal(found.transpose(0, 1), stored["picks"])


def test_golden_loss():
    stored = load("ccp_contrastive")
    host = losses.ContrastiveLoss(0, 0.5, similarity="ball_distance")
    per_class = int((stored["proxy_labels"] == 0).sum())
    ccp = ChanceConstraints(
        nn.Linear(2, 2), len(stored["proxies"]) // per_class, 16, host, proxies_per_class=per_class
    ).double()
    ccp.proxy_labels = stored["proxy_labels"]
    ccp.proxies.data = stored["proxies"].clone()
    x = stored["x"].clone().requires_grad_()
    loss = ccp(x, stored["y"])
    loss.backward()
    assert loss.item() == pytest.approx(stored["loss"].item(), rel=1e-9)
    assert torch.allclose(x.grad, stored["grad_x"], rtol=1e-8, atol=1e-12)
    assert torch.allclose(ccp.proxies.grad, stored["grad_proxies"], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_k_centers_one_class_at_a_time(normalize):
    pool, centers = randn(C, 7, D), randn(C, 2, D, seed=1)
    found = greedy_k_centers(pool, centers, 4, normalize=normalize)
    for c in range(C):
        at, have = pool[c], list(centers[c])
        if normalize:
            at, have = at / at.norm(dim=1, keepdim=True), [v / v.norm() for v in have]
        for k in range(4):
            far = [min(float((p - h).square().sum()) for h in have) for p in at]
            pick = far.index(max(far))
            have.append(at[pick])
            assert torch.equal(found[c, k], pool[c, pick])


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, D)).double()


def new(model, **kwargs):
    torch.manual_seed(1)
    settings = {"proxies_per_class": K, "pool_size": 4, "proximal_weight": 0.01, "decay": 0.5, "patience": 2}
    return ChanceConstraints(model, C, D, **{**settings, **kwargs}).double()


def test_patience_snapshots_and_the_next_problem():
    """Scores and what is expected after each: problem, relocated, weight of the proximal term."""
    model = network()
    ccp, pools = new(model), []

    def draw(b):
        assert b == 4
        pools.append(randn(C, b, D, seed=len(pools) + 10))
        return pools[-1]

    before = ccp.proxies.detach().clone()
    ccp.relocate(draw)
    existing = before.view(K, C, D).transpose(0, 1)
    assert torch.equal(
        ccp.proxies.view(K, C, D).transpose(0, 1), greedy_k_centers(pools[0], existing, K)
    )
    snapshots = []
    scores = [0.5, 0.6, 0.6, 0.6 + 5e-6, 0.1, 0.2, 0.2, 0.1]
    expected = [False, False, False, True, False, False, False, True]
    for score, relocated in zip(scores, expected):
        with torch.no_grad():
            for p in [*model.parameters(), ccp.proxies]:
                p.add_(randn(*p.shape, seed=len(snapshots)))
        snapshots.append([p.detach().clone() for p in [*model.parameters(), ccp.proxies]])
        assert ccp.evaluated(score, draw) == relocated
        if relocated:
            best = snapshots[1] if ccp.problem == 1 else snapshots[5]
            assert all(torch.equal(a, b) for a, b in zip(ccp.proximal.origin, best))
            existing = best[-1].view(K, C, D).transpose(0, 1)
            chosen = greedy_k_centers(pools[-1], existing, K).transpose(0, 1).reshape(K * C, D)
            assert torch.equal(ccp.proxies, chosen)
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), snapshots[-1]))
            assert ccp.proximal.weight == 0.01 * 0.5**ccp.problem
    assert ccp.problem == 2 and len(pools) == 3


def test_the_loss_of_samples_and_of_proxies():
    """Proxy k of all classes, then proxy k + 1; the paper's loss of distances in the unit ball."""
    ccp = new(network(), sample_weight=0.3, proxy_weight=0.7)
    x, y = batches(1, 12, D, C)[0]
    p = ccp.proxies.detach().view(K, C, D)

    def ball(v):
        return v / v.norm(dim=-1, keepdim=True).clamp(min=1)

    def contrastive(a, b, same, own):
        d = torch.cdist(ball(a), ball(b))
        pull, push = d[same & ~own], (0.3841 - d[~same]).relu()
        return sum(t[t > 0].mean() if (t > 0).any() else t.sum() for t in (pull, push))

    eye = torch.eye(12, dtype=torch.bool)
    classes = torch.arange(C).expand(K, C).flatten()
    expected = 0.3 * contrastive(x, x, y[:, None] == y, eye)
    same = classes[:, None] == y
    expected = expected + 0.7 * contrastive(p.flatten(0, 1), x, same, torch.zeros_like(same))
    assert ccp(x, y).item() == pytest.approx(expected.item(), rel=1e-9)
    half = ccp.float()(x.bfloat16(), y)
    assert half.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("normalize", [False, True])
def test_pools_cover_what_proxies_do_not(normalize):
    ccp, pool = new(network(), normalize_pool=normalize), 10 * randn(C, 4, D) * randn(C, 4, 1, seed=1)
    existing = ccp.proxies.detach().view(K, C, D).transpose(0, 1)
    found, other = (greedy_k_centers(pool, existing, K, normalize=n) for n in (normalize, not normalize))
    ccp.relocate(lambda b: pool)
    assert torch.equal(ccp.proxies.view(K, C, D), found.transpose(0, 1)) and not torch.equal(found, other)
    # From nothing: the first, and then those far from it.
    begun = greedy_k_centers(pool, pool[:, :0], 4, normalize=normalize)
    assert torch.equal(begun[:, 0], pool[:, 0]) and torch.equal(begun.sort(1)[0], pool.sort(1)[0])


def test_scores_count_from_some_evaluation_on():
    ccp = new(network(), min_evaluations=3, patience=2)
    scores = [0.9, 0.8, 0.1, 0.1, 0.05]  # the third is the first that is looked at
    pool = randn(C, 4, D)
    assert [ccp.evaluated(s, lambda b: pool) for s in scores] == [False] * 4 + [True]
    assert [ccp.evaluated(s, lambda b: pool) for s in scores] == [False] * 4 + [True]


def test_refuses():
    ccp = new(network())
    with pytest.raises(ValueError, match="labels: expected values in"):
        ccp(randn(2, D), torch.tensor([0, C]))
    with pytest.raises(ValueError, match="score: expected a finite number, got nan"):
        ccp.evaluated(float("nan"), lambda b: None)


def test_small_pools():
    ccp = new(network(), pool_size=2)
    assert ccp.drawn == 2 * K  # below K
    one = new(network(), pool_size=1)
    pool = randn(C, K, D)
    one.relocate(lambda b: pool[:, :b])
    assert torch.equal(one.proxies.view(K, C, D), pool.transpose(0, 1))
    with pytest.raises(ValueError, match="draw: expected a tensor of shape"):
        one.relocate(lambda b: pool[:, :1])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalize", [False, True])
def test_pools_in_half_precision(normalize, kind):
    """As a network within autocast embeds them; distances are those of the same numbers in float32."""
    ccp = ChanceConstraints(nn.Linear(3, 4), 3, 4, proxies_per_class=2, normalize_pool=normalize)
    pool = randn(3, 12, 4).to(kind)
    pool[0, 1], pool[1, 1] = 0, 5e4
    ccp.relocate(lambda b: pool)
    found = ccp.proxies.detach().clone()
    ccp.relocate(lambda b: pool.float())
    assert found.unique(dim=0).shape == (6, 4) and torch.equal(found, ccp.proxies)


def test_proximal_term_in_the_loss_or_in_the_gradients():
    one, two = network(), network()
    first, second = ProximalTerm(one, 0.3), ProximalTerm(two, 0.3)
    assert first().item() == 0
    origin = [p.detach().clone() for p in one.parameters()]
    first.move(), second.move()
    with torch.no_grad():
        for p, q in zip(one.parameters(), two.parameters()):
            p.add_(randn(*p.shape)), q.copy_(p)
    x = randn(3, 4)
    (one(x).sum() + first()).backward()
    two(x).sum().backward()
    second.add_to_gradients()
    plain = sum(((p - o) ** 2).sum() for p, o in zip(one.parameters(), origin))
    assert torch.allclose(first(), 0.15 * plain)
    resumed = ProximalTerm(one)
    resumed.load_state_dict(saved(first))
    assert torch.equal(resumed(), first())
    assert all(torch.allclose(p.grad, q.grad) for p, q in zip(one.parameters(), two.parameters()))


def test_the_proximal_term_of_frozen_and_unused_parameters():
    model = network()
    model[0].weight.requires_grad_(False)
    term = ProximalTerm(model, 0.5)
    term.move()
    moved = model.state_dict()
    for value in moved.values():
        value += 1.0
    term.add_to_gradients()  # before any backward pass
    assert model[0].weight.grad is None
    rest = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.allclose(p.grad, torch.full_like(p, 0.5)) for p in rest)
    assert torch.allclose(term(), torch.tensor(0.25 * sum(p.numel() for p in rest)).double())


def test_parameters_that_are_bound_anew():
    """As by a state that is assigned; in the term, its gradients, and the weights that are kept."""
    model = nn.Linear(3, 2).double()
    ccp = ChanceConstraints(model, 2, 2).double()
    term = ccp.proximal
    term.move()
    term.weight = 1.0
    state = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert torch.allclose(term(), torch.tensor(4.0).double())  # 8 numbers, each 1 away
    term().backward()
    assert torch.allclose(model.weight.grad, torch.ones(2, 3).double())
    term.add_to_gradients()
    assert torch.allclose(model.bias.grad, torch.full((2,), 2.0).double())
    ccp._keep()
    assert all(torch.equal(kept, state[n]) for kept, n in zip(ccp.best, ("weight", "bias")))
    del model.bias
    with pytest.raises(ValueError, match=r"model: expected the parameters .* \(.*bias"):
        term()


def test_resumes_bit_for_bit_in_the_middle_of_a_problem():
    """Trained, saved and loaded after a few steps, both go on alike, through a relocation."""

    def steps(model, ccp, optimizer, first, last):
        for step in range(first, last):
            x, y = batches(1, 12, 4, C, seed=step)[0]
            optimizer.zero_grad()
            ccp(model(x), y).backward()
            ccp.proximal.add_to_gradients()
            optimizer.step()
            pool = randn(C, ccp.drawn, D, seed=step)
            ccp.evaluated([0.3, 0.2, 0.1][step % 3], lambda b, pool=pool: pool[:, :b])

    def start():
        model = network()
        ccp = new(model)
        return model, ccp, torch.optim.Adam([*model.parameters(), ccp.proxies], 0.01)

    one = start()
    steps(*one, 0, 4)
    two = start()
    for mine, theirs in zip(two[:2], one[:2]):
        mine.load_state_dict(saved(theirs))
    two[2].load_state_dict(copy.deepcopy(one[2].state_dict()))
    steps(*one, 4, 10)
    steps(*two, 4, 10)
    assert one[1].problem >= 2
    assert same_state(one[0], two[0]) and same_state(one[1], two[1])


def test_draw_each_class():
    labels = torch.tensor([2, 0, 1, 1, 0, 1])
    found = draw_each_class(labels, 50, torch.Generator().manual_seed(0))
    assert torch.equal(labels[found], torch.arange(3)[:, None].expand(3, 50))
    assert set(found[1].tolist()) == {2, 3, 5}
    assert torch.equal(found, draw_each_class(labels, 50, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="labels: expected a sample of every class"):
        draw_each_class(torch.tensor([0, 2]), 3)


def test_scores_of_numpy_s_are_saved():
    """As scikit-learn returns them; a checkpoint is read without pickled code."""
    one = new(network())
    one.evaluated(np.float64(0.5), lambda b: randn(C, b, D))
    one.proximal.weight = np.float64(0.25)
    two = new(network(1))
    two.load_state_dict(saved(one))
    assert two.best_score == 0.5 and two.proximal.weight == 0.25


def test_samples_without_a_class_are_refused():
    for labels in ([-1, 0, 1], [0, 2]):
        with pytest.raises(ValueError, match="labels: expected a sample of every class"):
            draw_each_class(torch.tensor(labels), 2)
    with pytest.raises(ValueError, match=r"labels: expected integer labels, got torch\.float32"):
        draw_each_class(torch.tensor([0.0, 1.0]), 2)


def test_parameters_that_are_frozen_later_stay():
    """An optimiser's weight decay would move what has a gradient of zeros."""
    model = network()
    term = ProximalTerm(model, 0.5)
    term.move()
    model[0].weight.requires_grad_(False)
    term.add_to_gradients()
    assert model[0].weight.grad is None and model[0].bias.grad is not None


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_proximal_term_of_a_network_in_half_precision(kind):
    model = nn.Linear(300, 300).to(kind)
    term = ProximalTerm(model, 1.0)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    term.move()
    with torch.no_grad():
        for p in model.parameters():
            p += 1
    assert term().item() == 90_300 / 2 and term().dtype == torch.float32
    term().backward()
    assert (model.weight.grad == 1).all()
