"""Vertex AI's prediction route, on a worker and on a router."""

from __future__ import annotations

from typing import Any

import pytest
from llama_corral.common.base.errors import ConfigError
from llama_corral.common.web.vertex import Vertex, format_of, read_vertex
from llama_corral.presets.options.settings import Settings
from programs import Program, Programs, free_port

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
PRESETS = """
[*]
ctx-size = 512
threads = 1

[one]
model = {models}/tiny-llama.gguf

[two]
model = {models}/tiny-llama-b.gguf
"""


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "chatCompletions"),
        ("/apply-template", "applyTemplate"),
        ("/chat/completions/input_tokens", "chatCompletionsInputTokens"),
        ("/tokenize", "tokenize"),
        ("/v1/messages", "messages"),
    ],
)
def test_names_of_formats(path: str, name: str) -> None:
    assert format_of(path) == name


def test_settings_of_the_platform() -> None:
    assert read_vertex({}) is None
    assert read_vertex({"AIP_MODE": "OTHER", "AIP_HTTP_PORT": "x"}) is None
    assert read_vertex({"AIP_MODE": "PREDICTION"}) == Vertex(8080, "/predict", "")
    asked = {"AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": "9", "AIP_PREDICT_ROUTE": "p", "AIP_HEALTH_ROUTE": "h/x"}
    vertex = read_vertex(asked)
    assert vertex == Vertex(9, "/p", "/h/x")
    assert vertex.listening(Settings(port=80)).port == 9
    for port in ("x", "-1", "99999"):
        with pytest.raises(ConfigError, match="AIP_HTTP_PORT"):
            read_vertex({"AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": port})


def predict(program: Program, *instances: Any, route: str = "/predict", **headers: str) -> list[Any]:
    answer = program.client.post(route, json={"instances": list(instances)}, headers=headers)
    assert answer.status_code == 200, answer.text
    predictions: list[Any] = answer.json()["predictions"]
    return predictions


def on_vertex(port: str, **given: str) -> dict[str, str]:
    return {"AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": port, **given}


@pytest.fixture(scope="module")
def server(module_programs: Programs) -> Program:
    port = str(free_port())
    options = ("--alias", "tiny", "--ctx-size", "1024", "--threads", "1", "--parallel", "2", "--metrics")
    argv = [*module_programs.worker_command("tiny-llama.gguf"), "--port", "1", *options, "--api-key", "k"]
    env = on_vertex(port, AIP_HEALTH_ROUTE="/ping")
    program = module_programs.start(argv, address=port, env=env)
    program.client.headers["Authorization"] = "Bearer k"
    return program


def test_each_instance_is_handled_like_a_separate_request(server: Program) -> None:
    headers = {"X-Conversation-Id": "c"}
    predictions = predict(
        server,
        {"@requestFormat": "chatCompletions", **CHAT, "stream": True},
        {"@requestFormat": "/v1/chat/completions", **CHAT},
        {"@requestFormat": "completion", "prompt": "a", "n_predict": 2, "stream": True},
        {"@requestFormat": "completions", "prompt": "a", "max_tokens": 2},
        {"@requestFormat": "tokenize", "content": "a b"},
        {"@requestFormat": "applyTemplate", **CHAT},
        {"@requestFormat": "metrics"},
        {"@requestFormat": "slots"},
        {"@requestFormat": "apiGenerate", "prompt": "a", "options": {"num_predict": 2}},
        **headers,
    )
    chat, again, native, text, tokens, template, metrics, slots, generated = predictions
    assert chat["choices"][0]["message"]["role"] == again["choices"][0]["message"]["role"] == "assistant"
    assert native["tokens_predicted"] == 2
    assert text["object"] == "text_completion"
    assert tokens["tokens"]
    assert "hi" in template["prompt"]
    assert metrics.startswith("# HELP")
    assert len(slots) == 2
    assert generated["eval_count"] == 2
    assert server.client.get("/v1/stream?conv_id=c").status_code == 404


def test_an_error_of_one_instance_is_its_prediction(server: Program) -> None:
    predictions = predict(
        server,
        {"@requestFormat": "tokenize", "content": "a"},
        5,
        {},
        {"@requestFormat": "nope"},
        {"@requestFormat": "/v1/stream"},
        {"@requestFormat": "completion"},
        {"@requestFormat": "chatCompletions", "messages": [], "temperature": "hot"},
    )
    assert "tokens" in predictions[0]
    messages = [prediction["error"]["message"] for prediction in predictions[1:]]
    assert messages[:4] == [
        "each instance must be a JSON object",
        "each instance must include a string @requestFormat",
        "no handler registered for @requestFormat: nope",
        "no handler registered for @requestFormat: /v1/stream",
    ]
    assert [prediction["error"]["code"] for prediction in predictions[1:]] == [400] * 6


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"instances": 5}', '{"instances": [' + "1," * 128 + "1]}"])
def test_a_wrong_request_is_refused(server: Program, content: str) -> None:
    assert server.client.post("/predict", content=content).status_code == 400


def test_the_probe_needs_no_key_but_predictions_do(server: Program) -> None:
    key = {"Authorization": "Bearer wrong"}
    assert server.client.get("/ping", headers=key).json() == {"status": "ok"}
    assert server.client.post("/predict", json={"instances": []}, headers=key).status_code == 401
    assert predict(server) == []
    assert "AIP_HTTP_PORT" in server.log_text


def test_a_conflicting_route_ends_the_program(programs: Programs) -> None:
    for path in ("/completion", "props", "/v1/stream"):
        env = on_vertex(str(free_port()), AIP_PREDICT_ROUTE=path)
        program = programs.worker(env=env, wait="nothing")
        assert program.exit_code() == 1
        assert "AIP_PREDICT_ROUTE" in program.log_text


def test_a_router_predicts_with_several_models(programs: Programs) -> None:
    port = free_port()
    env = on_vertex(str(port), AIP_PREDICT_ROUTE="/vertex")
    gateway = programs.gateway("--api-prefix", "/p", "--slots", presets=PRESETS, env=env, port=port, wait="nothing")
    gateway.client.base_url = f"{gateway.url}/p"
    gateway.wait("ready")
    one, two, unknown, none, health, props = predict(
        gateway,
        {"@requestFormat": "chatCompletions", "model": "one", **CHAT, "stream": True},
        {"@requestFormat": "completion", "model": "two", "prompt": "a " * 200, "n_predict": 100, "n_probs": 50},
        {"@requestFormat": "tokenize", "model": "nobody"},
        {"@requestFormat": "tokenize"},
        {"@requestFormat": "health"},
        {"@requestFormat": "props", "model": "one"},
        route="/vertex",
    )
    assert (one["model"], two["model"], props["model_alias"]) == ("one", "two", "one")
    assert unknown["error"]["message"] == "model 'nobody' not found"
    assert none["error"]["message"] == "model name is missing from the request"
    assert health == {"status": "ok"}
