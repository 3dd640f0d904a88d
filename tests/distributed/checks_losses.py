"""Every loss over ranks against one process with the whole batch, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from conftest import CASES, EXAMPLES, KINDS, PARAMETERS, Case, Inputs, batch_of, fill, inputs
from torch import Tensor

import fastdml
import fastdml.wrappers
from fastdml.distributed import wrap
from fastdml.distributed.arguments import join, told
from fastdml.distributed.ranks import Ranks
from fastdml.distributed.ring import refuses
from fastdml.distributed.shares import Shares
from fastdml.distributed.travelling import Travelling
from fastdml.distributed.words import spread
from fastdml.engine.loss import RowLoss

BOUND = 1e-10
ROWS = (
    "embeddings", "labels", "ref_emb", "ref_labels", "teacher", "probabilities", "indices_tuple",
    "candidates", "teacher_scores", "scores", "queries", "documents",
)  # fmt: skip
WANTED = ("embeddings", "ref_emb", "candidates", "queries", "documents")  # gradients of


def shards(count: int, size: int, equal: bool) -> list[int]:
    """Rows of each rank; unequal: the second of three and more has none."""
    if equal:
        return [count // size + (r < count % size) for r in range(size)]
    if size == 1:
        return [count]
    if size == 2:
        return [count // 3, count - count // 3]
    first = count // 4
    return [first, 0, *[first // 2] * (size - 3), count - first - first // 2 * (size - 3)]


def own(x: Tensor, counts: Sequence[int]) -> Tensor:
    return x.split(list(counts))[dist.get_rank()]


def close(found: Tensor | None, true: Tensor | None, what: str, bound: float = BOUND) -> None:
    if true is None or found is None:
        missing = [x for x in (found, true) if x is not None]
        assert not any(bool(x.abs().max() > 0) for x in missing if x.numel()), f"{what}: {found} {true}"
        return
    assert found.shape == true.shape, f"{what}: {found.shape} {true.shape}"
    assert bool(found.isfinite().all()), f"{what} is not finite"
    if true.numel():
        found, true = found.detach().double(), true.detach().double()
        wrong = float((found - true).abs().max() / true.abs().max().clamp(min=1e-3))
        assert wrong < bound, f"{what}: off by {wrong:.2e}"


def example(description: RowLoss, case: str, equal: bool, schedule: str = "gather") -> None:
    """A registered description, its call shared out: a mean of unequal shards, a sum of equal ones."""
    given, reduction = inputs(description, CASES[case]()), "sum" if equal else "mean"
    leaves = given.leaves()
    value = given.loss(description, "auto", reduction, **leaves)
    true = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    mine, (result, found) = _shared(description, given, reduction, equal, schedule)
    close(result, value, "value")
    for name, d, t in zip(leaves, found, true, strict=True):
        close(d, t if name not in mine or t is None else own(t, mine[name]), name)


def _shared(
    description: RowLoss, given: Inputs, reduction: str, equal: bool, schedule: str
) -> tuple[dict[str, list[int]], tuple[Tensor, list[Tensor | None]]]:
    """The value and the gradients of this rank's rows; and how many rows of what each rank has."""
    ranks, leaves, mine = Ranks(), given.leaves(), {}
    samples = ["anchors", "candidates"]
    if description.rows == "proxies":
        samples = ["candidates"]
    elif description.columns == "proxies":
        samples = ["anchors"]
    local: dict[str, Tensor] = {}
    for name in samples:
        if name in leaves:
            mine[name] = shards(leaves[name].shape[0], ranks.size, equal)
            local[name] = own(leaves[name].detach(), mine[name]).clone().requires_grad_()
    for k, t in enumerate(given.teacher):
        mine[f"teacher{k}"] = shards(len(t), ranks.size, equal)
        local[f"teacher{k}"] = own(t, mine[f"teacher{k}"])
    known = told(ranks, local, 1.0)
    travels = schedule == "ring"
    whole = {k: Travelling(s) if travels else join(s, ranks) for k, s in known.sets.items()}
    shares = Shares(ranks, [(whole[name], s) for name, s in known.sets.items()], travels)
    alike = {k: spread(v, ranks) for k, v in leaves.items() if k not in local}
    fields = {k: v for k, v in whole.items() if k in leaves}
    fields["teacher"] = [whole[k] for k in sorted(whole) if k.startswith("teacher")]
    value = shares.value(given.call(description, "auto", reduction, **fields, **alike))
    wanted = [local.get(name, leaf) for name, leaf in leaves.items()]
    return mine, (value, list(torch.autograd.grad(value, wanted, allow_unused=True)))


