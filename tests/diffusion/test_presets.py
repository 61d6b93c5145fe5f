"""Papers as choices: what each published model of the chapter is made of, as the paper has it."""

import pytest

from mezzotint.core.batch import PictureSpec
from mezzotint.systems import find, parameter_counts

CIFAR = PictureSpec(32, 3, tuple("0123456789"))
PUBLISHED = {
    "dpm": {"path": "linear", "variance": "learned", "objective": "vlb", "solver": "ancestral-learned", "steps": 1000},
    "ddpm": {"path": "linear", "prediction": "noise", "times": "discrete", "weighting": "simple",
             "objective": "simple", "solver": "ancestral-large", "steps": 1000},  # Ho et al. 2020, their program
    "improved-ddpm": {"path": "cosine-4000", "variance": "learned", "objective": "hybrid", "vlb_weight": 0.001,
                      "times": "discrete", "solver": "ancestral-learned", "steps": 4000},
    "score-sde-vp": {"path": "vp", "prediction": "noise", "times": "uniform", "weighting": "simple",
                     "solver": "euler-maruyama", "grid": "uniform", "steps": 1000},
    "score-sde-ve": {"path": "ve", "solver": "predictor-corrector", "grid": "uniform", "steps": 1000},
    "score-sde-subvp": {"path": "subvp", "prediction": "noise", "times": "uniform", "solver": "euler-maruyama"},
    "adm": {"path": "cosine", "variance": "learned", "objective": "hybrid", "solver": "ancestral-learned",
            "steps": 250, "label_dropout": 0.0},  # of 64 pixels and below
    "edm": {"path": "edm", "prediction": "edm", "unit_input": True, "times": "log-normal", "weighting": "edm",
            "solver": "edm", "grid": "karras", "steps": 18},  # Karras et al. 2022: 35 evaluations
    "dit": {"path": "linear", "variance": "learned", "objective": "hybrid", "label_dropout": 0.1, "steps": 250},
    "progressive-distillation": {"path": "cosine", "prediction": "clean", "weighting": "truncated-snr",
                                 "times": "discrete", "solver": "ddim", "grid": "uniform", "steps": 1},
    "consistency-distillation": {"growth": "none", "s0": 40, "rho": 7.0, "times": "uniform", "metric": "squared",
                                 "weighting": "simple", "target_decay": 0.95},  # for ImageNet, without LPIPS
    "consistency-training": {"growth": "doubling", "s0": 10, "s1": 1280, "times": "log-normal", "target_decay": 0.0,
                             "weighting": "inverse-step", "metric": "pseudo-huber", "total_steps": 400_000},
    "dmd": {"regression": 0.25, "teacher_solver": "heun", "teacher_grid": "karras", "teacher_steps": 18,
            "interval": (0.02, 0.98), "pairs": 100_000},  # Yin et al. 2023, appendix B.1, with classes
    "dfno": {"times": 4, "modes": 2, "spacing": "quadratic", "metric": "absolute", "largest_weight": 1e4},
    "rectified-flow": {"path": "straight", "prediction": "velocity", "times": "uniform", "weighting": "simple"},
    "reflow": {"times": "last", "teacher_solver": "rk45", "steps": 1},  # distillation of the second flow
    "flow-matching-ot": {"path": "ot", "prediction": "velocity", "times": "uniform", "weighting": "simple"},
    "flow-matching-diffusion": {"path": "vp", "prediction": "velocity", "times": "uniform", "weighting": "simple"},
    "improved-rectified-flow": {"times": "u-shaped", "metric": "pseudo-huber", "weighting": "simple"},
    "boundary-rectified-flow": {"path": "straight", "prediction": "velocity", "times": "uniform"},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_model_is_what_its_paper_says(name):
    config = find(name).stages[-1].sizes["paper"](CIFAR)
    assert {choice: getattr(config, choice) for choice in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "published"),
    [("ddpm", 35.7), ("improved-ddpm", 52.5), ("score-sde-vp", 61.8), ("edm", 55.7)],
)  # fmt: skip
def test_networks_for_cifar_have_their_number_of_parameters(truth, name, published):
    """Ho et al. 2020, appendix B; Nichol and Dhariwal 2021, appendix A; Karras et al. 2022, table 7 (EDM's DDPM++)."""
    (count,) = (sizes["paper"] for sizes in parameter_counts(find(name)).values())
    truth(name, "parameters of the published network, millions", str(published), abs(count / 1e6 - published), 0.1)


def test_a_consistency_model_and_dmd_learn_from_the_model_of_karras():
    for name in ("consistency-distillation", "dmd"):
        taught = find(name).stages[0].sizes["paper"](CIFAR)
        assert (taught.path, taught.prediction, taught.times, taught.weighting) == ("edm", "edm", "log-normal", "edm")


def test_the_second_flow_learns_from_the_whole_way_and_the_third_from_noise_alone():
    first, second, third = (stage.sizes["paper"](CIFAR) for stage in find("reflow").stages)
    assert (first.times, second.times, third.times) == ("uniform", "uniform", "last")
