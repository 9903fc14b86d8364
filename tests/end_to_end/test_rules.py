"""Rules of presets with the real programs: sleep, ttl, warm models, groups, and concurrent requests per model."""

from __future__ import annotations

import pytest
from programs import Program, Programs, complete, wait_until, worker_of

PRESETS = """
[*]
threads = 1
ctx-size = 256
parallel = 1

[group:pair]
swap = on

[sleepy]
model = {models}/tiny-llama.gguf
sleep-idle-seconds = 1
ttl = 3

[warm]
model = {models}/tiny-llama-b.gguf
keep-warm = on

[left]
model = {models}/tiny-llama.gguf
group = pair

[right]
model = {models}/tiny-llama-b.gguf
group = pair

[single]
model = {models}/tiny-llama-long.gguf
ctx-size = 65536
concurrency = 1
concurrency-refuse = on
"""


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    return module_programs.gateway("--models-max", "0", presets=PRESETS)


def test_a_model_sleeps_and_is_unloaded_later(gateway: Program) -> None:
    first = complete(gateway, "sleepy").raise_for_status().json()["content"]
    gateway.wait_for_status("sleepy", "sleeping")
    gateway.wait_for_status("sleepy", "unloaded")
    assert complete(gateway, "sleepy").json()["content"] == first


def test_a_warm_model_is_loaded_at_start_and_after_a_crash(gateway: Program) -> None:
    gateway.wait_for_status("warm", "loaded")
    before = gateway.models()["warm"]["status"]["args"]
    worker_of(gateway, "warm").kill()
    wait_until(lambda: gateway.models()["warm"]["status"]["args"] != before, "a new worker")
    gateway.wait_for_status("warm", "loaded")
    assert complete(gateway, "warm").status_code == 200


def test_models_of_a_group_swap(gateway: Program) -> None:
    for model, other in (("left", "right"), ("right", "left"), ("left", "right")):
        assert complete(gateway, model).status_code == 200
        assert (gateway.status(model), gateway.status(other)) == ("loaded", "unloaded")
    assert gateway.status("warm") == "loaded", "it is of no group"


def test_one_request_too_many_is_refused(gateway: Program) -> None:
    with gateway.client.stream(
        "POST", "/completion", json={"model": "single", "prompt": "a", "n_predict": -1, "stream": True}
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        refused = complete(gateway, "single")
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
    wait_until(lambda: complete(gateway, "single").status_code == 200, "the place is free again")
