"""Reads the video of a request into a prompt: ffmpeg decodes it, llama.cpp requests one frame after the other.

Called by `projector`. llama.cpp keeps all frames in memory until the last one is read, without a limit, and a file of
two kilobytes can show one picture for days. So the frames are counted and limited here.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

from llama_corral.common.base.errors import InvalidRequest, NotSupported

from ...media.inspection import MAX_PIXELS
from ..llama.mtmd import M
from ..llama.options import ProjectorOptions

MAX_FRAMES = 1024
"""Most frames of all videos of a prompt: four minutes at 4 frames/s, more than fit into most contexts."""
MAX_BYTES = 2 << 30
"""Most bytes of these frames when decoded, whatever memory is allowed."""
TIMEOUT_S = 120.0
"""Time limit in seconds for decoding the videos of a prompt."""

GIVEN_UP = "the client has disconnected"
UNREADABLE = "Failed to load image or audio file"
"""llama-server's error message for any media file."""

_OK, _END, _ERROR = 0, -1, -2  # what llama.cpp expects of a callback


def check_ffmpeg(directory: str) -> None:
    """Raise NotSupported if ffmpeg or ffprobe is not found in `directory`, or on the PATH if that is empty."""
    missing = [name for name in ("ffmpeg", "ffprobe") if not shutil.which(name, path=directory or None)]
    if missing:
        where = f"in {directory} (--video-ffmpeg-dir)" if directory else "on the server's PATH"
        raise NotSupported(f"video and WebP images need ffmpeg: {' and '.join(missing)} not found {where}")


class VideoLimits:
    """Counts the frames, bytes and time that are left for the videos of one prompt."""

    def __init__(self, max_bytes: int = MAX_BYTES, given_up: Callable[[], bool] = lambda: False) -> None:
        """`max_bytes`: the memory that is left for the frames. `given_up`: as in `Projector.tokenize`."""
        self._given_up = given_up
        self._max_bytes = min(max_bytes, MAX_BYTES)
        self.problem: InvalidRequest | None = None
        """The reason why reading was stopped."""
        self._frames, self._bytes, self._deadline = MAX_FRAMES, self._max_bytes, time.monotonic() + TIMEOUT_S

    def check_wanted(self) -> None:
        """Raise InvalidRequest if the result is not wanted anymore."""
        if self._given_up():
            raise InvalidRequest(GIVEN_UP)

    def allow(self, n_bytes: int) -> bool:
        """Count one more frame of `n_bytes`. Return False and set `problem` if a limit is exceeded."""
        self._frames -= 1
        self._bytes -= n_bytes
        if self._frames < 0 or self._bytes < 0:
            self.problem = InvalidRequest(
                f"the video is too long: more than {MAX_FRAMES} frames or {self._max_bytes >> 20} MiB of decoded"
                " frames; use a shorter one, or start the server with a smaller --video-fps or a larger"
                " --media-max-memory"
            )
        elif self._given_up():
            self.problem = InvalidRequest(GIVEN_UP)
        elif time.monotonic() > self._deadline:
            self.problem = InvalidRequest(f"the video took longer than {TIMEOUT_S:g} s to decode")
        return self.problem is None


class Video:
    """A video that a prompt contains as `bitmap`. `close()` frees it and stops ffmpeg."""

    def __init__(self, context: Any, data: bytes, options: ProjectorOptions, limits: VideoLimits) -> None:
        """Start ffmpeg. Raises InvalidRequest if ffmpeg finds no video in the data, NotSupported without ffmpeg."""
        check_ffmpeg(options.video_ffmpeg_dir)
        self._limits, self._id, self._n_frames = limits, hashlib.sha256(data).hexdigest(), 0
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        self._pointer = M.mtmd_helper_video_init_from_buf(context, buffer, len(data), video_params(options))
        if not self._pointer:
            raise InvalidRequest(f"{UNREADABLE}: ffmpeg finds no video in it; audio must be WAV, MP3 or FLAC")
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
        """Read the next frame, or the text between two frames. llama.cpp calls this: it must not raise."""
        result = int(M.mtmd_helper_video_read_next(self._pointer, bitmap, words))
        if result == _END and not self._n_frames:
            self._limits.problem = InvalidRequest(f"{UNREADABLE}: ffmpeg finds no frame in the video")
            return _ERROR
        if result != _OK or not bitmap[0]:
            return result
        if not self._limits.allow(self._frame_bytes):
            M.mtmd_bitmap_free(bitmap[0])
            bitmap[0] = None
            return _ERROR
        M.mtmd_bitmap_set_id(bitmap[0], f"{self._id}+{self._n_frames}".encode())  # llama-server's id in slot files
        self._n_frames += 1
        return _OK


def video_params(options: ProjectorOptions) -> Any:
    params = M.mtmd_helper_video_init_params_default()
    params.fps_target, params.timestamp_interval_ms = options.video_fps, options.video_timestamp_interval
    params.ffmpeg_bin_dir = os.fsencode(options.video_ffmpeg_dir) or None
    return params
