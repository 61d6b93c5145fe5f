"""Damaged pictures are counted, named and left out; no other error than DataError comes of them."""

import contextlib
import io
import logging
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from mezzotint.core.errors import DataError
from mezzotint.data import Loader, open_pictures
from mezzotint.data.decode import Damaged, load
from mezzotint.data.reading import Damage

EACH = 10  # files of each kind


def encode(format, size=24, seed=0, **options):
    file = io.BytesIO()
    levels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(levels).save(file, format, **options)
    return file.getvalue()


def png(width, height, depth=8, pixels=b"", kinds=("IHDR", "IDAT", "IEND")):
    """A PNG made by hand, with only some of its chunks."""
    bodies = {"IHDR": struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0), "IDAT": pixels, "IEND": b""}
    chunks = [(kind.encode(), bodies[kind]) for kind in kinds]
    framed = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def bomb():
    """30,000 x 30,000 pixels of one bit: 110 kB, and 900 MB once it is decoded."""
    rows = zlib.compressobj(1)
    return png(30_000, 30_000, 1, b"".join([*(rows.compress(bytes(3751 * 300)) for _ in range(100)), rows.flush()]))


def flipped(content, places):
    content = bytearray(content)
    for place in places:
        content[place] ^= 0xFF
    return bytes(content)


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("picture.png", encode("PNG"))
    return file.getvalue()


def tiff(levels):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "TIFF")
    return file.getvalue()


KINDS = {
    "empty.png": lambda i: b"",
    "one byte.jpg": lambda i: b"\xff",
    "text.png": lambda i: f"this is no picture {i}".encode(),
    "page.jpg": lambda i: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "drawing.png": lambda i: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "noise.jpg": lambda i: np.random.default_rng(i).bytes(500),
    "zip.webp": lambda i: zipped(),
    "pickle.png": lambda i: pickle.dumps({"picture": i}),
    "cut.png": lambda i: encode("PNG", seed=i)[: 100 + 30 * i],
    "cut.jpg": lambda i: encode("JPEG", 64, seed=i)[: 700 + 20 * i],
    "cut.webp": lambda i: encode("WEBP", seed=i)[: 40 + 5 * i],
    "cut.bmp": lambda i: encode("BMP", seed=i)[: 60 + 50 * i],
    "cut.tif": lambda i: encode("TIFF", seed=i)[: 60 + 50 * i],
    "cut.gif": lambda i: encode("GIF", seed=i)[: 20 + 5 * i],
    "header.png": lambda i: png(24, 24, kinds=("IHDR",)),
    "no pixels.png": lambda i: png(24, 24, kinds=("IHDR", "IEND")),
    "no width.png": lambda i: png(0, 24, pixels=zlib.compress(bytes(100))),
    "bad crc.png": lambda i: flipped(encode("PNG", seed=i), [60 + i]),
    "bad stream.png": lambda i: png(24, 24, pixels=flipped(zlib.compress(bytes(range(240)) * 3), range(2, 20 + i))),
    "bomb.png": lambda i: bomb() if i == 0 else png(30_000 + i, 30_000, pixels=b"x"),
    "bomb.bmp": lambda i: encode("BMP")[:18] + struct.pack("<ii", 50_000, 40_000 + i) + encode("BMP")[26:],
    "float.tif": lambda i: tiff(np.full((4, 4), np.nan, np.float32)),
    "deep.tif": lambda i: tiff(np.full((4, 4), 10**6 + i, np.int32)),
}


@pytest.fixture(scope="module")
def damaged():
    """At least 200 damaged files of at least 20 kinds: (name, bytes)."""
    files = [(f"{i} {kind}", make(i)) for kind, make in KINDS.items() for i in range(EACH)]
    assert len(KINDS) >= 20
    assert len(files) >= 200
    return files


