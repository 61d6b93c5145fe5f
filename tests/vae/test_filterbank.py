"""The Gaussian filters of DRAW against eq. 19-29 of its paper, term by term."""

from __future__ import annotations

import pytest
import torch

from mezzotint.vae.filterbank import Attention, covering, filters, filters_directly, read, widest, write

GRID, SIZE = 3, 6


@pytest.fixture
def numbers():
    """Attentions of four pictures, (4, 5): small and large grids, one of them partly beside its picture."""
    found = 0.5 * torch.randn(4, 5, dtype=torch.float64)
    found[3, :2] = torch.tensor([1.2, -1.1])
    return found.requires_grad_()


def both_ways(numbers, values):
    """Values and their gradients by the numbers."""
    weights = torch.randn(values.shape, dtype=values.dtype, generator=torch.Generator().manual_seed(1))
    return values.detach(), torch.autograd.grad((weights * values).sum(), numbers)[0]


def error(numbers, fast, slow):
    """Largest difference of values and gradients."""
    return max((a - b).abs().max() for a, b in zip(both_ways(numbers, fast), both_ways(numbers, slow), strict=True))


def test_filters_are_those_of_the_equations(numbers, truth):
    fast = filters(Attention.of(numbers, GRID, SIZE), GRID, SIZE)
    slow = torch.stack([torch.stack(filters_directly(row, GRID, SIZE)[:2]) for row in numbers])
    truth("draw", "filterbanks and gradients", "eq. 19-26, term by term", error(numbers, fast, slow), 5e-14)


def test_reading_is_the_sum_of_the_equations(numbers, truth):
    images = torch.randn(4, 2, SIZE, SIZE, dtype=torch.float64)
    fast = read(images, Attention.of(numbers, GRID, SIZE), GRID)
    rows = []
    for row, picture in zip(numbers, images, strict=True):
        f_x, f_y, gamma = filters_directly(row, GRID, SIZE)
        for channel in picture:
            for j in range(GRID):
                for i in range(GRID):
                    terms = [
                        f_y[j, b] * channel[b, a] * f_x[i, a] for b in range(SIZE) for a in range(SIZE)
                    ]  # b: the picture's row
                    rows.append(gamma * torch.stack(terms).sum())
    slow = torch.stack(rows).reshape(fast.shape)
    truth("draw", "reading and gradients", "eq. 27, term by term", error(numbers, fast, slow), 5e-14)


def test_writing_is_the_sum_of_the_equations(numbers, truth):
    patch = torch.randn(4, 2, GRID, GRID, dtype=torch.float64)
    fast = write(patch, Attention.of(numbers, GRID, SIZE), SIZE)
    rows = []
    for row, picture in zip(numbers, patch, strict=True):
        f_x, f_y, gamma = filters_directly(row, GRID, SIZE)
        for channel in picture:
            for b in range(SIZE):
                for a in range(SIZE):
                    terms = [f_y[j, b] * channel[j, i] * f_x[i, a] for j in range(GRID) for i in range(GRID)]
                    rows.append(torch.stack(terms).sum() / gamma)
    slow = torch.stack(rows).reshape(fast.shape)
    truth("draw", "writing and gradients", "eq. 29, term by term", error(numbers, fast, slow), 2e-13)


def test_gradients_are_those_of_finite_differences(numbers):
    images = torch.randn(2, 1, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    patch = torch.randn(2, 1, GRID, GRID, dtype=torch.float64, requires_grad=True)
    n = numbers[2:].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda n, x: read(x, Attention.of(n, GRID, SIZE), GRID), (n, images))
    assert torch.autograd.gradcheck(lambda n, w: write(w, Attention.of(n, GRID, SIZE), SIZE), (n, patch))


