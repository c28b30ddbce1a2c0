//! One task a row and key head.

use super::{Grad, HeadLayout};
use crate::common::tasks::{self, GradientBuffers, Shared};
use crate::common::tile::{Left, Part, Product, carve, carved, product, transpose};
use crate::delta::chunk::{CHUNK, ONES, SQUARE, Write, gather, maps, scatter};
use alluvium_core::cpu::{Cpu, Floats, Isa};
use alluvium_core::{Result, Tensor};
use std::ops::Range;

struct OutputInputs<'a> {
    isa: Isa,
    q: Floats<'a>,
    k: Floats<'a>,
    v: Floats<'a>,
    h: Floats<'a>,
    g: Floats<'a>,
    layout: HeadLayout,
    /// K and V.
    width: [usize; 2],
    scale: f32,
}

/// A chunk of one value head.
struct OutputTiles<'s> {
    len: usize,
    q: &'s mut [f32],
    k: &'s mut [f32],
    kt: &'s mut [f32],
    v: &'s mut [f32],
    qk: &'s mut [f32],
    /// Gated and scaled.
    p: &'s mut [f32],
    gamma: &'s mut [f32],
    from_start: [f32; CHUNK],
}

impl<'s> OutputTiles<'s> {
    fn lengths([k, v]: [usize; 2]) -> [usize; 7] {
        [CHUNK * k, CHUNK * k, CHUNK * k, CHUNK * v, SQUARE, SQUARE, SQUARE]
    }

    fn cut(scratch: &'s mut [f32], width: [usize; 2]) -> Self {
        let [q, k, kt, v, qk, p, gamma] = carve(scratch, Self::lengths(width));
        OutputTiles { len: 0, q, k, kt, v, qk, p, gamma, from_start: ONES }
    }
}

impl<'a> OutputInputs<'a> {
    fn read(cpu: &Cpu, args: &'a Grad) -> Result<Self> {
        Ok(OutputInputs {
            isa: cpu.isa(),
            q: cpu.read(&args.q)?,
            k: cpu.read(&args.k)?,
            v: cpu.read(&args.v_new)?,
            h: cpu.read(&args.h)?,
            g: cpu.read(&args.g_cum)?,
            layout: args.layout,
            width: [args.q.shape().last(), args.v_new.shape().last()],
            scale: args.scale,
        })
    }

    /// Where the state of a chunk and head lies in `h`.
    fn state(&self, tokens: &Range<usize>, head: usize) -> usize {
        let HeadLayout { tokens: all, v_heads, .. } = self.layout;
        let (batch, chunk) = (tokens.start / all, tokens.start % all / CHUNK);
        ((batch * all.div_ceil(CHUNK) + chunk) * v_heads + head) * self.width[0] * self.width[1]
    }

    fn load(&self, chunk: &mut OutputTiles<'_>, tokens: Range<usize>, head: usize) {
        let ([k, v], HeadLayout { k_heads, v_heads, .. }, len) = (self.width, self.layout, tokens.len());
        let (isa, key, mut sums) = (self.isa, self.layout.key_head(head), [0.0; CHUNK]);
        chunk.len = len;
        gather(&self.q, tokens.clone(), [k_heads, key, k], chunk.q);
        gather(&self.k, tokens.clone(), [k_heads, key, k], chunk.k);
        gather(&self.v, tokens.clone(), [v_heads, head, v], chunk.v);
        gather(&self.g, tokens, [v_heads, head, 1], &mut sums);
        transpose([len, k], chunk.k, k, chunk.kt, CHUNK);
        product(isa, &Product::new([len, len, k], Left::rows(chunk.q, k), chunk.kt, CHUNK).lower(), chunk.qk, CHUNK);
        maps::decays_of_sums(isa, &sums[..len], chunk.gamma, &mut chunk.from_start);
        maps::gate(isa, self.scale, chunk.gamma, &ONES[..len], chunk.qk, chunk.p);
    }
}

pub(super) fn forward(cpu: &Cpu, args: &Grad) -> Result<Tensor> {
    let given = OutputInputs::read(cpu, args)?;
    let (isa, [k, v], HeadLayout { batch, v_heads, .. }) = (given.isa, given.width, given.layout);
    let mut o = cpu.buffer::<f32>(given.v.len())?;
    let out = Shared::new(&mut o);
    let own = [CHUNK * v, k * v];
    let length = carved(&own) + carved(&OutputTiles::lengths(given.width));
    tasks::each(cpu, batch * v_heads, length, |task, scratch| {
        let (tiles, scratch) = scratch.split_at_mut(carved(&own));
        let [tile, state] = carve(tiles, own);
        let (mut chunk, head) = (OutputTiles::cut(scratch, given.width), task % v_heads);
        for tokens in given.layout.chunks(task / v_heads) {
            given.load(&mut chunk, tokens.clone(), head);
            let len = chunk.len;
            transpose([v, k], &given.h[given.state(&tokens, head)..][..k * v], k, state, v);
            maps::scale_rows(isa, given.scale, &chunk.from_start[..len], &mut chunk.q[..len * k]);
            product(isa, &Product::new([len, v, k], Left::rows(chunk.q, k), state, v), tile, v);
            let inside = Product::new([len, v, len], Left::rows(chunk.p, CHUNK), chunk.v, v).left(Part::Lower);
            product(isa, &inside.onto(1.0), tile, v);
            // SAFETY: each task has its own head of its own row.
            unsafe { scatter(out, tokens, [v_heads, head, v], tile, Write::Set) };
        }
    })?;
    cpu.tensor(o, args.v_new.shape(), args.v_new.dtype())
}

