#!/usr/bin/env python3
"""Breaks the kernels on purpose and sees whether the proof turns red.

Each breakage is planted in a throwaway worktree of HEAD. Breakages of different operations are planted together and
built once, because every fault names its operation; two of the same operation never meet. A breakage is caught when
an assertion of a test names its operation; a fault of an operation that nobody broke, or a build that fails, ends
the run.

    python3 bench/planted.py --target-dir target/planted > planted.md
"""

import argparse
import collections
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEST = ["cargo", "test", "-p", "alluvium-ops", "--test", "conformance", "--no-fail-fast"]
FAULT = re.compile(r"^(\w+), [^:]*: .*")

# operations that run the code of another one
SHARED = {
    "cross_entropy": ["quantized_cross_entropy"],
    "gated_delta_step": ["gated_delta_net_step"],
    "rms_norm": ["add_rms_norm", "qkv_norm_rope"],
    "rope": ["qkv_norm_rope"],
}

# `op` is the operation that must be named, `old` occurs exactly once in `file`, below crates/
Breakage = collections.namedtuple("Breakage", "name op file old new")
BREAKAGES = [
    Breakage(
        "rms_norm: eps outside the root",
        "rms_norm",
        "ops/src/rms_norm/cpu.rs",
        old="rows::scales(isa, x, 1.0 / width as f32, eps, rstd);",
        new="rows::scales(isa, x, 1.0 / width as f32, 0.0, rstd);\n"
        "            rstd.iter_mut().for_each(|r| *r = (r.recip() + eps).recip());",
    ),
    Breakage(
        "l2_norm: a sign in the gradient",
        "l2_norm",
        "ops/src/l2_norm/cpu.rs",
        old="S::splat(-dot.sum() *",
        new="S::splat(dot.sum() *",
    ),
    Breakage(
        "gated_rms_norm: a term of the gate's gradient missing",
        "gated_rms_norm",
        "ops/src/gated_rms_norm/cpu.rs",
        old="let derivative = s * (z * (one - s) + one);",
        new="let derivative = s * one;",
    ),
    Breakage(
        "swiglu: the two gradients exchanged",
        "swiglu",
        "ops/src/elementwise/binary.rs",
        old="            (up * derivative, silu)",
        new="            (silu, up * derivative)",
    ),
    Breakage(
        "linear: activations read transposed in the gradient",
        "linear",
        "ops/src/linalg/linear/cpu.rs",
        old="MatRef::new(&cpu.read(x)?, rows, inner)?, 0.0",
        new="MatRef::new(&cpu.read(x)?, inner, rows)?.t(), 0.0",
    ),
    Breakage(
        "rms_norm: the gradient of the weight rounded to half precision",
        "rms_norm",
        "ops/src/rms_norm/mod.rs",
        old="dw_dtype: w.gradient_dtype() })",
        new="dw_dtype: w.dtype() })",
    ),
    Breakage(
        "repeat_heads: the last lanes of the gradient unwritten",
        "repeat_heads",
        "ops/src/repeat_heads/cpu.rs",
        old="for at in (0..width).step_by(S::LANES)",
        new="for at in (0..width - width % S::LANES).step_by(S::LANES)",
    ),
    Breakage(
        "embedding: rows that no id names unwritten in the gradient",
        "embedding",
        "ops/src/embedding/cpu.rs",
        old="            to.fill(0.0);\n",
        new="",
    ),
    Breakage(
        "rope: neighbours as pairs",
        "rope",
        "ops/src/rope/cpu.rs",
        old="            let ((x0, rest), (y0, kept)) =",
        new="            for i in 0..pairs {\n"
            "                let (a, b, cos, sin) = (x[2 * i], x[2 * i + 1], angles.cos[i], angles.sin[i]);\n"
            "                (y[2 * i], y[2 * i + 1]) = (a * cos - b * sin, a * sin + b * cos);\n"
            "            }\n"
            "            y[2 * pairs..].copy_from_slice(&x[2 * pairs..]);\n"
            "            if pairs > 0 {\n"
            "                continue;\n"
            "            }\n"
            "            let ((x0, rest), (y0, kept)) =",
    ),
    Breakage(
        "causal_conv1d: taps in reverse",
        "causal_conv1d",
        "ops/src/causal_conv1d/kernel.rs",
        old="(from.x[r + k], c, n)",
        new="(from.x[r + taps - 1 - k], c, n)",
    ),
    Breakage(
        "causal_conv1d: packed sequences begin with their neighbour's end",
        "causal_conv1d",
        "ops/src/causal_conv1d/cpu.rs",
        old="                None => (&self.zeros[..], 0),",
        new="                None if rows.start + token >= before => (&self.x[..], rows.start + token - before),\n"
            "                None => (&self.zeros[..], 0),",
    ),
    Breakage(
        "causal_conv1d: the final state gives no gradient",
        "causal_conv1d",
        "ops/src/causal_conv1d/cpu.rs",
        old="add_final(&rows, &cpu.read(dfinal)?, &mut dx, &mut dstate);",
        new="let _ = (dfinal, add_final);",
    ),
    Breakage(
        "causal_conv1d: as many partial sums as threads",
        "causal_conv1d",
        "ops/src/causal_conv1d/cpu.rs",
        old="    let parts = rows.parts();\n",
        new="    let mut parts = rows.parts();\n"
            "    while parts.len() > cpu.threads() {\n"
            "        let last = parts.pop().unwrap_or_default();\n"
            "        if let Some(part) = parts.last_mut() {\n"
            "            part.extend(last);\n"
            "        }\n"
            "    }\n",
    ),
    Breakage(
        "attention: scores not scaled",
        "attention",
        "ops/src/attention/cpu/forward.rs",
        old="head.scale, q, stride);",
        new="1.0, q, stride);",
    ),
    Breakage(
        "attention: a query sees the token after it",
        "attention",
        "ops/src/attention/cpu.rs",
        old="key >= self.end(query)",
        new="key > self.end(query)",
    ),
    Breakage(
        "attention: packed sequences see each other",
        "attention",
        "ops/src/attention/cpu.rs",
        old="(block.sequence.start..end)",
        new="(0..end)",
    ),
    Breakage(
        "attention: query heads take keys by the remainder",
        "attention",
        "ops/src/attention/cpu.rs",
        old="&x[head / self.group() * len..]",
        new="&x[(head / self.heads * self.shared + head % self.shared) * len..]",
    ),
    Breakage(
        "gated_delta_rule: the state lost at a chunk's end",
        "gated_delta_rule",
        "ops/src/delta/gated_delta_rule/cpu/forward.rs",
        old="        chunk.advance(problem, state);\n",
        new="        chunk.advance(problem, state);\n"
            "        if i + 1 < problem.chunks_of(sequence).len() {\n"
            "            state.fill(0.0);\n"
            "        }\n",
    ),
    Breakage(
        "gated_delta_rule: the last token of a ragged chunk unwritten",
        "gated_delta_rule",
        "ops/src/delta/gated_delta_rule/cpu/forward.rs",
        old="scatter(out.o, tokens, [problem.v_heads, head, v], o, Write::Set)",
        new="scatter(out.o, tokens.start..tokens.end - usize::from(len < CHUNK), [problem.v_heads, head, v], o, Write::Set)",
    ),
    Breakage(
        "gated_delta_rule: the state's gradient lost at a chunk's start",
        "gated_delta_rule",
        "ops/src/delta/gated_delta_rule/cpu/backward.rs",
        old="        work.chunk_gradients(head, &mut chunk, tokens, starts);\n",
        new="        work.chunk_gradients(head, &mut chunk, tokens, starts);\n"
            "        if i > 0 {\n"
            "            work.ds.fill(0.0);\n"
            "        }\n",
    ),
    Breakage(
        "gated_delta_rule: the initial state's gradient dropped",
        "gated_delta_rule",
        "ops/src/delta/gated_delta_rule/cpu/backward.rs",
        old="Some(&args.beta), start];",
        new="Some(&args.beta), None];",
    ),
    Breakage(
        "gated_delta_rule: value heads take keys by the remainder",
        "gated_delta_rule",
        "ops/src/delta/gated_delta_rule/cpu/chunk.rs",
        old="gather(&problem.k, tokens.clone(), [k_heads, head / (v_heads / k_heads), width]",
        new="gather(&problem.k, tokens.clone(), [k_heads, head % k_heads, width]",
    ),
    Breakage(
        "gated_delta_rule: the state not decayed over a chunk",
        "gated_delta_rule",
        "ops/src/delta/gated_delta_rule/cpu/chunk.rs",
        old="self.v_new, v).onto(whole)",
        new="self.v_new, v).onto(1.0)",
    ),
    Breakage(
        "gated_delta_rule: a term of the decay's gradient missing",
        "gated_delta_rule",
        "ops/src/delta/gated_delta_rule/cpu/backward.rs",
        old="maps::dots(isa, &self.dk[..keys], &chunk.k[..keys], &mut sides.to_end[..len]);",
        new="",
    ),
    Breakage(
        "gated_delta_rule: heads that share keys overwrite their gradient",
        "gated_delta_rule",
        "ops/src/delta/gated_delta_rule/cpu/backward.rs",
        old="write: Write::nth(i)",
        new="write: Write::Set",
    ),
    Breakage(
        "gated_delta_step: the state read before its decay",
        "gated_delta_step",
        "ops/src/delta/gated_delta_step/cpu.rs",
        old="sums[half] = (s * decay).mul_add(k, sums[half]);",
        new="sums[half] = s.mul_add(k, sums[half]);",
    ),
    Breakage(
        "gated_delta_net_step: the window not moved on",
        "gated_delta_net_step",
        "ops/src/delta/gated_delta_net_step/cpu.rs",
        old="kept.copy_from_slice(&old[sizes.channels..]);",
        new="kept.copy_from_slice(&old[..old.len() - sizes.channels]);",
    ),
    Breakage(
        "gated_delta_net_step: the gate of another value head",
        "gated_delta_net_step",
        "ops/src/delta/gated_delta_net_step/cpu.rs",
        old="let z = places.z + values + of_key * v;",
        new="let z = places.z + values;",
    ),
    Breakage(
        "add_rms_norm: the norm of one addend",
        "add_rms_norm",
        "ops/src/add_rms_norm/cpu.rs",
        old="rms_norm::cpu::forward(cpu, &sum, w, eps, dims)?",
        new="rms_norm::cpu::forward(cpu, x, w, eps, dims)?",
    ),
    Breakage(
        "qkv_norm_rope: keys by the queries' norm",
        "qkv_norm_rope",
        "ops/src/qkv_norm_rope/cpu.rs",
        old="norms.map(|[_, k]| k)",
        new="norms.map(|[q, _]| q)",
    ),
    Breakage(
        "cross_entropy: ignored targets counted in the mean",
        "cross_entropy",
        "ops/src/cross_entropy/cpu.rs",
        old="1.0 / counted.len().max(1) as f64",
        new="1.0 / targets.len().max(1) as f64",
    ),
    Breakage(
        "cross_entropy: the gradient of the target's neighbour",
        "cross_entropy",
        "ops/src/cross_entropy/cpu.rs",
        old="z[self.target] = (self.weight",
        new="z[(self.target + 1) % z.len()] = (self.weight",
    ),
    Breakage(
        "kl_div: a term of the teacher's gradient missing",
        "kl_div",
        "ops/src/kl_div/cpu.rs",
        old="(apart(t, s) - kl)",
        new="apart(t, s)",
    ),
    Breakage(
        "adamw: no correction of the bias",
        "adamw",
        "ops/src/adamw/cpu.rs",
        old="step_size: (lr / unbiased(beta1)) as f32",
        new="step_size: lr as f32",
    ),
    Breakage(
        "sample: kept words not normalized again",
        "sample",
        "ops/src/sample/cpu.rs",
        old="kept.iter().map(|&id| weight(id)).sum()",
        new="(0..logits.len() as u32).map(weight).sum()",
    ),
    Breakage(
        "sample: top-p among the words that top-k left",
        "sample",
        "ops/src/sample/cpu.rs",
        old="    let total: f64 = logits.chunks(BLOCK).map(|x| f64::from(sum_of_exp(isa, x, max, 1.0))).sum();",
        new="    let apart = |id: u32| f64::from(logits[id as usize]) - f64::from(max);\n"
            "    let total: f64 = best(logits, most).into_iter().map(|id| apart(id).exp()).sum();",
    ),
]


