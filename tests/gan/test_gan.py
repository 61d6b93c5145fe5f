"""The game of two players: who sees what, who pays for what, and which combinations train."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.nn import functional as F

import mezzotint as mz
from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.core.system import Optimizer, Recipe
from mezzotint.data import open_pictures
from mezzotint.gan.augment import AugmentationConfig
from mezzotint.gan.losses import LOSSES
from mezzotint.gan.model import GAN, GANConfig
from mezzotint.gan.networks import DCGANConfig, MLPConfig, Verdict
from mezzotint.gan.penalties import Clipping, GradientPenalty, NoPenalty, Roth, ZeroCentred
from mezzotint.gan.systems import SYSTEMS
from mezzotint.training.schedule import Budget
from mezzotint.training.trainer import Trainer

NEURONS = MLPConfig((8, 12))
CONVOLUTIONS = DCGANConfig(channels=4, levels=1, norm="none", critic_norm="none", std=None)
KINDS = ("none", "concat", "auxiliary", "projection")


def gan(**choices) -> GAN:
    """Of 8 x 8 pixels and, if a way to tell the class is among the choices, of 3 classes."""
    torch.manual_seed(1)
    classes = 3 if choices.get("conditioning", "none") != "none" else 0
    same = {"image_size": 8, "classes": classes, "latent": 4, "network": NEURONS}
    return GAN(GANConfig(**{**same, **choices}))


def batch(n: int = 6, **others) -> Batch:
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(images, torch.arange(n) % 3, seeds=list(range(n)), **others)


def scores(model: GAN, of: Batch) -> tuple[Verdict, Verdict]:
    """Of the real and of the generated pictures of a batch, without noise or augmentation."""
    labels = of.labels if model.config.classes else None
    fake = model.generator(model.draw(of.random()), labels)
    return model.discriminator(of.images, labels), model.discriminator(fake, labels)


def moving(model: GAN, player: str, of: Batch) -> None:
    """Every weight of the moving player has a gradient."""
    model.zero_grad()
    model(of, player).total.backward()
    for name, parameter in model.players()[player].named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_goes_with_every_way_to_tell_the_class_in_both_networks(loss):
    for conditioning, network in itertools.product(KINDS, (NEURONS, CONVOLUTIONS)):
        model = gan(loss=loss, conditioning=conditioning, network=network)
        if model.config.anchored:  # beyond a margin of the hinge, between which its two parts cancel
            model.discriminator.score.bias.data += 3
        for player in model.players():
            moving(model, player, batch())


@pytest.mark.parametrize("penalty", [GradientPenalty(), GradientPenalty(one_sided=True), ZeroCentred(), Roth()])
def test_every_penalty_goes_with_every_way_to_tell_the_class(penalty):
    for conditioning, network in itertools.product(KINDS, (NEURONS, CONVOLUTIONS)):
        model = gan(penalty=penalty, conditioning=conditioning, network=network)
        moving(model, "discriminator", batch())
        assert (model(batch(), "discriminator").parts["penalty"] > 0) == (penalty != GradientPenalty(one_sided=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_both_players_pay_what_the_loss_says_and_only_for_their_own_moves(loss):
    model = gan(loss=loss)
    real, fake = (verdict.score for verdict in scores(model, batch()))
    paid = model(batch(), "discriminator").total
    assert torch.allclose(paid, LOSSES[loss].discriminator(real, fake).mean())
    paid.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert torch.allclose(model(batch(), "generator").total, LOSSES[loss].generator(real, fake).mean())


def test_the_discriminator_moves_first_and_as_often_as_it_should():
    assert gan(critic_steps=3).turns(7) == ["discriminator"] * 3 + ["generator"]


def test_an_auxiliary_classifier_names_real_and_generated_pictures_and_both_players_want_it_to(truth):
    """Survey, eq. 44 and 45: D maximises L_S + L_C, and G L_C - L_S, of which it knows the generated half."""
    model, labels = gan(conditioning="auxiliary"), batch().labels
    real, fake = scores(model, batch())
    source = (F.softplus(-real.score) + F.softplus(fake.score)).mean()
    named = [F.cross_entropy(verdict.classes, labels) for verdict in (real, fake)]
    found = model(batch(), "discriminator").total - (source + named[0] + named[1])
    truth("ac-gan", "loss of the discriminator", "-(L_S + L_C)", found.abs().detach(), 5e-7)
    found = model(batch(), "generator").total - (F.softplus(-fake.score).mean() + named[1])
    truth("ac-gan", "loss of the generator", "L_S - L_C, non-saturating", found.abs().detach(), 5e-7)


def test_smoothed_labels_drift_and_weights_are_added_as_they_say():
    plain = model = gan()
    real, fake = (verdict.score for verdict in scores(plain, batch()))
    paid = plain(batch(), "discriminator").total
    for choices, more in (({"label_smoothing": 0.1}, 0.1 * real), ({"drift": 0.3}, 0.3 * real**2)):
        model = gan(**choices)
        assert torch.allclose(model(batch(), "discriminator").total, paid + more.mean())
    weights = torch.tensor([2.0, 0, 1, 1, 1, 1])
    each = LOSSES["non-saturating"].discriminator(real, fake)
    assert torch.allclose(plain(batch(weights=weights), "discriminator").total, (weights * each).mean())


def test_the_distance_of_a_critic_is_logged():
    model = gan(loss="wasserstein", penalty=GradientPenalty())
    real, fake = (verdict.score.mean() for verdict in scores(model, batch()))
    assert torch.allclose(model(batch(), "discriminator").parts["distance"], real - fake)
    assert "distance" not in gan()(batch(), "discriminator").parts


class Watching(torch.nn.Module):
    """Remembers what it is shown, and judges it by its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x, labels=None):
        self.seen.append(x.detach())
        return Verdict(x.flatten(1).mean(1), x.flatten(1), None)


