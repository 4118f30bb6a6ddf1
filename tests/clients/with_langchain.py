"""langchain-openai: text, structured output by its three methods, and a tool's call, result and answer."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from weather import KEY, QUESTION, RESULT, Weather, holds, root


@tool(args_schema=Weather)
def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    return RESULT


def check(**more: Any) -> None:
    """Everything with one of the two APIs."""
    given: dict[str, Any] = {"model": "any", "base_url": root() + "/v1", "api_key": KEY, "max_retries": 0}
    given |= {"stream_usage": True, **more}
    short = ChatOpenAI(**given, max_tokens=16, temperature=0)
    asked = [SystemMessage("Be brief."), HumanMessage(QUESTION)]
    whole = short.invoke(asked)
    assert whole.text
    assert whole.usage_metadata
    chunks = list(short.stream(asked))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.usage_metadata
    assert total.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]

    llm = ChatOpenAI(**given, max_tokens=300, temperature=0)
    for method in ("function_calling", "json_schema"):
        structured = llm.with_structured_output(Weather, method=method, strict=True)
        assert isinstance(structured.invoke(QUESTION), Weather), method
        assert isinstance(list(structured.stream(QUESTION))[-1], Weather), method

    bound = llm.bind_tools([get_weather], tool_choice="get_weather", parallel_tool_calls=False)
    called = bound.invoke(asked)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert not called.invalid_tool_calls
    holds(call["args"])
    gathered: Any = None
    for piece in bound.stream(asked):
        gathered = piece if gathered is None else gathered + piece
    (streamed,) = gathered.tool_calls
    assert streamed["name"] == "get_weather"
    holds(streamed["args"])
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    answering = short.bind_tools([get_weather], tool_choice="none")
    answer = answering.invoke([*asked, called, result])
    assert answer.text
    assert not answer.tool_calls


check()
check(use_responses_api=True)
