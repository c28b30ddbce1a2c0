"""Fine-tunes the same models on the same batches with mlx-lm and with alluvium, and compares losses and trained tensors.

    PYTHON bench/peers/compare_finetune.py PROGRAM [--all]

PYTHON is that of bench/peers/mlx_env.sh, PROGRAM the `alluvium` to compare. --all runs every case with and without
--mask-prompt, which takes two minutes; without it the cases alternate. Both begin with the same adapter, take the
samples in the order of the file, and run mlx-lm's Adam (without bias correction) or Adafactor for 20 steps.
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.datasets import CacheDataset, create_dataset
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load, save_config

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
STEPS, BATCH = 20, 2
# a rounding that sends a token to another expert changes a mixture, the more so the larger its steps are
LEARNING_RATES = {"qwen3_next-f32": 1e-4}
BOUND = 1e-3
LORA = {"rank": 4, "scale": 10.0, "dropout": 0.0}
# affine weights with f32 scales: mlx sums a product of bf16 scales in bf16 on a CPU
CASES = [
    ("llama-f32", "lora"),
    ("qwen3_5-f32", "dora"),
    ("qwen3_5-f32", "full"),
    ("qwen3_5-q4g64", "lora"),
    ("qwen3_next-f32", "lora"),
    ("llama-f32", "lora", "adafactor"),
]


def samples(folder):
    """Conversations of different lengths, some of several turns."""
    words = "the gated delta rule keeps a small state and updates it at every step of the text".split()
    lines = []
    for i in range(6):
        messages = []
        for turn in range(1 + i % 2):
            messages.append({"role": "user", "content": " ".join(words[i : i + 4 + turn])})
            messages.append({"role": "assistant", "content": " ".join(words[turn : 3 + 2 * i])})
        # mlx-lm masks everything before the last turn, alluvium every prompt: the same for conversations of one turn
        lines.append({"messages": messages[-2:]})
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def in_order(dataset, batch_size, max_seq_length, loop=False, seed=None, comm_group=None):
    """Batches in the order of the file. mlx-lm's own lengths count the token after the last one, which is padding."""
    while True:
        for first in range(0, len(dataset), batch_size):
            rows = [dataset[i] for i in range(first, min(first + batch_size, len(dataset)))]
            width = max(len(tokens) for tokens, _ in rows)
            batch = np.zeros((len(rows), width), np.int32)
            for row, (tokens, _) in zip(batch, rows):
                row[: len(tokens)] = tokens
            yield mx.array(batch), mx.array([(offset, len(tokens) - 1) for tokens, offset in rows])
        if not loop:
            break


class Losses:
    def __init__(self):
        self.losses = []

    def on_train_loss_report(self, report):
        self.losses.append(report["train_loss"])

    def on_val_loss_report(self, report):
        pass


def with_mlx(model_path, kind, masked, optimizer, lines, out):
    mx.random.seed(3)
    model, tokenizer = load(str(model_path))
    model.freeze()
    if kind == "full":
        for layer in model.layers[-2:]:
            layer.unfreeze()
    else:
        linear_to_lora_layers(model, -1, LORA, use_dora=kind == "dora")
    out.mkdir()
    begin = out / "begin.safetensors"
    mx.eval(model.parameters())
    mx.save_safetensors(str(begin), dict(tree_flatten(model.trainable_parameters())))
    dataset = create_dataset(lines, tokenizer, types.SimpleNamespace(mask_prompt=masked))
    arguments = TrainingArgs(
        batch_size=BATCH, iters=STEPS, steps_per_report=1, steps_per_save=STEPS, adapter_file=out / "adapters.safetensors"
    )
    kinds = {"adam": optim.Adam, "adafactor": optim.Adafactor}
    losses, optimizer = Losses(), kinds[optimizer](learning_rate=learning_rate(model_path))
    with contextlib.redirect_stdout(io.StringIO()):
        train(
            model, optimizer, CacheDataset(dataset), None, arguments,
            iterate_batches=in_order, training_callback=losses,
        )
    return losses.losses, begin


def with_alluvium(program, model_path, kind, masked, optimizer, data, begin, out):
    command = [
        program, "finetune", "--model", model_path, "--data", data, "--fine-tune-type", kind,
        "--num-layers", "2" if kind == "full" else "-1", "--batch-size", str(BATCH), "--iters", str(STEPS),
        "--learning-rate", str(learning_rate(model_path)), "--steps-per-report", "1", "--save-every", str(STEPS),
        "--sample-order", "file", "--adapter-path", out, "--resume-adapter-file", begin, "--sample-tokens", "0", "--quiet",
        "--optimizer", optimizer,
    ]
    if kind != "full":
        command += ["--rank", str(LORA["rank"]), "--scale", str(LORA["scale"])]
    if masked:
        command += ["--mask-prompt"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()[1:]]
    return [row["loss"] for row in rows if "loss" in row]


def learning_rate(model_path):
    return LEARNING_RATES.get(model_path.name, 5e-4)


def main():
    program = sys.argv[1]
    worst = 0.0
    print(f"{'model':<16} {'type':<5} {'mask':<5} {'optimizer':<9} {'first loss':>10} {'last loss':>10} {'losses':>9} {'tensors':>9}")
    for index, (name, kind, *other) in enumerate(CASES):
        optimizer = other[0] if other else "adam"
        for masked in [False, True] if "--all" in sys.argv else [index % 2 == 1]:
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                lines, model_path = samples(folder), FIXTURES / "models" / name
                theirs, begin = with_mlx(model_path, kind, masked, optimizer, lines, folder / "mlx")
                ours = with_alluvium(program, model_path, kind, masked, optimizer, folder, begin, folder / "ours")
                assert len(ours) == len(theirs) == STEPS, (len(ours), len(theirs))
                losses = max(abs(a - b) for a, b in zip(ours, theirs))
                a = mx.load(str(folder / "mlx" / "adapters.safetensors"))
                b = mx.load(str(folder / "ours" / "adapters.safetensors"))
                assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())[:4]
                tensors = max(mx.abs(a[key] - b[key]).max().item() for key in a)
                begun = mx.load(str(begin))
                assert any(mx.abs(a[key] - begun[key]).max().item() > 1e-3 for key in a), "nothing was trained"
                # mlx-lm reads what alluvium wrote
                load(str(model_path), adapter_path=str(folder / "ours"))
                print(
                    f"{name:<16} {kind:<5} {str(masked):<5} {optimizer:<9} {theirs[0]:>10.4f} {theirs[-1]:>10.4f} "
                    f"{losses:>9.1e} {tensors:>9.1e}",
                    flush=True,
                )
                worst = max(worst, losses, tensors)
    print(f"the largest difference is {worst:.1e}, allowed are {BOUND:.0e}")
    return 0 if worst <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
