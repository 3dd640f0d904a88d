"""The row of CUDA (csrc/cuda/row.cuh) on emulated threads, against the CPU's, for every functor.

emulate.cpp compiles all loss headers on the CUDA row with a host compiler; a block's threads are fibers
that run in shuffled order between barriers. What this cannot see is what only a GPU has: its own
arithmetic, alignment faults, launch limits.
"""

import dataclasses
import importlib.util
import subprocess
import sys

import pytest
import torch
from conftest import CASES, EXAMPLES, ROOT, call, distance, inputs, needs_compiled
from emulated import COMPILER, HEADERS, HERE, Emulated, build_once, named

from fastdml.engine import library, schedule
from fastdml.engine.dispatch import EXECUTORS
from fastdml.engine.executors import Wanted
from fastdml.engine.problem import Problem
from fastdml.engine.relation import LabelRelation
from fastdml.losses.triplet.margin import Margin

pytestmark = [
    needs_compiled,
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler was found"),
]
# Some losses are made of others' rows, or of no rows at all.
EXAMPLES = [p for p in EXAMPLES if p.values[0].name in library.functors()]
# Fibers are slow: every loss once, and one loss of every kind for what all have in common.
FIRST = list({p.values[0].name: p for p in reversed(EXAMPLES)}.values())
KIND = ("multi_similarity", "smooth_ap", "soft_triple", "siglip", "contrastive", "auc")
KINDS = [p for p in FIRST if p.values[0].name in KIND]


def is_sorted(description) -> bool:
    """Whether CUDA has the rows sorted before the functor sees them."""
    sort = getattr(description, "sort", None)
    if getattr(description, "negatives", None) == "nearest":
        return sort is not False
    return sort is True or description.name in ("dense_triplet", "dark_rank")


SORTED = [p for p in EXAMPLES if is_sorted(p.values[0])]
SORTING = {p.values[0].name for p in SORTED}


@pytest.fixture(scope="session")
def emulator():
    torch.ops.load_library(str(build_once(ROOT / "build" / "emulator", floats=KIND)))
    EXECUTORS["emulated"] = Emulated()
    yield torch.ops.fastdml_emulated
    del EXECUTORS["emulated"]


@pytest.fixture(autouse=True)
def defaults(emulator):
    emulator.configure(64, 0)
    emulator.hold(-1)


def agree(found, true, bound):
    for f, t in zip(found, true, strict=True):
        assert distance(f, t) <= bound


# Rows that begin on 16 bytes and not, with and without an own pair.
@pytest.mark.parametrize("name", ["ragged", "reference"])
@pytest.mark.parametrize("description", EXAMPLES)
def test_every_functor_in_float64(description, name):
    case = CASES[name]()
    agree(call(description, case, "emulated"), call(description, case, "native"), 1e-9)


@pytest.mark.parametrize("name", ["zeros", "one_class", "all_singletons", "single"])
@pytest.mark.parametrize("description", FIRST)
def test_edges(description, name):
    case = CASES[name]()
    agree(call(description, case, "emulated"), call(description, case, "native"), 1e-9)


@pytest.mark.parametrize("description", KINDS)
def test_float32(description):
    case = CASES["wide"]()
    narrow = case.to(torch.float32)
    true = call(description, case, "native")
    by_cpu = call(description, narrow, "native")
    for f, c, t in zip(call(description, narrow, "emulated"), by_cpu, true, strict=True):
        assert distance(f, t) <= 3 * distance(c, t) + 3e-6


@pytest.mark.parametrize("threads", [32, 96, 256])
@pytest.mark.parametrize("description", KINDS)
def test_any_number_of_threads(description, threads, emulator):
    case = CASES["duplicates"]()
    emulator.configure(threads, 0)
    agree(call(description, case, "emulated"), call(description, case, "native"), 1e-9)


@pytest.mark.parametrize("description", list(dict.fromkeys([*FIRST, *SORTED])))
def test_order_of_threads_does_not_show(description, emulator):
    case = CASES["reference"]()
    first = call(description, case, "emulated")
    emulator.configure(64, 1)
    again = call(description, case, "emulated")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", ["ragged", "reference", "long"])
