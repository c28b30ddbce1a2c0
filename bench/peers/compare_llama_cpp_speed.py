"""Compares the speed of generation with llama.cpp's on the CPU, turn by turn.

    python3 bench/peers/compare_llama_cpp_speed.py ROUNDS NAME=COMMAND NAME=COMMAND…

Each command is a worker that answers a line of its input with a line of JSON: the seconds of a prompt, and those of a
token. One works while the others wait, in another order each round, so that a busy machine disturbs all alike. The
first name is the peer: a ratio is its time over that of the others, the median of the rounds' ratios with the
quartiles; above 1 the other is faster.

Ours is `cargo run --release -p alluvium --example generate_worker -- MODEL ISA BITS THREADS PROMPT TEXT`; theirs is
`bench/peers/llama_worker.cpp`, linked with the `llama` and `ggml` libraries of PyPI's `llama-cpp-python` (its source
package has the full tree; `cmake -DGGML_NATIVE=OFF` builds for AVX2 alone).
"""

import json
import shlex
import statistics
import subprocess
import sys


def main():
    rounds = int(sys.argv[1])
    commands = dict(arg.split("=", 1) for arg in sys.argv[2:])
    workers = {name: start(command) for name, command in commands.items()}
    seen = {name: [] for name in workers}
    for worker in workers.values():
        ask(worker)
    for i in range(rounds):
        names = list(workers)
        for name in names[i % len(names):] + names[: i % len(names)]:
            seen[name].append(ask(workers[name]))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    peer, *others = workers
    for what in ("prompt", "token"):
        for name in workers:
            print(f"{what}: {name} {statistics.median(answer[what] for answer in seen[name]) * 1e3:.2f} ms")
        for name in others:
            ratios = sorted(a[what] / b[what] for a, b in zip(seen[peer], seen[name]))
            low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
            print(f"{what}: {peer} / {name} {statistics.median(ratios):.2f} [{low:.2f}-{high:.2f}]")


def start(command):
    return subprocess.Popen(shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker):
    worker.stdin.write("\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


if __name__ == "__main__":
    main()
