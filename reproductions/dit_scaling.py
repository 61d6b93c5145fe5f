"""Figures 58 and 59: the computation of diffusion transformers against the quality of their pictures.

    python reproductions/dit_scaling.py [--n 1000]

Transformers of two widths and two patch sizes see equally many pictures, at a constant learning rate, and are judged
three times on the way: figure 58 is the end, figure 59 the way. What was trained is kept, on the way too, so that the
script goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from harness import ROOT, arguments, figure, judged, keep, save, trained, write

import mezzotint as mz
from mezzotint.core.model import Model
from mezzotint.nn.flops import multiply_adds

SIZES = {  # name: (width, depth, heads, patch)
    "96 wide, patch 4": (96, 4, 3, 4),
    "192 wide, patch 4": (192, 4, 6, 4),
    "96 wide, patch 2": (96, 4, 3, 2),
    "192 wide, patch 2": (192, 4, 6, 2),
}
BUDGETS = (4_000, 8_000, 16_000)  # pictures seen


def picture() -> tuple[torch.Tensor, ...]:
    """One picture, its time and its class."""
    return torch.zeros(1, 1, 28, 28), torch.zeros(1), torch.zeros(1, dtype=torch.long)


def seen(place: str, budget: int, options: Sequence[str]) -> Model:
    """The run, averaged, when it had seen so many pictures; trained now, or further, if it has not come so far."""
    kept = ROOT / "runs" / "reproductions" / f"{place}-{budget}"
    if not kept.exists():
        keep(mz.load(trained(place, "dit", *options, pictures=budget)), kept)
    return mz.load(kept).eval()


def compute_efficiency(cost: dict[str, float], quality: dict[str, dict[int, float]]) -> str:
    """Figure 59 in words: of two widths that were trained with about the same computation, which is better?"""
    said = "The survey: for the same computation in training, larger transformers reach better FID. Here"
    for patch in (4, 2):
        narrow, wide = f"96 wide, patch {patch}", f"192 wide, patch {patch}"
        share = cost[wide] * BUDGETS[0] / (cost[narrow] * BUDGETS[-1])
        better = "better" if quality[wide][BUDGETS[0]] < quality[narrow][BUDGETS[-1]] else "**not** better"
        said += f" {wide}, is {better} after {BUDGETS[0]:,} pictures than {narrow}, after {BUDGETS[-1]:,}, with"
        said += f" {share:.2f} times its computation{';' if patch == 4 else '.'}"
    return said


def main() -> None:
    asked = arguments(__doc__)
    cost: dict[str, float] = {}
    quality: dict[str, dict[int, float]] = {}
    for name, (width, depth, heads, patch) in SIZES.items():
        sizes = {"network.width": width, "network.depth": depth, "network.heads": heads, "network.patch": patch}
        settings = {**sizes, "decay": "constant"}
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        quality[name] = {}
        for budget in BUDGETS:
            model = seen(f"dit/{width}_{patch}", budget, options)
            quality[name][budget] = judged(model, asked, guidance=0.0)["fd_classifier"]
        cost[name] = multiply_adds(model.network, *picture()) / 1e9
    drawn, (left, right) = figure("dit_scaling", ncols=2, figsize=(8.5, 3.4))
    for name, curve in quality.items():
        left.plot(cost[name], curve[BUDGETS[-1]], "o")
        left.annotate(name, (cost[name], curve[BUDGETS[-1]]), xytext=(4, 4), textcoords="offset points", fontsize=8)
        spent = [3 * cost[name] * budget / 1e3 for budget in BUDGETS]  # a step is about three evaluations
        right.plot(spent, list(curve.values()), "o-", label=name)
    left.set(xscale="log", xlabel="G multiply-adds per picture", ylabel="FD (classifier)")
    right.set(xscale="log", yscale="log", xlabel="training, T multiply-adds", ylabel="FD (classifier)")
    right.legend(frameon=False, fontsize=8)
    save(drawn, "dit_scaling")
    text = "| transformer | G multiply-adds | " + " | ".join(f"FD at {b:,} pictures" for b in BUDGETS) + " |\n"
    text += "|---|---|" + "---|" * len(BUDGETS) + "\n"
    for name, curve in quality.items():
        text += f"| {name} | {cost[name]:.4f} | " + " | ".join(f"{value:.2f}" for value in curve.values()) + " |\n"
    by_cost = sorted(cost, key=lambda name: cost[name])
    falling = [quality[name][BUDGETS[-1]] for name in by_cost]
    monotone = all(a > b for a, b in pairwise(falling))
    holds = "holds here" if monotone else "does **not** hold everywhere at this scale"
    body = (
        "![computation against quality](dit_scaling.png)\n\nThe survey: more computation per picture, by width or by"
        f" smaller patches, improves FID monotonically. That {holds}.\n\n{text}\n{compute_efficiency(cost, quality)}\n"
    )
    data = {"cost": cost, "quality": quality}
    write(
        "dit_scaling", "Figures 58 and 59: diffusion transformers", body, asked, data, f"{BUDGETS[-1]:,} pictures each"
    )


if __name__ == "__main__":
    main()