def made(name: str, case: Case) -> tuple[torch.nn.Module, dict[str, object]]:
    """A module and what it is called with."""
    cls = fastdml.losses.MODULES[name]
    _, dense = case.y.unique(return_inverse=True)
    classes, dim = int(dense.max()) + 1, case.x.shape[1]
    torch.manual_seed(0)
    sizes = {"num_classes": classes, "embedding_size": dim, "descriptors_dim": dim, "l": dim}
    loss = cls(**fill(cls.__init__, **sizes, **PARAMETERS)).double()
    arguments = batch_of(cls, case.x, dense)
    return loss.train(name != "SOPRCLoss"), arguments


def module(name: str, equal: bool, gradient: str = "sum", case: str = "ragged", **options: object) -> None:
    """A module of `fastdml.losses`, as a user wraps it."""
    loss, arguments = made(name, CASES[case]().to(torch.float64))
    size = dist.get_world_size()

    def run(
        function: Callable[..., Tensor], counts: dict[str, list[int]]
    ) -> tuple[Tensor, dict[str, Tensor | None]]:
        given: dict[str, object] = {}
        leaves: dict[str, Tensor] = {}
        for key, x in arguments.items():
            if key in ROWS and isinstance(x, Tensor):
                x = own(x, counts[key]) if key in counts else x
                if x.is_floating_point() and key in WANTED:
                    x = leaves[key] = x.clone().requires_grad_()
            given[key] = x
        loss.zero_grad()
        torch.manual_seed(3)
        value = function(**given)
        value.backward()
        found = {k: x.grad for k, x in leaves.items()}
        return value.detach(), found | {k: p.grad for k, p in loss.named_parameters()}

    value, true = run(loss, {})
    true = {k: None if g is None else g.clone() for k, g in true.items()}
    rows = {
        k: shards(len(x), size, equal) for k, x in arguments.items() if k in ROWS and isinstance(x, Tensor)
    }
    result, found = run(wrap(loss, gradient=gradient, **options), rows)
    close(result, value, "value")
    for key, t in true.items():
        if key in rows:
            t = own(t, rows[key]) * (size if gradient == "mean" else 1)
            close(found[key], t, key)
        else:
            d = found[key]
            if gradient == "sum" and d is not None:
                d = Ranks().total(d)
            close(d, t, key)


def ring_module(name: str) -> None:
    """A module whose columns travel; or it says that they cannot."""
    try:
        module(name, False, "mean", schedule="ring")
    except ValueError as error:
        assert str(error).startswith("schedule: ") and "expected 'gather'" in str(error), error
        assert name not in TRAVELLING, error
    else:
        assert name not in WHOLE_ROWS


