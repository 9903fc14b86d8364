"""Decides by its first bytes whether a file may be passed to ffmpeg. Pure. Called by `projector`.

llama.cpp passes to ffmpeg every file that is neither an image nor audio. A playlist is such a file: it names other
files, on this machine or in its network, and ffmpeg would read them.
"""

from __future__ import annotations

NO_FFMPEG = "/dev/null"
"""A directory in which no ffmpeg is found."""

_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x00\x00\x01\xba",  # MPEG programme stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"\x30\x26\xb2\x75",  # ASF: WMV
    b"OggS\x00",
    b"FLV\x01",
)
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_TAB = 9
"""The lowest first byte of an XML file (some playlists are XML). As an MP4 size it means a box of 144 MiB or more."""
_TS_PACKET = 188


def may_be_video(data: bytes) -> bool:
    """Return True if the file begins like a Matroska, MPEG, ASF, Ogg, FLV, MP4, AVI or MPEG-TS file."""
    if data.startswith(_STARTS) or (data[4:8] in _MP4_BOXES and data[0] < _TAB):
        return True
    if data[:4] == b"RIFF":
        return data[8:12] == b"AVI "
    return data[:1] == data[_TS_PACKET : _TS_PACKET + 1] == b"G"


def is_webp(data: bytes) -> bool:
    """Return True for a WebP image, which only ffmpeg can decode."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"
