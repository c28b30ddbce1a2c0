//! Sums of spans of equal length on all threads, added in order.

use alluvium_core::cpu::Cpu;
use alluvium_core::{Result, Tensor};
use rayon::prelude::*;

/// Elements of a task: a fixed number, so that results do not depend on the threads.
const SPAN: usize = 1 << 15;

pub(super) fn norm(cpu: &Cpu, tensors: &[&Tensor]) -> Result<Tensor> {
    let mut sum = 0.0;
    for x in tensors {
        sum += squares(cpu, x)?;
    }
    Tensor::full([], sum.sqrt() as f32, &cpu.clone().into())
}

fn squares(cpu: &Cpu, x: &Tensor) -> Result<f64> {
    let (x, isa) = (cpu.read(x)?, cpu.isa());
    let sums: Vec<f64> = cpu.run(|| x.par_chunks(SPAN).map(|x| sum_of_squares(isa, x)).collect());
    Ok(sums.into_iter().sum())
}

alluvium_core::simd! {
    /// Sixteen sums, which the compiler lays in registers of f64.
    fn sum_of_squares<S>(x: &[f32]) -> f64 {
        let mut sums = [0.0f64; 16];
        let whole = x.chunks_exact(16);
        for (sum, &x) in sums.iter_mut().zip(whole.remainder()) {
            *sum = f64::from(x) * f64::from(x);
        }
        for x in whole {
            for (sum, &x) in sums.iter_mut().zip(x) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        sums.iter().sum()
    }
}
