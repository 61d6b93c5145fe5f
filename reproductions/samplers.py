"""One trained DDPM, many samplers: quality at equal numbers of network evaluations.

    python reproductions/samplers.py [--n 1000]

The survey (section 6.2, on Karras et al.): without training new networks, older models achieve better results simply by
using a better sampler; section 6.1, on DDIM: skipping steps works well, within limits.
"""

from __future__ import annotations

from harness import arguments, equal, figure, gallery_run, judged, save, write

import mezzotint as mz

EVALUATIONS = (5, 9, 19, 49)
# name: solver, grid, and the steps that cost so many evaluations; Heun's last step costs one, the others two
SAMPLERS = {
    "ancestral (DDPM)": ("ancestral", "leading", lambda nfe: nfe),
    "DDIM": ("ddim", "leading", lambda nfe: nfe),
    "EDM, Heun": ("edm", "karras", lambda nfe: (nfe + 1) // 2),
    "EDM, stochastic": ("edm-stochastic", "karras", lambda nfe: (nfe + 1) // 2),
    "DPM-Solver++ 2M": ("dpm++2m", "karras", lambda nfe: nfe),
    "UniPC": ("unipc", "karras", lambda nfe: nfe),
}


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
    drawn, axes = figure("samplers", figsize=(5.5, 3.6))
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), "o-", label=name)
    axes.set(xscale="log", xlabel="network evaluations", ylabel="FD (classifier)")
    axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    save(drawn, "samplers")
    text = "| sampler | " + " | ".join(f"FD, {n} NFE" for n in EVALUATIONS) + " |\n"
    text += "|---|" + "---|" * len(EVALUATIONS) + "\n"
    for name, curve in curves.items():
        text += f"| {name} | " + " | ".join(f"{curve[n]:.2f}" for n in EVALUATIONS) + " |\n"
    best = {n: min(curves, key=lambda name: curves[name][n]) for n in EVALUATIONS}
    body = (
        "![quality against evaluations](samplers.png)\n\nOne network, trained once as a DDPM; only the sampler changes."
        f"\n\n{text}\nBest: " + ", ".join(f"{name} at {n}" for n, name in best.items()) + "."
    )
    write("samplers", "One DDPM, many samplers", body, asked, curves, equal("ddpm"))


if __name__ == "__main__":
    main()
