"""Figure 69: reflow straightens trajectories, so that fewer steps arrive.

    python reproductions/figure_69.py [--n 1000]

As in the figure, trajectories are drawn from noise to picture and from picture to picture, before reflow and after it.
The quality after few steps and the straightness of the flows from noise are measured.
"""

from __future__ import annotations

from pathlib import Path

import torch
from harness import PAGES, arguments, equal, figure, gallery_run, judged, save, write

import mezzotint as mz
from mezzotint.core.model import Model
from mezzotint.data import open_pictures
from mezzotint.data.grid import grid
from mezzotint.diffusion.measures import straightness
from mezzotint.diffusion.solvers import Step

STEPS = (1, 2, 4, 8, 16)
SHOWN = 8  # states of a trajectory, without its end
FLOWS = {"1-rectified flow": "rectified", "2-rectified flow": "reflow"}  # and their stages


def trajectory(model: Model, **sampling: object) -> torch.Tensor:
    """Every state on the way of one sample in `SHOWN` steps, and its end, (SHOWN + 1, C, H, W)."""
    states: list[torch.Tensor] = []

    def look(step: Step) -> None:
        states.append(step.denoised.x)

    end = model.sample(1, steps=SHOWN, solver="euler", grid="uniform", callback=look, **sampling)
    return torch.cat([*states, end]).clamp(-1, 1)


def draw_trajectories(flows: dict[str, Model], transport: Path) -> None:
    """Rows in the order of the figure: two from noise before reflow and two after it, then the same from sneakers."""
    sources = open_pictures("fashion/sneaker", split="test").batch([0, 1]).images
    rows = [trajectory(model, labels=[label], seeds=label) for model in flows.values() for label in (7, 8)]
    for place in (transport / "flow", transport):
        model = mz.load(place)
        rows += [trajectory(model, source=source[None]) for source in sources]
    grid(torch.cat(rows), columns=SHOWN + 1).save(PAGES / "figure_69_trajectories.png")


def main() -> None:
    asked = arguments(__doc__)
    run, transport = gallery_run("reflow"), gallery_run("rectified-transport")
    flows = {name: mz.load(run / stage) for name, stage in FLOWS.items()}
    # Each as its config says: the guidance of the first flow is in the pairs, and so in the second flow.
    curves = {
        name: {steps: judged(model, asked, steps=steps, solver="euler")["fd_classifier"] for steps in STEPS}
        for name, model in flows.items()
    }
    pixels = len(mz.load(run).sample(1).flatten())
    straight = {name: float(straightness(model, 256, steps=20).mean()) / pixels for name, model in flows.items()}
    drawn, axes = figure("figure_69", figsize=(5, 3.4))
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), "o-", label=name)
    axes.set(xscale="log", xlabel="Euler steps", ylabel="FD (classifier)")
    axes.set_xticks(STEPS, [str(s) for s in STEPS])
    axes.minorticks_off()
    axes.legend(frameon=False)
    save(drawn, "figure_69")
    draw_trajectories(flows, transport)
    text = "| flow | straightness | " + " | ".join(f"FD, {s} steps" for s in STEPS) + " |\n"
    text += "|---|---|" + "---|" * len(STEPS) + "\n"
    for name, curve in curves.items():
        text += f"| {name} | {straight[name]:.4f} | " + " | ".join(f"{curve[s]:.2f}" for s in STEPS) + " |\n"
    first, second = flows
    straighter = "straighter" if straight[second] < straight[first] else "**not** straighter"
    fewer = "better" if curves[second][1] < curves[first][1] else "**not** better"
    worse = [steps for steps in STEPS if curves[second][steps] >= curves[first][steps]]
    body = (
        "![trajectories](figure_69_trajectories.png)\n\nEight Euler steps, from left to right. Two samples of the"
        " 1-rectified flow, the same two of the 2-rectified flow; two sneakers on their way to a boot, and the same two"
        " after reflow.\n\n"
        "![quality against steps](figure_69.png)\n\nStraightness is the mean squared distance of the velocity from"
        " that of the straight line between a trajectory's ends, per pixel: 0 means that one Euler step is exact. It is"
        f" that of 256 samples in 20 steps.\n\n{text}\nThe survey: reflow makes paths straighter, so that fewer steps"
        f" suffice. Here the second flow is {straighter} than the first, and its single step is {fewer}."
        + (f" With {', '.join(map(str, worse))} steps it is **not** better.\n" if worse else "\n")
    )
    data = {"straightness": straight, "fd": curves}
    write("figure_69", "Figure 69: reflow", body, asked, data, equal("reflow", "rectified-transport"))


if __name__ == "__main__":
    main()
