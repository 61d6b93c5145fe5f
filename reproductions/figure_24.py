"""Figure 24: details that stick to the screen while a picture moves, and their cure.

    python reproductions/figure_24.py [--n 50] [--frames 48] [--pictures 80000] [--image-size 64]

StyleGAN 2 and StyleGAN 3 of table II: what both begin with is moved up and down, and styles go round between pictures.
One column of pixels of each frame, side by side, makes a strip: what sticks to the screen becomes a horizontal streak.
Measured: how much of what changes, changes against the motion.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import PAGES, agrees, figure, save, write
from table_2 import Budget, budget_options
from torch import Tensor
from torch.nn import functional as F

import mezzotint as mz
from mezzotint.data.grid import grid
from mezzotint.evaluation.equivariance import REACH, shifted_by_sinc
from mezzotint.nn.motion import rigid
from mezzotint.nn.resampling import blur

NAMES = ("StyleGAN2", "StyleGAN3-T")
SMOOTHING = (1.0, 4.0, 6.0, 4.0, 1.0)  # what a picture is without its details
SHOWN, STOPS = 2, 4  # pictures of the animations; pictures between which styles go round
SCALE, SECONDS = 3, 3.0  # of the animations
Motion = Sequence[float]  # shifts down, in pixels, one for each frame


def up_and_down(frames: int, size: int) -> list[float]:
    """Shifts of an eighth of the picture either way and back, beginning and ending at 0."""
    return [REACH * size * math.sin(2 * math.pi * k / frames) for k in range(frames)]


@torch.no_grad()
def moving(model: Any, seed: int, shifts: Motion, size: int) -> Tensor:
    """The picture of one seed, its first layer moved by each shift, (T, C, H, W), not clipped."""
    motions = torch.stack([rigid(0.0, (0.0, y / size)) for y in shifts])
    parts = motions.split(16)
    return torch.cat([model.moved(len(part), part, seeds=[seed] * len(part)) for part in parts])


@torch.no_grad()
def walking(model: Any, seed: int, frames: int) -> Tensor:
    """Pictures of styles on a closed way through those of some seeds, (T, C, H, W), always with the same noise."""
    w = model.map(model.codes(range(seed, seed + STOPS)))
    t = torch.arange(frames) * STOPS / frames
    first, share = t.long(), (t - t.floor())[:, None]
    share = (1 - torch.cos(math.pi * share)) / 2  # it comes to rest at each
    ws = torch.lerp(w[first], w[(first + 1) % STOPS], share)
    return torch.cat([model.synthesise(part).float() for part in ws.split(16)])


def strip(frames: Tensor, column: int | None = None) -> Tensor:
    """A column of each frame (T, C, H, W), by default the middle one, side by side: (C, H, T)."""
    return frames[..., frames.shape[-1] // 2 if column is None else column].permute(1, 2, 0)


def details(images: Tensor) -> Tensor:
    """Pictures (B, C, H, W) without what a blur leaves of them."""
    taps = torch.tensor(SMOOTHING, dtype=images.dtype)
    return images - blur(images, taps / taps.sum())


@dataclass(frozen=True)
class Sticking:
    """Two mean squares over frames and pixels: what changes on the screen, and what changes besides the motion."""

    screen: float  # about the mean of all frames
    moved: float  # about their mean when each has been moved back

    @property
    def share(self) -> float:
        """0: it moves as a whole; 1: it stays where it is, and so changes only when it is moved back."""
        total = self.screen + self.moved
        return self.moved / total if total else 0.0


def sticking(frames: Tensor, shifts: Motion, fine: bool = False) -> Sticking:
    """Of frames (T, C, H, W) that ought to be one picture moved down by so many pixels; where all are known.

    fine  of their details
    """
    back, known = zip(*(shifted_by_sinc(frame[None], 0.0, -y) for frame, y in zip(frames, shifts)))
    inside = torch.stack(known).all(0)  # (H, W)
    both = frames.double(), torch.cat(back)
    if fine:
        reach = len(SMOOTHING) // 2
        unknown = F.max_pool2d((~inside)[None].float(), 2 * reach + 1, 1, reach)[0]
        both, inside = (details(both[0]), details(both[1])), unknown == 0
    return Sticking(*(float(each[..., inside].var(0, correction=0).mean()) for each in both))


def pooled(parts: Sequence[Sticking]) -> Sticking:
    """The mean over pictures."""
    count = len(parts)
    return Sticking(sum(part.screen for part in parts) / count, sum(part.moved for part in parts) / count)


def animation(panels: Sequence[Tensor], file: Path) -> None:
    """Frames (T, N, C, H, W) of each model in a panel, the panels side by side."""
    columns = torch.stack(list(panels), 2).clamp(-1, 1)  # (T, N, models, C, H, W)
    sheets = [grid(frame.flatten(0, 1), columns=len(panels), scale=SCALE).quantize(96) for frame in columns]
    each = max(40, round(1000 * SECONDS / len(sheets)))
    sheets[0].save(file, save_all=True, append_images=sheets[1:], duration=each, loop=0)


def strips(moved: Mapping[str, Tensor], walked: Mapping[str, Tensor], ideal: Mapping[str, Tensor]) -> None:
    """figure_24.png: a column for each model; moved, moved as a whole, and on the way between styles."""
    rows = {"input moved": moved, "first frame moved": ideal, "styles on their way": walked}
    drawn, axes = figure("figure_24", nrows=len(rows), ncols=len(moved), figsize=(7.5, 2.3 * len(rows)), squeeze=False)
    for row, (what, frames) in zip(axes, rows.items()):
        for place, (name, each) in zip(row, frames.items()):
            levels = (strip(each).clamp(-1, 1).permute(1, 2, 0) + 1) / 2  # (H, T, C)
            place.imshow(levels.expand(-1, -1, 3), aspect="auto", interpolation="nearest")
            place.set(title=f"{name}: {what}", xticks=[], yticks=[], xlabel="time", ylabel="middle column")
    save(drawn, "figure_24")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=50, help="pictures that are measured")
    parser.add_argument("--frames", type=int, default=48, help="of the animations and of each measurement")
    budget_options(parser)
    asked = parser.parse_args()
    budget, size = Budget(asked.pictures, asked.image_size, asked.data), asked.image_size
    models = {name: mz.load(budget.run(name)).eval() for name in NAMES}
    shifts = up_and_down(asked.frames, size)
    found: dict[str, dict[str, Sticking]] = {}
    moved: dict[str, list[Tensor]] = {}
    for name, model in models.items():
        whole, fine = [], []
        moved[name] = []
        for seed in range(max(asked.n, SHOWN)):
            frames = moving(model, seed, shifts, size)
            if seed < SHOWN:
                moved[name].append(frames)
            whole.append(sticking(frames, shifts))
            fine.append(sticking(frames, shifts, fine=True))
        found[name] = {"whole pictures": pooled(whole[: asked.n]), "details": pooled(fine[: asked.n])}
        print(name, {what: round(value.share, 4) for what, value in found[name].items()}, flush=True)
    PAGES.mkdir(parents=True, exist_ok=True)
    walked = {name: [walking(model, STOPS * k, asked.frames) for k in range(SHOWN)] for name, model in models.items()}
    animation([torch.stack(each, 1) for each in moved.values()], PAGES / "figure_24.gif")
    animation([torch.stack(each, 1) for each in walked.values()], PAGES / "figure_24_walk.gif")
    ideal = {
        name: torch.cat([shifted_by_sinc(each[0][:1], 0.0, y)[0] for y in shifts]).float()
        for name, each in moved.items()
    }
    strips(*({name: each[0] for name, each in kind.items()} for kind in (moved, walked)), ideal)
    text = "| model | what | change on the screen | change besides the motion | share that sticks |\n"
    text += "|---|---|---|---|---|\n"
    for name, kinds in found.items():
        for what, value in kinds.items():
            text += f"| {name} | {what} | {value.screen:.4g} | {value.moved:.4g} | {value.share:.1%} |\n"
    order = tuple(reversed(NAMES))
    fine = {name: kinds["details"].share for name, kinds in found.items()}
    body = (
        f"![moved](figure_24.gif)\n\nLeft {NAMES[0]}, right {NAMES[1]}: what both begin with moves up and down by an"
        " eighth of the picture, styles and noise stay.\n\n"
        f"![on the way](figure_24_walk.gif)\n\nThe same two; styles go round between {STOPS} pictures.\n\n"
        "![strips](figure_24.png)\n\nThe middle column of each frame, side by side. Where details stick to the screen"
        f" there are horizontal streaks.\n\n{text}\nMean squares over {asked.n} pictures, {asked.frames} frames each:"
        " about the mean of the frames, and about their mean after each has been moved back; the share is the second"
        " over the sum. It is 0 for a picture that moves as a whole, 1 for one that stays. Details are what a blur"
        " of five pixels leaves out.\n\nThe survey: in StyleGAN 2 details stay at fixed pixels, in StyleGAN 3 they"
        f" follow. Share of details that sticks: {agrees(order, fine)}\n"
    )
    protocol = (
        f"Made by `python reproductions/figure_24.py --n {asked.n} --frames {asked.frames} --pictures {asked.pictures}"
        f" --image-size {asked.image_size} --data {asked.data}`: the runs of table II, {asked.pictures:,} pictures seen"
        " by each; StyleGAN 2 begins with waves; seeds from 0.\n"
    )
    rows = {
        name: {what: {**vars(value), "share": value.share} for what, value in kinds.items()}
        for name, kinds in found.items()
    }
    write("figure_24", "Figure 24: details that stick", body, None, rows, "", protocol)


if __name__ == "__main__":
    main()
