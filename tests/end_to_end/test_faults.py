"""Faults with the real programs: invalid input, invalid files, killed processes, many clients, disconnects."""

from __future__ import annotations

import json
import signal
import socket
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from programs import Program, Programs, complete, wait_until, worker_of

PRESETS = """
[*]
threads = 1
ctx-size = 1024
parallel = 2

[one]
model = {models}/tiny-llama.gguf

[two]
model = {models}/tiny-llama-b.gguf

[three]
model = {models}/tiny-llama-short.gguf
ctx-size = 256
parallel = 1

[endless]
model = {models}/tiny-llama-long.gguf
ctx-size = 65536
parallel = 1

[missing]
model = {models}/there-is-no-such.gguf

[truncated]
model = {models}/truncated.gguf

[text]
model = {models}/not-a-model.gguf
"""


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    return module_programs.gateway("--models-max", "1", presets=PRESETS)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/completion", "/v1/chat/completions", "/tokenize", "/v1/embeddings"])
def test_malformed_json(gateway: Program, path: str) -> None:
    answer = gateway.client.post(path, content=b'{"model": "one", ', headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", ["nobody", "", "one/../two"])
def test_unknown_model(gateway: Program, name: str) -> None:
    answer = complete(gateway, name)
    assert answer.status_code in (400, 404)
    assert set(answer.json()["error"]) >= {"code", "message", "type"}


def test_no_model_named(gateway: Program) -> None:
    answer = gateway.client.post("/completion", json={"prompt": "Hello"})
    assert answer.status_code == 400
    assert "model" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [{"temperature": "hot"}, {"n_predict": "many"}, {"stop": {"a": 1}}, {"prompt": {"b": 2}}, {"stream": "perhaps"}],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_field_types(gateway: Program, fields: dict[str, object], stream: bool) -> None:
    answer = complete(gateway, "one", **{"stream": stream, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_longer_than_the_context(gateway: Program, stream: bool) -> None:
    answer = complete(gateway, "three", prompt="one more time " * 300, stream=stream)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_prompt_tokens"] > error["n_ctx"] == 256


def test_an_unknown_preset_key_is_reported_with_its_line(programs: Programs) -> None:
    text = "[one]\nmodel = {models}/tiny-llama.gguf\nctx-sise = 512\n"
    gateway = programs.gateway("--presets-strict", presets=text, wait="nothing")
    assert gateway.exit_code() == 1
    assert ".ini:3: " in gateway.log_text
    assert "ctx-size" in gateway.log_text
    assert "Traceback" not in gateway.log_text


def test_busy_port_is_one_line(programs: Programs) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        gateway = programs.gateway(presets="[a]\nmodel = {models}/tiny-llama.gguf\n", port=port, wait="nothing")
        assert gateway.exit_code() == 1
    assert str(port) in gateway.log_text
    assert len(gateway.log_text.strip().splitlines()) == 1


def test_the_warning_of_a_missing_file_comes_before_the_error_that_ends_the_start(programs: Programs) -> None:
    gateway = programs.gateway("--host", "192.0.2.1", presets="[a]\nmodel = /none/a.gguf\n", wait="nothing")
    assert gateway.exit_code() == 1
    warning, error = gateway.log_text.strip().splitlines()
    assert warning.endswith(".ini:2: model: no such file: /none/a.gguf")
    assert "192.0.2.1" in error


# -- bad files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing", "truncated", "text"])
def test_bad_file_fails_alone(gateway: Program, name: str) -> None:
    answer = complete(gateway, name)
    assert answer.status_code >= 400
    assert answer.json()["error"]["message"]
    status = gateway.models()[name]["status"]
    assert status["value"] == "unloaded"
    assert status["failed"] is True
    assert complete(gateway, "one").status_code == 200


# -- deaths ----------------------------------------------------------------------------------------------------------


def test_killed_worker_is_replaced(gateway: Program) -> None:
    before = complete(gateway, "one").json()["content"]
    worker = worker_of(gateway, "one")
    worker.kill()
    wait_until(lambda: gateway.status("one") != "loaded", "the death to be noticed")
    assert complete(gateway, "one").json()["content"] == before
    assert worker_of(gateway, "one").pid != worker.pid


def test_worker_killed_in_a_stream_ends_it_with_an_error(gateway: Program) -> None:
    with gateway.client.stream("POST", "/completion", json=endless_body()) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        worker_of(gateway, "endless").kill()
        rest = list(lines)
    errors = [line for line in rest if line.startswith(("error: ", 'data: {"error"'))]
    assert len(errors) == 1
    assert complete(gateway, "endless").status_code == 200


def test_router_killed_leaves_no_orphan(programs: Programs) -> None:
    gateway = programs.gateway(presets=PRESETS)
    with gateway.client.stream("POST", "/completion", json=endless_body()) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert len(gateway.family()) >= 2
        gateway.process.send_signal(signal.SIGKILL)
        gateway.process.wait()
        wait_until(lambda: not gateway.family(), "everything to end", 10)


def test_interrupt_ends_everything_in_order(programs: Programs) -> None:
    gateway = programs.gateway(presets=PRESETS)
    assert complete(gateway, "one").status_code == 200
    assert gateway.stop(signal.SIGINT) in (0, 130)
    assert not gateway.family()
    assert "Traceback" not in gateway.log_text


# -- crowds ----------------------------------------------------------------------------------------------------------


def test_hundred_clients_for_three_models_in_one_place(gateway: Program) -> None:
    """Each request is answered exactly once, by the model that it names."""
    names = ("one", "two", "three")
    alone = {name: complete(gateway, name).json()["content"] for name in names}
    assert len(set(alone.values())) == 3

    def ask(number: int) -> tuple[str, int, str]:
        name = names[number % 3]
        body = {
            "model": name,
            "prompt": "Once upon a time",
            "n_predict": 4,
            "temperature": 0,
            "stream": number % 2 == 0,
        }
        with httpx.Client(base_url=gateway.url, timeout=100, trust_env=False) as client:
            answer = client.post("/completion", json=body)
        return name, answer.status_code, text_of(answer)

    with ThreadPoolExecutor(100) as pool:
        served = Counter(pool.map(ask, range(100)))
    assert served == {(name, 200, alone[name]): 34 if name == "one" else 33 for name in names}


def text_of(answer: httpx.Response) -> str:
    if "event-stream" not in answer.headers["content-type"]:
        return str(answer.json()["content"])
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return "".join(event["content"] for event in events)


# -- clients that leave ----------------------------------------------------------------------------------------------


def endless_body(**fields: object) -> dict[str, object]:
    return {"model": "endless", "prompt": "Once upon a time", "n_predict": -1, "stream": True, **fields}


def is_busy(gateway: Program, model: str) -> bool:
    slots = gateway.client.get("/slots", params={"model": model, "autoload": "false"}).json()
    return any(slot["is_processing"] for slot in slots)


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_stops_the_generation(gateway: Program, stream: bool) -> None:
    assert complete(gateway, "endless").status_code == 200
    with socket.create_connection(("127.0.0.1", int(gateway.address))) as client:
        send(client, endless_body(stream=stream))
        wait_until(lambda: is_busy(gateway, "endless"), "the generation to begin")
    wait_until(lambda: not is_busy(gateway, "endless"), "the generation to stop", 2)
    assert "Traceback" not in gateway.log_text


def test_a_disconnect_removes_the_request_from_the_queue(gateway: Program) -> None:
    """While `endless` is busy it cannot be evicted, so `two` waits; when its client disconnects, it is not loaded."""
    assert complete(gateway, "endless").status_code == 200
    with gateway.client.stream("POST", "/completion", json=endless_body()) as busy:
        lines = busy.iter_lines()
        next(lines)
        with socket.create_connection(("127.0.0.1", int(gateway.address))) as client:
            send(client, {"model": "two", "prompt": "Hi", "n_predict": 1})
            with pytest.raises(TimeoutError):
                expect_bytes(client, 0.3)
        wait_until(lambda: "name=two 499" in gateway.log_text, "the disconnect to be noticed", 2)
        assert gateway.status("two") == "unloaded"
    wait_until(lambda: not is_busy(gateway, "endless"), "the generation to stop", 2)
    assert complete(gateway, "one").status_code == 200
    assert gateway.status("two") == "unloaded"


def test_a_disconnect_while_loading(start_gateway: Callable[..., Program]) -> None:
    gateway = start_gateway("--models-max", "1", presets=PRESETS, env={"LLAMA_SERVER_DEBUG_FAKE_TIMING": "1"})
    with socket.create_connection(("127.0.0.1", int(gateway.address))) as client:
        send(client, {"model": "one", "prompt": "Hi", "n_predict": 1})
        gateway.wait_for_status("one", "loading")
    assert complete(gateway, "two").status_code == 200


def send(client: socket.socket, body: dict[str, object]) -> None:
    content = json.dumps(body).encode()
    client.sendall(b"POST /completion HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))


def expect_bytes(client: socket.socket, seconds: float) -> None:
    client.settimeout(seconds)
    client.recv(1)