@pytest.mark.parametrize(("place", "log_variance"), [(0.0, 3.0), (1.0, 2.0), (-3.0, -2.0), (40.0, 1.0)])
def test_each_filter_sums_to_one_wherever_it_lies(place, log_variance, truth):
    """Also where every term of the sum is smaller than what float32 can hold."""
    numbers = torch.tensor([[place, -place, log_variance, 0.0, 0.0]])
    found = filters(Attention.of(numbers, 5, 28), 5, 28)
    assert (found >= 0).all()
    truth("draw", f"sum of a filter, centre at {place}", "one (float32)", (found.sum(-1) - 1).abs().max(), 5e-7)


def test_filters_as_many_as_pixels_and_narrow_read_the_picture_itself(truth):
    """Eq. 22-24 with all zeros: the grid spans the picture, its stride is one pixel."""
    numbers = torch.tensor([[0.0, 0.0, -9.0, 0.0, 0.0]], dtype=torch.float64)
    attention = Attention.of(numbers, 7, 7)
    picture = torch.rand(1, 3, 7, 7, dtype=torch.float64)
    truth("draw", "reading with narrow filters", "the picture", (read(picture, attention, 7) - picture).abs().max(), 0)
    truth("draw", "writing with narrow filters", "the patch", (write(picture, attention, 7) - picture).abs().max(), 0)


def test_writing_is_the_transpose_of_reading(numbers, truth):
    """<w, read(x) / gamma> = <gamma write(w), x>, for every picture and patch."""
    attention = Attention.of(numbers.detach(), GRID, SIZE)
    images = torch.randn(4, 2, SIZE, SIZE, dtype=torch.float64)
    patch = torch.randn(4, 2, GRID, GRID, dtype=torch.float64)
    gamma = attention.intensity[:, None, None, None]
    there = (patch * read(images, attention, GRID) / gamma).flatten(1).sum(1)
    back = (gamma * write(patch, attention, SIZE) * images).flatten(1).sum(1)
    truth("draw", "<w, read(x)>", "<write(w), x>", (there - back).abs().max(), 5e-15)


def test_a_moved_grid_reads_what_a_moved_picture_shows(truth):
    """Centre in pixels: g~ + 2 / (S + 1) is a pixel further to the right (eq. 22)."""
    size = 12
    picture = torch.zeros(1, 1, size, size, dtype=torch.float64)
    picture[..., 5:8, 4:8] = torch.rand(3, 4, dtype=torch.float64)
    here = torch.tensor([[0.0, 0.0, -2.0, -1.5, 0.3]], dtype=torch.float64)
    there = here + torch.tensor([2 / (size + 1), 0, 0, 0, 0], dtype=torch.float64)
    moved = torch.roll(picture, 1, -1)
    difference = read(picture, Attention.of(here, 3, size), 3) - read(moved, Attention.of(there, 3, size), 3)
    truth("draw", "a grid moved by a pixel", "the picture moved", difference.abs().max(), 1e-14)


def test_attention_begins_by_writing_the_patch_over_the_whole_picture(truth):
    """A flat patch becomes a nearly flat picture of the same height, but near the border."""
    attention = Attention.of(covering(9, 57, write=True)[None], 9, 57)
    inner = write(torch.ones(1, 1, 9, 9), attention, 57)[0, 0, 21:36, 21:36]
    truth("draw", "what a flat patch writes at first", "the height of the patch", (inner - 1).abs().max(), 0.05)


def test_rectangles_are_in_pixels_from_the_corner():
    """With all zeros the first filter lies on the middle of the first pixel, the last on that of the last."""
    found = Attention.of(torch.zeros(1, 5), 4, 28).rectangles(4)
    assert found.centre.tolist() == [[14.0, 14.0]]
    assert found.extent.item() == pytest.approx(27)
    assert found.std.item() == 1
    assert widest(4, 28) == 9


def test_a_single_filter_looks_at_its_centre():
    numbers = torch.tensor([[0.0, 0.0, -9.0, 0.0, 0.0]])
    picture = torch.arange(25.0).reshape(1, 1, 5, 5)
    assert read(picture, Attention.of(numbers, 1, 5), 1).item() == 12
