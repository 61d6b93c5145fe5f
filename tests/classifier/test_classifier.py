"""The judge: its published size, what it is invariant to, and that it learns."""

from __future__ import annotations

import pytest
import torch

import mezzotint as mz
from mezzotint.classifier.model import Classifier, ClassifierConfig, StandardisedConv2d, shifted
from mezzotint.core.batch import Batch, PictureSpec
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.systems import configure, find


@pytest.mark.parametrize(
    ("depth", "width", "millions"),
    [(28, 10, 36.5), (16, 8, 11.0), (40, 4, 8.9), (22, 8, 17.2), (16, 10, 17.1)],
)
def test_parameters_are_those_of_the_paper(depth, width, millions, truth):
    """Zagoruyko and Komodakis 2016, table 4, in millions to one decimal, for CIFAR."""
    with torch.device("meta"):
        model = Classifier(ClassifierConfig(channels=3, classes=10, depth=depth, width=width, norm="batch"))
    count = sum(p.numel() for p in model.parameters())
    what = f"parameters of WRN-{depth}-{width}, millions"
    truth("classifier", what, "Zagoruyko and Komodakis 2016, table 4", abs(count / 1e6 - millions), 0.05)


def test_the_paper_size_is_wrn_28_10():
    data = PictureSpec(32, 3, tuple("abcdefghij"))
    assert configure(find("classifier"), data, "paper")["model"] == ClassifierConfig(
        3, 10, depth=28, width=10, norm="batch", max_shift=4
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_of_a_batch_is_that_of_its_halves(training, truth):
    """So that two processes, with half a batch each, descend along the same gradient as one."""
    model = mz.create("classifier", classes=10).train(training)
    batch = Batch(torch.rand(8, 1, 28, 28) * 2 - 1, torch.arange(8), seeds=list(range(8)))
    gradients = []
    for parts in ([batch], [batch[:2], batch[2:4], batch[4:6], batch[6:]]):
        model.zero_grad()
        (sum(model(part).total for part in parts) / len(parts)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    error = (gradients[0] - gradients[1]).abs().max() / gradients[0].abs().max()
    mode = "in training" if training else "in evaluation"
    truth("classifier", f"gradient of a batch {mode}, relative", "mean over its quarters", error, 1e-6)


def test_standardised_weights_keep_mean_and_variance(truth):
    """Brock, De and Smith 2021, eq. 1: each output channel's weights have mean 0 and squares that sum to 1."""
    conv = StandardisedConv2d(5, 7, 3).double()
    torch.nn.init.uniform_(conv.weight, 3, 9)
    basis = torch.eye(45, dtype=torch.float64).view(45, 5, 3, 3)
    weights = conv(basis)[:, :, 1, 1].T  # (7, 45): what a unit at each input adds to the middle output
    truth("classifier", "sum of a channel's standardised weights", "0", weights.sum(1).abs().max().item(), 2e-14)
    truth("classifier", "sum of their squares", "1", (weights.square().sum(1) - 1).abs().max().item(), 4e-15)


def test_activations_neither_grow_nor_vanish_with_depth():
    """40 layers without normalisation of activations; a residual network without any grows like 2^blocks."""
    model = Classifier(ClassifierConfig(channels=3, classes=10, depth=40, width=2))
    h = model.stem(torch.randn(16, 3, 16, 16))
    for block in model.blocks:
        assert 0.5 < h.std() / block.beta < 2
        h = block(h)


def test_logits_of_a_picture_do_not_depend_on_its_batch(truth):
    model = mz.create("classifier", classes=10).eval()
    images = torch.rand(5, 1, 28, 28) * 2 - 1
    model.requires_grad_(False)
    alone = torch.cat([model.classify(image[None]) for image in images])
    error = (model.classify(images) - alone).abs().max()
    truth("classifier", "logits of five pictures one by one", "all at once", error, 3e-7)


def test_logits_are_linear_in_the_features():
    model = mz.create("classifier", classes=10).eval()
    images = torch.rand(3, 1, 28, 28) * 2 - 1
    assert model.features(images).shape == (3, 128)
    assert torch.equal(model.head(model.features(images)), model.classify(images))


def test_shifting_moves_rows_and_columns_and_repeats_edges():
    picture = torch.arange(12.0).view(1, 1, 3, 4)
    moved = shifted(picture.expand(3, 1, 3, 4), torch.tensor([[0, 0], [1, 0], [0, -2]]))
    assert torch.equal(moved[0], picture[0])
    assert moved[1, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert moved[2, 0, 0].tolist() == [2, 3, 3, 3]


def test_training_shifts_belong_to_the_picture_and_evaluation_has_none():
    model = mz.create("classifier", classes=3)
    batch = Batch(torch.rand(4, 1, 28, 28) * 2 - 1, torch.tensor([0, 1, 2, 0]), seeds=[1, 2, 3, 4])
    before = batch.images.clone()
    assert torch.equal(model(batch).total, model(batch).total)
    assert torch.equal(batch.images, before)
    model.eval()
    other = Batch(batch.images, batch.labels, seeds=[5, 6, 7, 8])
    assert torch.equal(model(batch).total, model(other).total)


def test_the_loss_is_the_cross_entropy(truth):
    model = mz.create("classifier", classes=3).eval()
    batch = Batch(torch.rand(4, 1, 28, 28) * 2 - 1, torch.tensor([0, 1, 2, 0]))
    losses = model(batch)
    logits = model.classify(batch.images).double()
    expected = (logits.exp().sum(1).log() - logits[torch.arange(4), batch.labels]).mean()
    truth("classifier", "loss", "-ln softmax at the label, float64", abs((losses.total - expected).item()), 3e-7)
    assert losses.parts["accuracy"] == (logits.argmax(1) == batch.labels).float().mean()


def test_it_learns_to_tell_bright_from_dark():
    model = mz.create("classifier", classes=2, image_size=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 1, 8, 8) * 0.5 + (labels * 0.4 - 0.2)[:, None, None, None]
    for _ in range(30):
        optimizer.zero_grad()
        model(Batch(images, labels)).total.backward()
        optimizer.step()
    new = torch.randn(200, 1, 8, 8) * 0.5
    new += torch.where(torch.arange(200) < 100, -0.2, 0.2)[:, None, None, None]
    guesses = model.eval().classify(new).argmax(1)
    assert (guesses == (torch.arange(200) >= 100)).float().mean() > 0.9


def test_bad_configs_and_unlabelled_pictures_are_answered():
    with pytest.raises(ConfigError, match="6 n"):
        ClassifierConfig(1, 10, depth=12)
    with pytest.raises(ConfigError, match="stride"):
        ClassifierConfig(1, 10, stride=0)
    with pytest.raises(ConfigError, match="at least 2 classes"):
        ClassifierConfig(1, 1)
    with pytest.raises(ConfigError, match="needs labels"):
        mz.create("classifier")
    with pytest.raises(DataError, match="no labels"):
        mz.create("classifier", classes=2)(Batch(torch.zeros(1, 1, 28, 28)))
