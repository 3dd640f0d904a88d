"""What a caller can get wrong is a ValueError that names the argument and what was expected."""
# ruff: noqa: E501 (a wrong call and its message stay on one line)

import ast
import math
import traceback

import pytest
import torch
from conftest import BACKENDS, CASES, EXAMPLES, KINDS, ROOT, inputs, needs_compiled, python

import fastdml
from fastdml import functional as F
from fastdml import losses, miners
from fastdml.engine import in_torch
from fastdml.engine.dispatch import EXECUTORS
from fastdml.engine.executors import Wanted
from fastdml.engine.problem import Problem
from fastdml.engine.registry import LOSSES
from fastdml.engine.relation import LabelRelation

B, D = 8, 4
x = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
y = torch.arange(B) // 2
proxies = torch.eye(4)
bad = x.clone()
bad[2, 1], bad[5, 0] = float("nan"), float("inf")
i = torch.tensor([0, 1])


class Shard(torch.Tensor):
    """As a distributed tensor looks."""

    full_tensor = torch.Tensor.clone


ms, pa = F.multi_similarity, F.proxy_anchor

WRONG = {
    # embeddings
    "list": (lambda: ms([[1.0]], y), r"embeddings: expected a tensor \[batch, dim\], got list"),
    "1-D": (lambda: ms(x[0], y), r"embeddings: expected shape \[batch, dim\], got \(4,\)"),
    "3-D": (lambda: ms(x[None], y), r"embeddings: expected shape \[batch, dim\], got \(1, 8, 4\)"),
    "integers": (lambda: ms(x.long(), y), "embeddings: expected a floating-point tensor, got torch.int64"),
    "complex": (lambda: ms(x + 0j, y), "embeddings: expected a floating-point tensor, got torch.complex64"),
    "sparse": (lambda: ms(x.to_sparse(), y), "embeddings: expected a dense tensor, got layout torch.sparse_coo"),
    "no dimension": (lambda: ms(x[:, :0], y), r"embeddings: expected at least one dimension, got shape \(8, 0\)"),
    "other dimensions": (lambda: fastdml.methods.DenselyAnchoredSampling(2, 5)(x, y), "embeddings: expected 5 dimensions, got 4"),
    # arguments that there are not
    "unknown": (lambda: losses.SupConLoss()(x, y, weights=x), 'weights: expected none, as SupConLoss has no such argument; multiply what reduction="none" returns'),
    "unknown of pairs": (lambda: losses.CLIPLoss()(x, x, labels=y), "labels: expected none, as CLIPLoss has no such argument; it knows no classes; losses over samples"),
    "misspelt": (lambda: losses.SupConLoss(temprature=1), "temprature: expected none, as SupConLoss has no such argument; did you mean 'temperature'?"),
    "unlike any": (lambda: F.sup_con(x, y, zzz=1), r"zzz: expected none, as sup_con\(\) has no such argument; it takes embeddings, labels, "),
    "set by a class": (lambda: losses.CLIPLoss(symmetric=False), "symmetric: expected none, as CLIPLoss has no such argument; it takes temperature, learnable"),
    "too many": (lambda: losses.PairedNPairsLoss()(x, x, y), "PairedNPairsLoss: expected at most 2 arguments by place, embeddings, ref_emb; got 3"),
    "too many of a function": (lambda: F.sup_con(*[x] * 9), r"sup_con\(\): expected at most 5 arguments by place, embeddings, labels, .*; got 9"),
    "NaN": (lambda: ms(bad, y, validate=True), "embeddings: expected finite values, got NaN or infinity in 2 rows"),
    "scores list": (lambda: losses.MarginMSELoss()(x, x[:, None], [1.0]), "teacher_scores: expected a floating-point tensor, got list"),
    "widths": (lambda: fastdml.wrappers.MatryoshkaLoss(losses.SupConLoss(), 4), "dims: expected ascending widths, got 4"),
    # labels
    "labels missing": (lambda: ms(x), "labels: expected labels or indices_tuple, got neither"),
    "labels list": (lambda: ms(x, [0] * 8), "labels: expected a tensor of 8 integers, got list"),
    "labels float": (lambda: ms(x, y.float()), "labels: expected integer labels, got torch.float32"),
    "labels bool": (lambda: ms(x, y > 1), "labels: expected integer labels, got torch.bool"),
    "labels short": (lambda: ms(x, y[:3]), r"labels: expected shape \[8\], one label per row of embeddings, got \(3,\)"),
    "labels 2-D": (lambda: ms(x, y[:, None]), r"labels: expected shape \[8\], .*got \(8, 1\)"),
    "labels elsewhere": (lambda: ms(x, y.to("meta")), "labels: expected device cpu, that of embeddings, got meta"),
    "pairs elsewhere": (lambda: ms(x, y, (i, i, i.to("meta"))), "indices_tuple: expected device cpu, that of embeddings, got meta"),
    "weights elsewhere": (lambda: F.fast_ap(x, y, (i.to("meta"),) * 3), "indices_tuple: expected device cpu, that of embeddings, got meta"),
    "anchors elsewhere": (lambda: F.n_pairs(x, y, anchors=i.to("meta"), positives=i), "indices_tuple: expected device cpu, that of embeddings, got meta"),
    "labelled pairs elsewhere": (lambda: fastdml.wrappers.Labelled(losses.SupConLoss(), 0)(x, y, (i.to("meta"),) * 4), "indices_tuple: expected device cpu, that of embeddings, got meta"),
    "hard weights elsewhere": (lambda: losses.InfoNCELoss()(x, x, x, hard_weights=y.to("meta")), "hard_weights: expected device cpu, that of hard_negatives, got meta"),
    "hard guide elsewhere": (lambda: losses.InfoNCELoss()(x, x, x, guide=x, ref_guide=x, hard_guide=x.to("meta")), "hard_guide: expected device cpu, that of hard_negatives, got meta"),
    "token mask elsewhere": (lambda: losses.LateInteractionLoss()(x[None], x[None], query_mask=(x[None, :, 0] > 0).to("meta")), "query_mask: expected device cpu, that of queries, got meta"),
    "labels a number": (lambda: F.log_ratio(x, y[0]), r"labels: expected a tensor of numbers \[batch\] or \[batch, any\], got torch.int64 \(\)"),
    "memory's miner": (lambda: losses.CrossBatchMemory(losses.SupConLoss(), B, miner="x"), "miner: expected a miner or None, got 'x'"),
    "shared miner": (lambda: fastdml.distributed.wrap(losses.SupConLoss(), miner=3), "miner: expected a miner or None, got 3"),
    "miners": (lambda: losses.MultipleLosses([losses.SupConLoss()], ["x"]), "miners: expected modules or None, got 'x'"),
    "a loss for a miner": (lambda: losses.CrossBatchMemory(losses.SupConLoss(), B, miner=losses.SupConLoss()), "miner: expected a miner or None, got the loss SupConLoss"),
    "a class for a miner": (lambda: fastdml.distributed.wrap(losses.SupConLoss(), miner=miners.HDCMiner), "miner: expected a miner or None, got the class HDCMiner"),
    "a loss among miners": (lambda: losses.MultipleLosses([losses.SupConLoss()], [losses.SupConLoss()]), "miners: expected a miner or None, got the loss SupConLoss"),
    "a miner for its result": (lambda: ms(x, y, miners.HDCMiner()), "indices_tuple: expected a miner's result, .* got the miner HDCMiner; call it with embeddings and labels"),
    "a miner for its result beside ignored labels": (lambda: fastdml.wrappers.Labelled(losses.SupConLoss(), 0)(x, y, miners.HDCMiner()), "indices_tuple: expected a miner's result, .* got the miner HDCMiner; call it"),
    "a loss for pairs": (lambda: ms(x, y, losses.SupConLoss()), "indices_tuple: expected a miner's result, .* got the loss SupConLoss$"),
    "a class for pairs": (lambda: ms(x, y, miners.HDCMiner), "indices_tuple: expected a miner's result, .* got the class HDCMiner$"),
    "labels a list beside mined ones": (lambda: losses.MultiSimilarityLoss()(x, y.tolist(), miners.MultiSimilarityMiner()(x, y)), "labels: expected a tensor of 8 integers, got list"),
    "labels float beside mined ones": (lambda: losses.MultiSimilarityLoss()(x, y.float(), miners.MultiSimilarityMiner()(x, y)), "labels: expected integer labels, got torch.float32"),
    "a shard": (lambda: ms(x.as_subclass(Shard), y), "embeddings: expected a plain tensor, got Shard; see its full_tensor"),
    "alike and far": (lambda: losses.SigLIPLoss(similarity="distance"), "similarity: expected one that is larger for what is more alike, got 'distance'"),
    "a parameter brought along": (lambda: fastdml.row_loss(lambda s, positive, negative: (torch.nn.Parameter(torch.ones(())) * s).sum(1))(x, y), "fn: .* reads a tensor that requires a gradient, but would get none; expected a function of s"),
    "documents": (lambda: losses.LateInteractionLoss()(x[:, None], x[:3, None]), "documents: expected 8 rows, one per row of queries, got 3"),
    "place of documents": (lambda: losses.LateInteractionLoss()(x[:, None], x[:, None], own=9), "own: expected a number below 8, the rows of documents, got 9"),
    "labels sparse": (lambda: ms(x, y.to_sparse()), "labels: expected a dense tensor of 8 integers, got layout torch.sparse_coo"),
    # other candidates
    "own negative": (lambda: losses.SupConLoss()(x, y, None, x + 1, y, own=-1), "own: expected a number of at least 0, or indices, got -1"),
    "own far": (lambda: losses.SupConLoss()(x, y, None, x + 1, y, own=8), "own: expected a number below 8, the rows of ref_emb, got 8"),
    "own type": (lambda: losses.SupConLoss()(x, y, None, x + 1, y, own="0"), "own: expected a number or a tensor of 8 integers, got str"),
    "own shape": (lambda: losses.SupConLoss()(x, y, None, x + 1, y, own=y[:3]), r"own: expected shape \[8\], got \(3,\)"),
    "own range": (lambda: losses.SupConLoss()(x, y, None, x + 1, y, own=y + 8), r"own: expected indices of ref_emb in \[0, 8\), or -1"),
    "ref 1-D": (lambda: ms(x, y, None, x[0], y), r"ref_emb: expected shape \[batch, dim\]"),
    "ref dimension": (lambda: ms(x, y, None, x[:, :3], y), "ref_emb: expected embeddings of dimension 4, as in embeddings, got 3"),
    "ref elsewhere": (lambda: ms(x, y, None, x.to("meta"), y), "ref_emb: expected device cpu, that of embeddings, got meta"),
    "large": (lambda: ms(x * 1e25, y, validate=True), "embeddings: expected norms whose squares are in the range of torch.float32"),
    "ref NaN": (lambda: ms(x, y, None, bad, y, validate=True), "ref_emb: expected finite values, got NaN or infinity in 2 rows"),
    "ref labels missing": (lambda: ms(x, y, None, x), "ref_labels: expected one label per row of ref_emb, got None"),
    "ref labels short": (lambda: ms(x, y, None, x, y[:3]), r"ref_labels: expected shape \[8\], one label per row of ref_emb, got \(3,\)"),
    "ref labels alone": (lambda: ms(x, y, None, None, y), "ref_emb: expected embeddings with ref_labels, got None"),
    # index tuples
    "tuple type": (lambda: ms(x, y, i), r"indices_tuple: expected \(a, p, n\) or \(a1, p, a2, n\) of index tensors, got Tensor"),
    "tuple length": (lambda: ms(x, y, (i, i)), "indices_tuple: expected .*got tuple of length 2"),
    "tuple element": (lambda: ms(x, y, (i, i, [0, 1])), "indices_tuple: expected n to be a 1-D tensor of integers"),
    "tuple float": (lambda: ms(x, y, (i.float(), i, i)), "indices_tuple: expected a1 to be a 1-D tensor of integers"),
    "tuple range": (lambda: ms(x, y, (i, i + 7, i)), r"indices_tuple: expected p in \[0, 8\)"),
    "tuple negative": (lambda: ms(x, y, (i, i, i - 1, i)), r"indices_tuple: expected a2 in \[0, 8\)"),
    "tuple lengths": (lambda: ms(x, y, (i, i[:1], i, i)), "indices_tuple: expected a1 and p of equal length"),
    "tuple lengths of negatives": (lambda: ms(x, y, (i, i, i, i[:1])), "indices_tuple: expected a2 and n of equal length"),
    # proxies
    "proxy too few": (lambda: pa(x, y, proxies[:3]), r"labels: expected values in \[0, 3\), one proxy per class, got 0 to 3"),
    "proxy negative": (lambda: pa(x, y - 1, proxies), r"labels: expected values in \[0, 4\), .*got -1 to 2"),
    "proxy dimension": (lambda: pa(x, y, proxies[:, :2]), "proxies: expected embeddings of dimension 4, as in embeddings, got 2"),
    "proxy NaN": (lambda: pa(x, y, proxies / 0, validate=True), "proxies: expected finite values"),
    "proxy labels missing": (lambda: losses.ProxyAnchorLoss(4, D)(x), "labels: expected one label per row of embeddings, got None"),
    "proxy with ref": (lambda: losses.ProxyAnchorLoss(4, D)(x, y, ref_emb=x), "ref_emb: a proxy loss compares with its proxies; expected None"),
    "classes": (lambda: losses.ProxyAnchorLoss(0, D), "num_classes: expected a positive integer, got 0"),
    "size": (lambda: losses.ProxyAnchorLoss(4, 2.5), "embedding_size: expected a positive integer, got 2.5"),
    # parameters and options
    "alpha": (lambda: losses.MultiSimilarityLoss(alpha=0), "alpha: expected a positive number, got 0"),
    "beta": (lambda: losses.MultiSimilarityLoss(beta=float("inf")), "beta: expected a positive number, got inf"),
    "base": (lambda: losses.MultiSimilarityLoss(base=float("nan")), "base: expected a finite number, got nan"),
    "epsilon": (lambda: losses.MultiSimilarityLoss(epsilon=float("inf")), "epsilon: expected a finite number, got inf"),
    "variant": (lambda: losses.MultiSimilarityLoss(variant="mine"), "variant: expected 'paper' or 'released', got 'mine'"),
    "margin": (lambda: losses.ProxyAnchorLoss(4, D, margin=float("nan")), "margin: expected a finite number"),
    "temperature": (lambda: losses.SmoothAPLoss(0), "temperature: expected a positive number, got 0"),
    "temperature NaN": (lambda: F.smooth_ap(x, y, temperature=float("nan")), "temperature: expected a positive number, got nan"),
    "reduction": (lambda: losses.SmoothAPLoss(reduction="avg"), r"reduction: expected one of \('mean', .*got 'avg'"),
    "reduction of a loss": (lambda: losses.HistogramLoss(reduction="sum"), "reduction: expected 'mean', got 'sum'"),
    "reduction of a function": (lambda: ms(x, y, reduction=None), "reduction: expected one of .*got None"),
    "similarity": (lambda: losses.SmoothAPLoss(similarity="l2"), r"similarity: expected one of .*'cosine', .*got 'l2'"),
    "similarity of distances": (lambda: F.relaxed_contrastive(x, x, similarity="dot"), r"similarity: expected a distance \(.*got 'dot'"),
    "similarity of a function": (lambda: ms(x, y, similarity="l2"), "similarity: expected one of .*got 'l2'"),
    "backend": (lambda: losses.SmoothAPLoss(backend="gpu"), r"backend: expected 'auto' or one of \[.*got 'gpu'"),
    "backend of a function": (lambda: ms(x, y, backend="gpu"), "backend: expected 'auto' or one of .*got 'gpu'"),
    "negative": (lambda: losses.ROADMAPLoss(ap_weight=-1), "ap_weight: expected a number of at least 0, got -1"),
    "seed": (lambda: losses.TripletMarginLoss(seed=1 << 24), r"seed: expected an integer in \[0, 2\^24\), got 16777216"),
    "seed type": (lambda: F.triplet_margin(x, y, triplets_per_anchor=1, seed=x[0, 0]), r"seed: expected one integer, got torch.float32 \(\)"),
    "two temperatures": (lambda: losses.SmoothAPLoss(torch.ones(2)), r"temperature: expected a positive number, got a tensor of shape \(2,\)"),
    "learnt temperature": (lambda: F.smooth_ap(x, y, temperature=torch.ones((), requires_grad=True)), "temperature: expected a positive number, got a tensor that requires a gradient"),
    "regularizer": (lambda: losses.SupConLoss(embedding_regularizer=3), "embedding_regularizer: expected a function or None, got 3"),
    "switch": (lambda: losses.SupConLoss(validate=1), "validate: expected True or False, got 1"),
    "class counts": (lambda: losses.SOPRCLoss(3, [1, 2]), r"class_counts: expected 3 positive numbers, got \[1, 2\]"),
    # arguments of functions
    "scales": (lambda: F.info_nce(x, x, torch.ones(3)), r"scale: expected one number, got torch.float32 \(3,\)"),
    "scale NaN": (lambda: F.info_nce(x, x, float("nan")), "scale: expected a finite number, got nan"),
    "scale type": (lambda: F.siglip(x, x, "a"), "scale: expected a finite number, got 'a'"),
    "biases": (lambda: F.siglip(x, x, bias=torch.ones(2)), r"bias: expected one number, got torch.float32 \(2,\)"),
    "probabilities": (lambda: F.pce(x, y * 0, x.to("meta")), "probabilities: expected device cpu, that of embeddings, got meta"),
    "label distances": (lambda: F.log_ratio(x, label_distance=x[1:, 0].to("meta")), "label_distance: expected device cpu, that of embeddings, got meta"),
    "label distances' shape": (lambda: F.log_ratio(x, label_distance=x[:, 0]), r"label_distance: expected shape \[\d+\], from the first sample to each other one, got \(\d+,\)"),
    "label distance NaN": (lambda: F.log_ratio(x, label_distance=x[1:, 0] / 0), "label_distance: expected finite distances of at least 0"),
    "label distance squared": (lambda: F.log_ratio(x, label_distance=-x[1:, 0].abs(), squared_label=True), "label_distance: expected finite distances of at least 0"),
    "label distance": (lambda: F.dense_triplet(x, label_distance=-x[1:, 0].abs()), "label_distance: expected finite distances of at least 0"),
    # workspace and explain
    "workspace": (lambda: fastdml.set_workspace(1000), "size: expected at least 65536 bytes, got 1000"),
    "workspace device": (lambda: fastdml.set_workspace(1 << 20, "tpu"), r"device: expected one of \['cpu', 'cuda'\], got 'tpu'"),
    "explain loss": (lambda: fastdml.explain("l2", 8), r"loss: expected one of \[.*got 'l2'"),
    "explain object": (lambda: fastdml.explain(3, 8), "loss: expected a loss of fastdml or its name, got 3"),
    "explain size": (lambda: fastdml.explain("smooth_ap", 0), "M: expected an integer of at least 1, got 0"),
    "explain class size": (lambda: fastdml.explain("smooth_ap", 8, per_class=0), "per_class: expected an integer of at least 1, got 0"),
    "explain backend": (lambda: fastdml.explain("smooth_ap", 8, device="cuda", backend="native"), "backend: 'native' cannot run 'smooth_ap'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_message(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match="^" + message):
        call()


def test_no_message_is_left_out():
    """Every `raise` of check.py is reached by a case above."""
    path = ROOT / "fastdml" / "engine" / "check.py"
    raising = {
        (node.lineno, node.end_lineno)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Raise)
    }
    reached = set()
    for call, _ in WRONG.values():
        try:
            call()
        except ValueError as error:
            for frame in traceback.extract_tb(error.__traceback__):
                if frame.filename == str(path):
                    reached |= {span for span in raising if span[0] <= frame.lineno <= span[1]}
    assert not sorted(raising - reached)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", KINDS)
def test_second_derivative(loss, backend):
    """Refused whatever the upstream gradient: it may not be missing silently."""
    given = inputs(loss, CASES["ragged"]())
    leaves = given.leaves()
    value = given.loss(loss, backend, **leaves)
    (first,) = torch.autograd.grad(value, leaves["anchors"], create_graph=True)
    penalised = value + first.square().sum()
    refused = pytest.raises(RuntimeError, match="fastdml losses have first derivatives only")
    with refused:
        penalised.backward(retain_graph=True)
    with refused:
        torch.autograd.grad(first.sum(), leaves["anchors"], allow_unused=True)


TRIPLETS = torch.tensor([[0, 1, 4], [3, 2, 5], [6, 7, 1]]).unbind(1)
OF_TRIPLETS = {
    "swapped": lambda x: losses.TripletMarginLoss(0.5, swap=True)(x, y),
    "listed": lambda x: losses.TripletMarginLoss(0.5, smooth_loss=True)(x, None, TRIPLETS),
    # Their distances have a second derivative, what is made of them has none.
    "listed in torch": lambda x: losses.TripletMarginLoss(
        0.5, smooth_loss=True, distance=fastdml.distances.LpDistance(p=3)
    )(x, None, TRIPLETS),
}


@pytest.mark.parametrize("value_of", OF_TRIPLETS.values(), ids=OF_TRIPLETS)
def test_a_penalty_of_the_gradient_of_triplets(value_of):
    leaf = x.double().requires_grad_()
    value = value_of(leaf)
    (first,) = torch.autograd.grad(value, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="fastdml losses have first derivatives only"):
        (value + first.square().sum()).backward()


IN_BLOCKS = {
    "distance": lambda: losses.ContrastiveLoss(0.0, 3.0, distance=fastdml.distances.LpDistance(p=1)),
    "reducer": lambda: losses.ContrastiveLoss(reducer=fastdml.reducers.ThresholdReducer(low=0.1)),
    "presweep": lambda: losses.GeneralizedLiftedStructureLoss(
        distance=fastdml.distances.LpDistance(p=1)
    ),
    "rows": lambda: losses.MultiSimilarityLoss(reduction="none"),
    "prefixes": lambda: fastdml.wrappers.MatryoshkaLoss(losses.MultiSimilarityLoss(reduction="none"), [2, 4]),
}  # fmt: skip


@pytest.fixture(params=IN_BLOCKS.values(), ids=IN_BLOCKS)
def in_blocks(request, monkeypatch):
    """A loss that looks at its labels again in the backward pass, and a batch for it of several blocks."""
    monkeypatch.setattr(in_torch, "_AT_ONCE", 1 << 12)
    made = torch.randn(600, D, generator=torch.Generator().manual_seed(1))
    return request.param(), made, torch.arange(600) // 3


def test_labels_that_change_before_the_backward_pass(in_blocks):
    loss, made, theirs = in_blocks
    value = loss(made.clone().requires_grad_(), theirs).sum()
    theirs.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_tensors_of_inference_mode(in_blocks):
    loss, made, theirs = in_blocks
    value = loss(made, theirs)
    with torch.inference_mode():
        copies = made.clone(), theirs.clone()
    torch.testing.assert_close(loss(*copies), value)
    leaves = [made.clone().requires_grad_() for _ in range(2)]
    for leaf, labels in zip(leaves, (theirs, copies[1])):
        loss(leaf, labels).sum().backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


# What else than the embeddings may come from a teacher, an index or a miner in inference mode.
BESIDE = {
    "candidates": lambda z, t, k: losses.SupConLoss(reduction="none")(z, k, None, t, k),
    "pairs": lambda z, t, k: losses.SupConLoss(reduction="none")(z, k, (k[1:], k[:-1], k[:-1], k[1:])),
    "triplets": lambda z, t, k: losses.TripletMarginLoss()(z, None, (k[1:], k[:-1], k[1:] * 0)),
    "swapped": lambda z, t, k: losses.TripletMarginLoss(swap=True)(z, k),
    "own candidates": lambda z, t, k: losses.MarginMSELoss()(z, t[:, None].expand(-1, 3, -1), t[:, :3]),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_comes_from_inference_mode_is_no_matter(name):
    found = []
    for mode in (False, True):
        with torch.inference_mode(mode):
            beside, labels = 2 * x.flip(1), y.clone()
        leaf = x.clone().requires_grad_()
        BESIDE[name](leaf, beside, labels).sum().backward()
        found.append(leaf.grad)
    assert found[0].any() and torch.equal(*found)


def test_a_hessian_is_refused():
    case = CASES["ragged"]()

    def loss(x):
        return fastdml.functional.multi_similarity(x, case.y)

    with pytest.raises(RuntimeError, match="fastdml losses have first derivatives only"):
        torch.autograd.functional.hessian(loss, case.x)


@pytest.mark.parametrize("loss", KINDS)
def test_create_graph_alone_is_no_error(loss):
    given = inputs(loss, CASES["ragged"]())
    leaves = given.leaves()
    once, kept = (
        torch.autograd.grad(given.loss(loss, "auto", **leaves), leaves["anchors"], create_graph=keep)[0]
        for keep in (False, True)
    )
    assert torch.equal(once, kept)


@pytest.mark.parametrize("loss", KINDS)
def test_a_forced_backend_that_cannot_run(loss):
    case = CASES["ragged"]()
    with pytest.raises(ValueError, match="backend: expected 'auto' or one of"):
        inputs(loss, case).loss(loss, "quantum")


@needs_compiled
def test_native_takes_no_function_of_pairs():
    message = "backend: 'native' cannot run 'multi_similarity': compiled functors take pairs from labels"
    with pytest.raises(ValueError, match=message):
        ms(x, y, lambda r, c: (y[r, None] == y[c], y[r, None] != y[c]), backend="native")


def test_native_forced_without_the_compiled_library():
    print(python(
        """
import sys
sys.modules["fastdml._C"] = None
import torch, fastdml
loss = fastdml.losses.SmoothAPLoss(backend="native")
try:
    loss(torch.randn(4, 3), torch.arange(4))
except ValueError as error:
    assert "backend: 'native' cannot run 'smooth_ap': the compiled library is not installed" in str(error)
else:
    raise AssertionError("no error")
"""
    ))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", EXAMPLES)
def test_nan_without_validation_shows(loss, backend, wrong):
    """The loss of a batch with a NaN or an infinity is no number, and the gradient shows it too."""
    case = CASES["ragged"]()
    case.x[3, 2] = wrong
    given = inputs(loss, case)
    leaves = given.leaves()
    value = given.loss(loss, backend, **leaves)
    assert value.isnan()
    value.backward()
    assert not leaves["anchors" if loss.rows == "samples" else "candidates"].grad.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", [p for p in EXAMPLES if inputs(p.values[0], CASES["ragged"]()).teacher])
def test_nan_of_a_teacher_shows(loss, backend):
    case = CASES["ragged"]()
    given = inputs(loss, case)
    given.teacher[0][2, 1] = float("nan")
    assert given.loss(loss, backend).isnan()


@needs_compiled
def test_compiled_rows_refuse_numbers_of_another_type():
    """... whose bytes they would read as their own: a problem made by hand is not converted."""
    scalars = torch.tensor([10.0, -10.0], dtype=torch.float64)
    problem = Problem(LOSSES["siglip"](), x, x, LabelRelation(y, y), x.dtype, scalars=scalars)
    with pytest.raises(RuntimeError, match="of another type"):
        EXECUTORS["native"].run(problem, Wanted())
