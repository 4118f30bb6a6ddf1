"""What clients send and what they look for: each row was refused, or told otherwise, once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gguf_factory import make_gguf
from tests.serving import Running, serving

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "temperature": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    model = make_gguf(folder / "tiny.gguf", n_ctx_train=1024, endless=True)
    with serving(model, folder / "log", parallel=2, n_ctx=2048, allow=("host.docker.internal",)) as running:
        yield running


def post(server: Running, body: object, route: str = "chat/completions", **more: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/v1/{route}", json=body, timeout=300, **more)


def text(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 6, "top_k": -1}, {"best_of": 1}, {"suffix": ""}, {"modalities": ["text"]},
        {"repetition_penalty": 1.0}, {"seed": -1}, {"model": "demo"}, {"model": "gpt-9-turbo"}, {"model": None},
        {"user": "x", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}, {"stop": None}, {"stop": ""},
        {"parallel_tool_calls": True}, {"tools": []}, {"tools": None, "tool_choice": None}, {"tool_choice": "none"},
        {"stream_options": None}, {"logprobs": False}, {"response_format": {"type": "text"}}, {"n": 1},
        {"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}, {"verbosity": "low"},
    ],
)  # fmt: skip
def test_what_harmless_clients_send_is_taken(server: Running, more: dict[str, Any]) -> None:
    route = "completions" if "suffix" in more else "chat/completions"
    body = {**({"prompt": "hello", "max_tokens": 3} if "suffix" in more else CHAT), **more}
    response = post(server, body, route)
    assert response.status_code == 200, response.text
    assert response.json()["model"] == server.engine.model_id


def test_minus_one_means_as_much_as_there_is_room_for(server: Running) -> None:
    answer = post(server, {**CHAT, "max_tokens": -1}).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 1024
    more = post(server, {**CHAT, "max_tokens": 100_000}).json()  # a client that doesn't know the context
    assert more["usage"]["total_tokens"] == 1024


def test_a_drawn_seed_is_another_one_each_time(server: Running) -> None:
    seeds = {post(server, {**CHAT, "seed": -1}).json()["usage"]["flashmoe"]["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_parts_are_lines(server: Running) -> None:
    parts = [{"type": "text", "text": "Hey"}, {"type": "text", "text": "there"}]
    one = text(post(server, {**CHAT, "messages": [{"role": "user", "content": parts}]}))
    assert one == text(post(server, {**CHAT, "messages": [{"role": "user", "content": "Hey\nthere"}]}))


def test_a_last_message_of_the_assistants_is_continued(server: Running) -> None:
    whole = text(post(server, {**CHAT, "max_tokens": 12}))
    begun = [*CHAT["messages"], {"role": "assistant", "content": "It is "}]
    usage = post(server, {**CHAT, "messages": begun}).json()["usage"]
    plain = post(server, CHAT).json()["usage"]
    assert usage["prompt_tokens"] - plain["prompt_tokens"] <= 8  # no new turn was opened
    new_turn = post(server, {**CHAT, "messages": begun, "add_generation_prompt": True}).json()["usage"]
    assert new_turn["prompt_tokens"] > usage["prompt_tokens"]
    assert whole


def test_models_are_listed_with_what_a_request_may_have(server: Running) -> None:
    for path in ("/v1/models", "/v1/models/"):
        listed = httpx2.get(server.url + path).json()
        assert listed["object"] == "list"
        assert listed["data"][0]["meta"]["n_ctx"] == 1024
    assert httpx2.get(server.url + "/v1/models/any/name").json()["id"] == server.engine.model_id


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_gets_its_status_while_a_batch_computes(server: Running, stream: bool) -> None:
    long = {**CHAT, "messages": [{"role": "user", "content": "word " * 3000}], "stream": stream}
    busy = threading.Thread(target=lambda: post(server, {**CHAT, "max_tokens": -1}))
    busy.start()
    try:
        response = post(server, long)
    finally:
        busy.join()
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 1024 tokens" in error["message"]
    body = {"max_tokens": 5, "messages": long["messages"], "stream": stream}
    response = post(server, body, "messages")
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert response.json()["error"]["message"].startswith("prompt is too long: ")
    response = post(server, {"input": "word " * 3000, "stream": stream}, "responses")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_megabytes_of_prompt_are_refused_as_a_prompt_that_is_too_long(server: Running) -> None:
    taken = server.engine.in_flight
    response = post(server, {**CHAT, "messages": [{"role": "user", "content": "word " * 200_000}]})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 1024 tokens" in error["message"]
    assert server.engine.in_flight == taken


def test_a_bad_request_is_told_soon_while_a_long_prompt_is_read(server: Running) -> None:
    """No figure is asserted: that many are told before one batch ends shows that none waits for it."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            post(server, {**CHAT, "messages": [{"role": "user", "content": f"{time.time()} " + "word " * 280}]})

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(20):
            bad = {**CHAT, "grammar": "root ::= (", "messages": [{"role": "user", "content": str(i)}]}
            assert post(server, bad).status_code == 400
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_grammar_that_costs_minutes_is_refused_and_others_are_answered(server: Running) -> None:
    costly = {**CHAT, "grammar": "root ::= " + '"a"? ' * 2000 + '"b"'}
    refused: list[httpx2.Response] = []
    thread = threading.Thread(target=lambda: refused.append(post(server, costly)))
    thread.start()
    for _ in range(3):
        assert text(post(server, CHAT))
    thread.join()
    assert refused[0].status_code == 400
    assert "simpler" in refused[0].json()["error"]["message"]


