"""Section 2.3: a decoder that can do without the code does without it; warm-up and free bits against that.

    python reproductions/collapse.py [--n 1000]

A PixelVAE whose PixelCNN sees nearly all that was drawn before a pixel, trained on the bound itself, with its KL let in
slowly, and with free bits; beside one whose PixelCNN sees little, as in the gallery, and the plain VAE. Every layer of
these PixelCNNs is told the code itself. All see equally many pictures: dynamically binarised MNIST, whose pixels follow
from those around them more than those of clothes do.
"""

from __future__ import annotations

import argparse
import os
from functools import cache
from pathlib import Path

import torch
from harness import PAGES, figure, save, trained, write
from mnist_nats import BINARY
from torch import Tensor

import mezzotint as mz
from mezzotint.core.records import read_metrics
from mezzotint.data import open_pictures, spread_over
from mezzotint.data.grid import grid
from mezzotint.evaluation.collapse import Collapse, diagnose
from mezzotint.evaluation.likelihood import as_shown
from mezzotint.systems import find
from mezzotint.vae.pixelvae import PixelVAE
from mezzotint.vae.vae import VectorModel

SEEN = 50_000  # pictures in training
SHOWN = 12  # in a row of the figure
BATCH = 100

TOLD = ("--set", "features=0")  # every layer of the PixelCNN is told the code itself
# It sees 7 + 4 x 3 = 19 rows up and columns to each side: nearly all of what was drawn before
FAR = [
    option
    for setting in ("width=16", "layers=5", "first_kernel=15", "kernel=7")
    for option in ("--set", f"pixelcnn.{setting}")
]
BARE = ("--set", "objective.warmup_steps=0")
FREE = 0.5  # nats a dimension
FAR_RUNS = {
    "far PixelCNN, the bound itself": ("far", BARE),
    "far PixelCNN, KL let in over half of training": ("warm", ("--set", "objective.warmup_steps={half}")),
    f"far PixelCNN, {FREE} free nats a dimension": ("free", (*BARE, "--set", f"objective.free_bits={FREE}")),
}


