"""A video of a request on its way into a prompt: ffmpeg decodes it, llama.cpp asks for one picture after the other.

Called by `projector`. llama.cpp keeps all pictures until the last one is there, however many that are: two kilobytes
can show one picture for days. So they are counted here, where each of them passes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import time
from typing import Any

from llama_corral.common.base.errors import InvalidRequest, NotSupported

from ...media.inspection import MAX_PIXELS
from ..llama.mtmd import M
from ..llama.options import ProjectorOptions

MAX_FRAMES = 1024
"""Of all videos of a prompt; four minutes at four a second, and more than most contexts hold."""
MAX_BYTES = 2 << 30
"""Of these pictures, decoded: 345 in full HD."""
TIMEOUT_S = 120.0
"""For decoding the videos of a prompt."""

UNREADABLE = "Failed to load image or audio file"
"""llama-server's words for any file."""

_OK, _END, _ERROR = 0, -1, -2  # what llama.cpp expects of a callback


def check_ffmpeg(directory: str) -> None:
    """Raises NotSupported."""
    missing = [name for name in ("ffmpeg", "ffprobe") if not shutil.which(name, path=directory or None)]
    if missing:
        where = f"in {directory} (--video-ffmpeg-dir)" if directory else "on the server's PATH"
        raise NotSupported(f"video and WebP pictures need ffmpeg: there is no {' and no '.join(missing)} {where}")


class VideoLimits:
    """What is left for the videos of one prompt."""

    def __init__(self) -> None:
        self.problem: InvalidRequest | None = None
        """Why llama.cpp was told to stop."""
        self._frames, self._bytes, self._deadline = MAX_FRAMES, MAX_BYTES, time.monotonic() + TIMEOUT_S

    def allow(self, n_bytes: int) -> bool:
        """One more picture, unless there is a problem."""
        self._frames -= 1
        self._bytes -= n_bytes
        if self._frames < 0 or self._bytes < 0:
            self.problem = InvalidRequest(
                f"the video is too long: more than {MAX_FRAMES} pictures or {MAX_BYTES >> 30} GiB of them, decoded;"
                " a smaller --video-fps takes fewer"
            )
        elif time.monotonic() > self._deadline:
            self.problem = InvalidRequest(f"the video took longer than {TIMEOUT_S:g} s to decode")
        return self.problem is None


class Video:
    """Stands in a prompt as `bitmap`; `close()` frees it and ends ffmpeg."""

    def __init__(self, context: Any, data: bytes, options: ProjectorOptions, limits: VideoLimits) -> None:
        """Raises InvalidRequest for what ffmpeg does not take for a video, NotSupported where there is no ffmpeg."""
        check_ffmpeg(options.video_ffmpeg_dir)
        self._limits, self._id, self._n_frames = limits, hashlib.sha256(data).hexdigest(), 0
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        self._pointer = M.mtmd_helper_video_init_from_buf(context, buffer, len(data), video_params(options))
        if not self._pointer:
            raise InvalidRequest(f"{UNREADABLE}: ffmpeg finds no video in it, and sound has to be WAV, MP3 or FLAC")
        info = M.mtmd_helper_video_get_info(self._pointer)
        self._frame_bytes = 3 * info.width * info.height
        if info.width * info.height > MAX_PIXELS:
            self._free()
            raise InvalidRequest(f"video of {info.width} x {info.height} pixels is too large, {MAX_PIXELS} are allowed")
        self._callback = M.mtmd_bitmap_lazy_callback(self._next)
        self.bitmap = M.mtmd_bitmap_init_lazy(context, self._id.encode(), None, self._callback)

    def close(self) -> None:
        M.mtmd_bitmap_free(self.bitmap)
        self._free()

    def _free(self) -> None:
        M.mtmd_helper_video_free(self._pointer)

    def _next(self, _index: int, _data: object, bitmap: Any, words: Any) -> int:
        """A picture, or words between two of them. Called inside of llama.cpp, which no exception may pass through."""
        result = int(M.mtmd_helper_video_read_next(self._pointer, bitmap, words))
        if result == _END and not self._n_frames:
            self._limits.problem = InvalidRequest(f"{UNREADABLE}: ffmpeg finds no picture in the video")
            return _ERROR
        if result != _OK or not bitmap[0]:
            return result
        if not self._limits.allow(self._frame_bytes):
            M.mtmd_bitmap_free(bitmap[0])
            bitmap[0] = None
            return _ERROR
        M.mtmd_bitmap_set_id(bitmap[0], f"{self._id}+{self._n_frames}".encode())  # llama-server's, for its slot files
        self._n_frames += 1
        return _OK


def video_params(options: ProjectorOptions) -> Any:
    params = M.mtmd_helper_video_init_params_default()
    params.fps_target, params.timestamp_interval_ms = options.video_fps, options.video_timestamp_interval
    params.ffmpeg_bin_dir = os.fsencode(options.video_ffmpeg_dir) or None
    return params
