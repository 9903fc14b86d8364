"""Videos and WebP images with the real ffmpeg, and the errors without it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from engine_tools import running
from llama_corral.common.base.errors import ApiError, InvalidRequest, NotSupported
from llama_corral.worker.engine.media import video
from llama_corral.worker.engine.messages import PromptText

M = "<__media__>"
WEBP = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\x00\x00\x00\x10\x07\x10\x11\x11\x88\x88\xfe\x07\0"
CLUSTER = b"\x1f\x43\xb6\x75"  # the start of the frames in a WebM file


def film(directory: Path, name: str, source: str, *options: str) -> bytes:
    """Create a video. `source`: a test source in ffmpeg's syntax."""
    path = directory / name
    command = ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", source, *options, str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path.read_bytes()


def seeing(models: Path, **settings: Any) -> Any:
    projector = models / "mmproj-gemma3.gguf"
    return running(models / "tiny-gemma3.gguf", projector=projector, warmup=False, **settings)


@pytest.mark.slow
async def test_videos_are_converted_to_images(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "testsrc=duration=1:size=64x64:rate=8"
    mp4, webm = film(tmp_path, "a.mp4", source, "-pix_fmt", "yuv420p"), film(tmp_path, "a.webm", source)
    webp = film(tmp_path, "a.webp", source, "-frames:v", "1")
    days = film(tmp_path, "b.mkv", "testsrc=duration=1:size=64x64:rate=2", "-vf", "setpts=N*100000/TB", "-vsync", "vfr")
    sound = film(tmp_path, "a.m4a", "sine=duration=1")
    cut, empty = mp4[: len(mp4) // 2], webm[: webm.index(CLUSTER)]

    async with seeing(models) as engine, engine.use() as loaded:
        for data, n in ((mp4, 4), (webm, 4), (webp, 1)):
            _, media = loaded.tokenize_media([PromptText(f"What is {M} here")], [data])
            assert len({chunk.id for chunk in media}) == n
            again = loaded.tokenize_media([PromptText(f"{M}{M}")], [data, data])[1]
            assert [chunk.id for chunk in again] == 2 * [chunk.id for chunk in media]
        for data, why in (
            (cut, "finds no video"),
            (empty, "finds no frame|finds no video"),
            (sound, "finds no video"),
            (webp[:40], "Failed to load"),
            (days, "too long: more than 1024 frames"),
        ):
            with pytest.raises(InvalidRequest, match=why):
                loaded.tokenize_media([PromptText(M)], [data])
        monkeypatch.setattr(video, "MAX_BYTES", 7 * 3 * 64 * 64)
        assert len(loaded.tokenize_media([PromptText(M)], [mp4])[1]) == 4
        with pytest.raises(InvalidRequest, match="too long"):
            loaded.tokenize_media([PromptText(f"{M}{M}")], [mp4, webm])
        monkeypatch.setattr(video, "MAX_PIXELS", 64 * 63)
        with pytest.raises(InvalidRequest, match="64 x 64 pixels is too large"):
            loaded.tokenize_media([PromptText(M)], [mp4])


@pytest.mark.parametrize("data", [b"\0\0\0\x18ftypmp42" + bytes(100), WEBP])
async def test_without_ffmpeg_the_error_names_it(models: Path, tmp_path: Path, data: bytes) -> None:
    async with seeing(models, video_ffmpeg_dir=str(tmp_path)) as engine, engine.use() as loaded:
        with pytest.raises(NotSupported, match=r"need ffmpeg: ffmpeg and ffprobe not found in .*--video-ffmpeg"):
            loaded.tokenize_media([PromptText(M)], [data])


async def test_an_audio_only_model_does_not_need_ffmpeg(models: Path, tmp_path: Path) -> None:
    recording = b"\0\0\0\x1cftypM4A " + bytes(100)

    options = {"projector": models / "mmproj-audio.gguf", "warmup": False, "video_ffmpeg_dir": str(tmp_path)}
    async with running(models / "tiny-llama.gguf", **options) as engine, engine.use() as loaded:
        with pytest.raises(InvalidRequest, match="WAV, MP3 or FLAC"):
            loaded.tokenize_media([PromptText(M)], [recording])


def test_without_ffmpeg_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ApiError, match="on the server's PATH") as refusal:
        video.check_ffmpeg("")
    assert refusal.value.status == 501
