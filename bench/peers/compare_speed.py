#!/usr/bin/env python3
"""Measures Alluvium beside MLX and JAX on the CPU: in one run, turn by turn, medians.

    compare_speed.py [--rounds N] [--results FILE.json] [CASE ...]

Each side is a process that waits for the name of a case: `cargo build --release -p alluvium --example bench_worker`,
mlx_worker.py and jax_worker.py. In every round each of them measures the case once (the median of repeats within half
a second, after one that warms up) while the others sleep. A peer that can be written in several ways counts by its fastest. The measurements are
kept in FILE.json, to which a later run adds its cases; the table of all of them is printed as Markdown.

The peers' Pythons, once:

    bench/peers/mlx_env.sh target/mlx-venv
    python3 -m venv target/jax-venv && target/jax-venv/bin/pip install jax==0.10.2

OpenBLAS, because the BLAS in MLX's wheel is the reference one: Debian's libopenblas0-pthread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES = "matmul rms_norm silu swiglu adamw causal_conv1d gated_delta_rule attention training generate".split()
TITLES = {
    "matmul": "matmul {}",
    "rms_norm": "rms_norm [4096, 2048] {}",
    "silu": "silu 8 M {}",
    "swiglu": "swiglu 8 M {}",
    "adamw": "adamw 16 M parameters",
    "causal_conv1d": "causal_conv1d [4096, 8192] K 4 {}",
    "gated_delta_rule": "gated_delta_rule T 1024, 8 heads of 128 {}",
    "attention": "attention T 2048, 8 heads of 64 {}",
    "training": "training step, hybrid 4 x 256, T 256, batch 4",
    "generate": "qwen3_5-f32 golden, {}",
}


class Worker:
    """A process that answers the name of a case with seconds by pass."""

    def __init__(self, name: str, command: list, environment: dict):
        self.name = name
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def ask(self, case: str) -> dict:
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()} at {case}")
        time.sleep(0.1)  # its threads fall asleep before the next worker begins
        return json.loads(line)


def openblas() -> Path:
    """The OpenBLAS that is preloaded under MLX."""
    found = sorted(Path("/usr/lib").glob("*/openblas-pthread/libopenblas.so.0"))
    if not found:
        raise SystemExit("OpenBLAS is not there: apt-get install libopenblas0-pthread, or name it with --openblas")
    return found[0]


def measure(workers: list, case: str, rounds: int) -> dict:
    """All measurements of a case: worker, pass, seconds of each round."""
    seen = {}
    for number in range(rounds):
        for worker in workers:
            for what, seconds in worker.ask(case).items():
                seen.setdefault(worker.name, {}).setdefault(what, []).append(seconds)
        print(f"{case}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return seen


def split(what: str) -> tuple:
    """`forward (shifts)` as pass and way."""
    name, _, way = what.partition(" (")
    return name, way.rstrip(")")


def text(seconds: float) -> str:
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"


def table(results: dict) -> str:
    """One row for each pass: our median, each peer's by its ways, and how often we go into the fastest."""
    lines = ["| | Alluvium | MLX + OpenBLAS | JAX | fastest peer / Alluvium |", "|---|---:|---|---|---:|"]
    for case in CASES:
        ours = results.get(case, {}).get("alluvium", {})
        for what, seconds in ours.items():
            own = statistics.median(seconds)
            cells, peers = [], []
            for peer in ("mlx", "jax"):
                ways = {split(w)[1]: statistics.median(s) for w, s in results[case].get(peer, {}).items() if split(w)[0] == what}
                peers += ways.values()
                by_time = sorted(ways.items(), key=lambda pair: pair[1])
                cells.append(", ".join(f"{text(s)}{f' ({way})' if way else ''}" for way, s in by_time) or "–")
            ratio = f"{min(peers) / own:.2f}" if peers else "–"
            title = TITLES[case].format({"forward+backward": "both passes"}.get(what, what))
            lines.append(f"| {title} | {text(own)} | {cells[0]} | {cells[1]} | {ratio} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", metavar="CASE", nargs="*", help=f"of {' '.join(CASES)}; all when none is given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=ROOT / "target/compare_speed.json")
    parser.add_argument("--worker", type=Path, default=ROOT / "target/release/examples/bench_worker")
    parser.add_argument("--model", type=Path, default=ROOT / "fixtures/models/qwen3_5-f32")
    parser.add_argument("--mlx", type=Path, default=ROOT / "target/mlx-venv/bin/python")
    parser.add_argument("--jax", type=Path, default=ROOT / "target/jax-venv/bin/python")
    parser.add_argument("--openblas", type=Path, help="libopenblas.so.0; Debian's when left out")
    parser.add_argument("--table", action="store_true", help="only print the table of FILE.json")
    args = parser.parse_args()

    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    if not args.table:
        unknown = set(args.cases) - set(CASES)
        if unknown:
            parser.error(f"there is no case {', '.join(sorted(unknown))}; known are {' '.join(CASES)}")
        for path in (args.worker, args.mlx, args.jax):
            if not path.exists():
                parser.error(f"{path} is not there; --help says how it is made")
        workers = [
            Worker("alluvium", [args.worker, args.model], {}),
            Worker("mlx", [args.mlx, HERE / "mlx_worker.py", args.model], {"LD_PRELOAD": str(args.openblas or openblas())}),
            Worker("jax", [args.jax, HERE / "jax_worker.py"], {"JAX_PLATFORMS": "cpu"}),
        ]
        for worker in workers:
            worker.ask("")  # it answers once it has started
        for case in args.cases or CASES:
            results[case] = measure(workers, case, args.rounds)
            args.results.write_text(json.dumps(results))
        for worker in workers:
            worker.process.stdin.close()
            worker.process.wait()
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
