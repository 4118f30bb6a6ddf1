"""pydantic-ai: text, each way to structured output, and an agent that calls a tool and then answers."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_ai import Agent, NativeOutput, RunContext, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from weather import KEY, QUESTION, RESULT, Weather, root

provider = OpenAIProvider(base_url=root() + "/v1", api_key=KEY)
SHORT = ModelSettings(max_tokens=16, temperature=0)
BOUND = ModelSettings(max_tokens=200, temperature=0)


class ForcedFirst(AbstractCapability[None]):
    """The first step calls the tool, the second answers: what a trained model does by itself."""

    def get_model_settings(self) -> Any:
        """By the step."""

        def settings(ctx: RunContext[None]) -> ModelSettings:
            return ModelSettings(tool_choice=["get_weather"] if ctx.run_step <= 1 else "none")

        return settings


async def check(model: Any) -> None:
    """Everything with one of the two APIs."""
    agent = Agent(model, instructions="Be brief.", model_settings=SHORT)
    whole = (await agent.run(QUESTION)).output
    assert whole
    async with agent.run_stream(QUESTION) as result:
        pieces = [piece async for piece in result.stream_text(delta=True)]
    assert "".join(pieces).strip() == whole.strip(), (pieces, whole)

    for output in (ToolOutput(Weather), NativeOutput(Weather)):
        structured: Agent[None, Weather] = Agent(model, output_type=output, model_settings=BOUND)
        assert isinstance((await structured.run(QUESTION)).output, Weather)
        async with structured.run_stream(QUESTION) as result:
            assert isinstance(await result.get_output(), Weather)

    asked: list[tuple[str, int]] = []
    loop = Agent(model, instructions="Use tools.", model_settings=BOUND, capabilities=[ForcedFirst()])

    @loop.tool_plain
    def get_weather(city: Literal["Paris", "Oslo"], days: Annotated[int, Field(ge=1, le=9)]) -> str:
        """The weather of a city."""
        asked.append((city, days))
        return RESULT

    answer = await loop.run(QUESTION, model_settings=SHORT | {"max_tokens": 100})
    assert asked
    assert isinstance(answer.output, str)
    usage = answer.usage if not callable(answer.usage) else answer.usage()
    assert usage.requests == 2
    assert usage.input_tokens > 0


async def main() -> None:
    """Both APIs."""
    await check(OpenAIChatModel("any", provider=provider))
    await check(OpenAIResponsesModel("any", provider=provider))


asyncio.run(main())
