"""The length in headers of audio files: checked and corrected."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.engine.media.audio_headers import MAX_LENGTH_S, measured
from media_files import png, wav

RATE = 16000


def flac(n_samples: int, rate: int = RATE, begin: bytes = b"") -> bytes:
    """Return the beginning of a FLAC file."""
    fields = (rate << 44) | (15 << 36) | n_samples
    info = struct.pack(">HH", 4096, 4096) + bytes(6) + fields.to_bytes(8, "big") + bytes(16)
    return begin + b"fLaC\x80" + len(info).to_bytes(3, "big") + info + bytes(64)


def with_size(data: bytes, size: int) -> bytes:
    return data[:40] + struct.pack("<I", size) + data[44:]


def id3(n: int) -> bytes:
    return b"ID3\x04\0\0" + bytes([0, 0, n >> 7, n & 0x7F]) + bytes(n)


@pytest.mark.parametrize("data", [b"", b"RIFF", png(), wav(), wav(0.0), flac(RATE), flac(0), b"ID3", id3(300)])
def test_correct_headers_are_not_changed(data: bytes) -> None:
    assert measured(data)[0] == data


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 3300])
def test_the_unknown_length_of_a_piped_wav_file_is_corrected(size: int) -> None:
    assert measured(with_size(wav(0.1), size))[0] == wav(0.1)


@pytest.mark.parametrize(
    "data",
    [
        flac((1 << 36) - 1),
        flac(MAX_LENGTH_S * RATE + 1),
        flac(100, rate=0),
        flac((1 << 36) - 1, begin=id3(200) + id3(3)),
        flac(1)[:20],
        wav(0.1)[:24] + struct.pack("<I", 0) + wav(0.1)[28:],
        wav(2.0)[:24] + struct.pack("<I", 1) + wav(2.0)[28:],
        wav(0.1)[:36] + b"fact" + struct.pack("<II", 4, 0xFFFFFFFF) + wav(0.1)[36:],
    ],
)
def test_impossible_lengths_are_rejected(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        measured(data)


@given(st.sampled_from([b"", b"RIFF", b"fLaC", b"ID3"]), st.binary(max_size=200))
def test_any_data_is_accepted_or_rejected(begin: bytes, data: bytes) -> None:
    for whole in (begin + data, begin + bytes(4) + b"WAVE" + data):
        with contextlib.suppress(InvalidRequest):
            assert len(measured(whole)[0]) == len(whole)
