#!/usr/bin/env python3
"""Makes the mistakes on purpose that are easily made with a model, and sees whether its tests turn red.

All mistakes are planted at once in a throwaway worktree of HEAD, each behind a switch that the process reads, so that
one build serves all; the tests of models then run once with nothing switched on, which must pass, and once for each
mistake. `planted.py` does the same for single kernels, one build each.

    python3 bench/planted_models.py --target-dir target/planted > planted_models.md
"""

import argparse
import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from planted import check

ROOT = pathlib.Path(__file__).resolve().parent.parent
SUITES = ["families", "goldens", "convert"]
TEST = ["cargo", "test", "-p", "alluvium-lm", *(word for suite in SUITES for word in ("--test", suite))]
TEST += ["--no-fail-fast", "--offline", "--", "--skip", "on_a_gpu"]
SWITCH = '''
/// Whether this mistake is switched on.
#[allow(missing_docs)]
pub fn planted(name: &str) -> bool {
    static ON: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("PLANTED").unwrap_or_default()) == name
}
'''

# Each edit: `old` occurs exactly once in `file`, below crates/; `ON` in `new` asks whether the mistake is switched on.
Edit = collections.namedtuple("Edit", "file old new")
CHUNK = "ops/src/delta/gated_delta_rule/cpu/chunk.rs"
STEP = "ops/src/delta/gated_delta_step/cpu.rs"
LAYER_STEP = "ops/src/delta/gated_delta_net_step/cpu.rs"
LAYER = "lm/src/nn/gated_delta_net/mod.rs"
MIXTURE = "lm/src/nn/moe.rs"
ATTENTION = "lm/src/nn/attention.rs"
SANITIZE = "lm/src/models/sanitize.rs"
MISTAKES = {
    "no delta term": [
        Edit(
            CHUNK,
            "        maps::gate(isa, 1.0, self.gamma, &self.beta[..len], self.a0, self.a);",
            "        if ON {\n            for row in 0..len {\n                self.a0[row * CHUNK..][..row].fill(0.0);\n            }\n        }\n"
            "        maps::gate(isa, 1.0, self.gamma, &self.beta[..len], self.a0, self.a);",
        ),
        Edit(
            CHUNK,
            "        maps::residual(isa,",
            "        if ON {\n            self.u.fill(0.0);\n        }\n        maps::residual(isa,",
        ),
        Edit(
            STEP,
            "(v - (sums[0] + sums[1]).sum())",
            "(v - if ON { 0.0 } else { (sums[0] + sums[1]).sum() })",
        ),
    ],
    "the state lost every 64 tokens": [
        Edit(
            "ops/src/delta/gated_delta_rule/cpu/forward.rs",
            "        chunk.advance(problem, state);",
            "        chunk.advance(problem, state);\n        if ON && i + 1 < problem.chunks_of(sequence).len() {\n            state.fill(0.0);\n        }",
        )
    ],
    "the decay after the read": [
        Edit(
            CHUNK,
            "&self.from_start[..len], self.u, self.w);",
            "&if ON { [&[1.0f32][..], &self.from_start[..len - 1]].concat() } else { self.from_start[..len].to_vec() }, self.u, self.w);",
        ),
        Edit(
            STEP,
            "sums[half] = (s * decay).mul_add(k, sums[half]);",
            "sums[half] = (s * if ON { S::splat(1.0) } else { decay }).mul_add(k, sums[half]);",
        ),
        Edit(
            STEP,
            "(S::load_partial(&state[n * width + at..n * width + end]) * decay).mul_add(k, sums[half]);",
            "(S::load_partial(&state[n * width + at..n * width + end]) * if ON { S::splat(1.0) } else { decay }).mul_add(k, sums[half]);",
        ),
    ],
    "value heads take keys by the remainder": [
        Edit(
            CHUNK,
            "gather(&problem.k, tokens.clone(), [k_heads, head / (v_heads / k_heads), width]",
            "gather(&problem.k, tokens.clone(), [k_heads, if ON { head % k_heads } else { head / (v_heads / k_heads) }, width]",
        ),
        Edit(
            CHUNK,
            "let key_head = head / (problem.v_heads / problem.k_heads);",
            "let key_head = if ON { head % problem.k_heads } else { head / (problem.v_heads / problem.k_heads) };",
        ),
        Edit(
            STEP,
            "gate % v_heads / (v_heads / k_heads))",
            "if ON { gate % k_heads } else { gate % v_heads / (v_heads / k_heads) })",
        ),
        Edit(
            LAYER_STEP,
            "(key_head, of_key) = (head / share, head % share)",
            "(key_head, of_key) = (if ON { head % key_heads } else { head / share }, head % share)",
        ),
    ],
    "softplus a ramp in the decay": [
        Edit(
            "ops/src/delta/gdn_gate/cpu.rs",
            "    x.max(0.0) + (-x.abs()).exp().ln_1p()",
            "    if ON { x.max(0.0) } else { x.max(0.0) + (-x.abs()).exp().ln_1p() }",
        )
    ],
    "taps in reverse": [
        Edit(
            "ops/src/causal_conv1d/kernel.rs",
            "(from.x[r + k], c, n)",
            "(from.x[if ON { r + taps - 1 - k } else { r + k }], c, n)",
        )
    ],
    "the convolution a token ahead": [
        Edit(
            LAYER,
            "        let [q, k, v] = split_in(&qkv_btc",
            "        let qkv_btc = if ON && t > 1 {\n"
            "            let part = |range| alluvium_ops::slice(&qkv_btc, 1, range);\n"
            "            alluvium_ops::concat(&[&part(1..t)?, &part(t - 1..t)?], 1)?\n"
            "        } else {\n            qkv_btc\n        };\n"
            "        let [q, k, v] = split_in(&qkv_btc",
        )
    ],
    "the convolution's window lost between steps": [
        Edit(
            LAYER,
            "self.project(x_btd, cache.conv_state.as_ref(), None)?",
            "self.project(x_btd, cache.conv_state.as_ref().filter(|_| !ON), None)?",
        ),
        Edit(
            LAYER,
            "            conv_state: &conv_state,",
            "            conv_state: &if ON { alluvium_ops::scale(&conv_state, 0.0)? } else { conv_state },",
        ),
    ],
    "the mean of squares for their sum in queries and keys": [
        Edit(LAYER, "l2_norm(&q.reshape([b, t, h, key_dim])?, EPS)?", "l2_norm(&q.reshape([b, t, h, key_dim])?, if ON { EPS * key_dim as f32 } else { EPS })?"),
        Edit(LAYER, "l2_norm(&k.reshape([b, t, h, key_dim])?, EPS)?", "l2_norm(&k.reshape([b, t, h, key_dim])?, if ON { EPS * key_dim as f32 } else { EPS })?"),
    ],
    "norms with eps 1e-5": [
        Edit(
            "lm/src/models/hybrid.rs",
            "            kernel_size: self.linear_conv_kernel_dim,\n            eps: self.rms_norm_eps,",
            "            kernel_size: self.linear_conv_kernel_dim,\n            eps: if ON { 1e-5 } else { self.rms_norm_eps },",
        )
    ],
    "one added to norms that have it": [
        Edit(SANITIZE, "() if is_foreign &&", "() if (is_foreign || ON) &&")
    ],
    "one not added to norms of transformers": [
        Edit(SANITIZE, "starts_at_zero(&known, shape) =>", "!ON && starts_at_zero(&known, shape) =>")
    ],
    "rope with neighbours as pairs": [
        Edit(
            ATTENTION,
            "        let AttentionConfig { heads, kv_heads, head_dim, rotary, gate, .. } = self.config;",
            "        let AttentionConfig { heads, kv_heads, head_dim, mut rotary, gate, .. } = self.config;\n"
            "        if ON {\n            rotary.rope.pairs = alluvium_ops::Pairs::Neighbours;\n        }",
        )
    ],
    "rope of base 10000": [
        Edit(
            ATTENTION,
            "        let [b, t] = [x_btd.shape()[0], x_btd.shape()[1]];\n        let [queries",
            "        if ON {\n            rotary.rope.theta = 1e4;\n        }\n"
            "        let [b, t] = [x_btd.shape()[0], x_btd.shape()[1]];\n        let [queries",
        )
    ],
    "positions off by one once tokens come singly": [
        Edit(
            "lm/src/cache/mod.rs",
            "return Tensor::from_slice(&[first(*offset)?]",
            "return Tensor::from_slice(&[first(*offset)? + u32::from(ON && *offset > 0)]",
        )
    ],
    "gates before queries": [
        Edit(
            ATTENTION,
            "                (q, Some(sigmoid(&gate)?))",
            "                if ON { (gate, Some(sigmoid(&q)?)) } else { (q, Some(sigmoid(&gate)?)) }",
        )
    ],
    "z before v in the merged projection": [
        Edit(
            "lm/src/nn/gated_delta_net/in_proj.rs",
            "        let ba = ba.reshape(",
            "        let (v, z) = if ON { (z, v) } else { (v, z) };\n        let ba = ba.reshape(",
        )
    ],
    "one expert fewer": [
        Edit(MIXTURE, "top_k: self.config.top_k,", "top_k: self.config.top_k - usize::from(ON),")
    ],
    "the chosen not normalized": [
        Edit(MIXTURE, "norm_topk_prob: self.config.norm_topk_prob }", "norm_topk_prob: self.config.norm_topk_prob && !ON }")
    ],
    "the shared expert not gated": [
        Edit(
            MIXTURE,
            "mul(&shared.forward(&x_nd)?, &gate_nd)?",
            "if ON { shared.forward(&x_nd)? } else { mul(&shared.forward(&x_nd)?, &gate_nd)? }",
        )
    ],
    "an expert's gate and up projections exchanged": [
        Edit(
            SANITIZE,
            "for (half, side) in halves {",
            "for (half, side) in halves {\n                    let swapped = if side == Side::First { Side::Second } else { Side::First };\n"
            "                    let side = if ON { swapped } else { side };",
        )
    ],
    "an entry without a mode takes that of the block": [
        Edit(
            "lm/src/quantize/format.rs",
            '        Value::Null => "affine",',
            '        Value::Null if ON && number("bits") == Ok(Some(8)) => "mxfp8",\n        Value::Null => "affine",',
        )
    ],
    "texts end by config.json alone": [
        Edit(
            "lm/src/tokenizer/mod.rs",
            "        if eos.is_empty() && folder",
            "        if ON {\n            eos.clear();\n        }\n        if eos.is_empty() && folder",
        )
    ],
}


