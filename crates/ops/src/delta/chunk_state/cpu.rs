//! One task a row and head; the backward pass takes the value heads of a key head together.

use super::{ChunkStateOutput, Grad, HeadLayout};
use crate::common::tasks::{self, GradientBuffers, Shared};
use crate::common::tile::{Left, Product, carve, carved, product, transpose};
use crate::delta::chunk::{CHUNK, SQUARE, Write, gather, maps, scatter};
use alluvium_core::cpu::{Cpu, Floats, Isa};
use alluvium_core::{DType, Error, Result, Tensor};
use std::ops::Range;

struct StateInputs<'a> {
    isa: Isa,
    k: Floats<'a>,
    w: Floats<'a>,
    u: Floats<'a>,
    g: Floats<'a>,
    start: Option<Floats<'a>>,
    layout: HeadLayout,
    /// K and V.
    width: [usize; 2],
}

impl<'a> StateInputs<'a> {
    fn read(cpu: &Cpu, args: &'a Grad) -> Result<Self> {
        Ok(StateInputs {
            isa: cpu.isa(),
            k: cpu.read(&args.k)?,
            w: cpu.read(&args.w)?,
            u: cpu.read(&args.u)?,
            g: cpu.read(&args.g_cum)?,
            start: args.initial_state.as_ref().map(|s| cpu.read(s)).transpose()?,
            layout: args.layout,
            width: [args.k.shape().last(), args.u.shape().last()],
        })
    }

    fn size(&self) -> usize {
        self.width[0] * self.width[1]
    }

    /// Where the state of a chunk and head lies in `h`.
    fn kept(&self, row: usize, chunk: usize, head: usize) -> usize {
        ((row * self.layout.tokens.div_ceil(CHUNK) + chunk) * self.layout.v_heads + head) * self.size()
    }

    /// Decay from each token to the chunk's end, and over the whole chunk.
    fn decays(&self, tokens: Range<usize>, head: usize, gamma: &mut [f32]) -> ([f32; CHUNK], f32) {
        let (len, mut sums, mut from_start) = (tokens.len(), [0.0; CHUNK], [0.0; CHUNK]);
        gather(&self.g, tokens, [self.layout.v_heads, head, 1], &mut sums);
        maps::decays_of_sums(self.isa, &sums[..len], gamma, &mut from_start);
        let mut to_end = [0.0; CHUNK];
        to_end.copy_from_slice(&gamma[(len - 1) * CHUNK..len * CHUNK]);
        (to_end, from_start[len - 1])
    }
}

pub(super) fn forward(cpu: &Cpu, args: &Grad) -> Result<ChunkStateOutput> {
    let given = StateInputs::read(cpu, args)?;
    let (isa, [k, v], size) = (given.isa, given.width, given.size());
    let HeadLayout { batch, tokens, k_heads, v_heads } = given.layout;
    let chunks = tokens.div_ceil(CHUNK);
    let mut h = cpu.buffer::<f32>(batch * chunks * v_heads * size)?;
    let mut v_new = cpu.buffer::<f32>(given.u.len())?;
    let mut last = cpu.buffer::<f32>(batch * v_heads * size)?;
    let [out_h, out_v, out_last] = [&mut h, &mut v_new, &mut last].map(|x| Shared::new(x));
    let lengths = [size, CHUNK * k, CHUNK * k, CHUNK * v, CHUNK * v, SQUARE];
    tasks::each(cpu, batch * v_heads, carved(&lengths), |task, scratch| {
        let [state, keys, w, u, written, gamma] = carve(scratch, lengths);
        let (row, head) = (task / v_heads, task % v_heads);
        match &given.start {
            Some(start) => transpose([v, k], &start[task * size..][..size], k, state, v),
            None => state.fill(0.0),
        }
        for (chunk, tokens) in given.layout.chunks(row).enumerate() {
            let len = tokens.len();
            // SAFETY: each task has its own head of its own row, and so its own states.
            transpose([k, v], state, v, unsafe { out_h.part(given.kept(row, chunk, head), size) }, k);
            let (to_end, whole) = given.decays(tokens.clone(), head, gamma);
            gather(&given.k, tokens.clone(), [k_heads, given.layout.key_head(head), k], keys);
            gather(&given.w, tokens.clone(), [v_heads, head, k], w);
            gather(&given.u, tokens.clone(), [v_heads, head, v], u);
            product(isa, &Product::new([len, v, k], Left::rows(w, k), state, v), written, v);
            written.iter_mut().zip(&*u).for_each(|(x, u)| *x = u - *x);
            // SAFETY: each task has its own head of its own row.
            unsafe { scatter(out_v, tokens, [v_heads, head, v], written, Write::Set) };
            maps::scale_rows(isa, 1.0, &to_end[..len], &mut written[..len * v]);
            let added = Product::new([k, v, len], Left::columns(keys, k), written, v).onto(whole);
            product(isa, &added, state, v);
        }
        // SAFETY: as above.
        transpose([k, v], state, v, unsafe { out_last.part(task * size, size) }, k);
    })?;
    Ok(ChunkStateOutput {
        h: cpu.tensor(h, [batch, chunks, v_heads, v, k], DType::F32)?,
        v_new: cpu.tensor(v_new, args.u.shape(), args.u.dtype())?,
        final_state: cpu.tensor(last, [batch, v_heads, v, k], DType::F32)?,
    })
}

/// The incoming gradients and the saved values of the forward pass.
struct Back<'a> {
    h: Floats<'a>,
    v_new: Floats<'a>,
    d_h: Option<Floats<'a>>,
    d_new: Option<Floats<'a>>,
    d_last: Option<Floats<'a>>,
}

