"""Clients and frameworks with a real chat model: objects of a schema, tools, streams, and eight requests at once.

The model always gets the same small tasks, so the tests check the forms that the clients return and that the model
knows Paris. The frameworks are installed with the extra `clients`; these tests run with --all.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from typing import Any, Literal

import anthropic
import ollama
import openai
import pytest
from programs import Program, Programs
from pydantic import BaseModel
from real_model import CHATML_WITH_TOOLS, smollm2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # the frameworks' warnings about themselves
]

PARIS = "What is the capital of France? Answer in one sentence."
WEATHER = "What is the weather in Rome?"
ASKED: list[Any] = [{"role": "user", "content": PARIS}]
N_AT_ONCE = 8


class City(BaseModel):
    """A city in Europe."""

    name: Literal["Paris", "Rome", "Oslo"]
    is_capital: bool


def weather(city: Literal["Paris", "Rome"]) -> str:
    """Tells the weather in a city."""
    return f"It is sunny in {city}."


PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    template = module_programs.directory / "tools.jinja"
    template.write_text(CHATML_WITH_TOOLS)
    return module_programs.gateway(
        presets=f"""
[smol]
model = {smollm2()}
chat-template-file = {template}
parallel = {N_AT_ONCE}
threads = 1
ctx-size = 8192
"""
    )


@pytest.fixture
def url(gateway: Program) -> str:
    return f"{gateway.url}/v1"


def check_arguments(arguments: Any) -> None:
    assert set(arguments) == {"city"}
    assert arguments["city"] in ("Paris", "Rome")


# -- OpenAI ----------------------------------------------------------------------------------------------------------


def test_openai(url: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    object_ = client.chat.completions.parse(model="smol", messages=ASKED, response_format=City, temperature=0)
    assert isinstance(object_.choices[0].message.parsed, City)

    messages: list[Any] = [{"role": "user", "content": WEATHER}]
    fields: dict[str, Any] = {"model": "smol", "tools": TOOLS, "temperature": 0, "max_tokens": 200}
    with client.chat.completions.stream(messages=messages, tool_choice="required", **fields) as stream:
        answer = stream.get_final_completion().choices[0]
    assert answer.finish_reason == "tool_calls"
    for call in answer.message.tool_calls or ():
        check_arguments(json.loads(call.function.arguments))
    messages.append(answer.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
    for call in answer.message.tool_calls or ():
        messages.append({"role": "tool", "tool_call_id": call.id, "content": weather("Rome")})
    told = client.chat.completions.create(messages=messages, tool_choice="none", **fields)
    assert told.choices[0].message.content

    parsed = client.responses.parse(model="smol", input=PARIS, text_format=City, temperature=0)
    assert isinstance(parsed.output_parsed, City)
    with client.responses.stream(model="smol", input=PARIS, temperature=0, max_output_tokens=40) as events:
        assert "Paris" in events.get_final_response().output_text


async def test_openai_eight_at_once(url: str) -> None:
    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        asked: list[Any] = [{"role": "user", "content": f"I am number {i}. {PARIS}"}]
        stream = await client.chat.completions.create(
            model="smol", messages=asked, temperature=0, max_tokens=40, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(*(ask(client, i) for i in range(N_AT_ONCE)))
    assert ["Paris" in answer for answer in answers] == [True] * N_AT_ONCE


# -- Anthropic -------------------------------------------------------------------------------------------------------


def test_anthropic(gateway: Program) -> None:
    client = anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0)
    fields: dict[str, Any] = {"model": "smol", "max_tokens": 200, "extra_body": {"temperature": 0}}
    schema = {**City.model_json_schema(), "additionalProperties": False}
    object_ = client.messages.create(
        messages=ASKED, output_config={"format": {"type": "json_schema", "schema": schema}}, **fields
    )
    assert City.model_validate_json(object_.content[0].text)  # type: ignore[union-attr]

    tools: Any = [{"name": "weather", "input_schema": PARAMETERS}]
    messages: list[Any] = [{"role": "user", "content": WEATHER}]
    with client.messages.stream(messages=messages, tools=tools, tool_choice={"type": "any"}, **fields) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "tool_use"
    called = [block for block in answer.content if block.type == "tool_use"]
    for block in called:
        check_arguments(block.input)
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": weather("Rome")} for block in called]
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    told = client.messages.create(messages=messages, tools=tools, tool_choice={"type": "none"}, **fields)
    assert told.content[0].type == "text"


async def test_anthropic_eight_at_once(gateway: Program) -> None:
    async def ask(client: anthropic.AsyncAnthropic) -> str:
        async with client.messages.stream(model="smol", messages=ASKED, max_tokens=40) as stream:
            return "".join([text async for text in stream.text_stream])

    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0) as client:
        assert all(await asyncio.gather(*(ask(client) for _ in range(N_AT_ONCE))))


# -- Ollama ----------------------------------------------------------------------------------------------------------


async def test_ollama(gateway: Program) -> None:
    client = ollama.Client(host=gateway.url)
    options = {"temperature": 0, "num_predict": 100}
    object_ = client.chat("smol", ASKED, format=City.model_json_schema(), options=options)
    assert City.model_validate_json(object_.message.content or "")
    pieces = [part.message.content or "" for part in client.chat("smol", ASKED, stream=True, options=options)]
    assert "Paris" in "".join(pieces)
    assert len(pieces) > 3
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    history: list[Any] = [
        {"role": "user", "content": WEATHER},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": weather("Rome")},
    ]
    told = client.chat("smol", history, tools=TOOLS, options=options).message
    assert told.content or told.tool_calls

    several = ollama.AsyncClient(host=gateway.url)
    answers = await asyncio.gather(*(several.chat("smol", ASKED, options=options) for _ in range(N_AT_ONCE)))
    assert ["Paris" in (answer.message.content or "") for answer in answers] == [True] * N_AT_ONCE


# -- LiteLLM ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise it requests a list of prices
    return importlib.import_module("litellm")


@pytest.mark.parametrize("provider", ["openai", "anthropic", "ollama_chat"])
async def test_litellm(litellm: Any, gateway: Program, provider: str) -> None:
    base = gateway.url + ("/v1" if provider == "openai" else "")
    fields = {"model": f"{provider}/smol", "api_base": base, "api_key": "none", "max_tokens": 100, "num_retries": 0}
    object_ = litellm.completion(messages=ASKED, response_format=City, **fields)
    assert City.model_validate_json(object_.choices[0].message.content)

    stream = litellm.completion(messages=ASKED, stream=True, temperature=0, **fields)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    if provider != "ollama_chat":  # that API has no choice of tools
        answer = litellm.completion(
            messages=[{"role": "user", "content": WEATHER}], tools=TOOLS, tool_choice="required", **fields
        )
        assert answer.choices[0].finish_reason == "tool_calls"
        for call in answer.choices[0].message.tool_calls:
            check_arguments(json.loads(call.function.arguments))

    answers = await asyncio.gather(*(litellm.acompletion(messages=ASKED, **fields) for _ in range(N_AT_ONCE)))
    assert all(answer.choices[0].message.content for answer in answers)


# -- instructor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS"])
async def test_instructor(url: str, mode: str) -> None:
    instructor = importlib.import_module("instructor")
    chosen = instructor.Mode[mode]
    fields: dict[str, Any] = {"model": "smol", "response_model": City, "max_retries": 0}
    if mode != "RESPONSES_TOOLS":
        fields["max_tokens"] = 200
    messages = [{"role": "user", "content": f'{PARIS} As JSON like {{"name": "Rome", "is_capital": true}}.'}]
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key="none", max_retries=0), mode=chosen)
    assert isinstance(client.create(messages=messages, temperature=0, **fields), City)
    if mode != "RESPONSES_TOOLS":
        *_, last = client.create_partial(messages=messages, temperature=0, **fields)
        assert City.model_validate(last.model_dump())
    several = instructor.from_openai(openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0), mode=chosen)
    cities = await asyncio.gather(*(several.create(messages=messages, **fields) for _ in range(N_AT_ONCE)))
    assert all(isinstance(city, City) for city in cities)


# -- Pydantic AI -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["OpenAIChatModel", "OpenAIResponsesModel"])
def agent(request: pytest.FixtureRequest, url: str) -> Any:
    """Return a function that makes an agent for one of OpenAI's two APIs and a client."""
    ai = importlib.import_module("pydantic_ai")
    models = importlib.import_module("pydantic_ai.models.openai")
    providers = importlib.import_module("pydantic_ai.providers.openai")

    def make(client: openai.AsyncOpenAI, **fields: Any) -> Any:
        model = getattr(models, request.param)("smol", provider=providers.OpenAIProvider(openai_client=client))
        settings = {"temperature": 0, "max_tokens": 100, "parallel_tool_calls": False}
        return ai.Agent(model, model_settings=settings, retries=0, **fields)

    return make


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)


