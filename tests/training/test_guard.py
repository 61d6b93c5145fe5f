"""A bad gradient is skipped; a run that cannot recover stops and says so."""

from __future__ import annotations

import pytest

from mezzotint.core.errors import TrainingError
from mezzotint.training.guard import SETTLING, GradientGuard

NAN, INF = float("nan"), float("inf")


def guard(**options) -> GradientGuard:
    made = GradientGuard("model", "model", factor=10.0, max_skips=5, **options)
    for _ in range(SETTLING):
        assert made.accepts(2.0)
    return made


@pytest.mark.parametrize("bad", [NAN, INF, 20.1, 1e9])
def test_bad_gradients_are_skipped_and_counted(bad):
    judge = guard()
    assert not judge.accepts(bad)
    assert judge.accepts(2.0)
    assert (judge.skipped, judge.skipped_in_a_row) == (1, 0)


@pytest.mark.parametrize("good", [0.0, 1e-9, 2.0, 19.9])
def test_ordinary_and_small_gradients_are_used(good):
    assert guard().accepts(good)


def test_before_it_knows_what_is_usual_only_the_infinite_is_refused():
    young = GradientGuard("model", "model", factor=10.0, max_skips=5)
    assert young.accepts(1.0)
    assert young.accepts(1e6)
    assert not young.accepts(NAN)


@pytest.mark.parametrize("bad", [NAN, 1e6])
def test_a_run_of_skips_stops_with_the_player_and_the_remedy(bad):
    judge = guard()
    for _ in range(4):
        assert not judge.accepts(bad)
    with pytest.raises(TrainingError, match=r"'model'.*optimizers\.model\.lr"):
        judge.accepts(bad)


def test_what_is_usual_follows_a_slow_change():
    judge = guard()
    norm = 2.0
    for _ in range(2000):
        norm *= 1.005
        assert judge.accepts(norm)
    assert norm > 1000


def test_its_state_survives():
    judge, again = guard(), GradientGuard("model", "model", factor=10.0, max_skips=5)
    judge.accepts(NAN)
    again.restore(judge.state())
    assert again == judge


def test_a_satisfied_critic_does_not_lower_what_is_usual():
    judge = guard()
    for _ in range(200):
        assert judge.accepts(0.0)
    assert judge.accepts(19.9)


def test_a_run_that_is_mostly_skipped_stops_too():
    judge = GradientGuard("critic", "model", factor=10.0, max_skips=25)

    def mostly_skipped():
        for turn in range(1000):
            judge.accepts(1.0 if turn % 25 == 0 else NAN)

    with pytest.raises(TrainingError, match=r"optimizers\.model\.lr"):
        mostly_skipped()
