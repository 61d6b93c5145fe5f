"""Improved techniques, each beside its formula."""

from __future__ import annotations

import pytest
import torch

import mezzotint as mz
from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.gan.improved import MinibatchDiscrimination, VirtualBatchNorm


def test_closeness_of_the_pictures_of_a_batch_is_that_of_its_formula(truth):
    layer = MinibatchDiscrimination(6, kernels=3, width=4).double()
    f = torch.randn(5, 6, dtype=torch.float64)
    with torch.no_grad():
        found = layer(f)
    m = torch.stack([f @ layer.weight[:, b].detach() for b in range(3)], 1)  # (B, kernels, width)
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for i in range(5):
        for j in range(5):
            if i != j:
                expected[i] += torch.exp(-(m[i] - m[j]).abs().sum(1))
    truth("improved-gan", "minibatch discrimination", "its double sum", (found[:, 6:] - expected).abs().max(), 1e-14)
    assert torch.equal(found[:, :6], f)
    same = layer(f[:1].expand(5, -1))
    assert torch.allclose(same[:, 6:], torch.full((5, 3), 4.0, dtype=torch.float64))  # a collapsed generator


def test_virtual_batch_norm_uses_the_reference_batch_and_the_picture_itself(truth):
    norm = VirtualBatchNorm(2, reference=3).double()
    x = torch.randn(3 + 4, 2, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        found = norm(x)
        for i in range(3, 7):
            both = torch.cat([x[:3], x[i : i + 1]])
            mean, var = both.mean((0, 2, 3), keepdim=True), both.var((0, 2, 3), correction=0, keepdim=True)
            expected = (x[i] - mean[0]) / (var[0] + 1e-5).sqrt() * norm.gain + norm.bias
            error = (found[i] - expected).abs().max()
            truth("improved-gan", "virtual batch normalisation", "reference and picture as one batch", error, 1e-13)
        alone = norm(torch.cat([x[:3], x[5:6]]))
    assert torch.allclose(alone[3], found[5], atol=1e-14)  # no picture sees another


def test_the_reference_batch_is_of_the_prior(truth):
    for prior, variance in (("normal", 1.0), ("uniform", 1 / 3)):
        model = mz.create("improved-gan", image_size=8, latent=20, prior=prior, reference=500)
        z = model.generator.network.reference
        assert z.shape == (500, 20)
        truth(
            "improved-gan",
            f"variance of a reference of a {prior} prior",
            f"{variance:.3g}",
            abs(z.var() - variance),
            0.03,
        )
        assert prior == "normal" or z.abs().max() <= 1
    again = mz.create("improved-gan", image_size=8, latent=20, prior=prior, reference=500)
    assert torch.equal(again.generator.network.reference, z)


def test_players_are_pulled_to_the_mean_of_all_that_they_were(truth):
    model = mz.create("improved-gan", historical=2.0, kernels=0, image_size=8)
    seen = [[p.detach().clone() for p in model.generator.parameters()]]
    for step in range(4):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn_like(p)
        model.after_step(step)
        seen.append([p.detach().clone() for p in model.generator.parameters()])
    mean = [torch.stack(values).mean(0) for values in zip(*seen)]
    expected = 2.0 * sum((p - m).square().sum() for p, m in zip(seen[-1], mean))
    batch = Batch(torch.rand(4, 1, 8, 8) * 2 - 1, seeds=list(range(4)))
    found = model(batch, "generator").parts["historical/generator"]
    truth("improved-gan", "historical averaging", "distance from the mean", abs(found / expected - 1), 1e-5)


def test_matched_features_are_the_distance_of_their_means():
    model = mz.create("improved-gan", feature_matching=True, kernels=0, historical=0.0, image_size=8).eval()
    batch = Batch(torch.rand(6, 1, 8, 8) * 2 - 1, seeds=list(range(6)))
    with torch.no_grad():
        fake = model.generator(model.draw(batch.random()))
        features = [model.discriminator(x).features.mean(0) for x in (batch.images, fake)]
        found = model(batch, "generator").total
    assert torch.allclose(found, (features[0] - features[1]).square().sum(), rtol=1e-5)


def test_what_cannot_be_named_is_generated(truth):
    """D = Z / (Z + 1), the softmax over K classes and one more whose logit is 0."""
    model = mz.create("semi-supervised-gan", classes=4, image_size=8).eval()
    with torch.no_grad():
        verdict = model.discriminator(torch.rand(5, 1, 8, 8))
    extended = torch.cat([verdict.classes, torch.zeros(5, 1)], 1).softmax(1)
    error = (torch.sigmoid(verdict.score) - extended[:, :4].sum(1)).abs().max()
    truth("semi-supervised-gan", "D(x)", "1 - softmax of a class of generated pictures", error, 1e-6)
    assert torch.equal(model.classify(torch.rand(2, 1, 8, 8)).argmax(1) < 4, torch.tensor([True, True]))


def test_few_labels_are_learned_from_and_needed():
    model = mz.create("semi-supervised-gan", classes=3, image_size=8).train()
    batch = Batch(torch.rand(4, 1, 8, 8), torch.tensor([2, -1, 0, -1]), seeds=[0, 1, 2, 3], weights=torch.ones(4))
    found = model(batch, "discriminator").parts["classification"]
    with torch.no_grad():
        logits = model.discriminator(batch.images).classes[[0, 2]]
    assert torch.allclose(found, torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0])), atol=1e-5)
    with pytest.raises(DataError, match="labels"):
        model(Batch(batch.images), "discriminator")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="told no classes"):
        mz.create("improved-gan", image_size=8).config.updated({"classes": 2, "conditioning": "concat"})
    with pytest.raises(ConfigError, match="logistic"):
        mz.create("semi-supervised-gan", classes=3, image_size=8, loss="hinge", label_smoothing=0.0)
