"""Images and audio through the real worker, and through the gateway to it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from media_files import png, wav
from programs import Program, Programs

MARKER = {"LLAMA_MEDIA_MARKER": "<M>"}
PICTURE, OTHER_PICTURE, SOUND = png(seed=1), png(seed=2), wav()
N_IMAGE = 16  # tokens of any image with mmproj-gemma3


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path.endswith("/a.png")
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(PICTURE) if found else 0))
        self.end_headers()
        if found:
            self.wfile.write(PICTURE)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    (directory / "a.png").write_bytes(PICTURE)
    (directory / "text.png").write_bytes(b"no picture at all")
    return directory


@pytest.fixture(scope="module")
def seer(module_programs: Programs, models: Path, pictures: Path, web: str) -> Program:
    projector, host = str(models / "mmproj-gemma3.gguf"), web.removeprefix("http://")
    options = ["--ctx-size", "1024", "--parallel", "1", "--threads", "1", "--alias", "seer", "--swa-full"]
    media = ["--mmproj", projector, "--media-path", str(pictures), "--media-private-hosts", host]
    return module_programs.worker(*options, *media, model="tiny-gemma3.gguf", env=MARKER)


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    presets = """
[*]
ctx-size = 1024
threads = 1
[seer]
model = {models}/tiny-gemma3.gguf
mmproj = {models}/mmproj-gemma3.gguf
[hearer]
model = {models}/tiny-llama.gguf
mmproj = {models}/mmproj-audio.gguf
[blind]
model = {models}/tiny-llama.gguf
"""
    return module_programs.gateway(presets=presets, env=MARKER)


def image(address: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def chat(*parts: object, **more: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": "What is this?"}, *parts]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0, **more}


def ask(program: Program, body: dict[str, Any], status: int = 200, path: str = "/v1/chat/completions") -> Any:
    response = program.client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def said(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


# -- images ----------------------------------------------------------------------------------------------------------


def test_an_image_gives_the_same_answer_from_every_source(seer: Program, web: str) -> None:
    addresses = [encoded(PICTURE), f"data:image/png;base64,{encoded(PICTURE)}", "file://a.png", f"{web}/a.png"]
    answers = [ask(seer, chat(image(address))) for address in addresses]
    assert len({said(answer) for answer in answers}) == 1
    usage = answers[-1]["usage"]
    assert usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] == 1, "only the last token is new"
    other = ask(seer, chat(image(encoded(OTHER_PICTURE))))
    assert other["usage"]["prompt_tokens"] == usage["prompt_tokens"]
    cached = other["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached <= usage["prompt_tokens"] - N_IMAGE, "another picture is another prompt"


def test_image_tokens_are_counted(seer: Program) -> None:
    text = ask(seer, chat(), path="/v1/chat/completions/input_tokens")["input_tokens"]
    whole = ask(seer, chat(image(encoded(PICTURE))), path="/v1/chat/completions/input_tokens")["input_tokens"]
    assert whole >= text + N_IMAGE
    assert ask(seer, chat(image(encoded(PICTURE))))["usage"]["prompt_tokens"] == whole


def test_a_template_has_the_marker_in_place(seer: Program) -> None:
    body = chat(image(encoded(PICTURE)), {"type": "text", "text": "Or this?"}, image("file://not-read"))
    assert "What is this?<M>Or this?<M>" in ask(seer, body, path="/apply-template")["prompt"]


def test_prompts_with_pictures(seer: Program) -> None:
    def prompt(text: str, *files: str) -> dict[str, Any]:
        return {"prompt_string": text, "multimodal_data": list(files)}

    def complete(prompt: object, status: int = 200) -> Any:
        return ask(seer, {"prompt": prompt, "n_predict": 6, "temperature": 0}, status, "/completion")

    one, two = complete(prompt("Look: <M>", encoded(PICTURE))), complete(prompt("Look: <M>", encoded(OTHER_PICTURE)))
    assert one["prompt"].endswith("Look: <start_of_image><end_of_image>"), "nothing stands for the picture itself"
    both = complete(
        [prompt("Look: <M>", encoded(PICTURE)), "Look:", prompt("Look: <M>", encoded(OTHER_PICTURE)), [5, 6]]
    )
    assert [answer["content"] for answer in (both[0], both[2])] == [one["content"], two["content"]]
    assert both[0]["tokens_evaluated"] >= both[1]["tokens_evaluated"] + N_IMAGE
    assert both[3]["tokens_evaluated"] == 2
    assert complete({"prompt_string": "Look: <M>", "multimodal_data": encoded(PICTURE)})["content"] == one["content"]
    for files in (["malformed"], [""], [], [encoded(PICTURE)] * 2):
        assert complete(prompt("Look: <M>", *files), 400)["type"] == "invalid_request_error"
    assert "multimodal_data" in complete({"prompt_string": "a", "multimodal_data": [5]}, 400)["message"]
    assert "prompt_string" in complete({"prompt_string": ["a", 5], "multimodal_data": ["QQ=="]}, 400)["message"]


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("malformed", "Invalid base64 value"),
        ("aGVsbG8=", "Failed to load image or audio file"),
        ("data:text/html;base64,aGVsbG8=", "Invalid uri format: data:text/html;base64"),
        ("file://text.png", "Failed to load image or audio file"),
        ("file://b.png", "file does not exist or cannot be opened: b.png"),
        ("file://../a.png", "file path is not allowed: ../a.png"),
        ("http://127.0.0.2:1/a.png", "it is not a public address"),
        ("http://169.254.169.254/latest/meta-data", "it is not a public address"),
        ("{web}/missing.png", "it answered with 404"),
    ],
)
def test_images_that_cannot_be_loaded_are_refused(seer: Program, web: str, address: str, error: str) -> None:
    body = chat(image(address.replace("{web}", web)), stream=True)
    assert error in ask(seer, body, 400)["message"]


def test_the_hub_may_be_on_loopback(programs: Programs, models: Path, web: str) -> None:
    options = ["--mmproj", str(models / "mmproj-gemma3.gguf"), "--ctx-size", "512", "--threads", "1"]
    program = programs.worker(*options, model="tiny-gemma3.gguf", env={"HF_ENDPOINT": web})
    assert ask(program, chat(image(f"{web}/a.png")))["usage"]["prompt_tokens"] > N_IMAGE
    other = web.replace("127.0.0.1", "localhost")
    assert "not a public address" in ask(program, chat(image(f"{other}/a.png")), 400)["message"]
    assert "unless --media-path is specified" in ask(program, chat(image("file://a.png")), 400)["message"]


def test_unsupported_media_are_refused(seer: Program, worker: Program) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": encoded(SOUND), "format": "wav"}}
    hint = "hint: if this is unexpected, you may need to provide the mmproj"
    assert ask(seer, chat(sound), 400)["message"] == f"audio input is not supported - {hint}"
    for path in ("/v1/chat/completions", "/v1/chat/completions/input_tokens", "/apply-template"):
        assert ask(worker, chat(image("x")), 400, path)["message"] == f"image input is not supported - {hint}"
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}}
    message = worker.client.post("/v1/messages", json=chat(picture))
    assert message.status_code == 500, "as llama-server's tests expect it in this dialect"
    assert message.headers["x-should-retry"] == "false"
    assert message.json()["error"]["message"] == f"image input is not supported - {hint}"
    prompt = {"prompt_string": "a<M>", "multimodal_data": ["QQ=="]}
    assert "does not support multimodal" in ask(worker, {"prompt": prompt}, 400, "/completion")["message"]


def test_images_in_other_dialects(seer: Program) -> None:
    expected = said(ask(seer, chat(image(encoded(PICTURE)))))
    source = {"type": "base64", "media_type": "image/png", "data": encoded(PICTURE)}
    content = [{"type": "text", "text": "What is this?"}, {"type": "image", "source": source}]
    message = {"role": "user", "content": content}
    answer = ask(seer, {"messages": [message], "max_tokens": 6, "temperature": 0}, path="/v1/messages")
    assert answer["content"][0]["text"] == expected
    url = f"data:image/png;base64,{encoded(PICTURE)}"
    content = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": url}]
    given = {"input": [{"role": "user", "content": content}], "max_output_tokens": 6, "temperature": 0}
    assert ask(seer, given, path="/v1/responses")["output"][0]["content"][0]["text"] == expected


@pytest.fixture(scope="module")
def embedder_of_pictures(module_programs: Programs, models: Path) -> Program:
    projector = str(models / "mmproj-gemma3.gguf")
    alone = ["--parallel", "1"]  # results in a shared batch differ in the last digits
    options = [
        "--ctx-size",
        "512",
        "--threads",
        "1",
        "--embeddings",
        "--pooling",
        "mean",
        "--mmproj",
        projector,
        *alone,
    ]
    return module_programs.worker(*options, model="tiny-gemma3.gguf", env=MARKER)


def test_embeddings_of_pictures(embedder_of_pictures: Program) -> None:
    def embed(*inputs: object, status: int = 200) -> Any:
        answer = ask(embedder_of_pictures, {"input": list(inputs)}, status, "/v1/embeddings")
        return [item["embedding"] for item in answer["data"]] if status == 200 else answer["message"]

    def content(*parts: object) -> dict[str, Any]:
        return {"content": list(parts)}

    look, end = {"type": "text", "text": "Look: "}, {"type": "text", "text": " there"}
    vectors = embed(
        content(look, image(encoded(PICTURE)), end),
        "Look:  there",
        {"prompt_string": "Look: <M> there", "multimodal_data": [encoded(PICTURE)]},
        content(look, image(encoded(OTHER_PICTURE)), end),
        content(look, end),
    )
    assert vectors[0] == vectors[2], "said in two ways"
    assert vectors[0] != vectors[3], "another picture"
    assert vectors[0] != vectors[1] == vectors[4], "text alone"
    assert "Invalid base64" in embed("a", content(image("malformed")), status=400)
    assert "unsupported content" in embed(content({"type": "image"}), status=400)
    assert "must be an array" in embed(content(look) | {"content": "a"}, status=400)


# -- audio, through the gateway --------------------------------------------------------------------------------------


def form(**fields: str) -> dict[str, Any]:
    return {"data": {"model": "hearer", "max_tokens": "8", "temperature": "0", **fields}, "files": {"file": SOUND}}


def transcribed(gateway: Program, given: dict[str, Any]) -> httpx.Response:
    return gateway.client.post("/v1/audio/transcriptions", **given)


def test_a_recording_becomes_text(gateway: Program) -> None:
    whole = transcribed(gateway, form()).raise_for_status().json()
    assert whole["type"] == "transcript.text.done"
    usage = whole["usage"]
    assert (usage["type"], usage["output_tokens"]) == ("tokens", 8)
    assert usage["input_tokens"] > 150, "thirty seconds of sound"
    assert usage["total_tokens"] == usage["input_tokens"] + 8
    lines = transcribed(gateway, form(stream="true")).raise_for_status().text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"] == whole["text"]
    assert {event["type"] for event in events[:-1]} == {"transcript.text.delta"}
    asked = {"type": "text", "text": "Transcribe audio to text"}
    sound = {"type": "input_audio", "input_audio": {"data": encoded(SOUND), "format": "wav"}}
    body = {"messages": [{"role": "user", "content": [asked, sound]}], "max_tokens": 8, "temperature": 0}
    answer = ask(gateway, {"model": "hearer", **body})
    assert (said(answer), answer["usage"]["prompt_tokens"]) == (whole["text"], usage["input_tokens"])


def test_a_stream_of_a_recording_can_be_resumed(gateway: Program) -> None:
    headers = {"X-Conversation-Id": "recording"}
    stream = gateway.client.post("/v1/audio/transcriptions", headers=headers, **form(stream="true")).raise_for_status()
    again = gateway.client.get("/v1/stream", params={"conv_id": "recording"}).raise_for_status()
    assert again.text == stream.text
    assert "transcript.text.done" in again.text


def test_openais_client_transcribes(gateway: Program) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    with client:
        given: dict[str, Any] = {"model": "hearer", "file": ("a.wav", SOUND), "temperature": 0}
        whole = client.audio.transcriptions.create(**given, extra_body={"max_tokens": "8"})
        stream = client.audio.transcriptions.create(**given, stream=True, extra_body={"max_tokens": "8"})
        events = list(stream)
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == whole.text


def test_invalid_forms_are_refused(gateway: Program) -> None:
    no_file = transcribed(gateway, {"data": {"model": "hearer"}, "files": {"other": b"x"}})
    assert (no_file.status_code, no_file.json()["error"]["message"]) == (400, "No input file found for transcription")
    no_form = gateway.client.post("/v1/audio/transcriptions", json={"model": "hearer"})
    assert (no_form.status_code, no_form.json()["error"]["message"]) == (400, "No input file found for transcription")
    for fields in ({"response_format": "srt"}, {"max_tokens": "x"}, {"top_k": "x"}):
        assert transcribed(gateway, form(**fields)).status_code == 400
    broken = {"data": {"model": "hearer"}, "files": {"file": b"no sound at all"}}
    assert "Failed to load image or audio file" in transcribed(gateway, broken).json()["error"]["message"]
    name = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nhearer\r\n--x\r\nContent-Disp'
    packed = b'osition: form-data; name="file"; filename="a"\r\nContent-Encoding: gzip\r\n\r\nno gzip\r\n--x--\r\n'
    for body in (
        name,
        name + packed,
        name + packed.replace(b"gzip", b"odd"),
        name + b"osition: form-data\r\n\r\na\r\n--x--",
    ):
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        answer = gateway.client.post("/v1/audio/transcriptions", content=body, headers=kind)
        assert answer.status_code == 400, answer.text
    for model in ("blind", "seer"):
        refused = transcribed(gateway, form(model=model))
        assert refused.status_code == 501
        assert refused.json()["error"]["message"] == "The current model does not support audio input."


def test_a_large_picture_passes_through_the_gateway(gateway: Program) -> None:
    padded = PICTURE + bytes(15 << 20)  # 20 MiB in base64; data after the end of an image is ignored
    answers = [ask(gateway, {"model": "seer", **chat(image(encoded(data)))}) for data in (PICTURE, padded)]
    assert said(answers[0]) == said(answers[1])


def test_the_gateway_passes_refusals_on(gateway: Program) -> None:
    error = ask(gateway, {"model": "seer", **chat(image("http://127.0.0.1:1/a.png"))}, 400)
    assert "it is not a public address" in error["message"]
