"""Budgets, learning rates and averages are pure functions of where a run stands."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import Toy, ToyConfig

import mezzotint as mz
from mezzotint.core.system import Recipe
from mezzotint.training.ema import MovingAverage
from mezzotint.training.schedule import Budget, ema_decay, learning_rate

RECIPE = Recipe(batch_size=100, warmup=1000, final_lr=0.1)


def test_progress_is_the_share_spent():
    assert Budget(pictures=200).progress(50, 1e9) == 0.25
    assert Budget(minutes=2).progress(10**9, 30.0) == 0.25
    assert Budget(minutes=2).progress(0, 1e9) == 1.0


@pytest.mark.parametrize("wrong", [{}, {"pictures": 1, "minutes": 1.0}, {"pictures": 0}, {"minutes": -1.0}])
def test_a_budget_is_one_positive_number(wrong):
    with pytest.raises(mz.ConfigError):
        Budget(**wrong)


@pytest.mark.parametrize(("decay", "half"), [("constant", 1.0), ("linear", 0.55), ("cosine", 0.55)])
def test_decay_ends_where_the_recipe_says(decay, half):
    recipe = replace(RECIPE, decay=decay)
    assert learning_rate(recipe, 10**6, 0.0) == 1.0
    assert learning_rate(recipe, 10**6, 0.5) == pytest.approx(half, abs=1e-12)
    assert learning_rate(recipe, 10**6, 1.0) == pytest.approx(1.0 if decay == "constant" else 0.1, abs=1e-12)


def test_warm_up_is_linear_and_never_zero():
    rates = [learning_rate(RECIPE, pictures, 0.0) for pictures in range(0, 2000, 100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10:] == [1.0] * 10


@given(st.integers(1, 10**6), st.integers(1, 512))
def test_after_one_half_life_half_of_the_average_is_left(half_life, batch):
    recipe = Recipe(batch_size=batch, ema_half_life=half_life, ema_ramp=0.0)
    assert ema_decay(recipe, 10**9) ** (half_life / batch) == pytest.approx(0.5, rel=1e-9)


def test_the_ramp_forgets_the_first_steps():
    recipe = Recipe(batch_size=10, ema_half_life=10**6, ema_ramp=0.05)
    assert ema_decay(recipe, 0) == 0.0
    assert ema_decay(recipe, 1000) == pytest.approx(0.5 ** (10 / 50))


def test_the_moving_average_is_the_weighted_sum_of_the_past(truth):
    """theta' = sum_k (1 - b) b^(n - k) theta_k + b^n theta_0."""
    model = Toy(ToyConfig(8)).double()
    average = MovingAverage(model)
    weights = [model.net[0].weight.detach().clone()]
    for _ in range(5):
        with torch.no_grad():
            model.net[0].weight.normal_()
        model.after_step(0)
        weights.append(model.net[0].weight.detach().clone())
        average.update(model, 0.9)
    expected = 0.9**5 * weights[0] + sum(0.1 * 0.9 ** (5 - k) * weights[k] for k in range(1, 6))
    error = (average.model.net[0].weight - expected).abs().max()
    truth("training", "moving average after 5 steps", "closed form", error, 1e-14)
    assert average.model.steps == 5
    assert not any(p.requires_grad for p in average.model.parameters())
    assert math.isfinite(error)
