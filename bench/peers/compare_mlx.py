#!/usr/bin/env python3
"""Holds a checkpoint that Alluvium wrote against mlx-lm, in float32 on the CPU.

    compare_mlx.py MODEL_DIR OURS.json

MODEL_DIR is loaded with `mlx_lm.load`, tokenizer included. OURS.json is what Alluvium says of it:

    {"ids": [200 token ids], "logits": "FILE.safetensors", "greedy": [32 token ids], "text": "..."}

`logits` names a file beside OURS.json whose tensor `logits` is [200, V] float32, one row a position.
`greedy` is what follows `ids` at temperature 0. `text` may be absent; if it is there, it must encode to `ids`.

Exits 0 if every check holds, 1 with the reason of each one that does not, 2 if it is called wrongly.
"""

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported

import mlx.core as mx

mx.set_default_device(mx.cpu)  # before mlx_lm, which makes its generation stream when it is imported

import mlx.nn as nn
import mlx_lm
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm import utils
from mlx_lm.generate import generate_step
from mlx_lm.models.switch_layers import QuantizedSwitchLinear

POSITIONS = 200
GREEDY = 32
TOLERANCE = 1e-4  # of each position: |ours - mlx|_2 / |mlx|_2; mlx-lm itself is within 1e-5 of float64


class Mismatch(Exception):
    """One check does not hold; the text says which and by how much."""


def read_ours(path: Path) -> tuple[dict, np.ndarray]:
    """OURS.json and the logits it points to, refused unless they are whole."""
    ours = json.loads(path.read_text(encoding="utf-8"))
    for key, count in (("ids", POSITIONS), ("greedy", GREEDY)):
        if len(ours[key]) != count:
            raise Mismatch(f"`{key}` has {len(ours[key])} tokens, expected {count}")
    logits = mx.load(str(path.parent / ours["logits"]))["logits"]
    if logits.dtype != mx.float32 or logits.ndim != 2 or logits.shape[0] != POSITIONS:
        raise Mismatch(f"`logits` is {logits.dtype} {list(logits.shape)}, expected float32 [{POSITIONS}, V]")
    low, high = min(ours["ids"]), max(ours["ids"])
    if not 0 <= low <= high < logits.shape[1]:  # mlx reads outside its embedding without an error
        raise Mismatch(f"`ids` reach from {low} to {high}, outside of V = {logits.shape[1]}")
    return ours, np.array(logits)


def in_float32(model, folder: Path):
    """The model whose stored numbers are the same and whose arithmetic is in float32.

    A packed embedding of a kind that is not affine gives bfloat16 whatever the dtype of the model is, so such a model is
    built again of the numbers that mlx unpacks.
    """
    packed = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear))
    ]
    if all(module.mode == "affine" for _, module in packed):
        model.set_dtype(mx.float32)
        return model
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if not key.startswith("quantization")}
    kind, arguments = utils._get_classes(config)
    plain = kind(arguments.from_dict(config))
    weights = {
        f"{name}.weight": mx.dequantize(
            m.weight, m.scales, m.get("biases"), group_size=m.group_size, bits=m.bits, mode=m.mode, dtype=mx.float32
        )
        for name, m in packed
    }
    for name, value in tree_flatten(model.parameters()):
        if name not in weights and not name.endswith((".scales", ".biases")):
            weights[name] = value.astype(mx.float32)
    plain.load_weights(list(weights.items()), strict=True)
    plain.eval()
    mx.eval(plain.parameters())
    return plain


def check_text(tokenizer, ours: dict) -> str:
    """Both tokenizers cut the text into the same tokens."""
    if "text" not in ours:
        return "loaded; OURS.json has no `text` to encode"
    theirs = tokenizer.encode(ours["text"])
    if theirs != ours["ids"]:
        at = first_difference(ours["ids"], theirs)
        raise Mismatch(
            f"token {at} differs: ours {ours['ids'][at:at + 4]}, mlx-lm {theirs[at:at + 4]} "
            f"({len(ours['ids'])} and {len(theirs)} tokens), after {tokenizer.decode(theirs[max(0, at - 8):at])!r}"
        )
    return f"text encodes to the same {len(theirs)} tokens"


