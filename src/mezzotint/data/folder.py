"""A folder of pictures, read by the conventions of the `imagefolder` builder of `datasets`.

Labels are the names of the subfolders, or a column of a metadata file; captions are a column of `metadata.jsonl`,
`.csv` or `.parquet`, or the first line of a `.txt` beside the picture. The builder itself stops at the first damaged
file, so the walk is our own; tests compare the two on sound folders.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError, suggest
from .reading import Entry, Listing, log

PICTURES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".jp2", ".avif", ".qoi"),
}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
CAPTION_COLUMNS = ("text", "caption", "captions", "sentence", "description", "prompt")
LABEL_COLUMNS = ("label", "labels", "class", "category")
FOLDERS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "validation", "valid", "val"),
    "validation": ("validation", "valid", "val"),
}
SPLIT_FOLDERS = {name for folders in FOLDERS.values() for name in folders}
SPLITS = (*FOLDERS, "all")
HELD_OUT = 10  # where a set has no test split of its own, every tenth picture is kept for it


def list_folder(root: Path, name: str) -> Listing:
    """Every picture below `root`, in the order of their paths. Raises `DataError` if there is none."""
    files, faults = _walk(root)
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    if not pictures and not faults:
        raise DataError(f"{name} holds no pictures{_what_else(files)}; pictures end in .png, .jpg, .webp and the like")
    facts, complaints = _read_metadata([path for path in files if path.name in METADATA])
    faults |= complaints
    faults |= {str(path): "named in the metadata, but there is no such file" for path in facts if path not in files}
    if facts:
        unnamed = [path for path in pictures if path not in facts]
        if unnamed:
            log.warning("%s: %d pictures are not named in its metadata and are left out", name, len(unnamed))
        pictures = [path for path in pictures if path in facts]
    captions = _captions(pictures, facts, files)
    classes, labels = _labels(root, name, pictures, facts)
    faults |= {
        str(path): "it has no caption, and others have" for path in pictures if captions and path not in captions
    }
    faults |= {str(path): "it has no label, and others have" for path in pictures if labels and path not in labels}
    good = [
        Entry(str(path), path, labels.get(path), captions.get(path)) for path in pictures if str(path) not in faults
    ]
    bad = [Entry(name, b"", fault=fault) for name, fault in faults.items()]
    return Listing(sorted([*good, *bad], key=lambda entry: entry.name), classes, bool(captions))


def choose_split(root: Path, listing: Listing, split: str) -> Listing:
    """The pictures of one split: those in the subfolder of its name, else all but, or just, every tenth picture.

    Raises `DataError` if there are none.
    """
    entries = listing.entries
    inside = {name: _inside(root, entries, folders) for name, folders in FOLDERS.items()}
    if split == "all":
        chosen = entries
    elif inside["train"] and inside["test"]:
        # validation pictures stand in for test pictures only where there are no others
        chosen = (_inside(root, entries, FOLDERS["test"][:2]) if split == "test" else []) or inside[split]
    else:
        chosen = [entry for i, entry in enumerate(entries) if is_held_out(i) == (split != "train")]
    if not chosen:
        raise DataError(f"{root} has no {split} pictures; make a subfolder {split}/, or ask for the split 'all'")
    return Listing(chosen, listing.classes, listing.captions)


def is_held_out(index: int) -> bool:
    """Whether the picture of this index belongs to the test split of a set that has no split of its own."""
    return index % HELD_OUT == HELD_OUT - 1


def check_split(split: str) -> None:
    """Raises `ConfigError` for a split that no set has."""
    if split not in SPLITS:
        raise ConfigError(f"no split is called {split!r}{suggest(split, SPLITS)}")


def _walk(root: Path) -> tuple[dict[Path, None], dict[str, str]]:
    """Every visible file below root, sorted by path, and what could not be entered or is no file, with the reason."""
    files: list[Path] = []
    faults: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()  # a folder that links to one of its parents is entered once

    def refuse(error: OSError) -> None:
        faults[str(error.filename)] = (error.strerror or "cannot be opened").lower()

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__")))
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            fault = _no_file(path)
            if fault is None:
                files.append(path)
            elif path.suffix.lower() in PICTURES:
                faults[str(path)] = fault
    return dict.fromkeys(sorted(files)), faults


def _no_file(path: Path) -> str | None:
    """Why the path is no file that can be opened; to open a pipe would be to wait for ever."""
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else "no regular file"
    except OSError as error:
        return (error.strerror or "cannot be opened").lower()


def _what_else(files: Iterable[Path]) -> str:
    endings = sorted({path.suffix.lower() or path.name for path in files})
    if not endings:
        return " (it is empty)"
    found = f" (only {', '.join(endings[:5])})"
    return found + "; for videos, take their frames out first" if VIDEOS & set(endings) else found


def _read_metadata(files: Iterable[Path]) -> tuple[dict[Path, Mapping[str, Any]], dict[str, str]]:
    """What the metadata files say of each picture, and the lines of them that cannot be read, with the reason."""
    facts: dict[Path, Mapping[str, Any]] = {}
    faults: dict[str, str] = {}
    for path in files:
        rows = _metadata_rows(path)
        named = [row for row in rows.values() if isinstance(row, Mapping) and "file_name" in row]
        if rows and not named:
            reason = next((row for row in rows.values() if isinstance(row, str)), "no column file_name")
            raise DataError(
                f"{path} names no picture ({reason}); each row needs file_name, the picture's path from there"
            )
        for number, row in rows.items():
            if isinstance(row, str):
                faults[f"{path}:{number}"] = row
            elif not isinstance(row.get("file_name"), str) or not row["file_name"]:
                faults[f"{path}:{number}"] = "no file_name"
            else:
                facts[Path(os.path.normpath(path.parent / row["file_name"]))] = row
    return facts, faults


def _metadata_rows(path: Path) -> dict[int, Mapping[str, Any] | str]:
    """By row, its columns, or why they cannot be read. Raises `DataError` if the file as a whole cannot be read."""
    try:
        content = path.read_bytes()
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return dict(enumerate(pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist(), 1))
        text = content.decode("utf-8-sig")
        return _csv_rows(text) if path.suffix == ".csv" else _json_rows(text)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors and UnicodeDecodeError are ValueErrors
        raise DataError(f"{path} cannot be read ({error}); save it as UTF-8 text, or remove it") from None


def _json_rows(text: str) -> dict[int, Mapping[str, Any] | str]:
    rows: dict[int, Mapping[str, Any] | str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[number] = row if isinstance(row, Mapping) else "not a JSON object"
        except (ValueError, RecursionError) as error:
            rows[number] = f"not JSON: {error}"
    return rows


def _csv_rows(text: str) -> dict[int, Mapping[str, Any] | str]:
    return dict(enumerate(csv.DictReader(io.StringIO(text, newline="")), 2))  # the names of the columns are row 1


def first_column(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    """The value of the first of these columns that holds one; of several sentences the first."""
    value = next((row[column] for column in columns if row.get(column) not in (None, "", [])), None)
    return value[0] if isinstance(value, list) else value


def _captions(
    pictures: Sequence[Path], facts: Mapping[Path, Mapping[str, Any]], files: Mapping[Path, None]
) -> dict[Path, str]:
    told = {path: first_column(facts[path], CAPTION_COLUMNS) for path in pictures if path in facts}
    captions = {path: str(caption) for path, caption in told.items() if caption is not None}
    return captions or {
        path: sentence
        for path in pictures
        if (beside := path.with_suffix(".txt")) in files and (sentence := _first_line(beside))
    }


def _first_line(path: Path) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):
        return None  # its picture has no caption then, which is counted
    return next((line.strip() for line in lines if line.strip()), None)


def _labels(
    root: Path, name: str, pictures: Sequence[Path], facts: Mapping[Path, Mapping[str, Any]]
) -> tuple[tuple[str, ...], dict[Path, int]]:
    told = {path: first_column(facts[path], LABEL_COLUMNS) for path in pictures if path in facts}
    names = {path: str(label) for path, label in told.items() if label is not None}
    names = names or _folder_names(root, name, pictures)
    classes = class_names(set(names.values()))
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, {path: numbers[name] for path, name in names.items()}


def _folder_names(root: Path, name: str, pictures: Sequence[Path]) -> dict[Path, str]:
    """The folder of each picture, if all lie equally deep and in more than one."""
    inner = {path: path.relative_to(root).parts[:-1] for path in pictures}
    splits = _split_folders({parts[0] for parts in inner.values() if parts})
    below = {path: parts[1:] if parts and parts[0] in splits else parts for path, parts in inner.items()}
    names = {path: parts[-1] for path, parts in below.items() if parts}
    by_depth = {len(parts): path for path, parts in below.items()}
    if len(by_depth) > 1:
        highest, deepest = by_depth[min(by_depth)], by_depth[max(by_depth)]
        log.warning(
            "%s has no labels: its subfolders are no classes, since pictures lie at different depths (%s and %s);"
            " move each into the folder of its class",
            *(name, highest.relative_to(root), deepest.relative_to(root)),
        )
    return names if len(by_depth) == 1 and len(set(names.values())) > 1 else {}


def _split_folders(folders: set[str]) -> set[str]:
    """Which of the folders in the root hold a split: "train" beside classes and no "test" is a class itself."""
    splits = {folder for folder in folders if folder.lower() in SPLIT_FOLDERS}
    kinds = {kind for kind in ("train", "test") for folder in splits if folder.lower() in FOLDERS[kind]}
    return splits if splits == folders or len(kinds) == 2 else set()


def class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in label order: by value if all are numbers ("01" before "1"), else by the alphabet."""
    names = set(names)
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _inside(root: Path, entries: Sequence[Entry], folders: Sequence[str]) -> list[Entry]:
    places = [(entry, Path(entry.name)) for entry in entries]  # metadata may have named one that is not below root
    return [
        entry
        for entry, place in places
        if place.is_relative_to(root) and place.relative_to(root).parts[0].lower() in folders
    ]
