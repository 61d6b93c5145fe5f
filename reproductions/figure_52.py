"""Figure 52: quality against the number of steps, after progressive distillation and without it.

    python reproductions/figure_52.py [--n 1000]

The teacher is guided, and what it does is what its students learned.
"""

from __future__ import annotations

from harness import arguments, equal, figure, gallery_run, judged, save, write

import mezzotint as mz

STEPS = (1, 2, 4, 8, 16, 32)


def draw(curves: dict[str, dict[int, float]]) -> None:
    drawn, axes = figure("figure_52", figsize=(5.5, 3.6))
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    axes.set(xscale="log", xlabel="sampling steps", ylabel="FD (classifier)")
    axes.set_xticks(STEPS, [str(s) for s in STEPS])
    axes.minorticks_off()
    axes.legend(frameon=False)
    save(drawn, "figure_52")


def main() -> None:
    asked = arguments(__doc__)
    run = gallery_run("progressive-distillation")
    teacher = mz.load(run / "teacher")
    curves: dict[str, dict[int, float]] = {"distilled": {}, "DDIM (teacher)": {}, "stochastic (teacher)": {}}
    for steps in STEPS:
        student = mz.load(run if steps == 1 else run / f"student-{steps}")
        for name, model, solver in (
            ("distilled", student, None),
            ("DDIM (teacher)", teacher, "ddim"),
            ("stochastic (teacher)", teacher, "ancestral"),
        ):
            controls = {"steps": steps, **({"solver": solver, "grid": "uniform"} if solver else {})}
            curves[name][steps] = judged(model, asked, **controls)["fd_classifier"]
    draw(curves)
    text = "| steps | " + " | ".join(curves) + " |\n|" + "---|" * (len(curves) + 1) + "\n"
    for steps in STEPS:
        text += f"| {steps} | " + " | ".join(f"{curve[steps]:.2f}" for curve in curves.values()) + " |\n"
    few = [s for s in STEPS if s <= 8]
    better = [s for s in few if curves["distilled"][s] < min(curves[n][s] for n in list(curves)[1:])]
    body = (
        "![quality against steps](figure_52.png)\n\nThe survey shows distilled samplers matching DDIM and the"
        " stochastic sampler with far fewer steps.\n\n" + text + "\n"
        f"With at most 8 steps the distilled sampler is better than both others at {len(better)} of {len(few)}"
        f" numbers of steps ({', '.join(map(str, better)) or 'none'}).\n"
    )
    write("figure_52", "Figure 52: progressive distillation", body, asked, curves, equal("progressive-distillation"))


if __name__ == "__main__":
    main()
