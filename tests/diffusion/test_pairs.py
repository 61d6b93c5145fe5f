"""The pool of pairs: each is a function of its number alone, made once, and kept with the model."""

import pytest
import torch
from gaussian import Gaussian

from mezzotint.core.batch import PictureRandom
from mezzotint.core.checkpoint import load_tensors, save_tensors
from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.grids import uniform
from mezzotint.diffusion.pairs import PairPool, trajectory
from mezzotint.diffusion.paths import PATHS
from mezzotint.diffusion.solvers import ancestral, ddim, euler, rk45

STRAIGHT = PATHS["straight"]
GRID = uniform(8, STRAIGHT)


class Teacher:
    """Euler's method for Gaussian data, which counts how often it is asked and for how many pairs."""

    def __init__(self, kept=(-1,)):
        self.kept, self.asked = kept, []

    def __call__(self, noise, labels):
        self.asked.append(len(noise))
        ends = trajectory(euler, Gaussian().denoiser(STRAIGHT), noise, GRID, self.kept)
        return ends if labels is None else ends + labels.view(-1, 1, 1, 1, 1)


def no_noise():
    raise AssertionError("a deterministic solver asked for noise")


def seeds(*numbers):
    return PictureRandom(numbers)


def test_a_pair_is_solved_once_however_often_it_is_drawn():
    pool, teacher = PairPool(16, (1, 4, 4)), Teacher()
    first = pool.take(torch.tensor([3, 5, 3]), teacher)
    again = pool.take(torch.tensor([5, 3]), teacher)
    assert teacher.asked == [2]  # one call, without the repetition
    assert torch.equal(first.end[[1, 0]], again.end)
    pool.take(torch.tensor([5, 6]), teacher)
    assert teacher.asked == [2, 1]
    assert pool.made.nonzero().flatten().tolist() == [3, 5, 6]


def test_a_pair_does_not_depend_on_who_is_made_with_it(truth):
    index = torch.arange(12)
    together = PairPool(12, (1, 4, 4), classes=3).take(index, Teacher())
    alone, teacher = PairPool(12, (1, 4, 4), classes=3), Teacher()
    for i in reversed(index):
        alone.take(i[None], teacher)
    error = (alone.take(index, teacher).states - together.states).abs().max()
    truth("pool of pairs", "pairs made together", "one by one, float32", error, 1e-6)


def test_the_pair_is_the_noise_and_its_solution(truth):
    pool = PairPool(16, (1, 4, 4), classes=4)
    pairs = pool.draw(seeds(1, 2, 3), Teacher())
    assert torch.equal(pairs.labels, pairs.number % 4)
    assert torch.equal(pairs.noise, pool.noise(pairs.number))
    expected = euler(Gaussian().denoiser(STRAIGHT), pairs.noise, GRID, no_noise) + pairs.labels.view(-1, 1, 1, 1)
    truth("pool of pairs", "what is kept", "the solver's end, float32", (pairs.end - expected).abs().max(), 1e-6)


def test_pictures_of_a_batch_draw_by_their_own_seeds():
    pool, teacher = PairPool(1000, (1, 2, 2)), Teacher()
    whole = pool.draw(seeds(1, 2, 3, 4), teacher).number
    halves = [pool.draw(seeds(*part), teacher).number for part in ((1, 2), (3, 4))]
    assert torch.equal(whole, torch.cat(halves))
    assert len(whole.unique()) == 4


def test_every_pair_is_drawn_with_equal_chance(truth):
    index = PairPool(10, (1, 1, 1)).draw(seeds(*range(4000)), Teacher()).number
    counts = torch.bincount(index, minlength=10).double()
    chi_square = ((counts - 400) ** 2 / 400).sum()
    # mean 9, deviation 4.2
    truth("pool of pairs", "chi square of 4000 draws of 10 pairs", "at most, if uniform (0.999)", chi_square, 27.9)


def test_the_noise_of_pair_i_is_not_that_of_sample_i():
    """A student is judged by samples of the seeds 0, 1, ...: it must not have learned these by heart."""
    noise = PairPool(4, (1, 4, 4)).noise(torch.arange(4))
    for draws_a_label in (False, True):
        drawn = seeds(0, 1, 2, 3)
        if draws_a_label:
            drawn.integers(0, 10)
        assert not torch.isclose(noise, drawn.normal(1, 4, 4)).any()


def test_a_saved_pool_goes_on_where_it_stopped(tmp_path):
    pool, teacher = PairPool(16, (1, 4, 4)), Teacher()
    before = pool.take(torch.tensor([1, 2]), teacher)
    save_tensors(pool.state_dict(), tmp_path / "pool.safetensors")
    resumed, other = PairPool(16, (1, 4, 4)), Teacher()
    resumed.load_state_dict(load_tensors(tmp_path / "pool.safetensors"))
    assert torch.equal(resumed.take(torch.tensor([1, 2]), other).states, before.states)
    assert other.asked == []


def test_whole_trajectories_can_be_kept(truth):
    kept = (2, 5, -1)
    pairs = PairPool(4, (1, 3, 3), states=3).take(torch.arange(4), Teacher(kept))
    assert pairs.states.shape == (4, 3, 1, 3, 3)
    x, worst, denoiser = pairs.noise, 0.0, Gaussian().denoiser(STRAIGHT)
    for k, (start, stop) in enumerate([(0, 2), (2, 5), (5, 8)]):
        x = euler(denoiser, x, GRID[start : stop + 1], no_noise)
        worst = max(worst, (pairs.states[:, k] - x).abs().max())
    truth("pool of pairs", "states of a trajectory", "the solver stopped there, float32", worst, 1e-6)
    assert torch.equal(pairs.end, pairs.states[:, 2])


def test_a_pool_that_keeps_nothing_makes_the_same_pairs_again():
    kept, fresh, teacher = PairPool(8, (1, 2, 2)), PairPool(8, (1, 2, 2), kept=False), Teacher()
    index = torch.tensor([6, 1])
    assert torch.equal(kept.take(index, teacher).end, fresh.take(index, teacher).end)
    fresh.take(index, teacher)
    assert teacher.asked == [2, 2, 2]
    assert not fresh.state_dict()["states"].numel()


def test_pairs_are_solved_without_gradients_and_in_full_precision():
    weight = torch.nn.Parameter(torch.eye(4))
    asked = []

    def solve(noise, labels):
        asked.append((noise.flatten(1) @ weight).dtype)
        return (noise.flatten(1) @ weight).view(-1, 1, 1, 2, 2)

    with torch.autocast("cpu", torch.bfloat16):
        pairs = PairPool(4, (1, 2, 2)).take(torch.tensor([0]), solve)
    assert asked == [torch.float32]
    assert not pairs.end.requires_grad


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PairPool(0, (1, 2, 2)), "at least 1 pair"),
        (lambda: PairPool(1, (1, 2, 2), states=0), "1 state"),
        (lambda: _followed(ancestral), "deterministic"),
        (lambda: _followed(ddim, (3, 2)), "in this order"),
        (lambda: _followed(ddim, (9,)), "no places"),
        (lambda: _followed(rk45, (2, -1)), "its own times"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def _followed(solver, kept=(-1,)):
    return trajectory(solver, Gaussian().denoiser(STRAIGHT), torch.zeros(1, 1, 2, 2), GRID, kept)
