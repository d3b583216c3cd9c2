"""Makes a zip of images that are broken, hostile or merely odd, with the expected outcome of each.

Every entry is named `<id>.<extension>` unless its name is the problem. "ok" images must be read.
"""

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, features

RED, WHITE = (200, 30, 40), (255, 255, 255)


def noise(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    """Return an image of noise, so that it does not compress to a few bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def packed(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_that_claims(width: int, height: int, body: bytes = b"\0") -> bytes:
    """Return a PNG whose header claims a size (grey, 8 bits) and whose pixels are `body`."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(body)) + png_chunk(b"IEND", b"")


def png_with(*chunks: bytes) -> bytes:
    """Return a good PNG with more chunks right after its header."""
    good = packed(noise(), "PNG")
    return good[:33] + b"".join(chunks) + good[33:]


def jpeg_with_exif(exif: bytes) -> bytes:
    good = packed(noise(), "JPEG")
    segment = b"Exif\0\0" + exif
    return good[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + good[2:]


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (20, 10), colour) for colour in (RED, WHITE, (0, 0, 255))]
    return packed(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def _odd() -> dict[str, bytes]:
    """Return file name -> images that are odd and must be read."""
    grey16 = Image.fromarray(np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16))
    fractions = Image.fromarray(np.linspace(0, 1, 32 * 48, dtype=np.float32).reshape(32, 48))
    palette = noise("P")
    made = {
        "jpeg-plain.jpg": packed(noise(), "JPEG"),
        "jpeg-extension.jpeg": packed(noise(), "JPEG"),
        "jpeg-upper-case.JPG": packed(noise(), "JPEG"),
        "jpeg-progressive.jpg": packed(noise(), "JPEG", progressive=True),
        "jpeg-cmyk.jpg": packed(noise("CMYK"), "JPEG"),
        "jpeg-grey.jpg": packed(noise("L"), "JPEG"),
        "jpeg-mpo.jpg": packed(noise(), "MPO", save_all=True, append_images=[noise()]),
        "jpeg-rotated.jpg": packed(noise(), "JPEG", exif=orientation(6)),
        "jpeg-bad-icc.jpg": packed(noise(), "JPEG", icc_profile=b"this is no profile"),
        "jpeg-bad-exif.jpg": jpeg_with_exif(b"II*\0\xff\xff\xff\x7fgarbage"),
        "jpeg-exif-not-tiff.jpg": jpeg_with_exif(b"nonsense nonsense"),
        "jpeg-exif-cut.jpg": jpeg_with_exif(orientation(3).tobytes()[6:20]),
        "jpeg-exif-orientation-99.jpg": packed(noise(), "JPEG", exif=orientation(99)),
        "jpeg-junk-after-end.jpg": packed(noise(), "JPEG") + b"junk" * 100,
        "jpeg-one-pixel.jpg": packed(noise(size=(1, 1)), "JPEG"),
        "png-named-jpg.jpg": packed(noise(), "PNG"),
        "png-16-bit.png": packed(grey16, "PNG"),
        "png-la.png": packed(noise("LA"), "PNG"),
        "png-rgba.png": packed(noise("RGBA"), "PNG"),
        "png-1-bit.png": packed(noise("1"), "PNG"),
        "png-palette.png": packed(palette, "PNG"),
        "png-palette-transparent-index.png": packed(palette, "PNG", transparency=3),
        "png-palette-transparent-bytes.png": packed(palette, "PNG", transparency=bytes(range(256))),
        "png-rgb-transparent-colour.png": packed(noise(), "PNG", transparency=(1, 2, 3)),
        "png-grey-transparent-level.png": packed(noise("L"), "PNG", transparency=7),
        "png-bad-icc.png": png_with(png_chunk(b"iCCP", b"x\0\0not zlib")),
        "png-bad-apng.png": png_with(png_chunk(b"acTL", struct.pack(">II", 0, 0))),
        "png-animated.png": animation("PNG"),
        "png-very-long-and-thin.png": packed(noise(size=(4000, 1)), "PNG"),
        "webp-lossy.webp": packed(noise(), "WEBP"),
        "webp-rgba.webp": packed(noise("RGBA"), "WEBP", lossless=True),
        "webp-animated.webp": animation("WEBP"),
        "gif-plain.gif": packed(palette, "GIF"),
        "gif-animated.gif": animation("GIF"),
        "gif-transparent.gif": packed(palette, "GIF", transparency=5),
        "bmp-plain.bmp": packed(noise(), "BMP"),
        "tiff-plain.tiff": packed(noise(), "TIFF"),
        "tiff-rotated.tif": packed(noise(), "TIFF", exif=orientation(6)),
        "tiff-cmyk.tif": packed(noise("CMYK"), "TIFF", compression="tiff_lzw"),
        "tiff-ycbcr.tif": packed(noise("YCbCr"), "TIFF"),
        "tiff-16-bit.tif": packed(grey16, "TIFF"),
        "tiff-32-bit.tif": packed(grey16.convert("I"), "TIFF"),
        "tiff-fractions.tif": packed(fractions, "TIFF"),
        "Сумка-женская.jpg": packed(noise(), "JPEG"),
        "with space, comma.jpg": packed(noise(), "JPEG"),
        "with.dots.in.id.jpg": packed(noise(), "JPEG"),
        "sub/folder/in-a-folder.jpg": packed(noise(), "JPEG"),
        "windows\\in-a-windows-folder.jpg": packed(noise(), "JPEG"),
    }
    if features.check("avif"):
        made["avif-plain.avif"] = packed(noise(), "AVIF")
    return made


