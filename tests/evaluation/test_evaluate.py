"""`evaluate` on generators whose merits are known beforehand, and the report that it becomes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

import mezzotint as mz
from mezzotint.core.batch import Batch, PictureRandom, PictureSpec, picture_seeds
from mezzotint.core.codes import lerp
from mezzotint.core.errors import ConfigError, DataError
from mezzotint.core.model import Losses, Model
from mezzotint.core.system import Identity
from mezzotint.data.grid import grid
from mezzotint.evaluation.describing import thumbnails
from mezzotint.evaluation.equivariance import MOTIONS, equivariance
from mezzotint.evaluation.evaluate import MEANINGS, evaluate
from mezzotint.evaluation.features import ModuleFeatures
from mezzotint.evaluation.report import table, write_report

SIZE = 8


def stripes(labels: torch.Tensor, seeds) -> torch.Tensor:
    """Pictures (B, 1, 8, 8): class 0 has horizontal stripes, class 1 vertical ones; noise of its own in each."""
    wave = torch.tensor([0.5, -0.5]).repeat(SIZE // 2).expand(SIZE, SIZE)
    noise = [torch.randn(1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    plain = torch.stack([wave.T if label == 0 else wave for label in labels.tolist()])[:, None]
    return (plain + 0.1 * torch.stack(noise)).clamp(-1, 1)


class Stripes:
    """A stand-in for a data set: `count` pictures whose noise starts at `first`."""

    def __init__(self, split: str, count: int, first: int) -> None:
        self.name, self.split = "stripes", split
        self.spec = PictureSpec(SIZE, 1, ("level", "upright"))
        self.labels = torch.arange(count) % 2
        self.first = first

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices) -> Batch:
        rows = torch.as_tensor(list(indices))
        images = stripes(self.labels[rows], (rows + self.first).tolist())
        return Batch(((images + 1) * 127.5).round() / 127.5 - 1, self.labels[rows])


@dataclass
class Drawn:
    """What the generators below remember of a call."""

    labels: list[int]
    seeds: list[int]


class Honest(Model):
    """Draws from the distribution of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.calls: list[Drawn] = []

    def forward(self, batch, player="model"):
        return Losses(self.weight.sum(), {})

    def sample(self, n, *, labels=None, captions=None, source=None, mask=None, seeds=0, **controls):
        seeds = picture_seeds(n, seeds)
        self.calls.append(Drawn(labels.tolist(), seeds))
        return self.picture(labels, [10_000 + seed for seed in seeds])

    def picture(self, labels, seeds):
        return stripes(labels, seeds)


class Collapsed(Honest):
    def picture(self, labels, seeds):
        return stripes(torch.zeros_like(labels), [10_000] * len(seeds))


class Copier(Honest):
    def picture(self, labels, seeds):
        return TRAIN.batch([2 * (seed % 50) + label for seed, label in zip(seeds, labels.tolist())]).images