def check_logits(model, ours: dict, logits: np.ndarray) -> str:
    """Every position's logits agree to TOLERANCE."""
    truth = np.array(model(mx.array([ours["ids"]]))[0].astype(mx.float32)).astype(np.float64)
    if truth.shape != logits.shape:
        raise Mismatch(f"ours are {list(logits.shape)}, mlx-lm's {list(truth.shape)}")
    difference = logits - truth
    relative = np.linalg.norm(difference, axis=1) / np.linalg.norm(truth, axis=1)
    element = np.abs(difference).max(axis=1) / np.sqrt(np.mean(truth**2, axis=1))
    worst = int(relative.argmax())  # a NaN counts as the largest
    figures = (
        f"relative L2 error at most {relative[worst]:.3g} (position {worst}), "
        f"largest difference over the position's RMS {element.max():.3g} (position {int(element.argmax())})"
    )
    wrong = np.flatnonzero(~(relative <= TOLERANCE))
    if wrong.size:
        raise Mismatch(f"{figures}; {wrong.size} of {POSITIONS} positions exceed {TOLERANCE:g}, first {wrong[0]}")
    return f"{figures}; bound {TOLERANCE:g}"


def check_greedy(model, ours: dict) -> str:
    """mlx-lm, with its own prompt cache, goes on with the same tokens."""
    theirs, margins = [], []
    for token, logprobs in generate_step(mx.array(ours["ids"]), model, max_tokens=GREEDY):  # default sampler: argmax
        second, first = np.sort(np.array(logprobs))[-2:]
        theirs.append(token)
        margins.append(float(first - second))
    if theirs != ours["greedy"]:
        at = first_difference(ours["greedy"], theirs)
        raise Mismatch(
            f"token {at} of {GREEDY} is {ours['greedy'][at]}, mlx-lm generates {theirs[at]} "
            f"(ahead of its second choice by {margins[at]:.3g} nats)\n    ours   {ours['greedy']}\n    mlx-lm {theirs}"
        )
    return f"{GREEDY} tokens agree; mlx-lm's smallest margin is {min(margins):.3g} nats"


def first_difference(a: list, b: list) -> int:
    """The first index at which two unequal lists part."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", metavar="MODEL_DIR", type=Path)
    parser.add_argument("ours", metavar="OURS.json", type=Path)
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # keeps its lines in order with those of stderr

    print(", ".join(f"{name} {version(name)}" for name in ("mlx", "mlx-lm", "transformers", "tokenizers", "numpy")))
    if not args.model_dir.is_dir():  # mlx_lm would take the name for a repository on the hub
        parser.error(f"{args.model_dir} is not a folder")
    try:
        ours, logits = read_ours(args.ours)
    except (Mismatch, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        print(f"FAIL {args.ours}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    try:
        model, tokenizer = mlx_lm.load(str(args.model_dir))
    except Exception as error:  # whatever mlx-lm and transformers raise: the checkpoint does not load
        print(f"FAIL load: mlx_lm.load({args.model_dir}): {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    stored = sorted({str(value.dtype).removeprefix("mlx.core.") for _, value in tree_flatten(model.parameters())})
    model = in_float32(model, args.model_dir)
    print(f"{args.model_dir}: {model.model_type} in {', '.join(stored)}, run in float32 on {mx.default_device()}")

    failed = False
    for name, check in (
        ("tokenizer", lambda: check_text(tokenizer, ours)),
        ("logits", lambda: check_logits(model, ours, logits)),
        ("greedy", lambda: check_greedy(model, ours)),
    ):
        try:
            print(f"ok   {name}: {check()}")
        except Mismatch as mismatch:
            failed = True
            print(f"FAIL {name}: {mismatch}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