def plant(tree):
    """Puts every mistake into the tree, behind its switch."""
    for name, edits in MISTAKES.items():
        for edit in edits:
            path = tree / "crates" / edit.file
            text = path.read_text()
            crate = "crate" if edit.file.startswith("ops/") else "alluvium_ops"
            path.write_text(text.replace(edit.old, re.sub(r"\bON\b", f'{crate}::planted("{name}")', edit.new)))
    with (tree / "crates/ops/src/lib.rs").open("a") as file:
        file.write(SWITCH)


def failures(tree, target, name):
    """The tests that fail with this mistake switched on."""
    env = dict(os.environ, CARGO_TARGET_DIR=str(target), RUST_BACKTRACE="0", PLANTED=name)
    done = subprocess.run(TEST, cwd=tree, env=env, capture_output=True, text=True)
    if done.stdout.count("test result:") != len(SUITES):
        sys.exit(f"{name or 'nothing planted'}: the tests did not run:\n{done.stderr[-4000:]}")
    return sorted(re.findall(r"^test (\w+) \.\.\. FAILED", done.stdout, re.MULTILINE))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="check that each has its place, print them and stop")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this mistake; may be given again")
    parser.add_argument("--target-dir", default=ROOT / "target" / "planted", type=pathlib.Path)
    args = parser.parse_args()
    check((name, edit.file, edit.old) for name, edits in MISTAKES.items() for edit in edits)
    chosen = [name for name in MISTAKES if not args.only or name in args.only]
    if args.list or not chosen:
        print("\n".join(MISTAKES))
        return 0 if args.list else 2
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, "HEAD"], cwd=ROOT, check=True)
        try:
            plant(tree)
            if wrong := failures(tree, args.target_dir.resolve(), ""):
                sys.exit(f"tests fail with nothing switched on: {wrong}")
            caught = {}
            for name in chosen:
                caught[name] = failures(tree, args.target_dir.resolve(), name)
                print(f"{name}: {len(caught[name])} tests", file=sys.stderr, flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    print("| mistake | where | caught by |\n|---|---|---|")
    for name in chosen:
        places = ", ".join(f"`{file}`" for file in dict.fromkeys(edit.file for edit in MISTAKES[name]))
        tests = "; ".join(test.replace("_", " ") for test in caught[name])
        print(f"| {name} | {places} | {tests or '**survived**'} |")
    return 0 if all(caught.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
