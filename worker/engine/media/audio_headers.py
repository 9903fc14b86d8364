"""Checks the length in the header of an audio file before the file is decoded. Pure. Called by `projector`.

The decoder trusts the header and allocates memory for the whole length first: a file of a hundred bytes could end the
process. WAV files that were written to a pipe have no valid length; it is corrected here.
"""

from __future__ import annotations

import struct

from llama_corral.common.base.errors import InvalidRequest

MAX_LENGTH_S = 4 * 3600
"""Longest audio in seconds: about 1 GB when decoded."""


def checked(data: bytes) -> bytes:
    """Return the file with a corrected WAV header; other formats are returned unchanged.

    Raises InvalidRequest if a WAV or FLAC header gives a length above MAX_LENGTH_S or a FLAC header is incomplete.
    """
    begin = _after_tags(data)
    if data[begin : begin + 4] == b"fLaC":
        _check_flac(data[begin:])
    elif data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _checked_wav(data)
    return data


def _after_tags(data: bytes) -> int:
    """Return the offset after the ID3 tags, which may precede any format."""
    begin = 0
    while data[begin : begin + 3] == b"ID3" and len(data) >= begin + 10:
        size = sum(
            (byte & 0x7F) << shift for byte, shift in zip(data[begin + 6 : begin + 10], (21, 14, 7, 0), strict=True)
        )
        begin += 10 + size + (10 if data[begin + 5] & 0x10 else 0)
    return begin


def _check_flac(data: bytes) -> None:
    if len(data) < 26:
        raise InvalidRequest("Failed to load image or audio file")
    fields = int.from_bytes(data[18:26], "big")  # rate, channels, bits of a sample, number of samples
    _check_length(fields & ((1 << 36) - 1), fields >> 44)


def _checked_wav(data: bytes) -> bytes:
    """Check the chunks (name, size) of a WAV file; limit the size of the samples to the end of the file."""
    mended = bytearray(data)
    rate, block, n_samples, position = 0, 1, 0, 12
    while position + 8 <= len(data):
        name, size = data[position : position + 4], struct.unpack_from("<I", data, position + 4)[0]
        content, rest = position + 8, len(data) - position - 8
        if name == b"fmt " and rest >= 16:
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
            n_samples = max(n_samples, size // block)
        position = content + size + size % 2
    _check_length(n_samples, rate)
    return bytes(mended)


def _check_length(n_samples: int, rate: int) -> None:
    if n_samples and (not rate or n_samples / rate > MAX_LENGTH_S):
        raise InvalidRequest(f"the audio file is longer than {MAX_LENGTH_S // 3600} hours according to its header")
