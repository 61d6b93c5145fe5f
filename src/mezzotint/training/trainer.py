"""The training loop. Nothing in this file has anything to do with any family of models."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..core.batch import Batch, fold
from ..core.checkpoint import latest, verify
from ..core.errors import CheckpointError, ConfigError, TrainingError
from ..core.model import Model
from ..core.precision import autocast, resolve_precision
from ..core.system import Recipe
from ..data import Loader, Pictures
from ..data.pictures import PartlyLabelled
from .ema import MovingAverage
from .guard import GradientGuard
from .journal import Journal, Progress
from .schedule import Budget, ema_decay, learning_rate
from .state import Position, restore_state, save_state

logger = logging.getLogger("mezzotint.training")

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "sgd": torch.optim.SGD,
}
CHANNELS_LAST = {"cuda"}  # where convolutions prefer it; on a CPU torch's group norm loses more than they gain
LOG_STEPS = 10  # steps averaged into one row of metrics.jsonl
SAVE_SECONDS = 120.0  # between two checkpoints, unless counted in pictures
PREVIEW_SHARE = 0.1  # of the time at the most is spent on looking at samples


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    checkpoint: Path
    position: Position
    interrupted: bool


class Trainer:
    """Trains one model on one set of pictures, into one run directory.

    directory   gets `checkpoints/`, `metrics.jsonl`, `tensorboard/` and `samples/`
    recipe      optimizers, batch size, schedule, moving average
    budget      pictures or minutes
    preview     called as preview(averaged model, step) a few times during the run; returns numbers to log
    save_every  pictures between two checkpoints; None: every two minutes
    """

    def __init__(
        self,
        model: Model,
        pictures: Pictures,
        directory: str | Path,
        recipe: Recipe,
        budget: Budget,
        *,
        seed: int = 0,
        precision: str = "auto",
        preview: Callable[[Model, int], dict[str, float]] | None = None,
        previews: int = 8,
        save_every: int | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.accelerator = accelerator or Accelerator()
        self.device = self.accelerator.device
        self.directory = Path(directory)
        self.recipe, self.budget, self.seed = recipe, budget, seed
        self.precision = resolve_precision(precision, self.device)
        self.preview, self.previews, self.save_every = preview, previews, save_every

        self.model = _laid_out(model.to(self.device)).train()
        self.average = MovingAverage(self.model) if recipe.ema_half_life else None
        if recipe.compile:
            self.model.compile()
        self.players = self.model.players()
        self.optimizers = {name: self._optimizer(name, player) for name, player in self.players.items()}
        self.guards = {
            name: GradientGuard(name, recipe.optimizer_name(name), recipe.skip_factor, recipe.max_skips)
            for name in self.players
        }
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        world = self.accelerator.num_processes
        if recipe.batch_size % (world * recipe.accumulate):
            raise ConfigError(
                f"a batch of {recipe.batch_size} cannot be split over {world} processes in {recipe.accumulate} parts;"
                f" use a multiple of {world * recipe.accumulate}"
            )
        rank = self.accelerator.process_index
        if self.model.few_labels is not None:
            pictures = PartlyLabelled(pictures, self.model.few_labels, seed)
        options = {"seed": seed, "rank": rank, "world": world, "flip": recipe.flip, "pixels": recipe.pixels}
        self.loader = Loader(pictures, recipe.batch_size, **options)
        self.position = Position(seed=seed)
        self.asked_to_stop = False  # set by signals, at any moment
        self.stopping = False  # agreed between the processes, at the end of a step

    def _optimizer(self, name: str, player: nn.Module) -> torch.optim.Optimizer:
        settings = self.recipe.optimizer(name)
        parameters = [p for p in player.parameters() if p.requires_grad]
        options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
        if settings.name == "sgd":
            options["momentum"] = settings.betas[0]
        else:
            options |= {"betas": settings.betas, "eps": settings.eps}
        if settings.name != "adamax":  # of which torch has no fused form
            options["fused"] = True
        return OPTIMIZERS[settings.name](parameters, **options)

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run directory.

        Raises `CheckpointError` if it is damaged, or was made with another model or seed.
        """
        checkpoint = latest(self.directory)
        verify(checkpoint)
        self.position = restore_state(checkpoint, self.model, self.average, self.optimizers)
        if self.position.seed != self.seed:
            raise CheckpointError(f"{checkpoint} was trained with seed {self.position.seed}, not {self.seed}; use that")
        if self.position.scaler:
            self.scaler.load_state_dict(self.position.scaler)
        for name, state in self.position.guards.items():
            self.guards[name].restore(state)
        self.loader.position = self.position.batches

    def run(self) -> Outcome:
        """Train until the budget is spent or the user interrupts; either way the last step is saved.

        Raises `TrainingError` if the gradients stay unusable or the disk is full, `CheckpointError` if a checkpoint
        cannot be written; the last good one stays.
        """
        try:
            return self._run()
        except OSError as error:
            raise TrainingError(
                f"could not write to {self.directory}: {error.strerror or error}; free some space and add --resume"
            ) from error
        finally:
            self.loader.close()

    def _run(self) -> Outcome:
        wrapped = self._distribute()
        main = self.accelerator.is_main_process
        self.directory.mkdir(parents=True, exist_ok=True)
        journal = Journal(self.directory, self.position.step) if main else None
        title = self.model.identity.system if self.model.identity else type(self.model).__name__
        resumed = dataclasses.replace(self.position)
        saved = dataclasses.replace(self.position)
        started, preview_seconds = time.monotonic(), 0.0
        previewed = int(self._progress() * self.previews)
        window: list[dict[str, Tensor]] = []
        try:
            with self._stopping_cleanly(), Progress(title, self._progress(), visible=main) as bar:
                while self._progress() < 1.0 and not self.stopping:
                    rate = learning_rate(self.recipe, self.position.pictures, self._progress())
                    window.append(self._step(wrapped, rate))
                    self._agree_on(resumed.seconds + time.monotonic() - started)
                    ending = self._progress() == 1.0 or self.stopping
                    if self.position.step % LOG_STEPS == 0 or self.position.step == 1 or ending:
                        numbers, window = self._summarise(window), []
                        seconds = self.position.seconds - resumed.seconds
                        pace = (self.position.pictures - resumed.pictures) / max(seconds - preview_seconds, 1e-9)
                        bar.show(self._progress(), seconds, pace, numbers)
                        if journal:
                            skipped = sum(guard.skipped for guard in self.guards.values())
                            facts = {"pictures": self.position.pictures, "seconds": self.position.seconds}
                            facts |= {"pictures_per_second": pace, "lr": rate, "skipped": skipped}
                            journal.write(self.position.step, {**numbers, **facts})
                    if self._due(saved):
                        self._save()
                        saved = dataclasses.replace(self.position)
                    if journal and int(self._progress() * self.previews) > previewed:
                        previewed = int(self._progress() * self.previews)
                        if ending or preview_seconds <= PREVIEW_SHARE * (time.monotonic() - started):
                            preview_seconds += self._look(journal)
            checkpoint = self._save()
        finally:
            if journal:
                journal.close()
        return Outcome(checkpoint, self.position, self._progress() < 1.0)

    def _step(self, wrapped: nn.Module, rate: float) -> dict[str, Tensor]:
        """One step: each player whose turn it is moves once, on a fresh batch."""
        torch.manual_seed(fold(self.seed, self.position.step, self.accelerator.process_index))
        logged: dict[str, Tensor] = {}
        for player in self.model.turns(self.position.step):
            self._only_moves(player)
            parts = self._gradients(wrapped, player)
            norm = self._move(player, rate)
            self.model.after_turn(player)
            logged |= {**parts, f"gradient_norm/{player}": norm}
            self.position.batches = self.loader.position
            self.position.pictures += self.recipe.batch_size
        self.model.after_step(self.position.step)
        if self.average is not None:
            self.average.update(self.model, ema_decay(self.recipe, self.position.pictures))
        self.position.step += 1
        return logged

    def _gradients(self, wrapped: nn.Module, player: str) -> dict[str, Tensor]:
        """Backpropagate the player's loss over one batch, in `accumulate` parts; the loss and its terms, averaged."""
        batch = self.loader.next().to(self.device)
        batch.images = batch.images.contiguous(memory_format=_layout(batch.images))
        parts = self.recipe.accumulate
        size = len(batch) // parts
        total: dict[str, Tensor] = {}
        for part in range(parts):
            piece: Batch = batch[part * size : (part + 1) * size]
            last = part == parts - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(wrapped):
                with autocast(self.precision, self.device):
                    losses = wrapped(piece, player)
                self.scaler.scale(losses.total / parts).backward()
            names = {"loss" if player == "model" else f"loss/{player}": losses.total, **losses.parts}
            for name, value in names.items():
                total[name] = total.get(name, 0.0) + value.detach().float() / parts
        return total

    def _move(self, player: str, rate: float) -> Tensor:
        """Let the player's optimizer take its step, unless the guard refuses the gradient; its norm."""
        optimizer, guard = self.optimizers[player], self.guards[player]
        settings = self.recipe.optimizer(player)
        self.scaler.unscale_(optimizer)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        usable = guard.accepts(norm.item())
        if usable and settings.clip is not None:
            torch._foreach_mul_(gradients, torch.clamp(settings.clip / (norm + 1e-6), max=1.0))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * rate
        if usable:
            self.scaler.step(optimizer)
        self.scaler.update()  # lowers the scale after a gradient that was not finite
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _only_moves(self, player: str) -> None:
        """Only the moving player's parameters collect gradients."""
        if len(self.players) > 1:
            moving = {id(p) for group in self.optimizers[player].param_groups for p in group["params"]}
            for optimizer in self.optimizers.values():
                for p in (p for group in optimizer.param_groups for p in group["params"]):
                    p.requires_grad_(id(p) in moving)

    def _distribute(self) -> nn.Module:
        """The model as the distributed engine wraps it; in one process, the model itself."""
        if self.accelerator.num_processes == 1:
            return self.model
        from accelerate.utils import DistributedDataParallelKwargs

        several = DistributedDataParallelKwargs(find_unused_parameters=len(self.players) > 1)
        self.accelerator.ddp_handler = several
        wrapped: nn.Module = self.accelerator.prepare_model(self.model)
        return wrapped

    def _progress(self) -> float:
        return self.budget.progress(self.position.pictures, self.position.seconds)

    def _summarise(self, window: list[dict[str, Tensor]]) -> dict[str, float]:
        """Each number averaged over the steps that logged it, and over the processes."""
        sums: dict[str, list[Tensor]] = {}
        for row in window:
            for name, value in row.items():
                sums.setdefault(name, []).append(value)
        means = {name: torch.stack(values).mean() for name, values in sums.items()}
        return {name: self.accelerator.reduce(mean, reduction="mean").item() for name, mean in means.items()}

    def _look(self, journal: Journal) -> float:
        """Call the preview; the seconds it took."""
        began = time.monotonic()
        model = self.average.model if self.average else self.model
        try:
            with autocast(self.precision, self.device):
                numbers = self.preview(model.eval(), self.position.step) if self.preview else {}
        except Exception:
            self._write()  # what was learned outlives what cannot be drawn
            raise
        self.model.train()
        if numbers:
            journal.write(self.position.step, {f"preview/{name}": value for name, value in numbers.items()})
        picture = self.directory / "samples" / f"step_{self.position.step:06d}.png"
        if picture.exists():
            journal.picture(self.position.step, picture)
        return time.monotonic() - began

    def _due(self, saved: Position) -> bool:
        if self.save_every is not None:
            return self.position.pictures - saved.pictures >= self.save_every
        return self.position.seconds - saved.seconds >= SAVE_SECONDS

    def _save(self) -> Path:
        """A checkpoint of this step, written by the main process; all wait for it."""
        if self.accelerator.is_main_process:
            self._write()
        self.accelerator.wait_for_everyone()
        return self._target()

    def _target(self) -> Path:
        return self.directory / "checkpoints" / f"step_{self.position.step:08d}"

    def _write(self) -> None:
        self.position.guards = {name: guard.state() for name, guard in self.guards.items()}
        self.position.scaler = self.scaler.state_dict()
        if not self._target().exists():
            save_state(self.directory, self.model, self.average, self.optimizers, self.position)

    def _agree_on(self, seconds: float) -> None:
        """The main process's clock, and whether anyone was asked to stop, known to all: they take the same steps."""
        self.position.seconds, self.stopping = seconds, self.asked_to_stop
        if self.accelerator.num_processes > 1:
            mine = [seconds if self.accelerator.is_main_process else 0.0, float(self.stopping)]
            agreed = self.accelerator.reduce(torch.tensor(mine, device=self.device), reduction="sum").tolist()
            self.position.seconds, self.stopping = agreed[0], agreed[1] > 0

    @contextlib.contextmanager
    def _stopping_cleanly(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM let the present step end; a second Ctrl-C stops at once."""

        def ask(signum: int, frame: Any) -> None:
            if self.asked_to_stop and signum == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked_to_stop = True
            logger.info("stopping after this step; once more to stop at once without saving")

        try:
            before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: nothing to catch
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.dim() == 4 and tensor.device.type in CHANNELS_LAST
    return torch.channels_last if last else torch.contiguous_format


def _laid_out(model: Model) -> Model:
    """The model with every parameter and buffer in the memory layout that its device prefers."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.contiguous(memory_format=_layout(tensor))
    return model
