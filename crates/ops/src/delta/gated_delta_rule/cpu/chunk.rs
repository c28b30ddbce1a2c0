//! The part that forward and backward share: a chunk's values in scratch, its inverse and its corrected values.

use super::Problem;
use crate::common::tile::{Left, Part, Product, carve, carved, product, transpose};
use crate::delta::chunk::{CHUNK, ONES, SQUARE, gather, maps};
use std::ops::Range;

/// Scratch for a chunk. Rows are packed: tokens of one head lie apart in the tensors.
pub(super) struct ChunkTiles<'s> {
    /// Tokens in it.
    pub(super) len: usize,
    pub(super) q: &'s mut [f32],
    pub(super) k: &'s mut [f32],
    /// Keys, transposed.
    pub(super) kt: &'s mut [f32],
    pub(super) v: &'s mut [f32],
    pub(super) g: &'s mut [f32],
    pub(super) beta: &'s mut [f32],
    /// Products of keys with keys, on and below the diagonal.
    pub(super) kk: &'s mut [f32],
    /// The inverse without the gate.
    pub(super) a0: &'s mut [f32],
    /// The inverse with gate and beta.
    pub(super) a: &'s mut [f32],
    /// Gated, scaled products of queries with keys.
    pub(super) p: &'s mut [f32],
    /// The same, neither gated nor scaled.
    qk: &'s mut [f32],
    /// Decay from token to token, and from the chunk's start.
    pub(super) gamma: &'s mut [f32],
    pub(super) from_start: &'s mut [f32],
    /// The prediction of the values by the state; the residual; the corrected values.
    pub(super) u: &'s mut [f32],
    pub(super) w: &'s mut [f32],
    pub(super) v_new: &'s mut [f32],
}

impl<'s> ChunkTiles<'s> {
    fn lengths([k, v]: [usize; 2]) -> [usize; 16] {
        let (keys, values) = (CHUNK * k, CHUNK * v);
        [
            keys, keys, keys, values, CHUNK, CHUNK, SQUARE, SQUARE, SQUARE, SQUARE, SQUARE, SQUARE, CHUNK, values,
            values, values,
        ]
    }

    /// Elements of scratch that it needs.
    pub(super) fn scratch(width: [usize; 2]) -> usize {
        carved(&Self::lengths(width))
    }

    /// Cuts it from scratch.
    pub(super) fn cut(scratch: &'s mut [f32], width: [usize; 2]) -> Self {
        let [q, k, kt, v, g, beta, kk, a0, a, p, qk, gamma, from_start, u, w, v_new] =
            carve(scratch, Self::lengths(width));
        ChunkTiles { len: 0, q, k, kt, v, g, beta, kk, a0, a, p, qk, gamma, from_start, u, w, v_new }
    }

    /// Reads the tokens of a value head and computes what does not need the state, but for the queries' part.
    pub(super) fn load(&mut self, problem: &Problem<'_>, tokens: Range<usize>, head: usize) {
        let (isa, len, [width, _]) = (problem.isa, tokens.len(), problem.width);
        self.len = len;
        let Problem { k_heads, v_heads, .. } = *problem;
        gather(&problem.k, tokens.clone(), [k_heads, head / (v_heads / k_heads), width], self.k);
        gather(&problem.v, tokens.clone(), [v_heads, head, problem.width[1]], self.v);
        gather(&problem.g, tokens.clone(), [v_heads, head, 1], self.g);
        gather(&problem.beta, tokens, [v_heads, head, 1], self.beta);
        transpose([len, width], self.k, width, self.kt, CHUNK);
        let kk = Product::new([len, len, width], Left::rows(self.k, width), self.kt, CHUNK).lower();
        product(isa, &kk, self.kk, CHUNK);
        maps::decays(isa, &self.g[..len], self.gamma, self.from_start);
        maps::invert(isa, self.kk, &self.beta[..len], self.a0);
        maps::gate(isa, 1.0, self.gamma, &self.beta[..len], self.a0, self.a);
    }

    /// Reads the queries and multiplies them with the keys.
    pub(super) fn load_queries(&mut self, problem: &Problem<'_>, tokens: Range<usize>, head: usize) {
        let (isa, len, [width, _]) = (problem.isa, self.len, problem.width);
        let key_head = head / (problem.v_heads / problem.k_heads);
        gather(&problem.q, tokens, [problem.k_heads, key_head, width], self.q);
        let qk = Product::new([len, len, width], Left::rows(self.q, width), self.kt, CHUNK).lower();
        product(isa, &qk, self.qk, CHUNK);
        maps::gate(isa, problem.scale, self.gamma, &ONES[..len], self.qk, self.p);
    }

    /// Computes the corrected values of this chunk from the state at its start.
    pub(super) fn correct(&mut self, problem: &Problem<'_>, state: &[f32]) {
        let (isa, len, [k, v]) = (problem.isa, self.len, problem.width);
        product(isa, &Product::new([len, v, k], Left::rows(self.k, k), state, v), self.u, v);
        maps::residual(isa, &self.v[..len * v], &self.from_start[..len], self.u, self.w);
        let new = Product::new([len, v, len], Left::rows(self.a, CHUNK), self.w, v).left(Part::Lower);
        product(isa, &new, self.v_new, v);
    }

    /// Moves the state to the chunk's end. What it writes is decayed in place, so this comes last.
    pub(super) fn advance(&mut self, problem: &Problem<'_>, state: &mut [f32]) {
        let (isa, len, [k, v]) = (problem.isa, self.len, problem.width);
        let (to_end, whole) = self.to_end();
        maps::scale_rows(isa, 1.0, &to_end[..len], &mut self.v_new[..len * v]);
        let update = Product::new([k, v, len], Left::columns(self.k, k), self.v_new, v).onto(whole);
        product(isa, &update, state, v);
    }

    /// Decay from each token to the chunk's end, and over the whole chunk.
    pub(super) fn to_end(&self) -> ([f32; CHUNK], f32) {
        let mut to_end = [0.0; CHUNK];
        to_end.copy_from_slice(&self.gamma[(self.len - 1) * CHUNK..][..CHUNK]);
        (to_end, self.from_start[self.len - 1])
    }
}
