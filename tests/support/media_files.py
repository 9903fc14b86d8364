"""Makes small image and audio files."""

from __future__ import annotations

import io
import math
import random
import struct
import wave
import zlib


def png(width: int = 64, height: int = 64, seed: int = 0) -> bytes:
    """Return an image of colored noise in blocks of eight pixels, so that every encoder distinguishes seeds."""
    rng = random.Random(seed)
    colors = [[rng.randbytes(3) for _ in range(width // 8 + 1)] for _ in range(height // 8 + 1)]
    rows = (b"\0" + b"".join(colors[y // 8][x // 8] for x in range(width)) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def wav(seconds: float = 1.0, pitch: float = 440.0, rate: int = 16000) -> bytes:
    """Return a WAV file with a tone."""
    samples = (int(9000 * math.sin(2 * math.pi * pitch * i / rate)) for i in range(int(seconds * rate)))
    return _wave(b"".join(struct.pack("<h", sample) for sample in samples), rate)


def noise(seconds: float = 1.0, seed: int = 0, rate: int = 16000) -> bytes:
    return _wave(random.Random(seed).randbytes(2 * int(seconds * rate)), rate)


def _wave(samples: bytes, rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(samples)
    return file.getvalue()
