"""Ordinary differential equations dy/dt = f(t, y): an adaptive solver in which every row of a batch walks alone.

A state y is a tensor, or a tuple of tensors for an augmented one (a picture and its log-density, say). Times are
float64 on the CPU; they may rise or fall. All of it can be differentiated through: steps count as constants.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..core.errors import ConfigError, TrainingError
from .predictions import rows

State = TypeVar("State", Tensor, tuple[Tensor, ...])
Parts = tuple[Tensor, ...]
Slope = Callable[[Tensor, State], State]  # (t, y) -> dy/dt


class Solution(NamedTuple, Generic[State]):
    """The end of an adaptive solution."""

    y: State
    evaluations: Tensor  # (B,) int64, of f, for each row: what it would have cost alone


# Dormand and Prince 1980: the times and weights of the stages, of which the last is the solution of order 5,
# and the difference between that and the embedded solution of order 4.
NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dopri5(
    f: Slope[State],
    y0: State,
    t0: float | Tensor,
    t1: float | Tensor,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_evaluations: int = 100_000,
) -> Solution[State]:
    """The state at t1 of the solution that is y0 at t0, by Dormand and Prince's pair of orders 5 and 4.

    A step h is accepted where its estimated error e is below the tolerance, and the next is h * 0.9 |e|^(-1/5), at
    most 10 times and at least 1/5 of the last, not longer right after a rejection:

        |e| = sqrt(mean((e / (atol + rtol max(|y|, |y_next|)))^2)) < 1

    Every row has its own time, step and mean, so that it does not depend on its batch; where the state is a tuple, the
    worst of its parts counts. Rows that have arrived are still evaluated, at t1, and ignored. Once per step the
    (B,) errors are brought to the CPU, for which a GPU is waited for.

    f       (t, y) -> dy/dt, t (B,) float64 on the CPU; also evaluated at t1
    y0      (B, ...), or a tuple of such; the state keeps its dtype, and the answers of f are brought to it
    t0, t1  numbers, or (B,)

    Source: Dormand and Prince 1980; the step control and first step are those of Hairer, Norsett and Wanner 1993,
    section II.4. Raises `TrainingError` where the step vanishes (f is not finite, or not smooth), `ConfigError` for
    tolerances that are not positive or more than `max_evaluations` of a row.
    """
    if not (rtol > 0 and atol > 0):
        raise ConfigError(f"tolerances must be above 0, not rtol {rtol} and atol {atol}")
    slope, y = _on_parts(f, y0), _parts(y0)
    t, end = (torch.as_tensor(s, dtype=torch.float64, device="cpu").expand(len(y[0])) for s in (t0, t1))
    direction = (end - t).sign()
    k = slope(t, y)
    h = _first_step(slope, t, y, k, end, rtol, atol)  # (B,), without sign
    evaluations, rejected = 2 * direction.abs().long(), torch.zeros_like(t, dtype=torch.bool)
    while bool((walking := t != end).any()):
        least = 10 * (torch.nextafter(t, direction * torch.inf) - t).abs()
        if bool((stuck := walking & rejected & ~(h >= least)).any()):
            raise TrainingError(f"the ODE cannot be followed beyond t = {float(t[stuck][0]):g}, where its slope is not"
                                " finite or not smooth; end before that time, or loosen rtol and atol")  # fmt: skip
        if bool((walking & (evaluations + 6 > max_evaluations)).any()):
            raise ConfigError(f"the ODE needs more than {max_evaluations} evaluations; loosen rtol and atol, or allow"
                              " more evaluations")  # fmt: skip
        t_next = t + direction * h.maximum(least)
        t_next = torch.where((t_next - end) * direction < 0, t_next, end)
        y_next, ks = _stages(slope, t, t_next, y, k)
        size = _norm(_combine(ERROR, ks, t_next - t), y, y_next, rtol, atol)  # (B,)
        accepted = walking & (size < 1)
        y, k = _where(accepted, y_next, y), _where(accepted, ks[-1], k)
        factor = torch.nan_to_num(0.9 * size**-0.2, nan=0.0).clamp(0.2, 10)
        h = (t_next - t).abs() * torch.where(rejected | ~accepted, factor.clamp(max=1), factor)
        t, rejected = torch.where(accepted, t_next, t), walking & ~accepted
        evaluations = evaluations + 6 * walking.long()
    return Solution(y[0] if isinstance(y0, Tensor) else y, evaluations)


def euler(f: Slope[State], y0: State, times: Tensor) -> State:
    """The state at the last of the times by Euler's method: order 1, one evaluation per step."""

    def step(slope: Slope[Parts], t: Tensor, t_next: Tensor, y: Parts) -> Parts:
        return _move(y, (1.0,), (slope(t, y),), t_next - t)

    return _march(step, f, y0, times)


