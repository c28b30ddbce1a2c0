"""Runs DWQ on the same models and batches with mlx-lm and with alluvium, and compares losses and trained tensors.

    PYTHON bench/peers/compare_dwq.py PROGRAM

PYTHON is that of bench/peers/mlx_env.sh, PROGRAM the `alluvium` to compare. Both begin with the same quantized model, take
the samples in the order of the file, and compute with f32 parameters, as the fixtures store them.
"""

import contextlib
import io
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.quant import dwq
from mlx_lm.utils import load

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
BATCH, SAMPLES, LENGTH, LEARNING_RATE = 2, 24, 40, 2e-4
BOUND = 1e-3
# teacher, student: weights of 4 and of 8 bits, of which only the former are trained; a mixture of experts
CASES = [("qwen3_5-f32", "qwen3_5-q4g64"), ("llama-f32", "llama-q4g64"), ("qwen3_next-f32", "qwen3_next-q4g64")]


def samples(folder):
    """Texts of different lengths."""
    words = "the gated delta rule keeps a small state and updates it at every step of the text".split()
    for name, count in [("train", SAMPLES), ("valid", 4)]:
        texts = [" ".join(words[(3 * i + j) % len(words)] for j in range(5 + i % 7)) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def tokens(folder, name, tokenizer):
    rows = []
    for line in (folder / f"{name}.jsonl").read_text().splitlines():
        row = tokenizer.encode(json.loads(line)["text"])
        rows.append((row + [tokenizer.eos_token_id] if row[-1] != tokenizer.eos_token_id else row)[:LENGTH])
    return [(row, 0) for row in rows]


def in_order(dataset, batch_size, max_seq_length, loop=False, seed=None, comm_group=None):
    for first in range(0, len(dataset), batch_size):
        rows = [row for row, _ in dataset[first : first + batch_size]]
        batch = np.zeros((len(rows), max(map(len, rows))), np.int32)
        for to, row in zip(batch, rows):
            to[: len(row)] = row
        yield mx.array(batch), mx.array([(0, len(row)) for row in rows])


class Progress:
    """Stands in for tqdm: keeps the loss of each step, which mlx-lm shows there alone."""

    losses = []

    def __init__(self, iterable, **_):
        self.iterable = iterable

    def __iter__(self):
        return iter(self.iterable)

    def set_description(self, desc):
        Progress.losses.append(float(re.fullmatch(r"loss=(\S+)", desc)[1]))

    @staticmethod
    def write(*_, **__):
        pass


def with_mlx(teacher_path, student_path, folder):
    teacher, tokenizer = load(str(teacher_path))
    student, _ = load(str(student_path))
    dwq.iterate_batches, dwq.tqdm, Progress.losses = in_order, Progress, []
    optimizer = optim.Adam(learning_rate=LEARNING_RATE, bias_correction=True)
    train, valid = (tokens(folder, name, tokenizer) for name in ("train", "valid"))
    with contextlib.redirect_stdout(io.StringIO()):
        dwq.dwq_quantize(
            student, lambda batch, *_, **__: teacher(batch), optimizer, train, valid,
            batch_size=BATCH, max_seq_length=LENGTH, seed=0, dtype=mx.float32,
        )
    return Progress.losses, dict(tree_flatten(student.parameters()))


def with_alluvium(program, teacher_path, student_path, folder):
    command = [
        program, "dwq", "--model", teacher_path, "--quantized-model", student_path, "--mlx-path", folder / "out",
        "--data-path", folder, "--batch-size", BATCH, "--max-seq-length", LENGTH, "--learning-rate", LEARNING_RATE,
        "--sample-order", "file", "--report", folder / "losses.jsonl", "--quiet",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row], mx.load(str(folder / "out" / "model.safetensors"))


def main():
    worst = 0.0
    print(f"{'student':<18} {'first loss':>10} {'last loss':>10} {'losses':>9} {'tensors':>9}")
    for teacher, student in CASES:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            samples(folder)
            paths = [FIXTURES / "models" / name for name in (teacher, student)]
            theirs, their_tensors = with_mlx(*paths, folder)
            ours, our_tensors = with_alluvium(sys.argv[1], *paths, folder)
            assert len(ours) == len(theirs) == SAMPLES // BATCH, (len(ours), len(theirs))
            losses = max(abs(a - b) for a, b in zip(ours, theirs))
            begun = mx.load(str(paths[1] / "model.safetensors"))
            scales = [key for key in our_tensors if key.endswith((".scales", ".biases"))]
            assert any(mx.abs(our_tensors[key] - begun[key]).max().item() > 1e-4 for key in scales), "nothing was trained"
            floats = [key for key in our_tensors if our_tensors[key].dtype != mx.uint32]
            tensors = max(mx.abs(our_tensors[key] - their_tensors[key]).max().item() for key in floats)
            # mlx-lm reads what alluvium wrote
            load(str(folder / "out"))
            print(f"{student:<18} {theirs[0]:>10.4f} {theirs[-1]:>10.4f} {losses:>9.1e} {tensors:>9.1e}", flush=True)
            worst = max(worst, losses, tensors)
    print(f"the largest difference is {worst:.1e}, allowed are {BOUND:.0e}")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
