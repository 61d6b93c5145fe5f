"""Networks that grow and networks with styles are told classes in every way: beside the picture, named, projected."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

import mezzotint as mz
from mezzotint.core.batch import Batch
from mezzotint.gan.losses import LOSSES
from mezzotint.gan.networks import beside

FAMILIES = ("progan", "stylegan", "stylegan2", "stylegan3-t", "stylegan3-r")
WAYS = ("concat", "auxiliary", "projection")


def made(name: str, way: str, **choices):
    """Of 16 pixels and 3 classes."""
    torch.manual_seed(0)
    plain = mz.create(name, image_size=16, channels=1, latent=8, network__channel_max=8)
    return type(plain)(dataclasses.replace(plain.config, classes=3, conditioning=way, **choices))


def batch() -> Batch:
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, torch.arange(6) % 3, seeds=list(range(6)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_loss_trains_both_players_however_classes_are_told(name, way):
    for loss in LOSSES:
        model = made(name, way, loss=loss)
        for player, module in model.players().items():
            model.zero_grad()
            model(batch(), player).total.backward()
            heads = {part: p for part, p in module.named_parameters() if "embedding" in part or "naming" in part}
            assert bool(heads) == (player == "generator" or way != "concat")
            for part, parameter in (*heads.items(), *list(module.named_parameters())[:2]):
                assert parameter.grad is not None, part
                assert parameter.grad.isfinite().all(), part
                assert parameter.grad.any(), part


@pytest.mark.parametrize("name", FAMILIES)
def test_the_score_depends_on_the_class_unless_it_is_named(name):
    x, labels = batch().images, batch().labels
    for way in WAYS:
        judge = made(name, way).discriminator
        changed = judge(x, labels).score - judge(x, (labels + 1) % 3).score
        assert (changed.abs().min() > 1e-5) == (way != "auxiliary")
        assert (judge(x, labels).classes is None) == (way != "auxiliary")


@pytest.mark.parametrize("name", FAMILIES)
def test_both_players_want_named_classes_right(name, truth):
    """Survey, eq. 44 and 45."""
    model, of = made(name, "auxiliary"), batch()
    real = model.verdict(of.images, of.labels).classes
    parts = model(of, "discriminator").parts
    fake = model.verdict(model.fakes(of.labels, of.random()), of.labels).classes
    expected = F.cross_entropy(real, of.labels) + F.cross_entropy(fake, of.labels)
    error = (parts["class/discriminator"] - expected).abs().detach()
    truth(name, "what misnamed classes cost the discriminator", "-L_C", error, 1e-6)


def test_a_class_beside_a_picture_is_a_map_of_ones_among_maps_of_zeros():
    x = torch.randn(2, 1, 2, 2)
    found = beside(x, torch.tensor([2, 0]), 3)
    assert torch.equal(found[:, :1], x)
    zeros, ones = torch.zeros(2, 2), torch.ones(2, 2)
    assert torch.equal(
        found[:, 1:], torch.stack([torch.stack([zeros, zeros, ones]), torch.stack([ones, zeros, zeros])])
    )
