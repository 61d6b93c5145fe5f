"""What a model is told: the labels of a training batch, those of the pictures that are asked of it, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .batch import Batch, PictureRandom
from .errors import ConfigError, DataError


def labels_of(batch: Batch, classes: int) -> Tensor | None:
    """A batch's labels for a model of so many classes; None for none. Raises `DataError` where they are missing."""
    if not classes:
        return None
    if batch.labels is None:
        raise DataError("this model learns from labels, and these pictures have none")
    return batch.labels


def choose_labels(n: int, labels: Tensor | Sequence[int] | None, classes: int, random: PictureRandom) -> Tensor | None:
    """The labels of n pictures to sample, drawn where none are given; None without classes. Raises `ConfigError`."""
    drawn = random.integers(0, classes) if classes else None  # also where they are given, so that the noise is the same
    return drawn if labels is None else given_labels(n, labels, classes, random.device)


def refuse_labels(labels: object) -> None:
    """Raises `ConfigError` where labels are given to a model that knows nothing of them."""
    if labels is not None:
        raise ConfigError("this model was trained without labels; leave labels away")


def refuse(**conditions: Any) -> None:
    """Raises `ConfigError` where a condition is given that the model does not take."""
    for name, given in conditions.items():
        if given is not None:
            raise ConfigError(f"this model does not take {name}; leave {name} away")


def given_pictures(x: Tensor, channels: int, size: int) -> None:
    """Raises `ConfigError` where these are no pictures (B, C, H, W) of numbers, of so many channels and pixels."""
    if not x.is_floating_point() or x.dim() != 4 or x.shape[1:] != (channels, size, size):
        raise ConfigError(
            f"this model takes pictures as numbers in [-1, 1] of the shape (B, {channels}, {size}, {size}), not"
            f" {tuple(x.shape)} of {str(x.dtype).removeprefix('torch.')}; convert or resize them"
        )


def given_codes(codes: Tensor, *shape: int, choices: int = 0) -> None:
    """Raises `ConfigError` where these are no codes (B, *shape): numbers, or 0 ... choices - 1 if that is given."""
    if choices:
        fits = not (codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool)
    else:
        fits = codes.is_floating_point()
    if not fits or codes.shape[1:] != shape or codes.dim() != len(shape) + 1:
        whole = "whole " if choices else ""
        raise ConfigError(
            f"this model takes codes as {whole}numbers of the shape (B, {', '.join(map(str, shape))}), not"
            f" {tuple(codes.shape)} of {str(codes.dtype).removeprefix('torch.')}"
        )
    if choices and len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < choices:
        raise ConfigError(f"codes are numbers from 0 to {choices - 1}, not from {codes.min()} to {codes.max()}")


def given_labels(n: int, labels: Tensor | Sequence[int], classes: int, device: torch.device) -> Tensor:
    """The labels of n pictures that somebody names, (n,) on the device. Raises `ConfigError` where they do not fit."""
    if not classes:
        refuse_labels(labels)
    try:
        given = torch.as_tensor(labels, device="cpu")  # to look at them without waiting
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"labels are the numbers of classes, from 0 to {classes - 1}, not {labels!r}") from error
    if n and (given.is_floating_point() or given.dtype == torch.bool):
        raise ConfigError(f"labels are whole numbers from 0 to {classes - 1}, not {labels!r}")
    given = given.long()
    if given.shape != (n,):
        raise ConfigError(f"{n} pictures need {n} labels, got the shape {tuple(given.shape)}")
    if n and not 0 <= int(given.min()) <= int(given.max()) < classes:
        raise ConfigError(f"labels are numbers from 0 to {classes - 1}, got {sorted(set(given.tolist()))}")
    return given.to(device)
