"""Figure 15: sums and differences of codes mean something.

    python reproductions/figure_15.py [--n 4000] [--trials 50]

A DCGAN is told no classes; a classifier names those of its pictures, and brightness is easily measured. So, where the
paper has man with glasses - man + woman, here are two classes A and B of clothes, and

    z_new = z(dark B) + (z(bright A) - z(dark A))                                       (survey, eq. 37)

each the mean of three codes whose pictures are surely of their class, and among the third that is the brightest or
the darkest of it. If codes are ordered as the survey says, z_new is still of class B, and bright.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import permutations

import torch
from harness import PAGES, classifier, equal, gallery_run, write
from torch import Tensor

import mezzotint as mz
from mezzotint.core.codes import pictures_of
from mezzotint.core.model import HasCode
from mezzotint.data.grid import grid

SURE = 0.8  # probability of its class, from which a picture is surely of it
AVERAGED = 3  # codes of a mean, as in the paper
SHOWN = 8  # rows of the figure
NEAR = 0.25  # codes beside the result differ from it by up to this much in each number


@dataclass(frozen=True)
class Group:
    """The codes of one class whose pictures are dark or bright."""

    codes: Tensor  # (K, D)
    images: Tensor  # (K, C, H, W)
    brightness: float  # mean over pictures and pixels, black is 0 and white is 1

    def three(self, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """The mean of a few codes, (1, D), and their pictures."""
        chosen = torch.randperm(len(self.codes), generator=random)[:AVERAGED]
        return self.codes[chosen].mean(0, keepdim=True), self.images[chosen]


def brightness(images: Tensor) -> Tensor:
    """(B,)."""
    return (images.flatten(1).mean(1) + 1) / 2


@torch.no_grad()
def groups(model: HasCode, named: Callable[[Tensor], Tensor], n: int) -> dict[int, tuple[Group, Group]]:
    """Dark and bright codes of each class that has enough of them, of the pictures of seeds 0 ... n - 1.

    named  pictures to the probabilities of their classes
    """
    codes = model.codes(range(n)).cpu()
    images = pictures_of(model, codes)
    sure, label = named(images).max(1)
    found = {}
    for kind in range(int(label.max()) + 1):
        mine = torch.nonzero((label == kind) & (sure >= SURE)).flatten()
        third = len(mine) // 3
        if third < 2 * AVERAGED:
            continue
        order = mine[brightness(images[mine]).argsort()]
        dark, bright = (
            Group(codes[part], images[part], float(brightness(images[part]).mean()))
            for part in (order[:third], order[-third:])
        )
        found[kind] = dark, bright
    return found


@dataclass(frozen=True)
class Found:
    """What became of one pair of classes."""

    still: float  # share of results that are named B
    gained: float  # brightness of results over that of dark B
    expected: float  # brightness of bright B over that of dark B
    control_still: float  # the same two where bright A is replaced by other dark A
    control_gained: float


@torch.no_grad()
def measured(
    model: HasCode, named: Callable[[Tensor], Tensor], of: Mapping[int, tuple[Group, Group]], a: int, b: int,
    trials: int,
) -> Found:  # fmt: skip
    """z(dark B) + (z(bright A) - z(dark A)) of so many threes."""
    random = torch.Generator().manual_seed(100 * a + b)
    (dark_a, bright_a), (dark_b, bright_b) = of[a], of[b]
    results, controls = [], []
    for _ in range(trials):
        base, minus = dark_b.three(random)[0], dark_a.three(random)[0]
        results.append(base + (bright_a.three(random)[0] - minus))
        controls.append(base + (dark_a.three(random)[0] - minus))
    numbers = []
    for codes in (results, controls):
        images = pictures_of(model, torch.cat(codes))
        numbers.append(float((named(images).argmax(1) == b).float().mean()))
        numbers.append(float(brightness(images).mean()) - dark_b.brightness)
    still, gained, control_still, control_gained = numbers
    return Found(still, gained, bright_b.brightness - dark_b.brightness, control_still, control_gained)


@torch.no_grad()
def sheet(model: HasCode, of: Mapping[int, tuple[Group, Group]], pairs: list[tuple[int, int]]) -> Tensor:
    """A row for each pair: three bright A, three dark A, three dark B, the result, and two pictures near it."""
    rows = []
    for a, b in pairs:
        random = torch.Generator().manual_seed(100 * a + b)
        (plus, first), (minus, second) = of[a][1].three(random), of[a][0].three(random)
        base, third = of[b][0].three(random)
        result = base + (plus - minus)
        near = result + NEAR * (2 * torch.rand(2, *result.shape[1:], generator=random) - 1)
        rows += [first, second, third, pictures_of(model, torch.cat([result, near]))]
    return torch.cat(rows)


def report(
    model: HasCode, named: Callable[[Tensor], Tensor], names: tuple[str, ...], n: int, trials: int
) -> tuple[Tensor, str, list[dict[str, object]]]:
    """The figure's pictures, the text and the numbers."""
    of = groups(model, named, n)
    pairs = list(permutations(of, 2))
    if not pairs:
        raise SystemExit(f"of {n} pictures fewer than two classes have enough that are surely of them; ask for more")
    found = {pair: measured(model, named, of, *pair, trials) for pair in pairs}
    shown = pairs[:: -(-len(pairs) // SHOWN)]
    table = (
        "| A | B | named B | brighter by | bright B - dark B | control: named B | control: brighter by |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for (a, b), row in found.items():
        table += (
            f"| {names[a]} | {names[b]} | {row.still:.0%} | {row.gained:+.3f} | {row.expected:+.3f} |"
            f" {row.control_still:.0%} | {row.control_gained:+.3f} |\n"
        )
    count = len(found)
    mean = {key: sum(vars(row)[key] for row in found.values()) / count for key in vars(next(iter(found.values())))}
    half = mean["gained"] - mean["control_gained"] > 0.5 * mean["expected"]
    most = mean["still"] > 0.5
    body = (
        "![arithmetic](figure_15.png)\n\nEach row: three bright A, three dark A, three dark B; then the picture of"
        " z(dark B) + (z(bright A) - z(dark A)), each z the mean of three codes, and two pictures of codes near it.\n\n"
        f"{table}\nOver all {count} pairs: {mean['still']:.0%} of results are named B, and they are brighter than"
        f" dark B by {mean['gained']:.3f}, where bright B is by {mean['expected']:.3f}. If other dark A stand for"
        f" bright A, {mean['control_still']:.0%} are named B and they are brighter by {mean['control_gained']:.3f}.\n\n"
        "The survey: arithmetic with codes gives pictures with the meaning of the sum. Here results gain"
        f" {'more' if half else '**not** more'} than half of the brightness that there is to gain, beyond what the"
        f" control gains, and {'most' if most else '**fewer than half**'} are still of their class.\n"
    )
    rows: list[dict[str, object]] = [{"a": names[a], "b": names[b], **vars(row)} for (a, b), row in found.items()]
    return sheet(model, of, shown), body, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=4000, help="pictures among which codes are chosen")
    parser.add_argument("--trials", type=int, default=50, help="sums for each pair of classes")
    asked = parser.parse_args()
    judge, model = classifier(), mz.load(gallery_run("dcgan"))

    @torch.no_grad()
    def named(images: Tensor) -> Tensor:
        return torch.cat([judge.classify(part).softmax(1) for part in images.split(256)])

    pictures, body, rows = report(model, named, judge.classes, asked.n, asked.trials)
    PAGES.mkdir(parents=True, exist_ok=True)
    grid(pictures, columns=3 * AVERAGED + 3).save(PAGES / "figure_15.png")
    protocol = (
        f"Made by `python reproductions/figure_15.py --n {asked.n} --trials {asked.trials}`: the gallery's `dcgan`"
        f" ({equal('dcgan')}), pictures of seeds from 0, classes named by the gallery's classifier, surely if with"
        f" probability {SURE} or more; dark and bright are the outer thirds of a class.\n"
    )
    write("figure_15", "Figure 15: sums and differences of codes", body, None, rows, "", protocol)


if __name__ == "__main__":
    main()
