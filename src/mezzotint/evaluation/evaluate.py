"""Judge a trained model: draw pictures, describe them and real ones, and report numbers with their protocol."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..core.config import Config
from ..core.errors import ConfigError, DataError
from ..core.likelihood import Pixels
from ..core.model import Classifies, HasELBO, HasLatents, HasLogProb, Model, Samples
from ..data.pictures import Transported
from ..systems import find, load
from .codebook import Quantises, usage
from .collapse import diagnose
from .describing import THUMBNAIL, Described, Describer, spread_over, thumbnails
from .distances import Estimate, accuracy, frechet_distance, inception_score, kernel_distance
from .equivariance import Moves, equivariance
from .features import INCEPTION_PLACE, ClassifierFeatures, FeatureNetwork, open_features
from .likelihood import checked_options, mean_bits_per_dim
from .neighbours import memorisation, nearest, precision_recall_density_coverage
from .path_length import perceptual_path_length
from .precision import current_precision, full_precision
from .restoration import Restores, restoration
from .results import Evaluation, Neighbours, Number, read_curves

if TYPE_CHECKING:
    from ..data.pictures import Pictures

K = 5  # neighbours whose distance is the radius of a ball
SPLITS = 10  # of the Inception Score
MOST_TRAINING = 20_000  # training pictures among which neighbours are looked for
NEIGHBOURS_SHOWN = (10, 4)  # samples, and nearest training pictures of each

MEANINGS = {  # what each number asks, and where the answer should be
    "frechet": ("lower", "Fréchet distance between means and covariances of the features of samples and real pictures"),
    "kernel": (
        "lower",
        "squared distance of feature distributions without assuming Gaussians; unbiased, so 0 is equal",
    ),
    "precision": ("higher", "share of samples among the real pictures: are they plausible?"),
    "recall": ("higher", "share of real pictures among the samples: is everything there?"),
    "density": ("higher", "in how many neighbourhoods of real pictures a sample lies, over k; real ones score about 1"),
    "coverage": ("higher", "share of real pictures with a sample in their neighbourhood"),
    "score": (
        "higher",
        "how surely samples are recognised and how evenly classes occur: from 1 to the number of classes",
    ),
    "class_accuracy": ("higher", "share of samples that the classifier takes for the class that was asked for"),
    "closer_than_test": ("0.5", "chance that a sample is nearer to the training pictures than a held-out picture is"),
    "distance_ratio": ("1", "median distance to the nearest training picture, samples over held-out; 0 is copying"),
    "copies": ("0.01", "share of samples nearer to a training picture than all but 1 % of the held-out pictures"),
    "bits_per_dim": ("lower", "bits that a pixel of a held-out picture costs"),
    "nats": ("lower", "-ln p(x) of a held-out picture whose pixels were drawn black or white anew"),
    "active_units": (
        "higher",
        "dimensions of the code whose mean depends on the picture: variance over pictures above 0.01",
    ),
    "kl": (
        "above 0",
        "nats that the code carries: divergence of the posterior from the prior, all of it that the bound counts; 0 is"
        " collapse",
    ),
    "codes_used": ("higher", "share of the codebook that held-out pictures make use of"),
    "code_perplexity": (
        "higher",
        "exp of the entropy of the codes of held-out pictures: so many, chosen equally often, would say as much; 1 is"
        " collapse",
    ),
    "restored_mse": (
        "lower",
        "squared error of a held-out picture that was corrupted and restored: mean over pixels, which are in [-1, 1]",
    ),
    "corrupted_mse": ("above restored_mse", "the same of the corrupted picture as it is: what there was to restore"),
    "accuracy": ("higher", "share of held-out pictures whose class is recognised"),
}


def evaluate(
    model: Model,
    test: Pictures,
    *,
    train: Pictures | None = None,
    n: int = 1000,
    features: FeatureNetwork | str | None = None,
    classifier: Model | str | os.PathLike[str] | None = None,
    batch_size: int = 250,
    seeds: int = 0,
    controls: Mapping[str, Any] | None = None,
    run: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int], object] = lambda done: None,
    likelihood_n: int | None = None,
    likelihood: Mapping[str, Any] | None = None,
    path_length_n: int = 0,
    path_length: Mapping[str, Any] | None = None,
    equivariance_n: int = 0,
) -> Evaluation:
    """Judge `model` by what it can do.

    A model that samples draws n pictures: picture k has seed `seeds` + k and, where the model is told classes, class
    k mod their number, whatever the batch size or number of processes. They are compared with held-out pictures
    (Fréchet and kernel distance, precision, recall, density, coverage, class recognition) and with training pictures
    (does it memorise?). A model with a likelihood or a bound gets bits per dimension (and nats, of binary pixels), one
    with a code its active units and the nats in it, one that restores corrupted pictures its squared error, one that
    classifies its accuracy.
    Sampling runs in the precision of the context around this call, everything that is measured in float32.

    test        pictures that the model never saw
    train       pictures that it learned from: for memorisation, and as a yardstick beside each number
    features    a network or its name; None: Inception where its weights are, else the classifier, or efficientnet_lite0
    classifier  a trained one or its run: recognises the classes of samples
    controls    how to sample: steps, solver, guidance
    run         the run directory, for its curves
    shard       rank and number of processes; more than one needs an initialised `torch.distributed`
    progress    called with the number of pictures just drawn
    likelihood_n
                held-out pictures whose likelihood is measured; 0: none; None: n, or fewer where the model says that it
                is slow (`Model.likelihood_n`)
    likelihood  how: options of the model's `log_prob` or `elbo`, such as terms
    path_length_n
                pairs of codes over which the perceptual path length is measured, in the same features as all else; 0:
                not. `controls` play no part in it, nor in equivariance; every process measures all of both
    path_length how: options of `perceptual_path_length`: space, sampling, epsilon, label
    equivariance_n
                pictures that are moved to measure EQ-T, EQ-T_frac and EQ-R; 0: not

    Raises `ConfigError` if the model can do nothing that is judged, or not what is asked for, `DataError` if pictures,
    model and classifier do not fit.
    """
    _check(model, test, n)
    if likelihood_n is not None and likelihood_n < 0:
        raise ConfigError(f"a likelihood is measured on 0 pictures or more, not {likelihood_n}")
    if path_length and not path_length_n:
        raise ConfigError("how a path length is measured means nothing without path_length_n, the number of its pairs")
    model.eval()
    numbers: list[Number] = []
    drawn: dict[str, Any] = {}
    with torch.no_grad():
        network, sampling = None, None
        if isinstance(model, Samples) or path_length_n:
            judge = _judge(classifier)
            network = _network(features, judge)
        if isinstance(model, Samples):
            sampling = Sampling(model, test, n, seeds, dict(controls or {}))
            _check_classes(sampling, judge)
        # before pictures are drawn, for they refuse most models; but they are the last that is told
        special = _equivariance(model, equivariance_n, seeds) if equivariance_n else []
        if network and path_length_n:
            special.append(_path_length(model, network, path_length_n, seeds, path_length or {}))
        if network and sampling:
            describe = Describer(network, judge, batch_size, shard)
            numbers, drawn = _judge_samples(sampling, train, describe, progress)
        measured = min(n, model.likelihood_n or n) if likelihood_n is None else likelihood_n
        if isinstance(model, (HasLogProb, HasELBO)) and measured:
            numbers += _likelihood(model, test, measured, batch_size, seeds, likelihood)
        if isinstance(model, HasLatents):
            numbers += _code(model, test, n, batch_size, seeds)
        if isinstance(model, Quantises):
            numbers += _codebook(model, test, n, batch_size, seeds)
        if isinstance(model, Restores):
            numbers += _restoration(model, test, n, batch_size, seeds)
        if isinstance(model, Classifies):
            numbers.append(_test_accuracy(model, test, batch_size))
    numbers += special
    if not numbers:
        raise ConfigError(
            f"{type(model).__name__} neither samples nor classifies nor restores nor has a likelihood to measure:"
            " nothing to judge"
        )
    data = {"name": test.name, "split": test.split, "pictures": len(test), "image_size": test.spec.image_size}
    curves = read_curves(Path(run)) if run is not None else {}
    return Evaluation(_facts(model), data, numbers, curves=curves, **drawn)


@dataclass(frozen=True)
class Sampling:
    """Which pictures are drawn: number k has seed `seeds` + k, and class or caption k."""

    model: Any  # a Model that Samples
    test: Pictures  # where captions come from
    n: int
    seeds: int
    controls: dict[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is asked for; () where the model is unconditional, whatever it learned from."""
        if self.by_caption:
            return self.test.spec.classes
        names = self.model.identity.data.classes if self.model.identity else self.test.spec.classes
        config = getattr(self.model, "config", None)
        told = getattr(config, "classes", 0) if config else len(names)
        return names if told == len(names) else tuple(str(k) for k in range(told))

    @property
    def by_caption(self) -> bool:
        """Whether the model is told captions."""
        return self.model.identity is not None and "captions" in find(self.model.identity.system).needs

    def labels(self, places: Sequence[int]) -> Tensor | None:
        """The class that each picture should show, (B,), whether the model is told it or a caption."""
        if self.by_caption:
            return self.test.batch([k % len(self.test) for k in places]).labels
        return torch.tensor([k % len(self.classes) for k in places]) if self.classes else None

    def draw(self, places: Sequence[int]) -> Tensor:
        """The pictures at these places, (B, C, H, W)."""
        given: dict[str, Any] = {}
        if self.by_caption:
            given["captions"] = self.test.batch([k % len(self.test) for k in places]).captions
        elif self.classes:
            given["labels"] = self.labels(places)
        if self.model.identity is not None and self.model.identity.data.source:
            given["source"] = self.test.batch([k % len(self.test) for k in places]).source
        elif self.model.completes:
            shown = spread_over(len(self.test), self.n)
            given["source"] = self.test.batch([shown[k % len(shown)] for k in places]).images
        return self.model.sample(len(places), seeds=[self.seeds + k for k in places], **given, **self.controls)

    def protocol(self) -> dict[str, Any]:
        """In words."""
        condition = f"captions of {self.test.split}" if self.by_caption else f"k mod {len(self.classes)}"
        told = {"classes": condition} if self.by_caption or self.classes else {}
        seeds = f"{self.seeds}...{self.seeds + self.n - 1}"
        precision = current_precision(self.model.device)
        if isinstance(self.test, Transported):
            told["from"] = f"{self.test.sources.split} pictures of {self.test.sources.name}"
        if self.model.completes:
            drawn = ", drawn black or white" if self.model.pixels == "binary" else ""
            told["from"] = f"what it sees of {self.test.split} pictures of {self.test.name}{drawn}"
        return {"n": self.n, "seeds": seeds, **told, **self.controls, "precision": precision}


