"""Extra memory, inputs and their gradients aside, stays within 64 MiB however large the batch."""

import pytest
import torch
from conftest import BACKENDS, FIRST_EXAMPLES, KINDS, Case, compiled, inputs, needs_compiled, python

import fastdml
from fastdml import functional as F
from fastdml import losses, miners

pytestmark = pytest.mark.unpoisoned
BOUND = 64 << 20
FIRST = {p.values[0].name: p.values[0] for p in FIRST_EXAMPLES}
# What chunked holds is the schedule's and the specification's: one loss of each kind, and one of lists.
IN_TORCH = {"smooth_ap": FIRST["smooth_ap"], **{p.values[0].name: p.values[0] for p in KINDS}}
BOUNDED = [
    *(("native", name) for name in FIRST if compiled(FIRST[name])),
    *(("chunked", name) for name in IN_TORCH),
]


def peak(function) -> int:
    """Most bytes held at once beyond those held before, as torch's allocator saw it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p:
        function()
    events = [e for e in p.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def batch(rows: int, dim: int) -> Case:
    """Four to a class, shuffled."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(rows)[torch.randperm(rows, generator=g)] // 4
    return Case(torch.randn(rows, dim, generator=g), y)


def extra(description, case: Case, backend: str) -> int:
    """Peak of a step beyond the gradients it leaves."""
    given = inputs(description, case)
    leaves = given.leaves()
    for name in ("scalars", "row_values", "col_values"):
        if name in leaves:
            leaves[name] = leaves[name].detach().float().requires_grad_()

    def step():
        given.loss(description, backend, **leaves).backward()

    found = peak(step)
    gradients = sum(x.numel() * x.element_size() for x in leaves.values())
    assert all(x.grad is not None for x in leaves.values())
    return found - gradients


def test_the_measurement_sees_a_matrix():
    x = torch.randn(1024, 8)
    assert (1 << 22) <= peak(lambda: x @ x.t()) < (1 << 22) + (1 << 20)


def test_centres_of_a_class_are_compared_without_copies():
    w = torch.randn(20_000, 64, requires_grad=True)
    penalty = fastdml.regularizers.SparseCentersRegularizer(2_000, 10)
    assert peak(lambda: penalty(w).backward()) - 4 * w.numel() <= BOUND  # pairs of rows are 22 MiB a copy


def test_one_large_class_among_small_ones():
    """Lists of thresholds are as long as the longest, which is not among the first rows."""
    x, y = torch.randn(1024, 8, requires_grad=True), torch.arange(1024).clamp(max=768)
    assert peak(lambda: F.smooth_ap(x, y, backend="chunked").backward()) <= BOUND


@pytest.mark.parametrize("rows", [1024, 4096])
@pytest.mark.parametrize("backend,name", BOUNDED)
def test_bound(name, backend, rows):
    if rows > 1024 and FIRST[name].threshold_list and backend == "chunked":
        rows = 2048  # the same bound in a quarter of the time
    assert extra(FIRST[name], batch(rows, 16), backend) <= BOUND


# Long lists of positives, and the losses that then sort rows or draw from them.
LARGE = {
    "smooth_ap": lambda *a: F.smooth_ap(*a, sort=True),
    "sup_ap": lambda *a: F.sup_ap(*a, sort=True),
    "recall_at_k": lambda *a: F.recall_at_k(*a, sort=True),
    "pnp": lambda *a: F.pnp(*a, sort=True),
    "auc": lambda *a: F.auc(*a, sort=True),
    "triplet_margin": lambda *a: F.triplet_margin(*a, sort=True),
    "smooth_ap list": lambda *a: F.smooth_ap(*a, sort=False),
    "margin drawn": lambda *a: F.margin(*a, triplets_per_anchor="distance_weighted"),
    "soprc": F.soprc,
    "soft_bin_ap": F.soft_bin_ap,
    "multi_similarity": lambda *a: F.multi_similarity(*a, epsilon=0.1),
    "nt_xent": F.nt_xent,
}


@needs_compiled
@pytest.mark.parametrize("name", LARGE)
def test_large_classes(name):
    """64 classes of 64 samples; 16 of them where numbers are drawn for every pair."""
    g = torch.Generator().manual_seed(0)
    rows = 1024 if name == "margin drawn" else 4096
    y = torch.arange(rows)[torch.randperm(rows, generator=g)] // 64
    x = torch.randn(rows, 16, generator=g).requires_grad_()
    held = peak(lambda: LARGE[name](x, y).backward())
    assert held - 4 * x.numel() <= BOUND
    assert torch.isfinite(x.grad).all() and x.grad.any()


