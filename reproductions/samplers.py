"""One trained DDPM, many samplers: quality at equal numbers of network evaluations.

    python reproductions/samplers.py [--n 1000]

The survey (section 6.2, on Karras et al.): without training new networks, older models achieve better results simply by
using a better sampler; section 6.1, on DDIM: skipping steps works well, within limits.
"""

from __future__ import annotations

from harness import Asked, arguments, equal, figure, gallery_run, judged, save, write

import mezzotint as mz

EVALUATIONS = (5, 9, 19, 49)
# Solver, grid, and the steps that cost so many evaluations; Heun's last step costs one, the others two
OLD = "ancestral (DDPM)"
SAMPLERS = {
    OLD: ("ancestral", "leading", lambda nfe: nfe),
    "DDIM": ("ddim", "leading", lambda nfe: nfe),
    "EDM, Heun": ("edm", "karras", lambda nfe: (nfe + 1) // 2),
    "EDM, stochastic": ("edm-stochastic", "karras", lambda nfe: (nfe + 1) // 2),
    "DPM-Solver++ 2M": ("dpm++2m", "karras", lambda nfe: nfe),
    "UniPC": ("unipc", "karras", lambda nfe: nfe),
}


def page(curves: dict[str, dict[int, float]], asked: Asked) -> None:
    """samplers.md with its figure and numbers."""
    drawn, axes = figure("samplers", figsize=(5.5, 3.6))
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), "o-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="FD (classifier)")
    axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    axes.set_yticks([20, 30, 50, 100, 200], ["20", "30", "50", "100", "200"])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    save(drawn, "samplers")
    text = "| sampler | " + " | ".join(f"FD, {n} NFE" for n in EVALUATIONS) + " |\n"
    text += "|---|" + "---|" * len(EVALUATIONS) + "\n"
    for name, curve in curves.items():
        text += f"| {name} | " + " | ".join(f"{curve[n]:.2f}" for n in EVALUATIONS) + " |\n"
    best = {n: min(curves, key=lambda name: curves[name][n]) for n in EVALUATIONS}
    others = [n for n, name in best.items() if name != OLD]
    if len(others) == len(EVALUATIONS):
        said = "That holds here."
    elif others:
        said = f"That holds here at {' and '.join(map(str, others))} evaluations, not at the others."
    else:
        said = (
            "That does **not** hold at this scale: the model's own, which draws with fresh noise at each step, is the"
            " best at each number of evaluations, and all that follow the flow without noise come to the same pictures,"
            " which are worse. Noise mends errors of a network that has learned for a short time."
        )
    body = (
        "![quality against evaluations](samplers.png)\n\nOne network, trained once as a DDPM; only the sampler changes."
        f"\n\n{text}\nBest: " + ", ".join(f"{name} at {n}" for n, name in best.items()) + ".\n\nThe survey: older"
        f" models achieve better results simply by using a better sampler. {said}\n"
    )
    write("samplers", "One DDPM, many samplers", body, asked, curves, equal("ddpm"))


def main() -> None:
    asked = arguments(__doc__)
    model = mz.load(gallery_run("ddpm"))
    curves = {
        name: {
            nfe: judged(model, asked, solver=solver, grid=grid, steps=steps(nfe), guidance=0.0)["fd_classifier"]
            for nfe in EVALUATIONS
        }
        for name, (solver, grid, steps) in SAMPLERS.items()
    }
    page(curves, asked)


if __name__ == "__main__":
    main()
