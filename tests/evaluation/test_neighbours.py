"""Precision, recall, density, coverage and memorisation: exact counts, and what they mean."""

from __future__ import annotations

import pytest
import torch
from oracles import oracle, quietly

from mezzotint.core.errors import ConfigError
from mezzotint.evaluation.neighbours import memorisation, nearest, precision_recall_density_coverage


def vectors(n: int, dims: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.oracles
@pytest.mark.parametrize(("n", "m", "k", "block"), [(300, 300, 5, 1024), (257, 130, 3, 50), (64, 200, 1, 7)])
def test_counts_are_those_of_prdc(n, m, k, block, truth):
    real, fake = vectors(n, seed=1), 0.8 * vectors(m, seed=2) + 0.3
    theirs = quietly(oracle("prdc").compute_prdc, real.numpy(), fake.numpy(), k)
    ours = precision_recall_density_coverage(real, fake, k, block)
    scales = {"precision": m, "recall": n, "density": m * k, "coverage": n}
    error = max(abs(round(getattr(ours, name) * s) - round(float(theirs[name]) * s)) for name, s in scales.items())
    truth("precision, recall, density, coverage", f"counts, {n} and {m} vectors, k = {k}", "prdc 0.2", error, 0)


def test_a_collapsed_generator_is_precise_and_covers_nothing():
    real = vectors(500)
    collapsed = real[7] + 1e-3 * vectors(500, seed=3)
    values = precision_recall_density_coverage(real, collapsed)
    assert values.precision == 1
    assert values.recall < 0.01
    assert values.coverage < 0.05


def test_a_scattered_generator_is_imprecise_and_recalls_everything():
    values = precision_recall_density_coverage(vectors(500), 5 * vectors(500, seed=3))
    assert values.precision < 0.2
    assert values.recall > 0.9


def test_half_of_two_clusters_is_half_of_the_recall():
    first, second = vectors(300), vectors(300, seed=1) + 50
    values = precision_recall_density_coverage(torch.cat([first, second]), first + 1e-9)
    assert values.precision == 1
    assert values.recall == 0.5
    assert values.coverage == 0.5


def test_identical_sets_score_one_even_with_duplicates():
    """Balls are closed, as in the paper: prdc's open ones say 0, 0, 0, 0 where every picture occurs often enough."""
    once = vectors(50)
    for copies in (1, 2, 8):
        values = precision_recall_density_coverage(once.repeat(copies, 1), once.repeat(copies, 1))
        assert (values.precision, values.recall, values.coverage) == (1, 1, 1)


def test_ties_at_the_radius_are_inside():
    """On the integers the radius for k = 2 is 1 (2 at the ends), and the midpoints' neighbours are counted by hand."""
    line = torch.arange(6, dtype=torch.float64)[:, None]
    values = precision_recall_density_coverage(line, line + 1, k=2)
    # fake 1 ... 6; real balls: 0 has radius 2, 1 ... 4 radius 1, 5 radius 2
    inside = {1: {0, 1, 2}, 2: {0, 1, 2, 3}, 3: {2, 3, 4, 5}, 4: {3, 4, 5}, 5: {4, 5}, 6: {5}}
    assert values.density == sum(map(len, inside.values())) / 6 / 2
    assert values.precision == 1
    assert values.coverage == 1


def test_a_common_offset_changes_no_count():
    """A large offset leaves no digits to matrix products of the raw vectors; float32 `cdist` says 1, 1 here."""
    real, fake = vectors(200), 2 * vectors(200, seed=1)
    grid = lambda x: (x * 2**20).round() / 2**20  # noqa: E731  exact after adding 2**20
    real, fake = grid(real), grid(fake)
    assert precision_recall_density_coverage(real + 2**20, fake + 2**20) == precision_recall_density_coverage(
        real, fake
    )


@pytest.mark.parametrize("block", [1, 13, 100, 4096])
def test_the_block_size_changes_no_count(block):
    real, fake = vectors(100).repeat(2, 1), torch.cat([vectors(100), vectors(50, seed=5)])
    assert precision_recall_density_coverage(real, fake, 3, block) == precision_recall_density_coverage(real, fake, 3)


def test_what_is_given_is_never_changed():
    real, fake = vectors(60), vectors(50, seed=1)
    before = real.clone(), fake.clone()
    precision_recall_density_coverage(real, fake)
    nearest(real, fake, 3)
    assert torch.equal(real, before[0])
    assert torch.equal(fake, before[1])


def test_nearest_is_brute_force(truth):
    queries, references = vectors(40), vectors(300, seed=1)
    found = nearest(queries, references, k=5, block=7)
    distances, indices = (queries[:, None] - references).square().sum(2).sqrt().sort(dim=1)
    assert torch.equal(found.indices, indices[:, :5])
    error = (found.distances - distances[:, :5]).abs().max()
    truth("nearest neighbours", "five of 300 in 8 dimensions", "all differences, sorted", error, 1e-15)


def test_a_picture_is_its_own_nearest_at_distance_zero():
    found = nearest(vectors(50) + 1e4, vectors(50) + 1e4)
    assert torch.equal(found.indices[:, 0], torch.arange(50))
    assert torch.equal(found.distances, torch.zeros(50, 1, dtype=torch.float64))


def test_copies_of_the_training_pictures_are_noticed():
    train, test = vectors(500), vectors(200, seed=1)
    held_out = nearest(test, train).distances[:, 0]
    copied = memorisation(nearest(train[:100] + 1e-6, train).distances[:, 0], held_out)
    assert copied.closer == 1
    assert copied.copies == 1
    assert copied.ratio < 1e-5


def test_new_pictures_of_the_same_kind_are_no_copies():
    train, test, new = vectors(500), vectors(400, seed=1), vectors(400, seed=2)
    honest = memorisation(nearest(new, train).distances[:, 0], nearest(test, train).distances[:, 0])
    assert (
        abs(honest.closer - 0.5) < 4 * (801 / (12 * 400 * 400)) ** 0.5
    )  # four deviations of Mann and Whitney's U / NM
    assert honest.ratio == pytest.approx(1, abs=0.1)
    assert honest.copies < 0.05


def test_closer_is_the_share_of_pairs_with_ties_as_half():
    samples, test = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([2.0, 3.0])
    assert memorisation(samples, test).closer == pytest.approx((2 + 1.5 + 1.5) / 6, abs=1e-15)


def test_impossible_k_is_refused():
    with pytest.raises(ConfigError, match="k = 5"):
        precision_recall_density_coverage(vectors(5), vectors(50))
    with pytest.raises(ConfigError, match="3 nearest"):
        nearest(vectors(5), vectors(2), k=3)
