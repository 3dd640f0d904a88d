"""Operators as torch expects them, torch.compile without graph breaks, autocast."""

import pytest
import torch
from conftest import (
    BACKENDS,
    CASES,
    EXAMPLES,
    FIRST_EXAMPLES,
    KINDS,
    call,
    calls,
    inputs,
    needs_compiled,
    replaced,
    sets,
)
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

import fastdml
from fastdml import functional as F
from fastdml import losses
from fastdml.engine.call import LEAVES, spelled
from fastdml.engine.registry import LOSSES, description, handle
from fastdml.engine.relation import LabelRelation
from fastdml.losses.rank.smooth_ap import SmoothAP

# A functional form is its module's: of them, one of each kind of batch.
NAMES = [*losses.MODULES, "multi_similarity", "proxy_anchor", "relaxed_contrastive"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def operator_arguments(loss, case, reduction="mean", backend="auto", **changes):
    """The operator's arguments for a call of a loss on a case."""
    given = inputs(loss, case)
    leaves = given.leaves()
    tensors, words = given.call(loss, backend, reduction, **changes).packed()
    return tensors, spelled(words), [name in leaves for name in LEAVES]


@pytest.mark.parametrize("loss", FIRST_EXAMPLES)
def test_operator(loss):
    proxies = "proxies" in (loss.rows, loss.columns)
    arguments = operator_arguments(loss, CASES["ragged" if proxies else "reference"]())
    torch.library.opcheck(torch.ops.fastdml.row_loss, arguments)


@pytest.mark.parametrize("loss", KINDS)
def test_operator_in_half_precision(loss):
    """Its gradients come in the type of statistics."""
    arguments = operator_arguments(loss, CASES["ragged"]().to(torch.float16))
    torch.library.opcheck(torch.ops.fastdml.row_loss, arguments)
    assert torch.ops.fastdml.row_loss(*arguments)[1].dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_operator_with_rows_and_tuples(backend):
    case = CASES["ragged"]()
    loss = next(p.values[0] for p in EXAMPLES if p.values[0].name == "multi_similarity")
    torch.library.opcheck(torch.ops.fastdml.row_loss, operator_arguments(loss, case, "none", backend))
    if backend != "native":
        pairs = [torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([4]), torch.tensor([5])]
        arguments = operator_arguments(loss, case, "none", backend, pairs=pairs)
        torch.library.opcheck(torch.ops.fastdml.row_loss, arguments)


@needs_compiled
def test_native_operators_write_what_their_schemas_say():
    """Not seen by a compiled graph (they run inside the operator above), so: their schemas only."""
    from fastdml import _C

    g = torch.Generator().manual_seed(0)
    y = torch.tensor([3, 3, -7, 8, 3, 8])
    native = torch.ops.fastdml_native
    check = torch.library.opcheck
    check(native.class_index, (y, y.clone()), test_utils=("test_schema",))
    index = LabelRelation(y, y.clone()).class_index
    row_class, start, order = index.row_class, index.start, index.order
    assert row_class.tolist() == [0, 0, 1, 2, 0, 2] and start[:4].tolist() == [0, 3, 4, 6]
    assert order.tolist() == [0, 1, 4, 2, 3, 5] and (index.longest, index.matched) == (3, 6)
    check(native.total, (torch.rand(6, 2), torch.rand(6), 0.5), test_utils=("test_schema",))
    matrix = torch.randn(6, 5, generator=g)
    check(
        native.similarities_,
        (matrix.clone(), torch.rand(6), torch.rand(5), 2, torch.rand(6), torch.rand(5), 0.5),
        test_utils=("test_schema",),
    )
    check(native.remove_radial_, (matrix.clone(), matrix, torch.ones(6)), test_utils=("test_schema",))
    functor = _C.functors()["smooth_ap"][0]
    schema = native.rows_.default._schema
    given = {
        "s": torch.randn(6, 6, generator=g), "functor": functor,
        "parameters": SmoothAP().parameters(),
        "row_class": row_class, "col_class": row_class, "class_start": start, "class_order": order,
        "longest": 3, "own_offset": -1, "weight": 1.0, "loss": torch.zeros(6), "gradient": True,
    }  # fmt: skip
    defaults = {"float": 0.0, "int": 0, "bool": False}
    arguments = tuple(
        given.get(a.name, defaults.get(str(a.type))) for a in schema.arguments
    )
    check(native.rows_, arguments, test_utils=("test_schema",))
    given |= {"anchors": matrix, "normalized": True, "classes": index.packed}
    for both in (False, True):
        given["d_anchors"] = given["d_candidates"] = given["total"] = both
        given["scratch"] = torch.empty(6, 6) if both else None
        arguments = tuple(
            given.get(a.name, defaults.get(str(a.type)))
            for a in native.one_block.default._schema.arguments
        )
        check(native.one_block, arguments, test_utils=("test_schema",))


# A histogram moves by how many triplets there are, which it asks the device; a loop over blocks is Python's.
EAGER = {"DynamicSoftMarginLoss", "LateInteractionLoss"}


@pytest.mark.unpoisoned
@pytest.mark.parametrize("name", [n for n in NAMES if n not in EAGER])
def test_one_graph_forward_and_backward(name):
    """Equal to eager, one graph for one shape, and one more for all others.

    N-pair with form "all": for the others the number of pairs is known once the labels are read.
    """
    counter = CompileCounterWithBackend("aot_eager")
    case = CASES["ragged"]().to(torch.float32)
    function, arguments = calls(case)[name]
    batch = {*sets(case.x, case.y), "indices_tuple"}
    if name == "NPairsLoss":
        function = losses.NPairsLoss(form="all")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    parameters = list(function.parameters()) if isinstance(function, torch.nn.Module) else []

    def seeded(f, given):
        torch.manual_seed(0)  # form "all" of N-pair draws
        return f(**given)

    def step(f, x):
        x = x.clone().requires_grad_()
        value = seeded(f, replaced(arguments, x))
        return value.detach(), *torch.autograd.grad(value, [x, *parameters])

    g = torch.Generator().manual_seed(1)
    for _ in range(2):
        x = torch.randn(case.x.shape, generator=g)
        for a, b in zip(step(function, x), step(compiled, x)):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-8)
    assert counter.frame_count == 1
    for rows in (30, 29):
        short = {k: v[:rows] if k in batch else v for k, v in arguments.items()}
        value, true = (seeded(f, short) for f in (compiled, function))
        torch.testing.assert_close(value, true, rtol=1e-6, atol=1e-8)
    assert counter.frame_count <= 2


