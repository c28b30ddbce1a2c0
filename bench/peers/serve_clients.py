"""The server as the clients of others see it: openai, anthropic and llm, against a model of random weights.

    python bench/peers/serve_clients.py ALLUVIUM MODEL

It starts `ALLUVIUM serve --model MODEL` on a free port with an API key, asks every kind of question that it documents,
and compares answers that must be equal: whole and streamed, synchronous and asynchronous, alone and together.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import urllib.request

import anthropic
import openai

KEY = "a-key-of-the-test"
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "size": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["color", "size"],
    "additionalProperties": False,
}
CALM = {"chat_template_kwargs": {"enable_thinking": False}}


def check(condition, what):
    if not condition:
        sys.exit(f"not as it should be: {what}")


def user(text):
    return [{"role": "user", "content": text}]


def chat(client):
    ask = {"model": "any", "messages": user("Hello"), "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    message = whole.choices[0].message
    text = (message.content or "") + (getattr(message, "reasoning_content", None) or "")
    check(whole.usage.completion_tokens == 12 and whole.choices[0].finish_reason == "length", whole)
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    parts = [d.content or getattr(d, "reasoning_content", None) or "" for d in deltas]
    check("".join(parts) == text, (parts, text))
    check(chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == 12, chunks[-1])
    many = client.chat.completions.create(**{**ask, "temperature": 1}, n=3, seed=1, logprobs=True, top_logprobs=2)
    check(len(many.choices) == 3 and len(many.choices[2].logprobs.content) == 12, many)
    check(many.choices[0].logprobs.content[0].top_logprobs[0].logprob <= 0, many)
    return text


def structured(client):
    answer = client.chat.completions.create(
        model="any", messages=user("Describe"), max_tokens=200, extra_body=CALM,
        response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}},
    )
    value = json.loads(answer.choices[0].message.content)
    check(value["color"] in ("red", "green") and 1 <= value["size"] <= 9, value)
    tool = {"type": "function", "function": {"name": "paint", "description": "Paints.", "parameters": SCHEMA}}
    ask = {"model": "any", "messages": user("Paint"), "max_tokens": 200, "tools": [tool], "extra_body": CALM}
    for choice in ("required", {"type": "function", "function": {"name": "paint"}}):
        answer = client.chat.completions.create(**ask, tool_choice=choice)
        call = answer.choices[0].message.tool_calls[0].function
        check(call.name == "paint" and json.loads(call.arguments)["color"] in ("red", "green"), answer)
    with client.chat.completions.stream(**ask, tool_choice="required") as stream:
        final = stream.get_final_completion()
    check(final.choices[0].message.tool_calls[0].function.name == "paint", final)


def completions(client):
    ask = {"model": "any", "prompt": ["The gated", "delta rule"], "max_tokens": 5, "temperature": 0}
    answer = client.completions.create(**ask, logprobs=1, echo=True)
    check(answer.choices[1].text.startswith("delta rule"), answer)
    check(answer.choices[0].logprobs.token_logprobs[0] is None, answer)
    biased = client.completions.create(model="any", prompt="a", max_tokens=3, logit_bias={"100": 100}, logprobs=0)
    check(len(set(biased.choices[0].logprobs.tokens)) == 1, biased)
    vectors = client.embeddings.create(model="any", input=["one", "two"])
    check(abs(sum(x * x for x in vectors.data[0].embedding) - 1) < 1e-5, "the length of an embedding")
    check([model.id for model in client.models.list()], "models")


def responses(client):
    ask = {"model": "any", "instructions": "Be brief.", "input": "Hello", "max_output_tokens": 12, "temperature": 0}
    whole = client.responses.create(**ask)
    check(whole.status == "incomplete" and whole.usage.output_tokens == 12, whole)
    kinds, last = [], None
    for event in client.responses.create(**ask, stream=True):
        kinds.append(event.type)
        last = event
    check(kinds[0] == "response.created" and kinds[-1] == "response.incomplete", kinds)
    check(last.response.output_text == whole.output_text, last)
    tool = {"type": "function", "name": "paint", "parameters": SCHEMA, "strict": True}
    ask = {"model": "any", "input": "<think>\n\n</think>", "tools": [tool], "tool_choice": "required"}
    answer = client.responses.create(**ask, max_output_tokens=300)
    check(any(item.type == "function_call" and item.name == "paint" for item in answer.output), answer)


def messages(client):
    # the package has no argument for it
    greedy = {"temperature": 0}
    ask = {"model": "any", "max_tokens": 12, "messages": user("Hello"), "extra_body": greedy}
    whole = client.messages.create(**ask)
    check(whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 12, whole)
    with client.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()
    texts = [[getattr(block, block.type) for block in message.content] for message in (whole, streamed)]
    check(texts[0] == texts[1], texts)
    tool = {"name": "paint", "input_schema": SCHEMA}
    ask |= {"max_tokens": 200, "tools": [tool], "tool_choice": {"type": "tool", "name": "paint"}}
    called = client.messages.create(**ask, thinking={"type": "disabled"})
    check(called.stop_reason == "tool_use" and called.content[-1].input["color"] in ("red", "green"), called)
    check(client.messages.count_tokens(model="any", messages=user("Hello")).input_tokens > 0, "tokens")


def errors(base):
    def fails(error, ask):
        try:
            ask()
        except error:
            return
        sys.exit(f"expected {error}")

    wrong = openai.OpenAI(base_url=base + "/v1", api_key="another", max_retries=0)
    right = openai.OpenAI(base_url=base + "/v1", api_key=KEY, max_retries=0)
    fails(openai.AuthenticationError, lambda: wrong.models.list())
    fails(openai.NotFoundError, lambda: right.models.retrieve("none"))
    fails(openai.BadRequestError, lambda: right.chat.completions.create(model="any", messages=[]))
    fails(openai.BadRequestError, lambda: right.completions.create(model="any", prompt="a", temperature=3))
    other = anthropic.Anthropic(base_url=base, api_key="another", max_retries=0)
    fails(anthropic.AuthenticationError, lambda: other.messages.create(model="any", max_tokens=1, messages=user("a")))


async def together(base, alone):
    client = openai.AsyncOpenAI(base_url=base + "/v1", api_key=KEY)
    ask = {"model": "any", "messages": user("Hello"), "max_tokens": 12, "temperature": 0}

    async def one():
        message = (await client.chat.completions.create(**ask)).choices[0].message
        return (message.content or "") + (getattr(message, "reasoning_content", None) or "")

    check(set(await asyncio.gather(*(one() for _ in range(12)))) == {alone}, "answers together and alone")
    claude = anthropic.AsyncAnthropic(base_url=base, api_key=KEY)
    answer = await claude.messages.create(model="any", max_tokens=3, messages=user("Hello"))
    check(answer.usage.output_tokens == 3, answer)


def command(base, folder):
    """The `llm` command, which finds its models in a file."""
    with open(os.path.join(folder, "extra-openai-models.yaml"), "w") as file:
        file.write(f"- model_id: ours\n  model_name: any\n  api_base: {base}/v1\n  api_key_name: ours\n")
    environment = {**os.environ, "LLM_USER_PATH": folder}
    llm = os.path.join(os.path.dirname(sys.executable), "llm")
    ask = [llm, "-m", "ours", "--key", KEY, "-o", "max_tokens", "8", "Hello"]
    subprocess.run(ask, check=True, env=environment, capture_output=True, timeout=120)


def main():
    program, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        key_file = os.path.join(folder, "key")
        with open(key_file, "w") as file:
            file.write(KEY)
        serve = [program, "serve", "--model", model, "--port", "0", "--api-key-file", key_file, "--device", "cpu"]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            try:
                base = server.stdout.readline().split()[-1]
                client = openai.OpenAI(base_url=base + "/v1", api_key=KEY)
                alone = chat(client)
                structured(client)
                completions(client)
                responses(client)
                messages(anthropic.Anthropic(base_url=base, api_key=KEY))
                errors(base)
                asyncio.run(together(base, alone))
                command(base, folder)
                page = urllib.request.urlopen(base + "/").read().decode()
                check("<title>Alluvium</title>" in page, "the page")
            finally:
                server.terminate()
                said = server.communicate(timeout=60)
        check(KEY not in "".join(said), "the key is in what the server said")
    print("openai, anthropic and llm get what they ask for")


if __name__ == "__main__":
    main()