def _broken() -> dict[str, tuple[bytes, str]]:
    """Return file name -> images that are broken, and the reason."""
    jpeg, png, webp = (packed(noise(size=(96, 96)), kind) for kind in ("JPEG", "PNG", "WEBP"))
    gif, tiff, bmp = (packed(noise("P", (96, 96)), kind) for kind in ("GIF", "TIFF", "BMP"))
    random_bytes = np.random.default_rng(1).bytes(5000)
    lzw = packed(noise(size=(96, 96)), "TIFF", compression="tiff_lzw")
    return {
        "empty.jpg": (b"", "empty"),
        "one-byte.jpg": (b"\xff", "unreadable"),
        "jpeg-cut-at-90.jpg": (jpeg[: len(jpeg) * 9 // 10], "truncated"),
        "jpeg-cut-at-50.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "jpeg-only-header.jpg": (jpeg[: jpeg.index(b"\xff\xda") + 14], "truncated"),
        "jpeg-cut-in-header.jpg": (jpeg[:100], "unreadable"),
        "jpeg-only-magic.jpg": (jpeg[:4], "unreadable"),
        "jpeg-zero-size.jpg": (_jpeg_of_size(jpeg, 0, 0), "unreadable"),
        "jpeg-claims-65000-square.jpg": (_jpeg_of_size(jpeg, 65000, 65000), "too_large"),
        "png-cut-at-90.png": (png[: len(png) * 9 // 10], "truncated"),
        "png-cut-at-50.png": (png[: len(png) // 2], "truncated"),
        "png-only-header.png": (png[:33], "unreadable"),
        "png-cut-in-header.png": (png[:20], "unreadable"),
        "png-only-magic.png": (png[:8], "unreadable"),
        "png-zero-size.png": (png_that_claims(0, 0), "unreadable"),
        "png-claims-2-billion.png": (png_that_claims(2**31 - 1, 2**31 - 1), "too_large"),
        "png-claims-60-million.png": (png_that_claims(10_000, 6_000), "too_large"),
        "png-claims-100-million.png": (png_that_claims(10_000, 10_000), "too_large"),
        "png-bomb.png": (png_that_claims(20_000, 20_000, bytes(20_001 * 2_000)), "too_large"),
        "png-huge-text.png": (png_with(png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(30 << 20)))), "ok"),
        "png-wrong-chunk-crc.png": (png[:29] + b"\0\0\0\0" + png[33:], "unreadable"),
        "png-bad-pixels.png": (png[:60] + b"\xff" * 200 + png[260:], "unreadable"),
        "webp-cut-at-90.webp": (webp[: len(webp) * 9 // 10], "truncated"),
        "webp-cut-at-50.webp": (webp[: len(webp) // 2], "truncated"),
        "webp-only-magic.webp": (webp[:12], "unreadable"),
        "gif-cut-at-90.gif": (gif[: len(gif) * 9 // 10], "truncated"),
        "gif-cut-at-50.gif": (gif[: len(gif) // 2], "truncated"),
        "gif-only-magic.gif": (gif[:6], "unreadable"),
        "gif-claims-65000-square.gif": (gif[:6] + struct.pack("<HH", 65000, 65000) + gif[10:], "too_large"),
        "bmp-cut-at-50.bmp": (bmp[: len(bmp) // 2], "truncated"),
        "tiff-cut-at-50.tif": (tiff[: len(tiff) // 2], "truncated"),
        "tiff-lzw-bad-pixels.tif": (lzw[:40] + b"\xff" * 400 + lzw[440:], "unreadable"),
        "tiff-broken-ifd.tif": (b"II*\0\x08\0\0\0\xff\xff" + random_bytes[:200], "unreadable"),
        "tiff-ifd-nowhere.tif": (b"MM\0*\x7f\xff\xff\xff", "unreadable"),
        "random.jpg": (random_bytes, "unreadable"),
        "zeros.jpg": (bytes(1000), "unreadable"),
        "text.jpg": ("Фото нет".encode(), "unreadable"),
        "html.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "unreadable"),
        "pdf.jpg": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "unreadable"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "unreadable"),
        "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "unreadable"),
        "xpm.png": (b'/* XPM */\nstatic char *x[] = {"1 1 1 1","a c #fff","a"};', "unreadable"),
        "ppm.jpg": (packed(noise(), "PPM"), "unreadable"),
        "tga.jpg": (packed(noise(), "TGA"), "unreadable"),
        "zip.jpg": (b"PK\x05\x06" + bytes(18), "unreadable"),
    }


def _jpeg_of_size(jpeg: bytes, width: int, height: int) -> bytes:
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def _rename(name: bytes, to: bytes) -> Callable[[bytes], bytes]:
    return lambda archive: archive.replace(name, to)


def _in_entry(name: bytes, local: tuple[int, bytes], central: tuple[int, bytes]) -> Callable[[bytes], bytes]:
    """Overwrite (offset, bytes) in the local and in the central header of an entry."""

    def patch(archive: bytes) -> bytes:
        changed = bytearray(archive)
        for magic, header, (offset, value) in ((b"PK\3\4", 30, local), (b"PK\1\2", 46, central)):
            at = archive.index(name) if header == 30 else archive.rindex(name)
            if archive[at - header :][:4] != magic:
                raise AssertionError(f"{name!r} must first occur at its header")
            changed[at - header + offset : at - header + offset + len(value)] = value
        return bytes(changed)

    return patch


def _broken_in_the_zip() -> tuple[dict[str, tuple[str, str]], list[Callable[[bytes], bytes]]]:
    """Return id -> (entry name, reason) of good images in damaged entries, and the functions that damage them."""
    damaged = {
        "zip-wrong-crc": "unreadable",
        "zip-encrypted": "encrypted",
        "zip-unknown-method": "unreadable",
        "zip-lying-size": "unreadable",
        "zip-huge-size": "too_large",
        "zip-damaged": "unreadable",
        "zip-nowhere": "unreadable",
        "zip-nul": "missing",
    }
    entries = {name: (f"{name}.jpg", reason) for name, reason in damaged.items()}
    entries["zip-climbs"] = ("../zip-climbs.jpg", "ok")
    entries["zip-climbs-windows"] = ("..\\..\\zip-climbs-windows.jpg", "ok")
    entries["zip-absolute"] = ("/etc/zip-absolute.jpg", "ok")
    entries["zip-drive"] = ("C:\\zip-drive.jpg", "ok")
    patches = [
        _in_entry(b"zip-wrong-crc.jpg", (14, b"\1\2\3\4"), (16, b"\1\2\3\4")),
        _in_entry(b"zip-encrypted.jpg", (6, b"\1"), (8, b"\1")),
        _in_entry(b"zip-unknown-method.jpg", (8, b"\x63\0"), (10, b"\x63\0")),
        _in_entry(b"zip-lying-size.jpg", (22, b"\x0a\0\0\0"), (24, b"\x0a\0\0\0")),
        _in_entry(b"zip-huge-size.jpg", (22, b"\0\0\0\x7f"), (24, b"\0\0\0\x7f")),
        _in_entry(b"zip-damaged.jpg", (30 + 17 + 4, b"\xff" * 300), (0, b"PK\1\2")),
        _in_entry(b"zip-nowhere.jpg", (0, b"XXXX"), (0, b"PK\1\2")),
        _rename(b"zip-nul.jpg.jpg", b"zip-nul.jpg\0jpg"),
    ]
    entries["zip-nul"] = ("zip-nul.jpg.jpg", "missing")
    return entries, patches


def write_broken_zip(path: Path) -> dict[str, str]:
    """Write the zip and return product id -> the expected reason, "ok" for an image that must be read."""
    good = packed(noise(), "JPEG")
    expected = {}
    entries, patches = _broken_in_the_zip()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in _odd().items():
            archive.writestr(name, data)
            expected[_id(name)] = "ok"
        for name, (data, reason) in _broken().items():
            archive.writestr(name, data)
            expected[_id(name)] = reason
        for product_id, (name, reason) in entries.items():
            archive.writestr(name, good)
            expected[product_id] = reason
        _write_odd_entries(archive, good)
    data = path.read_bytes()
    for patch in patches:
        data = patch(data)
    path.write_bytes(data)
    missing = ["", "nobody", "directory", "zip-twice-in-folders", "zip-other-extension"]
    missing += ["../secret", "a/b", "a\\b", "..", "a\0b", "\ud800", "/etc/passwd"]
    return {
        **expected,
        **dict.fromkeys(missing, "missing"),
        "zip-link": "unreadable",
        "zip-duplicate": "ok",
        "zip-stored": "ok",
    }


def _write_odd_entries(archive: zipfile.ZipFile, good: bytes) -> None:
    archive.writestr("directory.jpg/", b"")
    for name in ("a/zip-twice-in-folders.jpg", "b/zip-twice-in-folders.jpg", "zip-other-extension.txt"):
        archive.writestr(name, good)
    archive.writestr("zip-stored.jpg", good, zipfile.ZIP_STORED)
    link = zipfile.ZipInfo("zip-link.jpg")
    link.external_attr = 0o120777 << 16
    archive.writestr(link, "/etc/passwd")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("zip-duplicate.jpg", b"older")
        archive.writestr("zip-duplicate.jpg", good)


def _id(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