@pytest.mark.unpoisoned
def test_random_positives_of_any_number_of_rows_in_one_graph():
    case = CASES["ragged"]().to(torch.float32)
    compiled = torch.compile(F.n_pairs, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (37, 30, 29):
        found = []
        for function in (compiled, F.n_pairs):
            torch.manual_seed(0)
            found.append(function(case.x[:rows], case.y[:rows], form="all"))
        torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.unpoisoned
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", KINDS)
def test_gradients_beneath_a_switched_off_autograd(loss, backend):
    """Dispatch modes and compiled graphs call the operator so; executors differentiate inside it."""
    given = inputs(loss, CASES["ragged"]())
    true = call(loss, given, backend)
    with FlopCounterMode(display=False):
        for a, b in zip(true, call(loss, given, backend)):
            assert torch.equal(a, b)

    def value(x):
        return given.loss(loss, backend, anchors=x)

    x = given.anchors.clone().requires_grad_()
    torch.compile(value, fullgraph=True, backend="aot_eager")(x).backward()
    torch.testing.assert_close(x.grad, true[1], rtol=1e-12, atol=1e-15)


@pytest.mark.unpoisoned
def test_with_the_miner_and_other_arguments():
    case = CASES["ragged"]().to(torch.float32)
    loss, miner = losses.MultiSimilarityLoss(), fastdml.miners.MultiSimilarityMiner()
    pairs = tuple(miner(case.x, case.y))

    def mined(x, y):
        return loss(x, y, miner(x, y))

    def listed(x, y):
        return loss(x, y, pairs)

    def rows(x, y):
        return F.smooth_ap(x, y, ref_emb=x + 1, ref_labels=y, reduction="none")

    def user(x, y):
        return own(x, y)

    own = fastdml.row_loss(lambda s, positive, negative: (s * negative).sum(1) - (s * positive).sum(1))
    for function in (mined, listed, rows, user):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        x, z = case.x.clone().requires_grad_(), case.x.clone().requires_grad_()
        a, b = function(x, case.y), compiled(z, case.y)
        torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-8)
        a.sum().backward()
        b.sum().backward()
        torch.testing.assert_close(z.grad, x.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.unpoisoned
@pytest.mark.parametrize(("name", "fullgraph"), [("MultiSimilarityLoss", True), ("CircleLoss", False)])
def test_pairs_that_were_mined_before_the_graph(name, fullgraph):
    """Applied inside the loss's own pass, or listed where the loss knows no such rule."""
    case = CASES["ragged"]().to(torch.float32)
    loss, miner = getattr(losses, name)(), fastdml.miners.MultiSimilarityMiner()
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=fullgraph, backend="aot_eager")
    found = compiled(case.x, case.y, miner(case.x, case.y))
    torch.testing.assert_close(found, loss(case.x, case.y, tuple(miner(case.x, case.y))))


