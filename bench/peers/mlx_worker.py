#!/usr/bin/env python3
"""MLX's side of compare_speed.py: `mlx_worker.py MODEL_DIR [PROMPT TEXT]`; see timing.serve for what it reads and answers.

The driver preloads OpenBLAS: the wheel's own BLAS is the reference one, fifty times slower.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # read by huggingface_hub when it is imported

import mlx.core as mx

mx.set_default_device(mx.cpu)  # before mlx_lm, which makes its generation stream when it is imported

import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm
import numpy as np
from mlx_lm.generate import stream_generate
from mlx_lm.models import gated_delta, qwen3_5
from mlx_lm.tuner.trainer import default_loss

import timing


def normal(*shape):
    return mx.array(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def evaluated(call, *args):
    """A call that waits for its results."""
    mx.eval(args)
    return lambda: mx.eval(call(*args))


def both(name, call, inputs, seeds, compiled=False):
    """The passes of a function: forward, and forward with the gradients of all inputs."""
    way = f" ({name})" if name else ""
    passes = {"forward": call, "forward+backward": lambda *a: mx.vjp(call, list(a[: len(inputs)]), list(a[len(inputs) :]))}
    calls = {}
    for what, run in passes.items():
        args = inputs if what == "forward" else inputs + seeds
        calls[f"{what}{way}"] = evaluated(mx.compile(run) if compiled else run, *args)
    return calls


def matmul():
    calls = {}
    for m, n, k in ((1024, 1024, 1024), (1024, 256, 1024), (1024, 1024, 256)):
        calls[f"NN {m}x{n}x{k}"] = evaluated(lambda a, b: a @ b, normal(m, k), normal(k, n))
        calls[f"NT {m}x{n}x{k}"] = evaluated(lambda a, b: a @ b.T, normal(m, k), normal(n, k))
        calls[f"TN {m}x{n}x{k}"] = evaluated(lambda a, b: a.T @ b, normal(k, m), normal(k, n))
    return calls


def rms_norm():
    inputs, seeds = [normal(4096, 2048), mx.ones(2048)], [normal(4096, 2048)]
    call = lambda x, w: mx.fast.rms_norm(x, w, 1e-6)
    plain = lambda x, w: x * mx.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w
    return both("fast", call, inputs, seeds) | both("compiled", plain, inputs, seeds, compiled=True)


def silu():
    inputs, seeds = [normal(1 << 23)], [normal(1 << 23)]
    return both("", nn.silu, inputs, seeds) | both("compiled", nn.silu, inputs, seeds, compiled=True)


def swiglu():
    inputs, seeds = [normal(1 << 23), normal(1 << 23)], [normal(1 << 23)]
    call = lambda gate, up: nn.silu(gate) * up
    return both("", call, inputs, seeds) | both("compiled", call, inputs, seeds, compiled=True)


def adamw():
    gradient = {"w": normal(1 << 24)}

    def step(compiled):
        parameters = {"w": normal(1 << 24)}
        optimizer = optim.AdamW(1e-3, weight_decay=0.1, bias_correction=True)
        optimizer.init(parameters)
        state = [optimizer.state, parameters]

        def update():
            parameters.update(optimizer.apply_gradients(gradient, parameters))

        run = mx.compile(update, inputs=state, outputs=state) if compiled else update

        def call():
            run()
            mx.eval(state)

        return call

    return {"forward": step(False), "forward (compiled)": step(True)}


def causal_conv1d():
    tokens, channels, taps = 4096, 8192, 4
    pad = lambda x: mx.pad(x, [(0, 0), (taps - 1, 0), (0, 0)])

    def shifts(x, w):
        x = pad(x)
        return sum(x[:, j : j + tokens] * w[:, j, 0] for j in range(taps))

    inputs, seeds = [normal(1, tokens, channels), normal(channels, taps, 1)], [normal(1, tokens, channels)]
    return both("conv1d", lambda x, w: mx.conv1d(pad(x), w, groups=channels), inputs, seeds) | both(
        "shifts", shifts, inputs, seeds
    )


def chunked(q, k, v, g, beta, state=None, mask=None, chunk=32):
    """The gated delta rule chunk by chunk in plain MLX operations, as mlx_lm's gated_delta_ops takes its arguments.

    mlx_lm has no such form; this one is what its users can write.
    """
    tokens, key_heads, keys = q.shape[1:]
    heads, values = v.shape[-2:]
    if heads != key_heads:
        q, k = mx.repeat(q, heads // key_heads, 2), mx.repeat(k, heads // key_heads, 2)
    state = mx.zeros((q.shape[0], heads, values, keys)) if state is None else state
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    decay, beta = mx.log(g).transpose(0, 2, 1), beta.transpose(0, 2, 1)
    out = []
    for s in range(0, tokens, chunk):
        n = min(chunk, tokens - s)
        qs, ks, vs = q[:, :, s : s + n], k[:, :, s : s + n], v[:, :, s : s + n]
        b = beta[:, :, s : s + n, None]
        sums = mx.cumsum(decay[:, :, s : s + n], axis=-1)
        lower = mx.tril(mx.ones((n, n), mx.bool_))
        ratios = mx.exp(mx.where(lower, sums[..., :, None] - sums[..., None, :], -mx.inf))
        strict = -mx.tril((b * ks) @ ks.swapaxes(-1, -2) * ratios, -1)
        inverse, power, step = mx.eye(n) + strict, strict, 1
        while 2 * step < n:  # (I - strict)^-1 by doubling
            power = power @ power
            inverse = inverse + inverse @ power
            step *= 2
        e = mx.exp(sums)[..., None]
        new = inverse @ (b * vs) - (inverse @ (b * e * ks)) @ state.swapaxes(-1, -2)
        out.append((qs * e) @ state.swapaxes(-1, -2) + ((qs @ ks.swapaxes(-1, -2)) * ratios) @ new)
        state = state * e[..., -1:, :] + new.swapaxes(-1, -2) @ (ks * mx.exp(sums[..., -1:] - sums)[..., None])
    return mx.concatenate(out, axis=2).transpose(0, 2, 1, 3), state


LOOP = gated_delta.gated_delta_ops


def gated_delta_rule():
    tokens, heads, width = 1024, 8, 128
    x = normal(1, tokens, heads, width)
    q, k = gated_delta.normalize_qk(x, x, inv_scale=width**-0.5, eps=1e-6)
    random = np.random.default_rng(1)
    g, beta = (mx.array(random.uniform(low, 1, (1, tokens, heads)).astype(np.float32)) for low in (0.8, 0.05))
    inputs = [q, k, x, g, beta, mx.zeros((1, heads, width, width))]
    seeds = [normal(1, tokens, heads, width), normal(1, heads, width, width)]
    loop = lambda *a: list(LOOP(*a))
    return both("loop of mlx-lm", loop, inputs, seeds) | both("chunked", lambda *a: list(chunked(*a)), inputs, seeds)


def attention():
    tokens, heads, width = 2048, 8, 64
    inputs, seeds = [normal(1, heads, tokens, width) for _ in range(3)], [normal(1, heads, tokens, width)]
    scale = width**-0.5

    def plain(q, k, v):
        mask = mx.where(mx.tril(mx.ones((tokens, tokens), mx.bool_)), 0.0, -mx.inf)
        return mx.softmax(scale * q @ k.swapaxes(-1, -2) + mask, axis=-1) @ v

    call = lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")
    return both("fast", call, inputs, seeds) | both("plain", plain, inputs, seeds)


def model_of_four_layers():
    text = dict(
        model_type="qwen3_5_text", hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, vocab_size=1024, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=64, linear_value_head_dim=64, linear_conv_kernel_dim=4, full_attention_interval=4,
        rms_norm_eps=1e-6, max_position_embeddings=4096, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=1e7, partial_rotary_factor=0.25),
    )  # fmt: skip
    return qwen3_5.Model(qwen3_5.ModelArgs.from_dict(dict(model_type="qwen3_5", text_config=text)))


def training():
    rows, tokens = 4, 256

    def step(rule):
        mx.random.seed(0)
        model = model_of_four_layers()
        model.train()
        optimizer = optim.AdamW(1e-3)
        gradients_of = nn.value_and_grad(model, default_loss)
        ids = mx.random.randint(0, 1024, (rows, tokens + 1))
        lengths = mx.array([[0, tokens + 1]] * rows)

        def call():
            gated_delta.gated_delta_ops = rule  # what the model's layers call
            (loss, _), gradients = gradients_of(model, ids, lengths)
            optimizer.update(model, gradients)
            mx.eval(loss, model.parameters(), optimizer.state)

        return call

    return {"step (loop of mlx-lm)": step(LOOP), "step (chunked)": step(chunked)}


def generate():
    model, tokenizer = mlx_lm.load(sys.argv[1])
    prompt, text = (int(tokens) for tokens in sys.argv[2:4] or (512, 64))
    ids = tokenizer.encode("the gated delta rule ") * (prompt // 5 + 2)

    def timed(length, max_tokens, seconds):
        def call():
            for last in stream_generate(model, tokenizer, ids[:length], max_tokens=max_tokens):
                pass
            return seconds(last)

        call.times_itself = True
        return call

    return {
        f"prefill {prompt}": timed(prompt, 1, lambda last: prompt / last.prompt_tps),
        "decode, a token": timed(8, text, lambda last: 1 / last.generation_tps),
    }


CASES = [
    matmul, rms_norm, silu, swiglu, adamw, causal_conv1d, gated_delta_rule, attention, training, generate,
]  # fmt: skip

if __name__ == "__main__":
    timing.serve({case.__name__: case for case in CASES})
