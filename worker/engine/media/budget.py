"""Counts the memory that the files of one request need when decoded, before a decoder sees them. Pure.

llama.cpp keeps all images, samples and frames of a prompt in memory until the whole prompt is tokenized, and a file of
some kilobytes can declare gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_corral.common.base.errors import InvalidRequest

from ...media.inspection import decoder_bytes, picture_size
from .audio_headers import measured
from .video_files import may_be_video

PIXEL_BYTES = 3
SAMPLE_BYTES = 12
"""Bytes per sample: decoded, copied, and as a spectrogram."""
OPTION = "--media-max-memory"


class MediaBudget:
    """The bytes that are left for the files of one request. All errors name the file by its position, from 1."""

    def __init__(self, max_mib: int, rate: int) -> None:
        """`rate`: samples per second after decoding, whatever the file has."""
        self._max_mib, self._rate = max_mib, rate
        self.left = max_mib << 20

    def count(self, files: Sequence[bytes]) -> list[bytes]:
        """Return the files, with corrected headers. Raises InvalidRequest if they need too much memory."""
        return [self._count(place, data) for place, data in enumerate(files, 1)]

    def _count(self, place: int, data: bytes) -> bytes:
        if may_be_video(data):
            return data  # its frames are counted one by one
        if size := picture_size(data):
            width, height = size
            self._take(
                width * height * PIXEL_BYTES,
                width * height * decoder_bytes(data),
                f"file {place} of the request, an image of {width} x {height} pixels",
            )
            return data
        mended, seconds = measured(data)
        n_bytes = int(seconds * self._rate * SAMPLE_BYTES)
        self._take(n_bytes, n_bytes, f"file {place} of the request, audio of {seconds:.0f} s")
        return mended

    def _take(self, kept: int, at_most: int, what: str) -> None:
        """Take `kept` bytes; the decoder needs `at_most` bytes for a moment."""
        if max(kept, at_most) > self.left:
            raise InvalidRequest(
                f"{what}, is too large: it needs {_mib(max(kept, at_most))} MiB when decoded, and {_mib(self.left)} of"
                f" {self._max_mib} MiB ({OPTION}) are left for it"
            )
        self.left -= kept


def _mib(n_bytes: int) -> int:
    return -(-n_bytes >> 20)
