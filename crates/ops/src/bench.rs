//! How fast an operation is on a device, against the device's own ceiling measured in the same run.

use crate::Transpose;
use crate::check::Inputs;
use crate::op::{Case, Op};
use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Result, Shape, Tape, Tensor, tape};
use std::time::{Duration, Instant};

/// What the device can do at most: measured, not looked up.
#[derive(Clone, Copy, Debug)]
pub struct Ceiling {
    /// Bytes a second that a sum of two large arrays reads and writes.
    pub bandwidth: f64,
    /// Floating-point operations a second of a product of two 1024 × 1024 matrices.
    pub rate: f64,
}

/// The time of a case.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The median of the repeats.
    pub seconds: f64,
    /// Bytes that had to be moved.
    pub bytes: usize,
    /// Useful floating-point operations.
    pub flops: usize,
}

impl Timing {
    /// Bytes a second.
    pub fn bandwidth(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    /// Floating-point operations a second.
    pub fn rate(&self) -> f64 {
        self.flops as f64 / self.seconds
    }

    /// The time the ceiling allows over the time it took: 1 is as fast as it goes.
    pub fn fraction(&self, ceiling: &Ceiling) -> f64 {
        let floor = (self.bytes as f64 / ceiling.bandwidth).max(self.flops as f64 / ceiling.rate);
        floor / self.seconds
    }
}

/// Time given to one measurement.
const PATIENCE: Duration = Duration::from_millis(600);

/// Measures what the device can do.
///
/// # Errors
/// When it is out of memory.
pub fn ceiling(device: &Device) -> Result<Ceiling> {
    let n = 1 << 25;
    let x = Tensor::full([n], 1.0, device)?;
    let mut sum = Some(Tensor::zeros([n], DType::F32, device)?);
    let add = median(|| {
        if let Some(before) = sum.take() {
            sum = Some(tape::accumulate(before, &x)?);
        }
        Ok(())
    })?;
    let side = 1024;
    let mut rng = Rng::new(0, "ceiling");
    let data: Vec<f32> = (0..side * side).map(|_| rng.normal() as f32).collect();
    let a = Tensor::from_slice(&data, [side, side], device)?;
    let product = median(|| crate::matmul(&a, &a, Transpose::Neither).map(drop))?;
    Ok(Ceiling { bandwidth: (12 * n) as f64 / add, rate: 2.0 * (side as f64).powi(3) / product })
}

/// Times a case forward and, where there is a gradient, forward and backward together.
///
/// # Errors
/// When the operation fails.
pub fn time(op: &Op, case: &Case, device: &Device) -> Result<(Timing, Option<Timing>)> {
    let inputs = Inputs::new(op, case, DType::F32, device)?;
    let cost = (op.cost)(&inputs.tensors.dims);
    let seconds = median(|| (op.run)(&inputs.tensors).map(drop))?;
    let forward = Timing { seconds, bytes: cost.bytes, flops: cost.flops };
    if !op.differentiable() {
        return Ok((forward, None));
    }
    let seeds: Vec<Tensor> =
        (op.run)(&inputs.tensors)?.iter().map(|y| random(y.shape(), y.dtype(), device)).collect::<Result<_>>()?;
    let seconds = median(|| {
        let tape = Tape::new();
        let given = inputs.watched(&tape);
        let results = (op.run)(&given)?;
        let pairs: Vec<(&Tensor, &Tensor)> = results.iter().zip(&seeds).filter(|(y, _)| y.is_traced()).collect();
        tape.backward(&pairs).map(drop)
    })?;
    let both = Timing { seconds, bytes: cost.bytes + cost.backward_bytes, flops: cost.flops + cost.backward_flops };
    Ok((forward, Some(both)))
}

fn random(shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
    if dtype != DType::F32 {
        return Tensor::zeros(shape, dtype, device);
    }
    let mut rng = Rng::new(0, "seed");
    let data: Vec<f32> = (0..shape.elements()).map(|_| rng.between(-1.0, 1.0) as f32).collect();
    Tensor::from_slice(&data, shape, device)
}

/// The median time of repeats, after one that warms up.
fn median(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    work()?;
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (started.elapsed() < PATIENCE && times.len() < 1000) {
        let from = Instant::now();
        work()?;
        times.push(from.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
