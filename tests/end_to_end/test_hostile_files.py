"""Files that are made to exhaust their readers, or that turn into something else, with the real programs."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import psutil
import pytest
from programs import Program, Programs, complete

MIB = 1 << 20
PRESETS = """
[*]
threads = 1
ctx-size = 512

[good]
model = {models}/tiny-llama.gguf

[huge-header]
model = {hostile}/huge-header.gguf

[many-layers]
model = {hostile}/many-layers.gguf
"""


def _text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


_ARCHITECTURE = _text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama")


def _write_huge_header(path: Path) -> None:
    """3000 texts of one MiB, which take no space on disk."""
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 3001) + _ARCHITECTURE)
        for number in range(3000):
            file.write(_text(b"text.%d" % number) + struct.pack("<IQ", 8, MIB))
            file.seek(MIB, os.SEEK_CUR)
        file.truncate(file.tell() + 64)


def _write_many_layers(path: Path) -> None:
    layers = _text(b"llama.block_count") + struct.pack("<II", 4, 2**32 - 1)
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + _ARCHITECTURE + layers + bytes(64))


@pytest.fixture(scope="module")
def gateway(module_programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Program:
    hostile = tmp_path_factory.mktemp("hostile")
    _write_huge_header(hostile / "huge-header.gguf")
    _write_many_layers(hostile / "many-layers.gguf")
    return module_programs.gateway(presets=PRESETS.replace("{hostile}", str(hostile)))


def test_a_huge_header_is_described_without_reading_it(gateway: Program) -> None:
    before = psutil.Process(gateway.pid).memory_info().rss
    for _ in range(5):
        shown = gateway.client.post("/api/show", json={"model": "huge-header", "verbose": True})
        assert shown.status_code == 200
        assert len(shown.content) < MIB
    gateway.client.get("/api/tags").raise_for_status()
    assert psutil.Process(gateway.pid).memory_info().rss - before < 64 * MIB
    assert "huge-header.gguf: its header has more than 128 MiB" in gateway.log_text


def test_a_huge_header_is_not_loaded(gateway: Program) -> None:
    refused = complete(gateway, "huge-header")
    assert refused.status_code >= 400
    assert "its header has more than 128 MiB" in refused.text
    assert gateway.models()["huge-header"]["status"]["failed"] is True
    assert complete(gateway, "good").status_code == 200


def test_a_claim_of_four_billion_layers_fails_at_once(gateway: Program) -> None:
    assert complete(gateway, "many-layers").status_code >= 400
    assert complete(gateway, "good").status_code == 200
