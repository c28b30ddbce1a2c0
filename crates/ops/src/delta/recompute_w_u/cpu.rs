//! One task a row and key head.

use super::{Grad, HeadLayout, WyRepr};
use crate::common::tasks::{self, GradientBuffers, Shared};
use crate::common::tile::{Left, Part, Product, carve, carved, product, transpose};
use crate::delta::chunk::{CHUNK, ONES, SQUARE, Write, gather, maps, scatter};
use alluvium_core::cpu::{Cpu, Floats, Isa};
use alluvium_core::{DType, Result, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;

struct WyInputs<'a> {
    isa: Isa,
    k: Floats<'a>,
    v: Floats<'a>,
    beta: Floats<'a>,
    g: Floats<'a>,
    a: Floats<'a>,
    layout: HeadLayout,
    /// K and V.
    width: [usize; 2],
    dtype: DType,
}

/// A chunk of one value head.
struct WyTiles<'s> {
    len: usize,
    /// The lower triangle of the matrix, zeros above.
    a: &'s mut [f32],
    k: &'s mut [f32],
    v: &'s mut [f32],
    /// Keys and values, scaled and rounded.
    scaled_k: &'s mut [f32],
    scaled_v: &'s mut [f32],
    beta: [f32; CHUNK],
    decay: [f32; CHUNK],
}

impl<'s> WyTiles<'s> {
    fn lengths([k, v]: [usize; 2]) -> [usize; 5] {
        [SQUARE, CHUNK * k, CHUNK * v, CHUNK * k, CHUNK * v]
    }

    fn cut(scratch: &'s mut [f32], width: [usize; 2]) -> Self {
        let [a, k, v, scaled_k, scaled_v] = carve(scratch, Self::lengths(width));
        WyTiles { len: 0, a, k, v, scaled_k, scaled_v, beta: ONES, decay: ONES }
    }
}

impl<'a> WyInputs<'a> {
    fn read(cpu: &Cpu, args: &'a Grad) -> Result<Self> {
        Ok(WyInputs {
            isa: cpu.isa(),
            k: cpu.read(&args.k)?,
            v: cpu.read(&args.v)?,
            beta: cpu.read(&args.beta)?,
            g: cpu.read(&args.g_cum)?,
            a: cpu.read(&args.a)?,
            layout: args.layout,
            width: [args.k.shape().last(), args.v.shape().last()],
            dtype: args.k.dtype(),
        })
    }

    fn load(&self, chunk: &mut WyTiles<'_>, tokens: Range<usize>, head: usize) {
        let ([k, v], HeadLayout { k_heads, v_heads, .. }, len) = (self.width, self.layout, tokens.len());
        let (keys, values) = (len * k, len * v);
        chunk.len = len;
        gather(&self.k, tokens.clone(), [k_heads, self.layout.key_head(head), k], chunk.k);
        gather(&self.v, tokens.clone(), [v_heads, head, v], chunk.v);
        gather(&self.beta, tokens.clone(), [v_heads, head, 1], &mut chunk.beta);
        gather(&self.g, tokens.clone(), [v_heads, head, 1], &mut chunk.decay);
        gather(&self.a, tokens, [v_heads, head, CHUNK], chunk.a);
        (0..len).for_each(|i| chunk.a[i * CHUNK + i + 1..(i + 1) * CHUNK].fill(0.0));
        chunk.decay[..len].iter_mut().for_each(|g| *g = g.exp());
        chunk.scaled_k[..keys].copy_from_slice(&chunk.k[..keys]);
        chunk.scaled_v[..values].copy_from_slice(&chunk.v[..values]);
        maps::scale_rows(self.isa, 1.0, &chunk.beta[..len], &mut chunk.scaled_k[..keys]);
        maps::scale_rows(self.isa, 1.0, &chunk.decay[..len], &mut chunk.scaled_k[..keys]);
        maps::scale_rows(self.isa, 1.0, &chunk.beta[..len], &mut chunk.scaled_v[..values]);
        round(self.dtype, &mut chunk.scaled_k[..keys]);
        round(self.dtype, &mut chunk.scaled_v[..values]);
    }
}

