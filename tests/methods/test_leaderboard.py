"""The leaderboard's own arithmetic, its list of entries, and a run of two steps."""

import importlib
import json
import math
import sys
from unittest.mock import Mock

import pytest
import torch
from conftest import ROOT

from fastdml import losses

sys.path.insert(0, str(ROOT / "benchmarks"))
data = importlib.import_module("board.data")
entries = importlib.import_module("board.entries")
leaderboard = importlib.import_module("leaderboard")
plan = importlib.import_module("board.plan")
report = importlib.import_module("board.report")
run = importlib.import_module("board.run")


def test_every_loss_is_an_entry_or_named_elsewhere():
    names = entries.registered()
    assert set(names.values()) == set(losses.MODULES.values())
    assert set(names) == (set(entries.entries()) | set(entries.ELSEWHERE)) & set(names)
    hosts = importlib.import_module("board.methods").HOSTS
    assert set(hosts) | set(hosts.values()) <= set(entries.entries())


def test_parts_share_no_class():
    task = data.load("icons")
    parts = (task.train, task.val, task.test)
    assert len(set.union(*(set(p.names) for p in parts))) == sum(len(p.names) for p in parts) == 1248
    for p in parts:
        assert p.labels.unique().tolist() == list(range(len(p.names)))


def test_ndcg():
    labels = torch.tensor([0, 0, 0, 1])
    neighbours = torch.tensor([[3, 1, 2], [0, 2, 3], [3, 0, 1], [0, 1, 2]])
    neighbours = torch.cat([neighbours, torch.full((4, 7), 3)], 1)
    second, third = 1 / 1.5849625, 0.5
    best = 1 + second
    found = data.ndcg_at_10(neighbours, labels)
    assert found == pytest.approx(((second + third) / best * 2 + 1) / 3)


def test_every_entry_trains(tmp_path):
    """Its batches hold what its loss compares: the network moves by more than weight decay."""
    task, budget = data.load("icons", 16), plan.Budget(3, 16, shared=tmp_path)
    for name, (_, made) in entries.entries().items():
        trained = made(task, budget, 0)
        before = [x.detach().clone() for x in trained.model.parameters()]
        assert len(run.fit(trained).steps) == 3, name
        after = trained.model.parameters()
        assert any((x - y).abs().max() > 1e-6 for x, y in zip(before, after, strict=True)), name


def test_what_is_trained_before_is_where_all_begin(tmp_path):
    """Of characters in no other part; one state for every entry and seed, but for a last layer of another
    size."""
    spare, glyphs = (data.load(name).train for name in (data.SPARE_GLYPHS, "glyphs"))
    assert not set(spare.names) & set(glyphs.names) and len(spare.names) == 1962
    task, budget = data.load("icons", 16), plan.Budget(3, 16, pretraining=2, shared=tmp_path)
    made = entries.entries()
    one, two = (made[e][1](task, budget, s).model.state_dict() for e, s in (("circle", 0), ("n_pairs", 1)))
    assert all(torch.equal(one[k], two[k]) for k in one)
    nothing = made["circle"][1](task, plan.Budget(3, 16, shared=tmp_path), 0).model.state_dict()
    assert not torch.equal(one["embed.weight"], nothing["embed.weight"])
    half = made["embedding transfer to half the dimension"][1](task, budget, 0).model.state_dict()
    assert half["embed.weight"].shape[0] == plan.D // 2
    assert torch.equal(half["features.0.0.weight"], one["features.0.0.weight"])


@pytest.mark.parametrize("best, tried", [(1e-4, 6), (2e-3, 3), (1.0, 4)])
def test_the_search_goes_on_where_the_lowest_rate_is_the_best(best, tried, tmp_path, monkeypatch):
    class Planned:
        learnt = ()

        def __init__(self, task, budget, seed):
            self.rate = budget.rate

        def validation(self):
            return -abs(math.log(self.rate / best))

    monkeypatch.setattr(leaderboard, "entries", lambda: {"some": ("pairs", Planned)})
    monkeypatch.setattr(leaderboard, "fit", lambda plan, tick: None)
    for _ in range(2):  # what was tried is not tried again
        work = leaderboard.Work(tmp_path, math.inf, (1, 1), False)
        work.bars = Mock()
        leaderboard.tune(work, ["some"])
        rates = [t["setting"]["rate"] for t in leaderboard._tried(work, "some")]
        assert len(set(rates)) == len(rates) == tried
        assert abs(math.log10(leaderboard._rates(work, "some")["rate"] / min(best, 0.03))) <= 0.25


