"""A budget for a whole system is shared among its stages."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import TOYS, register_toys

import mezzotint as mz
from mezzotint import systems
from mezzotint.core.checkpoint import latest
from mezzotint.core.errors import ConfigError
from mezzotint.core.system import Recipe, Stage, System
from mezzotint.diffusion.systems import SYSTEMS
from mezzotint.training.run import RunSettings, _share, train
from mezzotint.training.schedule import Budget

register_toys()
TWO = next(system for system in TOYS if system.name == "toy-stages")
RECIPE = Recipe(pictures=1234)


def shared(*shares: float) -> System:
    stages = [replace(TWO.stages[0], name=f"stage-{k}", share=share) for k, share in enumerate(shares)]
    return replace(TWO, stages=tuple(stages))


def budgets(budget: Budget | None, system: System) -> list[Budget]:
    return [_share(budget, RECIPE, system, stage) for stage in system.stages]


def test_pictures_and_minutes_are_shared_in_proportion():
    system = shared(3, 1, 4)
    assert budgets(Budget(pictures=800), system) == [Budget(pictures=300), Budget(pictures=100), Budget(pictures=400)]
    assert budgets(Budget(minutes=4.0), system) == [Budget(minutes=1.5), Budget(minutes=0.5), Budget(minutes=2.0)]
    assert budgets(Budget(pictures=800), shared(0.75, 0.25, 1)) == budgets(Budget(pictures=800), system)


def test_stages_share_alike_where_nothing_is_said():
    assert Stage("alone", TWO.stages[0].model, {}, {}).share == 1
    assert budgets(Budget(pictures=160), TWO) == [Budget(pictures=80)] * 2


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=9), st.integers(1, 10**7))
def test_nothing_is_lost_but_what_cannot_be_divided(shares, pictures):
    system = shared(*shares)
    found = [budget.pictures for budget in budgets(Budget(pictures=pictures), system)]
    assert all(one >= 1 for one in found)
    for one, share in zip(found, shares):
        assert one == 1 or -1e-6 <= pictures * share / sum(shares) - one < 1 + 1e-6
    assert sum(found) <= pictures + len(shares)


def test_without_a_budget_each_stage_has_that_of_its_recipe():
    """Whatever its share is."""
    assert budgets(None, shared(3, 1)) == [Budget(pictures=1234)] * 2


def test_a_run_spends_the_shares(tmp_path, monkeypatch):
    codec, prior = TWO.stages
    uneven = replace(TWO, name="toy-uneven", stages=(replace(codec, share=3), prior))
    monkeypatch.setitem(systems._registered, uneven.name, uneven)
    asked = RunSettings("toy-uneven", "fashion", image_size=8, budget=Budget(pictures=160), precision="fp32")
    outcome = train(asked, tmp_path / "run")
    assert outcome.position.pictures == 40
    first = json.loads((latest(tmp_path / "run" / "codec") / "state.json").read_text())
    assert first["position"]["pictures"] == 120
    assert mz.load(tmp_path / "run").identity.stage == "prior"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_every_stage_of_the_catalogue_has_a_share(system):
    assert all(budget.pictures >= 100 for budget in budgets(Budget(pictures=10_000), system))


def test_a_stage_without_a_share_is_refused():
    with pytest.raises(ConfigError, match="above 0"):
        replace(TWO.stages[0], share=0.0)


@pytest.mark.parametrize(
    ("system", "changes", "words"),
    [
        ("progressive-distillation", {"student-32:steps": "5"}, "a student of 5 steps needs a teacher of 10"),
        ("reflow", {"reflow:network.channels": "96"}, "change both alike"),
        ("dmd", {"optimizers.model.lr": "1e-4"}, "no setting is called"),
    ],
)
def test_what_a_later_stage_cannot_use_is_refused_before_the_first_is_trained(tmp_path, system, changes, words):
    asked = RunSettings(system, "fashion", budget=Budget(pictures=160), precision="fp32", changes=changes)
    with pytest.raises(ConfigError, match=words):
        train(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()
