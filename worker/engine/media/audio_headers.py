"""Finds the length of an audio file before it is decoded. Pure. Called by `budget`.

The decoder trusts the header and allocates memory for the whole length first: a file of a hundred bytes could end the
process. WAV files that were written to a pipe have no valid length; it is corrected here.
"""

from __future__ import annotations

import re
import struct

from llama_corral.common.base.errors import InvalidRequest

MAX_LENGTH_S = 4 * 3600
"""Longest audio in seconds, whatever memory is allowed."""
_MAX_CHUNKS = 10_000  # of a WAV file or of tags; recordings have less than a hundred
_UNCOMPRESSED = (1, 3, 6, 7, 0xFFFE)  # codes of WAV formats with at least a byte per sample
_BITS = (8, 16, 24, 32, 64)
_MP3_HEADER = re.compile(rb"(?=\xff([\xe2-\xe7\xf2-\xff])([\x00-\xef]))")
_MP3_RATES = (44100, 48000, 32000)  # of MPEG 1; MPEG 2 has half, MPEG 2.5 a quarter of them
_LAYER_1 = 3


def measured(data: bytes) -> tuple[bytes, float]:
    """Return the file and its length in seconds; 0 if it is not audio. A wrong length in a WAV header is corrected.

    Raises InvalidRequest if a WAV or FLAC header gives a length above MAX_LENGTH_S or a FLAC header is incomplete.
    """
    begin = _after_tags(data)
    if data[begin : begin + 4] == b"fLaC":
        return data, _flac_seconds(data[begin:]) or _mp3_seconds(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        mended, seconds, plain = _checked_wav(data)
        return mended, seconds if plain else max(seconds, _mp3_seconds(data))  # what no decoder knows is tried as MP3
    if data.startswith(b"ID3") or (data[:1] == b"\xff" and data[1:2] >= b"\xe0"):
        return data, _mp3_seconds(data)
    return data, 0.0


def _mp3_seconds(data: bytes) -> float:
    """Return the longest time that the file can last: the sum over everything that looks like a frame's header.

    A decoder skips what is no frame, so a walk from frame to frame could be led past the ones that it plays. By chance
    one of 5,000 bytes looks like a header: the result is a sixth too large at 128 kbit/s, and up to a half at 320.
    """
    seconds, known = 0.0, dict[tuple[bytes, bytes], float]()
    for found in _MP3_HEADER.finditer(data):
        key = found[1], found[2]
        if key not in known:
            known[key] = _frame_seconds(found[1][0], found[2][0])
        seconds += known[key]
    return seconds


def _frame_seconds(kind: int, rates: int) -> float:
    version, layer, rate = kind >> 3 & 3, kind >> 1 & 3, rates >> 2 & 3
    if version == 1 or layer == 0 or rate == len(_MP3_RATES):
        return 0.0  # not a header
    divisor = {3: 1, 2: 2, 0: 4}[version]
    n_samples = 384 if layer == _LAYER_1 else 1152
    return n_samples * divisor / _MP3_RATES[rate]


def _after_tags(data: bytes) -> int:
    """Return the offset after the ID3 tags, which may precede any format."""
    begin = 0
    for _ in range(_MAX_CHUNKS):
        if data[begin : begin + 3] != b"ID3" or len(data) < begin + 10:
            break
        size = sum(
            (byte & 0x7F) << shift for byte, shift in zip(data[begin + 6 : begin + 10], (21, 14, 7, 0), strict=True)
        )
        begin += 10 + size + (10 if data[begin + 5] & 0x10 else 0)
    return begin


def _flac_seconds(data: bytes) -> float:
    if len(data) < 26:
        raise InvalidRequest("Failed to load image or audio file")
    fields = int.from_bytes(data[18:26], "big")  # rate, channels, bits of a sample, number of samples
    return _length(fields & ((1 << 36) - 1), fields >> 44)


def _checked_wav(data: bytes) -> tuple[bytes, float, bool]:
    """Check the chunks (name, size) of a WAV file; limit the size of the samples to the end of the file.

    Returns the file, its seconds, and True if its samples are not compressed.
    """
    mended = bytearray(data)
    rate, block, n_samples, position, plain = 0, 1, 0, 12, False
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            break
        name, size = data[position : position + 4], struct.unpack_from("<I", data, position + 4)[0]
        content, rest = position + 8, len(data) - position - 8
        if name == b"fmt " and rest >= 16:
            form, channels, bits = struct.unpack_from("<HH10xH", data, content)
            plain = form in _UNCOMPRESSED and channels > 0 and bits in _BITS
            rate, block = (
                struct.unpack_from("<I", data, content + 4)[0],
                max(1, struct.unpack_from("<H", data, content + 12)[0]),
            )
        elif name == b"fact" and rest >= 4:
            n_samples = max(n_samples, struct.unpack_from("<I", data, content)[0])
        elif name == b"data":
            if size > rest:
                size = rest
                struct.pack_into("<I", mended, position + 4, size)
            n_samples = max(n_samples, size // block if plain else 2 * size)
        position = content + size + size % 2
    else:
        raise InvalidRequest("Failed to load image or audio file: it has too many chunks")
    return bytes(mended), _length(n_samples, rate), plain and n_samples > 0


def _length(n_samples: int, rate: int) -> float:
    if n_samples and (not rate or n_samples / rate > MAX_LENGTH_S):
        raise InvalidRequest(f"the audio file is longer than {MAX_LENGTH_S // 3600} hours according to its header")
    return n_samples / rate if n_samples else 0.0
