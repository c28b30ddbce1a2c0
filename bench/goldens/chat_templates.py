#!/usr/bin/env python3
"""Renders chat templates as transformers does: `chat_templates.py fixtures/chat_templates [--show TEMPLATE CONVERSATION]`.

The folder has templates (`*.jinja`). Writes `conversations.json`, and `goldens.json` with the hash (FNV-1a, 64 bits) of each
rendering by template, in the order of the conversations; `null` is an error. The clock stands at 2026-02-03 16:05:09.
"""

import datetime
import json
import pathlib
import sys

from transformers.utils.chat_template_utils import _compile_jinja_template

NOW = datetime.datetime(2026, 2, 3, 16, 5, 9)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def function(name, description, properties, required):
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = function(
    "get_weather", "The weather of a city.",
    {"city": {"type": "string", "description": "The city."}, "unit": {"type": "string", "enum": ["°C", "°F"]}}, ["city"],
)
BOOK = function(
    "book", "Books a \"room\"\nfor guests.",
    {
        "room": {
            "type": "object", "description": "A room.",
            "properties": {"floor": {"type": "integer"}, "view": {"type": ["string", "null"], "default": None}},
        },
        "nights": {"type": "array", "items": {"type": "number"}, "minItems": 1},
        "late": {"type": "boolean", "default": False},
    }, [],
)
CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Ulm", "unit": "°C"}}}
NESTED = {
    "id": "call67890", "type": "function",
    "function": {"name": "book", "arguments": {
        "room": {"floor": 3, "view": None}, "nights": [1, 2.5, 1e-07, 1e16], "late": True, "note": "a <b> & 'c' \"d\"\n\té\U0001f600\u2028",
    }},
}


def system(text="Be brief."):
    return {"role": "system", "content": text}


def user(text="Hello, who are you?"):
    return {"role": "user", "content": text}


def assistant(text="I am a model.", **more):
    return {"role": "assistant", "content": text, **more}


def tool(text, name="get_weather", call="call12345"):
    return {"role": "tool", "name": name, "content": text, "tool_call_id": call}


def conversation(name, messages, tools=None, generate=True, **variables):
    return {"name": name, "messages": messages, "tools": tools, "add_generation_prompt": generate, **variables}


TURNS = [user("One?"), assistant("Two."), user("Three?"), assistant("Four."), user("Five?")]
TOOLS = [user("Weather in Ulm?"), assistant("", tool_calls=[CALL]), tool("{\"degrees\": 12.0}")]
THOUGHT = assistant("It is 4.", reasoning_content="Two and two\n\nmake four.")
CONVERSATIONS = [
    conversation("a user alone", [user()]),
    conversation("a user alone, no generation prompt", [user()], generate=False),
    conversation("a system prompt", [system(), user()]),
    conversation("several turns", [system(), *TURNS]),
    conversation("ending with an answer", TURNS[:4], generate=False),
    conversation("tools", [system(), user("Weather in Ulm?")], [WEATHER, BOOK]),
    conversation("a call and its result", TOOLS, [WEATHER]),
    conversation("a call, its result and an answer", [system(), *TOOLS, assistant("12 °C."), user("Thanks!")], [WEATHER, BOOK]),
    conversation("nested arguments", [user("Book it."), assistant(None, tool_calls=[NESTED]), tool("done", "book", "call67890")], [BOOK]),
    conversation(
        "two calls at once, arguments as text",
        [user("Both."), assistant("I look.", tool_calls=[CALL, {**NESTED, "function": {"name": "book", "arguments": "{\"late\": true}"}}]),
         tool("12"), tool("done", "book", "call67890")], [WEATHER, BOOK],
    ),
    conversation("reasoning apart", [user("2 + 2?"), THOUGHT, user("Sure?")]),
    conversation("reasoning in the content", [user("2 + 2?"), assistant("<think>\nfour\n</think>\n\nIt is 4."), user("Sure?")]),
    conversation(
        "reasoning before a call",
        [user("Weather?"), assistant("", reasoning_content="I should look.", tool_calls=[CALL]), tool("12"), THOUGHT], [WEATHER],
        generate=False, enable_thinking=True,
    ),
    conversation("thinking off", [system(), user()], enable_thinking=False, thinking=False, reasoning_effort="low"),
    conversation("thinking on", [user()], enable_thinking=True, thinking=True, reasoning_effort="high"),
    conversation(
        "content in parts",
        [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
         {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": " two."}]}],
    ),
    conversation("empty and missing content", [system(""), user(""), {"role": "assistant", "content": ""}, user("?")]),
    conversation("unicode and white space", [system("  naïve\n\n"), user("\t\u00a0日本語 \U0001f469‍\U0001f680 \u2028x\r\n"), assistant(" ok \n"), user("\u3000 Ünï ")]),
    conversation("a long message", [user("<|im_start|> {{ x }} {% y %} word " * 600)]),
    conversation("roles that do not alternate", [user("One."), user("Two."), assistant("Three."), assistant("Four.")]),
    conversation("an unknown role", [user(), {"role": "narrator", "content": "Meanwhile."}]),
    conversation("a developer and a date", [{"role": "developer", "content": "Be kind."}, user()], date_string="01 Jan 2026"),
    conversation("no message", []),
]


def fnv(text):
    hash = 0xCBF29CE484222325
    for byte in text.encode("utf-8", "surrogatepass"):
        hash = (hash ^ byte) * 0x100000001B3 % 2**64
    return f"{hash:016x}"


def render(template, conversation):
    variables = {key: value for key, value in conversation.items() if key != "name"}
    return template.render(**TOKENS, documents=None, **variables)


def main():
    folder = pathlib.Path(sys.argv[1])
    (folder / "conversations.json").write_text(json.dumps(CONVERSATIONS, ensure_ascii=False, indent=1) + "\n")
    goldens = {}
    for path in sorted(folder.glob("*.jinja")):
        try:
            template = _compile_jinja_template(path.read_text())
        except Exception as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            goldens[path.stem] = None
            continue
        template.globals["strftime_now"] = NOW.strftime
        goldens[path.stem] = []
        for conversation in CONVERSATIONS:
            shown = sys.argv[2:] == ["--show", path.stem, conversation["name"]]
            try:
                text = render(template, conversation)
                goldens[path.stem].append(fnv(text))
                if shown:
                    sys.stdout.write(text)
            except Exception as error:
                goldens[path.stem].append(None)
                if shown:
                    print(f"{type(error).__name__}: {error}")
    if len(sys.argv) == 2:
        lines = (f"{json.dumps(name)}: {json.dumps(hashes)}" for name, hashes in goldens.items())
        (folder / "goldens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        errors = sum(hash is None for hashes in goldens.values() for hash in hashes or [None])
        print(f"{len(goldens)} templates, {len(CONVERSATIONS)} conversations, {errors} errors")


if __name__ == "__main__":
    main()
