"""Which files may be handed to ffmpeg, by their first bytes. Pure. Called by `projector`.

llama.cpp gives it whatever is neither picture nor sound. Playlists are such files: they name others, on this machine
or in its network, and ffmpeg would read those.
"""

from __future__ import annotations

NO_FFMPEG = "/dev/null"
"""A directory in which none is found."""

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
"""The first byte that XML could begin with, which some playlists are: as a size it stands for a box of 144 MiB."""
_TS_PACKET = 188


def may_be_video(data: bytes) -> bool:
    if data.startswith(_STARTS) or (data[4:8] in _MP4_BOXES and data[0] < _TAB):
        return True
    if data[:4] == b"RIFF":
        return data[8:12] == b"AVI "
    return data[:1] == data[_TS_PACKET : _TS_PACKET + 1] == b"G"


def is_webp(data: bytes) -> bool:
    """A picture, but only ffmpeg decodes it."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"
