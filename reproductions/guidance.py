"""Figures 54 and 55: what guidance gains and costs, by a classifier and without one.

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
SHOWN = ("fd_classifier", "class_accuracy", "precision", "recall")


def main() -> None:
    asked = arguments(__doc__)
    guided, free = mz.load(gallery_run("adm")), mz.load(gallery_run("ddpm"))
    found = {
        "classifier guidance (figure 54)": {
            s: judged(guided, asked, classifier_guidance=s) for s in CLASSIFIER
        },
        "classifier-free guidance (figure 55)": {w: judged(free, asked, guidance=w) for w in FREE},
    }  # fmt: skip
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
            body += f"| {strength:g} | " + " | ".join(f"{row[key]:.4g}" for key in SHOWN) + " |\n"
        first, *_, last = sweep.values()
        up = "rises" if last["class_accuracy"] > first["class_accuracy"] else "does **not** rise"
        down = "falls" if last["recall"] < first["recall"] else "does **not** fall"
        best = min(sweep, key=lambda strength: sweep[strength]["fd_classifier"])
        body += f"\nFrom the weakest to the strongest guidance, the share of recognised samples {up} and recall {down}"
        body += f"; the Fréchet distance is least at {best:g}.\n"
    left.set(xlabel="recall", ylabel="precision")
    right.set(xlabel="recognised", ylabel="FD (classifier)")
    right.legend(frameon=False, fontsize=8)
    save(drawn, "guidance")
    labels = torch.arange(20) % 10
    rows = [draw(free, 20, labels=labels, seeds=0, guidance=w) for w in (0.0, 3.0)]
    grid(torch.cat(rows), columns=10).save(PAGES / "figure_55.png")
    body += (
        "\n![w = 0 in the two rows above, w = 3 below](figure_55.png)\n\nClassifier-free guidance as in figure 55, the"
        " same seeds: w = 0 in the two upper rows, w = 3 in the two lower ones.\n\nThe survey: more guidance makes"
        " sharper pictures, higher Inception Scores and, beyond a little, worse FID.\n"
    )
    write("guidance", "Figures 54 and 55: guidance", body, asked, found, equal("adm", "ddpm"))


if __name__ == "__main__":
    main()