/// Scratch for the gradients of a chunk.
struct OutputTask<'s> {
    d_o: &'s mut [f32],
    dv: &'s mut [f32],
    turned: &'s mut [f32],
    dq: &'s mut [f32],
    dk: &'s mut [f32],
    d_p: &'s mut [f32],
    raw: &'s mut [f32],
    e: &'s mut [f32],
    dg: [f32; CHUNK],
    /// Which of the gradients to q, k, v_new, h and g_cum are needed.
    need: [bool; 5],
}

impl<'s> OutputTask<'s> {
    fn lengths([k, v]: [usize; 2]) -> [usize; 8] {
        [CHUNK * v, CHUNK * v, CHUNK * v, CHUNK * k, CHUNK * k, SQUARE, SQUARE, SQUARE]
    }

    /// Gradients of a chunk, from `d_o`; `dh` is that of its state. `d_o` is scaled in the end.
    fn gradients(&mut self, given: &OutputInputs<'_>, chunk: &OutputTiles<'_>, h: &[f32], dh: &mut [f32]) {
        let (isa, [k, v], len) = (given.isa, given.width, chunk.len);
        let [of_q, of_k, of_v, of_h, of_g] = self.need;
        if of_v {
            let rows = Product::new([len, v, len], Left::columns(chunk.p, CHUNK), self.d_o, v).left(Part::Upper);
            product(isa, &rows, self.dv, v);
        }
        transpose([len, v], chunk.v, v, self.turned, CHUNK);
        let raw = Product::new([len, len, v], Left::rows(self.d_o, v), self.turned, CHUNK).lower();
        product(isa, &raw, self.raw, CHUNK);
        self.e[..len * CHUNK].fill(0.0);
        maps::add_below(isa, self.raw, chunk.p, &ONES[..len], self.e);
        maps::gate(isa, given.scale, chunk.gamma, &ONES[..len], self.raw, self.d_p);

        maps::scale_rows(isa, given.scale, &chunk.from_start[..len], &mut self.d_o[..len * v]);
        product(isa, &Product::new([len, k, v], Left::rows(self.d_o, v), h, k), self.dq, k);
        if of_h {
            product(isa, &Product::new([v, k, len], Left::columns(self.d_o, v), chunk.q, k), dh, k);
        }
        if of_g {
            self.dg.fill(0.0);
            maps::dots(isa, &self.dq[..len * k], &chunk.q[..len * k], &mut self.dg[..len]);
            let mut columns = [0.0; CHUNK];
            maps::sums_below(isa, self.e, &mut self.dg[..len], &mut columns);
            self.dg.iter_mut().zip(columns).for_each(|(dg, x)| *dg -= x);
        }

        if of_q {
            let queries = Product::new([len, k, len], Left::rows(self.d_p, CHUNK), chunk.k, k).left(Part::Lower);
            product(isa, &queries.onto(1.0), self.dq, k);
        }
        if of_k {
            let keys = Product::new([len, k, len], Left::columns(self.d_p, CHUNK), chunk.q, k).left(Part::Upper);
            product(isa, &keys, self.dk, k);
        }
    }
}

pub(super) fn backward(cpu: &Cpu, args: &Grad, dy: &Tensor, need: [bool; 5]) -> Result<[Option<Tensor>; 5]> {
    let (given, d_o) = (OutputInputs::read(cpu, args)?, cpu.read(dy)?);
    let (layout, [k, v]) = (given.layout, given.width);
    let inputs = [&args.q, &args.k, &args.v_new, &args.h, &args.g_cum];
    let mut gradients = GradientBuffers::new(cpu, inputs.map(Some), need)?;
    let [out_q, out_k, out_v, out_h, out_g] = gradients.shared();
    let length = carved(&OutputTask::lengths(given.width)) + carved(&OutputTiles::lengths(given.width));
    tasks::each(cpu, layout.batch * layout.k_heads, length, |task, scratch| {
        let (own, scratch) = scratch.split_at_mut(carved(&OutputTask::lengths(given.width)));
        let [tile_o, tile_v, turned, tile_q, tile_k, d_p, raw, e] = carve(own, OutputTask::lengths(given.width));
        let mut work =
            OutputTask { d_o: tile_o, dv: tile_v, turned, dq: tile_q, dk: tile_k, d_p, raw, e, dg: [0.0; CHUNK], need };
        let mut chunk = OutputTiles::cut(scratch, given.width);
        for tokens in layout.chunks(task / layout.k_heads) {
            for (nth, head) in layout.v_heads_of(task % layout.k_heads).enumerate() {
                given.load(&mut chunk, tokens.clone(), head);
                gather(&d_o, tokens.clone(), [layout.v_heads, head, v], work.d_o);
                let at = given.state(&tokens, head);
                // SAFETY: each task has all value heads of its key head of its own row, and their states.
                let d_state = if need[3] { unsafe { out_h.part(at, k * v) } } else { &mut [] };
                work.gradients(&given, &chunk, &given.h[at..][..k * v], d_state);
                let key_head = [layout.k_heads, task % layout.k_heads, k];
                // SAFETY: as above.
                unsafe {
                    scatter(out_q, tokens.clone(), key_head, work.dq, Write::nth(nth));
                    scatter(out_k, tokens.clone(), key_head, work.dk, Write::nth(nth));
                    scatter(out_v, tokens.clone(), [layout.v_heads, head, v], work.dv, Write::Set);
                    scatter(out_g, tokens.clone(), [layout.v_heads, head, 1], &work.dg, Write::Set);
                }
            }
        }
    })?;
    gradients.into_tensors(cpu)
}
