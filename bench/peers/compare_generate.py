#!/usr/bin/env python3
"""Measures a prompt and text after it beside mlx-lm on the CPU: turn by turn, medians, a row a model.

    compare_generate.py [--rounds N] [--prompt TOKENS] [--text TOKENS] [--results FILE.json] MODEL_DIR ...
    compare_generate.py --make DIR

The first builds on `cargo build --release -p alluvium-cli -p alluvium --examples` and on what compare_speed.py asks for.
"Of reading" is the time in which all weights that a token needs are read once at the bandwidth of memory, measured in
the same run on all cores, over the time that a token took. "Memory" is the most that a process of `alluvium generate`
held while it read about 512 tokens and wrote 64, over the bytes of the weights. The measurements are kept in FILE.json, to which a later run adds
its models; the table of all of them is printed as Markdown.

The second makes the models of random weights that the results are of: qwen3_5 of 100 and 560 million parameters.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
from pathlib import Path

from compare_speed import HERE, ROOT, Worker, measure, openblas, text

SIZES = {
    "100m": dict(hidden_size=768, intermediate_size=2304, num_hidden_layers=8, num_attention_heads=8,
                 linear_num_key_heads=6, linear_num_value_heads=12, vocab_size=32768),
    "560m": dict(hidden_size=1536, intermediate_size=4608, num_hidden_layers=12, num_attention_heads=16,
                 linear_num_key_heads=12, linear_num_value_heads=24, vocab_size=65536),
}  # fmt: skip
SAME = dict(
    model_type="qwen3_5_text", num_key_value_heads=2, head_dim=128, full_attention_interval=4, linear_conv_kernel_dim=4,
    linear_key_head_dim=128, linear_value_head_dim=128, max_position_embeddings=4096, rms_norm_eps=1e-6,
    tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e7, partial_rotary_factor=0.25),
)  # fmt: skip
FORMATS = {"q4": [], "q8": ["--q-bits", "8"], "q6": ["--q-bits", "6"], "q3": ["--q-bits", "3"], "mxfp4": ["--q-mode", "mxfp4"]}
TOKENIZER = ROOT / "fixtures/models/qwen3_5-f32"


def make(folder: Path, bin_folder: Path) -> None:
    """Each size in f32, bf16, and quantized from bf16."""

    def run(*command):
        subprocess.run([str(part) for part in command], check=True)

    for name, sizes in SIZES.items():
        plain, half = folder / f"{name}-f32", folder / f"{name}-bf16"
        plain.mkdir(parents=True)
        config = dict(model_type="qwen3_5", text_config=SAME | sizes, tie_word_embeddings=True, eos_token_id=0)
        (plain / "config.json").write_text(json.dumps(config))
        run(bin_folder / "examples/random_model", plain, TOKENIZER, plain)
        run(bin_folder / "alluvium", "convert", "--hf-path", plain, "--mlx-path", half, "--dtype", "bfloat16")
        for bits, flags in FORMATS.items() if name == "100m" else [("q4", [])]:
            run(bin_folder / "alluvium", "quantize", "--model", half, "--mlx-path", folder / f"{name}-{bits}", *flags)


def bytes_of(folder: Path) -> dict:
    """The bytes of all tensors, and of those that every token reads: all but an embedding that is not the head."""
    sizes = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        sizes |= {n: t["data_offsets"][1] - t["data_offsets"][0] for n, t in header.items() if n != "__metadata__"}
    table = sum(size for name, size in sizes.items() if "embed_tokens" in name)
    own_head = any("lm_head" in name for name in sizes)
    return {"all": sum(sizes.values()), "read": sum(sizes.values()) - (table if own_head else 0)}


def peak(alluvium: Path, folder: Path) -> int:
    """The most bytes that a process held which reads about 512 tokens and writes 64."""
    command = [alluvium, "generate", "--model", folder, "--ignore-chat-template", "--max-tokens", "64"]
    process = subprocess.Popen(command + ["--prompt", "the gated delta rule " * 50], stdout=-3, stderr=-3)
    return os.wait4(process.pid, 0)[2].ru_maxrss * 1024


def table(results: dict) -> str:
    lines = [
        "| | read a token | prompt | mlx-lm | ratio | a token | mlx-lm | ratio | of reading | memory |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, seen in results.items():
        cells = [f"{seen['bytes']['read'] / 1e6:.3g} MB"]
        for what in sorted(seen["generate"]["alluvium"], reverse=True):
            ours, theirs = (statistics.median(seen["generate"][who][what]) for who in ("alluvium", "mlx"))
            cells += [f"{what.split()[1]}: {text(ours)}" if "prefill" in what else text(ours), text(theirs)]
            cells.append(f"{theirs / ours:.1f}")
        reading = statistics.median(seen["read"]["alluvium"]["a byte"]) * seen["bytes"]["read"]
        cells += [f"{100 * reading / ours:.0f} %", f"{seen['peak'] / seen['bytes']['all']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seconds = [second for seen in results.values() for second in seen["read"]["alluvium"]["a byte"]]
    return "\n".join(lines + ["", f"Memory is read at {1e-9 / statistics.median(seconds):.1f} GB/s."])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", metavar="MODEL_DIR", type=Path, nargs="*")
    parser.add_argument("--make", metavar="DIR", type=Path, help="make the models of random weights there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--text", type=int, default=64, help="tokens of text, after a prompt of 8")
    parser.add_argument("--results", type=Path, default=ROOT / "target/compare_generate.json")
    parser.add_argument("--built", type=Path, default=ROOT / "target/release", help="where alluvium and examples/ are")
    parser.add_argument("--mlx", type=Path, default=ROOT / "target/mlx-venv/bin/python")
    parser.add_argument("--openblas", type=Path, help="libopenblas.so.0; Debian's when left out")
    args = parser.parse_args()
    if args.make:
        make(args.make, args.built)
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    for model in args.models:
        case = [model, args.prompt, args.text]
        ours = Worker("alluvium", [args.built / "examples/bench_worker", *case], {})
        mlx = Worker("mlx", [args.mlx, HERE / "mlx_worker.py", *case], {"LD_PRELOAD": str(args.openblas or openblas())})
        for worker in (ours, mlx):
            worker.ask("")  # it answers once it has started
        seen = {"read": measure([ours], "read", args.rounds), "generate": measure([ours, mlx], "generate", args.rounds)}
        for worker in (ours, mlx):
            worker.process.stdin.close()
            worker.process.wait()
        results[model.name] = seen | {"bytes": bytes_of(model), "peak": peak(args.built / "alluvium", model)}
        args.results.write_text(json.dumps(results))
    if results:
        print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
