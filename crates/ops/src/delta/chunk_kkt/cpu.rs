//! One task a row and key head; the value heads that read it share its products.

use super::{Grad, HeadLayout};
use crate::common::tasks::{self, GradientBuffers, Shared};
use crate::common::tile::{Left, Part, Product, carve, carved, product, transpose};
use crate::delta::chunk::{CHUNK, ONES, SQUARE, Write, gather, maps, scatter};
use alluvium_core::cpu::{Cpu, Floats, Isa};
use alluvium_core::{DType, Result, Tensor};
use std::ops::Range;

struct KktInputs<'a> {
    isa: Isa,
    k: Floats<'a>,
    beta: Floats<'a>,
    g: Floats<'a>,
    layout: HeadLayout,
    width: usize,
}

impl<'a> KktInputs<'a> {
    fn read(cpu: &Cpu, args: &'a Grad) -> Result<Self> {
        let (k, beta, g) = (cpu.read(&args.k)?, cpu.read(&args.beta)?, cpu.read(&args.g_cum)?);
        Ok(KktInputs { isa: cpu.isa(), k, beta, g, layout: args.layout, width: args.k.shape().last() })
    }

    fn scratch(&self) -> [usize; 6] {
        [CHUNK * self.width, CHUNK * self.width, SQUARE, SQUARE, CHUNK, CHUNK]
    }

    /// The keys of a chunk, their transpose and their products.
    fn keys(&self, tokens: Range<usize>, key_head: usize, [k, kt, kk]: [&mut [f32]; 3]) {
        let (len, width) = (tokens.len(), self.width);
        gather(&self.k, tokens, [self.layout.k_heads, key_head, width], k);
        transpose([len, width], k, width, kt, CHUNK);
        product(self.isa, &Product::new([len, len, width], Left::rows(k, width), kt, CHUNK).lower(), kk, CHUNK);
    }

    /// The decays of a value head, and its beta.
    fn gates(&self, tokens: Range<usize>, head: usize, gamma: &mut [f32], beta: &mut [f32]) {
        let (mut sums, mut rest, len) = ([0.0; CHUNK], [0.0; CHUNK], tokens.len());
        gather(&self.g, tokens.clone(), [self.layout.v_heads, head, 1], &mut sums);
        gather(&self.beta, tokens, [self.layout.v_heads, head, 1], beta);
        maps::decays_of_sums(self.isa, &sums[..len], gamma, &mut rest);
    }
}

pub(super) fn forward(cpu: &Cpu, args: &Grad) -> Result<Tensor> {
    let given = KktInputs::read(cpu, args)?;
    let HeadLayout { batch, tokens, k_heads, v_heads } = given.layout;
    let mut l = cpu.buffer::<f32>(batch * tokens * v_heads * CHUNK)?;
    let out = Shared::new(&mut l);
    let length = carved(&given.scratch()) + SQUARE;
    tasks::each(cpu, batch * k_heads, length, |task, scratch| {
        let (square, scratch) = scratch.split_at_mut(SQUARE);
        let [k, kt, kk, gamma, beta, _] = carve(scratch, given.scratch());
        for tokens in given.layout.chunks(task / k_heads) {
            given.keys(tokens.clone(), task % k_heads, [k, kt, kk]);
            for head in given.layout.v_heads_of(task % k_heads) {
                given.gates(tokens.clone(), head, gamma, beta);
                let len = tokens.len();
                maps::gate(given.isa, 1.0, gamma, &ONES[..len], kk, square);
                maps::scale_rows(given.isa, 1.0, &beta[..len], &mut square[..len * CHUNK]);
                (0..len).for_each(|i| square[i * CHUNK + i] = 0.0);
                // SAFETY: each task has its own heads of its own row.
                unsafe { scatter(out, tokens.clone(), [v_heads, head, CHUNK], square, Write::Set) };
            }
        }
    })?;
    cpu.tensor(l, [batch, tokens, v_heads, CHUNK], DType::F32)
}

pub(super) fn backward(cpu: &Cpu, args: &Grad, dy: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let (given, dl) = (KktInputs::read(cpu, args)?, cpu.read(dy)?);
    let (isa, width, HeadLayout { batch, k_heads, v_heads, .. }) = (given.isa, given.width, given.layout);
    let mut gradients = GradientBuffers::new(cpu, [&args.k, &args.beta, &args.g_cum].map(Some), need)?;
    let [out_k, out_beta, out_g] = gradients.shared();
    let lengths = [SQUARE, SQUARE, SQUARE, CHUNK * width];
    let length = carved(&lengths) + carved(&given.scratch());
    tasks::each(cpu, batch * k_heads, length, |task, scratch| {
        let (own, scratch) = scratch.split_at_mut(carved(&lengths));
        let [d_l, m, e, d_k] = carve(own, lengths);
        let [k, kt, kk, gamma, beta, _] = carve(scratch, given.scratch());
        for tokens in given.layout.chunks(task / k_heads) {
            let len = tokens.len();
            given.keys(tokens.clone(), task % k_heads, [k, kt, kk]);
            for (nth, head) in given.layout.v_heads_of(task % k_heads).enumerate() {
                given.gates(tokens.clone(), head, gamma, beta);
                gather(&dl, tokens.clone(), [v_heads, head, CHUNK], d_l);
                maps::gate(isa, 1.0, gamma, &ONES[..len], d_l, m);
                (0..len).for_each(|i| m[i * CHUNK + i] = 0.0);
                e[..len * CHUNK].fill(0.0);
                maps::add_below(isa, m, kk, &ONES[..len], e);
                let (mut rows, mut columns) = ([0.0; CHUNK], [0.0; CHUNK]);
                maps::sums_below(isa, e, &mut rows[..len], &mut columns);
                // SAFETY: each task has its own heads of its own row.
                unsafe { scatter(out_beta, tokens.clone(), [v_heads, head, 1], &rows, Write::Set) };
                maps::scale_rows(isa, 1.0, &beta[..len], &mut e[..len * CHUNK]);
                maps::scale_rows(isa, 1.0, &beta[..len], &mut m[..len * CHUNK]);
                let (mut rows, mut columns) = ([0.0; CHUNK], [0.0; CHUNK]);
                maps::sums_below(isa, e, &mut rows[..len], &mut columns);
                rows.iter_mut().zip(columns).for_each(|(row, column)| *row -= column);
                if need[0] {
                    let lower = Product::new([len, width, len], Left::rows(m, CHUNK), k, width).left(Part::Lower);
                    product(isa, &lower, d_k, width);
                    let upper = Product::new([len, width, len], Left::columns(m, CHUNK), k, width).left(Part::Upper);
                    product(isa, &upper.onto(1.0), d_k, width);
                }
                // SAFETY: as above.
                unsafe {
                    scatter(out_g, tokens.clone(), [v_heads, head, 1], &rows, Write::Set);
                    scatter(out_k, tokens.clone(), [k_heads, task % k_heads, width], d_k, Write::nth(nth));
                }
            }
        }
    })?;
    gradients.into_tensors(cpu)
}
