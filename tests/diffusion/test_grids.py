"""The times that solvers visit."""

import pytest
import torch

from mezzotint.core.errors import ConfigError
from mezzotint.diffusion.grids import GRIDS, exponential, karras, leading, levels, linspace, quadratic, trailing
from mezzotint.diffusion.paths import PATHS, VariancePreserving

INDEXED = ("leading", "trailing", "linspace", "quadratic")  # those that visit training indices


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("path", PATHS)
def test_a_grid_falls_to_zero(name, path):
    for steps in (1, 2, 3, 13, 50, 1000):
        grid = GRIDS[name](steps, PATHS[path])
        assert len(grid) == steps + 1
        assert grid.dtype == torch.float64
        assert grid.device.type == "cpu"
        assert (grid.diff() < 0).all()
        assert grid[0] <= 1
        assert grid[-1] == 0


@pytest.mark.parametrize("name", GRIDS)
def test_an_impossible_number_of_steps_is_refused(name):
    with pytest.raises(ConfigError, match="at least 1"):
        GRIDS[name](0, PATHS["linear"])
    if name in INDEXED:
        with pytest.raises(ConfigError, match="1000"):
            GRIDS[name](1001, PATHS["linear"])
        with pytest.raises(ConfigError, match="200"):
            GRIDS[name](201, VariancePreserving(steps=200))


@pytest.mark.parametrize("name", INDEXED)
def test_indexed_grids_visit_times_at_which_the_model_was_trained(name):
    for path, T in ((PATHS["linear"], 1000), (VariancePreserving(steps=200), 200), (PATHS["straight"], 1000)):
        for steps in (1, 2, 7, 50, 200):
            k = GRIDS[name](steps, path)[:-1] * T - 1
            assert (k - k.round()).abs().max() < 1e-9
            assert k.round().min() >= 0
            assert k.round().max() <= T - 1


def indices(grid):
    return (grid[:-1] * 1000 - 1).round().long().tolist()


def test_the_indices_of_small_grids():
    path = PATHS["linear"]
    assert indices(leading(4, path)) == [750, 500, 250, 0]
    assert indices(trailing(4, path)) == [999, 749, 499, 249]
    assert indices(linspace(4, path)) == [999, 666, 333, 0]
    assert indices(quadratic(4, path)) == [999, 444, 111, 0]  # floor(111 i^2)


def test_a_single_quadratic_step_begins_at_noise():
    assert indices(quadratic(1, PATHS["linear"])) == [999]


@pytest.mark.parametrize("steps", [2, 10, 12, 50, 300, 1000])  # of 12, 999 / 11^2 * 11^2 is below 999 in float64
def test_quadratic_indices_are_floor_c_i_squared(steps):
    """Song et al. 2020, appendix D.2, with c for which the last is T - 1; and at least i, so that none comes twice."""
    expected = [max(i, 999 * i * i // (steps - 1) ** 2) for i in range(steps)]
    assert indices(quadratic(steps, PATHS["linear"])) == expected[::-1]


def test_karras_levels_have_evenly_spaced_roots(truth):
    worst = 0.0
    for path in PATHS.values():
        most, least = (float(level) for level in levels(path))
        roots = torch.linspace(most ** (1 / 7), least ** (1 / 7), 18, dtype=torch.float64)
        r = path.at(karras(18, path)).ratio
        worst = max(worst, float((r[1:-1] ** (1 / 7) / roots[1:] - 1).abs().max()))
        if most != 80:
            assert r[0] == most
    truth("grid karras, every path", "7th roots of sigma / alpha, relative", "Karras et al. 2022, eq. 5", worst, 1e-10)


def test_exponential_levels_have_even_logarithms(truth):
    worst = 0.0
    for path in PATHS.values():
        gaps = torch.log(path.at(exponential(18, path)).ratio[1:-1]).diff()
        worst = max(worst, float((gaps / gaps.mean() - 1).abs().max()))
    truth("grid exponential, every path", "differences of ln(sigma / alpha), relative", "equal", worst, 1e-9)


def test_the_grid_of_edm_is_the_published_one(truth):
    """Karras et al. 2022, eq. 5 with sigma_max = 80, sigma_min = 0.002, rho = 7."""
    i = torch.arange(18, dtype=torch.float64)
    published = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    error = (80 * karras(18, PATHS["edm"])[:-1] / published - 1).abs().max()
    truth("grid karras, edm path", "18 noise levels, relative", "Karras et al. 2022, eq. 5", error, 5e-15)


@pytest.mark.parametrize(
    ("path", "most", "least"),
    [("edm", 80, 0.002), ("straight", 80, 0.002), ("ot", 80, 0.002), ("zero-snr", 80, None), ("cosine", 80, None),
     ("ve", 100, 0.02), ("linear", 157.4, 0.01)],
)  # fmt: skip
def test_where_the_levels_end(path, most, least):
    """Where the picture is lost at t = 1 the level 80 stands for it, and 0.002 where no noise hides it at the start."""
    measured = levels(PATHS[path])
    assert float(measured[0]) == pytest.approx(most, rel=1e-3)
    assert float(measured[1]) == pytest.approx(least or float(PATHS[path].at(torch.tensor(1e-3)).ratio), rel=1e-3)
    assert karras(7, PATHS[path])[0] == 1
    assert exponential(7, PATHS[path])[0] == 1