def _judge_samples(
    sampling: Sampling, train: Pictures | None, describe: Describer, progress: Callable[[int], object]
) -> tuple[list[Number], dict[str, Any]]:
    """The numbers of n samples, and what the report shows of them."""
    test, network = sampling.test, describe.network
    fake = describe(sampling.n, sampling.draw, progress)
    real = _describe_real(sampling.model, test, sampling.n, describe)
    yardstick = _describe_real(sampling.model, train, sampling.n, describe) if train is not None else None
    described = {"features": _named(network, real.features.shape[1]), "resize": network.resize}
    reference = {"reference": f"{len(real.features)} {test.split} pictures of {test.name}"}
    values = compare(real, fake, network)
    same = compare(real, yardstick, network) if yardstick is not None else {}
    numbers = [
        _number(
            key, name, value,
            {**sampling.protocol(), **({} if key == "score" else reference), **described, **more},
            same[key][1].mean if key in same else None,
        )
        for key, (name, value, more) in values.items()
    ]  # fmt: skip
    shown: dict[str, Any] = {"samples": fake.pictures}
    labels = sampling.labels(range(sampling.n))
    if labels is not None:
        shown["labels"] = [sampling.classes[k] for k in labels[: len(fake.pictures)]]
        if fake.guesses is not None and (judge := describe.judge):
            more = {**sampling.protocol(), **reference, "classifier": judge.weights or judge.name}
            more["resize"] = judge.resize
            right = Estimate(accuracy(fake.guesses, labels), 0.0)
            numbers.append(_number("class_accuracy", "class_accuracy", right, more, _recognised(test, real)))
    if train is not None:
        memorised, shown["neighbours"] = _memorisation(sampling, train, real, fake)
        numbers += memorised
    return numbers, shown


