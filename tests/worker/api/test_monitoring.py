"""A worker's monitoring endpoints, awake and asleep, and the control of a running completion."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from llama_corral.worker.api.metrics import exposition
from llama_corral.worker.engine.counters import Counters, RateMeter
from programs import Program, Programs, wait_until

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
READS = ("/health", "/v1/health", "/props", "/models", "/v1/models", "/metrics")
SLEEPY = """
[m]
model = {models}/tiny-llama.gguf
ctx-size = 512
threads = 1
metrics = on
sleep-idle-seconds = 1
"""


# -- metrics ---------------------------------------------------------------------------------------------------------


def readings(text: str) -> dict[str, float]:
    """Return the values by name with labels; check that each one has its help and type lines before it."""
    found: dict[str, float] = {}
    announced: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            announced.add(line.split()[2])
        elif not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert name.partition("{")[0] in announced
            assert f"# HELP {name.partition('{')[0]} " in text
            found[name.removeprefix("llamacpp:")] = float(value)
    return found


def test_every_counter_is_shown() -> None:
    counters = Counters(prompt_tokens=5, prompt_tokens_cached=3, prompt_seconds=0.5, decodes=4, busy_slots=6)
    counters.max_tokens, counters.processing, counters.deferred = 9, 1, 2
    counters.add_prediction(11, 2.0)
    meter = RateMeter()
    shown = readings(exposition(meter.read(counters)).decode())
    assert shown == {
        "prompt_tokens_total": 5,
        "prompt_tokens_cached_total": 3,
        "prompt_seconds_total": 0.5,
        "tokens_predicted_total": 11,
        "tokens_predicted_seconds_total": 2.0,
        "n_decode_total": 4,
        "n_tokens_max": 9,
        "spec_decode_num_draft_tokens_total": 0,
        "spec_decode_num_accepted_tokens_total": 0,
        "spec_decode_num_drafts_total": 0,
        "prompt_tokens_seconds": 10,
        "predicted_tokens_seconds": 5,
        "requests_processing": 1,
        "requests_deferred": 2,
        "n_busy_slots_per_decode": 1.5,
    }
    again = readings(exposition(meter.read(counters)).decode())
    assert (again["prompt_tokens_seconds"], again["predicted_tokens_seconds"]) == (0, 0), "the window was reset"
    assert again["tokens_predicted_total"] == 11


def test_drafts_are_counted_by_position() -> None:
    counters = Counters()
    counters.add_drafts(2, 6, (2, 1))
    counters.add_drafts(1, 3, (1, 1, 1))
    shown = readings(exposition(RateMeter().read(counters)).decode())
    assert shown["spec_decode_num_drafts_total"] == 3
    assert shown["spec_decode_num_draft_tokens_total"] == 9
    assert shown["spec_decode_num_accepted_tokens_total"] == 6
    positions = [shown[f'spec_decode_num_accepted_tokens_per_pos_total{{position="{n}"}}'] for n in range(3)]
    assert positions == [3, 2, 1]


# -- sleep -----------------------------------------------------------------------------------------------------------


def is_asleep(program: Program, query: str = "") -> bool:
    return bool(program.client.get(f"/props{query}").raise_for_status().json()["is_sleeping"])


@pytest.fixture(scope="module")
def sleeper(module_programs: Programs) -> Program:
    """A worker that sleeps after one second. Filling its context takes several seconds."""
    options = ("--ctx-size", "32768", "--threads", "1", "--parallel", "1")
    return module_programs.worker("--alias", "tiny", "--metrics", "--sleep-idle-seconds", "1", *options)


def test_monitoring_does_not_wake_the_model_and_shows_known_values(sleeper: Program) -> None:
    sleeper.client.post("/completion", json={"prompt": "a", "n_predict": 8, "ignore_eos": True}).raise_for_status()
    wait_until(lambda: is_asleep(sleeper), "sleep")
    n_before = sleeper.log_text.count("waking up")  # on a busy machine it sleeps before the first request
    first, second = (readings(sleeper.client.get("/metrics").text) for _ in range(2))
    assert first["predicted_tokens_seconds"] > 0
    assert second["predicted_tokens_seconds"] == 0
    assert first["tokens_predicted_total"] == second["tokens_predicted_total"] >= 8
    assert first["requests_processing"] == 0
    for path in READS:
        assert sleeper.client.get(path).status_code == 200, path
    assert sleeper.client.get("/v1/models").json()["data"][0]["meta"]["n_vocab"] > 0
    assert sleeper.client.get("/v1/stream?conv_id=c").status_code == 404
    assert sleeper.client.post("/v1/streams/lookup", json={"conversation_ids": ["c"]}).json() == []
    assert is_asleep(sleeper)
    assert sleeper.log_text.count("waking up") == n_before


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions/input_tokens", CHAT),
        ("/tokenize", {"content": "a"}),
        ("/slots", None),
    ],
)
def test_endpoints_that_use_the_model_wake_it(sleeper: Program, path: str, body: dict[str, Any] | None) -> None:
    wait_until(lambda: is_asleep(sleeper), "sleep")
    n_before = sleeper.log_text.count("waking up")
    answer = sleeper.client.get(path) if body is None else sleeper.client.post(path, json=body)
    assert answer.status_code == 200
    assert sleeper.log_text.count("waking up") == n_before + 1


def test_a_stream_can_be_read_while_its_model_sleeps(sleeper: Program) -> None:
    body = {"prompt": "a", "n_predict": 3, "stream": True}
    sent = sleeper.client.post("/completion", json=body, headers={"X-Conversation-Id": "c"})
    wait_until(lambda: is_asleep(sleeper), "sleep")
    assert sleeper.client.get("/v1/stream?conv_id=c").content == sent.content
    assert is_asleep(sleeper)


def test_monitoring_through_the_router_does_not_wake_the_model(programs: Programs) -> None:
    gateway = programs.gateway("--slots", presets=SLEEPY)
    body = {"model": "m", "prompt": "a", "n_predict": 2, "stream": True}
    sent = gateway.client.post("/completion", json=body, headers={"X-Conversation-Id": "c"})
    assert sent.status_code == 200
    gateway.wait_for_status("m", "sleeping")
    assert is_asleep(gateway, "?model=m")
    assert readings(gateway.client.get("/metrics?model=m").text)["tokens_predicted_total"] >= 1
    assert gateway.client.get("/v1/stream?conv_id=c").content == sent.content
    assert gateway.models()["m"]["meta"]["n_ctx"] == 512
    assert gateway.status("m") == "sleeping"
    assert "waking up" not in gateway.log_text


# -- properties and control ------------------------------------------------------------------------------------------


def test_properties_can_be_set_only_if_allowed(worker: Program, embedder: Program) -> None:
    for content in (b"", b"{}", b'{"anything": 1}'):
        assert worker.client.post("/props", content=content).json() == {"success": True}
    refused = embedder.client.post("/props", json={})
    assert refused.status_code == 501
    assert "--props" in refused.json()["error"]["message"]
    shown = worker.client.get("/props").json()
    assert (shown["endpoint_props"], shown["endpoint_slots"], shown["endpoint_metrics"]) == (True, True, True)


def test_input_tokens_equal_the_rendered_prompts(worker: Program) -> None:
    prompt = worker.client.post("/apply-template", json=CHAT).json()["prompt"]
    tokens = worker.client.post("/tokenize", json={"content": prompt, "add_special": True}).json()["tokens"]
    for path in ("/chat/completions/input_tokens", "/v1/chat/completions/input_tokens"):
        counted = worker.client.post(path, json=CHAT).json()
        assert counted == {"input_tokens": len(tokens), "object": "response.input_tokens"}
    assert worker.client.post("/v1/chat/completions/input_tokens", json={"messages": 5}).status_code == 400


def control(program: Program, **body: Any) -> Any:
    answer = program.client.post("/v1/chat/completions/control", json=body)
    return answer.json()["error"] if answer.status_code == 400 else answer.raise_for_status().json()


def test_control_finds_running_completions(sleeper: Program) -> None:
    endless = {**CHAT, "max_tokens": -1, "ignore_eos": True, "stream": True}
    with sleeper.client.stream("POST", "/v1/chat/completions", json=endless) as response:
        lines = response.iter_lines()  # in a variable: deleting the iterator would close the connection
        id = json.loads(next(lines).removeprefix("data: "))["id"]
        assert re.fullmatch(r"chatcmpl-\w{32}", id)
        expected = {"success": False, "message": "reasoning control not enabled for this completion"}
        assert control(sleeper, id=id, action="reasoning_end") == expected
    unknown = {"success": False, "message": "no active completion for this id"}
    wait_until(lambda: control(sleeper, id=id, action="reasoning_end") == unknown, "the completion to end")
    assert control(sleeper, action="reasoning_end")["message"] == "missing completion id"
    assert control(sleeper, id=5, action="reasoning_end")["message"] == "missing completion id"
    assert control(sleeper, id=id, action="dance")["message"] == "unknown control action"