def plant(tree, breakage):
    """Replaces the text; returns what restores it."""
    path = tree / "crates" / breakage.file
    text = path.read_text()
    path.write_text(text.replace(breakage.old, breakage.new))
    return path, text


def rounds(breakages):
    """Breakages that can be told apart: one of each operation, and one change of each file."""
    left = list(breakages)
    while left:
        ops, files, now = set(), set(), []
        for breakage in left:
            if breakage.op not in ops and breakage.file not in files:
                ops.add(breakage.op)
                files.add(breakage.file)
                now.append(breakage)
        left = [breakage for breakage in left if breakage not in now]
        yield now


def faults(output):
    """The tests that name each operation."""
    found, test = collections.defaultdict(set), None
    for line in output.splitlines():
        if match := re.match(r"---- (?:\w+::)?(\w+) stdout ----", line):
            test = match[1]
        elif test and (match := FAULT.match(line)):
            found[match[1]].add(test)
    return found


def run(tree, target):
    env = dict(os.environ, CARGO_TARGET_DIR=str(target), RUST_BACKTRACE="0")
    build = subprocess.run([*TEST, "--no-run"], cwd=tree, env=env, capture_output=True, text=True)
    if build.returncode != 0:
        sys.exit(f"the build failed, so nothing was proved:\n{build.stderr[-4000:]}")
    done = subprocess.run(TEST, cwd=tree, env=env, capture_output=True, text=True)
    return faults(done.stdout)