# What a function does around its rows counts too.
WHOLE = {
    "pce": lambda x, y: F.pce(x, y % 32, torch.ones(len(x), 32) / 32),
    "roadmap": F.roadmap,
    "clip": lambda x, y: F.info_nce(x, x.detach().roll(1, 0), symmetric=True),
    "n_pairs": F.n_pairs,
    "n_pairs all": lambda x, y: F.n_pairs(x, y, form="all"),
    "lifted_structure": F.lifted_structure,
    "intra_pair_variance": F.intra_pair_variance,
    "signal_to_noise": F.signal_to_noise_contrastive,
    "rkd_angle": lambda x, y: F.rkd_angle(x[:512], x[:512].detach().roll(1, 0)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_functions(name):
    case = batch(4096, 16)
    x = case.x.requires_grad_()
    assert peak(lambda: WHOLE[name](x, case.y).backward()) - 4 * x.numel() <= BOUND


@pytest.mark.parametrize("name", FIRST)
def test_it_grows_linearly_with_the_batch(name):
    """Twice the rows, within the same blocks: no more than the vectors of the rows are added."""
    fastdml.set_workspace(1 << 20)
    rows = 400 if name == "dense_triplet" and BACKENDS[-1] == "chunked" else 2560
    small, large = (extra(FIRST[name], batch(n, 16), BACKENDS[-1]) for n in (rows, 2 * rows))
    assert large - small < rows * 600 + (1 << 20)


@needs_compiled
@pytest.mark.parametrize(
    "loss",
    [
        losses.ProxyAnchorLoss, losses.ProxyNCALoss, losses.NormalizedSoftmaxLoss, losses.CosFaceLoss,
        losses.ArcFaceLoss, losses.SubCenterArcFaceLoss, losses.SphereFaceLoss, losses.SoftTripleLoss,
        losses.SmoothedCrossEntropyLoss, losses.LargeMarginSoftmaxLoss, losses.ProxyNCAPlusPlusLoss,
        losses.MultiProxyAnchorLoss,
    ],
)  # fmt: skip
def test_many_classes(loss):
    """The bound holds however many there are, but for a few vectors of a number per proxy."""
    classes = 100_000
    built = loss(classes, 8)
    weight = getattr(built, built.parameter_name)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=g).requires_grad_()
    y = torch.randint(0, classes, (256,), generator=g)
    held = peak(lambda: built(x, y).backward())
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in (x, *built.parameters()))
    proxies = weight.numel() // 8
    assert held - gradients <= BOUND + 64 * proxies
    assert torch.isfinite(weight.grad).all()


@needs_compiled
def test_draws_of_a_miner_are_not_listed():
    """Their weights and random numbers, for every pair, would be 256 MiB and more."""
    case, miner = batch(4096, 16), miners.DistanceWeightedMiner()
    x, loss = case.x.requires_grad_(), losses.MarginLoss()
    assert peak(lambda: loss(x, case.y, miner(x, case.y)).backward()) <= BOUND


@pytest.mark.parametrize("how", ["listed", "drawn", "swap"])
def test_triplets_one_by_one(how):
    """Rows of 2^17 triplets would take 32 MiB, three times, and 96 MiB more for their differences."""
    rows, count = (512, 0) if how == "swap" else (2048, 1 << 17)
    case, g = batch(rows, 64), torch.Generator().manual_seed(0)
    x = case.x.requires_grad_()
    listed = torch.randint(0, rows, (3, count), generator=g).unbind() if how == "listed" else None
    number = count // rows if how == "drawn" else "all"
    loss = losses.TripletMarginLoss(swap=how == "swap", triplets_per_anchor=number)
    assert peak(lambda: loss(x, case.y, listed).backward()) <= BOUND


@needs_compiled
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("loss", [losses.TripletMarginLoss(), losses.MarginLoss(), losses.ContrastiveLoss()])
def test_a_long_list_is_held_in_a_few_numbers(loss, in_order):
    """Two numbers of a triplet and their derivatives, and its place where the list is in no order; or what a
    distinct pair is: no row of an embedding, and no matrix beyond the block."""
    rows, count, g = 512, 1 << 19, torch.Generator().manual_seed(0)
    x = torch.randn(rows, 256, generator=g).requires_grad_()
    a, p, n = torch.randint(0, rows, (3, count), generator=g).unbind()
    a = a.sort().values if in_order else a
    block, temporaries = rows * rows * 4, 8 << 20
    held = peak(lambda: loss(x, None, (a, p, n)).backward())
    assert held <= 24 * count + 3 * block + x.numel() * 4 + temporaries


@needs_compiled
@pytest.mark.parametrize("loss", [losses.NormalizedSoftmaxLoss, losses.ProxyAnchorLoss])
def test_a_step_with_a_million_classes(loss):
    """One step of descent: every class's proxy moves, those of the batch towards their samples."""
    classes = 1_000_000
    built = loss(classes, 8)
    weight = getattr(built, built.parameter_name)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=g).requires_grad_()
    y = torch.randint(0, classes, (64,), generator=g)
    optimizer = torch.optim.SGD(built.parameters(), lr=1e-3)
    value = built(x, y)
    held = peak(lambda: built(x, y).backward())
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in (x, weight))
    assert held - gradients <= BOUND + 64 * classes
    assert torch.isfinite(x.grad).all() and x.grad.any()
    assert torch.isfinite(weight.grad).all()
    optimizer.step()
    with torch.no_grad():
        assert built(x, y) < value


@needs_compiled
def test_large_batch_in_a_process_of_its_own():
    """32,768 rows, whose matrix would take 4 GiB: the view of the operating system, which sees all."""
    code = """
import re, torch, fastdml
torch.set_num_threads(2)

def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10

loss = fastdml.losses.MultiSimilarityLoss(epsilon=0.1)
warm = torch.randn(256, 16, requires_grad=True)
loss(warm, torch.arange(256) // 4).backward()  # libraries, threads, and the buffers they keep
x = torch.randn(32768, 16, requires_grad=True)
y = torch.arange(32768) // 4
x.grad = torch.ones_like(x)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
loss(x, y).backward()
print(status("VmHWM") - before, bool(torch.isfinite(x.grad).all()))
"""
    used, finite = python(code).split()
    assert finite == "True"
    gradient = 32768 * 16 * 4  # the new one, before it is added to x.grad
    assert int(used) - gradient <= BOUND
