"""A saved model exists whole or not at all, and damage never goes unnoticed."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
from fnmatch import fnmatch

import pytest
import torch
from toys import register_toys

import mezzotint as mz
from mezzotint.core.checkpoint import checkpoints, latest, load_tensors, save_tensors, verify, writing

register_toys()


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = mz.create("toy", image_size=8)
    model.save(tmp_path / "model")
    return model, tmp_path / "model"


def test_a_saved_model_comes_back_the_same(saved):
    model, directory = saved
    again = mz.load(directory)
    assert again.config == model.config
    assert again.identity == model.identity
    assert torch.equal(again.sample(3, seeds=1), model.sample(3, seeds=1))
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "manifest.json", "model.safetensors"]


def test_saving_again_replaces_the_old_one(saved):
    _, directory = saved
    other = mz.create("toy", image_size=8)
    other.save(directory)
    assert torch.equal(mz.load(directory).sample(2), other.sample(2))
    assert [path.name for path in directory.parent.iterdir()] == ["model"]


def test_what_is_no_model_is_not_overwritten(saved, tmp_path):
    model, _ = saved
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.txt").write_text("sand")
    with pytest.raises(mz.CheckpointError, match="not overwritten"):
        model.save(tmp_path / "holiday")
    assert (tmp_path / "holiday" / "beach.txt").read_text() == "sand"


@pytest.mark.parametrize("extra", ["README.md", "report.html"])
def test_a_model_with_anything_beside_it_is_not_overwritten(saved, extra):
    model, directory = saved
    (directory / extra).write_text("mine")
    with pytest.raises(mz.CheckpointError, match="more than a saved model"):
        model.save(directory)
    assert (directory / extra).read_text() == "mine"


def test_the_manifest_of_another_program_protects_its_folder(saved, tmp_path):
    model, _ = saved
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(mz.CheckpointError, match="not overwritten"):
        model.save(tmp_path / "app")


def test_weights_that_were_not_saved_with_the_model_are_not_loaded(saved, tmp_path):
    """A stale moving average left in the folder of another export."""
    model, directory = saved
    other = mz.create("toy", image_size=8)
    save_tensors(other.state_dict(), directory / "ema.safetensors")
    assert torch.equal(mz.load(directory).sample(1), model.sample(1))
    with pytest.raises(mz.CheckpointError, match="no moving average"):
        mz.load(directory, weights="ema")


def test_a_failed_replacement_leaves_the_old_model(saved, monkeypatch):
    model, directory = saved
    rename = os.rename

    def refusing(source, target):
        if str(target) == str(directory) and str(source).endswith(".tmp"):
            raise OSError("refused")
        rename(source, target)

    monkeypatch.setattr("os.rename", refusing)
    with pytest.raises(mz.CheckpointError, match="refused"):
        mz.create("toy", image_size=8).save(directory)
    assert torch.equal(mz.load(directory).sample(1), model.sample(1))


def test_other_names_beside_the_checkpoints_are_left_alone(saved, tmp_path):
    _, directory = saved
    for name in ("step_00000007", "step_00000010", "step_00000010 copy", "step_00000500_best"):
        shutil.copytree(directory, tmp_path / "run" / "checkpoints" / name)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step_00000007", "step_00000010"]
    assert latest(tmp_path / "run").name == "step_00000010"


@pytest.mark.parametrize("k", range(100))
def test_no_damaged_checkpoint_is_ever_loaded(saved, tmp_path, k):
    """Truncated, bit-flipped, emptied, extended, swapped or missing files: always a CheckpointError."""
    _, directory = saved
    chance = random.Random(k)
    path = chance.choice(sorted(directory.iterdir()))
    data = bytearray(path.read_bytes())
    kind = ("flip", "truncate", "empty", "extend", "remove")[k % 5]
    if kind == "flip":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del data[chance.randrange(len(data)) :]
    elif kind == "empty":
        data.clear()
    elif kind == "extend":
        data += b"\0" * chance.randrange(1, 9)
    path.write_bytes(data)
    if kind == "remove":
        path.unlink()
    with pytest.raises(mz.CheckpointError):
        mz.load(directory)


def test_a_weight_of_another_model_is_refused(saved, tmp_path):
    _, directory = saved
    other = mz.create("toy", image_size=8, width=9)
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", directory)
    with pytest.raises(mz.CheckpointError, match="damaged"):
        mz.load(directory)


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(1)}, file)
    for attempt in (lambda: mz.load(file), lambda: load_tensors(file), lambda: mz.load(tmp_path)):
        with pytest.raises(mz.CheckpointError, match="save_file"):
            attempt()


def test_missing_places_are_named(tmp_path):
    with pytest.raises(mz.CheckpointError, match="nowhere"):
        mz.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(mz.CheckpointError, match="missing"):
        mz.load(tmp_path / "empty")


def test_a_full_disk_leaves_the_model_before_it(saved):
    """The kernel refuses to write beyond a limit, as it does on a full disk."""
    _, directory = saved
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    big = mz.create("toy", image_size=8, width=4000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(mz.CheckpointError, match="free some space"):
            big.save(directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert len(list(directory.parent.iterdir())) == 1


def test_an_error_while_writing_leaves_no_trace(tmp_path):
    def interrupted():
        with writing(tmp_path / "new") as scratch:
            (scratch / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_share_memory_and_layouts_survive(tmp_path):
    base = torch.randn(2, 3, 4, 4)
    tensors = {"a": base, "b": base, "c": base.contiguous(memory_format=torch.channels_last), "d": base[0]}
    save_tensors(tensors, tmp_path / "x.safetensors")
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_the_manifest_covers_every_file(saved):
    _, directory = saved
    listed = json.loads((directory / "manifest.json").read_text())["files"]
    assert set(listed) == {path.name for path in directory.iterdir()} - {"manifest.json"}
    assert verify(directory) == set(listed)


def test_a_model_outside_the_catalogue_says_so(tmp_path):
    from toys import Toy, ToyConfig

    with pytest.raises(mz.CheckpointError, match="register"):
        Toy(ToyConfig(8)).save(tmp_path / "x")


def test_a_hub_repository_is_loaded_from_its_snapshot(saved, tmp_path, monkeypatch):
    model, directory = saved
    asked = []

    def download(repo, allow_patterns):
        """What the hub would bring: the files whose names are allowed."""
        asked.append(repo)
        here = tmp_path / "snapshot"
        shutil.copytree(directory, here, dirs_exist_ok=True)
        for path in here.iterdir():
            if not any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                path.unlink()
        return str(here)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert torch.equal(mz.load("someone/clothes-v1.5").sample(1), model.sample(1))
    assert asked == ["someone/clothes-v1.5"]


def test_a_place_that_is_no_name_on_the_hub_is_a_missing_folder():
    with pytest.raises(mz.CheckpointError, match="runs/my clothes"):
        mz.load("runs/my clothes")


def test_a_hub_repository_out_of_reach_is_a_checkpoint_error(monkeypatch):
    def offline(repo, **_):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(mz.CheckpointError, match="someone/clothes"):
        mz.load("someone/clothes")


def test_stages_are_built_and_saved_as_one(tmp_path):
    model = mz.create("toy-stages", image_size=8)
    model.save(tmp_path / "both")
    assert torch.equal(mz.load(tmp_path / "both").sample(2), model.sample(2))
