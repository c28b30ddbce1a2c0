//! Benchmarks of operations, as fractions of the limits of the device that are measured in the same run.

use crate::Transpose;
use crate::check::Inputs;
use crate::op::{Case, Given, Op};
use alluvium_core::gpu::BATCH;
use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Dims, Error, Result, Shape, Tape, Tensor, tape};
use std::time::{Duration, Instant};

/// The measured limits of a device.
#[derive(Clone, Debug)]
pub struct Ceiling {
    /// Measured bandwidth in bytes/s of `a += b` on large f32 arrays: 12 bytes per element. A copy is as fast with
    /// non-temporal stores; with ordinary stores, which first read the lines they change, it is a third slower.
    pub bandwidth: f64,
    /// The same for less data, which a cache may hold: the bytes of a run and bytes/s, the largest run last.
    pub cached: Vec<(usize, f64)>,
    /// Floating-point operations per second of a product of two square matrices.
    pub rate: f64,
    /// Rows of those matrices.
    pub side: usize,
    /// Seconds of host time per launch, with its share of a submission; `None` on the CPU.
    pub launch: Option<f64>,
}

impl Ceiling {
    /// The bandwidth for work on a number of bytes: the best that was measured for as many or more.
    fn bandwidth_for(&self, bytes: usize) -> f64 {
        // data between two sizes is in the cache of the smaller one in part
        let smaller = self.cached.iter().rposition(|&(size, _)| size <= bytes).unwrap_or(0);
        let cached = if bytes >= LARGE { &[] } else { &self.cached[smaller..] };
        cached.iter().map(|&(_, bandwidth)| bandwidth).fold(self.bandwidth, f64::max)
    }
}

/// The time of a case.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The median of the repeats.
    pub seconds: f64,
    /// Bytes that the case reads and writes at least.
    pub bytes: usize,
    /// Useful floating-point operations.
    pub flops: usize,
}

impl Timing {
    /// Bytes per second.
    pub fn bandwidth(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    /// Floating-point operations per second.
    pub fn rate(&self) -> f64 {
        self.flops as f64 / self.seconds
    }

    /// The shortest time that the limits of the device allow, divided by the measured time. It is above 1 where work is
    /// faster than that by which the limits were measured: it only reads, or computes on integers.
    pub fn fraction(&self, ceiling: &Ceiling) -> f64 {
        let bandwidth = ceiling.bandwidth_for(self.bytes);
        let floor = (self.bytes as f64 / bandwidth).max(self.flops as f64 / ceiling.rate);
        floor / self.seconds
    }
}

/// The duration of one measurement.
const PATIENCE: Duration = Duration::from_millis(600);

/// The bytes of a run of `a += b` from which no cache holds the arrays.
const LARGE: usize = 12 << 25;

/// The bytes of the shorter runs.
const CACHED: [usize; 6] = [12 << 12, 12 << 14, 12 << 16, 12 << 18, 12 << 20, 12 << 22];

/// The duration of a burst of launches on a GPU.
const BURST: Duration = Duration::from_millis(40);

/// The option of cases that are timed in f16.
const HALF: (&str, f64) = ("f16", 1.0);

/// Measures the limits of a device.
///
/// # Errors
/// When it is out of memory.
pub fn ceiling(device: &Device) -> Result<Ceiling> {
    let bandwidth = bandwidth(LARGE, device)?;
    let cached = CACHED.iter().map(|&bytes| Ok((bytes, self::bandwidth(bytes, device)?))).collect::<Result<_>>()?;
    let side = if is_gpu(device) { 4096 } else { 1024 };
    let mut rng = Rng::new(0, "ceiling");
    let data: Vec<f32> = (0..side * side).map(|_| rng.normal() as f32).collect();
    let a = Tensor::from_slice(&data, [side, side], device)?;
    let product = median(device, || crate::matmul(&a, &a, Transpose::Neither).map(drop))?;
    let launch = launch(device)?;
    Ok(Ceiling { bandwidth, cached, rate: 2.0 * (side as f64).powi(3) / product, side, launch })
}

/// Bytes/s of `a += b` in runs of this many bytes.
fn bandwidth(bytes: usize, device: &Device) -> Result<f64> {
    let n = bytes / 12;
    let x = Tensor::full([n], 1.0, device)?;
    let mut sum = Some(Tensor::zeros([n], DType::F32, device)?);
    let add = median(device, || {
        if let Some(before) = sum.take() {
            sum = Some(tape::accumulate(before, &x)?);
        }
        Ok(())
    })?;
    Ok(bytes as f64 / add)
}

/// The host time of a launch, from operations on one token. A batch of [`BATCH`] launches is timed at once and finishes
/// before the next batch is timed, so the time is host overhead alone, with the cleanup of the batch before.
fn launch(device: &Device) -> Result<Option<f64>> {
    let Device::Gpu(_) = device else { return Ok(None) };
    let x = Tensor::full([1, 64], 1.0, device)?;
    crate::silu(&x)?;
    device.wait()?;
    let mut times = Vec::new();
    for _ in 0..32 {
        let from = Instant::now();
        (0..BATCH).try_for_each(|_| crate::silu(&x).map(drop))?;
        times.push(from.elapsed().as_secs_f64() / BATCH as f64);
        std::thread::sleep(Duration::from_millis(5));
    }
    times.sort_by(f64::total_cmp);
    Ok(Some(times[times.len() / 2]))
}

/// Whether this is a hardware GPU.
fn is_gpu(device: &Device) -> bool {
    matches!(device, Device::Gpu(gpu) if !gpu.adapter().is_software())
}

/// The cases to time on a device. The largest ones are for GPUs only.
pub fn cases(op: &Op, device: &Device) -> impl Iterator<Item = &'static Case> {
    let (most_flops, most_bytes) =
        if is_gpu(device) { (usize::MAX, usize::MAX) } else { (40_000_000_000, 800_000_000) };
    let cost = op.cost;
    op.bench.iter().filter(move |case| {
        let cost = cost(&Dims::of(case.sizes));
        cost.flops < most_flops && cost.bytes < most_bytes
    })
}

