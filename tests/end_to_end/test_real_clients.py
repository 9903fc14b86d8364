"""Clients and frameworks with a real chat model: objects of a schema, tools, streams, and eight requests at once.

Other processors and other batches round differently, so a test asserts only what cannot change with it: the form that
a grammar forces, the reason for which an answer ends, and that the model knows Paris: in that one short answer each
token is far more likely than the next one. Where a call is required, only one is allowed, because a small model repeats
calls until its limit. The frameworks are installed with the extra `clients`; these tests run with --all.
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
LIMIT = 300
"""More tokens than the longest object or call that the schemas below allow, with all white space."""
N_TOLD = 20
"""Tokens of an answer to a tool's result. The model may write anything there, or nothing."""


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
    fields: dict[str, Any] = {"model": "smol", "tools": TOOLS, "temperature": 0, "max_tokens": LIMIT}
    with client.chat.completions.stream(
        messages=messages, tool_choice="required", parallel_tool_calls=False, **fields
    ) as stream:
        answer = stream.get_final_completion().choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.tool_calls is not None
    (call,) = answer.message.tool_calls
    check_arguments(json.loads(call.function.arguments))
    messages.append(answer.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": weather("Rome")})
    fields["max_tokens"] = N_TOLD
    (told,) = client.chat.completions.create(messages=messages, tool_choice="none", **fields).choices
    assert told.finish_reason in ("stop", "length")
    assert not told.message.tool_calls

    parsed = client.responses.parse(model="smol", input=PARIS, text_format=City, temperature=0)
    assert isinstance(parsed.output_parsed, City)
    with client.responses.stream(model="smol", input=PARIS, temperature=0, max_output_tokens=40) as events:
        assert "Paris" in events.get_final_response().output_text


async def test_openai_eight_at_once(url: str) -> None:
    """Eight streams of one question, and eight objects of which each has its own schema with one possible value."""

    async def ask(client: openai.AsyncOpenAI, **fields: Any) -> str:
        stream = await client.chat.completions.create(
            model="smol", messages=ASKED, temperature=0, max_tokens=LIMIT, stream=True, **fields
        )
        choices = [choice async for chunk in stream for choice in chunk.choices]
        assert choices[-1].finish_reason == "stop"
        return "".join(choice.delta.content or "" for choice in choices)

    def only(i: int) -> Any:
        properties = {"number": {"const": i}}
        schema = {"type": "object", "properties": properties, "required": ["number"], "additionalProperties": False}
        return {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(*(ask(client) for _ in range(N_AT_ONCE)))
        objects = await asyncio.gather(*(ask(client, response_format=only(i)) for i in range(N_AT_ONCE)))
    assert ["Paris" in answer for answer in answers] == [True] * N_AT_ONCE
    assert [json.loads(text) for text in objects] == [{"number": i} for i in range(N_AT_ONCE)]


# -- Anthropic -------------------------------------------------------------------------------------------------------


def test_anthropic(gateway: Program) -> None:
    client = anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0)
    fields: dict[str, Any] = {"model": "smol", "max_tokens": LIMIT, "extra_body": {"temperature": 0}}
    schema = {**City.model_json_schema(), "additionalProperties": False}
    object_ = client.messages.create(
        messages=ASKED, output_config={"format": {"type": "json_schema", "schema": schema}}, **fields
    )
    assert City.model_validate_json(object_.content[0].text)  # type: ignore[union-attr]

    tools: Any = [{"name": "weather", "input_schema": PARAMETERS}]
    messages: list[Any] = [{"role": "user", "content": WEATHER}]
    any_one: Any = {"type": "any", "disable_parallel_tool_use": True}
    with client.messages.stream(messages=messages, tools=tools, tool_choice=any_one, **fields) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "tool_use"
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    check_arguments(call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": weather("Rome")}
    messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    fields["max_tokens"] = N_TOLD
    told = client.messages.create(messages=messages, tools=tools, tool_choice={"type": "none"}, **fields)
    assert told.stop_reason in ("end_turn", "max_tokens")
    assert {block.type for block in told.content} <= {"text"}


async def test_anthropic_eight_at_once(gateway: Program) -> None:
    async def ask(client: anthropic.AsyncAnthropic) -> str:
        async with client.messages.stream(
            model="smol", messages=ASKED, max_tokens=40, extra_body={"temperature": 0}
        ) as stream:
            return "".join([text async for text in stream.text_stream])

    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="none", max_retries=0) as client:
        answers = await asyncio.gather(*(ask(client) for _ in range(N_AT_ONCE)))
    assert ["Paris" in answer for answer in answers] == [True] * N_AT_ONCE


# -- Ollama ----------------------------------------------------------------------------------------------------------


async def test_ollama(gateway: Program) -> None:
    client = ollama.Client(host=gateway.url)
    options = {"temperature": 0, "num_predict": LIMIT}
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
    short = {**options, "num_predict": N_TOLD}
    told = client.chat("smol", history, tools=TOOLS, options=short)  # it may call again
    assert told.done_reason in ("stop", "length")
    for further in told.message.tool_calls or ():
        assert further.function.name == "weather"

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
    fields = {"model": f"{provider}/smol", "api_base": base, "api_key": "none", "num_retries": 0}
    fields |= {"temperature": 0, "max_tokens": LIMIT}
    object_ = litellm.completion(messages=ASKED, response_format=City, **fields)
    assert City.model_validate_json(object_.choices[0].message.content)

    stream = litellm.completion(messages=ASKED, stream=True, **fields)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    if provider != "ollama_chat":  # that API has no choice of tools
        fields_of_tools = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
        answer = litellm.completion(messages=[{"role": "user", "content": WEATHER}], **fields_of_tools, **fields)
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls
        check_arguments(json.loads(call.function.arguments))

    answers = await asyncio.gather(*(litellm.acompletion(messages=ASKED, **fields) for _ in range(N_AT_ONCE)))
    assert ["Paris" in answer.choices[0].message.content for answer in answers] == [True] * N_AT_ONCE


# -- instructor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "RESPONSES_TOOLS"])
async def test_instructor(url: str, mode: str) -> None:
    instructor = importlib.import_module("instructor")
    chosen = instructor.Mode[mode]
    fields: dict[str, Any] = {"model": "smol", "response_model": City, "max_retries": 0, "temperature": 0}
    if mode != "RESPONSES_TOOLS":
        fields["max_tokens"] = LIMIT
    messages = [{"role": "user", "content": f'{PARIS} As JSON like {{"name": "Rome", "is_capital": true}}.'}]
    client = instructor.from_openai(openai.OpenAI(base_url=url, api_key="none", max_retries=0), mode=chosen)
    assert isinstance(client.create(messages=messages, **fields), City)
    if mode != "RESPONSES_TOOLS":
        *_, last = client.create_partial(messages=messages, **fields)
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
        settings = {"temperature": 0, "max_tokens": LIMIT, "parallel_tool_calls": False}
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
        max_tokens=LIMIT,
        use_responses_api=responses,
    )
    assert isinstance(model.with_structured_output(City, method="json_schema").invoke(PARIS), City)
    assert isinstance(model.with_structured_output(City, method="function_calling").invoke(PARIS), City)
    assert "Paris" in "".join(chunk.text for chunk in model.stream(PARIS))

    tool = tools.tool(weather)
    asked = [("user", WEATHER)]
    answer = model.bind_tools([tool], tool_choice="any", parallel_tool_calls=False).invoke(asked)
    (call,) = answer.tool_calls
    result = tool.invoke(call)
    assert result.content.startswith("It is sunny")
    told = model.invoke([*asked, answer, result], max_tokens=N_TOLD)
    ends = {told.response_metadata.get(name) for name in ("finish_reason", "status")}
    assert ends & {"stop", "length", "completed", "incomplete"}
    assert not told.tool_calls

    answers = await model.abatch([PARIS] * N_AT_ONCE)
    assert ["Paris" in answer.text for answer in answers] == [True] * N_AT_ONCE
