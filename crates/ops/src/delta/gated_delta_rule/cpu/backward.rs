//! Gradients, chunk by chunk from the last: given the state `S` at a chunk's start and the gradient `dS` of the state
//! at its end, everything else of the chunk is computed again.

use super::Problem;
use super::chunk::ChunkTiles;
use super::forward::start;
use crate::common::tasks::{self, GradientBuffers, Shared};
use crate::common::tile::{Left, Part, Product, carve, carved, product, transpose};
use crate::delta::chunk::{CHUNK, ONES, SQUARE, Write, gather, maps, scatter};
use crate::delta::gated_delta_rule::Grad;
use alluvium_core::cpu::{Cpu, Floats};
use alluvium_core::{Result, Tensor};
use std::ops::Range;

/// A token's share of the state's gradient that later tokens of the chunk leave: below it, the chunk is cut into
/// pieces.
const LEFT: f32 = 1.0 / 16.0;
/// Pieces that a stretch of tokens is cut into, and how often until a piece has one token.
const PIECES: usize = 8;
const DEPTH: usize = 2;

pub(in crate::delta::gated_delta_rule) fn backward(
    cpu: &Cpu,
    args: &Grad,
    [d_o, d_last]: [Option<&Tensor>; 2],
    need: [bool; 6],
) -> Result<[Option<Tensor>; 6]> {
    let problem = Problem::new(cpu, args)?;
    let size = problem.state();
    let given = RuleOutputGradients {
        o: d_o.map(|x| cpu.read(x)).transpose()?,
        last: d_last.map(|x| cpu.read(x)).transpose()?,
        states: args.states.as_ref().map(|states| states.slice()).transpose()?,
    };
    let start = args.initial_state.as_ref();
    let inputs = [Some(&args.q), Some(&args.k), Some(&args.v), Some(&args.g), Some(&args.beta), start];
    let mut gradients = GradientBuffers::new(cpu, inputs, need)?;
    let [q, k, v, g, beta, start] = gradients.shared();
    let out = RuleGradients { q, k, v, g, beta, start: (!start.is_empty()).then_some(start) };
    let again = if given.states.is_none() { problem.most_chunks() * size } else { 0 };
    let scratch = again + ChunkTiles::scratch(problem.width) + RuleTask::scratch(problem.width) + DEPTH * size;
    let tasks = problem.sequences.len() * problem.k_heads;
    tasks::each(cpu, tasks, scratch, |task, scratch| {
        let (sequence, key_head) = (task / problem.k_heads, task % problem.k_heads);
        let each = problem.v_heads / problem.k_heads;
        for i in 0..each {
            let place = HeadPlace { sequence, head: key_head * each + i, write: Write::nth(i) };
            head(&Head { problem: &problem, place, given: &given, out: &out }, scratch);
        }
    })?;
    gradients.into_tensors(cpu)
}

/// The incoming gradients.
struct RuleOutputGradients<'a> {
    o: Option<Floats<'a>>,
    last: Option<Floats<'a>>,
    states: Option<&'a [f32]>,
}

/// Where the gradients go.
struct RuleGradients<'a> {
    q: Shared<'a>,
    k: Shared<'a>,
    v: Shared<'a>,
    g: Shared<'a>,
    beta: Shared<'a>,
    start: Option<Shared<'a>>,
}

/// The inputs and outputs of the gradients of one value head of one sequence.
struct Head<'a> {
    problem: &'a Problem<'a>,
    place: HeadPlace,
    given: &'a RuleOutputGradients<'a>,
    out: &'a RuleGradients<'a>,
}

/// One sequence of one value head; the first of its group writes the gradients of q and k, the others add to them.
struct HeadPlace {
    sequence: usize,
    head: usize,
    write: Write,
}

/// Gradients of the exponents of a chunk's decays, token by token.
struct Sides {
    /// Of `e^{g_0 + … + g_i}`.
    from_start: [f32; CHUNK],
    /// Of `e^{g_{i+1} + … + g_last}`.
    to_end: [f32; CHUNK],
    /// Of the decay over the whole chunk.
    whole: f32,
}

/// Scratch for the gradients of a chunk.
struct RuleTask<'s> {
    /// The state at the chunk's start, the gradient of that at its end, and what they are transposed.
    state: &'s mut [f32],
    state_t: &'s mut [f32],
    ds: &'s mut [f32],
    ds_t: &'s mut [f32],
    d_o: &'s mut [f32],
    /// Gradients of the corrected values and of the residual.
    d_new: &'s mut [f32],
    d_w: &'s mut [f32],
    /// A tile of values, transposed.
    turned: &'s mut [f32],
    dq: &'s mut [f32],
    dk: &'s mut [f32],
    /// Gradients of the square matrices; `e` is the gradient of the logarithm of the decay between two tokens.
    d_a: &'s mut [f32],
    d_p: &'s mut [f32],
    e: &'s mut [f32],
    x: &'s mut [f32],
    y: &'s mut [f32],
    dg: &'s mut [f32],
    dbeta: &'s mut [f32],
}