class Judge(Model):
    """Knows level stripes from upright ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, batch, player="model"):
        return Losses(self.weight.sum(), {})

    def features(self, images):
        return images.flatten(1)[:, ::4]

    def classify(self, images):
        variation = [images.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (2, 3)]
        return torch.stack(variation, 1)


class Silent(Model):
    """Has nothing to be judged by."""

    forward = Judge.forward


TRAIN, TEST = Stripes("train", 300, 0), Stripes("test", 200, 5_000)


@pytest.fixture(scope="module")
def honest():
    return evaluate(Honest(), TEST, train=TRAIN, n=200, classifier=Judge(), batch_size=64)


def test_an_honest_generator_scores_as_real_pictures_do(honest):
    for name in ("fd_classifier", "precision", "recall", "density", "coverage"):
        assert honest[name].value == pytest.approx(honest[name].real, rel=0.25), name
    assert honest["class_accuracy"].value == honest["class_accuracy"].real == 1
    assert honest["is_classifier"].value > 1
    assert abs(honest["closer_than_test"].value - 0.5) < 0.12
    assert abs(honest["kd_classifier"].value - honest["kd_classifier"].real) < 1e-3


def test_a_collapsed_generator_is_found_out(honest):
    collapsed = evaluate(Collapsed(), TEST, train=TRAIN, n=200, classifier=Judge())
    assert collapsed["class_accuracy"].value == 0.5
    assert collapsed["recall"].value == 0
    assert collapsed["fd_classifier"].value > 5 * honest["fd_classifier"].value


def test_a_copier_is_found_out():
    copied = evaluate(Copier(), TEST, train=TRAIN, n=200, classifier=Judge())
    assert copied["closer_than_test"].value == 1
    assert copied["copies"].value == 1
    assert copied["distance_ratio"].value == 0
    assert torch.equal(copied.neighbours.samples, copied.neighbours.training[:, 0])
    assert copied.neighbours.distances[:, 0].max() == 0


@pytest.mark.parametrize("batch_size", [1, 33, 1000])
def test_the_batch_size_changes_nothing(honest, batch_size):
    model = Honest()
    again = evaluate(model, TEST, train=TRAIN, n=200, classifier=Judge(), batch_size=batch_size)
    assert {n.name: n.value for n in again.numbers} == pytest.approx(
        {n.name: n.value for n in honest.numbers}, rel=1e-6
    )
    assert torch.equal(again.samples, honest.samples)
    labels = [label for call in model.calls for label in call.labels]
    assert labels == [k % 2 for k in range(200)]
    assert [seed for call in model.calls for seed in call.seeds] == list(range(200))


def test_seeds_and_controls_reach_the_model():
    class Controlled(Honest):
        def sample(self, n, *, seeds=0, steps=0, **rest):
            assert steps == 7
            return super().sample(n, seeds=seeds, **rest)

    model = Controlled()
    drawn: list[int] = []
    judged = evaluate(
        model, TEST, n=10, seeds=40, batch_size=4, controls={"steps": 7}, progress=drawn.append,
        features=ModuleFeatures(lambda images: images.flatten(1), "pixels"),
    )  # fmt: skip
    assert [seed for call in model.calls for seed in call.seeds] == list(range(40, 50))
    assert drawn == [4, 4, 2]
    assert judged["fd_pixels"].protocol["steps"] == 7
    assert judged["fd_pixels"].protocol["seeds"] == "40...49"
    assert "class_accuracy" not in {number.name for number in judged.numbers}
    assert judged.neighbours is None


def test_every_number_carries_its_protocol(honest):
    for number in honest.numbers:
        assert number.protocol["n"] == 200
    for name in ("fd_classifier", "kd_classifier", "precision", "recall", "density", "coverage"):
        assert {"features", "resize", "reference", "classes"} <= honest[name].protocol.keys()
        assert "200 test pictures of stripes" in honest[name].protocol["reference"]
    assert honest["precision"].protocol["k"] == 5
    assert honest["is_classifier"].protocol["splits"] == 10
    assert {"classifier", "resize", "reference", "classes"} <= honest["class_accuracy"].protocol.keys()


def test_a_score_says_over_whose_classes_it_is(honest):
    own = honest["is_classifier"].protocol
    assert own["recognised by"] == "the 2 classes of classifier: not the published Inception Score"
    assert "reference" not in own  # it is compared with nothing

    class Standard(ModuleFeatures):
        names = ("fid", "kid", "inception_score")

        def embed(self, levels):
            found = super().embed(levels)
            return found._replace(logits=found.features[:, :3])

    network = Standard(lambda images: images.flatten(1), "standard")
    published = evaluate(Honest(), TEST, n=20, features=network)["inception_score"].protocol
    assert published["recognised by"] == "the 3 classes of standard"


def test_every_number_is_explained():
    """By its name in the document, those over features by how they begin."""
    text = (Path(__file__).parents[2] / "docs" / "numbers.md").read_text()
    over = {"frechet": "fd_FEATURES", "kernel": "kd_FEATURES", "score": "is_FEATURES"}
    for name in (*(over.get(key, key) for key in MEANINGS), "ppl_FEATURES", *MOTIONS):
        assert f"`{name}`" in text, name


PIXELS = ModuleFeatures(torch.nn.Identity(), "pixels")


class Steered(Honest):
    """Stripes of a strength that is the code; told to move, they stay where they are."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(classes=2)
        self.formats = set()

    def codes(self, seeds):
        return 2 * PictureRandom(seeds).uniform(1) - 1

    def from_codes(self, codes, labels=None):
        self.formats.add(torch.is_autocast_enabled("cpu"))
        return codes[..., None, None] * stripes(labels, [0] * len(codes)).sign()

    def between(self, first, last, shares):
        return lerp(first, last, shares)

    def moved(self, n, motion=None, *, labels=None, seeds=0):
        self.formats.add(torch.is_autocast_enabled("cpu"))
        return stripes(labels, seeds)


