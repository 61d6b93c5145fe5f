"""The command as a user meets it: what it prints, what it writes, and how it answers mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import mezzotint as mz
from mezzotint import cli
from mezzotint.core.batch import PictureSpec
from mezzotint.core.errors import ConfigError
from mezzotint.data import spread_over
from mezzotint.data.grid import grid
from mezzotint.diffusion.grids import GRIDS
from mezzotint.diffusion.solvers import SOLVERS
from mezzotint.systems import catalogue, configure
from mezzotint.vae.traversal import traverse


@pytest.fixture
def call(monkeypatch, capfd):
    """`call("sample", ...)` -> (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mezzotint", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A rectified flow trained for four steps, a classifier trained for sixty, and two GANs not trained at all."""
    root = tmp_path_factory.mktemp("runs")
    for system, name, pictures, batch in (("rectified-flow", "flow", 64, 16), ("classifier", "judge", 1920, 32)):
        command = [sys.executable, "-m", "mezzotint", "train", system, "--data", "fashion", "--out", root / name]
        options = ["--image-size", "16", "--pictures", pictures, "--set", f"batch_size={batch}", "--json"]
        done = subprocess.run([*map(str, command), *map(str, options)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["pictures"] == pictures  # one JSON document and nothing else
    mz.create("dcgan", image_size=16, latent=8).save(root / "gan")
    mz.create("cgan", image_size=16, classes=("shirt", "dress")).save(root / "told")
    mz.create("vae", image_size=16, latent=6).save(root / "vae")
    mz.create("draw", image_size=16, glimpses=5).save(root / "draw")
    mz.create("denoising-autoencoder", image_size=16).save(root / "repairs")
    mz.create("vdvae", image_size=16).save(root / "ladder")
    return root


def test_systems_are_listed_and_described(call):
    code, out, _ = call("systems")
    assert code == 0
    assert all(name in out for name in ("ddpm", "rectified-flow", "classifier"))
    code, out, _ = call("systems", "--json")
    listed = {entry["name"]: entry for entry in json.loads(out)}
    assert listed["ddpm"]["paper"]["arxiv"] == "2006.11239"
    for name in listed:
        code, out, _ = call("describe", name)
        assert code == 0
        assert "parameters" in out
        assert json.loads(call("describe", name, "--json")[1])["stages"]


def test_no_name_is_cut_short_on_a_narrow_terminal(call):
    listed = {entry["name"] for entry in json.loads(call("systems", "--json")[1])}
    assert listed == {line.split()[0] for line in call("systems")[1].splitlines()[1:] if line[:2].strip()}


def test_help_names_every_solver_and_grid():
    assert cli.SOLVERS.split(", ") == list(SOLVERS)
    assert cli.GRIDS.split(", ") == list(GRIDS)


def test_a_control_that_is_given_twice_is_refused(call, run, tmp_path):
    code, _, said = call("sample", run / "flow", "--steps", 3, "--control", "steps=4", "--out", tmp_path / "a.png")
    assert code == 2
    assert "--steps is asked for twice" in said


def test_several_numbers_are_one_control(call, run, tmp_path):
    for k, interval in enumerate(("0.2,0.8", "[0.2, 0.8]")):
        options = ("--steps", 3, "--guidance", 3, "--control", f"guidance_interval={interval}")
        assert call("sample", run / "flow", "--n", 1, "--out", tmp_path / f"{k}.png", *options)[0] == 0
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()


def test_one_grid_or_a_folder_of_pictures(call, run, tmp_path):
    code, out, _ = call("sample", run / "flow", "--n", 4, "--steps", 2, "--out", tmp_path / "grid.png", "--seed", 3)
    assert (code, out.strip()) == (0, str(tmp_path / "grid.png"))
    code, out, _ = call(
        "sample", run / "flow", "--n", 4, "--steps", 2, "--out", tmp_path / "all", "--seed", 3, "--json"
    )
    assert code == 0
    assert json.loads(out)["n"] == 4
    rows = [json.loads(line) for line in (tmp_path / "all" / "metadata.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [3, 4, 5, 6]
    with Image.open(tmp_path / "all" / "000003.png") as picture:
        assert picture.size == (16, 16)


def test_precision_reaches_the_network(call, run, tmp_path):
    pictures = []
    for precision in ("fp32", "bf16"):
        options = ("--steps", 2, "--seed", 1, "--n", 1, "--precision", precision)
        call("sample", run / "flow", "--out", tmp_path / precision, *options)
        pictures.append(np.asarray(Image.open(tmp_path / precision / "000001.png")).astype(int))
    assert 0 < abs(pictures[0] - pictures[1]).max() < 40


def test_a_folder_of_samples_grows_and_other_folders_are_left_alone(call, run, tmp_path):
    for seed in (0, 2):
        assert call("sample", run / "flow", "--out", tmp_path / "s", "--n", 2, "--steps", 1, "--seed", seed)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "s" / "metadata.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in rows] == [0, 1, 2, 3]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metadata.jsonl").write_text('{"file_name": "cat.png", "text": "a cat"}')
    code, _, err = call("sample", run / "flow", "--out", tmp_path / "mine", "--n", 2, "--steps", 1)
    assert code == 2
    assert "choose a new folder" in err
    assert "a cat" in (tmp_path / "mine" / "metadata.jsonl").read_text()


def test_a_picture_depends_on_its_seed_alone(call, run, tmp_path):
    options = ("--steps", 2, "--label", "dress", "--precision", "fp32")
    call("sample", run / "flow", "--n", 3, "--out", tmp_path / "a", "--seed", 10, *options)
    call("sample", run / "flow", "--n", 1, "--out", tmp_path / "b", "--seed", 12, *options)
    pictures = [np.asarray(Image.open(tmp_path / folder / "000012.png")).astype(int) for folder in "ab"]
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_evaluation_prints_its_protocol_and_writes_a_report(call, run, tmp_path):
    options = ("--data", "fashion", "--n", 40, "--steps", 2, "--classifier", run / "judge")
    options += ("--features", f"classifier:{run / 'judge'}", "--out", tmp_path)
    code, out, err = call("evaluate", run / "flow", *options, "--json")
    assert code == 0, err
    assert json.loads(out) == json.loads((tmp_path / "report.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http" not in page.split("<body", 1)[0]  # self-contained
    code, out, _ = call("evaluate", run / "flow", *options)
    assert code == 0
    assert "fd_classifier" in out
    assert "n: 40" in out
    assert "precision" in out


def test_the_way_between_two_seeds_begins_and_ends_with_their_pictures(call, run, tmp_path):
    row = tmp_path / "way.png"
    code, out, err = call("interpolate", run / "gan", "--from", 3, "--to", 7, "--n", 4, "--out", row)
    assert (code, out.strip()) == (0, str(row)), err
    call("sample", run / "gan", "--seed", 3, "--n", 1, "--out", tmp_path / "first.png")
    with Image.open(row) as way, Image.open(tmp_path / "first.png") as first:
        found, expected = (np.asarray(picture).astype(int) for picture in (way, first))
    assert abs(found[:, : expected.shape[1]] - expected).max() <= 1
    code, out, _ = call(
        "interpolate", run / "told", "--n", 3, "--label", "dress", "--out", tmp_path / "way.gif", "--json"
    )
    assert code == 0
    assert json.loads(out)["n"] == 3
    with Image.open(tmp_path / "way.gif") as film:
        assert film.n_frames == 4  # there, and the middle once more on the way back


def test_each_row_of_a_traversal_changes_one_dimension(call, run, tmp_path):
    asked = ("traverse", run / "vae", "--data", "fashion", "--picture", 3, "--dimensions", 4, "--reference", 20,
             "--precision", "fp32")  # fmt: skip
    code, out, _ = call(*asked, "--out", tmp_path / "rows.png", "--json")
    assert code == 0
    assert json.loads(out)["dimensions"] == 4
    model, pictures = mz.load(run / "vae"), mz.data.open_pictures("fashion", split="test", image_size=16)
    picture = pictures.batch([3]).images
    expected = traverse(model, picture, dimensions=4, reference=pictures.batch(spread_over(len(pictures), 20)).images)
    grid(expected.flatten(0, 1), columns=9).save(tmp_path / "expected.png")
    assert np.array_equal(Image.open(tmp_path / "rows.png"), Image.open(tmp_path / "expected.png"))


def test_pictures_stand_above_what_is_made_of_them(call, run, tmp_path):
    """In blocks of ten; a denoising model is shown them spoiled, which is the row between."""
    shown = mz.data.open_pictures("fashion", split="test", image_size=16)
    images = shown.batch(spread_over(len(shown), 12)).images
    expected = {"vae": 2, "repairs": 3}
    for name, rows in expected.items():
        asked = ("reconstruct", run / name, "--data", "fashion", "--n", 12, "--seed", 5, "--precision", "fp32")
        code, out, err = call(*asked, "--out", tmp_path / f"{name}.png", "--json")
        assert code == 0, err
        assert json.loads(out)["n"] == 12
        model = mz.load(run / name)
        given = images if rows == 2 else model.corrupt(images, range(5, 17))
        parts = [images, *([given] if rows == 3 else []), model.reconstruct(given)]
        blank = torch.ones(8, 1, 16, 16)
        sheet = [part[:10] for part in parts] + [torch.cat([part[10:], blank]) for part in parts]
        grid(torch.cat(sheet), columns=10).save(tmp_path / "expected.png")
        assert np.array_equal(Image.open(tmp_path / f"{name}.png"), Image.open(tmp_path / "expected.png"))


def test_a_picture_is_shown_while_it_is_painted(call, run, tmp_path):
    """As a strip whose last column is what `sample` draws, as an animation, and as one of pictures that are known."""
    code, out, _ = call(
        "paint", run / "draw", "--out", tmp_path / "strip.png", "--n", 2, "--precision", "fp32", "--json"
    )
    assert code == 0
    assert json.loads(out)["steps"] == 5
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    side = 16 * round(1.3 * 64 / 16)
    margin = (strip.shape[1] - 5 * side) // 6
    last = strip[margin : margin + side, 4 * (side + margin) + margin :, :][:, :side].astype(float)
    expected = mz.load(run / "draw").sample(1, seeds=0)[0, 0]
    expected = ((expected + 1) * 127.5).round().repeat_interleave(side // 16, 0).repeat_interleave(side // 16, 1)
    grey = (last == last[..., :1]).all(-1)  # not red
    assert grey.mean() > 0.5
    assert np.abs(last[..., 0] - expected.numpy())[grey].max() <= 1
    code, *_ = call("paint", run / "draw", "--out", tmp_path / "folder" / "strip.gif", "--n", 2)
    assert code == 0
    assert Image.open(tmp_path / "folder" / "strip.gif").n_frames == 6
    code, *_ = call("paint", run / "draw", "--data", "fashion", "--out", tmp_path / "again.png", "--n", 2)
    assert code == 0
    assert Image.open(tmp_path / "again.png").height == pytest.approx(2 * strip.shape[0], abs=margin)
    code, *_ = call("paint", run / "draw", "--data", "fashion", "--out", tmp_path / "again.gif", "--n", 3)
    assert code == 0
    with Image.open(tmp_path / "again.gif") as film:
        assert film.n_frames == 6
        assert film.width == pytest.approx(1.5 * film.height, rel=0.03)  # two rows of three


def test_codes_are_added_and_subtracted(call, run, tmp_path):
    sheet = tmp_path / "sum.png"
    seeds = ("--base", "1,2,3", "--plus", "4,5", "--minus", "4,5")
    code, out, err = call("arithmetic", run / "gan", *seeds, "--around", 0, "--out", sheet)
    assert (code, out.strip()) == (0, str(sheet)), err
    with Image.open(sheet) as picture:
        rows, columns = 4, 4
        pixels = np.asarray(picture).astype(int)
    margin = pixels.shape[0] % rows
    tiles = pixels[margin:, margin:].reshape(rows, pixels.shape[0] // rows, columns, -1)
    assert abs(tiles[3, :, 0] - tiles[0, :, 3]).max() <= 1  # what was added was taken away: the mean of the base


def test_draws_of_a_likelihood_are_numbers():
    model = mz.create("vae", image_size=8)
    assert cli._measured(model, ["samples=5000"]) == {"samples": 5000}
    assert cli._measured(model, None) == {}
    with pytest.raises(ConfigError, match="--likelihood samples=many"):
        cli._measured(model, ["samples=many"])


def test_words_are_values_of_their_own_kind():
    model = mz.create("stylegan2", image_size=16)
    assert cli._controls(model, {}, ["noise=const", "cutoff=2"]) == {"noise": "const", "cutoff": 2}
    with pytest.raises(ConfigError, match="--control noise=loud: input should be 'random', 'const' or 'none'"):
        cli._controls(model, {}, ["noise=loud"])
    assert cli._ways(["space=w", "epsilon=0.01", "label=3"]) == {"space": "w", "epsilon": 0.01, "label": 3}
    assert cli._ways(None) == {}
    with pytest.raises(ConfigError, match="--path-length space=v: input should be 'z' or 'w'"):
        cli._ways(["space=v"])
    with pytest.raises(ConfigError, match="no option 'spcae'; did you mean 'space'"):
        cli._ways(["spcae=w"])


def test_path_length_and_equivariance_are_numbers_beside_the_others(call, tmp_path):
    mz.create("stylegan3-t", image_size=16).save(tmp_path / "waves")
    mz.create("classifier", image_size=16, classes=2).save(tmp_path / "judge")
    options = ("--data", "fashion", "--n", 4, "--features", f"classifier:{tmp_path / 'judge'}", "--out", tmp_path / "r")
    asked = ("--path-length-n", 2, "--path-length", "space=w", "--equivariance-n", 2)
    code, out, err = call("evaluate", tmp_path / "waves", *options, *asked, "--json")
    assert code == 0, err
    numbers = {number["name"]: number for number in json.loads(out)["numbers"]}
    assert {"eq_t", "eq_t_frac", "eq_r", "ppl_classifier", "fd_classifier"} <= numbers.keys()
    assert numbers["ppl_classifier"]["protocol"]["space"] == "w"
    assert numbers["ppl_classifier"]["protocol"]["features"] == numbers["fd_classifier"]["protocol"]["features"]
    assert numbers["eq_r"]["protocol"]["n"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("train", "ddmp", "--data", "fashion", "--out", "x"), 2, "did you mean 'ddpm'"),
        (("describe", "rectifiedflow"), 2, "did you mean 'rectified-flow'"),
        (("train", "ddpm", "--data", "fashoin", "--out", "x"), 1, "fashion"),
        (("train", "ddpm", "--data", "fashion", "--out", "x", "--size", "smal"), 2, "did you mean 'small'"),
        (("train", "ddpm", "--data", "fashion", "--out", "x", "--set", "stpes=3"), 2, "did you mean 'steps'"),
        (("train", "ddpm", "--data", "fashion", "--out", "x", "--set", "steps"), 2, "KEY=VALUE"),
        (("train", "ddpm", "--data", "fashion", "--out", "x", "--minutes", "1", "--pictures", "9"), 2, "not both"),
        (("train", "ddpm", "--data", "fashion", "--out", "x", "--minutes", "0"), 2, "above 0"),
        (("train", "ddpm", "--data", "fashion", "--out", "x", "--precision", "fp16"), 2, "fp16 needs a GPU"),
        (("train", "ddpm", "--data", "fashion", "--out", "x", "--pixels", "9"), 2, "No such option"),
        (("train", "ddpm", "--data", "fashion"), 2, "--out"),
        (("smaple",), 2, "No such command"),
        (("sample", "nowhere", "--out", "x.png"), 1, "nowhere"),
        (("sample", "FLOW", "--out", "x.png", "--label", "dres"), 2, "did you mean 'dress'"),
        (("sample", "FLOW", "--out", "x.png", "--label", "11"), 2, "no class is called '11'"),
        (("sample", "FLOW", "--out", "x.png", "--solver", "eular"), 2, "did you mean 'euler'"),
        (("sample", "FLOW", "--out", "x.png", "--n", "0"), 2, "--n"),
        (("sample", "FLOW", "--out", "x.png", "--grid", "kerras"), 2, "did you mean 'karras'"),
        (("sample", "FLOW", "--out", "x.png", "--source", "fashion"), 2, "begins from noise"),
        (("sample", "FLOW", "--out", "x.png", "--control", "etta=1"), 2, "did you mean 'eta'"),
        (("sample", "FLOW", "--out", "x.png", "--control", "eta=much"), 2, "valid number"),
        (("sample", "FLOW", "--out", "x.png", "--control", "eta=0.5"), 2, "belongs to the solver ddim"),
        (("sample", "FLOW", "--out", "x.png", "--control", "steps=2.5"), 2, "valid integer"),
        (("sample", "FLOW", "--out", "x.png", "--control", "solver=5"), 2, "no solver is called '5'"),
        (("sample", "FLOW", "--out", "x.png", "--control", "guidance_interval=0.5"), 2, "too few values"),
        (("sample", "FLOW", "--out", "x.png", "--control", "guidance_interval=0,1,2"), 2, "at most 2"),
        (("sample", "FLOW", "--out", "x.png", "--control", "guidance_interval=0.8,0.2"), 2, "an earliest and a latest"),
        (("evaluate", "JUDGE", "--data", "fashion", "--steps", "3"), 2, "draws no pictures"),
        (("evaluate", "FLOW", "--data", "fashion", "--source", "fashion/sneaker"), 2, "--source means nothing"),
        (("evaluate", "JUDGE", "--data", "fashion", "--likelihood", "samples=5"), 2, "knows no likelihood"),
        (("evaluate", "FLOW", "--data", "fashion", "--likelihood", "5"), 2, "--likelihood takes KEY=VALUE"),
        (("evaluate", "FLOW", "--data", "fashion", "--equivariance-n", "2"), 2, "cannot be told to move"),
        (("evaluate", "JUDGE", "--data", "fashion", "--path-length-n", "2"), 2, "of no code"),
        (("evaluate", "GAN", "--data", "fashion", "--path-length", "space=w"), 2, "path_length_n, the number of"),
        (("sample", "JUDGE", "--out", "x.png"), 2, "does not draw"),
        (("sample", "FLOW", "--out", "x.png", "--label", "²"), 2, "no class is called"),
        (("sample", "runs/my clothes", "--out", "x.png"), 1, "runs/my clothes"),
        (("train", "ddpm", "--data", "fashion", "--out", "x", "--set", "accumulate=0"), 2, "accumulate"),
        (("train", "ddpm", "--data", "fashion", "--out", "x", "--set", "network.groups=0"), 2, "groups"),
        (("evaluate", "owner/name", "--data", "fashion"), 2, "--out"),
        (("evaluate", "FLOW", "--data", "fashion", "--features", "incepton"), 2, "did you mean 'inception'"),
        (("evaluate", "FLOW", "--data", "fashion", "--n", "20", "--classifier", "nowhere"), 1, "nowhere"),
        (("train", "ddpm", "--data", "EMPTY", "--out", "x"), 1, "no pictures"),
        (("interpolate", "JUDGE", "--out", "x.png"), 2, "no picture of a code"),
        (("interpolate", "GAN", "--out", "x.png", "--n", "1"), 2, "--n"),
        (("interpolate", "GAN", "--out", "x"), 2, "no picture file"),
        (("interpolate", "GAN", "--out", "x.png", "--from", "one"), 2, "--from"),
        (("interpolate", "GAN", "--out", "x.png", "--label", "dress"), 2, "trained without labels"),
        (("interpolate", "TOLD", "--out", "x.png"), 2, "--label: shirt, dress"),
        (("interpolate", "TOLD", "--out", "x.png", "--label", "dres"), 2, "did you mean 'dress'"),
        (("interpolate", "nowhere", "--out", "x.png"), 1, "nowhere"),
        (("arithmetic", "GAN", "--out", "x.png", "--base", "1", "--plus", "2"), 2, "--minus"),
        (
            ("arithmetic", "GAN", "--out", "x.png", "--base", "1", "--plus", "a", "--minus", "3"),
            2,
            "--plus takes seeds",
        ),
        (("reconstruct", "GAN", "--data", "fashion", "--out", "x.png"), 2, "reconstructs no pictures"),
        (("reconstruct", "DRAW", "--data", "EMPTY", "--out", "x.png"), 1, "no pictures"),
        (("paint", "GAN", "--out", "x.png"), 2, "paints no picture step by step"),
        (("paint", "DRAW", "--out", "x"), 2, "no picture file"),
        (("paint", "DRAW", "--out", "x.psd"), 2, "no picture file"),
        (("paint", "DRAW", "--out", "x.png", "--data", "fashion", "--seed", "3"), 2, "--seed means nothing"),
        (("paint", "DRAW", "--out", "x.png", "--data", "nowhere"), 1, "nowhere"),
        (("traverse", "GAN", "--data", "fashion", "--out", "x.png"), 2, "no code with a posterior"),
        (("traverse", "LADDER", "--data", "fashion", "--out", "x.png"), 2, "cannot be traversed"),
        (("traverse", "DRAW", "--data", "fashion", "--out", "x.png", "--picture", "2000"), 2, "at most 1999"),
        (("arithmetic", "GAN", "--out", "x.png", "--base", "1,", "--plus", "1", "--minus", "3"), 2, "--base takes"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(call, run, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    places = {"FLOW": run / "flow", "JUDGE": run / "judge", "EMPTY": tmp_path}
    places |= {"GAN": run / "gan", "TOLD": run / "told", "DRAW": run / "draw", "LADDER": run / "ladder"}
    ended, out, err = call(*(places.get(argument, argument) for argument in arguments))
    assert (ended, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_a_source_that_says_nothing_to_a_system_is_refused_before_anything_is_trained(call, tmp_path):
    """One that completes pictures takes a source when it draws, and yet none to learn from."""
    given = ("--data", "fashion", "--source", "fashion/sneaker", "--out", tmp_path / "run")
    code, out, err = call("train", "cvae", *given)
    assert (code, out) == (2, "")
    assert "cvae has no use for a second set of pictures; leave --source away" in err
    assert not (tmp_path / "run").exists()
    spec = PictureSpec(16, 3, ("shirt", "dress"), captions=True, source=True)
    for system in catalogue().values():
        if "source" in system.needs:
            configure(system, spec)
            continue
        with pytest.raises(ConfigError, match=f"{system.name} has no use for a second set"):
            configure(system, spec)


def test_an_error_is_json_too_where_json_is_asked_for(call):
    code, out, _ = call("describe", "ddmp", "--json")
    assert code == 2
    assert "did you mean 'ddpm'" in json.loads(out)["error"]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "mezzotint", "train", "rectified-flow", "--data", "fashion", "--out", str(out)]
    command += ["--image-size", "16", "--set", "batch_size=8", "--minutes", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"mezzotint train rectified-flow --data fashion --out {out} --resume" in err
    assert "Traceback" not in err
    assert list((out / "checkpoints").glob("step_*"))
    again = subprocess.run([*command[:9], "--resume", "--pictures", "8"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


def test_a_closed_pipe_is_no_traceback():
    process = subprocess.run(
        f"{sys.executable} -m mezzotint systems | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert "Traceback" not in process.stderr
