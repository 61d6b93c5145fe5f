"""Table XI: DDPM, score matching and flow matching with diffusion and optimal-transport paths.

    python reproductions/table_11.py [--n 1000] [--likelihood-n 100] [--minutes 5]

The four differ in the path or in what is regressed; all are sampled by the same adaptive solver at the same tolerance.
"""

from __future__ import annotations

from harness import Asked, Row, agrees, arguments, gallery_run, judged, table, trained, write

import mezzotint as mz

SURVEY = {
    "DDPM": {"BPD": "3.12", "FID": "7.48", "NFE": "274"},
    "Score matching": {"BPD": "3.16", "FID": "19.94", "NFE": "242"},
    "FM, diffusion path": {"BPD": "3.10", "FID": "8.06", "NFE": "183"},
    "FM, OT path": {"BPD": "2.99", "FID": "6.35", "NFE": "142"},
}


def runs(asked: Asked) -> dict:
    noise = ("--set", "prediction=noise")
    score = ("--set", "prediction=score", "--set", "weighting=noise")  # sigma^2 |score error|^2
    return {
        "DDPM": trained("vp_noise", "flow-matching-diffusion", *noise, minutes=asked.minutes),
        "Score matching": trained("vp_score", "flow-matching-diffusion", *score, minutes=asked.minutes),
        "FM, diffusion path": gallery_run("flow-matching-diffusion"),
        "FM, OT path": gallery_run("flow-matching-ot"),
    }


def main() -> None:
    asked = arguments(__doc__)
    rows = []
    for name, run in runs(asked).items():
        model = mz.load(run)
        here = judged(model, asked, likelihood=True, guidance=0.0)
        here["NFE"] = model.evaluations(100, guidance=0.0).double().mean().item()
        rows.append(Row(name, SURVEY[name], here))
    body = (
        "The survey's numbers are for CIFAR-10. NFE is the mean number of evaluations of the adaptive solver per"
        " picture, each picture with steps of its own; rejected steps count.\n\n"
        + table(rows, ["BPD", "FID", "NFE"], ["bits_per_dim", "fd_classifier", "NFE", "precision", "recall"])
    )
    for what, words in (("bits_per_dim", "Likelihood"), ("fd_classifier", "Quality"), ("NFE", "Evaluations")):
        values = {row.name: row.here[what] for row in rows}
        column = {"bits_per_dim": "BPD", "fd_classifier": "FID", "NFE": "NFE"}[what]
        order = sorted(values, key=lambda name: float(SURVEY[name][column]))
        body += f"\n{words}: {agrees(order, values)}\n"
    write("table_11", "Table XI: paths and targets", body, asked, {row.name: dict(row.here) for row in rows})


if __name__ == "__main__":
    main()
