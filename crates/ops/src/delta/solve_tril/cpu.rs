//! One task a row and head.

use super::Grad;
use crate::common::tasks::{self, Shared};
use crate::common::tile::{Left, Part, Product, carve, product, transpose};
use crate::delta::chunk::{CHUNK, HeadLayout, ONES, SQUARE, Write, gather, maps, scatter};
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Result, Tensor};

pub(super) fn forward(cpu: &Cpu, l: &Tensor, layout: HeadLayout) -> Result<Tensor> {
    let (from, v_heads, isa) = (cpu.read(l)?, layout.v_heads, cpu.isa());
    let mut a = cpu.buffer::<f32>(from.len())?;
    let out = Shared::new(&mut a);
    tasks::each(cpu, layout.batch * v_heads, 2 * SQUARE, |task, scratch| {
        let (x, y) = scratch.split_at_mut(SQUARE);
        for tokens in layout.chunks(task / v_heads) {
            let place = [v_heads, task % v_heads, CHUNK];
            gather(&from, tokens.clone(), place, x);
            maps::invert(isa, x, &ONES[..tokens.len()], y);
            // SAFETY: each task has its own head of its own row.
            unsafe { scatter(out, tokens, place, y, Write::Set) };
        }
    })?;
    cpu.tensor(a, l.shape(), DType::F32)
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor) -> Result<[Option<Tensor>; 1]> {
    let (all_a, all_d, layout, isa) = (cpu.read(&saved.a)?, cpu.read(dy)?, saved.layout, cpu.isa());
    let v_heads = layout.v_heads;
    let mut dl = cpu.buffer::<f32>(all_a.len())?;
    let out = Shared::new(&mut dl);
    tasks::each(cpu, layout.batch * v_heads, 5 * SQUARE, |task, scratch| {
        let [a, turned, d_a, half, x] = carve(scratch, [SQUARE; 5]);
        for tokens in layout.chunks(task / v_heads) {
            let (place, len) = ([v_heads, task % v_heads, CHUNK], tokens.len());
            gather(&all_a, tokens.clone(), place, a);
            gather(&all_d, tokens.clone(), place, d_a);
            (0..len).for_each(|i| d_a[i * CHUNK + i..(i + 1) * CHUNK].fill(0.0));
            transpose([len, len], a, CHUNK, turned, CHUNK);
            let first = Product::new([len, len, len], Left::rows(d_a, CHUNK), turned, CHUNK).left(Part::Lower).lower();
            product(isa, &first, half, CHUNK);
            let second = Product::new([len, len, len], Left::columns(a, CHUNK), half, CHUNK).left(Part::Upper).lower();
            product(isa, &second, x, CHUNK);
            for (i, row) in x.chunks_exact_mut(CHUNK).take(len).enumerate() {
                row[..i].iter_mut().for_each(|x| *x = -*x);
                row[i..].fill(0.0);
            }
            // SAFETY: each task has its own head of its own row.
            unsafe { scatter(out, tokens, place, x, Write::Set) };
        }
    })?;
    Ok([Some(cpu.tensor(dl, saved.a.shape(), DType::F32)?)])
}
