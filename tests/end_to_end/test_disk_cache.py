"""Conversations after an eviction, sleep or kill, through the real router; two programs with one directory."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from programs import Program, Programs, complete, wait_until, worker_of

PROMPT = "Once upon a time there was a miller who had three sons and a mill by the river. " * 4
PRESETS = """
[*]
threads = 1
ctx-size = 2048
parallel = 2
temp = 0

[one]
model = {models}/tiny-llama.gguf

[two]
model = {models}/tiny-llama-b.gguf

[off]
model = {models}/tiny-llama-long.gguf
cache-disk = 0
"""


def tell(gateway: Program, model: str, prompt: str = PROMPT, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = complete(gateway, model, prompt=prompt, n_predict=8, **fields).raise_for_status().json()
    return answer


def kept(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.prompt"))


@pytest.fixture
def gateway(programs: Programs, tmp_path: Path) -> Program:
    """Room for one model; its directory is made under `tmp_path`."""
    return programs.gateway("--models-max", "1", presets=PRESETS, env={"TMPDIR": str(tmp_path)})


def test_an_evicted_model_restores_its_conversation(gateway: Program, tmp_path: Path) -> None:
    first = tell(gateway, "one")
    assert first["timings"]["cache_n"] == 0
    tell(gateway, "two")
    assert len(kept(tmp_path)) == 1
    assert kept(tmp_path)[0].parent.stat().st_mode & 0o777 == 0o700
    second = tell(gateway, "one", PROMPT + first["content"] + " And then")
    assert second["timings"]["cache_n"] > first["tokens_evaluated"] - 4, "the last words may be other tokens now"
    again = tell(gateway, "two")
    assert again["timings"]["cache_n"] == again["tokens_evaluated"] - 1
    plain = tell(gateway, "two", cache_prompt=False)
    assert (again["content"], plain["timings"]["cache_n"]) == (plain["content"], 0)
    assert "miller" not in gateway.log_text
    assert gateway.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_conversations_on_disk_survive_a_killed_worker(gateway: Program) -> None:
    n_prompt = tell(gateway, "one")["tokens_evaluated"]
    tell(gateway, "two")
    assert tell(gateway, "one")["timings"]["cache_n"] == n_prompt - 1
    worker_of(gateway, "one").kill()
    wait_until(lambda: gateway.status("one") != "loaded", "the worker to be missed")
    assert tell(gateway, "one")["timings"]["cache_n"] == n_prompt - 1


def test_a_chat_reports_cached_tokens_after_a_swap(gateway: Program) -> None:
    def chat(model: str, *messages: str) -> dict[str, Any]:
        roles = ("user", "assistant")
        turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
        body = {"model": model, "messages": turns, "max_tokens": 8}
        answer: dict[str, Any] = gateway.client.post("/v1/chat/completions", json=body).raise_for_status().json()
        return answer

    first = chat("one", PROMPT)
    chat("two", "Hello")
    second = chat("one", PROMPT, first["choices"][0]["message"]["content"], "Go on")
    usage = second["usage"]["prompt_tokens_details"]
    assert usage["cached_tokens"] > first["usage"]["prompt_tokens"] * 0.9


def test_nothing_is_written_without_a_disk_cache(gateway: Program, tmp_path: Path) -> None:
    tell(gateway, "off")
    tell(gateway, "two", "Hello")
    assert kept(tmp_path) == []
    assert tell(gateway, "off")["timings"]["cache_n"] == 0


def test_a_named_directory_outlives_the_program(programs: Programs, tmp_path: Path) -> None:
    directory = tmp_path / "prompts"
    options = ("--models-max", "1", "--cache-disk-dir", str(directory))
    first = programs.gateway(*options, presets=PRESETS)
    n_prompt = tell(first, "one")["tokens_evaluated"]
    first.stop()
    assert len(kept(directory)) == 1
    assert directory.stat().st_mode & 0o777 == 0o700
    second, third = (programs.gateway(*options, presets=PRESETS) for _ in range(2))
    for gateway in (second, third):
        assert tell(gateway, "one")["timings"]["cache_n"] == n_prompt - 1
    for gateway in (second, third):
        tell(gateway, "one", "Another story. " * 20)
        assert gateway.stop() == 0
    assert len(kept(directory)) == 2, "both wrote the same"
    assert sorted(path.name for path in directory.iterdir() if path not in kept(directory)) == ["writing"]


def test_an_unusable_directory_is_an_error(programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    program = programs.worker("--cache-disk-dir", str(tmp_path / "file" / "prompts"), wait="nothing")
    assert program.exit_code() == 1
    assert "--cache-disk-dir" in program.log_text


def test_a_worker_alone_keeps_conversations_while_it_sleeps(programs: Programs, tmp_path: Path) -> None:
    worker = programs.worker("--sleep-idle-seconds", "1", "--threads", "1", env={"TMPDIR": str(tmp_path)})
    first = tell(worker, "")
    wait_until(lambda: worker.client.get("/props").json().get("is_sleeping"), "the worker to sleep")
    second = tell(worker, "", PROMPT + first["content"] + " And then")
    assert second["timings"]["cache_n"] > first["tokens_evaluated"] - 4, "the last words may be other tokens now"
    assert len(kept(tmp_path)) == 1
    assert worker.stop(signal.SIGINT) == 0
    assert list(tmp_path.iterdir()) == []