def _recognised(test: Pictures, real: Described) -> float | None:
    """How many held-out pictures the classifier knows: it may have learned the training pictures by heart."""
    if test.labels is None or real.guesses is None:
        return None
    return accuracy(real.guesses, test.labels[spread_over(len(test), len(real.guesses))])


def _describe_real(model: Model, pictures: Pictures, n: int, describe: Describer) -> Described:
    """What samples of the model should be like, of at most n real pictures."""
    chosen = spread_over(len(pictures), n)
    return describe(len(chosen), lambda places: model.likeness(pictures.batch([chosen[k] for k in places]).images))


def compare(
    real: Described, other: Described, network: FeatureNetwork
) -> dict[str, tuple[str, Estimate, dict[str, Any]]]:
    """How near `other` is to `real`: by question, the number's name, its value, and what is special to its protocol."""
    k = min(K, len(real.features) - 1, len(other.features) - 1)
    distance = Estimate(frechet_distance(real.features, other.features), 0.0)
    kernel = {"kernel": "(x.y/D + 1)^3, unbiased, all pairs"}
    answers: dict[str, tuple[str, Estimate, dict[str, Any]]] = {
        "frechet": (network.frechet_name, distance, {}),
        "kernel": (network.kernel_name, kernel_distance(real.features, other.features), kernel),
    }
    shares = precision_recall_density_coverage(real.features, other.features, k)._asdict()
    answers |= {name: (name, Estimate(share, 0.0), {"k": k}) for name, share in shares.items()}
    if other.logits is not None:
        splits = min(SPLITS, len(other.logits))
        score = {"splits": splits, "recognised by": _recogniser(network, other.logits.shape[1])}
        answers["score"] = (network.score_name, inception_score(other.logits, splits), score)
    return answers


