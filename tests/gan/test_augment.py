"""The pipe of augmentations: each transform by hand, all of them together, and the rule by which p moves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.core.errors import ConfigError
from mezzotint.gan.augment import (
    BANDS,
    POWER,
    Augmentation,
    AugmentationConfig,
    Numbers,
    blit,
    brightness,
    contrast,
    filtered,
    folded,
    hue,
    luma_flip,
    octaves,
    recoloured,
    rotation,
    saturation,
    scaling,
    symlet,
    translation,
    warped,
)
from mezzotint.gan.model import GAN, GANConfig
from mezzotint.gan.networks import MLPConfig
from mezzotint.gan.penalties import ZeroCentred

ALL = ("blit", "geometry", "colour", "filter", "noise", "cutout")
WAVELET = torch.from_numpy(symlet(6) / math.sqrt(2))


def pipe(p=0.7, parts=ALL, channels=3, size=12, **choices):
    return Augmentation(AugmentationConfig(parts, p, **choices), channels, size)


def pictures(n=4, channels=3, size=12):
    return torch.rand(n, channels, size, size) * 2 - 1


def numbers(n=1000):
    return Numbers(PictureRandom(range(n)))


def full(value, n=1):
    return torch.full((n,), value, dtype=torch.float64)


def test_nothing_happens_at_p_0():
    x = pictures()
    assert pipe(0.0)(x, PictureRandom(range(4))) is x


def test_p_1_leaves_no_picture_as_it_is():
    x = pictures()
    y = pipe(1.0)(x, PictureRandom(range(4)))
    assert y.shape == x.shape
    assert ((y - x).abs().amax((1, 2, 3)) > 0.1).all()


def test_a_picture_is_transformed_by_its_own_seed():
    x = pictures()
    together = pipe()(x, PictureRandom(range(4)))
    alone = pipe()(x[2:3], PictureRandom([2]))
    assert torch.allclose(together[2], alone[0], atol=1e-5)


# blitting


def test_blitting_turns_as_rot90_does():
    x = pictures(4, 2, 5)
    zero = torch.zeros(4, dtype=torch.long)
    turned = blit(x, zero, torch.arange(4), zero, zero)
    for k in range(4):
        assert torch.equal(turned[k], torch.rot90(x[k], k, (1, 2)))


def test_blitting_flips_then_turns_then_moves():
    x = pictures(1, 1, 6)
    one = torch.ones(1, dtype=torch.long)
    y = blit(x, one, one, 2 * one, one)
    expected = torch.rot90(x.flip(3), 1, (2, 3))
    assert torch.equal(y[..., 1:, 2:], expected[..., :-1, :-2])
    assert torch.equal(y[..., 1:, :2], expected[..., :-1, 1:3].flip(3))  # what comes in is the mirror image


def test_half_of_the_flips_and_turns_that_happen_are_seen():
    """With p = 0.6, from where neighbours come: of two flips one is none, of four turns two swap rows and columns."""
    n, B, p = 16, 3000, 0.6
    place = torch.arange(float(n))
    x = torch.stack([place.expand(n, n), place[:, None].expand(n, n)]).expand(B, -1, -1, -1)  # column, row
    y = pipe(p, ("blit",), 3, n).blitted(x, numbers(B), p)
    J = torch.stack([y[..., 8, 8] - y[..., 8, 7], y[..., 8, 8] - y[..., 7, 8]], 2)  # by x and by y, (B, 2, 2)
    assert abs((torch.linalg.det(J) < 0).float().mean() - p / 2) < 0.03
    assert abs((J[:, 0, 0] == 0).float().mean() - p / 2) < 0.03
    still = (torch.eye(2) == J).all((1, 2))
    assert abs(still.float().mean() - (1 - p / 2) * (1 - 3 / 4 * p)) < 0.03
    moved = y[still][:, :, 8, 8] - 8  # up to an eighth, 2 pixels, of which 0 is as likely as 1
    assert moved.abs().max() == 2
    assert abs(moved.any(1).float().mean() - p * (1 - 1 / 16)) < 0.04
    assert abs(moved[moved.any(1)].std() - math.sqrt((2 * 1 / 4 * 1 + 2 * 1 / 8 * 4) * 16 / 15)) < 0.06


def test_blitting_changes_no_pixel():
    x = pictures(64, 1, 8)
    made = pipe(1.0, ("blit",), 1, 8)
    y = made(x, PictureRandom(range(64)))
    still = torch.isin(y.flatten(1), x.flatten(1))
    assert still.all()
    assert made.blitted(x[:2], numbers(2), 0.0).equal(x[:2])


def test_folding_is_a_walk_to_and_fro():
    assert folded(torch.arange(-5, 9), 4).tolist() == [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]


# geometry


def test_the_wavelet_is_orthogonal_and_has_its_moments(truth):
    for N in (1, 2, 6):
        h = symlet(N)
        products = [h @ np.roll(np.pad(h, (0, 2 * N)), 2 * m)[: 2 * N] - (m == 0) for m in range(N)]
        moments = [sum((-1) ** k * float(k) ** j * h[k] for k in range(2 * N)) / (2.0 * N) ** j for j in range(N)]
        truth("stylegan2-ada", f"symlet of {N} moments", "orthogonality", np.abs(products).max(), 1e-14)
        truth("stylegan2-ada", f"symlet of {N} moments", "vanishing moments", np.abs(moments).max(), 1e-15)


@pytest.mark.oracles
def test_the_wavelet_is_that_of_pywt(truth):
    pywt = pytest.importorskip("pywt")
    for N in (2, 6):
        h, theirs = symlet(N), np.array(pywt.Wavelet(f"sym{N}").rec_lo)
        error = min(np.abs(h - theirs).max(), np.abs(h - theirs[::-1]).max())  # either direction is a symlet
        truth("stylegan2-ada", f"symlet of {N} moments", f"pywt's sym{N}", error, 1e-11)


def test_a_picture_that_does_not_move_comes_back(truth):
    x = pictures().double()
    y = warped(x, torch.eye(3).double().expand(4, 3, 3), WAVELET)
    truth("stylegan2-ada", "up and down by the wavelet", "the picture", (x - y).abs().max(), 1e-13)


def test_a_move_by_whole_pixels_is_a_blit(truth):
    x = pictures().double()
    y = warped(x, translation(full(2.0, 4), full(-1.0, 4)), WAVELET)
    error = (y[..., 1:-3, 5:-3] - x[..., 2:-2, 3:-5]).abs().max()
    truth("stylegan2-ada", "translation by whole pixels", "the picture moved", error, 5e-14)


def test_smooth_pictures_go_where_the_matrix_says(truth):
    """A wave, turned, scaled and moved: seen at G^-1 of each pixel."""
    n = 32
    G = translation(full(1.3), full(-2.1)) @ rotation(full(0.4)) @ scaling(full(1.2), full(0.9))
    at = torch.arange(n, dtype=torch.float64) - (n - 1) / 2

    def wave(x, y):
        return torch.sin(0.25 * x + 0.5) * torch.cos(0.2 * y)

    picture = wave(at[None, :], at[:, None])[None, None]
    points = torch.stack([at.expand(n, n), at[:, None].expand(n, n), torch.ones(n, n)]).flatten(1)
    x, y = (torch.linalg.inv(G[0]) @ points)[:2].unflatten(1, (n, n))
    seen = warped(picture, G, WAVELET)[0, 0]
    inner = (x.abs() < 12) & (y.abs() < 12)
    truth("stylegan2-ada", "a wave transformed", "the wave at G^-1", (seen - wave(x, y))[inner].abs().max(), 5e-3)


def test_the_parts_of_the_geometry_are_right():
    """Of 1000 pictures: areas change by the isotropic scaling alone, which doubles or halves five deviations away."""
    made = pipe()
    G = made.geometry(numbers(), 1.0, 12)
    areas = torch.linalg.det(G[:, :2, :2])
    logs = areas.log2() / 2
    assert abs(logs.mean()) < 0.02
    assert abs(logs.std() - 0.2) < 0.015
    stretched = torch.linalg.svdvals(G[:, :2, :2]).log2()  # of the anisotropic scaling s and 1 / s
    assert abs(((stretched[:, 0] - stretched[:, 1]) / 2).square().mean().sqrt() - 0.2) < 0.015
    moves = G[:, :2, 2] / 12
    assert abs(moves.std() - 0.125) < 0.006
    assert torch.equal(made.geometry(numbers(5), 0.0, 12), torch.eye(3).expand(5, 3, 3))


def test_rotations_happen_with_probability_p():
    """Before or after the anisotropic scaling, which is left out here: 1 - sqrt(1 - p) each."""
    G = pipe().geometry(numbers(), 0.5, 12)
    S = G[:, :2, :2]
    turned = (S - torch.diag_embed(S.diagonal(dim1=1, dim2=2))).abs().amax((1, 2)) > 1e-6
    assert abs(turned.float().mean() - 0.5) < 0.05


# colour


def test_each_colour_matrix_does_what_it_says(truth):
    x = pictures(1).double()
    luma = x.mean(1, keepdim=True)
    apart = x - luma
    for name, C, expected in (
        ("brightness", brightness(full(0.3)), x + 0.3),
        ("contrast", contrast(full(1.7)), 1.7 * x),
        ("luma flip", luma_flip(full(1.0)), apart - luma),
        ("no luma flip", luma_flip(full(0.0)), x),
        ("saturation", saturation(full(2.0)), luma + 2 * apart),
        ("hue by a third", hue(full(2 * math.pi / 3)), x[:, [2, 0, 1]]),
    ):
        truth("stylegan2-ada", name, "by hand", (recoloured(x, C) - expected).abs().max(), 2e-15)


@pytest.mark.parametrize("p", [1.0, 0.4])
def test_the_parts_of_the_colour_are_right(p):
    """Of 4000 pictures, taken apart again: what happens to black, to grey and to two colours."""
    C = pipe().colour(numbers(4000), p).double()
    grey, colours = torch.ones(3).double(), torch.tensor([[1.0, -1, 0], [1, 1, -2]]).double()
    gain, turned = (C[:, :3, :3] @ grey).mean(1), C[:, :3, :3] @ colours.t()  # (B, 3, 2)
    contrasts, brightnesses = gain.abs(), C[:, :3, 3].mean(1) / gain
    lengths = (turned / colours.norm(dim=1)).square().sum(1).mean(1).sqrt()
    angles = torch.acos(((colours[0] @ turned[..., 0].t()) / 2 / lengths).clamp(-1, 1))  # |(1, -1, 0)|^2 = 2
    found = {
        "brightness": (brightnesses, 0.2), "contrast": (contrasts.log2(), 0.5),
        "saturation": ((lengths / contrasts).log2(), 1.0), "hue": (angles, math.pi / math.sqrt(3)),
    }  # fmt: skip
    for name, (values, deviation) in found.items():
        changed = values.abs() > 1e-5
        assert abs(changed.double().mean() - p) < 0.025, name
        assert abs(values[changed].square().mean().sqrt() / deviation - 1) < 0.05, name
    assert abs((gain < 0).double().mean() - p / 2) < 0.025


def test_hue_keeps_luma_and_saturation():
    x, C = pictures(1).double(), hue(full(1.1))
    y = recoloured(x, C)
    assert torch.allclose(y.mean(1), x.mean(1), atol=1e-14)
    assert torch.allclose((y - y.mean(1, True)).norm(dim=1), (x - x.mean(1, True)).norm(dim=1), atol=1e-14)
    assert torch.allclose(torch.linalg.det(C), full(1.0), atol=1e-14)


def test_grey_pictures_change_as_grey_rgb_pictures_do():
    x = pictures(6, 1)
    C = pipe().colour(numbers(6), 1.0)
    assert torch.allclose(recoloured(x.expand(-1, 3, -1, -1), C), recoloured(x, C).expand(-1, 3, -1, -1), atol=1e-5)


# filtering and corruption


def test_octaves_together_change_nothing(truth):
    bands = octaves(symlet(2), BANDS)
    delta = np.zeros(bands.shape[1])
    delta[len(delta) // 2] = 1
    truth("stylegan2-ada", "sum of the octaves", "1", np.abs(bands.sum(0) - delta).max(), 1e-15)
    assert np.allclose(bands, bands[:, ::-1])
    for band, frequency in enumerate((math.pi / 32, 3 * math.pi / 16, 3 * math.pi / 8, 7 * math.pi / 8)):
        wave = np.cos(frequency * (np.arange(bands.shape[1]) - bands.shape[1] // 2))
        assert (bands @ wave).argmax() == band  # each passes the middle of its octave best


def test_filtering_with_no_gain_changes_nothing(truth):
    made, x = pipe(), pictures()
    taps = made.amplification(numbers(4), 0.0)
    truth("stylegan2-ada", "filter without gains", "the picture", (filtered(x, taps) - x).abs().max(), 2e-7)


def test_filtering_keeps_the_expected_power():
    """sum_j lambda_j g_j^2 = 1 for one octave changed; g is found again from the taps."""
    made = pipe()
    bands = made.bands.double()
    gains = torch.linalg.lstsq(bands.t(), made.amplification(numbers(50), 0.25).double().t()).solution.t()
    power = gains.square() @ torch.tensor(POWER).double()
    changed = ((gains / gains[:, :1] - 1).abs() > 1e-3).sum(1)
    assert changed.max() >= 1
    assert torch.allclose(power[changed == 0], full(1.0), atol=1e-4)
    one = (changed == 1) & ((gains[:, 1:] / gains[:, :1] - 1).abs().amax(1) > 1e-3)
    assert one.any()
    assert torch.allclose(power[one], full(1.0), atol=1e-4)


def test_half_of_the_width_is_cut_out():
    hole = pipe().hole(numbers(400), 1.0, 12)
    share = 1 - hole.mean((1, 2, 3))
    assert share.max() == pytest.approx(0.25, abs=0.08)
    # of the width 7/16 on average: a half, less what lies beyond the border
    assert share.mean() == pytest.approx((7 / 16) ** 2, abs=0.012)
    assert pipe().hole(numbers(4), 0.0, 12).min() == 1


def test_noise_has_its_deviation():
    x = torch.zeros(400, 1, 12, 12)
    y = pipe(1.0, ("noise",), 1)(x, PictureRandom(range(400)))
    assert y.square().mean().sqrt() == pytest.approx(0.1, rel=0.1)


# gradients


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_and_their_gradients_pass_through_the_whole_pipe(channels):
    made = pipe(1.0, channels=channels, size=8).double()
    x = pictures(1, channels, 8).double().requires_grad_()
    direction = torch.randn_like(x)

    def along(e):  # of one number, so that all pixels are checked at once
        return made(x + e * direction, PictureRandom([3])).tanh().sum()

    e = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (e,))
    assert torch.autograd.gradgradcheck(along, (e,))


def test_the_pipe_is_linear_in_the_picture_but_for_an_offset():
    made = pipe(0.9).double()
    a, b = pictures().double(), pictures().double()
    f = lambda x: made(x, PictureRandom(range(4)))  # noqa: E731
    assert torch.allclose(f((a + b) / 2), (f(a) + f(b)) / 2, atol=1e-9)


# in a GAN


def gan(**choices):
    augmentation = AugmentationConfig(ALL, **{"p": 0.5, "every": 2, "pictures": 1000, **choices})
    network = MLPConfig((8,))
    return GAN(GANConfig(8, network=network, latent=4, penalty=ZeroCentred(1.0), augmentation=augmentation))


def batch(n=8):
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, seeds=list(range(n)))


def test_r1_through_the_pipe_moves_the_discriminator():
    made = gan()
    losses = made(batch(), "discriminator")
    assert losses.parts["penalty"] > 0
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in made.discriminator.parameters())
    plain = gan(p=0.0)
    plain.load_state_dict({**made.state_dict(), "augment.p": torch.tensor(0.0)})
    assert plain(batch(), "discriminator").parts["penalty"] != losses.parts["penalty"]


@pytest.mark.parametrize("player", ["generator", "discriminator"])
def test_the_loss_of_a_batch_is_the_mean_over_its_parts(player):
    made = gan()
    whole = made(batch(), player).total
    halves = [made(batch()[rows], player).total for rows in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(whole, sum(halves) / 2, rtol=1e-4)


@pytest.mark.parametrize(("score", "direction"), [(1.0, 1), (-1.0, -1)])
def test_p_moves_by_the_pictures_seen(score, direction):
    made = gan().augment
    for _ in range(2):
        made.record(torch.full((25,), score))
        made.record(torch.full((25,), score))
        made.adapt()
    assert made.p.item() == pytest.approx(0.5 + direction * 100 / 1000)  # 100 pictures of 1000
    assert made.signs.abs().max() == 0


def test_p_rises_above_the_target_and_falls_below_it():
    """r_t = 0.5 and 0.7 about a target of 0.6: of 20 scores 15 and 17 are positive."""
    for right, direction in ((15, -1), (17, 1)):
        made = gan(every=1).augment
        made.record(torch.cat([torch.ones(right), -torch.ones(20 - right)]))
        made.adapt()
        assert (made.p.item() - 0.5) * direction > 0


def test_p_stays_within_its_bounds():
    made = gan(every=1, pictures=1, most=0.8).augment
    for score, bound in ((1.0, 0.8), (-1.0, 0.0)):
        made.record(torch.full((9,), score))
        made.adapt()
        assert made.p.item() == pytest.approx(bound)


def test_all_processes_move_p_by_what_all_have_seen(monkeypatch):
    """Of two processes this one has seen four pictures of score 1, the other one four of score -1: r_t = 0."""
    made = gan(every=1, target=0.1).augment
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.sub_(1))
    made.record(torch.ones(4))
    made.adapt()
    assert made.p.item() == pytest.approx(0.5 - 8 / 1000)


def test_any_gan_can_be_asked_for_it_by_name():
    config = GANConfig(8).updated({"augmentation.kind": "pipe", "augmentation.parts": "blit,noise"})
    assert config.augmentation == AugmentationConfig(("blit", "noise"))
    assert GANConfig.from_dict(config.to_dict()) == config


def test_p_can_be_held():
    made = gan(target=None)
    made(batch(), "discriminator")
    made.after_step(0)
    assert made.augment.p == 0.5


def test_p_is_kept_with_the_model():
    made = gan(every=1)
    made(batch(), "discriminator")
    made.after_step(0)
    other = gan(every=1)
    other.load_state_dict(made.state_dict())
    assert other.augment.p == made.augment.p != 0.5


def test_what_cannot_be_augmented_is_refused():
    for channels, size, message in ((2, 12, "channels"), (3, 6, "pixels")):
        with pytest.raises(ConfigError, match=message):
            pipe(channels=channels, size=size)
    for choices, message in (
        ({"p": 1.5}, "probability"), ({"p": 0.9, "most": 0.8}, "up to most"), ({"target": 1.0}, "target"),
        ({"every": 0}, "every"), ({"parts": ("blitt",)}, "blit, geometry"), ({"parts": ()}, "not none"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            AugmentationConfig(**choices)


def test_all_parts_have_enough_numbers():
    """Each subset of the parts draws no more than there are."""
    x = pictures(2)
    for parts in itertools.combinations(ALL, 5):
        pipe(1.0, parts)(x, PictureRandom(range(2)))