/// To what the storage holds.
fn round(dtype: DType, x: &mut [f32]) {
    let (mut f, mut b) = ([f16::ZERO; CHUNK], [bf16::ZERO; CHUNK]);
    for x in x.chunks_mut(CHUNK) {
        match dtype {
            DType::F16 => {
                f[..x.len()].convert_from_f32_slice(x);
                f[..x.len()].convert_to_f32_slice(x);
            }
            DType::BF16 => {
                b[..x.len()].convert_from_f32_slice(x);
                b[..x.len()].convert_to_f32_slice(x);
            }
            _ => {}
        }
    }
}

pub(super) fn forward(cpu: &Cpu, args: &Grad) -> Result<WyRepr> {
    let given = WyInputs::read(cpu, args)?;
    let (isa, [k, v], HeadLayout { batch, tokens, v_heads, .. }) = (given.isa, given.width, given.layout);
    let mut w = cpu.buffer::<f32>(batch * tokens * v_heads * k)?;
    let mut u = cpu.buffer::<f32>(batch * tokens * v_heads * v)?;
    let (out_w, out_u) = (Shared::new(&mut w), Shared::new(&mut u));
    let length = carved(&WyTiles::lengths(given.width)) + CHUNK * (k + v);
    tasks::each(cpu, batch * v_heads, length, |task, scratch| {
        let (tile_w, scratch) = scratch.split_at_mut(CHUNK * k);
        let (tile_u, scratch) = scratch.split_at_mut(CHUNK * v);
        let (mut chunk, head) = (WyTiles::cut(scratch, given.width), task % v_heads);
        for tokens in given.layout.chunks(task / v_heads) {
            given.load(&mut chunk, tokens.clone(), head);
            let len = chunk.len;
            let a = |b, width| Product::new([len, width, len], Left::rows(chunk.a, CHUNK), b, width).left(Part::Lower);
            product(isa, &a(&*chunk.scaled_k, k), tile_w, k);
            product(isa, &a(&*chunk.scaled_v, v), tile_u, v);
            // SAFETY: each task has its own head of its own row.
            unsafe {
                scatter(out_w, tokens.clone(), [v_heads, head, k], tile_w, Write::Set);
                scatter(out_u, tokens, [v_heads, head, v], tile_u, Write::Set);
            }
        }
    })?;
    let w = cpu.tensor(w, [batch, tokens, v_heads, k], given.dtype)?;
    Ok(WyRepr { w, u: cpu.tensor(u, args.v.shape(), given.dtype)? })
}

