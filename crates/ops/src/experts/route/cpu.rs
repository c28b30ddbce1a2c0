//! Threads over tokens.

use super::{Grad, RouteOutput, Routing};
use alluvium_core::cpu::Cpu;
use alluvium_core::cpu::simd::math::exp;
use alluvium_core::{Result, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, logits: &Tensor, routing: Routing) -> Result<RouteOutput> {
    let Routing { top_k, norm_topk_prob } = routing;
    let (rows, width) = (logits.shape()[0], logits.shape()[1]);
    let xs = cpu.read(logits)?;
    let (mut weights, mut experts) = (cpu.buffer::<f32>(rows * top_k)?, cpu.buffer::<u32>(rows * top_k)?);
    let grain = cpu.grain(rows, 4 * width);
    let isa = cpu.isa();
    cpu.run(|| {
        let to = weights.par_chunks_mut(top_k).zip(experts.par_chunks_mut(top_k));
        xs.par_chunks(width).zip(to).with_min_len(grain).for_each(|(x, (weights, experts))| {
            largest(x, experts);
            let max = x[experts[0] as usize];
            weights.iter_mut().zip(&*experts).for_each(|(w, &expert)| *w = x[expert as usize]);
            let chosen = exp_sub_max(isa, weights, max);
            let sum = if norm_topk_prob { chosen } else { sum_exp_sub_max(isa, x, max) };
            weights.iter_mut().for_each(|w| *w /= sum);
        });
    });
    Ok(RouteOutput { weights: cpu.wrap(weights, [rows, top_k])?, experts: cpu.wrap(experts, [rows, top_k])? })
}

/// An integer in the order of the logits: both zeros are equal, NaN is below −∞. As in kernel.wgsl.
fn rank(x: f32) -> u32 {
    let bits = x.to_bits();
    match bits & 0x7fff_ffff {
        0 => 0x8000_0000,
        size if size > 0x7f80_0000 => 0,
        _ if bits > 0x7fff_ffff => !bits,
        _ => bits | 0x8000_0000,
    }
}

/// The places of the largest values, in falling order; of equal ones the first comes first, and NaN comes last.
fn largest(x: &[f32], places: &mut [u32]) {
    let mut found = 0;
    for (i, &value) in x.iter().enumerate() {
        let own = rank(value);
        if found == places.len() && rank(x[places[found - 1] as usize]) >= own {
            continue;
        }
        let at = places[..found].partition_point(|&place| rank(x[place as usize]) >= own);
        found = (found + 1).min(places.len());
        if at < found {
            places.copy_within(at..found - 1, at + 1);
            places[at] = i as u32;
        }
    }
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dw: &Tensor) -> Result<Tensor> {
    let Grad { logits, route, norm_topk_prob } = saved;
    let (width, top_k, isa) = (logits.shape()[1], dw.shape()[1], cpu.isa());
    let (xs, ws, dws, experts) =
        (cpu.read(logits)?, cpu.read(&route.weights)?, cpu.read(dw)?, route.experts.slice::<u32>()?);
    let mut dx = cpu.buffer::<f32>(xs.len())?;
    let grain = cpu.grain(dx.len() / width, 4 * width);
    cpu.run(|| {
        let rows = ws.par_chunks(top_k).zip(dws.par_chunks(top_k)).zip(experts.par_chunks(top_k));
        let all = dx.par_chunks_mut(width).zip(xs.par_chunks(width)).zip(rows).with_min_len(grain);
        all.for_each(|((dx, x), ((ws, dws), experts))| {
            let mean: f32 = ws.iter().zip(dws).map(|(w, dw)| w * dw).sum();
            if *norm_topk_prob {
                dx.fill(0.0);
            } else {
                let max = x[experts[0] as usize];
                dx.copy_from_slice(x);
                let factor = -mean / exp_sub_max(isa, dx, max);
                dx.iter_mut().for_each(|dx| *dx *= factor);
            }
            let offset = if *norm_topk_prob { mean } else { 0.0 };
            for ((&expert, w), dw) in experts.iter().zip(ws).zip(dws) {
                dx[expert as usize] += w * (dw - offset);
            }
        });
    });
    cpu.tensor(dx, logits.shape(), logits.dtype())
}

alluvium_core::simd! {
    /// `x = e^(x − max)`; returns the sum.
    fn exp_sub_max<S>(x: &mut [f32], max: f32) -> f32 {
        for x in x.chunks_mut(S::LANES) {
            exp(S::load_partial(x) - S::splat(max)).store_partial(x);
        }
        let mut sum = S::splat(0.0);
        for x in x.chunks(S::LANES) {
            sum += S::load_partial(x);
        }
        sum.sum()
    }

    /// `Σ e^(x − max)`.
    fn sum_exp_sub_max<S>(x: &[f32], max: f32) -> f32 {
        let mut sum = S::splat(0.0);
        let (whole, rest) = x.split_at(x.len() - x.len() % S::LANES);
        for x in whole.chunks_exact(S::LANES) {
            sum += exp(S::load(x) - S::splat(max));
        }
        // lanes past the end would count as e^(0 − max)
        let mut raised = [0.0; 16];
        exp(S::load_partial(rest) - S::splat(max)).store_partial(&mut raised[..rest.len()]);
        (sum + S::load_partial(&raised[..rest.len()])).sum()
    }
}
