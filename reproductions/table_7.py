"""Table VII: one and two evaluations after progressive distillation, DFNO and consistency distillation.

python reproductions/table_7.py [--n 1000]
"""

from __future__ import annotations

from harness import Row, agrees, arguments, equal, gallery_run, judged, table, write

import mezzotint as mz

SURVEY = {
    ("PD", 1): {"FID": "15.39", "precision": "0.59", "recall": "0.62"},
    ("DFNO", 1): {"FID": "8.35"},
    ("CD", 1): {"FID": "6.20", "precision": "0.62", "recall": "0.63"},
    ("PD", 2): {"FID": "8.95", "precision": "0.63", "recall": "0.65"},
    ("CD", 2): {"FID": "4.70", "precision": "0.69", "recall": "0.64"},
}
BESIDES = {"CT": "consistency-training", "DMD": "dmd", "2-rectified flow, distilled": "reflow"}


def main() -> None:
    asked = arguments(__doc__)
    progressive = gallery_run("progressive-distillation")
    consistency = mz.load(gallery_run("consistency-distillation"))
    found = {
        ("PD", 1): judged(mz.load(progressive), asked, steps=1),
        ("DFNO", 1): judged(mz.load(gallery_run("dfno")), asked),
        ("CD", 1): judged(consistency, asked, steps=1),
        ("PD", 2): judged(mz.load(progressive / "student-2"), asked, steps=2),
        ("CD", 2): judged(consistency, asked, steps=2),
    }
    for name, system in BESIDES.items():
        controls = {} if name == "DMD" else {"steps": 1}
        found[name, 1] = judged(mz.load(gallery_run(system)), asked, **controls)
    here = ["fd_classifier", "precision", "recall", "class_accuracy"]
    rows = [Row(f"{name}, {nfe} NFE", SURVEY.get((name, nfe), {}), numbers) for (name, nfe), numbers in found.items()]
    distance = {f"{name}, {nfe} NFE": numbers["fd_classifier"] for (name, nfe), numbers in found.items()}
    body = (
        "The survey's numbers are for ImageNet at 64 x 64 (FID over Inception features); ours for clothes at 28 x 28,"
        " where only the order can be compared. Each student and its teacher shared one budget. The last rows are not"
        " in the survey's table.\n\n"
        + table(rows, ["FID", "precision", "recall"], here, "method")
        + "\n"
        + agrees(["CD, 1 NFE", "DFNO, 1 NFE", "PD, 1 NFE"], distance)
        + " "
        + agrees(["CD, 2 NFE", "PD, 2 NFE"], distance)
        + " From one evaluation to two: "
        + agrees(["PD, 2 NFE", "PD, 1 NFE"], distance)
        + " "
        + agrees(["CD, 2 NFE", "CD, 1 NFE"], distance)
    )
    data = {f"{name}, {nfe} NFE": numbers for (name, nfe), numbers in found.items()}
    budget = equal("progressive-distillation", "dfno", "consistency-distillation", *BESIDES.values())
    write("table_7", "Table VII: distillation to one and two evaluations", body, asked, data, budget)


if __name__ == "__main__":
    main()