def test_another_host_is_told_how_to_be_allowed(server: Running) -> None:
    response = httpx2.get(server.url + "/v1/models", headers={"Host": "evil.example:8080"})
    assert response.status_code == 400
    assert "--allow-host evil.example" in response.json()["error"]["message"]
    response = httpx2.post(server.url + "/v1/messages", headers={"Host": "evil.example"}, json={})
    assert response.json()["type"] == "error"
    assert httpx2.get(server.url + "/v1/models", headers={"Host": "host.docker.internal:99"}).status_code == 200


def test_several_answers_to_one_prompt(server: Running) -> None:
    body = {**CHAT, "n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 10}
    first = post(server, body).json()
    assert [c["index"] for c in first["choices"]] == [0, 1, 2]
    texts = [c["message"]["content"] for c in first["choices"]]
    assert len(set(texts)) == 3
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] // 3
    streamed = ["", "", ""]
    with httpx2.stream(
        "POST", f"{server.url}/v1/chat/completions", json={**body, "stream": True}, timeout=300
    ) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert all(streamed)
    assert len(set(streamed)) == 3  # other widths round otherwise, so that the texts themselves may part


def test_logprobs_and_biases(server: Running) -> None:
    body = {**CHAT, "logprobs": True, "top_logprobs": 4}
    content = post(server, body).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    for token in content:
        tops = [t["logprob"] for t in token["top_logprobs"]]
        assert tops == sorted(tops, reverse=True)
        assert token["logprob"] == tops[0] <= 0  # greedy
        assert bytes(token["bytes"]).decode("utf-8", "replace") == token["token"]
    first = post(server, {"content": content[0]["token"]}, "../tokenize").json()["tokens"]
    if len(first) == 1:
        biased = post(server, {**body, "logit_bias": {str(first[0]): -100}}).json()
        assert biased["choices"][0]["logprobs"]["content"][0]["token"] != content[0]["token"]
    letter = post(server, {"tokens": [70]}, "../detokenize").json()["content"]
    forced = post(server, {**body, "logit_bias": {"70": 100}, "max_tokens": 3}).json()
    assert forced["choices"][0]["message"]["content"] == 3 * letter


def test_text_completions_in_full(server: Running) -> None:
    body = {"prompt": ["one two", "three"], "max_tokens": 4, "temperature": 0}
    both = post(server, body, "completions").json()["choices"]
    assert [c["index"] for c in both] == [0, 1]
    assert both[1]["text"] == post(server, {**body, "prompt": "three"}, "completions").json()["choices"][0]["text"]
    ids = post(server, {"prompt": "three"}, "../tokenize").json()["tokens"]
    of_ids = post(server, {**body, "prompt": ids, "echo": True}, "completions").json()["choices"][0]
    assert of_ids["text"] == "three" + both[1]["text"]


def test_what_an_evaluator_asks(server: Running) -> None:
    """As lm-evaluation-harness does it: the log probabilities of a continuation, of both ways to give it."""
    context = post(server, {"prompt": "the rest is"}, "../tokenize").json()["tokens"]
    whole = post(server, {"prompt": "the rest is silence"}, "../tokenize").json()["tokens"]
    assert whole[: len(context)] == context
    body = {"prompt": [whole, whole], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1234}
    choices = post(server, body, "completions").json()["choices"]
    told = choices[0]["logprobs"]
    assert told == choices[1]["logprobs"]
    assert len(told["tokens"]) == len(whole) + 1
    assert told["token_logprobs"][0] is None
    assert all(lp <= 0 for lp in told["token_logprobs"][1:])
    assert "".join(told["tokens"][: len(whole)]) == "the rest is silence"
    greedy = [t == max(top, key=top.get) for t, top in zip(told["tokens"][1:], told["top_logprobs"][1:], strict=True)]
    assert greedy[-1]
    # the same tokens one by one: what a prompt says of a token is what an answer says of it
    for i in (2, len(whole) - 1):
        one = {"prompt": whole[:i], "max_tokens": 1, "temperature": 0, "logprobs": 5}
        top = post(server, one, "completions").json()["choices"][0]["logprobs"]["top_logprobs"][0]
        token = told["tokens"][i]
        if token in top:
            assert abs(top[token] - told["token_logprobs"][i]) < 0.05
    nothing = post(server, {**body, "prompt": whole, "max_tokens": 0}, "completions").json()["choices"][0]
    assert nothing["text"] == "the rest is silence"
    assert len(nothing["logprobs"]["tokens"]) == len(whole)


def test_pages_of_named_origins_may_ask(tmp_path: Path) -> None:
    model = make_gguf(tmp_path / "tiny.gguf")
    with serving(model, tmp_path / "log", parallel=1, cors=("http://localhost:3000",), strict_model=True) as server:
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,authorization"}
        url = server.url + "/v1/chat/completions"
        good = httpx2.options(url, headers={"Origin": "http://localhost:3000", **ask})
        assert good.status_code == 200
        assert good.headers["access-control-allow-origin"] == "http://localhost:3000"
        other = httpx2.options(url, headers={"Origin": "http://evil.example", **ask})
        assert "access-control-allow-origin" not in other.headers
        assert post(server, {**CHAT, "model": "another"}).status_code == 404
        assert post(server, {**CHAT, "model": server.engine.model_id}).status_code == 200
