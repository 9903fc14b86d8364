"""Frameworks that use OpenAI's API in different ways: llm, LangChain, LlamaIndex, with real tiny models.

They are installed with the extra `clients`; these tests run with --all.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from programs import Program, Programs
from pydantic import BaseModel
from template_files import CALLER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # the frameworks' warnings about themselves
]


class State(BaseModel):
    """What the switch is set to."""

    on: bool
    n: Literal[1, 2]


def switch(on: bool) -> str:
    """Switches it."""
    return f"switched {'on' if on else 'off'}"


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    """The demo model answers questions; the other one has a tool template and calls a tool if it must."""
    source = module_programs.directory / "tools.jinja"
    source.write_text(CALLER)
    demo = Path(__file__).resolve().parents[2] / "presets" / "demo"
    return module_programs.gateway(
        presets=f"""
[*]
threads = 1
parallel = 2
ctx-size = 2048

[demo]
model = {demo}/demo-chat.gguf

[tools]
model = {{models}}/tiny-llama.gguf
chat-template-file = {source}

[embed]
model = {{models}}/tiny-bert.gguf
embeddings = true
"""
    )


@pytest.fixture
def url(gateway: Program) -> str:
    return f"{gateway.url}/v1"


PARIS = "What is the capital of France?"

# -- llm -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def llm_home(url: str, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"""
- {{model_id: chat, model_name: demo, api_base: "{url}"}}
- {{model_id: responses, model_name: demo, api_base: "{url}", responses: true}}
- {{model_id: tools, model_name: tools, api_base: "{url}", supports_tools: true, supports_schema: true}}
- {{model_id: text, model_name: tools, api_base: "{url}", completion: true}}
"""
    )
    return {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}


def llm(home: dict[str, str], *args: str) -> str:
    command = [sys.executable, "-m", "llm", *args]
    done = subprocess.run(command, env=home, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("model", ["chat", "responses"])
def test_llm_prompts_streams_and_continues(llm_home: dict[str, str], model: str) -> None:
    assert "Clara" in llm(llm_home, "-m", model, "--no-stream", "-o", "temperature", "0", "My name is Clara.")
    assert "Clara" in llm(llm_home, "-c", "-o", "temperature", "0", "What is my name?")


def test_llm_requests_json_and_text(llm_home: dict[str, str]) -> None:
    schema = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}'
    assert '"n"' in llm(llm_home, "-m", "tools", "--schema", schema, "-o", "temperature", "0", "Hi")
    assert llm(llm_home, "-m", "text", "-o", "max_tokens", "5", "Once")


# -- LangChain -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def langchain(request: pytest.FixtureRequest, url: str) -> Any:
    """Return a function that makes a chat model for one of OpenAI's two APIs."""
    module = importlib.import_module("langchain_openai")

    def make(model: str, **fields: Any) -> Any:
        return module.ChatOpenAI(
            model=model,
            base_url=url,
            api_key="none",
            max_retries=0,
            temperature=0,
            use_responses_api=request.param,
            **fields,
        )

    return make


def test_langchain_invokes_and_streams(langchain: Any) -> None:
    model = langchain("demo")
    answer = model.invoke(PARIS)
    assert "Paris" in answer.text
    assert answer.usage_metadata["output_tokens"] > 2
    streamed = None
    for chunk in model.stream([("user", PARIS)]):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert "Paris" in streamed.text


async def test_langchain_async(langchain: Any) -> None:
    async def ask() -> str:
        async with httpx.AsyncClient() as http:
            return str((await langchain("demo", http_async_client=http).ainvoke(PARIS)).text)

    assert "Paris" in await ask()


def test_langchain_calls_tools(langchain: Any) -> None:
    tools = importlib.import_module("langchain_core.tools")
    tool = tools.tool(switch)
    model = langchain("tools", max_tokens=300).bind_tools([tool], tool_choice="switch", parallel_tool_calls=False)
    answer = model.invoke("Hi")
    (call,) = answer.tool_calls
    assert call["name"] == "switch"
    assert isinstance(call["args"]["on"], bool)
    result = tool.invoke(call)
    assert result.content.startswith("switched")
    assert langchain("tools", max_tokens=3).invoke([("user", "Hi"), answer, result]).text
    streamed = None
    for chunk in model.stream("Hi"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert streamed.tool_calls[0]["args"] == call["args"]


def test_langchain_gets_objects(langchain: Any) -> None:
    model = langchain("tools", max_tokens=300).with_structured_output(State, method="json_schema")
    assert isinstance(model.invoke("Hi"), State)


def test_langchain_embeds(url: str) -> None:
    module = importlib.import_module("langchain_openai")
    # without this check it sends texts; with it, tokens of OpenAI's tokenizer
    embeddings = module.OpenAIEmbeddings(model="embed", base_url=url, api_key="none", check_embedding_ctx_length=False)
    assert len(embeddings.embed_documents(["one", "two"])) == 2


# -- LlamaIndex ------------------------------------------------------------------------------------------------------


def like(url: str, model: str, **fields: Any) -> Any:
    module = importlib.import_module("llama_index.llms.openai_like")
    return module.OpenAILike(
        model=model,
        api_base=url,
        api_key="none",
        is_chat_model=True,
        temperature=0,
        max_retries=0,
        context_window=2048,
        **fields,
    )


async def test_llama_index_chats_and_streams(url: str) -> None:
    model = like(url, "demo")
    assert "Paris" in model.complete(PARIS).text
    from llama_index.core.llms import ChatMessage

    messages = [ChatMessage(role="user", content=PARIS)]
    assert "Paris" in model.chat(messages).message.content
    *_, last = model.stream_chat(messages)
    assert "Paris" in last.message.content

    async def ask() -> str:
        async with httpx.AsyncClient() as http:
            return str((await like(url, "demo", async_http_client=http).achat(messages)).message.content)

    assert "Paris" in await ask()


def test_llama_index_calls_tools(url: str) -> None:
    model = like(url, "tools", is_function_calling_model=True, max_tokens=300)
    from llama_index.core.tools import FunctionTool

    answer = model.chat_with_tools(
        [FunctionTool.from_defaults(switch)], "Hi", tool_required=True, allow_parallel_tool_calls=False
    )
    (call,) = model.get_tool_calls_from_response(answer)
    assert call.tool_name == "switch"
    assert isinstance(call.tool_kwargs["on"], bool)


def test_llama_index_gets_objects(url: str) -> None:
    model = like(url, "tools", should_use_structured_outputs=True, max_tokens=300)
    from llama_index.core.prompts import PromptTemplate

    assert isinstance(model.structured_predict(State, PromptTemplate("Hi")), State)
