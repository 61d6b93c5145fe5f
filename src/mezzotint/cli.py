"""The command `mezzotint`. Heavy imports wait until a command needs them, so that help is immediate."""

from __future__ import annotations

import json as jsonlib
import logging
import os
import shlex
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .core.errors import ConfigError, MezzotintError, suggest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import Accelerator

    from .core.model import HasCode, Model
    from .core.system import System
    from .data import Pictures
    from .evaluation.evaluate import Evaluation

app = typer.Typer(
    name="mezzotint",
    help="The canon of image generation, verified: train, sample and judge picture generators on your own pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

FAILED, WRONG_CALL, INTERRUPTED = 1, 2, 130
IN_A_ROW = 10  # pictures of a sheet


class Precision(str, Enum):
    """Number formats of `--precision`."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Run = Annotated[Path, typer.Argument(help="A run directory, a checkpoint, a saved model, or owner/name on the hub.")]
Source = Annotated[
    str | None, typer.Option(help="A second set, from whose pictures those of --data are drawn; as for --data.")
]
Seed = Annotated[int, typer.Option(help="Seed; picture k depends on seed + k alone.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Solver steps.")]
SOLVERS = (
    "ancestral, ancestral-large, ancestral-learned, ddim, euler, heun, edm, edm-stochastic, euler-maruyama, "
    "predictor-corrector, dpm++2m, dpm++2m-sde, dpm++3m, unipc, lms, rk45"
)  # written out, because help must not import them
GRIDS = "uniform, leading, trailing, linspace, quadratic, karras, exponential"
Solver = Annotated[str | None, typer.Option(help=f"Solver: {SOLVERS}.")]
Grid = Annotated[str | None, typer.Option(help=f"The times that the solver visits: {GRIDS}.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance weight w.")]
Controls = Annotated[
    list[str] | None,
    typer.Option("--control", metavar="NAME=VALUE", help="Any other control of this model's sampling, as eta=0.5."),
]
OneLabel = Annotated[str | None, typer.Option("--label", help="The class of all pictures, by name or number.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Number format of the matrix products.")]


def main() -> NoReturn:
    """Run the command; a user's mistake is answered by one sentence, never by a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mezzotint").setLevel(logging.INFO)
    try:
        result = app(standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except ConfigError as error:
        _fail(str(error), WRONG_CALL)
    except MezzotintError as error:
        _fail(str(error), FAILED)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's own errors: a wrong call
            context = getattr(error, "ctx", None)
            usage = f"{context.get_usage()}\n" if context else ""
            _fail(usage + error.format_message(), WRONG_CALL)
        raise


def _fail(message: str, code: int) -> NoReturn:
    print(f"mezzotint: {message}" if code != WRONG_CALL else message, file=sys.stderr)
    if "--json" in sys.argv[1:]:
        print(jsonlib.dumps({"error": message}))
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"mezzotint {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The canon of image generation, verified."""


@app.command()
def train(
    system: Annotated[str, typer.Argument(help="A name from `mezzotint systems`.")],
    data: Annotated[str, typer.Option(help="fashion, mnist, a folder, hf:owner/name, tar shards.")],
    out: Annotated[Path, typer.Option(help="The run directory.")],
    source: Source = None,
    size: Annotated[str, typer.Option(help="small (a laptop), paper (published), or what describe names.")] = "small",
    image_size: Annotated[int | None, typer.Option(min=1, help="Height and width in pixels.")] = None,
    channels: Annotated[int | None, typer.Option(min=1, max=3, help="1 grey, 3 colour.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Budget in minutes.")] = None,
    pictures: Annotated[int | None, typer.Option(min=1, help="Budget in pictures seen.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    precision: PrecisionOption = Precision.auto,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    save_every: Annotated[int | None, typer.Option(min=1, help="Pictures between two checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    json: Json = False,
) -> int:
    """Train a system on pictures. Ctrl-C saves and says how to go on."""
    from .training.run import RunSettings
    from .training.run import train as run
    from .training.schedule import Budget

    if minutes is not None and pictures is not None:
        raise ConfigError("give --minutes or --pictures, not both")
    settings = RunSettings(
        system=system, data=data, source=source, size=size, image_size=image_size, channels=channels, seed=seed,
        budget=Budget(pictures=pictures, minutes=minutes) if minutes is not None or pictures is not None else None,
        precision=precision.value, changes=_key_values(changes or []) or None, save_every=save_every,
    )  # fmt: skip
    accelerator = _accelerator()
    outcome = run(settings, out, resume=resume, accelerator=accelerator)
    if not accelerator.is_main_process:
        return INTERRUPTED if outcome.interrupted else 0
    position = outcome.position
    if json:
        facts = {"checkpoint": str(outcome.checkpoint), "steps": position.step, "pictures": position.pictures}
        print(jsonlib.dumps({**facts, "seconds": position.seconds, "interrupted": outcome.interrupted}))
    if outcome.interrupted:
        again = shlex.join(["mezzotint", "train", system, "--data", data, "--out", str(out), "--resume"])
        print(f"stopped and saved at step {position.step:,}; go on with:\n  {again}", file=sys.stderr)
        return INTERRUPTED
    spent = f"{position.step:,} steps, {position.pictures:,} pictures, {position.seconds / 60:.1f} minutes"
    print(f"done: {spent}\n  {outcome.checkpoint}", file=sys.stderr)
    return 0


@app.command()
def sample(
    run: Run,
    out: Annotated[Path, typer.Option(help="A picture file for one grid, or a folder for single pictures.")],
    n: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 16,
    label: Annotated[
        str | None, typer.Option(help="A class, by name or number; all in turn where none is named.")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Set whose test pictures it begins from, or completes; as --data of train.")
    ] = None,
    steps: Steps = None,
    solver: Solver = None,
    grid: Grid = None,
    guidance: Guidance = None,
    control: Controls = None,
    seed: Seed = 0,
    precision: PrecisionOption = Precision.auto,
    json: Json = False,
) -> None:
    """Draw pictures from a trained model."""
    from .core.drawing import draw, interleave
    from .core.model import Samples
    from .core.precision import autocast, resolve_precision
    from .data.grid import grid as drawn

    accelerator = _accelerator()
    model = _load(run, accelerator)
    if not isinstance(model, Samples):
        raise ConfigError(f"{_name(model)} does not draw pictures; `mezzotint describe` says what a system can do")
    controls = _controls(model, {"steps": steps, "solver": solver, "grid": grid, "guidance": guidance}, control)
    labels, begin = _labels(model, n, label), _begin(model, n, source)
    shard = (accelerator.process_index, accelerator.num_processes)
    with autocast(resolve_precision(precision.value, model.device), model.device), _counting(n, accelerator) as count:
        images = draw(model, n, labels=labels, source=begin, seeds=seed, shard=shard, progress=count, **controls)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        images = interleave(gather_object([images]))
    if accelerator.is_main_process:
        names = model.classes
        try:
            written = _write_pictures(
                images, out, seed, [] if labels is None else [names[k] for k in labels.tolist()], drawn
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot write {out}: {error}; choose another --out") from None
        print(jsonlib.dumps({"n": n, "seed": seed, "files": written}) if json else "\n".join(written[:1]))


@app.command()
def interpolate(
    run: Run,
    out: Annotated[Path, typer.Option(help="A picture file: one row, or an animation there and back (.gif).")],
    first: Annotated[int, typer.Option("--from", help="Seed of the picture where the way begins.")] = 0,
    last: Annotated[int, typer.Option("--to", help="Seed of the picture where it ends.")] = 1,
    n: Annotated[int, typer.Option(min=2, help="How many pictures, both ends among them.")] = 8,
    label: OneLabel = None,
    precision: PrecisionOption = Precision.auto,
    json: Json = False,
) -> None:
    """Draw what lies between the pictures of two seeds, evenly along the way from code to code."""
    from .core.codes import interpolation
    from .core.precision import autocast, resolve_precision
    from .data.grid import grid

    _picture_file(out)
    model = _load(run, _accelerator())
    coded, told = _coded(model), _one_label(model, label)
    with autocast(resolve_precision(precision.value, model.device), model.device):
        images = interpolation(coded, first, last, n, told)
    if out.suffix.lower() == ".gif":
        frames = [grid(image[None], padding=0).convert("L" if image.shape[0] == 1 else "RGB") for image in images]
        frames += frames[-2:0:-1]
        _save_film(frames, out, max(40, 2000 // n))
    else:
        _save(grid(images, columns=n), out)
    print(jsonlib.dumps({"from": first, "to": last, "n": n, "file": str(out)}) if json else out)


@app.command()
def arithmetic(
    run: Run,
    out: Annotated[Path, typer.Option(help="A picture file: three rows of what was asked for, and what came of it.")],
    base: Annotated[str, typer.Option(metavar="SEEDS", help="Seeds whose mean code is the base, as 3,14,15.")],
    plus: Annotated[str, typer.Option(metavar="SEEDS", help="Those whose mean code is added.")],
    minus: Annotated[str, typer.Option(metavar="SEEDS", help="Those whose mean code is taken away.")],
    around: Annotated[
        float, typer.Option(min=0.0, help="The last row also shows codes off the result by up to this much.")
    ] = 0.25,
    label: OneLabel = None,
    precision: PrecisionOption = Precision.auto,
    json: Json = False,
) -> None:
    """Add and subtract codes: base + (plus - minus), each the mean over a few seeds.

    Rows: the pictures of base, plus and minus, each with that of its mean code at the end; then the result, and
    pictures of codes near it.
    """
    from .core.codes import arithmetic_sheet
    from .core.precision import autocast, resolve_precision
    from .data.grid import grid

    _picture_file(out)
    given = {"base": base, "plus": plus, "minus": minus}
    seeds = {name: _seeds(name, text) for name, text in given.items()}
    model = _load(run, _accelerator())
    coded, told = _coded(model), _one_label(model, label)
    with autocast(resolve_precision(precision.value, model.device), model.device):
        sheet = arithmetic_sheet(coded, **seeds, around=around, label=told)
    _save(grid(sheet.flatten(0, 1), columns=sheet.shape[1]), out)
    print(jsonlib.dumps({**seeds, "file": str(out)}) if json else out)


@app.command()
def reconstruct(
    run: Run,
    data: Annotated[str, typer.Option(help="Set of the pictures; as --data of train.")],
    out: Annotated[Path, typer.Option(help="A picture file: below each picture what the model makes of it.")],
    n: Annotated[int, typer.Option(min=1, help="How many test pictures.")] = 10,
    seed: Seed = 0,
    precision: PrecisionOption = Precision.auto,
    json: Json = False,
) -> None:
    """Draw pictures beside what the model keeps of them.

    A denoising autoencoder is shown them spoiled, as in training; that is then the row between.
    """
    import torch

    from .core.model import Reconstructs
    from .core.precision import autocast, resolve_precision
    from .data import spread_over
    from .data.grid import grid
    from .evaluation.restoration import Restores

    _picture_file(out)
    model = _load(run, _accelerator())
    if not isinstance(model, Reconstructs):
        raise ConfigError(
            f"{_name(model)} reconstructs no pictures; `mezzotint describe` says which systems reconstruct"
        )
    pictures = _test_pictures(model, data)
    images = _seen(model, pictures, spread_over(len(pictures), n), seed)
    rows, shown = [images], images
    with torch.no_grad(), autocast(resolve_precision(precision.value, model.device), model.device):
        if isinstance(model, Restores):
            shown = model.corrupt(images, range(seed, seed + len(images)))
            rows.append(shown)
        rows.append(model.reconstruct(shown))
    columns = min(len(images), IN_A_ROW)
    blank = images.new_ones(-len(images) % columns, *images.shape[1:])
    whole = torch.stack([torch.cat([row, blank]) for row in rows]).unflatten(1, (-1, columns))
    _save(grid(whole.transpose(0, 1).flatten(0, 2), columns=columns), out)
    print(jsonlib.dumps({"n": len(images), "file": str(out)}) if json else out)


@app.command()
def traverse(
    run: Run,
    data: Annotated[str, typer.Option(help="Set of the picture that is changed; as --data of train.")],
    out: Annotated[Path, typer.Option(help="A picture file: a row for each dimension.")],
    picture: Annotated[int, typer.Option(min=0, help="Which of its test pictures.")] = 0,
    dimensions: Annotated[int, typer.Option(min=1, help="How many dimensions, from that of the largest KL.")] = 10,
    reference: Annotated[int, typer.Option(min=1, help="Test pictures over which the KL is averaged.")] = 200,
    precision: PrecisionOption = Precision.auto,
    json: Json = False,
) -> None:
    """Change one dimension of a picture's code at a time: rows from the largest KL down, values from -3 to 3."""
    from .core.model import Encodes, HasLatents
    from .core.precision import autocast, resolve_precision
    from .data import spread_over
    from .data.grid import grid
    from .vae.traversal import traverse as traversed

    _picture_file(out)
    model = _load(run, _accelerator())
    if not (isinstance(model, Encodes) and isinstance(model, HasLatents)):
        raise ConfigError(
            f"{_name(model)} has no code with a posterior to walk through; `mezzotint describe` says which systems"
            " encode, decode and have latents"
        )
    pictures = _test_pictures(model, data)
    if picture >= len(pictures):
        raise ConfigError(f"{data} has {len(pictures):,} test pictures, so --picture is at most {len(pictures) - 1}")
    with autocast(resolve_precision(precision.value, model.device), model.device):
        images = traversed(
            model, _seen(model, pictures, [picture]), dimensions=dimensions,
            reference=_seen(model, pictures, spread_over(len(pictures), reference)),
        )  # fmt: skip
    _save(grid(images.flatten(0, 1), columns=images.shape[1]), out)
    print(jsonlib.dumps({"picture": picture, "dimensions": len(images), "file": str(out)}) if json else out)


@app.command()
def paint(
    run: Run,
    out: Annotated[Path, typer.Option(help="A picture file: time from left to right, or an animation (.gif).")],
    data: Annotated[
        str | None, typer.Option(help="Set whose test pictures are painted again; as --data of train.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 5,
    seed: Annotated[int | None, typer.Option(help="Seed; picture k depends on seed + k alone; default: 0.")] = None,
    precision: PrecisionOption = Precision.auto,
    json: Json = False,
) -> None:
    """Draw pictures while they are painted, step by step; red: where the model writes.

    With --data, test pictures are painted again, and above each row is the picture itself, with where the model looks.
    """
    from .core.model import Paints
    from .core.precision import autocast, resolve_precision
    from .data import spread_over
    from .data.strip import animation, strip

    _picture_file(out)
    if data is not None and seed is not None:
        raise ConfigError("pictures of --data are painted again without chance, so --seed means nothing to them")
    model = _load(run, _accelerator())
    if not isinstance(model, Paints):
        raise ConfigError(
            f"{_name(model)} paints no picture step by step; `mezzotint describe` says which systems can paint"
        )
    with autocast(resolve_precision(precision.value, model.device), model.device):
        if data is None:
            painted, rows = model.strip(n, seed or 0), []
        else:
            pictures = _test_pictures(model, data)
            images = _seen(model, pictures, spread_over(len(pictures), n))
            painted = model.trace(images)
            rows = [(images.expand(len(painted.pictures), -1, -1, -1, -1), painted.reads)]
    rows.append((painted.pictures, painted.writes))
    if out.suffix.lower() == ".gif":
        frames, times = animation(*rows)
        _save_film(frames, out, times)
    else:
        _save(strip(*rows), out)
    steps, shown = painted.pictures.shape[:2]
    print(jsonlib.dumps({"n": shown, "steps": steps, "file": str(out)}) if json else out)


@app.command()
def evaluate(
    run: Run,
    data: Annotated[str, typer.Option(help="The pictures to compare with; as for train.")],
    source: Source = None,
    n: Annotated[int, typer.Option(min=2, help="How many pictures to draw.")] = 1000,
    features: Annotated[
        str | None, typer.Option(help="efficientnet_lite0, inception[:FILE], classifier:RUN; default: what is there.")
    ] = None,
    classifier: Annotated[Path | None, typer.Option(help="A trained classifier run, for accuracy.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where report.html and report.json go; default: the run.")] = None,
    steps: Steps = None,
    solver: Solver = None,
    grid: Grid = None,
    guidance: Guidance = None,
    control: Controls = None,
    likelihood_n: Annotated[
        int | None,
        typer.Option(min=0, help="Pictures whose likelihood is measured, 0: none; default: n, or 100 if it is slow."),
    ] = None,
    likelihood: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="How it is measured, as samples=5000: draws of the code, for a VAE."),
    ] = None,
    path_length_n: Annotated[
        int,
        typer.Option(min=0, help="Pairs of codes for the perceptual path length, over --features; 0: none."),
    ] = 0,
    path_length: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="How it is measured: space=w, sampling=end, epsilon=0.001, label=3."),
    ] = None,
    equivariance_n: Annotated[
        int,
        typer.Option(min=0, help="Pictures that are moved and turned for EQ-T and EQ-R (stylegan3-t, -r); 0: none."),
    ] = 0,
    seed: Seed = 0,
    precision: PrecisionOption = Precision.auto,
    json: Json = False,
) -> None:
    """Judge a trained model by all that it can do: a table with its protocol, report.html and report.json.

    Perceptual path length and equivariance are slow, or of few models: ask for them.
    """
    from .core.precision import autocast, resolve_precision
    from .data import open_pictures
    from .evaluation.evaluate import evaluate as judge
    from .evaluation.report import write_report

    if out is None:
        if not run.is_dir():
            raise ConfigError(f"{run} is no folder here, so say with --out where the report goes")
        out = run
    accelerator = _accelerator()
    model = _load(run, accelerator)
    controls = _controls(model, {"steps": steps, "solver": solver, "grid": grid, "guidance": guidance}, control)
    measured, ways = _measured(model, likelihood), _ways(path_length)
    spec = model.identity.data if model.identity else None
    if source is not None and spec is not None and not spec.source:
        raise ConfigError(f"{_name(model)} begins from no other pictures, so --source means nothing to it")
    size, channels = (spec.image_size, spec.channels) if spec else (None, None)
    test = open_pictures(data, split="test", image_size=size, channels=channels, beside=source)
    train_set = open_pictures(data, split="train", image_size=size, channels=channels)
    shard = (accelerator.process_index, accelerator.num_processes)
    with autocast(resolve_precision(precision.value, model.device), model.device), _counting(n, accelerator) as count:
        evaluation: Evaluation = judge(
            model, test, train=train_set, n=n, features=features, classifier=classifier, seeds=seed,
            controls=controls, run=run, shard=shard, progress=count, likelihood_n=likelihood_n, likelihood=measured,
            path_length_n=path_length_n, path_length=ways, equivariance_n=equivariance_n,
        )  # fmt: skip
    if accelerator.is_main_process:
        folder = write_report(evaluation, out)
        if json:
            print(jsonlib.dumps(evaluation.to_dict()))
        else:
            from rich.console import Console

            from .evaluation.report import table

            Console().print(table(evaluation))
            print(folder / "report.html")


@app.command()
def systems(json: Json = False) -> None:
    """List every system of the catalogue."""
    from .systems import catalogue

    entries = list(catalogue().values())
    if json:
        print(jsonlib.dumps([_facts(system) for system in entries]))
        return
    from rich.console import Console
    from rich.table import Column, Table

    # a name that is cut short cannot be typed
    columns = Column("system", no_wrap=True), "family", "paper", "survey", Column("needs", no_wrap=True)
    table = Table(*columns, box=None, header_style="bold")
    for system in entries:
        first, *others = system.paper.authors.split(", ")
        paper = f"{first} {'et al. ' * bool(others)}{system.paper.year}"
        survey = system.survey.split("; guidance")[0]
        table.add_row(system.name, system.family, paper, survey, ", ".join(sorted(system.needs)) or "pictures")
    Console().print(table)


@app.command()
def describe(
    system: Annotated[str, typer.Argument(help="A name from `mezzotint systems`.")], json: Json = False
) -> None:
    """Explain a system: paper, equations, needs, abilities, sizes, gallery numbers."""
    from .systems import find

    facts = _facts(find(system), full=True)
    if json:
        print(jsonlib.dumps(facts))
        return
    from rich.console import Console

    console = Console(highlight=False)
    paper = facts["paper"]
    console.print(f"[bold]{facts['name']}[/bold]  {facts['title']}\n\n{facts['summary']}\n")
    source = f"{paper['authors']}: {paper['title']} ({paper['year']})" + (
        f", arXiv {paper['arxiv']}" * bool(paper["arxiv"])
    )
    for name, value in (
        ("paper", source),
        ("survey", facts["survey"]),
        ("needs", ", ".join(facts["needs"]) or "pictures"),
    ):
        console.print(f"{name:10}{value}")
    for stage in facts["stages"]:
        sizes = ", ".join(f"{size} {count:,} parameters" for size, count in stage["parameters"].items())
        console.print(f"{'stage':10}{stage['name']}: {sizes}\n{'can':10}{', '.join(stage['abilities']) or 'train'}")
    console.print(f"{'':10}(parameters for pictures of 32 x 32 in colour, of 10 classes)")
    if facts["gallery"]:
        console.print(f"{'gallery':10}{facts['gallery']['command']}")
        for name, value in facts["gallery"]["numbers"].items():
            console.print(f"{'':10}{name} {value}")


def _facts(system: System, full: bool = False) -> dict[str, Any]:
    """What is known of a system; with `full`, parameter counts and abilities too (that needs torch)."""
    import dataclasses

    facts: dict[str, Any] = {
        "name": system.name, "title": system.title, "family": system.family, "paper": dataclasses.asdict(system.paper),
        "survey": system.survey, "needs": sorted(system.needs), "summary": system.summary,
    }  # fmt: skip
    if full:
        from importlib.resources import files

        from .core.model import abilities
        from .systems import parameter_counts

        rows = jsonlib.loads((files("mezzotint") / "gallery.json").read_text())
        counts = parameter_counts(system)
        facts["stages"] = [
            {"name": stage.name, "parameters": counts[stage.name], "abilities": abilities(stage.model)}
            for stage in system.stages
        ]
        facts["gallery"] = rows.get(system.name)
    return facts


def _accelerator() -> Accelerator:
    from accelerate import Accelerator

    _keep_memory()

    return Accelerator()


def _keep_memory() -> None:
    """Let the C library keep freed memory instead of giving it back and clearing new pages at every layer.

    Only the command does this, for its own process. Where there is no glibc, nothing happens.
    """
    import ctypes

    trim_threshold, mmap_threshold, all_of_it = -1, -3, 2**31 - 1  # from malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(mmap_threshold, all_of_it)
        mallopt(trim_threshold, all_of_it)


def _load(run: Path, accelerator: Accelerator) -> Model:
    from .systems import load

    return load(run).to(accelerator.device)


def _name(model: Model) -> str:
    from .systems import find

    if (who := model.identity) is None:
        return type(model).__name__
    last = find(who.system).stages[-1].name
    return who.system if who.stage == last else f"the stage {who.stage} of {who.system}"


def _key_values(pairs: list[str], option: str = "--set") -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"{option} takes KEY=VALUE, not {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)


def _controls(model: Model, asked: dict[str, Any], others: list[str] | None = None) -> dict[str, Any]:
    """The controls that were given.

    Raises `ConfigError` for one that this model's `sample` does not have, or a value that is not of its kind.
    """
    import inspect
    import typing

    from .core.model import Samples

    if not isinstance(model, Samples):
        for name in (*(option for option, value in asked.items() if value is not None), *_key_values(others or [])):
            raise ConfigError(f"{_name(model)} draws no pictures, so {name} means nothing to it")
        return {}
    standard = {"self", "n", "labels", "captions", "source", "mask", "seeds", "controls", "progress", "callback"}
    known = set(inspect.signature(model.sample).parameters) - standard
    texts = {name.replace("-", "_"): text for name, text in _key_values(others or [], "--control").items()}
    given = {name: value for name, value in asked.items() if value is not None}
    if twice := given.keys() & texts.keys():
        raise ConfigError(f"--{min(twice)} is asked for twice; leave one of them away")
    for name in (*given, *texts):
        if name not in known:
            named = " and ".join(f"--{option}" for option in asked if option in known)
            rest = ", ".join(sorted(known - set(asked)))
            meant = hint if "did you mean" in (hint := suggest(name, known)) else ""  # what is known follows anyway
            has = "; ".join([*([f"it has {named}"] if named else []), *([f"--control takes {rest}"] if rest else [])])
            raise ConfigError(f"{_name(model)} has no control {name!r}{meant}; {has or 'it has none'}")
    hints = typing.get_type_hints(model.sample)
    return given | {name: _control(name, text, hints.get(name)) for name, text in texts.items()}


def _measured(model: Model, asked: list[str] | None) -> dict[str, Any]:
    """How the likelihood is to be measured.

    Raises `ConfigError` for an option that the model's likelihood does not have, or a value that is not of its kind.
    """
    import typing

    from .core.model import HasELBO, HasLogProb
    from .evaluation.likelihood import checked_options, measure_of

    if not asked:
        return {}
    texts = {name.replace("-", "_"): text for name, text in _key_values(asked, "--likelihood").items()}
    if not isinstance(model, (HasLogProb, HasELBO)):
        raise ConfigError(f"{_name(model)} knows no likelihood, so --likelihood means nothing to it")
    method = measure_of(model)
    checked_options(method, texts)
    hints = typing.get_type_hints(method)
    return {name: _control(name, text, hints.get(name), "--likelihood") for name, text in texts.items()}


def _ways(asked: list[str] | None) -> dict[str, Any]:
    """How a path length is to be measured.

    Raises `ConfigError` for an option that there is not, or a value that is not of its kind.
    """
    import typing

    from .evaluation.evaluate import path_options
    from .evaluation.path_length import perceptual_path_length

    if not asked:
        return {}
    texts = _key_values(asked, "--path-length")
    path_options(texts)
    hints = typing.get_type_hints(perceptual_path_length)
    return {name: _control(name, text, hints.get(name), "--path-length") for name, text in texts.items()}


def _control(name: str, text: str, hint: Any, option: str = "--control") -> Any:
    """The value of a control that is written NAME=VALUE, of the kind that its annotation names."""
    import types
    import typing
    from functools import reduce
    from operator import or_

    from pydantic import TypeAdapter, ValidationError

    from .core.config import parse

    alone = typing.get_origin(hint) not in (typing.Union, types.UnionType)
    parts = (hint,) if alone else typing.get_args(hint)
    words = [part for part in parts if typing.get_origin(part) is typing.Literal]
    several = [part for part in parts if typing.get_origin(part) not in (None, typing.Literal)]  # tuple[float, float]
    single = [part for part in parts if part in (bool, int, float, str)]  # leaves None and functions out
    kinds = several + words + single
    value = parse(text, [] if several else "" if words or single == [str] else None)
    if not kinds:
        return value
    try:
        return TypeAdapter(reduce(or_, kinds)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        cause = "too few values" if first["type"] == "missing" else f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise ConfigError(f"{option} {name}={text}: {cause}") from None


def _labels(model: Model, n: int, label: str | None) -> Any:
    """The label of each of n pictures: the one asked for, or all in turn; None for a model without classes."""
    import torch

    names = model.classes
    if not names:
        if label is not None:
            raise ConfigError(f"{_name(model)} was trained without labels, so --label means nothing to it")
        return None
    if label is None:
        return torch.arange(n) % len(names)
    if label in names:
        return torch.full((n,), names.index(label))
    lower = [name.lower() for name in names]
    if lower.count(label.lower()) == 1:
        return torch.full((n,), lower.index(label.lower()))
    if label.isascii() and label.isdecimal() and int(label) < len(names):
        return torch.full((n,), int(label))
    raise ConfigError(f"no class is called {label!r}{suggest(label, names)}")


def _coded(model: Model) -> HasCode:
    """The model, if it makes its pictures of codes. Raises `ConfigError` otherwise."""
    from .core.model import HasCode

    if not isinstance(model, HasCode):
        raise ConfigError(
            f"{_name(model)} makes no picture of a code that one could walk through; `mezzotint describe` says which"
            " systems can interpolate"
        )
    return model


def _one_label(model: Model, label: str | None) -> int | None:
    """The class that all pictures have. Raises `ConfigError` where there is none of this name, or one is needed."""
    if label is None and model.classes:
        raise ConfigError(f"{_name(model)} draws a class; name one with --label: {', '.join(model.classes)}")
    labels = _labels(model, 1, label)
    return None if labels is None else int(labels[0])


def _seeds(option: str, text: str) -> list[int]:
    """The integers of "3,14,15". Raises `ConfigError` where they are none."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--{option} takes seeds, integers with commas between them as 3,14,15, not {text!r}"
        ) from None


def _picture_file(out: Path) -> None:
    """Raises `ConfigError` for a name that is no picture's, before anything is computed."""
    if not _is_picture_file(out):
        raise ConfigError(f"{out} is no picture file; end its name in .png, for instance")


def _is_picture_file(out: Path) -> bool:
    """Whether pictures can be written under such a name."""
    from PIL import Image

    return Image.registered_extensions().get(out.suffix.lower()) in Image.SAVE


def _save(picture: Any, out: Path, **options: Any) -> None:
    """Write a picture. Raises `ConfigError` where that is not possible."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write {out}: {error}; choose another --out") from None


def _save_film(frames: Sequence[Any], out: Path, milliseconds: int | list[int]) -> None:
    """Write pictures that follow each other without end, each for so long. Raises `ConfigError` as `_save` does."""
    _save(frames[0], out, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)


def _test_pictures(model: Model, data: str) -> Pictures:
    """The test pictures of a set, in the size that the model knows."""
    from .data import open_pictures

    spec = model.identity.data if model.identity else None
    size, channels = (spec.image_size, spec.channels) if spec else (None, None)
    return open_pictures(data, split="test", image_size=size, channels=channels)


def _seen(model: Model, pictures: Pictures, places: Sequence[int], seed: int = 0) -> Any:
    """Some of them as the model sees pictures, (n, C, H, W); where they are binarised, with seeds from `seed`."""
    from .evaluation.likelihood import as_shown

    images = pictures.batch(places).images
    return as_shown(images, model.pixels or "levels", range(seed, seed + len(places)), model.device)


def _begin(model: Model, n: int, source: str | None) -> Any:
    """The n test pictures from which a model of two sets begins, or of which it sees a part, (n, C, H, W), or None."""
    if model.identity is None or not (model.identity.data.source or model.completes):
        if source is not None:
            raise ConfigError(f"{_name(model)} begins from noise, so --source means nothing to it")
        return None
    if source is None:
        begins = "sees a part of pictures of some set" if model.completes else "begins from pictures of a second set"
        raise ConfigError(f"{_name(model)} {begins}; name it with --source")
    from .data import spread_over

    pictures = _test_pictures(model, source)
    places = spread_over(len(pictures), n)
    return pictures.batch([places[k % len(places)] for k in range(n)]).images


def _counting(n: int, accelerator: Accelerator) -> Any:
    """A progress bar over n pictures, on the main process's terminal."""
    import contextlib

    @contextlib.contextmanager
    def bar() -> Any:
        from rich.console import Console
        from rich.progress import Progress

        hidden = not (accelerator.is_main_process and sys.stderr.isatty())
        with Progress(console=Console(stderr=True), disable=hidden, transient=True) as progress:
            task = progress.add_task("pictures", total=n / accelerator.num_processes)
            yield lambda count: progress.advance(task, count)

    return bar()


def _write_pictures(images: Any, out: Path, seed: int, names: list[str], grid: Any) -> list[str]:
    """One grid for a file name; a folder of pictures with their metadata.jsonl otherwise.

    A folder of earlier samples gets more of them. Raises `ConfigError` if it holds anything else.
    """
    if _is_picture_file(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        grid(images).save(out)
        return [str(out)]
    out.mkdir(parents=True, exist_ok=True)
    rows = _earlier_samples(out)
    written = [str(out)]
    for k, image in enumerate(images):
        name = f"{seed + k:06d}.png"
        grid(image[None], padding=0, scale=1).save(out / name)
        rows[name] = {"file_name": name, "seed": seed + k, **({"label": names[k]} if names else {})}
        written.append(str(out / name))
    (out / "metadata.jsonl").write_text("".join(jsonlib.dumps(rows[name]) + "\n" for name in sorted(rows)))
    return written


def _earlier_samples(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a folder that this command filled before. Raises `ConfigError` if it holds anything else."""
    present = {path.name for path in folder.iterdir()}
    if not present:
        return {}
    try:
        lines = (folder / "metadata.jsonl").read_text().splitlines()
        rows = {row["file_name"]: row for row in map(jsonlib.loads, lines)}
        ours = present == {"metadata.jsonl", *rows} and all("seed" in row for row in rows.values())
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise ConfigError(f"{folder} holds other files than samples; choose a new folder")
    return rows