def survey(tree, target, breakages):
    """Plants, runs and restores round by round; returns the tests that caught each."""
    caught = {}
    for now in rounds(breakages):
        print("planted:", "; ".join(b.name for b in now), file=sys.stderr, flush=True)
        before = [plant(tree, breakage) for breakage in now]
        found = run(tree, target)
        for path, text in before:
            path.write_text(text)
        broken = {op for b in now for op in [b.op, *SHARED.get(b.op, [])]}
        if strange := set(found) - broken:
            sys.exit(f"faults in operations that nobody broke: {sorted(strange)}")
        caught.update((b.name, sorted(found[b.op])) for b in now)
    return caught


def check(edits):
    """Ends the program if the text of an edit, by its name and file, does not occur exactly once."""
    for name, file, old in edits:
        count = (ROOT / "crates" / file).read_text().count(old)
        if count != 1:
            sys.exit(f"{name}: {old!r} occurs {count} times in {file}, expected once")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="check that each has its place, print them and stop")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this breakage; may be given again")
    parser.add_argument("--target-dir", default=ROOT / "target" / "planted", type=pathlib.Path)
    args = parser.parse_args()
    check((b.name, b.file, b.old) for b in BREAKAGES)
    chosen = [b for b in BREAKAGES if not args.only or b.name in args.only]
    if args.list or not chosen:
        print("\n".join(b.name for b in BREAKAGES))
        return 0 if args.list else 2
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, "HEAD"], cwd=ROOT, check=True)
        try:
            caught = survey(tree, args.target_dir.resolve(), chosen)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    print("| breakage | where | caught by |\n|---|---|---|")
    for b in chosen:
        tests = "; ".join(test.replace("_", " ") for test in caught[b.name])
        print(f"| {b.name} | `{b.file.removeprefix('ops/src/')}` | {tests or '**survived**'} |")
    return 0 if all(caught[b.name] for b in chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
