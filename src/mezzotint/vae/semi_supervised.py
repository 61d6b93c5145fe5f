"""Few labels and many pictures: codes and a classifier on them (M1), the class as a latent variable (M2), and both."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.batch import Batch, FewLabels
from ..core.config import Config
from ..core.errors import ConfigError
from ..core.labels import choose_labels, given_labels, labels_of
from ..core.model import Latents, Losses, Model
from ..core.precision import at_least_float32
from .gaussian import Gaussian
from .likelihoods import LikelihoodConfig, LogisticsConfig
from .model import Draws, VariationalModel
from .networks import ACTIVATIONS, ConvConfig, MLPConfig, NetworkConfig, begin, mlp
from .objectives import ELBO, Capacity, Inferred
from .posteriors import GaussianPosterior
from .vae import VAE

PAIRS = 4096  # pairs of picture and class that go through the decoder together


@dataclass(frozen=True)
class CodeClassifierConfig(Config):
    """A classifier on codes."""

    classes: int
    labelled: int = 100  # training pictures whose labels are looked at, equally many of each class

    def __post_init__(self) -> None:
        _check_classes(self.classes)
        FewLabels(self.labelled)


class CodeClassifier(Model):
    """M1 of Kingma et al. 2014, section 2.1: regression of classes on codes of a VAE that was trained without labels.

    It learns from codes drawn from q(z | x), as the paper does, and judges by their means. The paper's other classifier
    on these codes, a transductive support vector machine, is not here. Only labelled pictures are trained on.
    """

    config: CodeClassifierConfig

    def __init__(self, config: CodeClassifierConfig, codes: VAE) -> None:
        super().__init__()
        _check_codes(codes)
        self.config = config
        self.codes = codes.requires_grad_(False)
        self.linear = nn.Linear(codes.config.latent, config.classes)
        self.pixels = codes.pixels
        self.few_labels = FewLabels(config.labelled, every=1)

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """-ln p(y | z), z from q(z | x), nats, the mean over labelled pictures. Raises `DataError` without labels."""
        z = self.codes.posterior(batch.images).at(batch.random().normal(self.codes.config.latent))
        logits, labels = self.linear(z), cast("Tensor", labels_of(batch, self.config.classes))
        accuracy = (logits.argmax(1) == labels).float().mean()
        return Losses(F.cross_entropy(logits, labels), {"accuracy": accuracy})

    def features(self, images: Tensor) -> Tensor:
        """E[z | x], (B, latent)."""
        return self.codes.posterior(images).mean

    def classify(self, images: Tensor) -> Tensor:
        """Logits of p(y | E[z | x]), (B, classes)."""
        return cast("Tensor", self.linear(self.features(images)))


@dataclass(frozen=True)
class SemiSupervisedConfig(Config):
    """Pictures, classes and how many labels are looked at, code, networks, likelihood, and alpha."""

    image_size: int
    channels: int
    classes: int
    labelled: int = 100  # training pictures whose labels are looked at, equally many of each class
    every: int = 2  # one picture in so many that are trained on is labelled
    alpha: float = 0.1  # weight of the classifier's own term, in units of all N training pictures
    latent: int = 32  # dimensions of z
    network: NetworkConfig = field(default_factory=lambda: ConvConfig(channels=16))
    likelihood: LikelihoodConfig = field(default_factory=LogisticsConfig)
    objective: ELBO | Capacity = field(default_factory=ELBO)  # of both bounds

    def __post_init__(self) -> None:
        _check_semi_supervised(self)


class ClassAndCode(nn.Module):
    """The networks of M2 and its two bounds, for anything x (B, C, H, W): p(y) p(z) p(x | y, z), q(y | x), q(z | x, y).

    p(y) is uniform, p(z) = N(0, I); q(z | x, y) sees the class beside the first layer of neurons that sees all of x.

    outputs   numbers of the decoder for each place of x
    log_prob  ln p(x | y, z) of these numbers and x, (B,)
    """

    def __init__(
        self, network: NetworkConfig, channels: int, image_size: int, classes: int, latent: int, outputs: int,
        log_prob: Callable[[Tensor, Tensor], Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes, self.latent, self.log_prob = classes, latent, log_prob
        self.classifier = network.encoder(channels, image_size, classes)
        activation = ACTIVATIONS[network.activation]
        if isinstance(network, MLPConfig):
            width = network.widths[0]
            first = nn.Sequential(*network.seen(), nn.Linear(channels * image_size**2, width))
            self.first = begin(first, network.activation)
            after = [mlp(width, network.widths[1:], network.activation), nn.Linear(network.widths[-1], 2 * latent)]
        else:
            width = network.hidden
            self.first = network.encoder(channels, image_size, width)
            after = [nn.Linear(width, 2 * latent)]
        self.rest = begin(nn.Sequential(activation(), *after), network.activation)
        self.of_class = nn.Embedding(classes, width)
        nn.init.normal_(self.of_class.weight, std=0.1)
        self.decoder = network.decoder(latent + classes, outputs, image_size)

    def posterior(self, first: Tensor, labels: Tensor) -> Gaussian:
        """q(z | x, y), from `first(x)`."""
        return Gaussian.of(self.rest(first + self.of_class(labels)))

    def decode(self, labels: Tensor, z: Tensor) -> Tensor:
        """Numbers for x, (B, outputs, H, W)."""
        told = F.one_hot(labels, self.classes).to(z.dtype)
        return cast("Tensor", self.decoder(torch.cat([z, told], 1)))

    def infer(self, x: Tensor, logits: Tensor, first: Tensor, labels: Tensor | None, noise: Tensor) -> Inferred:
        """Both bounds: with q(y) all on the label of a row that has one, and q(y | x) of others, they are

            sum_y q(y) (ln p(x | y, z_y) - KL(q(z | x, y) || p(z))) - KL(q(y) || p(y)),

        which is -L(x, y) (paper, eq. 6) or -U(x) (eq. 7), the sum over classes exact. The importance weight of a row is
        sum_y p(x, y, z_y) / q(z_y | x, y), over the label alone where there is one: its mean is p(x), or p(x, y).

        logits  of q(y | x), (B, classes)
        first   `first(x)`
        labels  (B,), -1 where there is none; None: nowhere
        noise   (B, latent), the same for each class of a row
        """
        log_chance = at_least_float32(logits).log_softmax(1)  # rounded, chances do not sum to one
        told = torch.full_like(log_chance[:, 0], -1, dtype=torch.int64) if labels is None else labels
        known = told >= 0
        possible = ~known[:, None] | (told[:, None] == torch.arange(self.classes, device=x.device))
        log_chance = torch.where(known[:, None], torch.zeros_like(log_chance), log_chance)  # on the label: ln 1
        rows, classes = possible.nonzero(as_tuple=True)  # (P,)
        chance = log_chance.exp()[rows, classes]
        posterior = self.posterior(first[rows], classes)
        z = posterior.at(noise[rows])
        parts = [
            self.log_prob(self.decode(classes[part], z[part]), x[rows[part]])
            for part in torch.arange(len(rows), device=x.device).split(PAIRS)
        ]
        log_likelihood, kl = torch.cat(parts), posterior.kl()

        def expected(values: Tensor) -> Tensor:
            """Sum of q(y) times the values of a row's classes."""
            weighted = values * chance.view(-1, *[1] * (values.dim() - 1))
            return values.new_zeros(len(x), *values.shape[1:]).index_add(0, rows, weighted)

        class_kl = expected(log_chance[rows, classes] + math.log(self.classes))
        log_joint = log_likelihood + Gaussian.standard(z).log_prob(z) - posterior.log_prob(z) - math.log(self.classes)
        table = torch.full_like(log_chance, -torch.inf, dtype=log_joint.dtype)
        log_weight = table.index_put((rows, classes), log_joint).logsumexp(1)
        log_likelihood = expected(log_likelihood)
        return Inferred(log_likelihood, torch.cat([class_kl[:, None], expected(kl)], 1), log_weight - log_likelihood)