impl<'s> RuleTask<'s> {
    fn lengths([k, v]: [usize; 2]) -> [usize; 17] {
        let (keys, values, square, state) = (CHUNK * k, CHUNK * v, CHUNK * CHUNK, k * v);
        [
            state, state, state, state, values, values, values, values, keys, keys, square, square, square, square,
            square, CHUNK, CHUNK,
        ]
    }

    fn scratch(width: [usize; 2]) -> usize {
        carved(&Self::lengths(width))
    }

    fn cut(scratch: &'s mut [f32], width: [usize; 2]) -> Self {
        let [state, state_t, ds, ds_t, d_o, d_new, d_w, turned, dq, dk, d_a, d_p, e, x, y, dg, dbeta] =
            carve(scratch, Self::lengths(width));
        RuleTask { state, state_t, ds, ds_t, d_o, d_new, d_w, turned, dq, dk, d_a, d_p, e, x, y, dg, dbeta }
    }
}

fn head(head: &Head<'_>, scratch: &mut [f32]) {
    let Head { problem, place, given, out } = head;
    let ([k, v], size) = (problem.width, problem.state());
    let task = place.sequence * problem.v_heads + place.head;
    let (again, scratch) = match given.states {
        Some(_) => scratch.split_at_mut(0),
        None => scratch.split_at_mut(problem.most_chunks() * size),
    };
    let (chunk, scratch) = scratch.split_at_mut(ChunkTiles::scratch(problem.width));
    let (work, starts) = scratch.split_at_mut(RuleTask::scratch(problem.width));
    let (mut chunk, mut work) = (ChunkTiles::cut(chunk, problem.width), RuleTask::cut(work, problem.width));
    let states: &[f32] = match given.states {
        Some(kept) => &kept[problem.kept_at(place.sequence, place.head)..],
        None => {
            recompute_states(problem, place, &mut chunk, again);
            again
        }
    };
    match &given.last {
        Some(last) => transpose([v, k], &last[task * size..][..size], k, work.ds, v),
        None => work.ds.fill(0.0),
    }
    for (i, tokens) in problem.chunks_of(place.sequence).enumerate().rev() {
        work.state.copy_from_slice(&states[i * size..][..size]);
        work.chunk_gradients(head, &mut chunk, tokens, starts);
    }
    if let Some(start) = &out.start {
        // SAFETY: each task has its own sequence and heads, and so its own states.
        transpose([k, v], work.ds, v, unsafe { start.part(task * size, size) }, k);
    }
}

/// Runs through the states of a sequence, as the forward pass did.
fn recompute_states(problem: &Problem<'_>, place: &HeadPlace, chunk: &mut ChunkTiles<'_>, states: &mut [f32]) {
    let size = problem.state();
    start(problem, place.sequence * problem.v_heads + place.head, &mut states[..size]);
    let chunks = problem.chunks_of(place.sequence);
    let count = chunks.len();
    for (i, tokens) in chunks.enumerate().take(count - 1) {
        let (state, next) = states[i * size..].split_at_mut(size);
        chunk.load(problem, tokens, place.head);
        chunk.correct(problem, state);
        next[..size].copy_from_slice(state);
        chunk.advance(problem, &mut next[..size]);
    }
}