@pytest.mark.parametrize(("moves", "left"), [(0, 1.0), (5, 0.5), (10, 0.0), (11, 0.0)])
def test_noise_on_all_pictures_falls_in_a_line(moves, left, truth):
    model = gan(noise=2.0, annealing_steps=10)
    model.discriminator = Watching()
    model.moves.fill_(moves)
    of = batch(200)
    model(of, "discriminator")
    model(of, "generator")
    fake = model.generator(model.draw(of.random())).detach()
    for seen, clean in zip(model.discriminator.seen, (of.images, fake, fake)):
        deviation = (seen - clean).std()
        truth("instance-noise", f"deviation after {moves} of 10 steps", "2 (1 - t)", abs(deviation - 2 * left), 0.03)
    real, fake, _ = (seen - clean for seen, clean in zip(model.discriminator.seen, (of.images, fake, fake)))
    assert left == 0 or not torch.allclose(real, fake)  # each has noise of its own


def test_noise_that_is_not_annealed_stays():
    model = gan(noise=2.0)
    model.discriminator = Watching()
    model.moves.fill_(1000)
    model(batch(200), "discriminator")
    assert (model.discriminator.seen[0] - batch(200).images).std() == pytest.approx(2, rel=0.03)


def test_the_penalty_of_roth_falls_only_if_it_is_told_how_fast(truth):
    for steps, moves, share in ((0, 500, 1.0), (10, 5, 0.1), (10, 10, 0.01), (10, 99, 0.01)):
        model = gan(penalty=Roth(2.0, final=0.01), annealing_steps=steps)
        first = model(batch(), "discriminator").parts["penalty"]
        model.moves.fill_(moves)
        then = model(batch(), "discriminator").parts["penalty"]
        truth("roth-gan", f"share of gamma after {moves} of {steps} steps", "0.01^t", abs(then / first - share), 1e-6)


def test_a_lazy_penalty_is_seldom_but_as_heavy_as_a_busy_one():
    model, busy = gan(penalty=ZeroCentred(1.0, every=3)), gan(penalty=ZeroCentred(1.0))
    always, found = busy(batch(), "discriminator").parts["penalty"], []
    for step in range(6):
        found.append(model(batch(), "discriminator").parts["penalty"])
        model.after_step(step)
    assert torch.allclose(torch.stack(found), always * torch.tensor([3.0, 0, 0, 3, 0, 0]))


class Squaring(torch.nn.Module):
    """D(x) = |x|^2 / 2, whose slope at x is x itself."""

    def forward(self, x, labels=None):
        return Verdict(x.square().flatten(1).sum(1) / 2, x.flatten(1), None)


E = torch.linspace(0.1, 0.9, 6)  # the shares of the real pictures


class Told:
    """Random numbers that are known."""

    def uniform(self):
        return E


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [(ZeroCentred(3.0), lambda x, g: 1.5 * (x**2).sum(1)), (ZeroCentred(3.0, "fake"), lambda x, g: 1.5 * (g**2).sum(1)),
     (ZeroCentred(3.0, "both"), lambda x, g: 1.5 * ((x**2).sum(1) + (g**2).sum(1))),
     (GradientPenalty(10.0), lambda x, g: 10 * ((E[:, None] * x + (1 - E[:, None]) * g).norm(dim=1) - 1) ** 2),
     (Roth(2.0, final=1.0), lambda x, g: (x**2).sum(1) * (1 + (x**2 / 2).sum(1).exp()) ** -2
                                         + (g**2).sum(1) * (1 + (-(g**2) / 2).sum(1).exp()) ** -2)],
    ids=["r1", "r2", "r1 and r2", "wgan-gp", "roth"],
)  # fmt: skip
@pytest.mark.parametrize("every", [1, 3])
def test_a_penalty_is_taken_where_it_says_and_as_often(penalty, expected, every, truth):
    model = gan(penalty=dataclasses.replace(penalty, every=every))
    model.discriminator = Squaring()
    x = batch().images
    g = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) / 4
    found = []
    for step in range(4):
        found.append(model.penalty(x, g, None, Told()))
        model.after_step(step)
    found = [value.detach() for value in found]
    once = expected(x.flatten(1), g.flatten(1)).mean()
    share = torch.tensor([1.0, 1, 1, 1] if every == 1 else [3.0, 0, 0, 3])
    error = ((torch.stack(found) - once * share) / once).abs().max()
    name = f"{penalty.kind} {getattr(penalty, 'at', '')}".strip()
    truth("gan", f"{name} penalty of D = |x|^2 / 2, every {every}", "its formula, relative", error, 2e-6)