def test_a_path_length_is_measured_where_it_is_asked_for(truth):
    """G(z) = z times a pattern of 64 pixels of 1 or -1: |dG/dt|^2 = 64 (z_2 - z_1)^2, in the features of all else."""
    model = Steered()
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(
            model, TEST, n=4, features=PIXELS, seeds=3, path_length_n=50, path_length={"epsilon": 0.01, "label": 1}
        )
    assert model.formats == {False}  # bf16 would round the step away
    number = found.numbers[-1]
    first, last = (model.codes(range(3 + end, 103, 2)).double() for end in (0, 1))
    error = abs(number.value / float(64 * (last - first).square().mean()) - 1)
    truth("evaluation", "path length of a linear generator, relative", "64 (z_2 - z_1)^2", error, 1e-5)
    assert number.name == "ppl_pixels"
    assert number.protocol["features"] == found["fd_pixels"].protocol["features"] == "pixels, 64-d"
    same = {"pairs": 50, "space": "z", "sampling": "full", "epsilon": 0.01, "label": 1, "precision": "fp32", "seed": 3}
    assert same.items() <= number.protocol.items()
    assert "ppl_pixels" not in {number.name for number in evaluate(model, TEST, n=4, features=PIXELS).numbers}


def test_equivariance_is_measured_where_it_is_asked_for():
    model = Steered()
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(model, TEST, n=4, features=PIXELS, seeds=3, equivariance_n=6)
    assert model.formats == {False}
    direct = equivariance(model, 6, seed=3)
    assert [number.name for number in found.numbers[-3:]] == ["eq_t", "eq_t_frac", "eq_r"]
    for name, number in direct.items():
        assert found[name].value == number.value < 20  # decibels: stripes that do not move with their picture
        assert {**number.protocol, "precision": "fp32"} == found[name].protocol
        assert {"n": 6, "unit": "decibels", "classes": "k mod 2"}.items() <= found[name].protocol.items()
    assert "eq_t" not in {number.name for number in evaluate(model, TEST, n=4, features=PIXELS).numbers}


