"""Perceptual path length: how evenly pictures change along the way from one code to another."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..core.batch import PictureRandom, fold
from ..core.codes import lerp
from ..core.errors import ConfigError
from ..core.model import HasCode, HasStyles, Model
from .features import FeatureNetwork
from .precision import full_precision
from .results import Number

SHARE, LABEL = 1, 2  # what a pair's own random numbers are for, besides its codes


@torch.no_grad()
def perceptual_path_length(
    model: Model,
    features: FeatureNetwork,
    *,
    n: int = 1000,
    space: Literal["z", "w"] = "z",
    sampling: Literal["full", "end"] = "full",
    epsilon: float = 1e-4,
    label: int | None = None,
    seed: int = 0,
    batch_size: int = 50,
) -> Number:
    """E[ d(G(f(t)), G(f(t + eps))) / eps^2 ] over pairs of codes, f the way from one to the other.

        z:  f = slerp(z_1, z_2, t) for a normal prior, lerp for a uniform one, as the model walks (`HasCode`)
        w:  f = lerp(w_1, w_2, t) of styles w = map(z)                                            (`HasStyles`)

    The papers' d is that of the VGG network of LPIPS, which is another number. Here d is the squared Euclidean
    distance of the features of `features`, and the number is called `ppl_` and their name: numbers compare only where
    these are the same. Pictures are not rounded to grey levels first, as all other metrics do: eps is far below a step.
    They are not cropped, as the paper does with faces, and no pair is left out for being too long or too short.

    n         pairs; pair k has the seeds seed + 2k and seed + 2k + 1
    sampling  "full": t is uniform on [0, 1); "end": t = 0
    label     the class of all pictures; None: each pair's own where the model knows classes

    The spread is the standard error over pairs. Source: Karras et al. 2018 (arXiv 1812.04948), section 4.1, eq. 2-3.
    Raises `ConfigError` for a model without codes (or styles, for w), and for settings that make no sense.
    """
    if n < 2 or not 0 < epsilon < 1:
        raise ConfigError(f"a path length is of at least 2 pairs and a step between 0 and 1, not {n} and {epsilon}")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    for name, value, known in (("space", space, ("z", "w")), ("sampling", sampling, ("full", "end"))):
        if value not in known:
            raise ConfigError(f"{name} is {' or '.join(known)}, not {value!r}")
    if not isinstance(model, HasCode):
        raise ConfigError(f"{type(model).__name__} makes its pictures of no code, so there is no path to measure")
    if space == "w" and not isinstance(model, HasStyles):
        raise ConfigError(f"{type(model).__name__} has no styles w; measure in space z")
    classes: int = getattr(model.config, "classes", 0)
    if label is not None and not 0 <= label < classes:
        raise ConfigError(f"this model knows {classes} classes, and {label} is none of them")
    lengths = []
    for start in range(0, n, batch_size):
        pairs = range(start, min(start + batch_size, n))
        first, last = (model.codes([seed + 2 * k + end for k in pairs]) for end in (0, 1))
        t = torch.zeros(len(pairs), dtype=torch.float64)
        if sampling == "full":
            t = PictureRandom([fold(seed + 2 * k, SHARE) for k in pairs]).uniform().double()
        labels = _labels(pairs, seed, label, classes)
        images = [_at(model, first, last, share, labels, space) for share in (t, t + epsilon)]
        with full_precision(images[0].device):
            before, after = (features.embed((x.float() + 1) * 127.5).features.double() for x in images)
        lengths.append(((after - before).square().sum(1) / epsilon**2).cpu())
    found = torch.cat(lengths)
    protocol: dict[str, Any] = {
        "pairs": n, "space": space, "sampling": sampling, "epsilon": epsilon, "features": features.name,
        "resize": features.resize, "crop": "none", "distance": "squared Euclidean distance of features", "seed": seed,
    }  # fmt: skip
    if features.weights:
        protocol["weights"] = features.weights
    if label is not None:
        protocol["label"] = label
    return Number(
        f"ppl_{features.name}", float(found.mean()), "lower",
        f"how quickly features change along a path in {space}, squared; no LPIPS, and comparable only with itself",
        protocol, spread=float(found.std() / n**0.5),
    )  # fmt: skip


def _at(model: Any, first: Tensor, last: Tensor, t: Tensor, labels: Tensor | None, space: str) -> Tensor:
    """Pictures (B, C, H, W) of codes (B, ...), after a share t of the way, (B,)."""
    if space == "z":
        images: Tensor = model.from_codes(model.between(first, last, t), labels)
        return images
    told = None if labels is None else labels.to(model.device)
    w1, w2 = (model.map(z.to(model.device), told) for z in (first, last))
    styled: Tensor = model.synthesise(lerp(w1, w2, t))
    return styled.clamp(-1, 1)


def _labels(pairs: range, seed: int, label: int | None, classes: int) -> Tensor | None:
    if not classes:
        return None
    if label is not None:
        return torch.full((len(pairs),), label)
    return PictureRandom([fold(seed + 2 * k, LABEL) for k in pairs]).integers(0, classes)