async def test_pydantic_ai_gets_objects(url: str, agent: Any) -> None:
    native = importlib.import_module("pydantic_ai").NativeOutput(City)
    async with client_of(url) as client:
        assert isinstance((await agent(client, output_type=native).run(PARIS)).output, City)
        runs = await asyncio.gather(*(agent(client, output_type=City).run(PARIS) for _ in range(N_AT_ONCE)))
        assert all(isinstance(run.output, City) for run in runs)


async def test_pydantic_ai_calls_tools_and_streams(url: str, agent: Any) -> None:
    async with client_of(url) as client:
        assert (await agent(client, output_type=weather).run(WEATHER)).output.startswith("It is sunny")
        async with agent(client).run_stream(PARIS) as result:
            assert "Paris" in "".join([text async for text in result.stream_text(delta=True)])


# -- LangChain -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
async def test_langchain(url: str, responses: bool) -> None:
    module = importlib.import_module("langchain_openai")
    tools = importlib.import_module("langchain_core.tools")
    model = module.ChatOpenAI(
        model="smol",
        base_url=url,
        api_key="none",
        max_retries=0,
        temperature=0,
        max_tokens=200,
        use_responses_api=responses,
    )
    assert isinstance(model.with_structured_output(City, method="json_schema").invoke(PARIS), City)
    assert isinstance(model.with_structured_output(City, method="function_calling").invoke(PARIS), City)
    assert "Paris" in "".join(chunk.text for chunk in model.stream(PARIS))

    tool = tools.tool(weather)
    asked = [("user", WEATHER)]
    answer = model.bind_tools([tool], tool_choice="any").invoke(asked)
    assert answer.tool_calls
    results = [tool.invoke(call) for call in answer.tool_calls]
    assert results[0].content.startswith("It is sunny")
    assert model.invoke([*asked, answer, *results]).text

    answers = await model.abatch([PARIS] * N_AT_ONCE)
    assert ["Paris" in answer.text for answer in answers] == [True] * N_AT_ONCE