impl RuleTask<'_> {
    /// The gradients of at most a chunk of tokens, from the state at their start and `ds`, which moves from their end
    /// to their start.
    ///
    /// A chunk subtracts from the state's gradient what its tokens erase. Where little is left, the difference has the
    /// rounding of what was there: the tokens are cut into pieces, down to single tokens, which each erase little.
    fn chunk_gradients(
        &mut self,
        head: &Head<'_>,
        chunk: &mut ChunkTiles<'_>,
        tokens: Range<usize>,
        starts: &mut [f32],
    ) {
        let Head { problem, place, given, out } = head;
        chunk.load(problem, tokens.clone(), place.head);
        chunk.load_queries(problem, tokens.clone(), place.head);
        chunk.correct(problem, self.state);
        match &given.o {
            Some(d_o) => gather(d_o, tokens.clone(), [problem.v_heads, place.head, problem.width[1]], self.d_o),
            None => self.d_o.fill(0.0),
        }
        self.values(problem, chunk);
        if tokens.len() == 1 || !self.decays_by_much(problem, chunk) {
            self.gradients(problem, chunk, out);
            return self.write(problem, place, tokens, out);
        }
        let (start, starts) = starts.split_at_mut(problem.state());
        start.copy_from_slice(self.state);
        let length = tokens.len().div_ceil(PIECES);
        for first in tokens.clone().step_by(length).rev() {
            self.state.copy_from_slice(start);
            for before in (tokens.start..first).step_by(length) {
                chunk.load(problem, before..before + length, place.head);
                chunk.correct(problem, self.state);
                chunk.advance(problem, self.state);
            }
            self.chunk_gradients(head, chunk, first..tokens.end.min(first + length), starts);
        }
    }

    /// Whether later tokens erase most of what a token would get of the state's and the outputs' gradients.
    fn decays_by_much(&self, problem: &Problem<'_>, chunk: &ChunkTiles<'_>) -> bool {
        let (len, values) = (chunk.len, chunk.len * problem.width[1]);
        let (before, after) = (&self.d_new[..values], &self.d_w[..values]);
        maps::any_row_is_less(problem.isa, before, after, &chunk.beta[..len], LEFT)
    }

    /// All gradients of a chunk but those of the values, which are there; `ds` moves from its end to its start.
    fn gradients(&mut self, problem: &Problem<'_>, chunk: &mut ChunkTiles<'_>, out: &RuleGradients<'_>) {
        let ([k, v], len) = (problem.width, chunk.len);
        self.dbeta.fill(0.0);
        transpose([k, v], self.state, v, self.state_t, k);
        transpose([k, v], self.ds, v, self.ds_t, k);
        self.squares(problem, chunk);
        let sides = self.state_sides(problem, chunk);
        if !out.g.is_empty() {
            let (rows, columns) = (&sides.from_start[..len], &sides.to_end[..len]);
            let e = &self.e[..len * CHUNK];
            maps::step_gradients(problem.isa, e, rows, columns, sides.whole, &mut self.dg[..len]);
        }
        if !out.k.is_empty() || !out.beta.is_empty() {
            self.inverse(problem, chunk);
        }
        let (isa, k) = (problem.isa, problem.width[0]);
        let onto = |left, part, b| Product::new([len, k, len], left, b, k).left(part).onto(1.0);
        if !out.q.is_empty() {
            product(isa, &onto(Left::rows(self.d_p, CHUNK), Part::Lower, &*chunk.k), self.dq, k);
        }
        if !out.k.is_empty() {
            product(isa, &onto(Left::columns(self.d_p, CHUNK), Part::Upper, &*chunk.q), self.dk, k);
            product(isa, &onto(Left::rows(self.x, CHUNK), Part::Lower, &*chunk.k), self.dk, k);
            product(isa, &onto(Left::columns(self.x, CHUNK), Part::Upper, &*chunk.k), self.dk, k);
        }
    }

    /// `d_new = e^{to end} K dS + Pᵀ dO` and `d_w = Aᵀ d_new`, which is the gradient of the values, too.
    fn values(&mut self, problem: &Problem<'_>, chunk: &ChunkTiles<'_>) {
        let (isa, [k, v], len) = (problem.isa, problem.width, chunk.len);
        product(isa, &Product::new([len, v, k], Left::rows(chunk.k, k), self.ds, v), self.d_new, v);
        maps::scale_rows(isa, 1.0, &chunk.to_end().0[..len], &mut self.d_new[..len * v]);
        let inside = Product::new([len, v, len], Left::columns(chunk.p, CHUNK), self.d_o, v).left(Part::Upper);
        product(isa, &inside.onto(1.0), self.d_new, v);
        let d_residual = Product::new([len, v, len], Left::columns(chunk.a, CHUNK), self.d_new, v).left(Part::Upper);
        product(isa, &d_residual, self.d_w, v);
    }

    /// Gradients of the square matrices, of the decays in them and of the queries' products with the keys.
    fn squares(&mut self, problem: &Problem<'_>, chunk: &ChunkTiles<'_>) {
        let (isa, v, len) = (problem.isa, problem.width[1], chunk.len);
        transpose([len, v], chunk.w, v, self.turned, CHUNK);
        let d_a = Product::new([len, len, v], Left::rows(self.d_new, v), self.turned, CHUNK).lower();
        product(isa, &d_a, self.x, CHUNK);
        maps::gate(isa, 1.0, chunk.gamma, &ONES[..len], self.x, self.d_a);
        transpose([len, v], chunk.v_new, v, self.turned, CHUNK);
        let d_p = Product::new([len, len, v], Left::rows(self.d_o, v), self.turned, CHUNK).lower();
        product(isa, &d_p, self.x, CHUNK);
        self.e[..len * CHUNK].fill(0.0);
        maps::add_below(isa, self.x, chunk.p, &ONES[..len], self.e);
        maps::gate(isa, problem.scale, chunk.gamma, &ONES[..len], self.x, self.d_p);
        maps::gate(isa, 1.0, chunk.a0, &ONES[..len], self.d_a, self.x);
        maps::sums_below(isa, &self.x[..len * CHUNK], &mut [0.0; CHUNK][..len], self.dbeta);
        maps::add_below(isa, self.d_a, chunk.a0, &chunk.beta[..len], self.e);
    }

    /// Gradients that pass through the state. Returns those of the exponents of the decays from the chunk's start, to
    /// its end and over all of it.
    fn state_sides(&mut self, problem: &Problem<'_>, chunk: &mut ChunkTiles<'_>) -> Sides {
        let (isa, scale, [k, v], len) = (problem.isa, problem.scale, problem.width, chunk.len);
        let (to_end, whole) = chunk.to_end();
        let from_start = &chunk.from_start[..len];
        let (keys, values) = (len * k, len * v);

        product(isa, &Product::new([len, k, v], Left::rows(self.d_o, v), self.state_t, k), self.dq, k);
        maps::scale_rows(isa, scale, from_start, &mut self.dq[..keys]);
        product(isa, &Product::new([len, k, v], Left::rows(chunk.v_new, v), self.ds_t, k), self.dk, k);
        maps::scale_rows(isa, 1.0, &to_end[..len], &mut self.dk[..keys]);

        let mut sides = Sides { from_start: [0.0; CHUNK], to_end: [0.0; CHUNK], whole: 0.0 };
        maps::dots(isa, &self.dk[..keys], &chunk.k[..keys], &mut sides.to_end[..len]);
        let mut before = [0.0];
        maps::dots(isa, self.state, self.ds, &mut before);
        sides.whole = before[0] * whole;

        chunk.w.copy_from_slice(self.d_w);
        maps::scale_rows(isa, -1.0, from_start, &mut chunk.w[..values]);
        maps::dots(isa, &self.dq[..keys], &chunk.q[..keys], &mut sides.from_start[..len]);
        maps::dots(isa, &chunk.w[..values], &chunk.u[..values], &mut sides.from_start[..len]);
        product(isa, &Product::new([len, k, v], Left::rows(chunk.w, v), self.state_t, k).onto(1.0), self.dk, k);

        let decay_term = Product::new([k, v, len], Left::columns(chunk.k, k), chunk.w, v).onto(whole);
        product(isa, &decay_term, self.ds, v);
        maps::scale_rows(isa, scale, from_start, &mut self.d_o[..values]);
        let read = Product::new([k, v, len], Left::columns(chunk.q, k), self.d_o, v).onto(1.0);
        product(isa, &read, self.ds, v);
        sides
    }

    /// Through the inverse to the keys' products with each other: their gradients in `x`, below the diagonal.
    fn inverse(&mut self, problem: &Problem<'_>, chunk: &ChunkTiles<'_>) {
        let (isa, len) = (problem.isa, chunk.len);
        let beta = &chunk.beta[..len];
        // dX = -A0ᵀ (dA0 diag β) A0ᵀ below the diagonal
        maps::gate(isa, 1.0, self.d_a, beta, &[1.0; SQUARE], self.x);
        transpose([len, len], chunk.a0, CHUNK, self.y, CHUNK);
        let half = Product::new([len, len, len], Left::rows(self.x, CHUNK), self.y, CHUNK).left(Part::Lower).lower();
        product(isa, &half, self.d_a, CHUNK);
        let dx = Product::new([len, len, len], Left::columns(chunk.a0, CHUNK), self.d_a, CHUNK);
        product(isa, &dx.left(Part::Upper).lower(), self.x, CHUNK);
        for i in 0..len {
            let row = i * CHUNK..i * CHUNK + i;
            let (x, kk) = (&mut self.x[i * CHUNK..(i + 1) * CHUNK], &chunk.kk[row]);
            self.dbeta[i] -= x.iter().zip(kk).map(|(x, kk)| x * kk).sum::<f32>();
            x[..i].iter_mut().for_each(|x| *x *= -beta[i]);
            x[i..].fill(0.0);
        }
    }

    fn write(&self, problem: &Problem<'_>, place: &HeadPlace, tokens: Range<usize>, out: &RuleGradients<'_>) {
        let ([k, v], &Problem { k_heads, v_heads, .. }) = (problem.width, problem);
        let key_head = [k_heads, place.head / (v_heads / k_heads), k];
        // SAFETY: a task has all heads of a group of a sequence, and so its own rows of every gradient.
        unsafe {
            scatter(out.q, tokens.clone(), key_head, self.dq, place.write);
            scatter(out.k, tokens.clone(), key_head, self.dk, place.write);
            scatter(out.v, tokens.clone(), [v_heads, place.head, v], self.d_w, Write::Set);
            scatter(out.g, tokens.clone(), [v_heads, place.head, 1], self.dg, Write::Set);
            scatter(out.beta, tokens, [v_heads, place.head, 1], self.dbeta, Write::Set);
        }
    }
}
