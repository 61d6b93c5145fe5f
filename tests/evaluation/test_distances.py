"""Fréchet distance, kernel distance, Inception Score: closed forms, independent implementations, what they mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import oracle, quietly

from mezzotint.core.errors import ConfigError, DataError
from mezzotint.evaluation.distances import accuracy, frechet_distance, inception_score, kernel_distance
from mezzotint.evaluation.statistics import Moments


def features(n: int, dims: int, seed: int, rank: int | None = None) -> torch.Tensor:
    """Correlated positive vectors, as those of a network after a ReLU; of this rank, where one is given."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank or dims, dims, generator=generator, dtype=torch.float64) / (rank or dims) ** 0.5
    vectors = torch.randn(n, rank or dims, generator=generator, dtype=torch.float64) @ mixing
    return vectors if rank else (vectors + 0.5 + 0.1 * seed).relu()


def relative(value: float, expected: float) -> float:
    return abs(value - expected) / abs(expected)


# ---- Fréchet distance


def with_moments(mean: torch.Tensor, deviations: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """n vectors whose sample mean and sample covariance are exactly these (diagonal)."""
    noise = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    orthonormal = torch.linalg.qr(noise - noise.mean(0)).Q * (n - 1) ** 0.5
    return mean + orthonormal * deviations


def test_diagonal_gaussians_have_the_closed_form(truth):
    m1, m2 = torch.linspace(-1, 1, 16, dtype=torch.float64), torch.linspace(0, 3, 16, dtype=torch.float64)
    s1, s2 = torch.linspace(0.1, 2, 16, dtype=torch.float64), torch.linspace(3, 0.5, 16, dtype=torch.float64)
    expected = ((m1 - m2).square() + (s1 - s2).square()).sum().item()
    value = frechet_distance(with_moments(m1, s1, 100, 0), with_moments(m2, s2, 80, 1))
    truth("Fréchet distance", "diagonal Gaussians", "|m1 - m2|^2 + |s1 - s2|^2", relative(value, expected), 1e-14)


def test_fewer_pictures_than_dimensions_have_the_closed_form(truth):
    """Shifting a set that spans few dimensions costs the squared shift, although its covariance is singular."""
    x = features(20, 64, seed=0, rank=7)
    shift = torch.linspace(0, 1, 64, dtype=torch.float64)
    expected = shift.square().sum().item()
    error = relative(frechet_distance(x, x + shift), expected)
    truth("Fréchet distance", "N < D and rank 7 of 64, shifted", "the squared shift", error, 1e-14)


@pytest.mark.parametrize(("n", "dims"), [(300, 64), (40, 64)])
def test_identical_sets_have_distance_zero(n, dims, truth):
    x = features(n, dims, seed=1)
    spread = (x - x.mean(0)).square().sum().item() / (n - 1)
    truth(
        "Fréchet distance", f"identical sets, N = {n}, D = {dims}", "0", frechet_distance(x, x.clone()) / spread, 1e-13
    )


def test_it_is_never_negative():
    for seed in range(20):
        x = features(30, 48, seed=seed, rank=5)
        assert frechet_distance(x, x[torch.randperm(30)]) >= 0
        assert frechet_distance(Moments.of(x), Moments.of(x)) >= 0


def test_constant_features_are_no_special_case():
    constant = torch.ones(10, 4, dtype=torch.float64)
    assert frechet_distance(constant, constant + 2) == pytest.approx(16, abs=1e-12)
    assert frechet_distance(Moments.of(constant), Moments.of(constant + 2)) == pytest.approx(16, abs=1e-12)


@pytest.mark.oracles
@pytest.mark.parametrize(
    ("case", "n", "rank", "tolerance"),
    [("full rank", 400, None, 5e-14), ("N < D", 40, None, 1e-7), ("singular", 400, 9, 1e-7)],
)
def test_agrees_with_torchmetrics_and_pytorch_fid(case, n, rank, tolerance, truth):
    """The oracles take roots of the eigenvalues of a product of covariances: where it is singular, of rounding errors.

    For N < D and singular sets they are therefore the less exact side (the closed forms above hold to 1e-13).
    """
    torchmetrics_fid = oracle("torchmetrics.image.fid")
    x, y = features(n, 64, seed=0, rank=rank), features(n + 10, 64, seed=3, rank=rank)
    value = frechet_distance(x, y)
    theirs = torchmetrics_fid._compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item()
    truth("Fréchet distance", case, "torchmetrics 1.9.0", relative(value, theirs), tolerance)
    fid_score = oracle("pytorch_fid.fid_score")
    given = [t.numpy() for t in (x.mean(0), x.T.cov(), y.mean(0), y.T.cov())]
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr("warnings.warn", lambda *_, **__: None)
        theirs = quietly(fid_score.calculate_frechet_distance, *given)
    truth("Fréchet distance", case, "pytorch-fid 0.3.0", relative(value, theirs), tolerance)


# ---- streaming


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_streaming_is_the_batch_whatever_the_batch_size(batch, truth):
    x, y = features(300, 32, seed=0), features(200, 32, seed=1)
    streamed = frechet_distance(Moments.of(x.split(batch)), Moments.of(y.split(batch)))
    error = relative(streamed, frechet_distance(x, y))
    truth("Fréchet distance", f"streamed in batches of {batch}", "all at once", error, 1e-14)


def test_merged_shards_are_the_whole(truth):
    x, y = features(301, 32, seed=0), features(200, 32, seed=1)
    shards = [Moments.of(x[rank::3]) for rank in range(3)]
    merged = shards[0].merge(shards[1]).merge(shards[2])
    assert merged.count == 301
    error = relative(frechet_distance(merged, Moments.of(y)), frechet_distance(x, y))
    truth("Fréchet distance", "three shards merged", "all at once", error, 1e-14)
    assert shards[0].count == 101


def test_a_large_common_offset_costs_no_digits(truth):
    x = features(500, 16, seed=0)
    offset = (Moments.of((x + 1e6).split(50)).covariance() - Moments.of(x).covariance()).abs().max()
    truth("Fréchet distance", "covariance of features + 1e6", "without the offset", offset, 1e-10)


@pytest.mark.oracles
def test_covariance_agrees_with_numpy(truth):
    x = features(500, 16, seed=0)
    error = np.abs(Moments.of(x.split(33)).covariance().numpy() - np.cov(x.numpy(), rowvar=False)).max()
    truth("Fréchet distance", "streamed covariance", "numpy.cov", error, 1e-14)


# ---- kernel distance


def test_kernel_distance_is_the_definition_written_out(truth):
    x, y = features(7, 3, seed=0), features(5, 3, seed=1)
    k = lambda a, b: (float(a @ b) / 3 + 1) ** 3  # noqa: E731
    within = [
        sum(k(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / len(s) / (len(s) - 1) for s in (x, y)
    ]
    across = sum(k(a, b) for a in x for b in y) / 35
    error = abs(kernel_distance(x, y).mean - (sum(within) - 2 * across))
    truth("kernel distance", "unbiased, sets of 7 and 5", "double loop over pairs", error, 1e-14)
    within = [sum(k(a, b) for a in s for b in s) / len(s) ** 2 for s in (x, y)]
    error = abs(kernel_distance(x, y, unbiased=False).mean - (sum(within) - 2 * across))
    truth("kernel distance", "biased, sets of 7 and 5", "double loop over pairs", error, 1e-14)


def test_kernel_distance_is_unbiased():
    """Its mean over many pairs of sets from one distribution is zero within its standard error; the biased not."""
    generator = torch.Generator().manual_seed(5)
    pairs = torch.randn(400, 2, 20, 4, generator=generator, dtype=torch.float64)
    unbiased = torch.tensor([kernel_distance(x, y).mean for x, y in pairs])
    biased = torch.tensor([kernel_distance(x, y, unbiased=False).mean for x, y in pairs])
    error = unbiased.std() / len(pairs) ** 0.5
    assert abs(unbiased.mean()) < 4 * error
    assert biased.mean() > 10 * error


def test_subsets_cover_what_all_pairs_measure():
    x, y = features(300, 8, seed=0), features(300, 8, seed=4)
    whole, parts = kernel_distance(x, y).mean, kernel_distance(x, y, subsets=100, subset_size=100)
    assert abs(parts.mean - whole) < 4 * parts.std / 10
    assert kernel_distance(x, y, subsets=3, subset_size=100, seed=1) != kernel_distance(
        x, y, subsets=3, subset_size=100
    )


@pytest.mark.parametrize("unbiased", [True, False])
def test_kernel_distance_is_the_mean_over_pairs_in_blocks_of_any_size(unbiased, truth, monkeypatch):
    x, y = features(101, 8, seed=0), features(64, 8, seed=4)
    within = [((z @ z.T / 8 + 1) ** 3)[~torch.eye(len(z), dtype=torch.bool) | (not unbiased)].mean() for z in (x, y)]
    expected = (sum(within) - 2 * ((x @ y.T / 8 + 1) ** 3).mean()).item()
    for block in (1, 37, 64, 4096):
        monkeypatch.setattr("mezzotint.evaluation.distances.BLOCK", block)
        error = relative(kernel_distance(x, y, unbiased=unbiased).mean, expected)
        kind = "unbiased" if unbiased else "biased"
        truth("kernel distance", f"{kind}, blocks of {block}", "mean over all pairs", error, 1e-14)


@pytest.mark.oracles
def test_kernel_distance_agrees_with_three_implementations(truth):
    x, y = features(200, 64, seed=0), features(200, 64, seed=2)
    value = kernel_distance(x, y).mean
    kid = oracle("torch_fidelity.metric_kid")
    kernel = {
        "kid_kernel": "poly",
        "kid_kernel_poly_degree": 3,
        "kid_kernel_poly_gamma": None,
        "kid_kernel_poly_coef0": 1.0,
    }
    theirs = kid.kernel_mmd(x.numpy(), y.numpy(), **kernel)
    truth("kernel distance", "unbiased, one set", "torch-fidelity 0.4.0", relative(value, theirs), 1e-14)
    theirs = oracle("torchmetrics.image.kid").poly_mmd(x, y).item()
    truth("kernel distance", "unbiased, one set", "torchmetrics 1.9.0", relative(value, theirs), 1e-14)
    theirs = oracle("cleanfid.fid").kernel_distance(x.numpy(), y.numpy(), num_subsets=1, max_subset_size=200)
    truth("kernel distance", "unbiased, one set", "clean-fid 0.1.35", relative(value, theirs), 1e-14)
    estimate = kernel_distance(x, y, subsets=10, subset_size=50, seed=7)
    drawn = {"kid_subsets": 10, "kid_subset_size": 50, "rng_seed": 7, "verbose": False}
    theirs = kid.kid_features_to_metric(x, y, **drawn, **kernel)
    error = relative(estimate.mean, theirs["kernel_inception_distance_mean"])
    truth("kernel distance", "mean of ten subsets, same seed", "torch-fidelity 0.4.0", error, 1e-14)
    error = relative(estimate.std, theirs["kernel_inception_distance_std"])
    truth("kernel distance", "deviation of ten subsets", "torch-fidelity 0.4.0", error, 1e-14)


# ---- Inception Score


def test_the_score_runs_from_one_to_the_number_of_classes():
    sure = torch.eye(5, dtype=torch.float64).repeat(4, 1) * 100
    assert inception_score(sure, splits=1).mean == pytest.approx(5, abs=1e-12)
    assert inception_score(torch.zeros(20, 5), splits=2).mean == pytest.approx(1, abs=1e-12)
    collapsed = sure[:1].expand(20, 5)
    assert inception_score(collapsed, splits=2).mean == pytest.approx(1, abs=1e-12)


@pytest.mark.oracles
def test_inception_score_agrees_with_torch_fidelity(truth):
    logits = 3 * torch.randn(1003, 50, dtype=torch.float64)
    theirs = oracle("torch_fidelity.metric_isc").isc_features_to_metric(logits, splits=10, shuffle=False)
    ours = inception_score(logits, splits=10)
    error = relative(ours.mean, theirs["inception_score_mean"])
    truth("Inception Score", "mean of ten splits of 1003", "torch-fidelity 0.4.0", error, 1e-14)
    error = relative(ours.std, theirs["inception_score_std"])
    truth("Inception Score", "deviation of ten splits of 1003", "torch-fidelity 0.4.0", error, 1e-14)


# ---- manners


def test_what_is_given_is_never_changed():
    x, y = features(50, 16, seed=0), features(60, 16, seed=1)
    before = x.clone(), y.clone()
    first = frechet_distance(x, y), kernel_distance(x, y), inception_score(x)
    assert (frechet_distance(x, y), kernel_distance(x, y), inception_score(x)) == first
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_accuracy_counts():
    assert accuracy(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0], [0.0, -1.0]]), torch.tensor([0, 1, 0, 0])) == 0.75


def test_bad_input_is_answered_with_its_cause():
    x = features(20, 4, seed=0)
    with pytest.raises(DataError, match="different feature networks"):
        frechet_distance(x, x[:, :3])
    with pytest.raises(DataError, match="at least 2"):
        frechet_distance(x[:1], x)
    with pytest.raises(DataError, match="not finite"):
        kernel_distance(x, x / 0)
    with pytest.raises(ConfigError, match="lower subset_size"):
        kernel_distance(x, x, subsets=3)
    with pytest.raises(ConfigError, match="splits"):
        inception_score(x, splits=21)
