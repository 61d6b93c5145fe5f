"""Table XI: DDPM, score matching and flow matching with diffusion and optimal-transport paths.

    python reproductions/table_11.py [--n 1000] [--likelihood-n 100]

The four differ in the path or in what is regressed; all are sampled by the same adaptive solver at the same tolerance.
"""

from __future__ import annotations

from harness import Row, agrees, arguments, equal, gallery_run, judged, spent, table, trained, write

import mezzotint as mz
from mezzotint.diffusion.measures import adaptive_samples

SURVEY = {
    "DDPM": {"BPD": "3.12", "FID": "7.48", "NFE": "274"},
    "Score matching": {"BPD": "3.16", "FID": "19.94", "NFE": "242"},
    "FM, diffusion path": {"BPD": "3.10", "FID": "8.06", "NFE": "183"},
    "FM, OT path": {"BPD": "2.99", "FID": "6.35", "NFE": "142"},
}


def runs() -> dict:
    """Every run has seen as many pictures as the gallery's."""
    noise = ("--set", "prediction=noise")
    score = ("--set", "prediction=score", "--set", "weighting=noise")  # sigma^2 |score error|^2
    pictures = spent("flow-matching-diffusion")
    return {
        "DDPM": trained("vp_noise", "flow-matching-diffusion", *noise, pictures=pictures),
        "Score matching": trained("vp_score", "flow-matching-diffusion", *score, pictures=pictures),
        "FM, diffusion path": gallery_run("flow-matching-diffusion"),
        "FM, OT path": gallery_run("flow-matching-ot"),
    }


def main() -> None:
    asked = arguments(__doc__)
    rows = []
    for name, run in runs().items():
        model = mz.load(run)
        here = judged(model, asked, likelihood=True, solver="rk45", steps=1, guidance=0.0)
        here["NFE"] = adaptive_samples(model, 100, guidance=0.0).evaluations.double().mean().item()
        rows.append(Row(name, SURVEY[name], here))
    body = (
        "The survey's numbers are for CIFAR-10. All samples are drawn by the adaptive solver, with tolerances of 1e-5."
        " NFE is the mean number of its evaluations over 100 pictures, each with steps of its own; rejected steps"
        " count.\n\n"
        + table(rows, ["BPD", "FID", "NFE"], ["bits_per_dim", "fd_classifier", "NFE", "precision", "recall"])
    )
    for what, words in (("bits_per_dim", "Likelihood"), ("fd_classifier", "Quality"), ("NFE", "Evaluations")):
        values = {row.name: row.here[what] for row in rows}
        column = {"bits_per_dim": "BPD", "fd_classifier": "FID", "NFE": "NFE"}[what]
        order = sorted(values, key=lambda name: float(SURVEY[name][column]))
        body += f"\n{words}: {agrees(order, values)}\n"
    budget = equal("flow-matching-diffusion", "flow-matching-ot")
    write("table_11", "Table XI: paths and targets", body, asked, {row.name: dict(row.here) for row in rows}, budget)


if __name__ == "__main__":
    main()