@pytest.mark.parametrize("entry", ["multi_similarity", "WEDL (three heads)"])
def test_two_steps(entry, tmp_path):
    task = data.load("icons", 12)
    budget = plan.Budget(2, 16, shared=tmp_path)
    results = [run.measure(entries.entries()[entry][1](task, budget, 0)) for _ in range(2)]
    for name in ("recall@1", "map@r", "ndcg@10"):
        assert results[0][name] == results[1][name]  # the same seed, the same run
        assert 0 <= results[0][name] <= 1


def test_trials_change_one_thing(tmp_path):
    reasons = importlib.import_module("board.reasons")
    task, budget = data.load("icons", 16), plan.Budget(3, 16, shared=tmp_path)
    for name, trial in reasons.TRIALS.items():
        first, second = (entries.entries()[name][1](task, budget, 0) for _ in range(2))
        trial.change(second)
        x, labels = 1 + torch.randn(16, plan.D), torch.arange(4).repeat_interleave(4)
        for p in (first, second):
            p.model = torch.nn.Identity()
        values = [p.objective(p.outputs(x), labels, x) for p in (first, second)]
        assert values[0] != values[1], name
        assert name in reasons.WHY
    found = reasons.tried(entries.entries()["n_pairs"][1](task, budget, 0))
    assert 0 <= found["map@r"] <= 1 and -1 <= found["cosine"] <= 1 and found["spread"] > 0
    records = [{"entry": "n_pairs", "changed": c, **found, "map@r": 0.5 + 0.2 * c} for c in (False, True)]
    assert "goes from 50 to 70" in reasons.told("n_pairs", records)
    assert reasons.told("n_pairs", records[:1]) == reasons.WHY["n_pairs"]
    assert reasons.told("circle", []) == "not known"


def test_report_of_what_is_there(tmp_path):
    class Work:
        quick = False

        def read(self, name):
            if name == "leaderboard-starts":
                return [{"task": "icons", "pretraining": 7, "recall@1": 0.5, "map@r": 0.2, "ndcg@10": 0.3}]
            if name not in ("leaderboard", "leaderboard-longer", "leaderboard-replaced"):
                return []
            common = {"task": "icons", "steps": 9, "batch": 8, "threads": 1, "torch": "2", "commit": "c",
                      "ndcg@10": 0.5, "mean_step_ms": 3.0, "objective_ms": 1.0, "objective_mib": 2.0,
                      "rate": 0.003}  # fmt: skip
            rows = [
                ("multi_similarity", "pairs", 0.90, 0.50), ("multi_similarity", "pairs", 0.92, 0.54),
                ("contrastive", "pairs", 0.60, 0.30), ("DAS (multi-similarity)", "method", 0.95, 0.60),
            ]  # fmt: skip
            if name == "leaderboard-longer":
                rows = [("contrastive", "pairs", 0.75, 0.40)]
            if name == "leaderboard-replaced":
                rows = [("contrastive", "pairs", 0.1, 0.1)]
                common |= {"mean_step_ms": 7.0, "rate": 0.01}
            found = [
                {**common, "entry": e, "kind": k, "recall@1": r, "map@r": m, "seed": s}
                for s, (e, k, r, m) in enumerate(rows)
            ]
            if name == "leaderboard":  # of another machine, whose times do not compare
                found[2] |= {"dtype": "float32", "mean_step_ms": 99.0}
            failed = {"entry": "circle", "kind": "pairs", "seed": 0, "error": "the loss is nan"}
            found.append({**common, **failed})
            return json.loads(json.dumps(found))

    paths = report.write(Work(), tmp_path)
    assert all(p.stat().st_size > 0 for p in paths)
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| multi_similarity | pairs | 91.0 ± 1.0 | 52.0 ± 2.0 | 50.0 ± 0.0 | 3 | 1.0 |" in text
    assert "| contrastive | pairs | 60.0 | 30.0 | 50.0 | 7 | 1.0 |" in text
    assert "in bfloat16; that of contrastive in float32" in text
    assert "differ by 31.0 points" in text
    assert "at most 2.0 points (multi_similarity), and from their mean by at most 1.0" in text
    assert "below 70 Recall@1 on the icons from 50.0, where all begin" in text
    assert "with 9 steps" in text
    assert "left behind: contrastive 10.0 at 0.01." in text
    assert "after 7 steps of classification of other characters (Recall@1 50.0, MAP@R 20.0" in text
    assert "| contrastive | 60.0 | 75.0 | slow: the budget is short for it |" in text
    assert "| DAS (multi-similarity) | multi_similarity | +4.0 | +8.0 | 1.00 | yes |" in text
    assert "- circle: the loss is nan" in text
