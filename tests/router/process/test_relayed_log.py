"""The log of a real worker inside the router's: one time for each line, no JSON inside JSON, and its level."""

from __future__ import annotations

import json
import re

from programs import Program, Programs, complete, wait_until

PRESETS = """
[a]
model = {models}/tiny-llama.gguf
ctx-size = 256
threads = 1

[bad]
model = {models}/truncated.gguf
"""
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")
LINE = re.compile(rf"({STAMP.pattern}) (?:(warning|error): )?\[(\d+)/(a|bad)\] (.*)")


def _lines(gateway: Program) -> list[str]:
    assert complete(gateway, "a").status_code == 200
    assert complete(gateway, "bad").status_code == 500
    gateway.stop()
    return gateway.log_text.splitlines()


def test_a_line_of_a_worker_has_one_time(programs: Programs) -> None:
    lines = _lines(programs.gateway(presets=PRESETS, env={"LLAMA_ARG_LOG_TIMESTAMPS": "1"}))
    relayed = [match for line in lines if (match := LINE.fullmatch(line))]
    assert len(relayed) > 5
    assert not [match[5] for match in relayed if STAMP.search(match[5])]
    assert any(match[2] == "error" and match[4] == "bad" for match in relayed), "its level is that of the worker's line"
    assert all(STAMP.match(line) for line in lines if line), "every line of the log has its time"


def test_a_line_of_a_worker_is_no_json_inside_json(programs: Programs) -> None:
    lines = [json.loads(line) for line in _lines(programs.gateway("--log-jsonl", presets=PRESETS)) if line]
    relayed = [line for line in lines if line["logger"] == "corral.workers"]
    assert len(relayed) > 5
    assert not [line for line in relayed if "{" in line["msg"]]
    assert any(line["level"] == "error" and "/bad] " in line["msg"] for line in relayed)
    access = [line["msg"] for line in lines if line["logger"] == "corral.access"]
    assert any(" name=a 200 " in text for text in access)
    assert any(" name=bad 500 " in text for text in access)


def test_a_worker_leaves_the_access_log_to_its_router(programs: Programs) -> None:
    gateway = programs.gateway("--verbosity", "4", presets=PRESETS)
    assert complete(gateway, "a").status_code == 200
    gateway.stop()
    served = [line for line in gateway.log_text.splitlines() if "POST /completion" in line]
    assert sorted(" name=a 200 " in line for line in served) == [False, True], "the worker's own line is for debugging"
    worker = programs.worker("--ctx-size", "256", "--threads", "1")
    assert worker.client.post("/completion", json={"prompt": "a", "n_predict": 1}).status_code == 200
    wait_until(lambda: " POST /completion 200 " in worker.log_text, "the line of a worker without a router")