@pytest.mark.unpoisoned
def test_parameters_that_change_between_calls():
    """A graph holds the loss it was compiled for; another value is another graph."""
    case = CASES["ragged"]().to(torch.float32)
    compiled = torch.compile(F.smooth_ap, fullgraph=True, backend="aot_eager")
    for temperature in (0.01, 0.1, 0.5, 0.25):
        value = compiled(case.x, case.y, temperature=temperature)
        torch.testing.assert_close(value, F.smooth_ap(case.x, case.y, temperature=temperature))


@pytest.mark.unpoisoned
def test_a_term_of_what_is_learnt_in_one_graph():
    x, labels = torch.randn(12, 4, requires_grad=True), torch.arange(12) // 3
    loss = losses.MarginLoss(nu=0.1, learn_beta=True)
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, labels)
    torch.testing.assert_close(value, loss(x, labels))


@pytest.mark.unpoisoned
def test_inductor():
    """The default compiler, through a layer before the loss."""
    case = CASES["ragged"]().to(torch.float32)
    model, loss = torch.nn.Linear(19, 8), losses.ProxyAnchorLoss(100, 8)

    def step(x, y):
        return loss(model(x).tanh(), y)

    y = case.y % 100
    value = torch.compile(step, fullgraph=True)(case.x, y)
    value.backward()
    found = [p.grad.clone() for p in (*model.parameters(), *loss.parameters())]
    model.zero_grad()
    loss.zero_grad()
    eager = step(case.x, y)
    eager.backward()
    torch.testing.assert_close(value, eager, rtol=1e-5, atol=1e-6)
    for f, p in zip(found, (*model.parameters(), *loss.parameters())):
        torch.testing.assert_close(f, p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", EXAMPLES)
def test_a_spelled_handle_reads_back(loss, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    spelled = handle(loss)
    monkeypatch.undo()
    assert ":" not in spelled and description(spelled) == loss
    assert set(LOSSES) >= {loss.name}


@pytest.mark.parametrize("name", losses.MODULES)
def test_autocast(name):
    """Embeddings come in autocast's type; statistics and loss are float32 all the same."""
    case = CASES["ragged"]().to(torch.float32)
    function, arguments = calls(case)[name]
    layer = torch.nn.Linear(19, 19)
    with torch.autocast("cpu", torch.bfloat16):
        z = layer(case.x)
        assert z.dtype == torch.bfloat16
        value = function(**replaced(arguments, z))
    assert value.dtype == torch.float32
    value.backward()
    assert layer.weight.grad.dtype == torch.float32 and torch.isfinite(layer.weight.grad).all()
    outside = function(**replaced(arguments, z.detach()))
    torch.testing.assert_close(value, outside, rtol=1e-6, atol=0)


@pytest.mark.unpoisoned
@pytest.mark.parametrize("name", ["AngularLoss", "LiftedStructureLoss"])
def test_listed_pairs_that_count_once_in_one_graph(name):
    case = CASES["ragged"]().to(torch.float32)
    loss, a = getattr(losses, name)(), torch.arange(9)
    one, both = torch.cat([a, a[:2]]), torch.cat([a, a])
    pairs = (one, one + 1, both, torch.cat([a + 9, a + 12]))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(case.x, case.y, pairs), loss(case.x, case.y, pairs))
