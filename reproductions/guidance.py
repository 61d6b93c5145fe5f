"""Figures 54 and 55: what guidance gains and costs, by a classifier and without one, beside BigGAN's truncation.

    python reproductions/guidance.py [--n 1000]

The classifier that recognises the samples is another one than that which guides them.
"""

from __future__ import annotations

import torch
from harness import PAGES, arguments, equal, figure, gallery_run, judged, save, write

import mezzotint as mz
from mezzotint.core.drawing import draw
from mezzotint.data.grid import grid

CLASSIFIER = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
FREE = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0)
TRUNCATION = (None, 2.0, 1.0, 0.7, 0.5, 0.3, 0.1)  # of each number of z; None: as in training
SHOWN = ("fd_classifier", "is_classifier", "class_accuracy", "precision", "recall")


def main() -> None:
    asked = arguments(__doc__)
    guided, free, biggan = (mz.load(gallery_run(system)) for system in ("adm", "ddpm", "biggan"))
    more = ("is_classifier",)
    found = {
        "classifier guidance (figure 54)": {
            f"{s:g}": judged(guided, asked, more=more, classifier_guidance=s) for s in CLASSIFIER
        },
        "BigGAN's truncation (figure 54)": {
            "none" if t is None else f"{t:g}": judged(biggan, asked, more=more, truncation=t) for t in TRUNCATION
        },
        "classifier-free guidance (figure 55)": {f"{w:g}": judged(free, asked, more=more, guidance=w) for w in FREE},
    }
    drawn, (left, right) = figure("guidance", ncols=2, figsize=(8, 3.4))
    body = "![guidance](guidance.png)\n\n"
    for name, sweep in found.items():
        left.plot([row["recall"] for row in sweep.values()], [row["precision"] for row in sweep.values()], "o-")
        right.plot(
            [row["class_accuracy"] for row in sweep.values()],
            [row["fd_classifier"] for row in sweep.values()], "o-", label=name,
        )  # fmt: skip
        body += f"\n## {name}\n\n| strength | " + " | ".join(SHOWN) + " |\n|" + "---|" * (len(SHOWN) + 1) + "\n"
        for strength, row in sweep.items():
            body += f"| {strength} | " + " | ".join(f"{row[key]:.4g}" for key in SHOWN) + " |\n"
        first, *_, last = sweep.values()
        up = "rises" if last["class_accuracy"] > first["class_accuracy"] else "does **not** rise"
        score = "rises" if last["is_classifier"] > first["is_classifier"] else "does **not** rise"
        down = "falls" if last["recall"] < first["recall"] else "does **not** fall"
        best = min(sweep, key=lambda strength: sweep[strength]["fd_classifier"])
        body += f"\nFrom the weakest to the strongest, the share of recognised samples {up}, the Inception Score"
        body += f" {score} and recall {down}; the Fréchet distance is least at {best}"
        body += ", the strongest that was tried: it may be less beyond.\n" if best == list(sweep)[-1] else ".\n"
    left.set(xlabel="recall", ylabel="precision")
    right.set(xlabel="recognised", ylabel="FD (classifier)")
    right.legend(frameon=False, fontsize=8)
    save(drawn, "guidance")
    least = {name: min(row["fd_classifier"] for row in sweep.values()) for name, sweep in found.items()}
    beaten = least["classifier guidance (figure 54)"] < least["BigGAN's truncation (figure 54)"]
    body += (
        "\nThe survey, figure 54: diffusion guided by a classifier beats BigGAN in FID. That"
        f" {'holds here' if beaten else 'does **not** hold at this scale'}, the best of each sweep compared.\n"
    )
    labels = torch.arange(20) % 10
    few = [draw(biggan, 20, labels=labels, seeds=0, truncation=t) for t in (2.0, 0.5, 0.1)]
    grid(torch.cat(few), columns=10).save(PAGES / "guidance_truncation.png")
    body += (
        "\n![Truncated at 2, 0.5 and 0.1, two rows each](guidance_truncation.png)\n\nBigGAN's z truncated at 2, at 0.5"
        " and at 0.1, two rows each of the same seeds: the pictures of a class become one.\n"
    )
    rows = [draw(free, 20, labels=labels, seeds=0, guidance=w) for w in (0.0, 3.0)]
    grid(torch.cat(rows), columns=10).save(PAGES / "figure_55.png")
    body += (
        "\n![w = 0 in the two rows above, w = 3 below](figure_55.png)\n\nClassifier-free guidance as in figure 55, the"
        " same seeds: w = 0 in the two upper rows, w = 3 in the two lower ones.\n\nThe survey: more guidance makes"
        " sharper pictures, higher Inception Scores and, beyond a little, worse FID.\n"
    )
    write("guidance", "Figures 54 and 55: guidance", body, asked, found, equal("adm", "biggan", "ddpm"))


if __name__ == "__main__":
    main()
