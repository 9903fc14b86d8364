"""Checks a file's header before it is given to a decoder, which it could attack. Pure.

A few bytes can declare an image of two gigabytes, which a decoder would allocate. Files that are neither images nor
audio go to ffmpeg; it also accepts playlists and opens the addresses in them, which could bypass our address checks.
"""

from __future__ import annotations

import re
import struct
from struct import unpack_from

from llama_corral.common.base.errors import InvalidRequest

MAX_PIXELS = 100_000_000
"""More than cameras have. The memory of a request allows fewer, by the format (`engine/media/budget`)."""
_TEXT_AHEAD = 7
"""Number of bytes to check: the length of `#EXTM3U`, the shortest start of a playlist."""
_BEGIN_LIKE_TEXT = (b"GIF8", b"BM", b"P5", b"P6", b"#?R", b"RIFF")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PNG, _PIC = b"\x89PNG\r\n\x1a\n", b"\x53\x80\xf6\x34"
_NO_FRAMES = (0xC4, 0xC8, 0xCC)  # JPEG markers in the range of frame markers that are none
_HDR_SIZE = re.compile(rb"\n\n\s{0,9}-Y\s{0,9}(\d{1,9})\s{0,9}\+X\s{0,9}(\d{1,9})")
_HDR_HEADER = 64 << 10  # bytes in which the size is searched
_PNM = re.compile(rb"P[56]\s{1,9}(\d{1,9})\s{1,9}(\d{1,9})\s")
_MAX_CHUNKS = 16  # before the header of a PNG; its decoder accepts one
_MAX_MARKERS = 10_000  # of a JPEG; pictures have less than a hundred before their size
_PROGRESSIVE = 0xC2

Size = tuple[int, int]


def check_file(data: bytes) -> None:
    """Raise InvalidRequest if the file must not be given to a decoder."""
    if _is_text(data):
        raise InvalidRequest("Failed to load image or audio file: it is text")
    size = picture_size(data)
    if size and size[0] * size[1] > MAX_PIXELS:
        raise InvalidRequest(f"image of {size[0]} x {size[1]} pixels is too large, {MAX_PIXELS} are allowed")


def _is_text(data: bytes) -> bool:
    start = data[:64].removeprefix(_BYTE_ORDER_MARK).lstrip()[:_TEXT_AHEAD]
    printable = len(start) == _TEXT_AHEAD and all(0x20 <= byte < 0x7F or byte in b"\t\r\n" for byte in start)
    return printable and not data.startswith(_BEGIN_LIKE_TEXT)


def picture_size(data: bytes) -> Size | None:
    """Return width and height as llama.cpp's image decoder reads them; None if it does not recognise an image."""
    try:
        return _size(data)
    except struct.error:
        return None


def decoder_bytes(data: bytes) -> int:
    """Return how many bytes per pixel the decoder needs at most at the same time, with the result and its copy."""
    if data.startswith(_PNG):
        return 16 if data[24:25] == b"\x10" or data[12:16] != b"IHDR" else 8  # of 16 or of 8 bits
    if data.startswith(b"\xff\xd8"):
        frame = _jpeg_frame(data)
        return 14 if frame is not None and data[frame + 1] >= _PROGRESSIVE else 7
    return 20 if data.startswith((b"#?R", b"8BPS")) else 12


def _size(data: bytes) -> Size | None:
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith(b"GIF8"):
        return unpack_from("<HH", data, 6)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data.startswith(b"8BPS"):
        height, width = unpack_from(">II", data, 14)
        return width, height
    if data.startswith(_PIC):
        return unpack_from(">HH", data, 92)
    if data.startswith(b"RIFF"):
        return _webp(data) if data[8:12] == b"WEBP" else None
    if data.startswith(b"#?R"):
        found = _HDR_SIZE.search(data, 0, _HDR_HEADER)
        return (int(found[2]), int(found[1])) if found else None
    if data.startswith((b"P5", b"P6")):
        found = _PNM.match(data)
        return (int(found[1]), int(found[2])) if found else None
    return _tga(data)


def _png(data: bytes) -> Size | None:
    at = len(_PNG)
    for _ in range(_MAX_CHUNKS):  # Apple's software writes a private chunk before the header
        if data[at + 4 : at + 8] == b"IHDR":
            width, height = unpack_from(">II", data, at + 8)
            return width, height
        at += 12 + int(unpack_from(">I", data, at)[0])
    return None


def _jpeg(data: bytes) -> Size | None:
    frame = _jpeg_frame(data)
    if frame is None:
        return None
    height, width = unpack_from(">HH", data, frame + 5)
    return width, height


def _jpeg_frame(data: bytes) -> int | None:
    """Return the offset of the marker that begins the frame with the size."""
    at = 2
    for _ in range(_MAX_MARKERS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return None
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
            return at
        has_length = marker not in (0x00, 0x01, 0xFF) and not 0xD0 <= marker <= 0xD8
        at += 2 + int(unpack_from(">H", data, at + 2)[0]) if has_length else 1
    raise InvalidRequest("Failed to load image or audio file: it has too many markers before its size")


def _bmp(data: bytes) -> Size:
    if unpack_from("<I", data, 14)[0] == 12:
        width, height = unpack_from("<HH", data, 18)
    else:
        width, height = unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _webp(data: bytes) -> Size | None:
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            (bits,) = unpack_from("<I", data, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _tga(data: bytes) -> Size | None:
    """Return the size of a TGA image. TGA has no signature: like the decoder, this checks the header's values."""
    _, colors, kind = unpack_from("<BBB", data, 0)
    width, height, bits = unpack_from("<HHB", data, 12)
    fits = kind in ((1, 9) if colors == 1 else (2, 3, 10, 11)) and colors <= 1
    return (width, height) if fits and bits in (8, 15, 16, 24, 32) else None
