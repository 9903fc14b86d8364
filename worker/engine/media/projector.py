"""Loads the projector (mmproj) of a multimodal model, splits prompts into text and media, and encodes the media.

`tokenize` may be called from several threads simultaneously; `encode` from one thread at a time, while the model's
context computes on another one. Call everything else on the engine thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from llama_corral.common.base.errors import ContextExceeded, InvalidRequest
from numpy.typing import NDArray

from ...media.inspection import picture_size
from ..batching.media_tokens import MediaContent, MediaToken
from ..llama.devices import find_device, list_devices
from ..llama.errors import EncodeError, LoadError
from ..llama.heap import give_back_freed_memory
from ..llama.llama import C, complaints
from ..llama.memory_log import allocations
from ..llama.model import MediaSupport, Model, Throttled
from ..llama.mtmd import M, text
from ..llama.options import ProjectorOptions
from ..messages import MEDIA_TOKEN, MediaChunk, PromptText
from .budget import MediaBudget
from .video import UNREADABLE, Video, VideoLimits, check_ffmpeg, video_params
from .video_files import NO_FFMPEG, is_webp, may_be_video

Embeddings = NDArray[np.float32]
_MANY_IMAGES = 8  # up to this number of images they are not compared with the context before they are decoded
_SIDE = 32  # pixels of a small image


class PreparedMedia:
    """Owns a copy of an mtmd_input_chunk with its pixels or samples."""

    def __init__(self, chunk: Any) -> None:
        self.pointer = M.mtmd_input_chunk_copy(chunk)
        finalizer = weakref.finalize(self, M.mtmd_input_chunk_free, self.pointer)
        finalizer.atexit = False


class Projector:
    """Owns the mtmd_context. Call `close()`, which frees it, before the model is freed."""

    def __init__(self, model: Model, options: ProjectorOptions, on_progress: Callable[[float], None]) -> None:
        self._options = options
        self._users = 0
        self._changed = threading.Condition()
        self._keep: list[Any] = []
        self._smallest: int | None = None  # tokens of a small image, once they were counted
        complaints.clear()
        self._context: Any = M.mtmd_init_from_file(
            os.fsencode(options.path), model.pointer, self._params(model, on_progress)
        )
        if not self._context:
            why = complaints[0].split("error: ")[-1] if complaints else "llama.cpp gave no reason"
            raise LoadError(f"failed to load multimodal model '{options.path}': {why.strip()}")
        allocations.add(_placement(options), options.path.stat().st_size)
        self.support = MediaSupport(
            vision=M.mtmd_support_vision(self._context),
            audio=M.mtmd_support_audio(self._context),
            video=M.mtmd_helper_support_video(self._context),
            marker=options.marker,
        )
        self._rate: int = max(0, M.mtmd_get_audio_sample_rate(self._context))
        self.mrope: bool = M.mtmd_decode_use_mrope(self._context)
        self.n_embd: int = C.llama_model_n_embd_inp(model.pointer)

    def close(self) -> None:
        """Free the context, after waiting for threads that still tokenize (their request may have ended already)."""
        with self._changed:
            context, self._context = self._context, None
            self._changed.wait_for(lambda: not self._users)
        if context:
            M.mtmd_free(context)

    # -- a prompt -----------------------------------------------------------------------------------------------------

    def tokenize(
        self,
        prompt: Sequence[PromptText],
        files: Sequence[bytes],
        n_ctx: int,
        given_up: Callable[[], bool] = lambda: False,
    ) -> tuple[tuple[int, ...], tuple[MediaChunk, ...]]:
        """Return the prompt's tokens and its media chunks; media positions contain MEDIA_TOKEN.

        The parts with `parse_special` must have one media marker for each file. `given_up` returns True once the result
        is not wanted anymore. Raises InvalidRequest, and ContextExceeded if already the smallest images of this number
        need more than `n_ctx` tokens.
        """
        with self._in_use() as context, contextlib.ExitStack() as stack:
            stack.callback(give_back_freed_memory)
            budget = MediaBudget(self._options.max_memory, self._rate)
            files = budget.count(files)
            self._check_number(context, sum(picture_size(data) is not None for data in files), n_ctx)
            limits = VideoLimits(budget.left, given_up)
            bitmaps = [self._bitmap(context, data, limits, stack) for data in files]
            parts = self._input_parts(prompt, bitmaps)
            chunks = M.mtmd_input_chunks_init()
            stack.callback(M.mtmd_input_chunks_free, chunks)
            array = (ctypes.POINTER(M.mtmd_input_part) * len(parts))(*map(ctypes.pointer, parts))
            problem = M.mtmd_tokenize_from_parts(context, chunks, array, len(parts), True)
            if problem:
                if limits.problem:
                    raise limits.problem
                why = ": the media cannot be prepared for this model" if problem == 2 else ""
                raise InvalidRequest(f"Failed to tokenize prompt{why}")
            return self._read(
                context, [M.mtmd_input_chunks_get(chunks, i) for i in range(M.mtmd_input_chunks_size(chunks))]
            )

    def _check_number(self, context: Any, n_images: int, n_ctx: int) -> None:
        """Refuse more images than the context can hold. Each may need megabytes, however small its file is."""
        if n_images <= _MANY_IMAGES or not self.support.vision:
            return
        if self._smallest is None:
            self._smallest = self._tokens_of_a_small_image(context)
        n_tokens = n_images * self._smallest // (2 if self.mrope else 1)  # such models read two images as one
        if n_tokens >= n_ctx:
            raise ContextExceeded(n_tokens, n_ctx)

    def _tokens_of_a_small_image(self, context: Any) -> int:
        with contextlib.ExitStack() as stack:
            bitmap = M.mtmd_bitmap_init(_SIDE, _SIDE, (ctypes.c_uint8 * (3 * _SIDE * _SIDE))())
            stack.callback(M.mtmd_bitmap_free, bitmap)
            chunks = M.mtmd_input_chunks_init()
            stack.callback(M.mtmd_input_chunks_free, chunks)
            part = M.mtmd_input_part(None, bitmap)
            if M.mtmd_tokenize_from_parts(
                context, chunks, (ctypes.POINTER(M.mtmd_input_part) * 1)(ctypes.pointer(part)), 1, False
            ):
                return 1
            pointers = [M.mtmd_input_chunks_get(chunks, i) for i in range(M.mtmd_input_chunks_size(chunks))]
            return max(1, sum(int(M.mtmd_input_chunk_get_n_tokens(chunk)) for chunk in pointers))

    def _input_parts(self, prompt: Sequence[PromptText], bitmaps: Sequence[Any]) -> list[Any]:
        """Return the texts, and the bitmaps in place of the markers."""
        parts: list[Any] = []
        rest = iter(bitmaps)
        n_markers = 0
        for part in prompt:
            between = part.text.split(self._options.marker) if part.parse_special else [part.text]
            for i, words in enumerate(between):
                if i:
                    n_markers += 1
                    parts.append(M.mtmd_input_part(None, next(rest, None)))
                if words:
                    data = words.encode("utf-8", "surrogateescape")
                    given = M.mtmd_input_text(data, len(data), False, part.parse_special)
                    parts.append(M.mtmd_input_part(ctypes.pointer(given), None))
        if n_markers != len(bitmaps):
            raise InvalidRequest(
                f"Failed to tokenize prompt: it has {n_markers} media markers for {len(bitmaps)} files"
            )
        return parts

    def _bitmap(self, context: Any, data: bytes, limits: VideoLimits, stack: contextlib.ExitStack) -> Any:
        limits.check_wanted()
        if may_be_video(data):
            if not self.support.video:
                raise InvalidRequest(f"{UNREADABLE}: this model reads audio only, as WAV, MP3 or FLAC")
            video = Video(context, data, self._options, limits)
            stack.callback(video.close)
            return video.bitmap
        options = M.mtmd_helper_init_opt_default()
        options.video_params = video_params(self._options)
        if is_webp(data):
            check_ffmpeg(self._options.video_ffmpeg_dir)
        else:
            options.video_params.ffmpeg_bin_dir = NO_FFMPEG.encode()
        buffer = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
        made = M.mtmd_helper_bitmap_init_from_buf_wrapper(context, buffer, len(data), False, options)
        if not made.bitmap:
            raise InvalidRequest(UNREADABLE)
        stack.callback(M.mtmd_bitmap_free, made.bitmap)
        return made.bitmap

    def _read(self, context: Any, chunks: Sequence[Any]) -> tuple[tuple[int, ...], tuple[MediaChunk, ...]]:
        tokens: list[int] = []
        media: list[MediaChunk] = []
        for chunk in chunks:
            kind = M.mtmd_input_chunk_get_type(chunk)
            if kind == M.MTMD_INPUT_CHUNK_TYPE_TEXT:
                n = ctypes.c_size_t()
                words = M.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n))
                tokens += words[: n.value]
                continue
            token = token_of(chunk)
            content = MediaContent(
                "image" if kind == M.MTMD_INPUT_CHUNK_TYPE_IMAGE else "audio",
                token,
                M.mtmd_decode_use_non_causal(context, chunk),
                PreparedMedia(chunk),
            )
            id = text(M.mtmd_input_chunk_get_id(chunk))
            media.append(MediaChunk(len(tokens), token.n_tokens, token.n_pos, id, content))
            tokens += [MEDIA_TOKEN] * token.n_tokens
        return tuple(tokens), tuple(media)

    # -- media ---------------------------------------------------------------------------------------------------------

    def encode(self, media: Sequence[object]) -> list[Embeddings]:
        """Return the embeddings of the first media, of as many as fit into one batch.

        Each array has the shape (n_tokens, n_embd). Raises EncodeError.
        """
        with self._in_use() as context, contextlib.ExitStack() as stack:
            batch = M.mtmd_batch_init(context)
            stack.callback(M.mtmd_batch_free, batch)
            taken = []
            for prepared in media:
                if not isinstance(prepared, PreparedMedia) or M.mtmd_batch_add_chunk(batch, prepared.pointer):
                    break
                taken.append(prepared.pointer)
            if not taken or M.mtmd_batch_encode(batch):
                raise EncodeError("failed to process mtmd chunk")
            return [self._output(batch, chunk) for chunk in taken]

    def _output(self, batch: Any, chunk: Any) -> Embeddings:
        shape = (M.mtmd_input_chunk_get_n_tokens(chunk), self.n_embd)
        values = M.mtmd_batch_get_output_embd(batch, chunk)
        if not values:
            raise EncodeError("failed to process mtmd chunk")
        return np.ctypeslib.as_array(values, shape).copy()

    def positions(self, content: MediaContent, first: int) -> NDArray[np.int32]:
        """Return the position of each token: shape (1, n_tokens), or with M-RoPE (4, n_tokens).

        The rows for M-RoPE are time, y, x and one that is not used.
        """
        token, prepared = content.token, content.prepared
        assert isinstance(prepared, PreparedMedia)
        if not self.mrope:
            return np.arange(first, first + token.n_tokens, dtype=np.int32)[None]
        if content.kind == "audio":
            return np.tile(np.arange(first, first + token.n_tokens, dtype=np.int32), (4, 1))
        places = (M.mtmd_decoder_pos * token.n_tokens)()
        image = M.mtmd_input_chunk_get_tokens_image(prepared.pointer)
        M.mtmd_helper_image_get_decoder_pos(image, first, places)
        return np.array([(place.t, place.y, place.x, place.z) for place in places], np.int32).T.copy()

    @staticmethod
    def read_saved(data: bytes) -> MediaToken | None:
        """Return the image or audio token that a slot file has saved, or None if it cannot be read."""
        chunk = M.mtmd_input_chunk_load(data, len(data))
        if not chunk:
            return None
        try:
            is_media = M.mtmd_input_chunk_get_type(chunk) != M.MTMD_INPUT_CHUNK_TYPE_TEXT
            token = token_of(chunk) if is_media else None
            return token if token is not None and 0 < token.n_pos <= token.n_tokens else None
        finally:
            M.mtmd_input_chunk_free(chunk)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[Any]:
        with self._changed:
            if not self._context:
                raise InvalidRequest("The model is being unloaded")
            self._users += 1
        try:
            yield self._context
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _params(self, model: Model, on_progress: Callable[[float], None]) -> Any:
        o, params = self._options, M.mtmd_context_params_default()
        params.use_gpu, params.device = _device(o)
        params.print_timings = False
        params.n_threads = model.options.n_threads
        params.flash_attn_type = model.options.flash_attention
        params.warmup = model.options.warmup
        params.image_min_tokens, params.image_max_tokens = o.image_min_tokens, o.image_max_tokens
        params.batch_max_tokens = o.batch_max_tokens
        marker, callback = o.marker.encode(), M.mtmd_progress_callback(Throttled(on_progress))
        self._keep += [marker, callback]
        params.media_marker, params.progress_callback = marker, callback
        return params


def _placement(options: ProjectorOptions) -> str:
    """Return llama.cpp's name of the device with the weights: by default the first device that is not the CPU."""
    if not options.offload or options.device == "none":
        return "CPU"
    return options.device or next((device.name for device in list_devices() if not device.is_cpu), "CPU")


def _device(options: ProjectorOptions) -> tuple[bool, int | None]:
    if not options.offload or options.device == "none":
        return False, None
    return True, find_device(options.device, "--mmproj-device") if options.device else None


def token_of(chunk: Any) -> MediaToken:
    """Return the token of an image or audio chunk."""
    n_bytes = ctypes.c_size_t()
    buffer = None
    if not M.mtmd_input_chunk_save(chunk, None, 0, ctypes.byref(n_bytes)):
        buffer = ctypes.create_string_buffer(n_bytes.value)
        if M.mtmd_input_chunk_save(chunk, buffer, n_bytes.value, None):
            buffer = None
    return MediaToken(
        text(M.mtmd_input_chunk_get_id(chunk)),
        M.mtmd_input_chunk_get_n_tokens(chunk),
        M.mtmd_input_chunk_get_n_pos(chunk),
        buffer.raw if buffer is not None else b"",
    )
