import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from product_classificator.files import remove_leftovers, replacing_folder, sha256_of


def write(folder: Path, text: str) -> None:
    with replacing_folder(folder) as new:
        (new / "file").write_text(text)


def test_a_folder_takes_the_place_of_another(tmp_path):
    write(tmp_path / "a", "old")
    write(tmp_path / "a", "new")
    assert (tmp_path / "a/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("fails", ["the old one is renamed", "the new one is renamed"])
def test_a_folder_whose_replacement_fails_is_put_back(tmp_path, monkeypatch, fails):
    write(tmp_path / "a", "old")
    rename = Path.replace
    unwanted = "new" if fails == "the new one is renamed" else "a"

    def interrupted(path, target):
        if path.name == unwanted:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", "new")
    monkeypatch.undo()
    assert (tmp_path / "a/file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_interruption_after_the_replacement_leaves_the_new_folder_and_no_other(tmp_path, monkeypatch):
    write(tmp_path / "a", "old")
    rename = Path.replace

    def interrupted(path, target):
        rename(path, target)
        if path.name == "new":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", "new")
    assert (tmp_path / "a/file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_kill_has_left_of_a_replaced_folder_is_removed_later(tmp_path):
    for name in (".a.1f.old", ".b.1f.old", "a"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.1f.old", "a"]  # of b it is all there is


def test_what_fails_while_it_is_written_replaces_nothing(tmp_path):
    write(tmp_path / "a", "old")
    with pytest.raises(OSError, match="full"), replacing_folder(tmp_path / "a"):
        raise OSError("full")
    assert (tmp_path / "a/file").read_text() == "old"
    shutil.rmtree(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_digest_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 100_000)
    assert sha256_of(tmp_path / "a") == sha256(b"a" * 100_000).hexdigest()
