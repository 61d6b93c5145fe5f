"""Section 2.3: what each dimension of a code does to a picture, for beta = 1, beta = 4 and a rising capacity.

python reproductions/traversal.py [--n 1000]
"""

from __future__ import annotations

import torch
from harness import PAGES, Asked, arguments, gallery_run, judged, pictures, spent, trained, write

import mezzotint as mz
from mezzotint.core.batch import PictureRandom
from mezzotint.core.model import Model
from mezzotint.data import spread_over
from mezzotint.data.grid import grid
from mezzotint.data.loader import PIXELS
from mezzotint.evaluation.collapse import diagnose
from mezzotint.evaluation.features import to_levels
from mezzotint.vae.traversal import VALUES, interpolate, traverse

ROWS = 8  # dimensions shown
REFERENCE = 500  # pictures over which the order of dimensions is found
WALKS = 3  # between pictures of the test split


def page(models: dict[str, Model], asked: Asked, budget: str) -> None:
    """traversal.md with its pictures and numbers."""
    PAGES.mkdir(parents=True, exist_ok=True)
    test = pictures("test")
    images = test.batch(spread_over(len(test), REFERENCE)).images
    text = (
        "| objective | active units | KL, nats | squared error of a pixel | FD (classifier) |\n|---|---|---|---|---|\n"
    )
    body, numbers = "", {}
    for k, (name, model) in enumerate(models.items()):
        shown = PIXELS[model.pixels or "levels"](to_levels(images), PictureRandom(range(len(images))))
        code = diagnose(model, images.split(250), pixels=model.pixels or "levels")
        with torch.no_grad():
            error = (model.reconstruct(shown) - images).square().mean()
        values = judged(model, asked)
        numbers[name] = {
            **values,
            "active_units": code.active_units,
            "kl": code.kl.tolist(),
            "squared_error": float(error),
        }
        text += (
            f"| {name} | {code.active_units} of {len(code.kl)} | {code.nats:.2f} | {float(error):.4f} |"
            f" {values['fd_classifier']:.4g} |\n"
        )
        rows = traverse(model, shown[0], dimensions=ROWS, reference=shown)
        grid(rows.flatten(0, 1), columns=len(VALUES)).save(PAGES / f"traversal_{k}.png")
        ends = [(2 * walk, 2 * walk + 1) for walk in range(WALKS)]
        walks = torch.cat([interpolate(model, shown[a], shown[b], len(VALUES)) for a, b in ends])
        grid(walks, columns=len(VALUES)).save(PAGES / f"traversal_{k}_between.png")
        body += (
            f"## {name}\n\n![traversal](traversal_{k}.png)\n\nEach row: one dimension of the code of a held-out picture"
            f" from {VALUES[0]:g} to {VALUES[-1]:g}, the others as they are; from above in the order of their nats,"
            f" {', '.join(f'{nats:.2f}' for nats in code.kl.sort(descending=True).values[:ROWS].tolist())}.\n\n"
            f"![between](traversal_{k}_between.png)\n\nFrom one held-out picture to another, along the line between"
            " their codes.\n\n"
        )
    plain, beta = list(models)[:2]
    fewer = "fewer" if numbers[beta]["active_units"] < numbers[plain]["active_units"] else "**not** fewer"
    worse = "worse" if numbers[beta]["squared_error"] > numbers[plain]["squared_error"] else "**not** worse"
    body = (
        text + "\nThe survey: beta balances what the code holds against how well pictures are told."
        f" Here {beta} uses {fewer} dimensions than {plain}, and its reconstructions are {worse}.\n\n" + body
    )
    write("traversal", "Section 2.3: latent traversals", body, asked, numbers, budget)


def main() -> None:
    asked = arguments(__doc__)
    seen = spent("beta-vae")
    plain = trained("traversal-1", "beta-vae", "--set", "objective.beta=1", pictures=seen)
    models = {
        "beta = 1": mz.load(plain).eval(),
        "beta = 4": mz.load(gallery_run("beta-vae")).eval(),
        "capacity": mz.load(gallery_run("capacity-vae")).eval(),
    }
    page(models, asked, f"{seen:,} pictures each (capacity: {spent('capacity-vae'):,})")


if __name__ == "__main__":
    main()
