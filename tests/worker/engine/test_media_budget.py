"""The memory of a request's images and audio: counted before a decoder sees them, and given back afterwards."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from random import Random

import pytest
from llama_corral.common.base.errors import ContextExceeded, InvalidRequest
from llama_corral.worker.engine.media.audio_headers import measured
from llama_corral.worker.engine.media.budget import MediaBudget
from llama_corral.worker.engine.messages import PromptText
from llama_corral.worker.media.inspection import picture_size
from media_engine import M, seeing
from media_files import noise, png, wav

RATE = 16_000
MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)  # 128 kbit/s, 44,100 samples per second: 26 ms


def blank(width: int, height: int) -> bytes:
    """Return a small file with a large black image: one bit per pixel."""
    rows = zlib.compress((b"\0" + bytes((width + 7) // 8)) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def png_header(width: int, height: int, bits: int) -> bytes:
    return png()[:16] + struct.pack(">IIBB", width, height, bits, 6) + bytes(99)


def jpeg(width: int, height: int, frame: int) -> bytes:
    return b"\xff\xd8" + b"\xff" + bytes([frame]) + struct.pack(">HBHH", 17, 8, height, width) + bytes(20)


def wav_file(rate: int, n_samples: int, form: int = 1) -> bytes:
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, form, 1, rate, 2 * rate, 2, 16)
    return b"RIFF" + bytes(4) + b"WAVE" + head + struct.pack("<4sI", b"data", 2 * n_samples) + bytes(2 * n_samples)


def webp(width: int, height: int) -> bytes:
    size = b"".join((n - 1).to_bytes(3, "little") for n in (width, height))
    return b"RIFF" + bytes(4) + b"WEBPVP8X" + bytes(8) + size + bytes(20)


HOSTILE = {
    "image": [blank(10_000, 10_000)] * 20,
    "many images": [blank(2_000, 2_000)] * 60,
    "16 bits": [png_header(8_000, 8_000, 16)],
    "progressive": [jpeg(9_000, 9_000, 0xC2)],
    "bmp": [b"BM" + bytes(12) + struct.pack("<Iii", 40, 9_000, -9_000) + bytes(99)],
    "pnm": [b"P6 9000 9000 255\n"],
    "slow samples": [wav_file(1, 8_000)],
    "adpcm": [wav_file(20, 30_000, form=17)],
    "audio files": [wav_file(200, 200 * 600)] * 5,
    "mp3": [MP3_FRAME * 120_000],
    "mp3 as wav": [b"RIFF" + bytes(4) + b"WAVEjunk" + bytes([255]) * 4 + MP3_FRAME * 120_000],
    "mp3 after a broken flac header": [b"fLaC\x80\0\0\x22" + bytes(34) + MP3_FRAME * 120_000],
    "image and audio": [blank(6_000, 6_000), blank(6_000, 6_000), wav_file(200, 200 * 2_400)],
}
HONEST = {
    "photos": [jpeg(4_000, 3_000, 0xC0)] * 9,
    "a large photo": [jpeg(8_200, 6_150, 0xC0)],
    "screens": [png_header(7_680, 4_320, 8)] * 3,
    "pictures": [png()] * 500,
    "half an hour": [wav_file(200, 200 * 1_800)],
    "noise": [noise(20.0)] * 10,
    "mp3": [b"ID3" + bytes(7) + MP3_FRAME * 60_000],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_need_too_much_memory_are_refused_by_their_headers(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^file \d+ of the request, .* 512 MiB \(--media-max-memory\) are left"):
        MediaBudget(512, RATE).count(HOSTILE[name])


@pytest.mark.parametrize("name", HONEST)
def test_ordinary_files_fit(name: str) -> None:
    assert MediaBudget(512, RATE).count(HONEST[name]) == HONEST[name]


MEGAPIXEL = 1000  # rows of a thousand pixels
DOCUMENTED = {
    "photos": ([jpeg(4_000, 3_000, 0xC0)] * 13, [jpeg(4_000, 3_000, 0xC0)] * 14),
    "jpeg": ([jpeg(2_000, 38 * MEGAPIXEL, 0xC0)], [jpeg(2_000, 39 * MEGAPIXEL, 0xC0)]),
    "progressive": ([jpeg(1_000, 38 * MEGAPIXEL, 0xC2)], [jpeg(1_000, 39 * MEGAPIXEL, 0xC2)]),
    "png": ([png_header(1_000, 67 * MEGAPIXEL, 8)], [png_header(1_000, 68 * MEGAPIXEL, 8)]),
    "webp": ([webp(1_000, 44 * MEGAPIXEL)], [webp(1_000, 45 * MEGAPIXEL)]),
    "audio": ([wav_file(200, 200 * 60 * 46)], [wav_file(200, 200 * 60 * 47)]),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_documented_sizes_are_the_limits(name: str) -> None:
    fits, too_large = DOCUMENTED[name]
    assert MediaBudget(512, RATE).count(fits) == fits
    with pytest.raises(InvalidRequest):
        MediaBudget(512, RATE).count(too_large)


def noisy_mp3(kbit: int, code: int, n_frames: int) -> bytes:
    """Return MP3 frames with random contents at 44,100 samples per second. `code`: of the bit rate."""
    dice = Random(kbit)
    size = 144 * kbit * 1000 // 44_100
    return b"".join(bytes((0xFF, 0xFB, code << 4, 0x44)) + dice.randbytes(size - 4) for _ in range(n_frames))


@pytest.mark.parametrize(("kbit", "code", "factor"), [(32, 1, 1.1), (128, 9, 1.2), (320, 14, 1.5)])
def test_an_mp3_file_counts_as_up_to_a_half_longer(kbit: int, code: int, factor: float) -> None:
    seconds = 1_000 * 1152 / 44_100
    assert seconds <= measured(noisy_mp3(kbit, code, 1_000))[1] <= factor * seconds


def test_the_operator_can_allow_more() -> None:
    with pytest.raises(InvalidRequest, match="file 1 of the request, an image of 10000 x 10000 pixels, is too large"):
        MediaBudget(512, RATE).count(HOSTILE["image"])
    assert len(MediaBudget(16_000, RATE).count(HOSTILE["image"])) == 20


def test_the_length_of_an_mp3_file_is_known_before_it_is_decoded() -> None:
    assert measured(MP3_FRAME * 1_000)[1] == pytest.approx(1_000 * 1152 / 44_100)
    assert measured(b"ID3\x04\0\0\0\0\0\0" + MP3_FRAME)[1] == pytest.approx(1152 / 44_100)
    assert measured(wav(2.0))[1] == pytest.approx(2.0)
    assert measured(png())[1] == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xd0" * 4_000_000,
        b"\x89PNG\r\n\x1a\n" + bytes(12_000_000),
        b"#?RADIANCE" + b"\n" * 4_000_000,
    ],
    ids=["jpeg", "png", "hdr"],
)
def test_a_header_without_an_end_is_not_searched_for_long(data: bytes) -> None:
    """These took from seconds to days."""
    try:
        assert picture_size(data) is None
    except InvalidRequest:
        return


async def test_large_images_are_refused_and_leave_no_memory(models: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async with seeing(models) as engine, engine.use() as loaded:
        loaded.tokenize_media([PromptText(M)], [png()])
        before = resident()
        with pytest.raises(InvalidRequest, match="10000 x 10000 pixels, is too large"):
            loaded.tokenize_media([PromptText(M * 20)], HOSTILE["image"])
        assert resident() - before < 64 << 20
        loaded.tokenize_media([PromptText(M)], [blank(6_000, 6_000)])
        assert resident() - before < 96 << 20, "108 MB of pixels are given back"


async def test_more_images_than_the_context_holds_are_refused_before_they_are_decoded(models: Path) -> None:
    async with seeing(models) as engine, engine.use() as loaded:
        with pytest.raises(ContextExceeded):
            loaded.tokenize_media([PromptText(M * 5_000)], [png()[:33]] * 5_000)  # only headers: none can be decoded


async def test_decoding_stops_when_the_client_has_left(models: Path) -> None:
    asked = []

    def given_up() -> bool:
        asked.append(True)
        return len(asked) > 2

    async with seeing(models) as engine, engine.use() as loaded:
        with pytest.raises(InvalidRequest, match="disconnected"):
            loaded.tokenize_media([PromptText(M * 6)], [png()] * 6, given_up)
    assert len(asked) == 3