def test_what_a_model_cannot_be_measured_by_is_refused_before_it_draws():
    model = Honest()
    for asked, words in (
        ({"path_length_n": 4}, "Honest makes its pictures of no code"),
        ({"equivariance_n": 4}, "Honest cannot be told to move"),
        ({"path_length_n": 4, "path_length": {"spcae": "w"}}, "no option 'spcae'; did you mean 'space'"),
        ({"path_length": {"space": "w"}}, "path_length_n, the number of its pairs"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluate(model, TEST, n=4, features=PIXELS, **asked)
    assert model.calls == []
    with pytest.raises(ConfigError, match="Judge makes its pictures of no code"):
        evaluate(Judge(), TEST, features=PIXELS, path_length_n=4)
    with pytest.raises(ConfigError, match="no styles w"):
        evaluate(Steered(), TEST, n=4, features=PIXELS, path_length_n=4, path_length={"space": "w"})


SHARDED = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.distributed.init_process_group("gloo", rank=int(sys.argv[1]), world_size=2, init_method="file://" + sys.argv[2])
from test_evaluate import *
judged = evaluate(Honest(), TEST, train=TRAIN, n=201, classifier=Judge(), batch_size=64, shard=(int(sys.argv[1]), 2))
torch.save(({{n.name: n.value for n in judged.numbers}}, judged.samples), sys.argv[3])
"""


def test_two_processes_give_the_same_numbers_and_pictures(tmp_path):
    script = SHARDED.format(tests=os.path.dirname(__file__))
    places = [tmp_path / "rank0.pt", tmp_path / "rank1.pt"]
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(rank), str(tmp_path / "meeting"), str(place)])
        for rank, place in enumerate(places)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    alone = evaluate(Honest(), TEST, train=TRAIN, n=201, classifier=Judge())
    for place in places:
        numbers, samples = torch.load(place)
        assert numbers == pytest.approx({n.name: n.value for n in alone.numbers}, rel=1e-6)
        assert torch.equal(samples, alone.samples)


def test_sharding_without_processes_is_refused():
    with pytest.raises(ConfigError, match="accelerate launch"):
        evaluate(Honest(), TEST, n=10, classifier=Judge(), shard=(0, 2))


def test_a_classifier_is_judged_by_its_accuracy_on_all_test_pictures():
    judged = evaluate(Judge(), TEST, n=10, batch_size=64)
    assert [number.name for number in judged.numbers] == ["accuracy"]
    assert judged["accuracy"].value == 1
    assert judged["accuracy"].protocol["n"] == 200


def test_a_likelihood_is_reported_in_bits_per_dim():
    class Bounded(Judge):
        def elbo(self, images):
            return torch.full((len(images),), -64 * 0.6931471805599453)

    judged = evaluate(Bounded(), TEST, n=50)
    assert judged["bits_per_dim"].value == pytest.approx(1, rel=1e-6)
    assert judged["bits_per_dim"].protocol["value"] == "upper bound"


class Catalogued(Judge):
    """Draws what a caption says, and knows a density."""

    def sample(self, n, *, labels=None, captions=None, seeds=0, **controls):
        assert labels is None
        wanted = torch.tensor([("level", "upright").index(caption) for caption in captions])
        return stripes(wanted, picture_seeds(n, seeds))

    def log_prob(self, images):
        assert not torch.equal(images, ((images + 1) * 127.5).round() / 127.5 - 1)  # between the grey levels
        return torch.full((len(images),), -64 * 0.6931471805599453)


class Captioned(Stripes):
    def batch(self, indices):
        batch = super().batch(indices)
        batch.captions = [self.spec.classes[label] for label in batch.labels]
        return batch


def test_a_system_is_told_captions_and_shown_pixels_as_its_recipe_says(monkeypatch):
    """Captions come from the held-out pictures, in order; a density over dequantised pixels costs eight bits here."""
    stage = SimpleNamespace(recipes={"small": SimpleNamespace(pixels="dequantised")})
    system = SimpleNamespace(name="poet", title="Poet", needs={"captions"}, stage=lambda name: stage)
    monkeypatch.setattr(sys.modules["mezzotint.evaluation.evaluate"], "find", lambda name: system)
    model = Catalogued()
    model.identity = Identity("poet", "model", "small", TEST.spec)
    judged = evaluate(model, Captioned("test", 150, 5_000), n=200, classifier=Judge())
    assert judged.model["title"] == "Poet"
    assert judged["class_accuracy"].value == 1
    assert judged["class_accuracy"].protocol["classes"] == "captions of test"
    assert judged["bits_per_dim"].value == pytest.approx(8, rel=1e-6)
    assert judged["bits_per_dim"].protocol["pixels"] == "dequantised"


def learned(model: Model, classes: tuple[str, ...], told: int) -> Model:
    """As if the catalogue had built it for these classes, with a config that says of how many it is told."""
    model.identity = Identity("ddpm", "model", "small", PictureSpec(SIZE, 1, classes))
    model.config = SimpleNamespace(classes=told)
    return model


def test_an_unconditional_model_is_told_no_labels_though_its_pictures_had_some():
    class Unconditional(Honest):
        def sample(self, n, *, labels=None, seeds=0, **rest):
            assert labels is None
            seeds = picture_seeds(n, seeds)
            return stripes(torch.tensor(seeds) % 2, [10_000 + seed for seed in seeds])

    judged = evaluate(learned(Unconditional(), ("level", "upright"), told=0), TEST, n=20, classifier=Judge())
    assert judged.labels == []
    assert "class_accuracy" not in {number.name for number in judged.numbers}
    assert "classes" not in judged["precision"].protocol


def test_a_conditional_model_is_told_its_own_classes():
    model = learned(Honest(), ("level", "upright"), told=2)
    judged = evaluate(model, TEST, n=20, classifier=Judge())
    assert judged.labels[:3] == ["level", "upright", "level"]
    assert judged["class_accuracy"].value == 1


@pytest.mark.parametrize("others", [("upright", "level"), ("cat", "dog"), ("level", "upright", "oblique")])
def test_classes_must_be_the_same_for_model_classifier_and_pictures(others):
    own = ("level", "upright")
    with pytest.raises(DataError, match=f"the model knows the classes {', '.join(others)}, and stripes"):
        evaluate(learned(Honest(), others, told=len(others)), TEST, n=10, classifier=Judge())
    with pytest.raises(DataError, match=f"the classifier knows the classes {', '.join(others)}, and stripes"):
        evaluate(Honest(), TEST, n=10, classifier=learned(Judge(), others, told=len(others)))
    unlabelled = Stripes("test", 50, 5_000)
    unlabelled.spec = PictureSpec(SIZE, 1)
    judge = learned(Judge(), others, told=len(others))
    with pytest.raises(DataError, match="and the model the classes level, upright"):
        evaluate(learned(Honest(), own, told=2), unlabelled, n=10, classifier=judge)
    with pytest.raises(DataError, match="the classifier knows"):
        evaluate(learned(Judge(), others, told=len(others)), TEST)


def test_sampling_keeps_the_precision_of_the_caller_and_measuring_is_in_float32():
    class Watched(Catalogued):
        def sample(self, n, *, labels=None, seeds=0, **rest):
            formats.add(torch.is_autocast_enabled("cpu"))
            return stripes(labels, picture_seeds(n, seeds))

        def log_prob(self, images):
            formats.add(("log_prob", torch.is_autocast_enabled("cpu")))
            return torch.zeros(len(images))

    class WatchedJudge(Judge):
        def classify(self, images):
            formats.add(("classify", torch.is_autocast_enabled("cpu")))
            return super().classify(images)

    formats: set[object] = set()
    with torch.autocast("cpu", torch.bfloat16):
        drawn = evaluate(Watched(), TEST, train=TRAIN, n=20, classifier=WatchedJudge())
        accuracy = evaluate(WatchedJudge(), TEST)["accuracy"]
    assert formats == {True, ("log_prob", False), ("classify", False)}
    in_fp32 = [drawn["bits_per_dim"], drawn["accuracy"], accuracy]
    assert {number.protocol["precision"] for number in in_fp32} == {"fp32"}
    sampled = [number for number in drawn.numbers if number.name not in ("bits_per_dim", "accuracy")]
    assert {number.protocol["precision"] for number in sampled} == {"bf16"}
    assert {number.protocol["precision"] for number in evaluate(Honest(), TEST, n=4, classifier=Judge()).numbers} == {
        "fp32"
    }


def test_large_pictures_are_compared_as_thumbnails():
    assert thumbnails(torch.zeros(2, 3, 64, 64)).shape == (2, 3 * 32 * 32)
    picture = torch.arange(64.0).view(1, 1, 8, 8)
    assert torch.equal(thumbnails(picture / 127.5 - 1), picture.flatten(1))


def test_what_cannot_be_judged_is_said():
    with pytest.raises(ConfigError, match="neither samples nor classifies"):
        evaluate(Silent(), TEST)
    with pytest.raises(DataError, match="28 px pictures of 1"):
        evaluate(mz.create("classifier", classes=2), TEST)
    with pytest.raises(ConfigError, match="at least 2 samples"):
        evaluate(Honest(), TEST, n=1)
    with pytest.raises(ConfigError, match="names no classes"):
        evaluate(Honest(), TEST, classifier=Honest())


# ---- the report


class Page(HTMLParser):
    """Collects what a page shows and what it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.sources, self.open = "", [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "polyline":
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_report_needs_no_other_file_and_shows_everything(honest, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": k, "loss": 1 / (k or float("nan"))}) + "\n" for k in range(900))
        + '{"step": 900, "lo'
    )
    judged = evaluate(Honest(), TEST, train=TRAIN, n=20, classifier=Judge(), run=tmp_path)
    assert 100 < len(judged.curves["loss"]) <= 400
    folder = write_report(judged, tmp_path / "report")
    html = (folder / "report.html").read_text()
    page = Page()
    page.feed(html)
    assert page.open == []
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == 20 + 10 * 5
    assert "http" not in html.replace("data:", "")
    for shown in (
        "fd_classifier",
        "class_accuracy",
        "upright",
        "loss",
        "classifier, 16-d",
        "20 test pictures of stripes",
    ):
        assert shown in page.text, shown
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    document = json.loads((folder / "report.json").read_text())
    assert document == judged.to_dict()
    assert document["numbers"][0]["protocol"]["n"] == 20


def test_a_number_that_is_not_finite_is_null_in_json(tmp_path):
    """Copies among the held-out pictures: their median distance, by which that of the samples is divided, is 0."""
    judged = evaluate(Honest(), TRAIN, train=TRAIN, n=20, classifier=Judge())
    assert judged["distance_ratio"].value == float("inf")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (write_report(judged, tmp_path) / "report.json").read_text()
    document = json.loads(text, parse_constant=refuse)
    assert document == judged.to_dict()
    assert {n["name"]: n["value"] for n in document["numbers"]}["distance_ratio"] is None


def test_the_table_shows_every_number_and_the_whole_protocol(honest):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(honest))
    text = console.export_text()
    for number in honest.numbers:
        assert number.name in text
        for key, value in number.protocol.items():
            assert key in text
            assert str(value) in text


def test_an_unwritable_place_is_answered(honest, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another place"):
        write_report(honest, tmp_path / "file")


# ---- grids


def test_a_grid_shows_each_pixel_where_it_belongs():
    images = torch.stack([torch.full((1, 2, 3), value) for value in (-1.0, 0.0, 1.0)])
    picture = grid(images, columns=2, scale=2, padding=1)
    assert picture.size == (2 * 7 + 1, 2 * 5 + 1)
    assert picture.mode == "L"
    assert [picture.getpixel(place) for place in [(1, 1), (6, 4), (8, 1), (1, 6), (0, 0), (8, 6)]] == [
        0,
        0,
        128,
        255,
        255,
        255,
    ]


def test_a_grid_of_one_is_the_picture_itself():
    levels = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    picture = grid(levels / 127.5 - 1, scale=1, padding=0)
    assert picture.mode == "RGB"
    assert list(picture.tobytes()) == levels[0].permute(1, 2, 0).flatten().tolist()


def test_a_grid_is_nearly_square_and_enlarges_small_pictures(tmp_path):
    picture = grid(torch.zeros(12, 3, 8, 8))
    assert picture.size[0] >= 4 * 64
    assert picture.size[0] > picture.size[1] > picture.size[0] / 2
    grid(torch.zeros(12, 3, 8, 8)).save(tmp_path / "again.png")
    assert Image.open(tmp_path / "again.png").tobytes() == picture.tobytes()


def test_a_grid_of_something_else_is_refused():
    with pytest.raises(DataError, match="shape"):
        grid(torch.zeros(3, 2, 8, 8))