pub(super) fn backward(
    cpu: &Cpu,
    args: &Grad,
    dy: [Option<&Tensor>; 2],
    need: [bool; 5],
) -> Result<[Option<Tensor>; 5]> {
    let given = WyInputs::read(cpu, args)?;
    let [dw, du] = dy;
    let (dw, du) = (dw.map(|x| cpu.read(x)).transpose()?, du.map(|x| cpu.read(x)).transpose()?);
    let inputs = [&args.k, &args.v, &args.beta, &args.g_cum, &args.a];
    let mut all = GradientBuffers::new(cpu, inputs.map(Some), need)?;
    let [out_k, out_v, out_beta, out_g, out_a] = all.shared();
    let (layout, [k, v]) = (given.layout, given.width);
    let work = [CHUNK * k, CHUNK * v, CHUNK * k, CHUNK * v, CHUNK * k.max(v), SQUARE];
    let length = carved(&work) + carved(&WyTiles::lengths(given.width));
    tasks::each(cpu, layout.batch * layout.k_heads, length, |task, scratch| {
        let (own, scratch) = scratch.split_at_mut(carved(&work));
        let mut tiles = carve(own, work);
        let mut chunk = WyTiles::cut(scratch, given.width);
        for tokens in layout.chunks(task / layout.k_heads) {
            for (nth, head) in layout.v_heads_of(task % layout.k_heads).enumerate() {
                given.load(&mut chunk, tokens.clone(), head);
                for (d, tile, width) in [(&dw, 0, k), (&du, 1, v)] {
                    match d {
                        Some(d) => gather(d, tokens.clone(), [layout.v_heads, head, width], tiles[tile]),
                        None => tiles[tile].fill(0.0),
                    }
                }
                let (dbeta, dg) = gradients(&given, &chunk, &mut tiles, need);
                let [_, _, d_k, d_v, _, d_a] = &tiles;
                // SAFETY: each task has all value heads of its key head of its own row.
                unsafe {
                    scatter(out_k, tokens.clone(), [layout.k_heads, task % layout.k_heads, k], d_k, Write::nth(nth));
                    scatter(out_v, tokens.clone(), [layout.v_heads, head, v], d_v, Write::Set);
                    scatter(out_a, tokens.clone(), [layout.v_heads, head, CHUNK], d_a, Write::Set);
                    scatter(out_beta, tokens.clone(), [layout.v_heads, head, 1], &dbeta, Write::Set);
                    scatter(out_g, tokens.clone(), [layout.v_heads, head, 1], &dg, Write::Set);
                }
            }
        }
    })?;
    all.into_tensors(cpu)
}

/// From `dw` and `du` in the first two tiles: dk, dv and dA in the others, dβ and dg returned.
fn gradients(
    given: &WyInputs<'_>,
    chunk: &WyTiles<'_>,
    tiles: &mut [&mut [f32]; 6],
    [of_k, of_v, of_beta, of_g, of_a]: [bool; 5],
) -> ([f32; CHUNK], [f32; CHUNK]) {
    let (isa, [k, v], len) = (given.isa, given.width, chunk.len);
    let [d_w, d_u, d_k, d_v, turned, d_a] = tiles;
    if of_a {
        transpose([len, k], chunk.scaled_k, k, turned, CHUNK);
        let by_keys = Product::new([len, len, k], Left::rows(d_w, k), turned, CHUNK).lower();
        product(isa, &by_keys, d_a, CHUNK);
        transpose([len, v], chunk.scaled_v, v, turned, CHUNK);
        let by_values = Product::new([len, len, v], Left::rows(d_u, v), turned, CHUNK).lower();
        product(isa, &by_values.onto(1.0), d_a, CHUNK);
        (0..len).for_each(|i| d_a[i * CHUNK + i + 1..(i + 1) * CHUNK].fill(0.0));
    }
    let back = |b, width| Product::new([len, width, len], Left::columns(chunk.a, CHUNK), b, width).left(Part::Upper);
    let (mut dbeta, mut dg) = ([0.0; CHUNK], [0.0; CHUNK]);
    if of_k || of_beta || of_g {
        product(isa, &back(&**d_w, k), d_k, k);
        maps::scale_rows(isa, 1.0, &chunk.decay[..len], &mut d_k[..len * k]);
        maps::dots(isa, &d_k[..len * k], &chunk.k[..len * k], &mut dg[..len]);
        dbeta.copy_from_slice(&dg);
        dg.iter_mut().zip(chunk.beta).for_each(|(dg, beta)| *dg *= beta);
        maps::scale_rows(isa, 1.0, &chunk.beta[..len], &mut d_k[..len * k]);
    }
    if of_v || of_beta {
        product(isa, &back(&**d_u, v), d_v, v);
        maps::dots(isa, &d_v[..len * v], &chunk.v[..len * v], &mut dbeta[..len]);
        maps::scale_rows(isa, 1.0, &chunk.beta[..len], &mut d_v[..len * v]);
    }
    (dbeta, dg)
}
