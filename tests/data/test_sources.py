"""Where pictures come from: the package, idx files, the hub, shards."""

import gzip
import io
import json
import struct
import tarfile
import time
from contextlib import closing

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.core.errors import ConfigError, DataError
from mezzotint.data import Loader, open_pictures
from mezzotint.data.clothes import CLASSES, SIDE
from mezzotint.data.pictures import Streamed


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A folder without data/, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEZZOTINT_DATA", raising=False)

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub")

    original = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda path, *args, **kwargs: (original if path == "webdataset" else unreachable)(path, *args, **kwargs),
    )


def png(levels):
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


# fashion


def test_fashion_is_the_published_beginning_of_fashion_mnist():
    train, test = open_pictures("fashion"), open_pictures("fashion", split="test")
    assert (len(train), len(test)) == (10_000, 2_000)
    spec = {"image_size": 28, "channels": 1, "classes": list(CLASSES), "captions": True, "source": False}
    assert train.spec.to_dict() == spec
    # the first ten labels of each file, and the mean level, as everybody knows them from the published set
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert abs(train.levels.double().mean() / 255 - 0.2860) < 0.002  # of all 60,000: 0.2860
    assert len(open_pictures("fashion", split="all")) == 12_000


def test_fashion_opens_in_a_moment_and_is_small():
    from importlib.resources import files

    folder = files("mezzotint.data") / "fashion"
    assert sum(len(file.read_bytes()) for file in folder.iterdir()) < 6_000_000
    assert "MIT License" in (folder / "LICENSE").read_text()
    seconds = []
    for _ in range(3):
        start = time.process_time()
        open_pictures("fashion")
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3


def test_sentences_about_clothes_are_true_and_differ():
    pictures = open_pictures("fashion", split="test")
    batch = pictures.batch(range(2000))
    for label, caption in zip(batch.labels.tolist(), batch.captions):
        name = CLASSES[label]
        assert ("a pair of" in caption and "trousers" in caption) if name == "trouser" else name in caption
        assert " a ankle" not in f" {caption}"
        assert " a a" not in f" {caption}"
    assert len(set(batch.captions)) > 100
    bright = (batch.images > -0.9).flatten(1)
    means = torch.stack([image[mask].mean() for image, mask in zip(batch.images.flatten(1), bright)])
    light = torch.tensor(["light" in caption for caption in batch.captions])
    dark = torch.tensor(["dark" in caption for caption in batch.captions])
    assert means[light].min() > means[dark].max()
    assert batch.captions == open_pictures("fashion", split="test").batch(range(2000)).captions


def test_fashion_can_be_had_in_another_size_and_in_colour():
    pictures = open_pictures("fashion", split="test", image_size=32, channels=3)
    assert pictures.batch([0, 1]).images.shape == (2, 3, 32, 32)
    same_size = open_pictures("fashion", split="test", channels=3).batch([5]).images
    assert torch.equal(same_size[:, :1], same_size[:, 2:])


# idx files