/// Where the gradients go.
struct StateResults<'a> {
    k: Shared<'a>,
    w: Shared<'a>,
    u: Shared<'a>,
    g: Shared<'a>,
    start: Option<Shared<'a>>,
}

pub(super) fn backward(
    cpu: &Cpu,
    args: &Grad,
    dy: [Option<&Tensor>; 3],
    need: [bool; 5],
) -> Result<[Option<Tensor>; 5]> {
    let given = StateInputs::read(cpu, args)?;
    let Some((h, v_new)) = &args.states else {
        return Err(Error::value("chunk_state", "the forward pass left no states"));
    };
    let [d_h, d_new, d_last] = dy;
    let back = Back {
        h: cpu.read(h)?,
        v_new: cpu.read(v_new)?,
        d_h: d_h.map(|x| cpu.read(x)).transpose()?,
        d_new: d_new.map(|x| cpu.read(x)).transpose()?,
        d_last: d_last.map(|x| cpu.read(x)).transpose()?,
    };
    let inputs = [Some(&args.k), Some(&args.w), Some(&args.u), Some(&args.g_cum), args.initial_state.as_ref()];
    let mut gradients = GradientBuffers::new(cpu, inputs, need)?;
    let [k, w, u, g, start] = gradients.shared();
    let out = StateResults { k, w, u, g, start: (!start.is_empty()).then_some(start) };
    let layout = given.layout;
    let length = carved(&lengths(given.width));
    tasks::each(cpu, layout.batch * layout.k_heads, length, |task, scratch| {
        for (nth, head) in layout.v_heads_of(task % layout.k_heads).enumerate() {
            one_head(&given, &back, [task / layout.k_heads, head], Write::nth(nth), scratch, &out);
        }
    })?;
    gradients.into_tensors(cpu)
}

fn lengths([k, v]: [usize; 2]) -> [usize; 9] {
    let (keys, values) = (CHUNK * k, CHUNK * v);
    [k * v, k * v, keys, keys, keys, keys, values, values, SQUARE]
}

/// One row of one value head, from its last chunk; the state's gradient is held as the state is, and transposed.
fn one_head(
    given: &StateInputs<'_>,
    back: &Back<'_>,
    [row, head]: [usize; 2],
    write: Write,
    scratch: &mut [f32],
    out: &StateResults<'_>,
) {
    let (isa, [k, v], size, HeadLayout { k_heads, v_heads, .. }) = (given.isa, given.width, given.size(), given.layout);
    let [ds, turned, keys, w, dk, dw, written, d, gamma] = carve(scratch, lengths(given.width));
    let (at, key_head) = ((row * v_heads + head) * size, given.layout.key_head(head));
    match &back.d_last {
        Some(last) => ds.copy_from_slice(&last[at..at + size]),
        None => ds.fill(0.0),
    }
    for (chunk, tokens) in given.layout.chunks(row).enumerate().rev() {
        let (len, kept) = (tokens.len(), given.kept(row, chunk, head));
        let h = &back.h[kept..kept + size];
        let (to_end, whole) = given.decays(tokens.clone(), head, gamma);
        gather(&given.k, tokens.clone(), [k_heads, key_head, k], keys);
        gather(&given.w, tokens.clone(), [v_heads, head, k], w);
        gather(&back.v_new, tokens.clone(), [v_heads, head, v], written);
        transpose([v, k], ds, k, turned, v);
        product(isa, &Product::new([len, v, k], Left::rows(keys, k), turned, v), d, v);
        maps::scale_rows(isa, 1.0, &to_end[..len], &mut d[..len * v]);
        if let Some(d_new) = &back.d_new {
            for (token, d) in tokens.clone().zip(d.chunks_exact_mut(v)) {
                let more = &d_new[(token * v_heads + head) * v..][..v];
                d.iter_mut().zip(more).for_each(|(d, x)| *d += x);
            }
        }
        if !out.w.is_empty() {
            product(isa, &Product::new([len, k, v], Left::rows(d, v), h, k), dw, k);
            dw[..len * k].iter_mut().for_each(|x| *x = -*x);
        }
        if !out.k.is_empty() || !out.g.is_empty() {
            product(isa, &Product::new([len, k, v], Left::rows(written, v), ds, k), dk, k);
            maps::scale_rows(isa, 1.0, &to_end[..len], &mut dk[..len * k]);
        }
        let (mut dg, mut dots) = ([0.0; CHUNK], [0.0]);
        maps::dots(isa, &dk[..len * k], &keys[..len * k], &mut dg[..len]);
        maps::dots(isa, h, ds, &mut dots);
        // the last token's own write does not decay: its term would be added and taken away
        let last = whole * dots[0] + dg[..len - 1].iter().sum::<f32>();
        dg.iter_mut().for_each(|x| *x = -*x);
        dg[len - 1] = last;
        // SAFETY: each task has all value heads of its key head of its own row.
        unsafe {
            scatter(out.k, tokens.clone(), [k_heads, key_head, k], dk, write);
            scatter(out.w, tokens.clone(), [v_heads, head, k], dw, Write::Set);
            scatter(out.u, tokens.clone(), [v_heads, head, v], d, Write::Set);
            scatter(out.g, tokens, [v_heads, head, 1], &dg, Write::Set);
        }
        d[..len * v].iter_mut().for_each(|x| *x = -*x);
        product(isa, &Product::new([v, k, len], Left::columns(d, v), w, k).onto(whole), ds, k);
        if let Some(d_h) = &back.d_h {
            ds.iter_mut().zip(&d_h[kept..kept + size]).for_each(|(ds, x)| *ds += x);
        }
    }
    if let Some(start) = &out.start {
        // SAFETY: as above.
        unsafe { start.part(at, size) }.copy_from_slice(ds);
    }
}
