"""Figure 69: reflow straightens trajectories, so that fewer steps arrive.

    python reproductions/figure_69.py [--n 1000]

Between two sets of points in the plane the rectified velocity is known exactly, and the trajectories are drawn; with
pictures, the quality after few steps is set against that of the first flow, and the straightness of both is measured.
"""

from __future__ import annotations

from harness import arguments, figure, gallery_run, judged, save, write

import mezzotint as mz

STEPS = (1, 2, 4, 8, 16)


def main() -> None:
    asked = arguments(__doc__)
    run = gallery_run("reflow")
    flows = {"1-rectified flow": mz.load(run / "teacher"), "2-rectified flow": mz.load(run)}
    curves = {
        name: {
            steps: judged(model, asked, steps=steps, solver="euler", guidance=0.0)["fd_classifier"] for steps in STEPS
        }
        for name, model in flows.items()
    }
    straight = {name: float(model.straightness(256, steps=20)) for name, model in flows.items()}
    drawn, axes = figure("figure_69", figsize=(5, 3.4))
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), "o-", label=name)
    axes.set(xscale="log", yscale="log", xlabel="Euler steps", ylabel="FD (classifier)")
    axes.set_xticks(STEPS, [str(s) for s in STEPS])
    axes.minorticks_off()
    axes.legend(frameon=False)
    save(drawn, "figure_69")
    text = "| flow | straightness | " + " | ".join(f"FD, {s} steps" for s in STEPS) + " |\n"
    text += "|---|---|" + "---|" * len(STEPS) + "\n"
    for name, curve in curves.items():
        text += f"| {name} | {straight[name]:.4f} | " + " | ".join(f"{curve[s]:.2f}" for s in STEPS) + " |\n"
    first, second = flows
    straighter = "straighter" if straight[second] < straight[first] else "**not** straighter"
    fewer = "better" if curves[second][1] < curves[first][1] else "**not** better"
    body = (
        "![quality against steps](figure_69.png)\n\nStraightness is the mean squared distance of the velocity from"
        " that of the straight line between a trajectory's ends, per pixel: 0 means that one Euler step is exact.\n\n"
        f"{text}\nThe survey: reflow makes paths straighter, so that fewer steps suffice. Here the second flow is"
        f" {straighter} than the first, and its single step is {fewer}.\n"
    )
    write("figure_69", "Figure 69: reflow", body, asked, {"straightness": straight, "fd": curves})


if __name__ == "__main__":
    main()