def _recogniser(network: FeatureNetwork, classes: int) -> str:
    """Whose classes a score is over: only one network's make it the Inception Score."""
    whose = f"the {classes} classes of {network.name}"
    return whose if network.score_name == "inception_score" else f"{whose}: not the published Inception Score"


def _named(network: FeatureNetwork, dims: int) -> str:
    return f"{network.name}, {dims}-d" + (f", {network.weights}" if network.weights else "")


def path_options(asked: Iterable[str]) -> dict[str, Any]:
    """How a path length can be measured, and how it is where nothing is said: see `perceptual_path_length`.

    Raises `ConfigError` where something else is asked for.
    """
    told = ("model", "features", "n", "seed", "batch_size")
    return checked_options(perceptual_path_length, asked, told, "a path length")


def _path_length(model: Model, network: FeatureNetwork, n: int, seed: int, options: Mapping[str, Any]) -> Number:
    """Never under autocast: a step along the path is far below one of bf16."""
    path_options(options)
    with full_precision(model.device):
        found = perceptual_path_length(model, network, n=n, seed=seed, **options)
    protocol = {name: value for name, value in found.protocol.items() if name != "weights"}
    return replace(found, protocol={**protocol, "features": _named(network, network.dims), "precision": "fp32"})


def _equivariance(model: Model, n: int, seed: int) -> list[Number]:
    """Never under autocast: what is lost to rounding would be measured too."""
    with full_precision(model.device):
        found = equivariance(cast("Moves", model), n, seed=seed)
    return [replace(number, protocol={**number.protocol, "precision": "fp32"}) for number in found.values()]


def _memorisation(
    sampling: Sampling, train: Pictures, real: Described, fake: Described
) -> tuple[list[Number], Neighbours]:
    """How near samples and held-out pictures are to the training pictures, and the nearest ones to look at."""
    chosen, likeness = spread_over(len(train), MOST_TRAINING), sampling.model.likeness
    parts = (chosen[i : i + 1000] for i in range(0, len(chosen), 1000))
    known = torch.cat([thumbnails(likeness(train.batch(part).images)) for part in parts])
    samples, k = NEIGHBOURS_SHOWN
    found = nearest(fake.thumbnails, known, min(k, len(known)))
    memorised = memorisation(found.distances[:, 0], nearest(real.thumbnails, known).distances[:, 0])
    size = min(THUMBNAIL, train.spec.image_size)
    protocol = {
        **sampling.protocol(),
        "training": f"{len(chosen)} of {len(train)} {train.split} pictures",
        "held-out": f"{len(real.thumbnails)} {sampling.test.split} pictures",
        "distance": f"Euclidean, grey levels at {size} px",
    }
    names = {"closer_than_test": memorised.closer, "distance_ratio": memorised.ratio, "copies": memorised.copies}
    numbers = [_number(name, name, Estimate(value, 0.0), protocol) for name, value in names.items()]
    rows = found.indices[:samples]  # (K, k)
    beside = likeness(train.batch([chosen[i] for i in rows.flatten().tolist()]).images).unflatten(0, rows.shape)
    distances = found.distances[:samples] / known.shape[1] ** 0.5
    return numbers, Neighbours(fake.pictures[:samples], beside, distances)