/// Times a case forward and, where there is a gradient, forward and backward together, with floating arguments stored
/// as `dtype`.
///
/// Arguments that an operation overwrites are not shared, so the path in place is timed.
///
/// # Errors
/// When the operation fails, or does not read an option of the case.
pub fn time(op: &Op, case: &Case, dtype: DType, device: &Device) -> Result<(Timing, Option<Timing>)> {
    let dtype = if case.options.contains(&HALF) { DType::F16 } else { dtype };
    let mut inputs = Inputs::new(op, case, dtype, device)?;
    let mut cost = (op.cost)(&inputs.tensors.dims);
    cost.bytes = cost.bytes * dtype.size() / 4;
    cost.backward_bytes = cost.backward_bytes * dtype.size() / 4;
    let seconds = median(device, || {
        let results = (op.run)(&mut inputs.tensors)?;
        hand_back(op, case, &mut inputs.tensors, results)
    })?;
    if let Some(name) = inputs.tensors.options.unread().find(|name| *name != HALF.0) {
        return Err(Error::value(op.name(), format!("{:?} sets option `{name}`, which is not read", case.name)));
    }
    let forward = Timing { seconds, bytes: cost.bytes, flops: cost.flops };
    if !op.differentiable() {
        return Ok((forward, None));
    }
    let seeds: Vec<Tensor> =
        (op.run)(&mut inputs.tensors)?.iter().map(|y| random(y.shape(), y.dtype(), device)).collect::<Result<_>>()?;
    let seconds = median(device, || {
        let tape = Tape::new();
        let mut given = inputs.watched(&tape, None);
        let results = (op.run)(&mut given)?;
        let pairs: Vec<(&Tensor, &Tensor)> = results.iter().zip(&seeds).filter(|(y, _)| y.is_traced()).collect();
        tape.backward(&pairs).map(drop)
    })?;
    let both = Timing { seconds, bytes: cost.bytes + cost.backward_bytes, flops: cost.flops + cost.backward_flops };
    Ok((forward, Some(both)))
}

/// Replaces the arguments that an operation overwrote by the results in their memory, for the next run in place.
fn hand_back(op: &Op, case: &Case, given: &mut Given<Tensor>, mut results: Vec<Tensor>) -> Result<()> {
    for (arg, (name, slot)) in op.contract.args.iter().zip(&mut given.args) {
        if slot.is_none() && !case.without.contains(name) {
            let shape = given.dims.shape(arg.shape())?;
            *slot = results.iter().position(|y| y.shape() == shape).map(|i| results.remove(i));
        }
    }
    Ok(())
}

fn random(shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
    if !dtype.is_float() {
        return Tensor::zeros(shape, dtype, device);
    }
    let mut rng = Rng::new(0, "seed");
    let data: Vec<f32> = (0..shape.elements()).map(|_| rng.between(-1.0, 1.0) as f32).collect();
    crate::cast(&Tensor::from_slice(&data, shape, device)?, dtype)
}

/// The median time of repeats after a warm-up. On a GPU a repeat is a burst of launches with one wait at its end,
/// because the latency of a launch is longer than a short kernel.
fn median(device: &Device, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut once = |repeats: usize| -> Result<f64> {
        let from = Instant::now();
        (0..repeats).try_for_each(|_| work())?;
        device.wait()?;
        Ok(from.elapsed().as_secs_f64() / repeats as f64)
    };
    once(1)?;
    let repeats = match device {
        Device::Cpu(_) => 1,
        Device::Gpu(_) => (BURST.as_secs_f64() / once(1)?).clamp(1.0, 200.0) as usize,
    };
    let started = Instant::now();
    let mut times = Vec::new();
    while times.len() < 3 || (started.elapsed() < PATIENCE && times.len() < 1000) {
        times.push(once(repeats)?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_case_is_that_of_data_of_its_size() {
        let cached = vec![(100, 5.0), (1_000, 8.0), (10_000, 3.0)];
        let ceiling = Ceiling { bandwidth: 2.0, cached, rate: 1.0, side: 1, launch: None };
        let limits = [1, 100, 999, 1_000, 9_999, 10_000, LARGE].map(|bytes| ceiling.bandwidth_for(bytes));
        assert_eq!(limits, [8.0, 8.0, 8.0, 8.0, 8.0, 3.0, 2.0]);
        let timing = Timing { seconds: 1_000.0, bytes: 4_000, flops: 250 };
        assert_eq!(timing.fraction(&ceiling), 0.5);
    }
}