def test_a_clipped_critic_is_clipped_at_each_of_its_turns(tmp_path):
    """Arjovsky et al. 2017, algorithm 1: neither its next move nor the generator's sees a weight outside."""
    model = mz.create("wgan", image_size=8, critic_steps=2, penalty__bound=0.01)
    largest, loss = [], model.forward

    def spying(batch, player):
        largest.append(max(p.abs().max().item() for p in model.discriminator.parameters()))
        return loss(batch, player)

    model.forward = spying
    recipe = Recipe(batch_size=8, optimizers={"model": Optimizer(lr=0.1, clip=None)}, warmup=0, ema_half_life=0)
    Trainer(model, open_pictures("fashion", image_size=8), tmp_path, recipe, Budget(pictures=8 * 6)).run()
    assert len(largest) == 6
    assert largest[0] > 0.02
    assert max(largest[1:]) == pytest.approx(0.01)
    assert max(p.abs().max() for p in model.generator.parameters()) > 0.02


def test_the_class_that_is_told_matters_to_both_players():
    other = (batch().labels + 1) % 3
    for conditioning, network in itertools.product(("concat", "projection"), (NEURONS, CONVOLUTIONS)):
        model = gan(conditioning=conditioning, network=network)
        z = model.draw(batch().random())
        assert (model.generator(z, batch().labels) - model.generator(z, other)).abs().max() > 1e-3
        x = batch().images
        changed = model.discriminator(x, batch().labels).score - model.discriminator(x, other).score
        assert changed.abs().min() > 1e-4


def test_a_projection_adds_the_likeness_to_the_class(truth):
    model, x, labels = gan(conditioning="projection"), batch().images, batch().labels
    head = model.discriminator
    features = head.body(x)
    expected = [head.embedding.weight[y] @ f + head.score.weight[0] @ f + head.score.bias[0]
                for y, f in zip(labels, features)]  # fmt: skip
    error = (head(x, labels).score - torch.stack(expected)).abs().max().detach()
    truth("projection-gan", "D(x, y)", "<v_y, phi(x)> + psi(phi(x))", error, 5e-7)


def test_what_a_discriminator_is_asked_while_watching_is_what_it_learns():
    model = gan(noise=2.0)
    model.discriminator = Watching()
    seen = model.watch(batch(100).images)
    for shown, clean in zip(model.discriminator.seen, (batch(100).images, model.sample(100))):
        assert (shown - clean).std() == pytest.approx(2, rel=0.05)
    assert 0 <= seen.numbers["right"] <= 1


def test_a_model_that_knows_classes_is_not_watched_without():
    with pytest.raises(DataError, match="learns from labels"):
        gan(conditioning="concat").watch(batch().images)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_what_says_nothing_to_a_gan_is_refused(system):
    model = mz.create(system.name, image_size=16, channels=1, classes=2)
    picture = torch.zeros(1, 1, 16, 16)
    for name, given in (("captions", ["a shoe"]), ("source", picture), ("mask", picture)):
        with pytest.raises(ConfigError, match=f"does not take {name}"):
            model.sample(1, **{name: given})


@pytest.mark.parametrize(
    ("choices", "message"),
    [({"classes": 3}, "conditioning=none does not go with 3"), ({"conditioning": "concat", "classes": 0}, "0 classes"),
     ({"latent": 0}, "latent"), ({"critic_steps": 0}, "critic_steps"), ({"annealing_steps": -1}, "annealing_steps"),
     ({"noise": -1.0}, "noise"), ({"drift": -1.0}, "drift"), ({"label_smoothing": 0.5}, "below 0.5"),
     ({"label_smoothing": 0.1, "loss": "hinge"}, "no labels to smooth"),
     ({"penalty": Roth(), "loss": "wasserstein"}, "of a logit"),
     ({"penalty": GradientPenalty(), "network": DCGANConfig()}, "critic_norm=none"),
     ({"penalty": ZeroCentred(), "network": DCGANConfig()}, "critic_norm=none"),
     *[({"loss": loss, "augmentation": AugmentationConfig()}, "augmentation.target=null")
       for loss in ("wasserstein", "relativistic", "least-squares")]],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_makes_no_sense_is_refused(choices, message):
    with pytest.raises(ConfigError, match=message):
        gan(**choices)


def test_no_penalty_and_clipping_add_nothing():
    for penalty in (NoPenalty(), Clipping()):
        assert "penalty" not in gan(penalty=penalty)(batch(), "discriminator").parts
