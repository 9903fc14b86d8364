"""The check which files may be passed to ffmpeg."""

from __future__ import annotations

import pytest
from llama_corral.worker.engine.media.video_files import is_webp, may_be_video
from media_files import png, wav


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x20ftypisom",
        b"\x1a\x45\xdf\xa3\x01",
        b"RIFF\0\0\0\0AVI LIST",
        b"OggS\0",
        b"\0\0\x01\xba!",
        (b"G" + bytes(187)) * 3,
    ],
)
def test_video_files_are_recognized(data: bytes) -> None:
    assert may_be_video(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\n",
        b"ffconcat version 1.0\nfile x",
        b"<?xml version='1.0'?><MPD/>",
        png(),
        wav(),
        b"Gopher" * 40,
        b"v=0\r\n",
        b"RIFF\0\0\0\0WEBPVP8 ",
        "<?\u00e9free ?><MPD profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'>".encode(),
        b"\nftyp   <MPD/>",
        b"OggS\nc=IN IP4 127.0.0.1\n",
    ],
)
def test_other_files_are_not_recognized(data: bytes) -> None:
    assert not may_be_video(data)


def test_webp_files_are_recognized() -> None:
    assert is_webp(b"RIFF\0\0\0\0WEBPVP8 ")
    assert not is_webp(wav())
