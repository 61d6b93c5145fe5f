"""Table VI: bits/dim of improved DDPM beside DDPM and the continuous flow of a score model.

python reproductions/table_6.py [--likelihood-n 100]
"""

from __future__ import annotations

from harness import Row, agrees, arguments, equal, gallery_run, judged, table, write

import mezzotint as mz

MODELS = {
    "improved-ddpm": ("Improved DDPM", {"CIFAR": "2.94", "ImageNet": "3.53"}),
    "score-sde-vp": ("DDPM (continuous flow)", {"CIFAR": "2.99"}),
    "ddpm": ("DDPM", {"CIFAR": "3.70", "ImageNet": "3.77"}),
    "dpm": ("DPM (2015, not in the table)", {}),
}


def main() -> None:
    asked = arguments(__doc__)
    rows, bits = [], {}
    for system, (name, survey) in MODELS.items():
        here = judged(mz.load(gallery_run(system)), asked, likelihood=True)
        rows.append(Row(name, survey, here))
        bits[name] = here["bits_per_dim"]
    order = [name for name, survey in MODELS.values() if "CIFAR" in survey]
    body = (
        "Bits per dimension of held-out pictures. For the discrete chains it is the variational bound (an unbiased"
        " estimate of it from some of its terms), for the score model the likelihood of its probability-flow ODE at"
        " dequantised pictures, which bounds that of the pictures themselves. No model is told the class of a picture"
        " whose bits are counted. Samples, whose distance stands beside them, are drawn as each system draws.\n\n"
        + table(rows, ["CIFAR", "ImageNet"], ["bits_per_dim", "fd_classifier"])
        + "\n"
        + agrees(order, bits)
    )
    write("table_6", "Table VI: likelihood", body, asked, {row.name: dict(row.here) for row in rows}, equal(*MODELS))


if __name__ == "__main__":
    main()