def write_good(folder, n):
    """n small pictures; most of them are links to a few, since only their number matters."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        file = folder / f"good {k:05d}.png"
        if k < 10:
            Image.fromarray(np.full((6, 6), 20 * k, np.uint8)).save(file)
        else:
            os.link(folder / f"good {k % 10:05d}.png", file)


def test_every_damaged_file_is_named_damaged_and_nothing_else_escapes(damaged, tmp_path):
    for name, content in damaged:
        (tmp_path / name).write_bytes(content)
        for file in (content, tmp_path / name):
            with pytest.raises(Damaged) as error:
                load(file)
            assert str(error.value), name
            assert "0x" not in str(error.value), name


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
def test_a_bomb_is_refused_before_its_pixels_are_unpacked(limit, monkeypatch):
    def unpack(self):
        raise AssertionError("900 MB would be unpacked")

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # other libraries switch Pillow's own check off
    monkeypatch.setattr(PngImageFile, "load", unpack)
    with pytest.raises(Damaged, match="pixels"):
        load(bomb())


def test_a_few_damaged_among_many_are_left_out_and_named(damaged, tmp_path, caplog):
    write_good(tmp_path, 20 * len(damaged))
    for name, content in damaged:
        (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.WARNING, "mezzotint.data"):
        pictures = open_pictures(str(tmp_path), split="all")
    assert len(pictures) == 20 * len(damaged)
    assert {os.path.basename(name) for name, _ in pictures.skipped} == {name for name, _ in damaged}
    assert pictures.spec.image_size == 6
    named = [line for line in caplog.messages if line.startswith("skipped")]
    assert sorted(named) == sorted(f"skipped {picture}: {reason}" for picture, reason in pictures.skipped)
    assert f"skipped {len(damaged)} of {21 * len(damaged)}" in caplog.messages[-1]


def test_thousands_of_damaged_pictures_are_all_named_in_at_most_a_thousand_lines(caplog):
    skipped = [(f"{k:05d}.png", "it is empty") for k in range(2500)]
    Damage("much", skipped, 50_000).report()
    assert len(caplog.messages) <= 1001
    assert [name for name, _ in skipped if f"{name}: it is empty" not in caplog.text] == []


def test_more_than_five_percent_damaged_is_an_error_that_says_what_to_do(tmp_path):
    write_good(tmp_path, 95)
    for k in range(5):
        (tmp_path / f"bad {k}.png").write_bytes(b"")
    assert len(open_pictures(str(tmp_path), split="all")) == 95
    (tmp_path / "bad 5.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"6 of its 101 pictures .*bad 0.png: it is empty.*remove, repair"):
        open_pictures(str(tmp_path), split="all")


@pytest.mark.parametrize("limit", [2 << 30, 0])
def test_a_folder_of_nothing_but_damage_is_an_error(damaged, tmp_path, monkeypatch, limit):
    monkeypatch.setattr("mezzotint.data.pictures.MEMORY_LIMIT", limit)
    for name, content in damaged:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="usable"):
        open_pictures(str(tmp_path), split="all")


def test_every_picture_whose_damage_shows_late_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mezzotint.data.pictures.MEMORY_LIMIT", 0)
    write_good(tmp_path, 240)
    for k in range(12):
        (tmp_path / f"cut {k:02d}.png").write_bytes(encode("PNG", seed=k)[:300])
    open_pictures(str(tmp_path), split="all", image_size=6, channels=1).batch(range(252))
    assert [k for k in range(12) if f"cut {k:02d}.png: " not in caplog.text] == []


def test_damage_that_shows_late_is_replaced_and_counted(tmp_path, monkeypatch):
    """Where a set is decoded on demand, only headers are read when it is opened."""
    monkeypatch.setattr("mezzotint.data.pictures.MEMORY_LIMIT", 0)
    write_good(tmp_path, 40)
    (tmp_path / "a cut.png").write_bytes(encode("PNG")[:300])
    pictures = open_pictures(str(tmp_path), split="all", image_size=6, channels=1)
    assert len(pictures) == 41
    first = pictures.batch([0, 1]).images
    assert (first[0] == first[1]).all()
    assert [os.path.basename(name) for name, _ in pictures.skipped] == ["a cut.png"]
    pictures.batch([0])
    assert len(pictures.skipped) == 1


def test_late_damage_of_more_than_five_percent_stops_the_loader(tmp_path, monkeypatch):
    monkeypatch.setattr("mezzotint.data.pictures.MEMORY_LIMIT", 0)
    write_good(tmp_path, 20)
    for k in range(3):
        (tmp_path / f"cut {k}.png").write_bytes(encode("PNG", seed=k)[:300])
    loader = Loader(open_pictures(str(tmp_path), split="all", image_size=6, channels=1), 23)
    with contextlib.closing(loader), pytest.raises(DataError, match="remove, repair"):
        loader.next()


def test_links_to_nothing_links_in_circles_and_pipes_are_no_trap(tmp_path):
    write_good(tmp_path, 60)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "parent").symlink_to(tmp_path)
    (tmp_path / "folder.png").mkdir()
    pictures = open_pictures(str(tmp_path), split="all")
    assert len(pictures) == 60
    assert {os.path.basename(name) for name, _ in pictures.skipped} == {"gone.png", "circle.png", "pipe.png"}


def test_what_may_not_be_read_is_skipped(tmp_path, monkeypatch):
    write_good(tmp_path, 20)
    secret = tmp_path / "good 00003.png"
    opened = Image.open

    def refuse(file, *args, **kwargs):
        if file == secret:
            raise PermissionError(13, "Permission denied", str(secret))
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(Image, "open", refuse)
    pictures = open_pictures(str(tmp_path), split="all")
    assert pictures.skipped == [(str(secret), "permission denied")]


def test_what_may_not_even_be_looked_at_is_skipped(tmp_path, monkeypatch):
    write_good(tmp_path, 20)
    secret = tmp_path / "good 00003.png"
    looked = Path.stat

    def refuse(path, **kwargs):
        if path == secret:
            raise PermissionError(13, "Permission denied", str(secret))
        return looked(path, **kwargs)

    monkeypatch.setattr(Path, "stat", refuse)
    assert open_pictures(tmp_path, split="all").skipped == [(str(secret), "permission denied")]
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(DataError, match="permissions"):
        open_pictures(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "it is empty"),
        ({"notes.txt": "hello", "clip.mp4": "x"}, r"only \.mp4, \.txt.*take their frames out"),
        ({".hidden.png": "x"}, "it is empty"),
    ],
)
def test_a_folder_without_pictures_is_an_error_that_says_what_it_holds(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        open_pictures(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.jsonl", b"\xff\xfe\x00broken", "UTF-8"),
        ("metadata.jsonl", b"not json at all\n{", "not JSON"),
        ("metadata.jsonl", b'["a", "list"]', "not a JSON object"),
        ("metadata.jsonl", b'{"picture": "good 00001.png", "text": "x"}', "file_name"),
        ("metadata.jsonl", b'{"file_name": "elsewhere.png", "text": "x"}', "no such file"),
        ("metadata.jsonl", b'{"file_name": "../elsewhere.png", "text": "x"}', "no such file"),
        ("metadata.jsonl", b'{"file_name": 7, "text": "x"}', "no file_name"),
        ("metadata.jsonl", b"[" * 100_000, "not JSON"),
        ("metadata.csv", "file_name,text\ngood 00001.png,caf\xe9".encode("latin-1"), "UTF-8"),
        ("metadata.csv", b"name,text\ngood 00001.png,x", "file_name"),
        ("metadata.csv", b'file_name,text\n"' + b"x" * 200_000, "cannot be read"),
        ("metadata.parquet", b"PAR1 and nothing more", "cannot be read"),
    ],
)
def test_an_unreadable_caption_file_is_an_error_that_says_so(tmp_path, name, content, said):
    write_good(tmp_path, 20)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_pictures(str(tmp_path))


def test_a_few_bad_lines_of_a_caption_file_are_skipped_and_named(tmp_path):
    write_good(tmp_path, 60)
    lines = [f'{{"file_name": "good {k:05d}.png", "text": "number {k}"}}' for k in range(60)]
    lines[7] = '{"file_name": "good 00007.png", "text": '
    lines[8] = '{"file_name": "good 00008.png"}'
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    pictures = open_pictures(str(tmp_path), split="all")
    assert len(pictures) == 58
    reasons = {os.path.basename(name): reason for name, reason in pictures.skipped}
    assert set(reasons) == {"metadata.jsonl:8", "good 00008.png"}
    assert "no caption" in reasons["good 00008.png"]
    assert pictures.batch([7, 8]).captions == ["number 9", "number 10"]
