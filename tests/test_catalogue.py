"""Every system of the catalogue keeps the contract (as timm's tests do for its models)."""

from __future__ import annotations

import pytest
import torch

import mezzotint as mz
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import ABILITIES, Samples, abilities
from mezzotint.core.system import Recipe
from mezzotint.data import open_pictures
from mezzotint.systems import catalogue, parameter_counts

SYSTEMS = {name: system for name, system in catalogue().items() if not name.startswith("toy")}


@pytest.fixture(scope="module")
def batch():
    """Eight real pictures."""
    pictures = open_pictures("fashion")
    found = pictures.batch(range(8))
    found.seeds = list(range(8))
    found.source = pictures.batch(range(8, 16)).images  # for systems that begin from a second set
    return found, pictures.spec


def build(name: str, spec) -> mz.Model:
    torch.manual_seed(0)
    return mz.create(
        name, image_size=spec.image_size, channels=spec.channels, classes=spec.classes, captions=spec.captions
    )


def leave_zero(model: mz.Model) -> None:
    """Off the zeros of a zero-initialised layer, behind which gradients vanish and all pictures are alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def enlarge(model: mz.Model) -> None:
    """Weights of N(0, 0.02^2) let so little through that pictures which see each other hardly change each other."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)


def quickly(model: mz.Model) -> dict:
    """Controls by which a model that takes many steps takes few."""
    return {"steps": 4} if getattr(model.config, "steps", 0) > 4 else {}


def begins(model: mz.Model) -> bool:
    """Whether it draws from given pictures: of a second set, or those of which it sees a part."""
    return model.identity.data.source or model.completes


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_parameter_of_every_player_receives_a_gradient(name, batch):
    pictures, spec = batch
    model = build(name, spec).train()
    leave_zero(model)
    for player, part in model.players().items():
        model.zero_grad()
        for moves in getattr(model, "milestones", (None,)):  # of a network that grows, not all is in use at first
            if moves is not None:
                model.grow(moves)
            losses = model(pictures, player)
            assert losses.total.shape == ()
            assert torch.isfinite(losses.total)
            assert all(value.dim() == 0 for value in losses.parts.values())
            losses.total.backward()
        still = [key for key, p in part.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert not still


@pytest.mark.parametrize("name", SYSTEMS)
def test_one_step_changes_the_loss(name, batch):
    pictures, spec = batch
    model = build(name, spec).train()
    leave_zero(model)
    players = model.players()
    for player in model.turns(0):
        optimizer = torch.optim.SGD(players[player].parameters(), lr=1e-2)
        before = model(pictures, player).total
        before.backward()
        optimizer.step()
        assert model(pictures, player).total != before
    model.after_step(0)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_loss_of_a_batch_is_the_mean_over_its_parts(name, batch):
    """What makes one process and many see the same loss."""
    pictures, spec = batch
    model = build(name, spec).train()
    if model.batch_statistics:
        enlarge(model)
    with torch.no_grad():
        whole = model(pictures, next(iter(model.players()))).total
        halves = [model(pictures[rows], next(iter(model.players()))).total for rows in (slice(0, 4), slice(4, 8))]
    if model.batch_statistics:  # as batch normalisation has it: then it must say so, and be the only reason
        assert not torch.allclose(whole, (halves[0] + halves[1]) / 2, rtol=1e-4, atol=1e-5)
        return
    assert torch.allclose(whole, (halves[0] + halves[1]) / 2, rtol=1e-4, atol=1e-5)


@pytest.fixture
def one_thread():
    """Several threads add in another order for one picture than for three: a pixel on the edge may fall otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.usefixtures("one_thread")
def test_samples_have_the_shape_and_range_of_pictures(name, batch):
    pictures, spec = batch
    model = build(name, spec).eval()
    if not isinstance(model, Samples):
        pytest.skip("draws no pictures")
    leave_zero(model)
    labels = torch.tensor([3, 1, 2]) if model.classes else None
    given = quickly(model)
    if begins(model):
        given["source"] = pictures.source[5:8]
    images = model.sample(3, labels=labels, seeds=5, **given)
    assert images.shape == (3, spec.channels, spec.image_size, spec.image_size)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1
    if "source" in given:
        given["source"] = pictures.source[6:7]
    alone = model.sample(1, labels=labels[1:2] if labels is not None else None, seeds=6, **given)
    assert torch.allclose(images[1], alone[0], atol=1e-3)  # picture k depends on seed k alone
    assert not torch.allclose(images[0], images[1], atol=1e-2)


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_says_nothing_to_a_model_is_refused_and_not_ignored(name, batch):
    pictures, spec = batch
    model = build(name, spec)
    if not isinstance(model, Samples):
        pytest.skip("draws no pictures")
    own = {"source": pictures.source[:2]} if begins(model) else {}
    for condition, given in {"captions": ["a coat", "a bag"], "mask": torch.ones(2, 1, 1, 1)}.items():
        with pytest.raises(ConfigError, match=f"does not take {condition}; leave {condition} away"):
            model.sample(2, **own, **{condition: given})


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_saved_model_draws_the_same_pictures(name, batch, tmp_path):
    pictures, spec = batch
    model = build(name, spec).eval()
    model.save(tmp_path / "model")
    again = mz.load(tmp_path / "model")
    assert again.config == model.config
    if isinstance(model, Samples):
        labels = torch.tensor([0, 1]) if model.classes else None
        given = quickly(model)
        if begins(model):
            given["source"] = pictures.source[:2]
        assert torch.equal(again.sample(2, labels=labels, **given), model.sample(2, labels=labels, **given))
    else:
        with torch.no_grad():
            assert model(pictures).total == again(pictures).total


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_entry_says_what_a_reader_wants_to_know(name):
    system = SYSTEMS[name]
    assert system.name == name == name.lower()
    assert len(system.summary) > 60
    assert system.title
    assert system.family
    assert system.needs <= {"labels", "captions", "source", "pairs", "video"}
    for stage in system.stages:
        assert "small" in stage.sizes
        assert stage.sizes.keys() == stage.recipes.keys()
        assert all(isinstance(recipe, Recipe) for recipe in stage.recipes.values())
        assert set(abilities(stage.model)) <= set(ABILITIES)
    counts = parameter_counts(system)
    assert all(count > 0 for sizes in counts.values() for count in sizes.values())
