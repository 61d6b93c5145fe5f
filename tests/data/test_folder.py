"""A folder is read by the conventions of `imagefolder`."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.core.errors import ConfigError, DataError
from mezzotint.data import open_pictures, spread_over
from mezzotint.data.folder import class_names


def paint(folder, names, size=8):
    """Pictures of one colour each, different from one another."""
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), (k, 255 - k, 40)).save(folder / name)


def reds(pictures):
    return pictures.rows(range(len(pictures))).levels[:, 0, 0, 0].tolist()


def write_metadata(folder, rows, name="metadata.jsonl"):
    if name.endswith(".csv"):
        with (folder / name).open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    else:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_subfolders_are_labels(tmp_path):
    paint(tmp_path, ["dog/1.png", "cat/a.jpg", "cat/b.PNG", "eel/1.webp"])
    pictures = open_pictures(str(tmp_path), split="all")
    assert pictures.spec.classes == ("cat", "dog", "eel")
    assert pictures.labels.tolist() == [0, 0, 1, 2]
    assert pictures.batch([3, 1]).labels.tolist() == [2, 0]


def test_one_folder_or_folders_of_unequal_depth_are_no_labels(tmp_path):
    paint(tmp_path / "one", ["all/1.png", "all/2.png"])
    paint(tmp_path / "two", ["1.png", "more/2.png"])
    for name in ("one", "two"):
        pictures = open_pictures(str(tmp_path / name), split="all")
        assert pictures.spec.classes == ()
        assert pictures.labels is None
        assert pictures.batch([0]).labels is None


def test_a_class_may_be_called_train(tmp_path, caplog):
    """CIFAR-100 has such a class."""
    paint(tmp_path, ["apple/1.png", "train/1.png", "train/2.png", "truck/1.png"])
    pictures = open_pictures(str(tmp_path), split="all")
    assert pictures.spec.classes == ("apple", "train", "truck")
    assert pictures.labels.tolist() == [0, 1, 1, 2]
    assert len(open_pictures(str(tmp_path), split="train")) == 4
    assert "labels" not in caplog.text


@pytest.mark.parametrize("top", [["train"], ["test"], ["Train", "val"], ["train", "test", "extra"]])
def test_folders_named_after_splits_are_no_classes_alone_or_in_pairs(tmp_path, top):
    paint(tmp_path, [f"{split}/{label}/1.png" for split in top if split != "extra" for label in "ab"])
    if "extra" in top:
        paint(tmp_path, ["extra/1.png"])
    assert set(open_pictures(str(tmp_path), split="all").spec.classes) == {"a", "b", "extra"} & {"a", "b", *top}


def test_labels_are_never_left_out_in_silence(tmp_path, caplog):
    paint(tmp_path, ["cat/1.png", "dog/1.png", "stray.png"])
    assert open_pictures(str(tmp_path), split="all").spec.classes == ()
    (said,) = caplog.messages
    assert f"{tmp_path} has no labels" in said
    assert "different depths (stray.png and " in said
    assert "move each into the folder of its class" in said


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
@pytest.mark.parametrize("column", ["text", "caption", "description"])
def test_metadata_files_give_captions_and_labels(tmp_path, name, column):
    paint(tmp_path, ["sub/1.png", "2.png"])
    rows = [
        {"file_name": "./sub/1.png", column: "One, «first».", "label": "x"},
        {"file_name": "2.png", column: "Zwei\tund", "label": "y"},
    ]
    write_metadata(tmp_path, rows, name)
    batch = open_pictures(str(tmp_path), split="all").batch([0, 1])
    assert batch.captions == ["Zwei\tund", "One, «first»."]
    assert batch.labels.tolist() == [1, 0]


def test_numbers_as_labels_are_in_the_order_of_their_values(tmp_path):
    paint(tmp_path, [f"{k}.png" for k in (1, 2, 3)])
    write_metadata(tmp_path, [{"file_name": f"{k}.png", "label": label} for k, label in ((1, 10), (2, 9), (3, 10))])
    pictures = open_pictures(str(tmp_path), split="all")
    assert pictures.spec.classes == ("9", "10")
    assert pictures.labels.tolist() == [1, 0, 1]


def test_the_order_of_class_names_does_not_depend_on_how_a_set_is_hashed():
    names = [name for k in range(1, 40) for name in (f"00{k}", f"0{k}", f"{k}")]
    assert class_names(reversed(names)) == tuple(names)
    assert class_names(["10", "9", "b"]) == ("10", "9", "b")


def test_pictures_that_the_metadata_does_not_name_are_left_out(tmp_path, caplog):
    paint(tmp_path, ["1.png", "2.png", "3.png"])
    write_metadata(tmp_path, [{"file_name": "2.png", "text": "two"}])
    assert reds(open_pictures(str(tmp_path), split="all")) == [1]
    assert "2 pictures are not named" in caplog.text


def test_text_files_beside_the_pictures_are_captions(tmp_path):
    paint(tmp_path, ["1.png", "2.png"])
    (tmp_path / "1.txt").write_text("\n A frog. \nde: Ein Frosch.\n", encoding="utf-8-sig")
    (tmp_path / "2.txt").write_text("A crow.")
    (tmp_path / "readme.txt").write_text("nothing to do with it")
    assert open_pictures(str(tmp_path), split="all").batch([0, 1]).captions == ["A frog.", "A crow."]


def test_text_in_another_encoding_is_a_missing_caption(tmp_path):
    paint(tmp_path, [f"{k:02d}.png" for k in range(20)])
    for k in range(20):
        (tmp_path / f"{k:02d}.txt").write_text(f"number {k}")
    (tmp_path / "05.txt").write_bytes("caf\xe9".encode("latin-1"))
    pictures = open_pictures(str(tmp_path), split="all")
    assert len(pictures) == 19
    assert pictures.skipped == [(str(tmp_path / "05.png"), "it has no caption, and others have")]


def test_splits_are_subfolders_where_there_are_such(tmp_path):
    paint(tmp_path, ["train/a/1.png", "train/b/2.png", "test/a/3.png", "val/b/4.png"])
    opened = {split: open_pictures(str(tmp_path), split=split) for split in ("train", "test", "validation", "all")}
    assert {split: reds(pictures) for split, pictures in opened.items()} == {
        "train": [0, 1],
        "test": [2],
        "validation": [3],
        "all": [2, 0, 1, 3],
    }
    assert all(pictures.spec.classes == ("a", "b") for pictures in opened.values())
    assert opened["validation"].labels.tolist() == [1]


@pytest.mark.parametrize("name", ["validation", "valid", "val", "testing"])
def test_validation_pictures_stand_in_for_test_pictures(tmp_path, name):
    paint(tmp_path, ["train/1.png", "train/2.png", f"{name}/3.png"])
    assert reds(open_pictures(str(tmp_path), split="train")) == [0, 1]
    assert reds(open_pictures(str(tmp_path), split="test")) == [2]


def test_otherwise_every_tenth_picture_is_held_out(tmp_path):
    paint(tmp_path, [f"{k:03d}.png" for k in range(25)])
    train, test = (reds(open_pictures(str(tmp_path), split=split)) for split in ("train", "test"))
    assert test == [9, 19]
    assert sorted(train + test) == list(range(25))


def test_a_damaged_picture_moves_no_other_into_the_test_split(tmp_path):
    paint(tmp_path, [f"{k:03d}.png" for k in range(40)])
    (tmp_path / "003.png").write_bytes(b"")
    assert reds(open_pictures(str(tmp_path), split="test")) == [9, 19, 29, 39]


def test_too_few_pictures_to_hold_any_out_is_an_error_that_says_so(tmp_path):
    paint(tmp_path, ["1.png"])
    with pytest.raises(DataError, match="no test pictures; make a subfolder test/"):
        open_pictures(str(tmp_path), split="test")
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        open_pictures(str(tmp_path), split="trian")


def test_size_and_channels_are_those_of_the_pictures(tmp_path, caplog):
    caplog.set_level("INFO", "mezzotint.data")
    paint(tmp_path / "same", ["1.png", "2.png"], size=20)
    spec = open_pictures(str(tmp_path / "same"), split="all").spec
    assert (spec.image_size, spec.channels) == (20, 3)
    paint(tmp_path / "mixed", ["1.png"], size=20)
    paint(tmp_path / "mixed", ["2.png"], size=30)
    assert open_pictures(str(tmp_path / "mixed"), split="all").spec.image_size == 64
    assert "64 x 64" in caplog.text
    (tmp_path / "grey").mkdir()
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).convert("RGB").save(tmp_path / "grey" / "1.png")
    assert open_pictures(str(tmp_path / "grey"), split="all").spec.channels == 1


def test_size_is_that_of_a_sample_of_a_large_set(tmp_path):
    """As the docstring says: of 257 pictures, one is not looked at, and is brought to the size of the others."""
    (unseen,) = set(range(257)) - set(spread_over(257, 256))
    paint(tmp_path, [f"{k:03d}.png" for k in range(257)], size=8)
    Image.new("RGB", (9, 9)).save(tmp_path / f"{unseen:03d}.png")
    assert open_pictures(str(tmp_path), split="all").spec.image_size == 8
    Image.new("RGB", (9, 9)).save(tmp_path / "000.png")
    assert open_pictures(str(tmp_path), split="all").spec.image_size == 64


@pytest.mark.parametrize(("total", "n"), [(10, 3), (1000, 256), (7, 7), (5, 9), (1, 1), (0, 4), (4, 0)])
def test_places_are_spread_evenly_over_a_set(total, n):
    places = spread_over(total, n)
    assert len(places) == min(total, n)
    assert places[:1] == [0][: len(places)]
    gaps = np.diff([*places, total])
    assert all(abs(gap - total / len(places)) < 1 for gap in gaps)


def test_size_and_channels_can_be_chosen(tmp_path):
    paint(tmp_path, ["1.png"], size=20)
    images = open_pictures(str(tmp_path), split="all", image_size=12, channels=1).batch([0, 0]).images
    assert images.shape == (2, 1, 12, 12)
    assert images.dtype == torch.float32


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"crop": "centre"}, "center"),
        ({"filter": "lancsoz"}, "lanczos"),
        ({"channels": 4}, "RGB"),
        ({"image_size": 0}, "0"),
    ],
)
def test_an_option_that_does_not_exist_is_answered_with_one_that_does(option, said):
    with pytest.raises(ConfigError, match=said):
        open_pictures("fashion", **option)


def test_a_set_too_large_for_the_memory_gives_the_same_pictures(tmp_path, monkeypatch):
    paint(tmp_path, [f"{label}/{k}.png" for label in "ab" for k in range(10)])
    kept = open_pictures(str(tmp_path), split="all", image_size=5)
    monkeypatch.setattr("mezzotint.data.pictures.MEMORY_LIMIT", 20 * 3 * 25 - 1)
    decoded = open_pictures(str(tmp_path), split="all", image_size=5)
    assert (kept.cached, decoded.cached) == (True, False)
    assert kept.spec == decoded.spec
    assert len(kept) == len(decoded)
    assert torch.equal(kept.labels, decoded.labels)
    chosen = torch.tensor([3, 17, -1, 3])
    assert torch.equal(kept.batch(chosen).images, decoded.batch(chosen).images)
    assert torch.equal(kept.batch(chosen).labels, decoded.batch(chosen).labels)


@pytest.mark.parametrize("kind", ["labels", "captions"])
def test_sound_folders_are_read_as_the_imagefolder_builder_reads_them(tmp_path, monkeypatch, kind, truth):
    import datasets

    rng = np.random.default_rng(0)
    names = [f"{label}/{k}.png" for label in ("owl", "ant", "fox") for k in range(4)]
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "set" / name)
    if kind == "captions":
        rows = [{"file_name": name, "text": f"picture {name}"} for name in names]
        write_metadata(tmp_path / "set", rows)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    theirs = theirs["train"]
    ours = open_pictures(str(tmp_path / "set"), split="all")
    order = np.argsort([row["image"].filename for row in theirs]) if kind == "labels" else np.argsort(theirs["text"])
    levels = np.stack([np.asarray(theirs[int(k)]["image"]).transpose(2, 0, 1) for k in order])
    error = np.abs(ours.rows(range(12)).levels.numpy().astype(int) - levels).max()
    truth("data", f"a folder with {kind}", f"datasets {datasets.__version__} imagefolder, in levels", error, 0)
    if kind == "labels":
        assert list(ours.spec.classes) == theirs.features["label"].names
        assert ours.labels.tolist() == [theirs[int(k)]["label"] for k in order]
    else:
        assert ours.batch(range(12)).captions == [theirs[int(k)]["text"] for k in order]