def _held_out(test: Pictures, n: int, pixels: Pixels) -> dict[str, Any]:
    """Which pictures a number is of."""
    return {"n": n, "reference": f"{test.split} pictures of {test.name}", "pixels": pixels}


def _likelihood(
    model: Any, test: Pictures, n: int, batch_size: int, seed: int, options: Mapping[str, Any] | None
) -> list[Number]:
    """Bits per dimension; of binary pixels, as papers have it, nats too."""
    result = mean_bits_per_dim(
        model, _spread(test, n, batch_size), pixels=_pixels(model), seed=seed, device=model.device, controls=options
    )
    protocol = {
        **_held_out(test, result.pictures, result.pixels),
        "value": "upper bound" if result.bound else "exact",
        **({"of": f"{model.dims} numbers of each picture, given what it is shown"} if model.dims else {}),
        **{name: value for name, value in result.controls.items() if value is not None},
        "precision": "fp32",
    }
    numbers = {"bits_per_dim": (result.value, result.error)}
    if result.pixels == "binary":
        numbers["nats"] = result.nats
    return [
        _number(name, name, Estimate(value, 0.0), {**protocol, "standard error": f"{error:.2g}"})
        for name, (value, error) in numbers.items()
    ]


def _code(model: Any, test: Pictures, n: int, batch_size: int, seed: int) -> list[Number]:
    """Is the code used?"""
    pixels = _pixels(model)
    found = diagnose(model, _spread(test, n, batch_size), pixels=pixels, seed=seed, device=model.device)
    protocol = {
        **_held_out(test, found.pictures, pixels),
        "dimensions": len(found.kl),
        "verdict": found.verdict,
        "precision": "fp32",
    }
    values = {
        "active_units": (float(found.active_units), found.variance),
        "kl": (found.nats, found.kl),
    }
    return [
        replace(_number(name, name, Estimate(value, 0.0), protocol), by_dimension=tuple(each.tolist()))
        for name, (value, each) in values.items()
    ]


def _codebook(model: Any, test: Pictures, n: int, batch_size: int, seed: int) -> list[Number]:
    """Are all codes used?"""
    pixels = _pixels(model)
    found = usage(model, _spread(test, n, batch_size), pixels=pixels, seed=seed, device=model.device)
    protocol = {
        **_held_out(test, found.pictures, pixels),
        "codes": len(found.shares),
        "precision": "fp32",
    }
    values = {"codes_used": found.used, "code_perplexity": found.perplexity}
    return [_number(name, name, Estimate(value, 0.0), protocol) for name, value in values.items()]


def _restoration(model: Any, test: Pictures, n: int, batch_size: int, seed: int) -> list[Number]:
    """How much of what its corruption spoils does it find again?"""
    pixels = _pixels(model)
    found = restoration(model, _spread(test, n, batch_size), pixels=pixels, seed=seed, device=model.device)
    corruption = getattr(getattr(model, "config", None), "corruption", None)
    protocol = {
        **_held_out(test, found.pictures, pixels),
        **({"corruption": _settings(corruption)} if isinstance(corruption, Config) else {}),
        "seeds": f"{seed}...{seed + found.pictures - 1}",
        "precision": "fp32",
    }
    values = {"restored_mse": found.restored, "corrupted_mse": found.corrupted}
    return [
        _number(name, name, Estimate(value, 0.0), {**protocol, "standard error": f"{error:.2g}"})
        for (name, value), error in zip(values.items(), found.errors)
    ]