@pytest.mark.parametrize("threads", [32, 96])
def test_negatives_that_are_drawn(name, threads, emulator):
    """The same ones; of a row's runs of columns and of its positives a warp takes some."""
    emulator.configure(threads, 0)
    case = CASES[name]()
    description = Margin(1.0, drawn=True, dimension=case.x.shape[1], cutoff=0.1, nonzero_loss_cutoff=1.5)
    given = inputs(description, case)
    rows = len(given.anchors)
    values = [torch.full((rows,), 1.1), torch.arange(rows), torch.full((rows,), 5), torch.full((rows,), 3)]
    given = dataclasses.replace(given, row_values=torch.stack([v.double() for v in values], dim=1))
    found, true = (call(description, given, backend) for backend in ("emulated", "native"))
    agree(found, true, 1e-9)
    assert true[0] > 0


def test_rows_of_many_vectors(emulator):
    """Several turns of every thread through the row, and rows that end anywhere in a turn."""
    emulator.configure(32, 0)
    generator = torch.Generator().manual_seed(0)
    description = next(p.values[0] for p in KINDS if p.values[0].name == "smooth_ap")
    for columns in (512, 515, 777):
        x = torch.randn(3, 4, generator=generator)
        ref = torch.randn(columns, 4, generator=generator)
        case = type(CASES["ragged"]())(x, torch.arange(3), ref, torch.arange(columns) // 5)
        agree(call(description, case, "emulated"), call(description, case, "native"), 1e-5)


@pytest.mark.parametrize("name", ["reference", "long", "wide"])
@pytest.mark.parametrize("description", KINDS)
def test_what_is_held_of_a_row_does_not_show(description, name, emulator):
    """In shared memory: nothing of it, some vectors, all. A thread takes its pairs in the same order."""
    emulator.configure(32, 0)
    found, held = [], []
    for most in (0, 6, 10**6, -1):
        emulator.hold(most)
        before = emulator.held_count()
        found.append(call(description, CASES[name](), "emulated"))
        held.append(emulator.held_count() - before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    assert held[0] == 0
    if not is_sorted(description):
        assert 0 < held[1] < held[3]


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    sys.modules[name] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("lists", [False, True])
def test_what_is_held_is_what_the_prediction_says(lists, emulator):
    """benchmarks/predict.py goes by the share that csrc/cuda/launch.h gives a row."""
    machine, used = benchmark("predict").Machine(), emulator.used_by(lists, 4)
    assert benchmark("row_instructions").used_bytes(lists) == used
    of = machine.shared, machine.reserved, machine.most_shared
    for blocks in (1, 2, 3, 4, 8):
        for columns in (1000, 32768, 100_003):
            held = emulator.held_by(*of, blocks, used, columns, 4)
            assert machine.held(blocks, used, columns) == held
            assert held <= columns and held % 4 == 0
            assert held == 0 or blocks * (4 * held + used + machine.reserved) <= machine.shared
    assert emulator.held_by(*of, 32, 33 * 1024, 32768, 4) == 0 == emulator.held_by(*of, 0, 0, 32768, 4)


def test_more_positives_than_shared_memory_holds():
    """Rows with more than 256 positives are left to a second launch; shorter lists are not."""
    generator = torch.Generator().manual_seed(0)
    sizes = [262, 5, 1]
    y = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    ref = torch.randn(sum(sizes), 6, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    case = type(CASES["ragged"]())(x, torch.tensor([1, 0, 2]), ref, y)
    description = next(p.values[0] for p in KINDS if p.values[0].name == "smooth_ap")
    agree(call(description, case, "emulated"), call(description, case, "native"), 1e-9)


@pytest.mark.parametrize("name", ["dense_triplet", "dark_rank"])
def test_arrays_as_long_as_a_row(name):
    """... are not for shared memory where the row is long, however short the lists."""
    generator = torch.Generator().manual_seed(0)
    ref = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    case = type(CASES["ragged"]())(x, torch.arange(3), ref, torch.arange(300) % 100)
    description = next(p.values[0] for p in FIRST if p.values[0].name == name)
    agree(call(description, case, "emulated"), call(description, case, "native"), 1e-9)


def rows(op, description, s, labels, weights=None, teacher=None, anchors=None):
    """One call of rows_; returns (weights, row losses).

    labels: of the columns, and of the rows of a square block, whose samples they are, or else anchors.
    """
    relation = LabelRelation(labels if anchors is None else anchors, labels)
    index = relation.class_index
    loss = s.new_full((len(s), description.outputs), float("nan"))
    values = {k: v.to(s) for k, v in description.example_values(len(s), s.shape[1]).items()}
    columns = s.new_zeros(s.shape[1], 1)  # the samples are not looked at
    samples = columns if anchors is None else s.new_zeros(len(s), 1)
    scalars = Problem(
        description, samples, columns, relation, s.dtype, scalars=values.get("scalars")
    ).all_scalars
    of_rows, columns = values.get("row_values"), values.get("col_values")
    op(
        s, library.functors()[description.name][0], description.parameters(), teacher, None, None, None,
        None, 0, 0.0, index.row_class, index.col_class, index.start, index.order, index.longest,
        0 if anchors is None else -1, None, None, 1.0, scalars, of_rows, columns, loss, None, None, True,
        *([weights] if weights is not None else []),
    )  # fmt: skip
    return s if weights is None else weights, loss


NARROW = [p for p in FIRST if p.values[0].name in ("smooth_ap", "multi_similarity", "auc")]
NARROW += [p for p in SORTED if p.values[0].name in KIND]


@pytest.mark.parametrize("description", NARROW)
@pytest.mark.parametrize("padding", [0, 5, 8])
def test_weights_in_bfloat16(description, padding, emulator):
    """... go into a buffer of their own, of another leading dimension."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(40) // 4
    s = torch.rand(40, 40, generator=generator) * 2 - 1
    true, losses = rows(torch.ops.fastdml_native.rows_, description, s.clone(), labels)
    held = torch.full((40, 40 + padding), float("nan"), dtype=torch.bfloat16)
    kept = s.clone()
    found, own = rows(emulator.rows_, description, kept, labels, weights=held[:, :40])
    assert torch.allclose(own, losses, atol=1e-6)
    assert held[:, 40:].isnan().all()
    # One rounding of what float32 has, also of weights that are sums of several terms.
    assert torch.allclose(found.float(), true, rtol=2**-8, atol=1e-6 * float(true.abs().max()))
    negative = labels[:, None] != labels
    assert torch.equal(kept[negative], s[negative])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["ragged", "reference"])
@pytest.mark.parametrize("loss", ["multi_similarity", "smooth_ap", "siglip", "contrastive"])
def test_schedule_of_half_precision(loss, name, dtype, emulator, monkeypatch):
    """What schedule.py does on CUDA with narrow embeddings, its products made as cuBLAS makes them:
    exact products of the narrow numbers, accumulated and returned in float32."""

    def product(a, b, out):
        return a.to(out.dtype) @ b.to(out.dtype)

    monkeypatch.setattr(schedule, "multiply", lambda a, b, out: out.copy_(product(a, b, out)))
    monkeypatch.setattr(schedule, "accumulate_", lambda t, a, b: t.add_(product(a, b, t)))

    def padded(name, rows, columns, like):  # rows of any type begin on 16 bytes
        return like.new_empty(rows, -(-columns // 8) * 8)[:, :columns]

    monkeypatch.setattr(schedule, "_block", padded)
    monkeypatch.setattr(schedule, "block_rows", lambda problem, step: 16)
    description = next(p.values[0] for p in FIRST if p.values[0].name == loss)
    narrow = CASES[name]().to(dtype)
    found, true = [], []
    for into, executor, given, statistic in (
        (found, EXECUTORS["emulated"], narrow, torch.float32),
        (true, EXECUTORS["native"], narrow.to(torch.float64), torch.float64),
    ):
        made = inputs(description, given)
        anchors = made.anchors
        candidates = anchors if made.candidates is None else made.candidates
        columns = made.anchor_labels if made.candidate_labels is None else made.candidate_labels
        problem = Problem(
            description, anchors, candidates, LabelRelation(made.anchor_labels, columns), statistic,
            scalars=None if made.scalars is None else made.scalars.to(statistic),
        )  # fmt: skip
        out = executor.run(problem, Wanted(anchors=True, candidates=True))
        problem.unconditioned(out.d_anchors, out.d_candidates)
        into += [t for t in (out.outputs, out.d_anchors, out.d_candidates) if t is not None]
    assert len(found) == len(true) == (2 if narrow.ref is None else 3)
    for f, t in zip(found, true, strict=True):
        assert f.dtype == torch.float32
        # Weights of bfloat16 embeddings are rounded to it, those of float16 to nothing.
        assert distance(f, t) <= (2**-8 if dtype == torch.bfloat16 else 2e-5)


@pytest.mark.parametrize("description", [p for p in EXAMPLES if p.values[0].name in SORTING])
def test_whose_rows_are_sorted(description, emulator):
    """Those that ask for it, and no others: True and False are both kept to."""
    before = emulator.sorted_count()
    call(description, CASES["reference"](), "emulated")
    assert (emulator.sorted_count() > before) == is_sorted(description)


def test_every_loss_that_can_be_sorted_is():
    assert {"smooth_ap", "sup_ap", "auc", "pnp", "recall_at_k", "triplet_margin"} <= SORTING
    assert {"soprc", "dense_triplet", "dark_rank"} <= SORTING


@pytest.mark.parametrize("threads", [32, 160])
@pytest.mark.parametrize("description", SORTED)
def test_sorted_rows_with_many_positives(description, threads, emulator):
    """Lists in shared memory and beyond it, in rows of several turns, against the specification."""
    emulator.configure(threads, 3)
    generator = torch.Generator().manual_seed(0)
    sizes = [262, 5, 1, 70]
    y = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    ref = torch.randn(sum(sizes), 5, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    case = type(CASES["ragged"]())(x, torch.tensor([1, 0, 2, 3, 9]), ref, y)
    agree(call(description, case, "emulated"), call(description, case, "dense"), 1e-9)


# Losses whose rows may be sorted or not.
BY_CHOICE = [
    p.values[0]
    for p in SORTED
    if hasattr(p.values[0], "sort") and getattr(p.values[0], "negatives", None) != "nearest"
]


@pytest.mark.parametrize("threads", [32, 160])
@pytest.mark.parametrize("description", BY_CHOICE)
def test_long_lists_are_sorted_unless_told_not_to(description, threads, emulator):
    """sort=None: a row whose list does not fit in shared memory, and no other, has to the bit what
    sort=True gives it, and the others what sort=False does. Nobody asks how long lists are."""
    emulator.configure(threads, 7)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([262, 256, 1, 70]))
    anchors = torch.tensor([1, 0, 2, 3, 9])
    s = torch.rand(5, len(labels), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s = (s * 2 - 1).masked_fill(s < 0.01, 0.25)  # some are equal
    found, by_team = {}, {}
    for sort in (None, True, False):
        before = emulator.sorted_lists_count(), emulator.sorted_count()
        chosen = dataclasses.replace(description, sort=sort)
        found[sort] = rows(emulator.rows_, chosen, s.clone(), labels, anchors=anchors)
        by_team[sort] = emulator.sorted_lists_count() - before[0]
        assert emulator.sorted_count() - before[1] == (sort is True)
        true = rows(torch.ops.fastdml_native.rows_, chosen, s.clone(), labels, anchors=anchors)
        agree(found[sort], true, 1e-9)
    assert by_team == {None: 1, True: 0, False: 0}
    of_class = anchors == 0
    for auto, always, never in zip(*found.values(), strict=True):
        assert torch.equal(auto[of_class], always[of_class])
        assert torch.equal(auto[~of_class], never[~of_class])


@pytest.mark.parametrize("sort", [None, False])
def test_lists_of_all_lengths(sort, emulator):
    """Lists of more than 1,024 have a launch of their own, which takes those and no others."""
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([1030, 300, 4]))
    s = torch.rand(4, len(labels), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    description = dataclasses.replace(BY_CHOICE[0], sort=sort)
    before = emulator.sorted_lists_count()
    anchors = torch.tensor([2, 0, 1, 9])
    found = rows(emulator.rows_, description, s.clone(), labels, anchors=anchors)
    true = rows(torch.ops.fastdml_native.rows_, description, s.clone(), labels, anchors=anchors)
    agree(found, true, 1e-9)
    assert emulator.sorted_lists_count() - before == (2 if sort is None else 0)


def block_of(description, s, labels):
    """A teacher's rows for the losses that have one."""
    wanted = description.teacher_similarity is not None
    return torch.cos(torch.arange(s.numel(), dtype=s.dtype)).view_as(s) if wanted else None


@pytest.mark.parametrize("description", SORTED)
def test_ties_in_sorted_rows(description, emulator):
    """Many equal values, both zeros among them; the row's own pair is none of them."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(40) % 6
    s = torch.randint(-3, 4, (40, 40), generator=generator, dtype=torch.float64) / 4
    s[s == 0] *= torch.where(torch.arange(int((s == 0).sum())) % 2 == 0, -1.0, 1.0).double()
    teacher = block_of(description, s, labels)
    teacher = None if teacher is None else (teacher * 4).round() / 4
    s.fill_diagonal_(9.0)
    true = rows(torch.ops.fastdml_native.rows_, description, s.clone(), labels, teacher=teacher)
    found = rows(emulator.rows_, description, s.clone(), labels, teacher=teacher)
    for f, e in zip(found, true, strict=True):
        assert distance(f, e) <= 1e-9


@pytest.mark.parametrize("description", SORTED)
def test_a_nan_shows_in_its_row_only(description, emulator):
    labels = torch.arange(24) % 4
    s = torch.sin(torch.arange(24.0 * 24, dtype=torch.float64)).view(24, 24)
    teacher = block_of(description, s, labels)
    clean, losses = rows(emulator.rows_, description, s.clone(), labels, teacher=teacher)
    for column in (6, 7):  # of row 2: a positive, a negative
        bad = s.clone()
        bad[2, column] = float("nan")
        found, own = rows(emulator.rows_, description, bad, labels, teacher=teacher)
        assert own[2, 0].isnan()
        others = torch.arange(24) != 2
        assert torch.equal(own[others], losses[others]) and torch.equal(
            found[others], clean[others]
        )


def test_proxy_losses_and_distances_are_among_the_examples():
    found = [p.values[0] for p in EXAMPLES]
    assert any(d.rows == "proxies" for d in found)
    assert {d.metric.kind for d in found} == {0, 1, 2}
    assert any(inputs(d, CASES["ragged"]()).teacher for d in found) or not any(
        d.teacher_similarity for d in found
    )


def test_every_compiled_loss_has_a_header():
    """... and so is emulated."""
    assert set(library.functors()) <= set().union(*map(named, HEADERS))


def test_a_missing_barrier_shows():
    """The emulator itself: threads that race see each other's half-finished work."""
    program = """
#include <cstdio>
#include "emulator.h"
int main(int argc, char**) {
  double shared[64], sum[2] = {0, 0};
  for (int seed = 0; seed < 2; ++seed) {
    emulator::Threads fibers(64, seed);
    for (double& x : shared) x = -1;
    fibers.run([&](int) {
      emulator::Team team{fibers};
      shared[team.thread()] = team.thread();
      if (argc > 1) team.sync();
      sum[seed] += shared[(team.thread() + 1) % 64] * team.thread();
    });
  }
  std::puts(sum[0] == sum[1] ? "same" : "different");
}
"""
    folder = ROOT / "build" / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    source, binary = folder / "race.cpp", folder / "race"
    source.write_text(program)
    subprocess.run([*COMPILER.split(), "-std=c++20", "-O1", f"-I{HERE}", source, "-o", binary], check=True)

    def output(*arguments: str) -> str:
        return subprocess.run([binary, *arguments], capture_output=True, text=True).stdout.strip()

    assert output("with a barrier") == "same"
    assert output() == "different"