class SemiSupervised(VariationalModel):
    """What M2 does alike on pictures and on codes: its loss, the classes of pictures, pictures of classes."""

    core: ClassAndCode
    alpha: float

    def forward(self, batch: Batch, player: str = "model") -> Losses:
        """J^alpha / N of the paper's eq. 9, in nats per picture:

            J^alpha = sum of L(x, y) over labelled + sum of U(x) over other pictures + alpha N E_labelled[-ln q(y | x)]

        Its mean over batches is exactly this: the loader shows labelled pictures more often than others, and the loss
        of each counts by `batch.weights`; the last term, a mean over labelled pictures, is divided by their share of
        what is shown. A picture is labelled where its label is not -1.

        Logged: the terms of the bound as the batch has them, weighted, "classification" (-ln q(y | x)) and "accuracy"
        of its labelled pictures. Another objective than the bound itself has its penalty in place of the KL, which is
        logged beside. Raises `DataError` without labels.
        """
        labels = cast("Tensor", labels_of(batch, self.core.classes))
        known = labels >= 0
        weights = torch.ones_like(known, dtype=batch.images.dtype) if batch.weights is None else batch.weights
        share = 1.0 if batch.weights is None or self.few_labels is None else 1 / self.few_labels.every
        inferred, logits = self._learned(batch)
        hits = F.cross_entropy(logits, labels.clamp_min(0), reduction="none") * known / share
        assert isinstance(self.objective, ELBO | Capacity)
        total, parts = self.objective.losses(inferred, self.steps, weights)
        accuracy = ((logits.argmax(1) == labels) / share).mean()
        told = {"classification": hits.mean().detach(), "accuracy": accuracy}
        return Losses(self.alpha * hits.mean() + total, {**parts, **told})

    @abstractmethod
    def _learned(self, batch: Batch) -> tuple[Inferred, Tensor]:
        """What is maximised of each picture, and the logits of q(y | x)."""

    def _asked(
        self, n: int, draws: Draws, temperature: float, labels: Tensor | None, source: Tensor | None
    ) -> Tensor:  # fmt: skip
        return self.generate(n, draws, temperature, choose_labels(n, labels, self.core.classes, draws.random))

    def generate(self, n: int, draws: Draws, temperature: float = 1.0, labels: Tensor | None = None) -> Tensor:
        """Numbers for the pixels of n pictures of p(x | y), z from the prior; y is drawn where no labels are given."""
        if labels is None:
            labels = cast("Tensor", choose_labels(n, None, self.core.classes, draws.random))
        return self._pixels(self.core.decode(labels, temperature * draws.normal(self.core.latent)), draws, temperature)

    @abstractmethod
    def _pixels(self, numbers: Tensor, draws: Draws | None, temperature: float) -> Tensor:
        """The numbers for pixels, from those for x; `draws` None: by the mean of whatever lies between."""

    @abstractmethod
    def _point(self, images: Tensor) -> Tensor:
        """What stands for a picture where q(y | x) is asked about it: x (B, C, H, W)."""

    def classify(self, images: Tensor) -> Tensor:
        """Logits of q(y | x), (B, classes)."""
        return cast("Tensor", self.core.classifier(self._point(images)))

    @torch.no_grad()
    def analogies(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Each picture as it would be in every class: E[x | y, E[z | x, its own]], (B, classes, C, H, W).

        Source: Kingma et al. 2014, section 4.3 and figure 1.

        labels  (B,), the pictures' own classes; None: the most probable of q(y | x)

        Raises `ConfigError` for labels that do not fit.
        """
        x, classes = self._point(images), self.core.classes
        own = self._own(images, labels)
        z = self.core.posterior(self.core.first(x), own).mean.repeat_interleave(classes, 0)
        every = torch.arange(classes, device=x.device).repeat(len(x))
        return self.likelihood.mean(self._pixels(self.core.decode(every, z), None, 0.0)).unflatten(0, (-1, classes))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """E[x | y, E[z | x, y]] with the most probable y, (B, C, H, W) in [-1, 1]."""
        own = self._own(images, None)
        z = self.core.posterior(self.core.first(self._point(images)), own).mean
        return self.likelihood.mean(self._pixels(self.core.decode(own, z), None, 0.0))

    @torch.no_grad()
    def latents(self, images: Tensor, *, seeds: int | Sequence[int] = 0) -> Latents:
        """For the diagnosis of collapse.

        means, kl  of q(z | x, y) with the most probable y, (B, latent)
        total      the KL of the bound: that of y, the mean over y of that of z, and, of M1 + M2, that of one z1
                   (picture k with seed k), (B,)
        """
        posterior = self.core.posterior(self.core.first(self._point(images)), self._own(images, None))
        return Latents(posterior.mean, posterior.kl(), self.divergence(images, seeds))

    def _own(self, images: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            return self.classify(images).argmax(1)
        return given_labels(len(images), labels, self.core.classes, images.device)


class SemiSupervisedVAE(SemiSupervised):
    """M2 of Kingma et al. 2014, sections 2.2 and 3.1.2, on pictures: p(x, y, z) = p(y) p(z) p(x | y, z).

    `elbo` bounds ln p(x): no label is looked at, and the sum over classes is exact.
    """

    config: SemiSupervisedConfig

    def __init__(self, config: SemiSupervisedConfig) -> None:
        super().__init__(config.likelihood.build(config.channels), config.objective)
        self.config, self.alpha = config, config.alpha
        self.few_labels = FewLabels(config.labelled, config.every)
        self.core = ClassAndCode(
            config.network, config.channels, config.image_size, config.classes, config.latent,
            self.likelihood.outputs, self.likelihood.log_prob,
        )  # fmt: skip

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """Logits of q(y | x), and what q(z | x, y) begins with."""
        return self.core.classifier(batch.images), self.core.first(batch.images)

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """The bound of ln p(x, y) where there is a label, of ln p(x) elsewhere."""
        logits, first = seen
        return self.core.infer(batch.images, logits, first, batch.labels, draws.normal(self.core.latent))

    def _learned(self, batch: Batch) -> tuple[Inferred, Tensor]:
        seen = self.recognise(batch)
        return self.infer(batch, seen, self.draws(batch.random())), seen[0]

    def _pixels(self, numbers: Tensor, draws: Draws | None, temperature: float) -> Tensor:
        return numbers

    def _point(self, images: Tensor) -> Tensor:
        return self.given(images).images


@dataclass(frozen=True)
class StackedConfig(Config):
    """M2 on the codes of M1: classes and how many labels are looked at, code, neurons, and alpha."""

    classes: int
    labelled: int = 100  # training pictures whose labels are looked at, equally many of each class
    every: int = 2  # one picture in so many that are trained on is labelled
    alpha: float = 0.1  # weight of the classifier's own term, in units of all N training pictures
    latent: int = 32  # dimensions of z2
    network: MLPConfig = field(default_factory=lambda: MLPConfig((256,), "softplus"))
    objective: ELBO | Capacity = field(default_factory=ELBO)  # of both bounds

    def __post_init__(self) -> None:
        _check_semi_supervised(self)


class StackedVAE(SemiSupervised):
    """M1 + M2 of Kingma et al. 2014, section 2.3: p(y) p(z2) p(z1 | y, z2) p(x | z1).

    M1, a VAE of pictures that was trained without labels, stays as it is; M2 takes its codes z1 for data, drawn anew
    from q(z1 | x) each time, with a diagonal Gaussian p(z1 | y, z2). What it maximises is its bound of ln p(z1), or of
    ln p(z1, y) where there is a label: "reconstruction" and "negative_elbo" are those of codes. `elbo` bounds ln p(x):

        ln p(x) >= E_q(z1 | x)[ln p(x | z1) - ln q(z1 | x) - U(z1)].
    """

    config: StackedConfig

    def __init__(self, config: StackedConfig, codes: VAE) -> None:
        super().__init__(codes.likelihood, config.objective)
        _check_codes(codes)
        self.config, self.alpha = config, config.alpha
        self.few_labels = FewLabels(config.labelled, config.every)
        self.codes = codes.requires_grad_(False)
        width = codes.config.latent
        self.core = ClassAndCode(
            config.network, width, 1, config.classes, config.latent, 2 * width, _code_log_prob
        )  # fmt: skip

    @property
    def picture(self) -> tuple[int, int]:
        """Those of M1."""
        return self.codes.picture

    def recognise(self, batch: Batch) -> tuple[Tensor, ...]:
        """Mean and log-deviation of q(z1 | x)."""
        return tuple(self.codes.posterior(batch.images))

    def infer(self, batch: Batch, seen: tuple[Tensor, ...], draws: Draws) -> Inferred:
        """The bound of ln p(x, y) where there is a label, of ln p(x) elsewhere; one z1 each.

        The divergence of z1 is one number, estimated: the entropy of q(z1 | x) in closed form, ln p(z1 | y, z2) drawn.
        """
        q = Gaussian(*seen)
        z1 = self._drawn(q, draws)
        inner = self._explain(z1, batch.labels, draws)
        numbers = self.codes.decoder(z1.flatten(1))
        log_likelihood = self.likelihood.log_prob(numbers, batch.images)
        divergence = -inner.log_likelihood - q.entropy()
        log_ratio = inner.log_weight - q.log_prob(z1.flatten(1))
        return Inferred(log_likelihood, torch.cat([divergence[:, None], inner.kl], 1), log_ratio)

    def _drawn(self, q: Gaussian, draws: Draws) -> Tensor:
        return q.at(draws.normal(q.mean.shape[1]))[..., None, None]  # (B, latent of M1, 1, 1)

    def _explain(self, z1: Tensor, labels: Tensor | None, draws: Draws, logits: Tensor | None = None) -> Inferred:
        logits = self.core.classifier(z1) if logits is None else logits
        return self.core.infer(z1, logits, self.core.first(z1), labels, draws.normal(self.core.latent))

    def _learned(self, batch: Batch) -> tuple[Inferred, Tensor]:
        draws = self.draws(batch.random())
        z1 = self._drawn(self.codes.posterior(batch.images), draws)
        logits = self.core.classifier(z1)
        return self._explain(z1, batch.labels, draws, logits), logits

    def _pixels(self, numbers: Tensor, draws: Draws | None, temperature: float) -> Tensor:
        p = Gaussian.of(numbers.flatten(1))
        z1 = p.mean if draws is None else p.at(draws.normal(p.mean.shape[1]), temperature)
        return cast("Tensor", self.codes.decoder(z1))

    def _point(self, images: Tensor) -> Tensor:
        """The mean of q(z1 | x)."""
        return self.codes.posterior(images).mean[..., None, None]


def _code_log_prob(numbers: Tensor, codes: Tensor) -> Tensor:
    """ln p(z1 | y, z2), (B,): means and log-variances from the decoder, (B, 2 D, 1, 1)."""
    return Gaussian.of(numbers.flatten(1)).log_prob(codes.flatten(1))


def _check_codes(codes: VAE) -> None:
    if not isinstance(codes.inference, GaussianPosterior):
        raise ConfigError("M1 draws its codes of one Gaussian for a picture; set posterior.kind=gaussian in its codes")


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise ConfigError(f"pictures of at least 2 classes are needed, not of {classes}")


def _check_semi_supervised(config: SemiSupervisedConfig | StackedConfig) -> None:
    _check_classes(config.classes)
    FewLabels(config.labelled, config.every)
    if config.every < 2:
        raise ConfigError("every is 2 or more: other pictures than labelled ones must be shown too")
    if config.alpha < 0:
        raise ConfigError(f"alpha must not be negative, but it is {config.alpha}")
    if config.latent < 1:
        raise ConfigError(f"a code has at least 1 dimension, not {config.latent}")
    if not isinstance(config.objective, ELBO | Capacity):
        raise ConfigError(
            f"the objective of the semi-supervised models is elbo or capacity, not {config.objective.kind}:"
            " both bounds are sums over classes"
        )
