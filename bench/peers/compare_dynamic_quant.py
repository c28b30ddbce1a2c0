"""Measures sensitivities of the same model on the same tokens with mlx-lm and with alluvium, and compares them.

    PYTHON bench/peers/compare_dynamic_quant.py PROGRAM

PYTHON is that of bench/peers/mlx_env.sh, PROGRAM the `alluvium` to compare. A sensitivity is the gradient of the
divergence times the change of a matrix, so small ones are differences of large sums: differences are relative to the
largest sensitivity of the model.
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
from mlx_lm.quant import dynamic_quant
from mlx_lm.utils import load

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
LENGTH, SAMPLES, BOUND = 24, 8, 1e-3
CASES = [("qwen3_5-f32", 3, 5), ("llama-f32", 4, 5), ("qwen3_next-f32", 2, 4)]


def main():
    program, worst = Path(sys.argv[1]).resolve(), 0.0
    words = "the gated delta rule keeps a small state and updates it at every step of the text".split()
    texts = [" ".join(words[(5 * i + j) % len(words)] for j in range(LENGTH)) for i in range(SAMPLES)]
    print(f"{'model':<16} {'bits':<5} {'modules':>8} {'largest':>10} {'difference':>11}")
    for name, low, high in CASES:
        model_path = FIXTURES / "models" / name
        model, tokenizer = load(str(model_path))
        # the last token of a sample is a target alone
        rows = [tokenizer.encode(text)[: LENGTH - 1] for text in texts]
        assert all(len(row) == LENGTH - 1 for row in rows)
        with contextlib.redirect_stderr(io.StringIO()):
            theirs = dict(dynamic_quant.estimate_sensitivities(model, mx.array(rows), low, 32, high, 32))
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder, "data.jsonl")
            data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            command = [
                program, "dynamic_quant", "--model", model_path, "--data-path", data, "--sequence-length", str(LENGTH),
                "--low-bits", str(low), "--low-group-size", "32", "--high-bits", str(high), "--high-group-size", "32",
                "--target-bpw", "31", "--mlx-path", "out", "--quiet",
            ]
            done = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            ours = dict(json.loads(Path(folder, f"{name}_sensitivities.json").read_text()))
        assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())[:4]
        largest = max(abs(value) for value in theirs.values())
        assert largest > 0.0
        difference = max(abs(ours[key] - theirs[key]) for key in theirs) / largest
        print(f"{name:<16} {low},{high:<3} {len(ours):>8} {largest:>10.3e} {difference:>11.1e}", flush=True)
        worst = max(worst, difference)
    print(f"the largest difference is {worst:.1e}, allowed are {BOUND:.0e}")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