def write_idx(folder, packed=False, dots=False):
    """20 training and 10 test pictures of 28 x 28 pixels; the labels are 0, 1, 2, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    open_file = gzip.open if packed else open
    for prefix, n in (("train", 20), ("t10k", 10)):
        levels = np.random.default_rng(n).integers(0, 256, (n, SIDE, SIDE), dtype=np.uint8)
        contents = {
            "images-idx3-ubyte": struct.pack(">4B3i", 0, 0, 8, 3, n, SIDE, SIDE) + levels.tobytes(),
            "labels-idx1-ubyte": struct.pack(">4Bi", 0, 0, 8, 1, n) + bytes(k % 10 for k in range(n)),
        }
        for name, content in contents.items():
            name = name.replace("-idx", ".idx") if dots else name
            with open_file(folder / f"{prefix}-{name}{'.gz' if packed else ''}", "wb") as file:
                file.write(content)
    return np.random.default_rng(20).integers(0, 256, (20, SIDE, SIDE), dtype=np.uint8)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_are_found_in_data_or_where_the_environment_says(tmp_path, monkeypatch, name, packed):
    levels = write_idx(tmp_path / "data" / name, packed)
    assert (open_pictures(name).levels[:, 0].numpy() == levels).all()
    (tmp_path / "data").rename(tmp_path / "other")
    monkeypatch.setenv("MEZZOTINT_DATA", str(tmp_path / "other"))
    pictures = open_pictures(name, split="all")
    assert (pictures.levels[:20, 0].numpy() == levels).all()
    assert pictures.labels.tolist() == [*range(10), *range(10), *range(10)]
    assert pictures.spec.classes == (CLASSES if name == "fashion-mnist" else tuple("0123456789"))
    assert pictures.spec.captions == (name == "fashion-mnist")


def test_idx_files_are_found_in_a_folder_that_is_named(tmp_path):
    levels = write_idx(tmp_path / "somewhere", dots=True)
    for source in (f"mnist:{tmp_path / 'somewhere'}", str(tmp_path / "somewhere")):
        assert (open_pictures(source).levels[:, 0].numpy() == levels).all()
        assert len(open_pictures(source, split="test")) == 10


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-1], "announces"),
        (lambda content: content + b"x", "announces"),
        (lambda content: b"", "no idx file"),
        (lambda content: b"\x00\x00\x0d\x03" + content[4:], "no idx file"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "announces"),
        (lambda content: content[:10], "no idx file"),
    ],
)
def test_damaged_idx_files_are_an_error_that_says_what_to_do(tmp_path, damage, said):
    write_idx(tmp_path / "data/mnist")
    file = tmp_path / "data/mnist/train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=f"{said}.*fetch it again"):
        open_pictures("mnist")


def test_damaged_archives_and_missing_labels_are_data_errors(tmp_path):
    write_idx(tmp_path / "packed", packed=True)
    file = tmp_path / "packed/train-images-idx3-ubyte.gz"
    for content in (file.read_bytes()[:-20], file.read_bytes()[:50] + b"?" * 50 + file.read_bytes()[100:], b"no gzip"):
        file.write_bytes(content)
        with pytest.raises(DataError):
            open_pictures(f"mnist:{tmp_path / 'packed'}")
    write_idx(tmp_path / "raw")
    (tmp_path / "raw/train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="lacks train-labels"):
        open_pictures(f"mnist:{tmp_path / 'raw'}")


def test_without_files_and_network_the_error_says_what_to_do():
    with pytest.raises(DataError, match="make data"):
        open_pictures("mnist")
    with pytest.raises(DataError, match=r"cannot be had from the hub .*network"):
        open_pictures("hf:nobody/nothing")
    with pytest.raises(DataError, match="did you mean 'fashion'"):
        open_pictures("fashon")
    with pytest.raises(DataError, match="no file matches"):
        open_pictures("shards/*.tar")


# the hub


def on_hub(monkeypatch, splits, classes=None, broken=(), counted=True, **columns):
    """A hub with one set: `splits` maps names to numbers of pictures; picture k shows noise from the seed k."""
    asked = []
    kinds = {int: datasets.Value("int64"), str: datasets.Value("string")}
    sizes = datasets.SplitDict.from_split_dict([{"name": name, "num_examples": n} for name, n in splits.items()])

    def make(n):
        rows = {name: [value(k) for k in range(n)] for name, value in columns.items()}
        features = {name: kinds[type(values[0])] for name, values in rows.items()}
        rows["image"] = [{"bytes": b"?" if k in broken else picture(k), "path": f"{k}.png"} for k in range(n)]
        features["image"] = datasets.Image()
        if classes:
            features["label"] = datasets.ClassLabel(names=list(classes))
        stream = datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_iterable_dataset(2)
        stream.info.splits = sizes if counted else None
        return stream

    def load_dataset(repository, config=None, *, streaming):
        asked.append((repository, config, streaming))
        return {name: make(n) for name, n in splits.items()}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def picture(k, size=6):
    return png(np.random.default_rng(k).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_mnist_comes_from_the_hub_where_there_are_no_files(monkeypatch):
    asked = on_hub(monkeypatch, {"train": 30, "test": 10}, classes="0123456789", label=lambda k: k % 10)
    pictures = open_pictures("mnist", split="test")
    assert asked == [("ylecun/mnist", None, True)]
    assert pictures.spec.to_dict() == {
        "image_size": 28,
        "channels": 1,
        "classes": list("0123456789"),
        "captions": False,
        "source": False,
    }
    assert pictures.labels.tolist() == list(range(10))


def test_a_small_set_on_the_hub_is_kept_in_memory(monkeypatch):
    asked = on_hub(
        monkeypatch, {"train": 30, "test": 10}, ("cat", "dog"), label=lambda k: k % 2, text=lambda k: f"number {k}"
    )
    pictures = open_pictures("hf:owner/name@small")
    assert asked == [("owner/name", "small", True)]
    assert pictures.cached
    assert len(pictures) == 30
    batch = pictures.batch([4, 7])
    assert batch.captions == ["number 4", "number 7"]
    assert batch.labels.tolist() == [0, 1]
    expected = np.asarray(Image.open(io.BytesIO(picture(7)))).transpose(2, 0, 1)
    assert (pictures.rows([7]).levels[0].numpy() == expected).all()
    assert len(open_pictures("hf:owner/name", split="test")) == 10
    assert len(open_pictures("hf:owner/name", split="all")) == 40


def test_a_set_on_the_hub_without_a_test_split_holds_pictures_out(monkeypatch):
    on_hub(monkeypatch, {"train": 300}, text=lambda k: str(k))
    train, test = (open_pictures("hf:owner/name", split=split) for split in ("train", "test"))
    captions = [set(part.batch(range(len(part))).captions) for part in (train, test)]
    assert captions[0] | captions[1] == {str(k) for k in range(300)}
    assert not captions[0] & captions[1]
    assert 10 < len(test) < 60
    on_hub(monkeypatch, {"test": 3})
    with pytest.raises(DataError, match="no split 'validation'"):
        open_pictures("hf:owner/name", split="validation")


@pytest.fixture
def streamed(monkeypatch):
    """A training stream of 50 pictures that are never held as a whole."""
    monkeypatch.setattr("mezzotint.data.pictures.MEMORY_LIMIT", 0)
    monkeypatch.setattr("mezzotint.data.streams.SHUFFLE_BUFFER", 16)
    on_hub(monkeypatch, {"train": 50, "test": 5}, ("cat", "dog"), label=lambda k: k % 2, text=lambda k: str(k))
    pictures = open_pictures("hf:owner/name", image_size=6)
    assert isinstance(pictures, Streamed)
    return pictures


def draw(pictures, batches, batch_size=8, start=0, **options):
    with closing(Loader(pictures, batch_size, **options)) as loader:
        loader.position = start
        return [loader.next() for _ in range(batches)]


def test_a_stream_shows_every_picture_once_an_epoch_in_a_random_order(streamed):
    assert len(streamed) == 50
    shown = [caption for batch in draw(streamed, 13) for caption in batch.captions]
    first, second = shown[:50], shown[50:100]
    assert sorted(first, key=int) == sorted(second, key=int) == [str(k) for k in range(50)]
    assert first != second
    assert first != sorted(first, key=int)


def test_a_streamed_run_resumes_exactly(streamed):
    whole = draw(streamed, 12, flip=True, seed=4)
    for start in (1, 6, 7):
        for ours, theirs in zip(draw(streamed, 12 - start, start=start, flip=True, seed=4), whole[start:]):
            assert torch.equal(ours.images, theirs.images)
            assert ours.captions == theirs.captions


def test_two_processes_share_a_stream(streamed):
    whole = draw(streamed, 10)
    for rank in (0, 1):
        for part, batch in zip(draw(streamed, 10, rank=rank, world=2), whole):
            assert torch.equal(part.images, batch.images[rank::2])
            assert torch.equal(part.labels, batch.labels[rank::2])


def test_pictures_of_a_stream_can_be_looked_at_by_number(streamed):
    batch = streamed.batch([7, 3, 7])
    assert batch.captions == ["7", "3", "7"]
    assert batch.labels.tolist() == [1, 1, 1]
    with pytest.raises(IndexError):
        streamed.batch([50])


def test_damaged_rows_of_a_stream_are_replaced_by_their_neighbours(monkeypatch, streamed):
    on_hub(monkeypatch, {"train": 50, "test": 5}, broken={0, 20}, text=lambda k: str(k))
    pictures = open_pictures("hf:owner/name", image_size=6, channels=3)
    whole = draw(pictures, 13)
    shown = [caption for batch in whole for caption in batch.captions]
    assert not {"0", "20"} & set(shown)
    assert len(shown) == 13 * 8
    assert len(pictures.skipped) == 2
    for rank in (0, 1):
        halves = draw(open_pictures("hf:owner/name", image_size=6, channels=3), 13, rank=rank, world=2)
        assert [half.captions for half in halves] == [batch.captions[rank::2] for batch in whole]


def test_a_stream_of_nothing_but_damage_stops(monkeypatch, streamed):
    on_hub(monkeypatch, {"train": 50, "test": 5}, broken=range(50))
    with pytest.raises(DataError, match="usable"):
        draw(open_pictures("hf:owner/name", image_size=6, channels=3), 1)


def test_of_a_test_split_too_large_for_the_memory_the_beginning_is_kept(monkeypatch, streamed, caplog):
    monkeypatch.setattr("mezzotint.data.streams.TEST_PICTURES", 3)
    test = open_pictures("hf:owner/name", split="test", image_size=6)
    assert test.cached
    assert test.batch(range(len(test))).captions == ["0", "1", "2"]
    assert "only the first 3" in caplog.text


def test_a_stream_that_does_not_tell_its_length_can_be_trained_on(monkeypatch):
    on_hub(monkeypatch, {"train": 12, "test": 5}, counted=False, text=lambda k: str(k))
    pictures = open_pictures("hf:owner/name", image_size=6)
    (batch,) = draw(pictures, 1, 12)
    assert sorted(batch.captions, key=int) == [str(k) for k in range(12)]
    with pytest.raises(DataError, match="how many"):
        len(pictures)


@pytest.mark.parametrize("counted", [False, True])
def test_labels_of_a_stream_that_does_not_tell_its_classes_are_left_out(monkeypatch, caplog, counted):
    on_hub(monkeypatch, {"train": 12, "test": 5}, counted=counted, label=lambda k: k % 3)
    pictures = open_pictures("hf:owner/name", image_size=6)
    assert pictures.spec.classes == ()
    assert draw(pictures, 1)[0].labels is None
    assert "labels are left out" in caplog.text


def test_a_set_without_pictures_is_an_error_that_names_its_columns(monkeypatch):
    table = datasets.Dataset.from_dict({"question": ["?"], "answer": ["!"]}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: {"train": table})
    with pytest.raises(DataError, match="no column of pictures; it has question, answer"):
        open_pictures("hf:owner/name", split="all")


# shards


def write_shards(folder, names, each=12, form="cls and txt"):
    """Shards in which picture k has the class k % 3 and the caption "number k"."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, name in enumerate(names):
        with tarfile.open(folder / name, "w") as archive:
            for k in range(shard * each, (shard + 1) * each):
                facts = {"label": k % 3, "caption": f"number {k}"}
                parts = (
                    {"cls": str(k % 3), "txt": f"number {k}"} if form == "cls and txt" else {"json": json.dumps(facts)}
                )
                contents = {"png": picture(k), **{end: text.encode() for end, text in parts.items()}}
                for end, content in contents.items():
                    member = tarfile.TarInfo(f"{k:05d}.{end}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("form", ["cls and txt", "json"])
def test_shards_give_pictures_labels_and_captions(tmp_path, form):
    write_shards(tmp_path / "shards", ["a-000.tar", "a-001.tar"], form=form)
    for source in ("shards/a-*.tar", "shards", str(tmp_path / "shards")):
        pictures = open_pictures(source, split="all")
        batch = pictures.batch(range(24))
        assert batch.captions == [f"number {k}" for k in range(24)]
        assert batch.labels.tolist() == [k % 3 for k in range(24)]
        assert pictures.spec.classes == ("0", "1", "2")
        assert pictures.spec.image_size == 6


def test_shards_named_after_splits_are_splits(tmp_path):
    write_shards(tmp_path / "by name", ["train-0.tar", "val-0.tar"])
    write_shards(tmp_path / "by folder" / "train", ["0.tar"])
    write_shards(tmp_path / "by folder" / "test", ["none.tar", "1.tar"])
    (tmp_path / "by folder" / "test" / "none.tar").unlink()
    for folder in ("by name", "by folder"):
        assert open_pictures(folder).batch(range(12)).captions == [f"number {k}" for k in range(12)]
        assert open_pictures(folder, split="test").batch([0]).captions == ["number 12"]


def test_shards_too_large_for_the_memory_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr("mezzotint.data.pictures.MEMORY_LIMIT", 0)
    write_shards(tmp_path, ["train-0.tar", "train-1.tar", "test-0.tar"])
    pictures = open_pictures(str(tmp_path))
    assert isinstance(pictures, Streamed)
    assert len(pictures) == 24
    assert pictures.spec.classes == ("0", "1", "2")
    whole = draw(pictures, 6)
    shown = [caption for batch in whole for caption in batch.captions]
    assert sorted(shown[:24]) == sorted(shown[24:]) == sorted(f"number {k}" for k in range(24))
    assert draw(pictures, 1, start=4)[0].captions == whole[4].captions


@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2 + 100], lambda content: b"no archive" * 99]
)
def test_a_damaged_shard_is_an_error_that_says_what_to_do(tmp_path, damage):
    write_shards(tmp_path, ["a.tar"])
    (tmp_path / "a.tar").write_bytes(damage((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(DataError, match=r"again"):
        open_pictures(str(tmp_path), split="all")


def test_one_class_of_a_named_set_is_a_set():
    boots, all_ = open_pictures("fashion/ankle boot"), open_pictures("fashion")
    own = (all_.labels == CLASSES.index("ankle boot")).nonzero().flatten()
    assert len(boots) == len(own)
    assert torch.equal(boots.batch([0, 5]).images, all_.batch(own[[0, 5]]).images)
    assert boots.batch([5]).captions == all_.batch(own[[5]]).captions
    assert boots.labels is None
    assert boots.spec.classes == ()
    with pytest.raises(ConfigError, match="did you mean 'sneaker'"):
        open_pictures("fashion/sneakers")


def test_a_set_beside_another_is_brought_to_its_size(tmp_path):
    for k in range(12):
        Image.new("RGB", (30, 20), (k, k, k)).save(tmp_path / f"{k:02d}.png")
    both = open_pictures("fashion", split="test", image_size=16, beside=str(tmp_path))
    assert both.spec.source
    assert both.spec.classes == CLASSES
    batch = both.batch([0, 1])
    assert batch.source.shape == batch.images.shape == (2, 1, 16, 16)