def wrapped(
    build: Callable[[], torch.nn.Module], batch: dict[str, Tensor], schedule: str = "gather", rounds: int = 1
) -> None:
    """Any wrapper of losses, called several times, in unequal shards: value, gradients and state."""
    size = dist.get_world_size()
    torch.manual_seed(5)
    alone = build().double()
    torch.manual_seed(5)
    shared = build().double()
    together = shared if hasattr(shared, "ranks") else wrap(shared, gradient="mean", schedule=schedule)
    for k in range(rounds):
        turned = {key: x.roll(7 * k, 0) for key, x in batch.items()}
        counts = shards(len(turned["embeddings"]), size, False)
        leaf = turned["embeddings"].clone().requires_grad_()
        value = alone(**{**turned, "embeddings": leaf})
        (3 * value).backward()
        mine = {key: own(x, counts) for key, x in turned.items()}
        mine["embeddings"] = mine["embeddings"].clone().requires_grad_()
        result = together(**mine)
        (3 * result).backward()
        close(result, value, f"value {k}")
        close(mine["embeddings"].grad, own(leaf.grad, counts) * size, f"gradient {k}")
    found = dict(shared.named_parameters())
    for name, p in alone.named_parameters():
        close(found[name].grad, p.grad, name)
    for (name, x), y in zip(alone.state_dict().items(), shared.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def listed() -> None:
    """Index tuples of a rank's rows are those rows'; a function sees all rows."""
    case, size = CASES["ragged"](), dist.get_world_size()
    counts = shards(len(case.x), size, False)
    x, y = own(case.x, counts).clone().requires_grad_(), own(case.y, counts)
    local = torch.arange(len(y))
    mine = (local, (local + 1) % max(1, len(y)), local, (local + 2) % max(1, len(y)))
    starts = [sum(counts[:r]) for r in range(size)]
    whole = [
        torch.cat([(torch.arange(c) + k) % max(1, c) + s for s, c in zip(starts, counts)])
        for k in range(3)
    ]
    leaf = case.x.clone().requires_grad_()
    loss = fastdml.losses.MultiSimilarityLoss()

    def masks(i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        return (i[:, None] + j) % 5 == 0, (i[:, None] - j) % 3 == 0

    for pairs, true in ((mine, (whole[0], whole[1], whole[0], whole[2])), (masks, masks)):
        value = loss(leaf, case.y, true)
        (t,) = torch.autograd.grad(value, leaf)
        result = wrap(loss, gradient="sum")(x, y, pairs)
        (d,) = torch.autograd.grad(result, x)
        close(result, value, "value")
        close(d, own(t, counts), "gradient")


def sets_of_labels() -> None:
    """Of a rank that has no rows, too."""
    case = CASES["ragged"]()
    counts = [0, len(case.x)]
    sets = case.y.unique(return_inverse=True)[1][:, None] % torch.tensor([2, 3, 5]) == 0
    loss, x = fastdml.losses.SupConLoss(), own(case.x, counts).clone().requires_grad_()
    value = wrap(loss, gradient="sum")(x, own(sets, counts))
    close(value, loss(case.x, sets), "value")
    value.backward()


def mined() -> None:
    """A miner that is handed in sees all rows; a lazy result that is handed in is of the rank's own."""
    case, size = CASES["ragged"](), dist.get_world_size()
    counts = shards(len(case.x), size, True)
    miners = fastdml.miners
    for loss, miner in (
        (fastdml.losses.TripletMarginLoss(), miners.BatchEasyHardMiner()),
        (fastdml.losses.ContrastiveLoss(), miners.MultiSimilarityMiner(0.3)),
        (fastdml.losses.MarginLoss(), miners.DistanceWeightedMiner()),
    ):
        leaf, x = case.x.clone().requires_grad_(), own(case.x, counts).clone().requires_grad_()
        state = {k: v.clone() for k, v in miner.state_dict().items()}
        value = loss(leaf, case.y, miner(leaf, case.y))
        (t,) = torch.autograd.grad(value, leaf)
        miner.load_state_dict(state)
        result = wrap(loss, gradient="sum", miner=miner)(x, own(case.y, counts))
        (d,) = torch.autograd.grad(result, x)
        close(result, value, type(miner).__name__)
        close(d, own(t, counts), type(miner).__name__)
    # Each rank's own: the pairs of all of them are the whole's.
    lazy, starts = miners.BatchEasyHardMiner(), [sum(counts[:r]) for r in range(size)]
    every = [
        tuple(i + s for i in lazy(x, y))
        for x, y, s in zip(case.x.split(counts), case.y.split(counts), starts)
    ]
    whole = tuple(torch.cat(parts) for parts in zip(*every))
    x, y = own(case.x, counts), own(case.y, counts)
    loss = fastdml.losses.ContrastiveLoss()
    close(wrap(loss)(x, y, lazy(x, y)), loss(case.x, case.y, whole), "own pairs")


def rows_of_losses() -> None:
    """reduction "none": a rank gets the losses of its rows."""
    case, size = CASES["ragged"](), dist.get_world_size()
    counts = shards(len(case.x), size, False)
    for schedule, loss in (
        ("gather", fastdml.losses.SmoothAPLoss(reduction="none")),
        ("ring", fastdml.losses.SupConLoss(reduction="none")),
        ("gather", fastdml.losses.TripletMarginLoss(swap=True, reduction="none")),
        (
            "gather",
            fastdml.losses.MarginLoss(
                triplets_per_anchor=3, reduction="none", learn_beta=True, nu=0.1
            ),
        ),
    ):
        leaf, x = case.x.clone().requires_grad_(), own(case.x, counts).clone().requires_grad_()
        weight = torch.arange(1.0, len(leaf) + 1).double()
        state = {k: v.clone() for k, v in loss.state_dict().items()}
        value = loss(leaf, case.y)
        (t,) = torch.autograd.grad((value * weight).sum(), leaf)
        loss.load_state_dict(state)
        result = wrap(loss, gradient="sum", schedule=schedule)(x, own(case.y, counts))
        (d,) = torch.autograd.grad((result * own(weight, counts)).sum(), x)
        close(result, own(value, counts), "losses")
        close(d, own(t, counts), "gradient")
    for classes in (5, len(case.x)):  # also as many as there are samples
        proxies = fastdml.losses.ProxyAnchorLoss(classes, 19, reduction="none").double()
        x, y = own(case.x, counts), own(case.y % 5, counts)
        close(wrap(proxies)(x, y), proxies(case.x, case.y % 5), "proxies")


class Drawing(torch.nn.Module):
    """A miner of another library, which draws, and knows no own copies."""

    def forward(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> object:
        i, j, k = torch.randint(len(labels), (3, 300))
        others = labels if ref_labels is None else ref_labels
        kept = (labels[i] == others[j]) & (labels[i] != others[k])
        return i[kept], j[kept], k[kept]


def miners_are_told() -> None:
    """Of own copies; and those of others draw the same on every rank."""
    case, size = CASES["ragged"](), dist.get_world_size()
    x, y = case.x, case.y
    mine, labels = (own(t, shards(len(x), size, False)) for t in (x, y))
    miners = fastdml.miners
    for miner in (miners.BatchEasyHardMiner(), miners.BatchEasyHardMiner("hard", "hard")):
        for loss in (fastdml.losses.TripletMarginLoss(), fastdml.losses.ContrastiveLoss()):
            true = loss(x, y, miner(x, y, x.clone(), y, own=0), x.clone(), y, own=0)
            together = wrap(loss, miner=miner)
            close(together(mine, labels, None, mine.clone(), labels, own=0), true, "named")
            close(together(mine, labels, None, mine.detach(), labels), true, "in one memory")
    loss, ranks = fastdml.losses.TripletMarginLoss(), Ranks()
    several = fastdml.wrappers.MultipleLosses([loss], [Drawing()])
    for together in (wrap(loss, miner=Drawing()), wrap(several)):
        torch.manual_seed(dist.get_rank())
        before = torch.get_rng_state()
        value = together(mine, labels, None, mine.clone(), labels, own=0)
        torch.manual_seed(int(ranks.equal(torch.tensor(_first_draw(before)))[0]))
        copy = torch.cat([x[:0], x])
        pairs = fastdml.mining.pairs.mined(Drawing(), x, y, copy, y, 0)
        assert not bool((pairs[0] == pairs[1]).any())
        close(value, loss(x, y, pairs, copy, y, own=0), type(together.loss).__name__)


def _first_draw(state: Tensor) -> int:
    """The number that a wrapped loss draws first, of which rank 0's is everybody's seed."""
    with torch.random.fork_rng():
        torch.set_rng_state(state)
        return int(torch.randint(1 << 62, ()))


def ring_with_a_miner() -> None:
    """It computes with embeddings, at once or when asked for its pairs: refused by the schedule's name."""
    case, size = CASES["ragged"](), dist.get_world_size()
    mine, labels = (own(t, shards(len(case.x), size, False)) for t in (case.x, case.y))
    miner = fastdml.miners.MultiSimilarityMiner()
    for one in (miner, functools.partial(_at_once, miner)):
        try:
            wrap(fastdml.losses.ContrastiveLoss(), None, "ring", miner=one)(mine, labels)
        except ValueError as error:
            assert str(error).startswith("schedule: ") and "expected 'gather'" in str(error), error
        else:
            raise AssertionError("a miner without embeddings")


def _at_once(miner: torch.nn.Module, *batch: object) -> tuple[Tensor, ...]:
    return tuple(miner(*batch))


def users_rows() -> None:
    """A loss of `row_loss` in the row language, with all that it may be called with."""
    case, size = CASES["ragged"](), dist.get_world_size()
    x, y, t = case.x, case.y, case.x[:, :5].contiguous()
    counts = shards(len(x), size, False)
    mine, labels, theirs = (own(v, counts) for v in (x, y, t))
    word = fastdml.language

    def pull(p: object) -> object:
        return word.log_sum_exp(5 * p.s, where=p.negative, one=True) - word.sum(p.s, where=p.positive)

    def taught(p: object) -> object:
        return word.sum(word.square(p.s - p.teacher), where=p.pair)

    loss, miner = fastdml.row_loss(pull), fastdml.miners.MultiSimilarityMiner()
    together, true = wrap(loss), loss(x, y)
    close(together(embeddings=mine, labels=labels), true, "names")
    close(together(mine, labels, None, mine, labels), true, "one set")
    close(together(mine, labels, None, mine.clone(), labels, own=0), true, "own copies")
    close(wrap(loss, miner=miner)(mine, labels), loss(x, y, tuple(miner(x, y))), "a miner")
    local = torch.arange(len(labels))
    pairs = (local, local.flip(0), local, local.roll(1))
    starts = [sum(counts[:r]) for r in range(size)]
    each = [torch.arange(c) for c in counts]
    whole = [torch.cat([f(i) + s for i, s in zip(each, starts, strict=True)]) for f in (
        lambda i: i, lambda i: i.flip(0), lambda i: i, lambda i: i.roll(1),
    )]  # fmt: skip
    close(together(mine, labels, pairs), loss(x, y, tuple(whole)), "index tuples")
    loss = fastdml.row_loss(taught, teacher="cosine")
    close(wrap(loss)(mine, teacher=theirs), loss(x, teacher=t), "a teacher")


def a_memory_and_pairs() -> None:
    """They name the rank's own rows, and rows of the memory that all have."""
    case, size = CASES["ragged"](), dist.get_world_size()
    counts = shards(len(case.x), size, False)
    first, rows = sum(counts[: dist.get_rank()]), torch.arange(len(case.x))
    pairs = (rows, rows.flip(0), rows, rows.roll(3))
    mine = tuple(own(i, counts) - (0 if k % 2 else first) for k, i in enumerate(pairs))
    alone, shared = (
        fastdml.wrappers.CrossBatchMemory(fastdml.losses.ContrastiveLoss(), 19, 60).double() for _ in range(2)
    )
    for k in range(2):
        true = alone(case.x, case.y, pairs)
        close(wrap(shared)(own(case.x, counts), own(case.y, counts), mine), true, f"value {k}")


def second_derivative() -> None:
    """What ranks tell each other is no part of a graph: refused rather than left out."""
    case = CASES["ragged"]()
    counts = shards(len(case.x), dist.get_world_size(), True)

    class Bilinear(fastdml.distances.BaseDistance):
        def compute_mat(self, a: Tensor, c: Tensor) -> Tensor:
            return (a @ c.t()).square()

    loss = wrap(fastdml.losses.ContrastiveLoss(0.0, 3.0, distance=Bilinear()))
    x = own(case.x, counts).clone().requires_grad_()
    value = loss(x, own(case.y, counts))
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    try:
        (value + first.square().sum()).backward()
    except RuntimeError as error:
        assert "first derivatives only" in str(error), error
    else:
        raise AssertionError("a second derivative over ranks")


def _labelled(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    return fastdml.wrappers.Labelled(build())


def _scale() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(0.5, 2, 19))


class LearntDistance(fastdml.distances.BaseDistance):
    def __init__(self) -> None:
        super().__init__()
        self.scale = _scale()

    def compute_mat(self, a: Tensor, c: Tensor) -> Tensor:
        return torch.cdist(a * self.scale, c * self.scale, p=1)


class LearntPenalty(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = _scale()

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).square().mean()


class OwnLoss(fastdml.losses.BaseMetricLossFunction):
    def __init__(self) -> None:
        super().__init__()
        self.scale = _scale()

    def compute_loss(self, embeddings: Tensor, labels: Tensor, *_: object) -> dict[str, object]:
        found = (embeddings * self.scale).square().sum(1)
        return {"loss": {"losses": found, "indices": labels, "reduction_type": "element"}}


def _variants() -> dict[str, tuple[Callable[[], torch.nn.Module], int]]:
    L = fastdml.losses
    miner = fastdml.miners.BatchEasyHardMiner()
    mined = {"losses": [L.TripletMarginLoss(), L.ContrastiveLoss()], "weights": [0.3, 2.0]}
    return {
        "swapped triplets": (lambda: L.TripletMarginLoss(swap=True), 1),
        "drawn triplets": (lambda: L.TripletMarginLoss(triplets_per_anchor=3), 2),
        "drawn by distance": (lambda: L.MarginLoss(triplets_per_anchor="distance_weighted"), 2),
        "a beta of every class": (
            lambda: L.MarginLoss(triplets_per_anchor=2, learn_beta=True, nu=0.1, num_classes=7), 2,
        ),
        "a beta": (lambda: L.MarginLoss(learn_beta=True, nu=0.1), 1),
        "moving tables": (lambda: L.SOPRCLoss(7), 2),
        "a regularizer": (lambda: L.SupConLoss(embedding_regularizer=lambda x: x.square().mean()), 1),
        "nonzero": (lambda: L.GeneralizedLiftedStructureLoss(reduction="nonzero"), 1),
        "weights": (
            lambda: L.ArcFaceLoss(7, 19, weight_regularizer=lambda w: w.square().sum(), reduction="sum"), 1,
        ),
        "a bias": (lambda: L.SmoothedCrossEntropyLoss(7, 19), 1),
        "several losses": (lambda: fastdml.wrappers.MultipleLosses(miners=[miner, None], **mined), 1),
        "a distance in torch": (
            lambda: L.ContrastiveLoss(distance=fastdml.distances.LpDistance(p=1)), 1,
        ),
        "a learnt distance": (lambda: L.ContrastiveLoss(0.3, 30, distance=LearntDistance()), 1),
        "a learnt regularizer": (lambda: L.SupConLoss(embedding_regularizer=LearntPenalty()), 1),
        "a loss of a user's own": (OwnLoss, 1),
        "a memory of all": (lambda: fastdml.wrappers.CrossBatchMemory(L.SupConLoss(), 19, 60), 4),
    }  # fmt: skip


# Losses whose statistics merge, and some whose do not.
TRAVELLING = (
    "ArcFaceLoss", "BinomialDevianceLoss", "CLIPLoss", "CalibrationLoss", "CircleLoss", "ContrastiveLoss",
    "CosFaceLoss", "GeneralizedLiftedStructureLoss", "HistogramLoss", "InfoNCELoss", "MultiSimilarityLoss",
    "NCALoss", "NTXentLoss", "ProxyAnchorLoss", "SigLIPLoss", "SupConLoss", "TupletMarginLoss",
)  # fmt: skip
WHOLE_ROWS = ("SmoothAPLoss", "TripletMarginLoss", "FastAPLoss", "DarkRankLoss", "RKDAngleLoss")


def CHECKS(size: int) -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    every = EXAMPLES if size == 2 else KINDS
    for equal in (False, True):
        kind = "equal" if equal else "unequal"
        for p in every:
            found[f"example {p.id} {kind}"] = functools.partial(example, p.values[0], "ragged", equal)
    for p in KINDS:
        found[f"example {p.id} reference"] = functools.partial(example, p.values[0], "reference", False)
    if size == 2:
        for k, name in enumerate(fastdml.losses.MODULES):
            gradient = "mean" if k % 2 else "sum"
            found[f"module {name}"] = functools.partial(module, name, bool(k % 3), gradient)
            found[f"ring module {name}"] = functools.partial(ring_module, name)
        case = CASES["ragged"]()
        batch = {"embeddings": case.x, "labels": case.y.unique(return_inverse=True)[1]}
        for name, (build, rounds) in _variants().items():
            found[name] = functools.partial(wrapped, build, batch, rounds=rounds)
        weights = {**batch, "sample_weights": torch.linspace(0.1, 3, len(case.x)).double()}
        for kind in ("swapped triplets", "drawn triplets"):
            build = functools.partial(_labelled, _variants()[kind][0])
            found[f"weights of {kind}"] = functools.partial(wrapped, build, weights)
        found["index tuples"] = listed
        found["sets of labels"] = sets_of_labels
        found["a memory and pairs"] = a_memory_and_pairs
        found["miners are told"] = miners_are_told
        found["a ring with a miner"] = ring_with_a_miner
        found["a user's rows"] = users_rows
        found["miners"] = mined
        found["losses of rows"] = rows_of_losses
        found["a second derivative"] = second_derivative
    for p in EXAMPLES:
        if refuses(p.values[0]) is None and (size == 2 or p.id.endswith("0")):
            for case in ("ragged", "reference"):
                check = functools.partial(example, p.values[0], case, case == "reference", "ring")
                found[f"ring {p.id} {case}"] = check
    return found
