"""Section 2.4: a Gaussian decoder blurs, a PixelCNN as a decoder does not.

    python reproductions/blur.py [--n 1000]

One encoder and one budget; the decoders are a Gaussian of one learned deviation (its means, and draws from it), a
mixture of logistics for each pixel by itself, and a PixelCNN that is told the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from harness import PAGES, Asked, Row, arguments, figure, gallery_run, judged, pictures, spent, table, trained, write
from torch import Tensor

import mezzotint as mz
from mezzotint.core.drawing import draw
from mezzotint.core.model import Model
from mezzotint.data import spread_over
from mezzotint.data.grid import grid

SHOWN = 10  # pictures of each decoder
FINE = 0.25  # cycles per pixel: half of the finest that there is
BANDS = 15  # of the power spectrum


@dataclass(frozen=True)
class Decoder:
    """One row of the table."""

    name: str
    model: Model
    controls: dict[str, str]


def spectrum(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the power of pictures (N, C, H, W) lies, less that of the mean of each: frequencies, power, and its count.

    Radial frequencies of the two-dimensional Fourier transform, in cycles per pixel; power averaged over pictures.
    """
    centred = images.double() - images.double().mean((2, 3), keepdim=True)
    power = torch.fft.fft2(centred, norm="ortho").abs().square().mean((0, 1))  # (H, W)
    rows, columns = (torch.fft.fftfreq(size).double() for size in images.shape[2:])
    frequency = (rows[:, None] ** 2 + columns**2).sqrt()
    return frequency.flatten(), power.flatten(), torch.ones_like(power).flatten()


def fine_energy(images: Tensor) -> float:
    """Mean power of a pixel above a quarter of a cycle per pixel: what a blur takes away."""
    frequency, power, count = spectrum(images)
    return float(power[frequency > FINE].sum() / count.sum())


def curve(images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean power in each of 15 bands of frequency, and their middles."""
    frequency, power, count = spectrum(images)
    band = (frequency / 0.5 * BANDS).long().clamp(max=BANDS)  # the corners of the square together in the last
    zeros = torch.zeros(BANDS + 1, dtype=torch.float64)
    mean = zeros.index_add(0, band, power) / zeros.index_add(0, band, count)
    return (torch.arange(BANDS) + 0.5) * 0.5 / BANDS, mean[:BANDS]


def page(decoders: list[Decoder], asked: Asked, budget: str) -> None:
    """blur.md with its pictures and numbers."""
    real = pictures("test").batch(spread_over(len(pictures("test")), asked.n)).images
    rows, energies, shown, curves = [], {}, [real[:SHOWN]], {"real": curve(real)}
    of_real = fine_energy(real)
    for decoder in decoders:
        images = draw(decoder.model, asked.n, seeds=0, **decoder.controls)
        energies[decoder.name] = fine_energy(images) / of_real
        numbers = judged(decoder.model, asked, likelihood=True, **decoder.controls)
        rows.append(Row(decoder.name, {}, {**numbers, "fine energy, real = 1": energies[decoder.name]}))
        shown.append(images[:SHOWN])
        curves[decoder.name] = curve(images)
    PAGES.mkdir(parents=True, exist_ok=True)
    grid(torch.cat(shown), columns=SHOWN).save(PAGES / "blur.png")
    drawn, axes = figure("blur", figsize=(6, 3.6))
    for name, (frequency, power) in curves.items():
        axes.plot(frequency, power, "k--" if name == "real" else "-", label=name)
    axes.set(xlabel="cycles per pixel", ylabel="power", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    drawn.savefig(PAGES / "blur_spectrum.png", metadata={"Software": None})
    distances = {row.name: row.here["fd_classifier"] for row in rows}
    mean, pixelcnn = rows[0].name, rows[-1].name
    blurs = "has less" if energies[mean] < energies[pixelcnn] else "does **not** have less"
    nearer = "nearer" if abs(1 - energies[pixelcnn]) < abs(1 - energies[mean]) else "**not** nearer"
    better = "better" if distances[pixelcnn] < distances[mean] else "**not** better"
    body = (
        "![samples](blur.png)\n\nFrom above: held-out pictures; samples of "
        + "; ".join(decoder.name for decoder in decoders)
        + ".\n\n![spectrum](blur_spectrum.png)\n\nThe power of samples over frequencies. Fine energy is the mean"
        " power of a pixel above a quarter of a cycle per pixel, over that of held-out pictures: below 1 is blur, above"
        " 1 noise.\n\n"
        + table(rows, [], ["fine energy, real = 1", "fd_classifier", "precision", "recall", "bits_per_dim"], "decoder")
        + f"\nThe survey: means of a Gaussian decoder are blurred, a PixelCNN is sharp. Here the first {blurs} fine"
        f" energy than the last; the PixelCNN's is {nearer} to that of real pictures, and its Fréchet distance is"
        f" {better}.\n"
    )
    write("blur", "Section 2.4: blur", body, asked, {row.name: dict(row.here) for row in rows}, budget)


def gaussian(seen: int) -> Path:
    """The VAE of the gallery with a Gaussian decoder."""
    return trained("blur-gaussian", "vae", "--set", "likelihood.kind=gaussian", pictures=seen)


def main() -> None:
    asked = arguments(__doc__)
    seen = {system: spent(system) for system in ("vae", "pixelvae")}
    blurred = mz.load(gaussian(seen["vae"]))
    decoders = [
        Decoder("Gaussian, means", blurred, {"pixels": "mean"}),
        Decoder("Gaussian, draws", blurred, {"pixels": "drawn"}),
        Decoder("logistics pixel by pixel, draws", mz.load(gallery_run("vae")), {"pixels": "drawn"}),
        Decoder("PixelCNN, draws", mz.load(gallery_run("pixelvae")), {"pixels": "drawn"}),
    ]
    page(decoders, asked, ", ".join(f"{name}: {count:,} pictures" for name, count in seen.items()))


if __name__ == "__main__":
    main()
