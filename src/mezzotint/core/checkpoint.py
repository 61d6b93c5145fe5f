"""Saved models: written so that a kill at any moment leaves the last good one, read so that damage is noticed.

A checkpoint is a directory of files beside a `manifest.json` with the size and SHA-256 of each, and a SHA-256 of its
own. It is written under a temporary name, flushed to the disk and renamed, so it exists whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import CheckpointError

if TYPE_CHECKING:
    from .model import Model

FORMAT = "mezzotint 1"
MANIFEST = "manifest.json"
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".tar"}


@contextmanager
def writing(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary directory that becomes `directory` when the block ends well, and vanishes when it does not.

    Raises `CheckpointError` if the disk is full or not writable, or if `directory` holds anything but a saved model;
    what was at `directory` is then as it was.
    """
    target = Path(directory)
    if target.exists() and not _is_replaceable(target):
        raise CheckpointError(f"{target} holds more than a saved model, so it is not overwritten; choose another name")
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        yield scratch
        _write_manifest(scratch)
        for path in [*scratch.iterdir(), scratch]:
            _flush(path)
        _rename(scratch, target)
    except OSError as error:
        raise CheckpointError(
            f"could not write {target}: {error.strerror or error}; free some space or choose another place"
            " (the checkpoint before it is untouched)"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_replaceable(target: Path) -> bool:
    """Whether nothing but an empty folder, or exactly the files of a saved model, would be lost."""
    if not target.is_dir():
        return False
    present = {path.name for path in target.iterdir()}
    if not present:
        return True
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        return bool(manifest["format"] == FORMAT and present == {MANIFEST, *manifest["files"]})
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_manifest(directory: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(directory.iterdir())}
    manifest = {"format": FORMAT, "files": files}
    manifest["sha256"] = _digest(manifest)
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _rename(scratch: Path, target: Path) -> None:
    """Put the new directory in the place of the old one, or leave the old one there."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.rename(target, aside)
    try:
        os.rename(scratch, target)
    except OSError:
        with suppress(FileNotFoundError):
            os.rename(aside, target)
        raise
    _flush(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def verify(directory: str | os.PathLike[str]) -> frozenset[str]:
    """The names of a checkpoint's files, after every byte of them was compared with its checksum.

    A file that is not among them was not saved with the others, and must not be read as one of them.
    Raises `CheckpointError` if anything is missing, truncated or altered.
    """
    directory = Path(directory)
    refuse_pickle(directory)
    if not directory.is_dir():
        raise CheckpointError(f"there is no saved model at {directory}")
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        files = manifest["files"]
        if manifest["sha256"] != _digest(manifest):
            raise CheckpointError(f"{directory / MANIFEST} is damaged; {_remedy(directory)}")
        for name, expected in files.items():
            path = directory / name
            if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
                raise CheckpointError(f"{path} is damaged: it is not what was saved; {_remedy(directory)}")
        return frozenset(files)
    except FileNotFoundError as error:
        for path in directory.iterdir():
            refuse_pickle(path)
        raise CheckpointError(f"{error.filename} is missing; {_remedy(directory)}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{directory / MANIFEST} is damaged; {_remedy(directory)}") from None


def _remedy(directory: Path) -> str:
    others = [path.name for path in checkpoints(directory.parent.parent) if path != directory]
    if directory.parent.name == "checkpoints" and others:
        return f"remove {directory} to go back to {others[-1]}"
    return "copy it again from where it was made, or train it again"


def refuse_pickle(path: Path) -> None:
    """Raises `CheckpointError` if the file's ending is a pickle's: loading one can run any code."""
    if path.suffix not in PICKLES or path.is_dir():
        return
    raise CheckpointError(
        f"{path} is a pickle, which can run any code when it is loaded, so it is refused; if you trust it, convert it:"
        ' python -c "import torch, safetensors.torch as s; s.save_file('
        f"torch.load('{path}', map_location='cpu', weights_only=True), '{path.with_suffix('.safetensors')}')\""
    )


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a safetensors file; tensors that share memory are written once each."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    try:
        save_file(plain, path)
    except SafetensorError as error:  # how that library reports a full disk
        raise OSError(str(error)) from error


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file. Raises `CheckpointError` for a pickle, a damaged or a missing file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    refuse_pickle(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no readable safetensors file ({error}); copy it again") from None


def describe_model(model: Model) -> dict[str, Any]:
    """What `config.json` says: where the model stands in the catalogue, and the config of each stage up to it."""
    if model.identity is None:
        raise CheckpointError(
            f"this {type(model).__name__} was not built by mezzotint.create or mezzotint.load, so its directory could"
            " not say how to build it again; add it to the catalogue with mezzotint.systems.register"
        )
    return {
        "format": FORMAT,
        **model.identity.to_dict(),
        "stages": {name: config.to_dict() for name, config in model.configs.items()},
    }


def read_description(directory: Path) -> dict[str, Any]:
    """`config.json` of a verified checkpoint. Raises `CheckpointError` if it does not describe a model."""
    try:
        description = json.loads((directory / "config.json").read_text())
        if description["format"] != FORMAT:
            raise CheckpointError(f"{directory} has the format {description['format']!r}; upgrade mezzotint to read it")
        return dict(description)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / 'config.json'} does not describe a model ({error})") from None


def save_model(model: Model, directory: str | os.PathLike[str]) -> None:
    """Write one complete generator: `config.json`, `model.safetensors`, `manifest.json`."""
    description = describe_model(model)
    with writing(directory) as scratch:
        (scratch / "config.json").write_text(json.dumps(description, indent=1))
        save_tensors(model.state_dict(), scratch / "model.safetensors")


def checkpoints(run: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints of a run directory, oldest first; other names beside them are left alone."""
    found = (Path(run) / "checkpoints").glob("step_*")
    return sorted(path for path in found if re.fullmatch(r"step_\d{8,}", path.name) and path.is_dir())


def latest(directory: str | os.PathLike[str]) -> Path:
    """The newest checkpoint of a run directory, or the directory itself if it is a checkpoint.

    Raises `CheckpointError` if there is none.
    """
    directory = Path(directory)
    if (directory / MANIFEST).exists():
        return directory
    if steps := checkpoints(directory):
        return steps[-1]
    verify(directory)  # says what is missing
    raise CheckpointError(f"{directory} holds no checkpoint yet; train it first")