def heun(f: Slope[State], y0: State, times: Tensor) -> State:
    """The state at the last of the times by Heun's method: order 2, two evaluations per step."""

    def step(slope: Slope[Parts], t: Tensor, t_next: Tensor, y: Parts) -> Parts:
        h = t_next - t
        k = slope(t, y)
        return _move(y, (1 / 2, 1 / 2), (k, slope(t_next, _move(y, (1.0,), (k,), h))), h)

    return _march(step, f, y0, times)


def rk4(f: Slope[State], y0: State, times: Tensor) -> State:
    """The state at the last of the times by the method of Runge and Kutta: order 4, four evaluations per step.

    f      (t, y) -> dy/dt, t () float64; y of any shape
    times  (N + 1,) rising or falling, y0 is the state at the first
    """

    def step(slope: Slope[Parts], t: Tensor, t_next: Tensor, y: Parts) -> Parts:
        h = t_next - t
        a = slope(t, y)
        b = slope(t + h / 2, _move(y, (1 / 2,), (a,), h))
        c = slope(t + h / 2, _move(y, (1 / 2,), (b,), h))
        d = slope(t_next, _move(y, (1.0,), (c,), h))
        return _move(y, (1 / 6, 1 / 3, 1 / 3, 1 / 6), (a, b, c, d), h)

    return _march(step, f, y0, times)


def _march(
    step: Callable[[Slope[Parts], Tensor, Tensor, Parts], Parts], f: Slope[State], y0: State, times: Tensor
) -> State:
    slope, y = _on_parts(f, y0), _parts(y0)
    for t, t_next in pairwise(times.double().cpu()):
        y = step(slope, t, t_next, y)
    return y[0] if isinstance(y0, Tensor) else y


def _parts(y: Tensor | Parts) -> Parts:
    return (y,) if isinstance(y, Tensor) else tuple(y)


def _on_parts(f: Slope[State], y0: State) -> Slope[Parts]:
    """f on tuples, answering in the dtypes of y0."""
    alone, dtypes = isinstance(y0, Tensor), [part.dtype for part in _parts(y0)]

    def slope(t: Tensor, y: Parts) -> Parts:
        answer = f(t, y[0] if alone else y)  # type: ignore[arg-type]
        return tuple(part.to(dtype) for part, dtype in zip(_parts(answer), dtypes))

    return slope


def _combine(weights: tuple[float, ...], ks: tuple[Parts, ...], h: Tensor) -> Parts:
    """h * sum_i weight_i k_i."""
    return tuple(rows(h, part[0]) * sum(w * k for w, k in zip(weights, part) if w) for part in zip(*ks))


def _move(y: Parts, weights: tuple[float, ...], ks: tuple[Parts, ...], h: Tensor) -> Parts:
    return tuple(part + change for part, change in zip(y, _combine(weights, ks, h)))


def _stages(slope: Slope[Parts], t: Tensor, t_next: Tensor, y: Parts, k: Parts) -> tuple[Parts, tuple[Parts, ...]]:
    """One step of Dormand and Prince: the next state, and the seven slopes, of which the last is that at its end."""
    h = t_next - t
    ks: tuple[Parts, ...] = (k,)
    for node, weights in zip(NODES, STAGES):
        y_next = _move(y, weights, ks, h)
        ks = (*ks, slope(t_next if node == 1 else t + node * h, y_next))
    return y_next, ks


def _where(choose: Tensor, yes: Parts, no: Parts) -> Parts:
    """Row by row."""

    def wide(part: Tensor) -> Tensor:
        return choose.view(-1, *[1] * (part.dim() - 1)).to(part.device, non_blocking=True)

    return tuple(torch.where(wide(a), a, b) for a, b in zip(yes, no))


def _norm(change: Parts, y: Parts, y_next: Parts, rtol: float, atol: float) -> Tensor:
    """The root of the mean square of change / (atol + rtol max(|y|, |y_next|)), for each row; the largest part."""
    sizes = []
    with torch.no_grad():
        for e, a, b in zip(change, y, y_next):
            scaled = e / (atol + rtol * a.abs().maximum(b.abs()))
            sizes.append(scaled.reshape(len(scaled), -1).square().mean(1).sqrt())
    return torch.stack(sizes).amax(0).detach().cpu().double()  # (B,)


def _first_step(
    slope: Slope[Parts], t: Tensor, y: Parts, k: Parts, end: Tensor, rtol: float, atol: float
) -> Tensor:  # (B,)
    """A step whose Euler error is about a hundredth of the tolerance (Hairer, Norsett and Wanner 1993, p. 169)."""
    length = (end - t).abs()
    d0, d1 = (_norm(part, y, y, rtol, atol) for part in (y, k))
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).minimum(length)
    h0_signed = h0 * (end - t).sign()
    k1 = slope(t + h0_signed, _move(y, (1.0,), (k,), h0_signed))
    d2 = _norm(tuple(b - a for a, b in zip(k, k1)), y, y, rtol, atol) / h0
    most = d1.maximum(d2)
    h1 = torch.where(most <= 1e-15, (1e-3 * h0).clamp(min=1e-6), (0.01 / most) ** 0.2)
    return torch.nan_to_num(h1, nan=0.0).minimum(100 * h0).minimum(length)
