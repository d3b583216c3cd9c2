"""Photos from a folder or a zip: whatever is in there, a photo is read or the reason is one of seven words."""

import io
import os
import struct
import threading
import time
import tracemalloc
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from product_classificator.catalog import images
from product_classificator.catalog.images import ImageSource, open_images
from product_classificator.catalog.photo import PhotoError, PhotoReason, decode_image
from product_classificator.errors import DataError
from tests.broken_photos import (
    RED,
    WHITE,
    animation,
    noise,
    orientation,
    packed,
    png_chunk,
    png_that_claims,
    png_with,
    write_broken_zip,
)

JPEG = packed(noise(), "JPEG")
BAD_APNG = png_with(png_chunk(b"acTL", bytes(8)))  # Pillow reads it with a warning
JPEG_OF_OTHER_SIZE = packed(noise(size=(20, 20)), "JPEG")


def decoded(data: bytes) -> Image.Image:
    return decode_image(data, channels="rgb", max_pixels=10**6)


def outcome(source: ImageSource, product_id: str) -> str:
    try:
        image = source.decode(source.read(product_id, is_id=True))
    except PhotoError as error:
        return error.reason
    assert image.mode == "RGB"
    return "ok"


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def zipped(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


def zip_with_raw_names(folder: Path, names: list[bytes], extra: bytes = b"") -> Path:
    """Write a zip whose names have these bytes and no UTF-8 flag."""
    path = folder / "raw.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            info = zipfile.ZipInfo(chr(ord("A") + i) * len(name))
            info.extra = extra
            archive.writestr(info, JPEG)
    data = path.read_bytes()
    for i, name in enumerate(names):
        data = data.replace(chr(ord("A") + i).encode() * len(name), name)
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    path = tmp_path_factory.mktemp("broken") / "broken.zip"
    return path, write_broken_zip(path)


@pytest.fixture(params=["folder", "zip"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageSource]:
    """A source with the same photos as a folder and as a zip."""
    root = tmp_path / "shop"
    write(root, {"1.jpg": JPEG, "2.PNG": JPEG, "deep/down/3.jpg": JPEG, "4.txt": JPEG, "empty.jpg": b""})
    write(root, {"a/twice.jpg": JPEG, "b/twice.jpg": JPEG, "5.png": JPEG_OF_OTHER_SIZE, "5.jpg": JPEG})
    write(root, {"a/1.jpg": JPEG_OF_OTHER_SIZE, "big.jpg": JPEG + bytes(10_000), "a/name.jfif": JPEG})
    write(root, {"photo.png": JPEG})
    (root / "photo.jpg").mkdir()
    with open_images(root if request.param == "folder" else zipped(root), max_bytes=10_000) as source:
        yield source


class TestBrokenPhotos:
    def test_every_broken_photo_gets_its_reason_and_every_odd_one_is_read(
        self, broken: tuple[Path, dict[str, str]]
    ) -> None:
        path, expected = broken
        assert len(expected) >= 100
        assert set(expected.values()) == {"ok", *get_args(PhotoReason)} - {"unsafe_name"}
        with open_images(path) as source:
            assert {product_id: outcome(source, product_id) for product_id in expected} == expected

    def test_broken_photos_take_little_time_and_memory(self, broken: tuple[Path, dict[str, str]]) -> None:
        path, expected = broken
        with open_images(path) as source:
            tracemalloc.start()
            started = time.process_time()
            for product_id in expected:
                outcome(source, product_id)
            seconds = time.process_time() - started
            _, peak_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert seconds < 3
        assert peak_bytes < 50 << 20

    def test_the_message_says_what_was_found(self) -> None:
        with pytest.raises(
            PhotoError, match=r"too_large: 10000 x 6000 pixels, at most 1000000 are decoded: --max-pixels"
        ):
            decoded(png_that_claims(10_000, 6_000))
        with pytest.raises(PhotoError, match="empty: the file has no bytes"):
            decoded(b"")
        with pytest.raises(PhotoError, match="truncated: OSError: image file is truncated"):
            decoded(JPEG[: len(JPEG) // 2])
        with pytest.raises(PhotoError, match=r"unreadable: this is not read, only JPEG, PNG, .* are: convert it$"):
            decoded(b"no photo")

    @pytest.mark.parametrize(
        ("data", "kind"),
        [
            (b"\0\0\0\x24ftypheix\0\0\0\0", "HEIC"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0", "HEIC"),
            (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
            (b"%PDF-1.7", "PDF"),
            (b"8BPS\0\1", "PSD"),
            (b'<?xml version="1.0"?>\n<svg width="9"/>', "SVG"),
            (b"\n<!DOCTYPE html><html>404", "a web page"),
        ],
    )
    def test_what_people_take_for_a_photo_is_named(self, data: bytes, kind: str) -> None:
        with pytest.raises(PhotoError, match=f"unreadable: {kind} is not read, only JPEG"):
            decoded(data)

    @given(st.binary(max_size=300))
    @settings(max_examples=150, deadline=None)
    def test_any_bytes_become_an_rgb_image_or_a_photo_error(self, data: bytes) -> None:
        for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0\x08\0\0\0"):
            is_rgb_or_refused(start + data)

    @given(st.lists(st.tuples(st.integers(0, len(JPEG) - 1), st.integers(0, 255)), min_size=1, max_size=20))
    @settings(max_examples=150, deadline=None)
    def test_a_mutated_jpeg_becomes_an_rgb_image_or_a_photo_error(self, changes: list[tuple[int, int]]) -> None:
        data = bytearray(JPEG)
        for at, value in changes:
            data[at] = value
        is_rgb_or_refused(bytes(data))


def is_rgb_or_refused(data: bytes) -> None:
    try:
        image = decoded(data)
    except PhotoError as error:
        assert error.reason in get_args(PhotoReason)
    else:
        assert image.mode == "RGB"


class TestDecoding:
    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_is_laid_on_white(self, mode: str) -> None:
        assert decoded(packed(Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode), "PNG")).getpixel((0, 0)) == WHITE

    def test_a_transparent_palette_colour_becomes_white(self) -> None:
        image = Image.new("P", (4, 4), 0)
        image.putpalette([*RED, 0, 0, 255])
        image.putpixel((1, 0), 1)
        row = decoded(packed(image, "PNG", transparency=1))
        assert [row.getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]

    def test_sixteen_bits_are_scaled_not_clipped(self) -> None:
        levels = np.array([[0, 257, 32896, 65535]], np.uint16)
        image = decoded(packed(Image.fromarray(levels), "PNG"))
        assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]

    def test_fractions_are_scaled_by_the_range_that_holds_them(self) -> None:
        for full in (1.0, 255.0, 65535.0, 1e6):
            levels = np.array([[0, full * 0.6, full, np.nan]], np.float32)
            image = decoded(packed(Image.fromarray(levels), "TIFF"))
            assert np.asarray(image)[0, :, 0].tolist() == [0, 153, 255, 0]

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
    def test_of_an_animation_the_first_frame_is_taken(self, kind: str) -> None:
        pixel = np.asarray(decoded(animation(kind)))[3, 3].astype(int)
        assert np.abs(pixel - RED).max() <= 4

    @pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
    def test_the_photo_is_turned_upright(self, kind: str) -> None:
        image = Image.new("RGB", (32, 16), "black")
        image.paste("white", (0, 0, 16, 16))
        upright = decoded(packed(image, kind, exif=orientation(6)))
        assert upright.size == (16, 32)
        assert upright.getpixel((8, 2)) == WHITE

    def test_damaged_exif_leaves_the_photo_as_it_is(self, broken: tuple[Path, dict[str, str]]) -> None:
        with open_images(broken[0]) as source:
            assert source.decode(source.read("jpeg-bad-exif", is_id=True)).size == (48, 32)

    def test_swapped_red_and_blue_are_swapped_back(self, tmp_path: Path) -> None:
        write(tmp_path, {"1.png": packed(Image.new("RGB", (2, 2), RED[::-1]), "PNG")})
        with open_images(tmp_path, channels="bgr") as source:
            assert source.decode(source.read("1", is_id=True)).getpixel((0, 0)) == RED

    def test_more_pixels_than_allowed_are_too_large(self, tmp_path: Path) -> None:
        source = open_images(tmp_path, max_pixels=48 * 32)
        assert source.decode(JPEG).size == (48, 32)
        with pytest.raises(PhotoError, match="too_large"):
            source.decode(packed(noise(size=(49, 32)), "JPEG"))

    def test_more_bytes_than_allowed_are_too_large(self, tmp_path: Path) -> None:
        with pytest.raises(PhotoError, match=f"too_large: {len(JPEG)} bytes, at most 100 are read"):
            open_images(tmp_path, max_bytes=100).decode(JPEG)

    def test_warnings_of_pillow_neither_show_nor_raise_and_others_still_do(self) -> None:
        for action in ("error", "always"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter(action)
                decoded(BAD_APNG)
                with pytest.raises(PhotoError, match="too_large"):
                    decoded(png_that_claims(10_000, 10_000))
                assert caught == []
                with pytest.warns(Image.DecompressionBombWarning):
                    Image.open(io.BytesIO(png_that_claims(10_000, 10_000)))

    def test_many_threads_decode_at_once_without_a_warning(self) -> None:
        odd = [png_that_claims(10_000, 10_000), BAD_APNG, JPEG]

        def reason(data: bytes) -> str:
            try:
                return decoded(data).mode
            except PhotoError as error:
                return error.reason

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(reason, odd * 50)) == ["too_large", "RGB", "RGB"] * 50


class TestNames:
    @pytest.mark.parametrize("product_id", ["1", "2", "3", "5", "photo"])
    def test_a_photo_is_found_by_id(self, shop: ImageSource, product_id: str) -> None:
        assert shop.read(product_id, is_id=True) == JPEG

    @pytest.mark.parametrize("name", ["1.jpg", "3.jpg", "deep/down/3.jpg", "./1.jpg", "deep\\down\\3.jpg", "name.jfif"])
    def test_a_photo_is_found_by_its_name(self, shop: ImageSource, name: str) -> None:
        assert shop.read(name) == JPEG

    @pytest.mark.parametrize(
        "name", ["", "no.jpg", "a/3.jpg", "./", "x" * 5000, "4.jpg", "a/b/2.png", "1.jpg\0", "\ud800", "/etc/passwd"]
    )
    def test_a_name_that_is_not_there_is_missing(self, shop: ImageSource, name: str) -> None:
        with pytest.raises(PhotoError, match="missing"):
            shop.read(name)

    @pytest.mark.parametrize("product_id", ["", "4", "no", ".", "..", "b/1", "b\\1", "shop/1", "a\0", "\ud800"])
    def test_an_id_without_photo_is_missing(self, shop: ImageSource, product_id: str) -> None:
        with pytest.raises(PhotoError, match="missing: "):
            shop.read(product_id, is_id=True)

    def test_an_ambiguous_name_is_missing_and_the_message_lists_the_files(self, shop: ImageSource) -> None:
        expected = r"missing: several photos match 'twice.*': ([ab]/twice.jpg, [ab]/twice.jpg) \(2 in"
        with pytest.raises(PhotoError, match=expected):
            shop.read("twice", is_id=True)
        with pytest.raises(PhotoError, match=expected):
            shop.read("twice.jpg")

    @pytest.mark.parametrize(
        "name",
        [
            *("shop/1.jpg", "data/shop/1.jpg", "/home/me/shop/1.jpg", "C:\\shop\\1.jpg", "\\\\host\\shop\\1.jpg"),
            *(
                "../1.jpg",
                "b/../../1.jpg",
                "1",
                "1.png",
                "1.JPG",
                "001.jpg",
                "elsewhere/3.jpg",
                "shop\\deep\\down\\3.jpg",
            ),
            *(
                "https://cdn.shop.ru/c/1.jpg?v=2",
                "//cdn.shop.ru/c/1.jpg?v=2",
                "https://shop.ru/%31.jpg#top",
                "PHOTO.PNG",
                "deep/3",
            ),
        ],
    )
    def test_the_closest_file_is_read_whatever_leads_to_the_folder(self, shop: ImageSource, name: str) -> None:
        assert shop.read(name) == JPEG

    @pytest.mark.parametrize("product_id", ["1.jpg", "2.png", "0001", "PHOTO", "deep/down/3", "name"])
    def test_an_id_may_be_spelled_like_a_file(self, shop: ImageSource, product_id: str) -> None:
        assert shop.read(product_id, is_id=True) == JPEG

    @pytest.mark.parametrize("kind", ["folder", "zip"])
    def test_the_closest_of_similar_files_is_taken(self, tmp_path: Path, kind: str) -> None:
        root = tmp_path / "photos"
        names = ["red/1.jpg", "blue/1.jpg", "blue/AB.jpg", "blue/ab.jpg", "blue/7.jfif", "blue/7.jpe", "red/8.png"]
        write(root, {f"top/{name}": packed(noise(size=(8, 8 + i)), "PNG") for i, name in enumerate(names)})
        write(root, {"__MACOSX/top/red/._1.jpg": b"x", "top/._8.png": b"x", "top/red/08.png": b"x"})
        wanted = {"red/1.jpg": 0, "images/blue/1.png": 1, "blue\\AB": 2, "ab.jpeg": 3, "7": 4, "8": 6, "0000007.gif": 4}
        with open_images(root if kind == "folder" else zipped(root)) as source:
            heights = {name: source.decode(source.read(name)).height - 8 for name in wanted}
            assert heights == wanted
            for name, found in {
                "1.jpg": "several",
                "green/1.jpg": "several",
                "Ab": "several",
                "blue/8.png": "no photo",
            }.items():
                with pytest.raises(PhotoError, match=f"missing: {found}"):
                    source.read(name)

    def test_the_most_similar_name_is_shown(self, shop: ImageSource, tmp_path: Path) -> None:
        assert shop.nearest("deep/33.jpg") == "the most similar name is 'deep/down/3.jpg'"
        (tmp_path / "nothing").mkdir()
        assert open_images(tmp_path / "nothing").nearest("1") == "it has no files"

    def test_that_urls_are_not_fetched_is_said(self, shop: ImageSource) -> None:
        with pytest.raises(PhotoError, match=r"no photo 'https://a.ru/no.jpg'; URLs are not fetched"):
            shop.read("https://a.ru/no.jpg")

    def test_windows_opens_only_what_is_listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "_IS_WINDOWS", True)
        write(tmp_path, {"1.jpg": JPEG})
        monkeypatch.setattr(os.path, "lexists", lambda _: pytest.fail("a name was tried"))
        with open_images(tmp_path) as source:
            assert source.read("1", is_id=True) == JPEG
            assert outcome(source, "nul") == "missing"

    def test_an_empty_file_and_a_file_over_the_limit_are_told_apart(self, shop: ImageSource) -> None:
        with pytest.raises(PhotoError, match="empty"):
            shop.read("empty", is_id=True)
        with pytest.raises(PhotoError, match="too_large"):
            shop.read("big.jpg")

    def test_a_closed_source_is_an_error_of_the_program(self, shop: ImageSource) -> None:
        shop.close()
        with pytest.raises(DataError, match=r"photos can be read only until close\(\)"):
            shop.read("1", is_id=True)

    def test_letters_of_either_unicode_form_are_the_same_name(self, tmp_path: Path) -> None:
        one, two = unicodedata.normalize("NFD", "Йод"), unicodedata.normalize("NFC", "Йод")
        (tmp_path / f"{one}.jpg").write_bytes(JPEG)
        with open_images(tmp_path) as source:
            assert source.read(two, is_id=True) == source.read(f"{two}.jpg") == JPEG


class TestFolder:
    def test_a_link_inside_is_followed_and_a_link_that_leads_out_is_unsafe(self, tmp_path: Path) -> None:
        root = tmp_path / "photos"
        write(tmp_path, {"photos/1.jpg": JPEG, "secret.jpg": JPEG})
        for name, target in {"in": "1.jpg", "out": "../secret.jpg", "far": "/etc/passwd"}.items():
            (root / f"{name}.jpg").symlink_to(target)
        (root / "up").symlink_to("..")
        with open_images(root) as source:
            assert source.read("in", is_id=True) == JPEG
            for name in ("out.jpg", "far.jpg", "up/secret.jpg"):
                with pytest.raises(
                    PhotoError, match=r"unsafe_name: .* is a link that leads out of the folder: .*--follow"
                ):
                    source.read(name)

    def test_links_may_lead_out_where_that_is_allowed(self, tmp_path: Path) -> None:
        write(tmp_path, {"blobs/b1": JPEG, "more/2.jpg": JPEG, "photos/3.jpg": JPEG})
        root = tmp_path / "photos"
        (root / "1.jpg").symlink_to("../blobs/b1")
        (root / "linked").symlink_to("../more")
        (root / "circle").symlink_to(".")
        with open_images(root, follow_links=True) as source:
            assert [outcome(source, product_id) for product_id in "1234"] == ["ok", "ok", "ok", "missing"]
        with open_images(root) as source:
            assert [outcome(source, product_id) for product_id in "1234"] == ["unsafe_name", "missing", "ok", "missing"]

    def test_links_to_nowhere_and_in_circles_are_reported(self, tmp_path: Path) -> None:
        (tmp_path / "nowhere.jpg").symlink_to("gone.jpg")
        (tmp_path / "circle.jpg").symlink_to("circle.jpg")
        with open_images(tmp_path) as source:
            assert outcome(source, "nowhere") == "missing"
            assert outcome(source, "circle") == "unreadable"

    def test_a_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.jpg")
        with open_images(tmp_path) as source, pytest.raises(PhotoError, match="is not a file"):
            source.read("pipe", is_id=True)

    def test_the_folder_is_not_listed_for_a_photo_at_its_top(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write(tmp_path, {"1.jpg": JPEG, "a/2.jpg": JPEG})
        with caplog.at_level("INFO"), open_images(tmp_path) as source:
            source.read("1", is_id=True)
            assert caplog.messages == []
            source.read("2", is_id=True)
            outcome(source, "3")
            assert caplog.messages == [f"listing the photos of {tmp_path.resolve()}"]


class TestZip:
    def test_many_threads_read_what_one_reads(self, broken: tuple[Path, dict[str, str]]) -> None:
        path, expected = broken
        ids = list(expected) * 4
        barrier = threading.Barrier(4)
        with open_images(path) as source, ThreadPoolExecutor(4, initializer=barrier.wait) as pool:
            assert list(pool.map(lambda product_id: outcome(source, product_id), ids)) == [expected[i] for i in ids]

    @pytest.mark.parametrize(
        ("name", "encoding"),
        [
            *[("Сумка", page) for page in ("utf-8", "cp866", "cp1251")],
            *(
                ("Café", "cp437"),
                ("Éléphant", "cp1252"),
                ("白色连衣裙", "gbk"),
                ("カバン赤", "cp932"),
                ("빨간 가방", "cp949"),
            ),
        ],
    )
    def test_names_without_the_utf8_flag_are_read_in_any_code_page(
        self, tmp_path: Path, name: str, encoding: str
    ) -> None:
        with open_images(zip_with_raw_names(tmp_path, [f"{name}.jpg".encode(encoding)])) as source:
            assert source.read(name, is_id=True) == JPEG

    def test_the_code_page_of_the_other_names_decides_between_two_entries(self, tmp_path: Path) -> None:
        assert "р1".encode("cp866") == "а1".encode("cp1251")
        for page in ("cp866", "cp1251"):
            names = ["а1.jpg", "р1.jpg", "Юбка.jpg"]
            path = zip_with_raw_names(tmp_path, [name.encode(page) for name in names])
            with open_images(path) as source:
                assert [source.locate(name).header_offset for name in names] == sorted(
                    info.header_offset for info in zipfile.ZipFile(path).infolist()
                )

    @pytest.mark.parametrize("is_newer_python", [False, True])
    def test_the_unicode_path_field_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_newer_python: bool
    ) -> None:
        raw, name = "Юбка.jpg".encode("cp866"), "Юбка зимняя.jpg".encode()
        stale = struct.pack("<HHBL", 0x7075, 6, 1, 12345) + b"x"
        field = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zlib.crc32(raw)) + name
        path = zip_with_raw_names(tmp_path, [raw], stale + field)
        if is_newer_python:  # from 3.12 on the field is in `filename`
            decode = zipfile.ZipInfo._decodeExtra

            def decode_and_rename(info: zipfile.ZipInfo, *crc: int) -> None:
                decode(info, *crc)
                info.filename = name.decode()

            monkeypatch.setattr(zipfile.ZipInfo, "_decodeExtra", decode_and_rename)
        with open_images(path) as source:
            assert source.read("Юбка зимняя", is_id=True) == JPEG

    @pytest.mark.filterwarnings("ignore:Empty unicode path")  # of Python 3.12 on
    @pytest.mark.parametrize(("length", "path_bytes"), [(None, b"\xff\xfe"), (None, b""), (500, b"x"), (3, b"x")])
    def test_a_damaged_unicode_path_field_is_ignored_or_named(
        self, tmp_path: Path, length: int | None, path_bytes: bytes
    ) -> None:
        raw = "Юбка.jpg".encode("cp866")
        field = struct.pack("<HHBL", 0x7075, length or 5 + len(path_bytes), 1, zlib.crc32(raw)) + path_bytes
        path = zip_with_raw_names(tmp_path, [raw], field)
        try:
            zipfile.ZipFile(path).close()
        except zipfile.BadZipFile:  # from Python 3.12 on, any damage
            with pytest.raises(DataError, match=r"is damaged \(Corrupt .*7075.*\): unpack it with another program"):
                open_images(path)
        else:
            with open_images(path) as source:
                assert source.read("Юбка", is_id=True) == JPEG

    def test_an_encrypted_zip_is_refused_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "locked.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("1.jpg", JPEG)
        data = bytearray(path.read_bytes())
        data[6] |= 1
        data[data.rindex(b"PK\1\2") + 8] |= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"without a password: .*locked.zip is encrypted, unpack it first"):
            open_images(path)

    def test_a_zip64_archive_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
        with zipfile.ZipFile(tmp_path / "large", "w", allowZip64=True) as archive:
            for product_id in range(4):
                archive.writestr(f"{product_id}.jpg", JPEG)
        monkeypatch.undo()
        assert b"PK\6\6" in (tmp_path / "large").read_bytes()
        with open_images(tmp_path / "large") as source:
            assert source.read("3", is_id=True) == JPEG

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_only_stored_and_deflated_entries_are_inflated(self, tmp_path: Path, method: int) -> None:
        path = tmp_path / "bomb.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("1.jpg", bytes(64 << 20))
        data = bytearray(path.read_bytes())
        at = data.rindex(b"PK\1\2") + 24
        data[at : at + 4] = (1000).to_bytes(4, "little")  # the directory lies
        path.write_bytes(data)
        with open_images(path) as source, pytest.raises(PhotoError, match=r"neither stored nor deflated: pack it anew"):
            source.read("1", is_id=True)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_a_small_entry_that_unpacks_to_much_is_refused_before_it_is_unpacked(
        self, tmp_path: Path, method: int
    ) -> None:
        with zipfile.ZipFile(tmp_path / "bomb.zip", "w", method) as archive:
            archive.writestr("1.jpg", bytes(2 << 20))
        with open_images(tmp_path / "bomb.zip", max_bytes=1 << 20) as source:
            assert outcome(source, "1") == "too_large"


class TestOpening:
    def test_a_path_that_is_not_there_is_named_with_its_nearest_sibling(self, tmp_path: Path) -> None:
        write(tmp_path, {"images.zip": b"x"})
        with pytest.raises(DataError, match=r"there is no .*image\.zip; did you mean 'images.zip'\? Known: images.zip"):
            open_images(tmp_path / "image.zip")
        with pytest.raises(DataError, match=r"there is no .*; its folder is empty or missing too"):
            open_images(tmp_path / "no" / "images")

    def test_a_file_that_is_no_zip_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path, {"photo.jpg": JPEG})
        with pytest.raises(
            DataError, match=r"must be in a folder or a zip: .* is neither, or its directory is damaged"
        ):
            open_images(tmp_path / "photo.jpg")

    def test_a_pipe_is_neither_folder_nor_zip(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match=r"photos must be in a folder or a zip: .* is neither$"):
            open_images(tmp_path / "pipe")

    @pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
    def test_a_cut_zip_is_refused(self, broken: tuple[Path, dict[str, str]], tmp_path: Path, kept: float) -> None:
        data = broken[0].read_bytes()
        (tmp_path / "cut.zip").write_bytes(data[: int(kept if kept > 1 else kept * len(data))])
        with pytest.raises(DataError, match="its directory is damaged"):
            open_images(tmp_path / "cut.zip")

    def test_arguments_are_checked(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="channels must be 'rgb' or 'bgr', got 'BGR'"):
            open_images(tmp_path, channels="BGR")  # type: ignore[arg-type]
        with pytest.raises(DataError, match="max_pixels and max_bytes must be positive, got 0 and 5"):
            open_images(tmp_path, max_pixels=0, max_bytes=5)
