"""From features to numbers: ours against the packages that people use. Every pair has to agree before it is timed.

python benchmarks/metrics.py [--json] [--repeats N] [--dims D]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Row, alternate, arguments, report, setting

from mezzotint.evaluation.distances import frechet_distance, inception_score, kernel_distance
from mezzotint.evaluation.neighbours import precision_recall_density_coverage
from mezzotint.evaluation.statistics import Moments

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluation"))
from oracles import oracle, quietly

Comparison = tuple[str, Callable[[], float], Callable[[], float], float, str]  # name, ours, peer, tolerance, package


def features(n: int, dims: int, seed: int) -> torch.Tensor:
    """Correlated and positive, as after a ReLU, float64."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=generator, dtype=torch.float64) / dims**0.5
    return (torch.randn(n, dims, generator=generator, dtype=torch.float64) @ mixing + 0.5 + 0.1 * seed).relu()


def torchmetrics_fid(x: torch.Tensor, y: torch.Tensor) -> float:
    return oracle("torchmetrics.image.fid")._compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item()


def torchmetrics_streamed(x: torch.Tensor, y: torch.Tensor) -> float:
    """Its metric over features in batches of 100, through a network that passes them on."""

    class Passing(torch.nn.Module):
        num_features = x.shape[1]

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return batch

    metric = (
        oracle("torchmetrics.image.fid")
        .FrechetInceptionDistance(Passing(), input_img_size=(1, 1, x.shape[1]), normalize=True)
        .double()
    )
    for real, data in ((True, x), (False, y)):
        for batch in data.split(100):
            metric.update(batch, real=real)
    return metric.compute().item()


def quiet_prdc(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(quietly(oracle("prdc").compute_prdc, x.numpy(), y.numpy(), 5)["density"])


def comparisons(dims: int) -> list[Comparison]:
    few, other = features(1000, dims, 0), features(1000, dims, 2)
    many, more = features(3000, 512, 0), features(3000, 512, 2)
    logits = 3 * torch.randn(5000, 1008, dtype=torch.float64)
    fidelity_fid, fidelity_kid = oracle("torch_fidelity.metric_fid"), oracle("torch_fidelity.metric_kid")
    fidelity_isc, fidelity_prc = oracle("torch_fidelity.metric_isc"), oracle("torch_fidelity.metric_prc")
    kid = {
        "kid_kernel": "poly",
        "kid_kernel_poly_degree": 3,
        "kid_kernel_poly_gamma": None,
        "kid_kernel_poly_coef0": 1.0,
    }

    def fidelity_distance(x: torch.Tensor, y: torch.Tensor) -> float:
        statistics = [fidelity_fid.fid_features_to_statistics(features) for features in (x, y)]
        return fidelity_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]

    def fidelity_score() -> float:
        return fidelity_isc.isc_features_to_metric(logits, 10, shuffle=False)["inception_score_mean"]

    def prdc(x: torch.Tensor, y: torch.Tensor) -> float:
        return precision_recall_density_coverage(x, y).density

    def streamed(x: torch.Tensor, y: torch.Tensor) -> float:
        return frechet_distance(Moments.of(x.split(100)), Moments.of(y.split(100)))

    return [
        (f"Fréchet distance, 1000 x {dims}", lambda: frechet_distance(few, other),
         lambda: torchmetrics_fid(few, other), 1e-5, "torchmetrics"),
        (f"Fréchet distance, 1000 x {dims}", lambda: frechet_distance(few, other),
         lambda: fidelity_distance(few, other), 1e-5, "torch-fidelity"),
        ("Fréchet distance, 3000 x 512", lambda: frechet_distance(many, more),
         lambda: torchmetrics_fid(many, more), 1e-5, "torchmetrics"),
        ("Fréchet distance, 3000 x 512, streamed by 100", lambda: streamed(many, more),
         lambda: torchmetrics_streamed(many, more), 1e-5, "torchmetrics"),
        (f"kernel distance, 1000 x {dims}", lambda: kernel_distance(few, other).mean,
         lambda: oracle("torchmetrics.image.kid").poly_mmd(few, other).item(), 1e-9, "torchmetrics"),
        (f"kernel distance, 1000 x {dims}", lambda: kernel_distance(few, other).mean,
         lambda: fidelity_kid.kernel_mmd(few.numpy(), other.numpy(), **kid), 1e-9, "torch-fidelity"),
        ("precision and recall, 3000 x 512", lambda: precision_recall_density_coverage(many, more).precision,
         lambda: fidelity_prc.calculate_precision_recall_full(more, many, 5)[0], 1e-9, "torch-fidelity"),
        ("precision, recall, density, coverage, 3000 x 512", lambda: prdc(many, more),
         lambda: quiet_prdc(many, more), 1e-9, "prdc"),
        ("Inception Score, 5000 x 1008", lambda: inception_score(logits).mean, fidelity_score, 1e-9, "torch-fidelity"),
    ]  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side; the median counts")
    parser.add_argument("--dims", type=int, default=2048, help="of the features")
    options = parser.parse_args()
    rows = []
    with torch.no_grad():
        for name, ours, peer, tolerance, package in comparisons(options.dims):
            mine, theirs = ours(), peer()
            if abs(mine - theirs) > tolerance * max(1.0, abs(theirs)):
                raise SystemExit(f"{name}: {mine} is not {package}'s {theirs}, so there is nothing to time")
            seconds = alternate(ours, peer, options.repeats)
            rows.append(Row(f"{name} ({package})", *seconds, "s", setting(package, precision="float64")))
    report(rows, options.json)


if __name__ == "__main__":
    main()