def runs() -> dict[str, Path]:
    """What is compared; trained where it was not yet."""

    def run(name: str, system: str, *options: str) -> Path:
        return trained(f"collapse-{name}", system, *BINARY, *options, pictures=SEEN, data="mnist")

    found = {"VAE": run("vae", "vae"), "near PixelCNN, the bound itself": run("near", "pixelvae", *TOLD, *BARE)}
    batch = find("pixelvae").stages[0].recipes["small"].batch_size
    for name, (short, options) in FAR_RUNS.items():
        options = tuple(option.format(half=SEEN // batch // 2) for option in options)
        found[name] = run(short, "pixelvae", *TOLD, *FAR, *options)
    return found


@cache
def held_out(n: int) -> list[Tensor]:
    """n held-out pictures in batches, grey."""
    test = open_pictures("mnist", split="test")
    chosen = spread_over(len(test), n)
    return [test.batch(chosen[start : start + BATCH]).images for start in range(0, len(chosen), BATCH)]


@torch.no_grad()
def bound(model: VectorModel, n: int) -> float:
    """-ELBO of held-out pictures, nats; random bits and draws of seeds from 0."""
    nats, seen = [], 0
    for images in held_out(n):
        seeds = list(range(seen, seen + len(images)))
        nats.append(-model.elbo(as_shown(images, "binary", seeds, model.device), seeds=seeds))
        seen += len(images)
    return float(torch.cat(nats).double().mean())


@torch.no_grad()
def drawn_again(model: VectorModel, images: Tensor) -> Tensor:
    """What the model makes of the code of each picture."""
    codes, seeds = model.encode(images), list(range(len(images)))
    return model.decode(codes, seeds=seeds) if isinstance(model, PixelVAE) else model.decode(codes)


def page(found: dict[str, Path], n: int) -> None:
    """collapse.md with its figures and numbers."""
    drawn, (left, right) = figure("collapse", ncols=2, figsize=(9, 3.6))
    text = "| decoder | active units | KL, nats | negative ELBO, nats | verdict |\n|---|---|---|---|---|\n"
    numbers, codes = {}, dict[str, Collapse]()
    shown = as_shown(held_out(n)[0][:SHOWN], "binary", list(range(SHOWN)), torch.device("cpu"))
    rows = [shown]
    for name, run in found.items():
        model = mz.load(run).eval()
        assert isinstance(model, VectorModel)
        code = codes[name] = diagnose(model, held_out(n), pixels="binary")
        numbers[name] = {
            "active_units": code.active_units, "nats": code.nats, "kl": code.kl.tolist(),
            "negative_elbo": bound(model, n),
        }  # fmt: skip
        text += (
            f"| {name} | {code.active_units} of {len(code.kl)} | {code.nats:.2f} | {numbers[name]['negative_elbo']:.2f}"
            f" | {code.verdict} |\n"
        )
        curve = [row for row in read_metrics(run / "metrics.jsonl") if "kl" in row]
        left.plot([row["pictures"] for row in curve], [row["kl"] for row in curve], label=name)
        right.plot(range(1, len(code.kl) + 1), code.kl.sort(descending=True).values, "o-", ms=3)
        rows.append(drawn_again(model, shown))
        print(name, numbers[name], flush=True)
    left.set(xlabel="pictures seen", ylabel="KL, nats", ylim=(0, 60))
    left.legend(frameon=False, fontsize=7)
    right.set(xlabel="dimension", ylabel="KL, nats")
    save(drawn, "collapse")
    grid(torch.cat(rows), columns=SHOWN).save(PAGES / "collapse_codes.png")
    bare, slow, free = (codes[name].nats for name in FAR_RUNS)
    share = bare / codes["VAE"].nats
    falls = f"{'collapses to' if share < 0.1 else 'does **not** collapse: it keeps'} {share:.0%} of the VAE's nats"
    prices = [numbers[name]["negative_elbo"] for name in FAR_RUNS]
    remedies = " ".join(
        f"{what} {'keeps' if nats > 2 * bare else 'does **not** keep'} more than twice as many nats ({nats:.1f} to"
        f" {bare:.1f}); its bound is {abs(more):.1f} nats {'worse' if more > 0 else 'better'}."
        for what, nats, more in (
            ("Warm-up", slow, prices[1] - prices[0]),
            ("Giving free bits", free, prices[2] - prices[0]),
        )
    )
    near = codes["near PixelCNN, the bound itself"].nats
    also = (
        f" So does that of the PixelCNN that sees 4 rows up ({near:.1f} nats)."
        if near < 0.1 * codes["VAE"].nats
        else f" That of the PixelCNN that sees 4 rows up keeps {near:.1f} nats."
    )
    body = (
        f"{text}\n![nats](collapse.png)\n\nLeft: nats of the code while it is learned. Right: of each dimension at the"
        f" end, over {n:,} held-out pictures. A unit is active whose mean varies by more than 0.01 over pictures;"
        " the verdict counts these alone, however few nats they carry.\n\n"
        "![what the codes say](collapse_codes.png)\n\nFirst row: held-out pictures. Then what each decoder of the table"
        " makes of their codes: the VAE the mean of every pixel, the others one draw. A code that says nothing is"
        " followed by any digit, or, where the PixelCNN sees little, by none.\n\n"
        "The survey: if the decoder is strong enough to do without z, the easiest way is to let the KL go to 0. Here"
        f" the code of the PixelCNN that sees nearly all {falls}.{also} {remedies}\n"
    )
    protocol = (
        f"Made by `python reproductions/collapse.py --n {n}` (threads: {os.environ.get('OMP_NUM_THREADS', 'all')}):"
        " MNIST, **dynamically** binarised, size `small`, but that every layer of the PixelCNNs is told"
        " the code, and the KL counts in full from the first step where it is not let in."
        " The far one has 16 channels, 5 layers and kernels of 15 and"
        f" 7, and sees 19 rows up. {SEEN:,} pictures each, one seed, so that tenths of a nat are noise; seeds from 0.\n"
    )
    write("collapse", "Section 2.3: posterior collapse", body, None, numbers, "", protocol)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="held-out pictures measured")
    asked = parser.parse_args()
    torch.manual_seed(0)
    page(runs(), asked.n)


if __name__ == "__main__":
    main()
