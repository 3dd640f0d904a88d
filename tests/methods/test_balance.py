"""The balance search on functions whose optimum is known."""

import math

import numpy as np
import pytest
import torch

from fastdml.methods import Coordinate, balance_search

SPACE = {
    "balance": Coordinate(1.0, 0.01, 100.0),
    "temperature": Coordinate(0.1, 0.01, 1.0),
    "batch_size": Coordinate(64, 16, 512, power_of_two=True),
}
BEST = {"balance": 5.0, "temperature": 0.03, "batch_size": 256.0}


class Bowl:
    """Coupled: the best balance depends on the batch size."""

    def __init__(self):
        self.calls = []

    def __call__(self, setting, seed):
        self.calls.append((setting, seed))
        a, t, b = (math.log2(setting[k] / BEST[k]) for k in SPACE)
        return 1 - (a - 0.3 * b) ** 2 - t**2 - 0.5 * b**2 + 0.01 * seed


def test_finds_the_optimum():
    bowl = Bowl()
    found = balance_search(bowl, SPACE, 200)
    assert found.complete and len(bowl.calls) == len(found.trials) <= 80
    assert found.best["batch_size"] == 256
    for name in ("balance", "temperature"):
        assert abs(math.log2(found.best[name] / BEST[name])) <= 0.126
    scores = [score for _, score in found.path]
    assert scores == sorted(scores) and found.score == max(t.score for t in found.trials)
    for setting, _ in bowl.calls:
        assert math.log2(setting["batch_size"]).is_integer()
        assert all(c.low <= setting[k] <= c.high for k, c in SPACE.items())


def test_interrupted_by_its_budget_it_goes_on_from_the_cache(tmp_path):
    whole = balance_search(Bowl(), SPACE, 200, seeds=(0, 1))
    cache, made, parts = tmp_path / "trials.jsonl", 0, []
    for _ in range(60):
        bowl = Bowl()
        parts.append(balance_search(bowl, SPACE, 7, seeds=(0, 1), cache=cache))
        assert len(bowl.calls) <= 7
        made += len(bowl.calls)
        if parts[-1].complete:
            break
        cache.write_text(cache.read_text() + '{"setting": {"bal')  # killed while writing
        with cache.open("a") as file:
            file.write("\n")
    assert not parts[0].complete and parts[-1].complete
    assert made == len(whole.trials)  # nothing was evaluated twice
    assert parts[-1].best == whole.best and parts[-1].path == whole.path
    assert whole.score == pytest.approx(max(s for _, s in whole.path))


def test_bounds_of_time_and_failures():
    found = balance_search(lambda s, seed: math.nan, SPACE, 9)
    assert found.score == -math.inf and found.best["balance"] == 1.0
    with pytest.raises(ValueError, match="budget: expected enough for the first setting"):
        balance_search(Bowl(), SPACE, 9, seconds=-1.0)


def test_plot_and_progress(tmp_path, capsys):
    found = balance_search(Bowl(), SPACE, 12, progress=True)
    assert "12/12" in capsys.readouterr().out
    found.plot(tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes()[1:4] == b"PNG"


def test_refuses():
    with pytest.raises(ValueError, match="start: expected a number from 2 to 4, got 1"):
        Coordinate(1, 2, 4)
    with pytest.raises(ValueError, match="low: expected a positive number"):
        Coordinate(1, 0, 4)
    third = 1 / 3  # which six digits do not hold
    assert balance_search(Bowl(), {**SPACE, "balance": Coordinate(third, third, 1)}, 1).trials
    with pytest.raises(ValueError, match="space: expected"):
        balance_search(Bowl(), {}, 3)
    with pytest.raises(ValueError, match="points: expected an odd number, got 4"):
        balance_search(Bowl(), SPACE, 3, points=4)


def test_a_cache_that_cannot_be_written_is_named_before_anything_is_tried(tmp_path):
    bowl = Bowl()
    for cache in (tmp_path / "none" / "trials.jsonl", tmp_path):
        with pytest.raises(ValueError, match="cache: expected a file in a folder that is there"):
            balance_search(bowl, SPACE, 9, cache=cache)
    assert not bowl.calls


def test_seeds_and_ratios_of_numpy(tmp_path):
    want = balance_search(Bowl(), SPACE, 40, seeds=(0, 1), ratios=(2.0, 1.5))
    ratios = np.array([2.0, 1.5])
    for seeds in (np.arange(2), list(np.arange(2)), torch.arange(2), range(2)):
        found = balance_search(
            Bowl(), SPACE, 40, seeds=seeds, ratios=ratios, cache=tmp_path / "trials"
        )
        assert (found.best, found.score, found.path) == (want.best, want.score, want.path)
        assert all(type(trial.seed) is int for trial in found.trials)
    for seeds in (3, "01", (0.5,)):
        with pytest.raises(ValueError, match="seeds: expected"):
            balance_search(Bowl(), SPACE, 40, seeds=seeds)
    with pytest.raises(ValueError, match="space: expected"):
        balance_search(Bowl(), SPACE, 3, seeds=np.arange(0))


def test_an_unfinished_line_loses_one_trial(tmp_path):
    cache, bowl = tmp_path / "trials.jsonl", Bowl()
    balance_search(bowl, SPACE, 4, cache=cache)
    cache.write_text(cache.read_text()[:-20])
    balance_search(bowl, SPACE, 200, cache=cache)
    made = len(bowl.calls)
    balance_search(bowl, SPACE, 200, cache=cache)
    assert len(bowl.calls) == made


def test_powers_of_two_within_bounds():
    seen = []
    space = {"batch_size": Coordinate(100, 60, 120, power_of_two=True)}
    balance_search(lambda setting, seed: seen.append(setting["batch_size"]) or 0.0, space, 10)
    assert seen == [64]
    with pytest.raises(ValueError, match="expected a power of two from 90 to 120"):
        Coordinate(100, 90, 120, power_of_two=True)
