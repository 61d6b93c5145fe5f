"""One loop for every model: players, turns, budgets, resuming, stopping."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
from dataclasses import replace

import pytest
import torch
from toys import RECIPE, ToyConfig, register_toys

import mezzotint as mz
from mezzotint.core.checkpoint import latest, load_tensors
from mezzotint.core.model import Losses
from mezzotint.core.records import read_metrics
from mezzotint.core.system import Optimizer
from mezzotint.data import open_pictures
from mezzotint.training.journal import time_left
from mezzotint.training.run import RunSettings, read_settings, train
from mezzotint.training.schedule import Budget
from mezzotint.training.trainer import Trainer

register_toys()


@pytest.fixture(scope="module")
def pictures():
    return open_pictures("fashion", image_size=8)


def trainer(tmp_path, pictures, name="toy", budget=None, recipe=RECIPE, model=None, **options) -> Trainer:
    torch.manual_seed(0)
    model = model or mz.create(name, image_size=8)
    options = {"precision": "fp32", **options}
    return Trainer(model, pictures, tmp_path / "run", recipe, budget or Budget(pictures=80), **options)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_loss_falls(tmp_path, pictures):
    run = trainer(tmp_path, pictures, budget=Budget(pictures=3000))
    outcome = run.run()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert outcome.position.pictures == 3000
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert [row["step"] for row in rows] == [1, *range(10, 375, 10), 375]  # and the last step, whatever its number
    assert {"loss", "error", "gradient_norm/model", "lr", "pictures_per_second", "skipped"} <= set(rows[-1])


def test_players_move_in_turns_and_only_the_mover_changes(tmp_path, pictures):
    run = trainer(tmp_path, pictures, "toy-gan")
    moved = []
    step = run._move

    def watched(player, rate):
        before = {name: weights(part).clone() for name, part in run.players.items()}
        norm = step(player, rate)
        moved.append(
            (player, [name for name, part in run.players.items() if not torch.equal(weights(part), before[name])])
        )
        return norm

    run._move = watched
    run.run()
    assert moved[:3] == [("critic", ["critic"]), ("critic", ["critic"]), ("generator", ["generator"])]
    assert run.position.batches == len(moved)
    assert run.position.pictures == 8 * len(moved) >= 80


def test_a_batch_in_parts_gives_the_same_step(tmp_path, pictures):
    whole = trainer(tmp_path / "a", pictures, recipe=replace(RECIPE, optimizers={"model": Optimizer("sgd", lr=0.1)}))
    parts = trainer(tmp_path / "b", pictures, recipe=replace(whole.recipe, accumulate=4))
    whole.run()
    parts.run()
    assert torch.allclose(weights(whole.model), weights(parts.model), atol=1e-6)


def test_clipping_bounds_the_step(tmp_path, pictures):
    """With plain gradient descent the step is rate x clipped norm."""
    settings = Optimizer("sgd", lr=1.0, betas=(0.0, 0.0), clip=1e-3)
    run = trainer(tmp_path, pictures, recipe=replace(RECIPE, warmup=0, optimizers={"model": settings}))
    before = weights(run.model).clone()
    run._step(run.model, 1.0)
    assert (weights(run.model) - before).norm() == pytest.approx(1e-3, rel=1e-2)


def test_the_first_step_of_adamax_is_the_rate_in_every_number(tmp_path, pictures):
    """Kingma and Ba 2014 (arXiv 1412.6980), algorithm 2: m / (1 - beta_1) is the gradient, u its size."""
    settings = Optimizer("adamax", lr=1e-3, eps=0.0, clip=None)
    run = trainer(tmp_path, pictures, recipe=replace(RECIPE, warmup=0, optimizers={"model": settings}))
    before = weights(run.model).clone()
    run._step(run.model, 1.0)
    assert torch.allclose((weights(run.model) - before).abs(), torch.tensor(1e-3), rtol=1e-3)
    run.run()


def test_a_poisoned_run_stops_and_says_so(tmp_path, pictures):
    recipe = replace(RECIPE, max_skips=4)
    model = mz.create("toy", image_size=8, poison_after=3)
    with pytest.raises(mz.TrainingError, match="4 gradients of the player 'model' in a row"):
        trainer(tmp_path, pictures, recipe=recipe, model=model, save_every=8).run()
    saved = load_tensors(latest(tmp_path / "run") / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


@pytest.mark.parametrize("name", ["toy", "toy-gan"])
def test_a_resumed_run_ends_bit_identical(tmp_path, pictures, name):
    whole = trainer(tmp_path / "whole", pictures, name, Budget(pictures=480))
    whole.run()
    first = trainer(tmp_path / "parts", pictures, name, Budget(pictures=480))
    move, moves = first._move, []

    def stop_after_seven(player, rate):
        moves.append(player)
        first.asked_to_stop = len(moves) >= 7
        return move(player, rate)

    first._move = stop_after_seven
    assert first.run().interrupted
    second = trainer(tmp_path / "parts", pictures, name, Budget(pictures=480))
    second.resume()
    assert 0 < second.position.pictures < 480
    second.run()
    for file in ("model", "ema", "state"):
        one, other = (load_tensors(latest(tmp_path / w / "run") / f"{file}.safetensors") for w in ("whole", "parts"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file


def test_metrics_read_like_those_of_an_uninterrupted_run(tmp_path, pictures):
    run = trainer(tmp_path, pictures, budget=Budget(pictures=400), save_every=80)
    run.run()
    shutil.rmtree(latest(tmp_path / "run"))  # the newest checkpoint is lost: 40 or more pictures are trained again
    again = trainer(tmp_path, pictures, budget=Budget(pictures=400))
    again.resume()
    again.run()
    steps = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert steps == sorted(set(steps)) == [1, 10, 20, 30, 40, 50]


def test_interrupting_saves(tmp_path, pictures):
    run = trainer(tmp_path, pictures, budget=Budget(minutes=5))
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    outcome = run.run()
    assert outcome.interrupted
    assert outcome.position.step == int(latest(tmp_path / "run").name.removeprefix("step_"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_budget_in_minutes_is_kept(tmp_path, pictures):
    outcome = trainer(tmp_path, pictures, budget=Budget(minutes=0.02)).run()
    assert 1.2 <= outcome.position.seconds < 2.0
    assert not outcome.interrupted


def test_only_the_newest_checkpoints_are_kept(tmp_path, pictures):
    trainer(tmp_path, pictures, save_every=16).run()
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_00000008", "step_00000010"]


def test_a_damaged_checkpoint_names_the_one_before_it(tmp_path, pictures):
    trainer(tmp_path, pictures, save_every=16).run()
    newest = latest(tmp_path / "run")
    (newest / "state.safetensors").write_bytes(b"")
    with pytest.raises(mz.CheckpointError, match="step_00000008"):
        trainer(tmp_path, pictures).resume()
    shutil.rmtree(newest)
    again = trainer(tmp_path, pictures)
    again.resume()
    assert again.position.step == 8


def test_a_run_without_an_average_saves_none(tmp_path, pictures):
    trainer(tmp_path, pictures, recipe=replace(RECIPE, ema_half_life=0)).run()
    assert not (latest(tmp_path / "run") / "ema.safetensors").exists()
    with pytest.raises(mz.CheckpointError, match="no moving average"):
        mz.load(tmp_path / "run", weights="ema")


def test_weights_are_chosen_by_name(tmp_path, pictures):
    run = trainer(tmp_path, pictures)
    run.run()
    averaged = mz.load(tmp_path / "run")
    assert torch.equal(weights(averaged), weights(run.average.model))
    assert torch.equal(weights(mz.load(tmp_path / "run", weights="model")), weights(run.model))
    with pytest.raises(mz.ConfigError, match="best"):
        mz.load(tmp_path / "run", weights="worst")


@pytest.mark.parametrize(
    ("options", "words"), [({"precision": "fp16"}, "needs a GPU"), ({"precision": "fp8"}, "did you mean")]
)
def test_what_this_machine_cannot_do_is_said(tmp_path, pictures, options, words):
    with pytest.raises(mz.ConfigError, match=words):
        trainer(tmp_path, pictures, **options)


def test_a_batch_that_cannot_be_split_is_refused(tmp_path, pictures):
    with pytest.raises(mz.ConfigError, match="multiple of 3"):
        trainer(tmp_path, pictures, recipe=replace(RECIPE, accumulate=3))


def test_bf16_trains(tmp_path, pictures):
    run = trainer(tmp_path, pictures, precision="bf16", budget=Budget(pictures=800))
    seen = []
    forward = run.model.net[0].forward
    run.model.net[0].forward = lambda x: seen.append(forward(x).dtype) or forward(x)
    run.run()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in run.model.parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_run_learns_the_same(tmp_path, pictures):
    plain = trainer(tmp_path / "a", pictures)
    compiled = trainer(tmp_path / "b", pictures, recipe=replace(RECIPE, compile=True))
    plain.run()
    compiled.run()
    assert torch.allclose(weights(plain.model), weights(compiled.model), atol=1e-5)


@pytest.mark.parametrize(("devices", "strides"), [({"cpu"}, (192, 1, 24, 3)), (set(), (192, 64, 8, 1))])
def test_parameters_and_pictures_have_the_layout_of_the_device(tmp_path, monkeypatch, devices, strides):
    monkeypatch.setattr("mezzotint.training.trainer.CHANNELS_LAST", devices)
    pictures = open_pictures("fashion", image_size=8, channels=3)
    run = trainer(tmp_path, pictures, model=mz.create("toy", image_size=8, channels=3, width=4))
    assert run.model.net[3].weight.is_contiguous(memory_format=torch.channels_last) == bool(devices)
    seen = []
    forward = run.model.forward
    run.model.forward = lambda batch, player: seen.append(batch.images.stride()) or forward(batch, player)
    run._step(run.model, 1.0)
    assert seen == [strides]


def test_previews_are_drawn_on_the_way(tmp_path, pictures):
    train(RunSettings("toy", "fashion", image_size=8, budget=Budget(pictures=4000), precision="fp32"), tmp_path / "run")
    grids = sorted((tmp_path / "run" / "samples").iterdir())
    assert len(grids) >= 2
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    held_out = [row["preview/held_out_loss"] for row in rows if "preview/held_out_loss" in row]
    assert len(held_out) == len(grids)
    assert held_out[-1] < held_out[0]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_stages_train_in_order_and_make_one_generator(tmp_path):
    settings = RunSettings("toy-stages", "fashion", image_size=8, budget=Budget(pictures=160), precision="fp32")
    train(settings, tmp_path / "run")
    codec, both = mz.load(tmp_path / "run" / "codec"), mz.load(tmp_path / "run")
    assert codec.identity.stage == "codec"
    assert torch.equal(weights(codec), weights(both.codec))
    assert both.scale != 1.0


def test_a_run_is_not_overwritten_and_resumes_with_its_own_settings(tmp_path):
    settings = RunSettings("toy", "fashion", image_size=8, budget=Budget(pictures=80), precision="fp32", seed=4)
    train(settings, tmp_path / "run")
    with pytest.raises(mz.ConfigError, match="--resume"):
        train(settings, tmp_path / "run")
    with pytest.raises(mz.ConfigError, match="'toy', not 'toy-gan'"):
        train(replace(settings, system="toy-gan"), tmp_path / "run", resume=True)
    outcome = train(RunSettings("toy", "fashion", budget=Budget(pictures=160)), tmp_path / "run", resume=True)
    assert outcome.position.pictures == 160
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 4


def test_a_resumed_run_may_change_recipe_and_precision_but_not_the_model(tmp_path):
    settings = RunSettings("toy", "fashion", image_size=8, budget=Budget(pictures=80), changes={"width": "6"})
    train(settings, tmp_path / "run")
    cooler = {"optimizers.model.lr": "1e-4", "width": "6"}
    asked = RunSettings("toy", "fashion", budget=Budget(pictures=160), precision="fp32", changes=cooler)
    train(asked, tmp_path / "run", resume=True)
    kept = read_settings(tmp_path / "run")
    assert (kept.precision, kept.changes) == ("fp32", cooler)
    with pytest.raises(mz.ConfigError, match="width is part of the model"):
        train(replace(asked, changes={"width": "7"}), tmp_path / "run", resume=True)


def test_a_run_of_another_seed_or_model_is_not_continued(tmp_path, pictures):
    trainer(tmp_path, pictures, seed=1).run()
    with pytest.raises(mz.CheckpointError, match="seed 1, not 2"):
        trainer(tmp_path, pictures, seed=2).resume()
    with pytest.raises(mz.CheckpointError, match="another model"):
        trainer(tmp_path, pictures, seed=1, model=mz.create("toy", image_size=8, classes=2)).resume()


def test_a_flipped_setting_is_noticed(tmp_path):
    settings = RunSettings("toy", "fashion", image_size=8, budget=Budget(pictures=80), seed=4)
    train(settings, tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace('"seed": 4', '"seed": 5'))
    with pytest.raises(mz.CheckpointError, match="not what was saved"):
        train(settings, tmp_path / "run", resume=True)


def test_an_interrupted_first_stage_is_not_overwritten(tmp_path):
    settings = RunSettings("toy-stages", "fashion", image_size=8, budget=Budget(pictures=160))
    train(settings, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(mz.ConfigError, match="--resume"):
        train(settings, tmp_path / "run")
    assert train(settings, tmp_path / "run", resume=True).position.pictures == 80


def test_a_preview_that_fails_loses_nothing(tmp_path, pictures):
    def broken(model, step):
        raise mz.ConfigError("cannot be drawn")

    with pytest.raises(mz.ConfigError, match="cannot be drawn"):
        trainer(tmp_path, pictures, preview=broken).run()
    assert latest(tmp_path / "run").name == "step_00000002"


def test_a_full_disk_is_an_error_in_words(tmp_path, pictures, monkeypatch):
    run = trainer(tmp_path, pictures, budget=Budget(pictures=400), save_every=80)

    def full(journal, step, numbers):
        if step >= 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mezzotint.training.journal.Journal.write", full)
    with pytest.raises(mz.TrainingError, match="No space left"):
        run.run()
    assert mz.load(tmp_path / "run")


def test_a_run_in_half_precision_skips_what_overflows(tmp_path, pictures):
    """The scale of fp16 gradients falls after an overflow, survives a checkpoint, and no refused gradient is used."""
    run = trainer(tmp_path, pictures)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    forward = run.model.forward
    run.model.forward = lambda batch, player: Losses(1e4 * forward(batch, player).total, {})
    before = weights(run.model).clone()
    for _ in range(3):
        run._step(run.model, 1.0)  # 2^127 times such a loss is not finite
    assert torch.equal(weights(run.model), before)
    assert run.scaler.get_scale() < 2.0**127
    assert run.guards["model"].skipped > 0
    while run.guards["model"].skipped_in_a_row:
        run._step(run.model, 1.0)
    assert not torch.equal(weights(run.model), before)
    run._write()
    again = trainer(tmp_path, pictures)
    again.scaler = torch.amp.GradScaler("cpu")
    again.resume()
    assert again.scaler.get_scale() == run.scaler.get_scale()


@pytest.mark.parametrize("changes", [{"accumulate": "0"}, {"batch_size": "0"}, {"warmup": "-1"}, {"skip_factor": "1"}])
def test_a_recipe_is_checked(changes):
    with pytest.raises(mz.ConfigError, match=next(iter(changes))):
        RECIPE.updated(changes)


def test_time_left_counts_from_where_the_session_began():
    assert time_left(0.0, 0.25, 30.0) == "1:30 left"
    assert time_left(0.9, 0.95, 30.0) == "0:30 left"
    assert time_left(0.5, 0.5, 0.0) == "starting"


def test_an_unconditional_run_on_labelled_pictures(tmp_path):
    changes = {"classes": "0", "guidance": "0", "steps": "2", "batch_size": "8"}
    settings = RunSettings("rectified-flow", "fashion", image_size=8, budget=Budget(pictures=16), changes=changes)
    train(settings, tmp_path / "run")
    model = mz.load(tmp_path / "run")
    assert model.classes == ()
    assert model.sample(2).shape == (2, 1, 8, 8)


def test_settings_change_recipe_and_model(tmp_path):
    changes = {"batch_size": "4", "width": "6", "optimizers.model.lr": "0.5"}
    settings = RunSettings("toy", "fashion", image_size=8, budget=Budget(pictures=8), changes=changes)
    outcome = train(settings, tmp_path / "run")
    assert outcome.position.step == 2
    assert mz.load(tmp_path / "run").config == ToyConfig(8, 1, 6)
    with pytest.raises(mz.ConfigError, match="did you mean 'width'"):
        train(replace(settings, changes={"widht": "6"}), tmp_path / "other")
