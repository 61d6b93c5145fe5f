"""Table VI: bits/dim of improved DDPM beside DDPM and the continuous flow of a score model.

python reproductions/table_6.py [--likelihood-n 100]
"""

from __future__ import annotations

from harness import Row, agrees, arguments, equal, gallery_run, judged, table, write

import mezzotint as mz

MODELS = {
    "improved-ddpm": ("Improved DDPM", {"CIFAR": "2.94", "ImageNet": "3.53"}),
    "score-sde-subvp": ("DDPM (continuous flow)", {"CIFAR": "2.99"}),
    "ddpm": ("DDPM", {"CIFAR": "3.70", "ImageNet": "3.77"}),
    "score-sde-vp": ("DDPM (continuous flow, VP; not in the table)", {}),
    "dpm": ("DPM (2015, not in the table)", {}),
}


def main() -> None:
    asked = arguments(__doc__)
    rows, bits, sizes = [], {}, []
    for system, (name, survey) in MODELS.items():
        model = mz.load(gallery_run(system))
        here = judged(model, asked, likelihood=True)
        sizes.append(f"{name} {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}")
        rows.append(Row(name, survey, here))
        bits[name] = here["bits_per_dim"]
    order = [name for name, survey in MODELS.values() if "CIFAR" in survey]
    body = (
        "Bits per dimension of held-out pictures. For the discrete chains it is the variational bound (an unbiased"
        " estimate of it from some of its terms), for the score model the likelihood of its probability-flow ODE at"
        " dequantised pictures, which bounds that of the pictures themselves. No model is told the class of a picture"
        " whose bits are counted. Samples, whose distance stands beside them, are drawn as each system draws.\n\nThe"
        " survey's 2.99 is that of a deep network on the sub-VP path (Song et al. 2021, table 2; on the VP path 3.28),"
        " its 2.94 that of a model trained for the bound alone; here improved DDPM has the hybrid loss, with which its"
        f" authors found better pictures. The networks are not equal; millions of parameters: {', '.join(sizes)}.\n\n"
        + table(rows, ["CIFAR", "ImageNet"], ["bits_per_dim", "fd_classifier"])
        + "\n"
        + agrees(order, bits)
    )
    write("table_6", "Table VI: likelihood", body, asked, {row.name: dict(row.here) for row in rows}, equal(*MODELS))


if __name__ == "__main__":
    main()