def _settings(config: Config) -> str:
    """In words: masking, level 0.25."""
    settings = config.to_dict()
    kind = settings.pop("kind", type(config).__name__)
    return ", ".join([kind, *(f"{name} {value}" for name, value in settings.items())])


def _pixels(model: Any) -> Pixels:
    """What the model is shown of grey levels: what its likelihood says, or else its recipe."""
    identity = model.identity
    recipe = find(identity.system).stage(identity.stage).recipes[identity.size] if identity else None
    return model.pixels or (recipe.pixels if recipe else "levels")


def _spread(test: Pictures, n: int, batch_size: int) -> Iterator[Tensor]:
    """At most n held-out pictures, in batches."""
    chosen = spread_over(len(test), n)
    return (test.batch(chosen[i : i + batch_size]).images for i in range(0, len(chosen), batch_size))


def _test_accuracy(model: Any, test: Pictures, batch_size: int) -> Number:
    _agree("the classifier", model.identity.data.classes if model.identity else (), test.name, test.spec.classes)
    right = 0.0
    for start in range(0, len(test), batch_size):
        batch = test.batch(range(start, min(start + batch_size, len(test))))
        if batch.labels is None:
            raise DataError(f"{test.name} has no labels, so a classifier cannot be judged by it")
        with full_precision(model.device):
            logits = model.classify(batch.images.to(model.device))
        right += accuracy(logits.cpu(), batch.labels) * len(batch)
    protocol = {"n": len(test), "reference": f"{test.split} pictures of {test.name}", "precision": "fp32"}
    return _number("accuracy", "accuracy", Estimate(right / len(test), 0.0), protocol)


def _number(key: str, name: str, value: Estimate, protocol: dict[str, Any], real: float | None = None) -> Number:
    best, meaning = MEANINGS[key]
    return Number(name, value.mean, best, meaning, protocol, value.std or None, real)


def _check(model: Model, test: Pictures, n: int) -> None:
    if n < 2 or len(test) < 2:
        raise ConfigError(f"judging needs at least 2 samples and 2 held-out pictures, not {n} and {len(test)}")
    if model.identity is None:
        return
    built, given = model.identity.data, test.spec
    if (built.image_size, built.channels) != (given.image_size, given.channels):
        raise DataError(
            f"the model knows {built.image_size} px pictures of {built.channels} channel(s), and {test.name} has"
            f" {given.image_size} px pictures of {given.channels}; open the data with the model's size"
        )
    if built.source and not given.source:
        raise ConfigError("the model begins from pictures of a second set; name it with --source")


def _check_classes(sampling: Sampling, judge: ClassifierFeatures | None) -> None:
    """Class 3 must mean the same to the model, to the classifier and in the pictures."""
    test = sampling.test
    _agree("the model", sampling.classes, test.name, test.spec.classes)
    if judge:
        _agree("the classifier", judge.classes, test.name, test.spec.classes)
        _agree("the classifier", judge.classes, "the model", sampling.classes)


def _agree(one: str, its: tuple[str, ...], other: str, others: tuple[str, ...]) -> None:
    if its and others and its != others:
        raise DataError(
            f"{one} knows the classes {', '.join(its)}, and {other} the classes {', '.join(others)}; judge by pictures"
            " and a classifier of the classes that the model was trained on"
        )


def _judge(classifier: Model | str | os.PathLike[str] | None) -> ClassifierFeatures | None:
    if classifier is None:
        return None
    if isinstance(classifier, Model):
        return ClassifierFeatures(classifier)
    return ClassifierFeatures(load(classifier), weights=os.fspath(classifier))


def _network(features: FeatureNetwork | str | None, judge: ClassifierFeatures | None) -> FeatureNetwork:
    if isinstance(features, FeatureNetwork):
        return features
    if judge and features == "classifier":
        return judge
    if features is not None:
        return open_features(features)
    if os.environ.get(INCEPTION_PLACE):
        return open_features("inception")
    return judge or open_features("efficientnet_lite0")


def _facts(model: Model) -> dict[str, Any]:
    facts: dict[str, Any] = {"class": type(model).__name__}
    if model.identity:
        system = find(model.identity.system)
        facts = {
            "system": system.name,
            "title": system.title,
            "stage": model.identity.stage,
            "size": model.identity.size,
        }
    return {**facts, "parameters": sum(p.numel() for p in model.parameters())}
