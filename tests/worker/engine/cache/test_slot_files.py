"""Slot files: their contents, rejected files, and that a restored slot continues like the saved one."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest
from engine_tools import GREEDY, ask, running
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest, ServerFault
from llama_corral.common.web.safe_names import is_safe_name
from llama_corral.worker.engine.cache.slot_files import BrokenFile, pack, unpack
from llama_corral.worker.engine.messages import Finished, Sampling
from programs import Program, Programs

ENDLESS = Sampling(temperature=0.0, ignore_eos=True)
PROMPT = "Once upon a time there was a miller who had three sons"


@given(st.lists(st.integers(0, 2**31 - 1)))
def test_tokens_survive_packing(tokens: list[int]) -> None:
    assert unpack(pack(tokens)) == tokens
    assert unpack(tokens) == tokens, "plain lists of older servers"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([-1], "version"),
        ([-1, 2, 0, 0], "version"),
        ([-1, 1], "end"),
        ([-1, 1, 5, 7, 0], "end"),
        ([-1, 1, -1, 7, 0], "end"),
        ([-1, 1, 1, 7], "end"),
        ([-1, 1, 1, 7, 1, 0], "mmproj"),
        ([-1, 1, 1, 7, 0, 0], "Trailing"),
    ],
)
def test_broken_payloads_are_rejected(words: list[int], why: str) -> None:
    with pytest.raises(BrokenFile, match=why):
        unpack(words)


@pytest.mark.parametrize("name", ["a.bin", "ä b", ".hidden", "x" * 255, "a.b.c"])
def test_safe_file_names_are_accepted(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a/b", "a\\b", "../a", "a..b", "a:b", "a*", 'a"', "a?", "a<", "a>", "a|", " a", "a ", "a."),
        *("a\nb", "a\x7f", "a\x85", "x" * 256, "ä" * 128, "a\u2215b", "\uff0e\uff0e", "a\ufffd", "\ufeffa", "a\ud800"),
    ],
)
def test_unsafe_file_names_are_rejected(name: str) -> None:
    assert not is_safe_name(name)


async def test_a_restored_slot_continues_like_the_saved_one(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "slot"

    async with running(models / "tiny-llama.gguf", parallel=2) as engine, engine.use() as loaded:
        first = await ask(loaded, PROMPT, id_slot=0).one()
        longer = [*loaded.vocab.tokenize(PROMPT, True, True), *first.tokens[:8]]
        saved = await loaded.save_slot(0, file)
        assert saved.n_tokens == first.n_prompt + first.n_decoded - 1
        assert saved.n_bytes == file.stat().st_size
        expected = await ask(loaded, longer, id_slot=0, sampling=GREEDY).one()
    async with running(models / "tiny-llama.gguf", parallel=2) as engine, engine.use() as loaded:
        restored = await loaded.restore_slot(3, file)
        assert (restored.id_slot, restored.n_tokens, restored.n_bytes) == (1, saved.n_tokens, saved.n_bytes)
        again = await ask(loaded, longer, id_slot=1, sampling=GREEDY).one()
        assert (again.tokens, again.timings.prompt_n) == (expected.tokens, 1)
        assert await loaded.erase_slot(1) > saved.n_tokens
        assert (await ask(loaded, longer, id_slot=1).one()).timings.cache_n == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["slot"]


async def test_an_empty_slot_can_be_saved(models: Path, tmp_path: Path) -> None:
    async with running(models / "tiny-llama.gguf") as engine, engine.use() as loaded:
        assert (await loaded.save_slot(0, tmp_path / "empty")).n_tokens == 0
        assert (await loaded.restore_slot(1, tmp_path / "empty")).n_tokens == 0
        assert await loaded.erase_slot(1) == 0
        with pytest.raises(ServerFault):
            await loaded.save_slot(0, tmp_path / "missing" / "slot")


def _spoil(data: bytes, how: str) -> bytes:
    n_words = struct.unpack_from("=I", data, 8)[0]
    return {
        "truncated": data[: len(data) // 2],
        "short": data[:7],
        "magic": b"GGUF" + data[4:],
        "count": data[:8] + struct.pack("=I", 2**31) + data[12:],
        "token": data[:24] + struct.pack("=i", 10**6) + data[28:],
        "fewer tokens": data[:20]
        + struct.pack("=I", n_words - 5)
        + data[24 : 8 + 4 * n_words]
        + bytes(4)
        + data[12 + 4 * n_words :],
        "nothing": b"",
    }[how]


@pytest.mark.parametrize("how", ["truncated", "short", "magic", "count", "token", "fewer tokens", "nothing", "missing"])
async def test_a_broken_file_leaves_an_empty_but_usable_slot(models: Path, tmp_path: Path, how: str) -> None:
    file = tmp_path / "slot"

    async with running(models / "tiny-llama.gguf", parallel=2) as engine, engine.use() as loaded:
        expected = await ask(loaded, PROMPT, id_slot=0).one()
        await loaded.save_slot(0, file)
        if how == "missing":
            file.unlink()
        else:
            file.write_bytes(_spoil(file.read_bytes(), how))
        with pytest.raises(InvalidRequest, match="Unable to restore slot"):
            await loaded.restore_slot(0, file)
        after = await ask(loaded, PROMPT, id_slot=0).one()
        assert (after.tokens, after.timings.cache_n) == (expected.tokens, 0)


async def test_an_action_waits_until_its_slot_is_idle(models: Path, tmp_path: Path) -> None:
    async with running(models / "tiny-llama.gguf", parallel=1) as engine, engine.use() as loaded:
        work = ask(loaded, n_predict=100, stream=True, sampling=ENDLESS)
        await work.until(bool)
        next_one = ask(loaded, n_predict=1)
        saved = await loaded.save_slot(0, tmp_path / "slot")
        assert isinstance(work.events[-1], Finished)
        assert saved.n_tokens == work.events[-1].n_cached
        await next_one.one()
        work = ask(loaded, n_predict=-1, stream=True, sampling=ENDLESS)
        await work.until(bool)
        given_up = asyncio.ensure_future(loaded.erase_slot(0))
        await asyncio.wait([given_up], timeout=0)
        given_up.cancel()
        work.ticket.cancel()
        assert (await ask(loaded, n_predict=1).one()).timings.cache_n > 0, "nothing was erased"


# -- over HTTP -------------------------------------------------------------------------------------------------------


def act(program: Program, query: str, body: Any = None, status: int = 200) -> Any:
    response: httpx.Response = program.client.post(f"/slots/{query}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def test_slot_actions_over_http_directly_and_through_the_router(programs: Programs, tmp_path: Path) -> None:
    common = ("--parallel", "2", "--ctx-size", "1024", "--threads", "1", "--slot-save-path", str(tmp_path))
    worker = programs.worker(*common)
    question = {"prompt": PROMPT, "n_predict": 8, "id_slot": 0, "temperature": 0}
    answer = worker.client.post("/completion", json=question).json()
    saved = act(worker, "0?action=save", {"filename": "a.bin"})
    assert saved.keys() == {"id_slot", "filename", "n_saved", "n_written", "timings"}
    assert (saved["filename"], saved["n_saved"]) == ("a.bin", answer["tokens_cached"])
    assert (tmp_path / "a.bin").stat().st_size == saved["n_written"]
    for query, body in [("x?action=save", {}), ("0?action=fly", {}), ("0", {}), ("0?action=save", {"filename": "../a"}),
                        ("0?action=save", {}), ("0?action=restore", {"filename": "b"})]:  # fmt: skip
        assert act(worker, query, body, 400)["error"]["type"] == "invalid_request_error"

    model = programs.models / "tiny-llama.gguf"
    presets = f"[tiny]\nmodel = {model}\nslot-save-path = {tmp_path}\nparallel = 2\nctx-size = 1024\n"
    gateway = programs.gateway(presets=presets)
    restored = act(gateway, "1?action=restore", {"model": "tiny", "filename": "a.bin"})
    assert restored.keys() == {"id_slot", "filename", "n_restored", "n_read", "timings"}
    assert (restored["n_restored"], restored["n_read"]) == (saved["n_saved"], saved["n_written"])
    again = gateway.client.post("/completion", json={**question, "model": "tiny", "id_slot": 1}).json()
    assert (again["content"], again["timings"]["prompt_n"]) == (answer["content"], 1)
    assert act(gateway, "1?action=erase&model=tiny") == {"id_slot": 1, "n_erased": again["tokens_cached"]}


def test_slot_actions_require_slot_save_path(worker: Program, programs: Programs, tmp_path: Path) -> None:
    assert act(worker, "0?action=erase", status=501)["error"]["type"] == "not_supported_error"
    program = programs.worker("--slot-save-path", str(tmp_path / "missing"), wait="nothing")
    assert program.exit_code() == 1
    assert "--slot-save-path: not a directory" in program.log_text
