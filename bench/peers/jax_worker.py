#!/usr/bin/env python3
"""JAX's side of compare_speed.py, all of it under jit; see timing.serve for what it reads and answers."""

import jax
import jax.numpy as jnp
import numpy as np

import timing


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def evaluated(call, *args):
    call = jax.jit(call)
    return lambda: jax.block_until_ready(call(*args))


def both(name, call, inputs, seeds):
    """The passes of a function: forward, and forward with the gradients of all inputs."""
    way = f" ({name})" if name else ""

    def gradients(inputs, seeds):
        results, pull = jax.vjp(call, *inputs)
        return results, pull(seeds)

    return {f"forward{way}": evaluated(call, *inputs), f"forward+backward{way}": evaluated(gradients, inputs, seeds)}


def matmul():
    calls = {}
    for m, n, k in ((1024, 1024, 1024), (1024, 256, 1024), (1024, 1024, 256)):
        calls[f"NN {m}x{n}x{k}"] = evaluated(lambda a, b: a @ b, normal(m, k), normal(k, n))
        calls[f"NT {m}x{n}x{k}"] = evaluated(lambda a, b: a @ b.T, normal(m, k), normal(n, k))
        calls[f"TN {m}x{n}x{k}"] = evaluated(lambda a, b: a.T @ b, normal(k, m), normal(k, n))
    return calls


def rms_norm():
    call = lambda x, w: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * w
    return both("", call, [normal(4096, 2048), jnp.ones(2048)], normal(4096, 2048))


def silu():
    return both("", jax.nn.silu, [normal(1 << 23)], normal(1 << 23))


def swiglu():
    return both("", lambda gate, up: jax.nn.silu(gate) * up, [normal(1 << 23), normal(1 << 23)], normal(1 << 23))


def adamw():
    rate, beta1, beta2, eps, decay = 1e-3, 0.9, 0.999, 1e-8, 0.1

    def update(p, gradient, m, v, step):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient * gradient
        scaled = (m / (1 - beta1**step)) / (jnp.sqrt(v / (1 - beta2**step)) + eps)
        return p - rate * (scaled + decay * p), m, v

    run = jax.jit(update, donate_argnums=(0, 2, 3))
    n = 1 << 24
    state, gradient, step = [normal(n), jnp.zeros(n), jnp.zeros(n)], normal(n), jnp.float32(7)

    def call():
        state[:] = jax.block_until_ready(run(state[0], gradient, state[1], state[2], step))

    return {"forward": call}


def causal_conv1d():
    tokens, channels, taps = 4096, 8192, 4

    def shifts(x, w):
        x = jnp.pad(x, ((0, 0), (taps - 1, 0), (0, 0)))
        return sum(x[:, j : j + tokens] * w[:, j] for j in range(taps))

    # lax.conv_general_dilated with a group for each channel takes three times as long at a thirtieth of this size
    inputs, seed = [normal(1, tokens, channels), normal(channels, taps)], normal(1, tokens, channels)
    return both("shifts", shifts, inputs, seed)


def recurrent(q, k, v, decay, beta):
    """Token by token: [T, H, D] each, [T, H] the gates."""

    def step(state, token):
        q, k, v, decay, beta = token
        state = state * decay[:, None, None]
        missing = (v - jnp.einsum("hvk,hk->hv", state, k)) * beta[:, None]
        state = state + missing[..., None] * k[:, None, :]
        return state, jnp.einsum("hvk,hk->hv", state, q)

    state = jnp.zeros((q.shape[1], v.shape[2], k.shape[2]))
    state, out = jax.lax.scan(step, state, (q, k, v, decay, beta))
    return out, state


def chunked(q, k, v, decay, beta, chunk=64):
    """The same chunk by chunk: a scan over chunks. (A triangular solve in the scan, jax.scipy's, never returns here.)"""
    cut = lambda x: x.reshape(-1, chunk, *x.shape[1:]).swapaxes(1, 2)  # [N, H, C, ..]
    lower = jnp.tril(jnp.ones((chunk, chunk), bool))

    def step(state, part):
        q, k, v, decay, beta = part
        sums = jnp.cumsum(jnp.log(decay), -1)
        ratios = jnp.exp(jnp.where(lower, sums[:, :, None] - sums[:, None, :], -jnp.inf))
        strict = -jnp.tril(beta[..., None] * (k @ k.swapaxes(-1, -2)) * ratios, -1)
        inverse, power, reach = jnp.eye(chunk) + strict, strict, 1
        while 2 * reach < chunk:  # (I - strict)^-1 by doubling
            power = power @ power
            inverse = inverse + inverse @ power
            reach *= 2
        e = jnp.exp(sums)[..., None]
        new = inverse @ (beta[..., None] * (v - e * (k @ state.swapaxes(-1, -2))))
        out = (q * e) @ state.swapaxes(-1, -2) + ((q @ k.swapaxes(-1, -2)) * ratios) @ new
        state = state * e[:, -1:] + new.swapaxes(-1, -2) @ (k * jnp.exp(sums[:, -1:] - sums)[..., None])
        return state, out

    state = jnp.zeros((q.shape[1], v.shape[2], k.shape[2]))
    state, out = jax.lax.scan(step, state, tuple(cut(x) for x in (q, k, v, decay, beta)))
    return out.swapaxes(1, 2).reshape(v.shape), state


def gated_delta_rule():
    tokens, heads, width = 1024, 8, 128
    x = normal(tokens, heads, width)
    k = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    random = np.random.default_rng(1)
    decay, beta = (jnp.asarray(random.uniform(low, 1, (tokens, heads)).astype(np.float32)) for low in (0.8, 0.05))
    inputs, seeds = [k * width**-0.5, k, x, decay, beta], (normal(tokens, heads, width), normal(heads, width, width))
    return both("loop", recurrent, inputs, seeds) | both("chunked", chunked, inputs, seeds)


def attention():
    tokens, heads, width = 2048, 8, 64
    inputs, seed = [normal(1, tokens, heads, width) for _ in range(3)], normal(1, tokens, heads, width)
    return both("", lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True), inputs, seed)


CASES = [matmul, rms_norm, silu, swiglu, adamw, causal_conv1d, gated_delta_rule, attention]

if __name__ == "__main__":
    timing.serve({case.__name__: case for case in CASES})
