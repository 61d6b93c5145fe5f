"""Section 2.3: a decoder that can do without the code does without it; warm-up and free bits against that.

    python reproductions/collapse.py [--n 1000] [--likelihood-n 100]

A PixelVAE whose PixelCNN sees nearly all that was drawn before a pixel, trained on the bound itself, with its KL let in
slowly, and with free bits; beside a PixelVAE like that of the gallery, whose PixelCNN sees little, and the plain VAE.
All see equally many pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
from harness import Asked, arguments, figure, judged, pictures, save, trained, write

import mezzotint as mz
from mezzotint.core.model import Model
from mezzotint.core.records import read_metrics
from mezzotint.data import spread_over
from mezzotint.evaluation.collapse import Collapse, diagnose
from mezzotint.systems import find

SEEN = 50_000  # pictures in training

# Sees 7 + 4 x 3 = 19 rows up and columns to each side: nearly all of what was drawn before
FAR = [
    option
    for setting in ("width=16", "layers=5", "first_kernel=15", "kernel=7")
    for option in ("--set", f"pixelcnn.{setting}")
]
REMEDIES = {
    "far PixelCNN, the bound itself": ("--set", "objective.warmup_steps=0"),
    "far PixelCNN, KL let in over all of training": ("--set", "objective.warmup_steps={steps}"),
    "far PixelCNN, 0.5 free nats a dimension": (
        "--set",
        "objective.warmup_steps=0",
        "--set",
        "objective.free_bits=0.5",
    ),
}


def runs() -> dict[str, Path]:
    """What is compared; trained where it was not yet."""
    found = {
        "VAE": trained("collapse-vae", "vae", pictures=SEEN),
        "near PixelCNN": trained("collapse-near", "pixelvae", pictures=SEEN),
    }
    batch = find("pixelvae").stages[0].recipes["small"].batch_size
    for k, (name, options) in enumerate(REMEDIES.items()):
        options = [option.format(steps=SEEN // batch) for option in options]
        found[name] = trained(f"collapse-{k}", "pixelvae", *FAR, *options, pictures=SEEN)
    return found


def diagnosed(model: Model, n: int) -> Collapse:
    test = pictures("test")
    chosen = spread_over(len(test), n)
    batches = (test.batch(chosen[i : i + 250]).images for i in range(0, len(chosen), 250))
    return diagnose(model, batches, pixels=model.pixels or "levels")


def page(found: dict[str, Path], asked: Asked, budget: str) -> None:
    """collapse.md with its figure and numbers."""
    drawn, (left, right) = figure("collapse", ncols=2, figsize=(9, 3.6))
    text = "| decoder | active units | KL, nats | bits/dim | FD (classifier) | verdict |\n|---|---|---|---|---|---|\n"
    numbers, kept = {}, {}
    for name, run in found.items():
        model = mz.load(run).eval()
        code = diagnosed(model, asked.n)
        values = judged(model, asked, likelihood=True)
        text += (
            f"| {name} | {code.active_units} of {len(code.kl)} | {code.nats:.2f} | {values['bits_per_dim']:.3f} |"
            f" {values['fd_classifier']:.4g} | {code.verdict} |\n"
        )
        rows = [row for row in read_metrics(run / "metrics.jsonl") if "kl" in row]
        left.plot([row["pictures"] for row in rows], [row["kl"] for row in rows], label=name)
        right.plot(range(1, len(code.kl) + 1), code.kl.sort(descending=True).values, "o-", ms=3)
        kept[name] = code.nats
        numbers[name] = {**values, "active_units": code.active_units, "kl": code.kl.tolist()}
    left.set(xlabel="pictures seen", ylabel="KL, nats")
    left.legend(frameon=False, fontsize=7)
    right.set(xlabel="dimension", ylabel="KL, nats")
    save(drawn, "collapse")
    bare, slow, free = (kept[name] for name in REMEDIES)
    falls = "collapses" if bare < 0.1 * kept["VAE"] else "does **not** collapse"
    remedies = " and ".join(
        f"{what} {'keeps more' if nats > bare else 'does **not** keep more'} nats"
        for what, nats in (("a warm-up", slow), ("free bits", free))
    )
    body = (
        "![nats](collapse.png)\n\nLeft: nats of the code while it is learned. Right: of each dimension at the end, over"
        f" {asked.n} held-out pictures. A unit is active whose mean varies by more than 0.01 over pictures.\n\n{text}\n"
        "The survey: if the decoder is strong enough to do without z, the easiest way is to let the KL go to 0. Here"
        f" the code of the PixelCNN that sees nearly all {falls}; {remedies}.\n"
    )
    write("collapse", "Section 2.3: posterior collapse", body, asked, numbers, budget)


def main() -> None:
    asked = arguments(__doc__)
    torch.manual_seed(0)
    page(runs(), asked, f"{SEEN:,} pictures each")


if __name__ == "__main__":
    main()
