//! Elementwise operations on the CPU and their gradients on all devices.
//!
//! An operation gives its formula and derivative over SIMD lanes. Threads, half-precision storage and the entry on the
//! tape are shared. Half precision is widened and rounded block by block, so an operation is one pass over memory.

use super::gpu::{self, WgslMap};
use crate::common::stored::BLOCK;
use crate::common::stored::{Stored, by_storage};
use crate::common::writer::{Share, Target, WriteBlock};
use alluvium_core::cpu::Cpu;
use alluvium_core::cpu::simd::F32s;
use alluvium_core::{Backward, Contract, Device, Result, Tensor, tape};
use std::ops::Range;

/// A function of one element.
pub(super) trait Unary: Copy + Send + Sync + 'static {
    /// `f(x)`
    fn value<S: F32s>(self, x: S) -> S;
}

/// A function of one element, and its derivative.
pub(super) trait UnaryDerivative: Unary {
    /// `f′(x)`
    fn derivative<S: F32s>(self, x: S) -> S;
}

/// A function of two elements.
pub(super) trait Binary: Copy + Send + Sync + 'static {
    /// `f(a, b)`
    fn value<S: F32s>(self, a: S, b: S) -> S;
}

/// A function of two elements, and its derivatives.
pub(super) trait BinaryDerivatives: Binary {
    /// `∂f/∂a` and `∂f/∂b`
    fn derivatives<S: F32s>(self, a: S, b: S) -> (S, S);
}

/// One of the derivatives of a function of two elements.
trait PartialDerivative: Copy + Send + Sync + 'static {
    fn derivative<S: F32s>(self, a: S, b: S) -> S;
}

/// `∂f/∂a`
#[derive(Clone, Copy)]
struct First<F>(F);

/// `∂f/∂b`
#[derive(Clone, Copy)]
struct Second<F>(F);

impl<F: BinaryDerivatives> PartialDerivative for First<F> {
    #[inline(always)]
    fn derivative<S: F32s>(self, a: S, b: S) -> S {
        self.0.derivatives(a, b).0
    }
}

impl<F: BinaryDerivatives> PartialDerivative for Second<F> {
    #[inline(always)]
    fn derivative<S: F32s>(self, a: S, b: S) -> S {
        self.0.derivatives(a, b).1
    }
}

/// Checks, computes and records a map of one argument; the backward pass keeps `x`.
pub(super) fn unary<F: UnaryDerivative + WgslMap>(contract: &'static Contract, x: &Tensor, f: F) -> Result<Tensor> {
    contract.check(&[x])?;
    let y = map(x, f)?;
    tape::record([x], y, || UnaryGrad { op: contract.op, x: x.detach(), f })
}

/// Checks, computes and records a map of two arguments; the backward pass keeps both.
pub(super) fn binary<F: BinaryDerivatives + WgslMap>(
    contract: &'static Contract,
    a: &Tensor,
    b: &Tensor,
    f: F,
) -> Result<Tensor> {
    contract.check(&[a, b])?;
    let y = map2(a, b, f)?;
    tape::record([a, b], y, || BinaryGrad { op: contract.op, a: a.detach(), b: b.detach(), f })
}

/// `f` of each element; nothing is checked or recorded.
pub(super) fn map<F: Unary + WgslMap>(x: &Tensor, f: F) -> Result<Tensor> {
    match x.device() {
        Device::Cpu(cpu) => new_result(cpu, [x], |[x], y| values(cpu.isa(), f, x, y)),
        Device::Gpu(gpu) => gpu::values(gpu, f, [x]),
    }
}

/// `f` of each pair of elements; nothing is checked or recorded.
pub(super) fn map2<F: Binary + WgslMap>(a: &Tensor, b: &Tensor, f: F) -> Result<Tensor> {
    match a.device() {
        Device::Cpu(cpu) => new_result(cpu, [a, b], |[a, b], y| values2(cpu.isa(), f, a, b, y)),
        Device::Gpu(gpu) => gpu::values(gpu, f, [a, b]),
    }
}

/// `dx = dy · f′(x)`, in the memory of `dy` if it is not shared.
struct UnaryGrad<F> {
    op: &'static str,
    x: Tensor,
    f: F,
}

impl<F: UnaryDerivative + WgslMap> Backward<1> for UnaryGrad<F> {
    fn op(&self) -> &'static str {
        self.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let UnaryGrad { x, f, .. } = self;
        let cpu = match x.device() {
            Device::Cpu(cpu) => cpu,
            Device::Gpu(gpu) => return Ok([Some(gpu::derivative(gpu, f, &x, dy)?)]),
        };
        let dx = by_storage!(x.dtype(), T => {
            let x = slices::<T, 1>([&x])?;
            in_place(cpu, dy, |dx| launch(cpu, x, [dx], |[x], [dx]| derivatives(cpu.isa(), f, x, dx)))?
        });
        Ok([Some(dx)])
    }
}

/// `da = dy · ∂f/∂a`, in the memory of `dy` if it is not shared, and `db = dy · ∂f/∂b`.
struct BinaryGrad<F> {
    op: &'static str,
    a: Tensor,
    b: Tensor,
    f: F,
}

impl<F: BinaryDerivatives + WgslMap> Backward<2> for BinaryGrad<F> {
    fn op(&self) -> &'static str {
        self.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        let BinaryGrad { a, b, f, .. } = self;
        let cpu = match a.device() {
            Device::Cpu(cpu) => cpu,
            Device::Gpu(gpu) => return gpu::derivatives(gpu, f, [&a, &b], dy, need),
        };
        let (da, db) = by_storage!(a.dtype(), T => {
            let ab = slices::<T, 2>([&a, &b])?;
            match need {
                [true, true] => {}
                [true, false] => {
                    let da = in_place(cpu, dy, |da| {
                        launch(cpu, ab, [da], |ab, [da]| partial(cpu.isa(), First(f), ab, da));
                    })?;
                    return Ok([Some(da), None]);
                }
                [false, true] => {
                    let db = in_place(cpu, dy, |db| {
                        launch(cpu, ab, [db], |ab, [db]| partial(cpu.isa(), Second(f), ab, db));
                    })?;
                    return Ok([None, Some(db)]);
                }
                [false, false] => return Ok([None, None]),
            }
            let mut db = cpu.buffer::<T>(b.elements())?;
            let da = in_place(cpu, dy, |da| {
                launch(cpu, ab, [da, Target::new(&mut db)], |ab, [da, db]| derivatives2(cpu.isa(), f, ab, da, db));
            })?;
            (da, cpu.wrap(db, b.shape())?)
        });
        Ok([Some(da), Some(db)])
    }
}

/// A tensor like the first of `inputs`, written by `kernel`.
pub(super) fn new_result<const N: usize>(
    cpu: &Cpu,
    inputs: [&Tensor; N],
    kernel: impl Fn([&[f32]; N], WriteBlock<'_>) + Sync,
) -> Result<Tensor> {
    let y = by_storage!(inputs[0].dtype(), T => {
        let mut y = cpu.buffer::<T>(inputs[0].elements())?;
        launch(cpu, slices(inputs)?, [Target::new(&mut y)], |x, [y]| kernel(x, y));
        cpu.wrap(y, inputs[0].shape())?
    });
    Ok(y)
}

/// Applies `work` to a gradient: in place if its memory is not shared, else into new memory.
fn in_place<T: Stored>(cpu: &Cpu, mut dy: Tensor, work: impl FnOnce(Target<'_, T>)) -> Result<Tensor> {
    if let Some(over) = dy.slice_mut::<T>() {
        work(Target::over(over));
        return Ok(dy);
    }
    let mut dx = cpu.buffer::<T>(dy.elements())?;
    work(Target::after(dy.slice::<T>()?, &mut dx));
    cpu.wrap(dx, dy.shape())
}

fn slices<T: Stored, const N: usize>(inputs: [&Tensor; N]) -> Result<[&[T]; N]> {
    let mut slices = [[].as_slice(); N];
    for (slice, x) in slices.iter_mut().zip(inputs) {
        *slice = x.slice::<T>()?;
    }
    Ok(slices)
}

/// Runs `kernel(inputs, outputs)` on all threads, block by block. The kernel may look at what a target gives it.
fn launch<T: Stored, const N: usize, const M: usize>(
    cpu: &Cpu,
    inputs: [&[T]; N],
    mut outputs: [Target<'_, T>; M],
    kernel: impl Fn([&[f32]; N], [WriteBlock<'_>; M]) + Sync,
) {
    let n = outputs[0].len();
    let grain = cpu.grain(n, 1).next_multiple_of(BLOCK);
    let run = |range: Range<usize>, outputs: [Target<'_, T>; M]| {
        let mut inputs = inputs.map(|x| (x, [0.0; BLOCK]));
        Target::write_all(outputs, |mut outputs| {
            for at in range.clone().step_by(BLOCK) {
                let len = BLOCK.min(range.end - at);
                kernel(
                    inputs.each_mut().map(|(x, wide)| T::widen(&x[at..][..len], wide)),
                    outputs.each_mut().map(|y| y.open(len)),
                );
                outputs.iter_mut().for_each(|y| y.close(len));
            }
        });
    };
    if n <= grain {
        return run(0..n, outputs.each_mut().map(|rest| rest.cut(n)));
    }
    let mut tasks = Vec::with_capacity(n.div_ceil(grain));
    for first in (0..n).step_by(grain) {
        let last = n.min(first + grain);
        tasks.push((first..last, outputs.each_mut().map(|rest| rest.cut(last - first))));
    }
    cpu.each(tasks, |(range, outputs)| run(range, outputs));
}

alluvium_core::simd! {
    fn values<S, F: Unary>(f: F, x: &[f32], y: WriteBlock<'_>) {
        let WriteBlock { to, stores, .. } = y;
        let (mut xs, mut ys) = (x.chunks_exact(S::LANES), to.chunks_exact_mut(S::LANES));
        for (x, y) in xs.by_ref().zip(ys.by_ref()) {
            f.value(S::load(x)).put(y, stores);
        }
        f.value(S::load_partial(xs.remainder())).store_partial(ys.into_remainder());
    }

    fn values2<S, F: Binary>(f: F, a: &[f32], b: &[f32], y: WriteBlock<'_>) {
        let WriteBlock { to: y, stores, .. } = y;
        let whole = y.len() - y.len() % S::LANES;
        let lanes = a.chunks_exact(S::LANES).zip(b.chunks_exact(S::LANES));
        for ((a, b), y) in lanes.zip(y.chunks_exact_mut(S::LANES)) {
            f.value(S::load(a), S::load(b)).put(y, stores);
        }
        f.value(S::load_partial(&a[whole..]), S::load_partial(&b[whole..])).store_partial(&mut y[whole..]);
    }

    fn derivatives<S, F: UnaryDerivative>(f: F, x: &[f32], dx: WriteBlock<'_>) {
        let WriteBlock { to: dx, before, stores } = dx;
        let whole = dx.len() - dx.len() % S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            let dy = if let Some(dy) = before { S::load(&dy[i..]) } else { S::load(&dx[i..]) };
            (dy * f.derivative(S::load(&x[i..]))).put(&mut dx[i..], stores);
        }
        let dy = if let Some(dy) = before { S::load_partial(&dy[whole..]) } else { S::load_partial(&dx[whole..]) };
        (dy * f.derivative(S::load_partial(&x[whole..]))).store_partial(&mut dx[whole..]);
    }

    fn partial<S, F: PartialDerivative>(f: F, ab: [&[f32]; 2], d: WriteBlock<'_>) {
        let WriteBlock { to: d, before, stores } = d;
        let whole = d.len() - d.len() % S::LANES;
        let [a, b] = ab;
        for i in (0..whole).step_by(S::LANES) {
            let dy = if let Some(dy) = before { S::load(&dy[i..]) } else { S::load(&d[i..]) };
            (dy * f.derivative(S::load(&a[i..]), S::load(&b[i..]))).put(&mut d[i..], stores);
        }
        let dy = if let Some(dy) = before { S::load_partial(&dy[whole..]) } else { S::load_partial(&d[whole..]) };
        (dy * f.derivative(S::load_partial(&a[whole..]), S::load_partial(&b[whole..]))).store_partial(&mut d[whole..]);
    }

    fn derivatives2<S, F: BinaryDerivatives>(f: F, ab: [&[f32]; 2], da: WriteBlock<'_>, db: WriteBlock<'_>) {
        let (WriteBlock { to: da, before, stores }, WriteBlock { to: db, stores: stores_b, .. }) = (da, db);
        let whole = da.len() - da.len() % S::LANES;
        let [a, b] = ab;
        for i in (0..whole).step_by(S::LANES) {
            let dy = if let Some(dy) = before { S::load(&dy[i..]) } else { S::load(&da[i..]) };
            let derivatives = f.derivatives(S::load(&a[i..]), S::load(&b[i..]));
            (dy * derivatives.0).put(&mut da[i..], stores);
            (dy * derivatives.1).put(&mut db[i..], stores_b);
        }
        let dy = if let Some(dy) = before { S::load_partial(&dy[whole..]) } else { S::load_partial(&da[whole..]) };
        let derivatives = f.derivatives(S::load_partial(&a[whole..]), S::load_partial(&b[whole..]));
        (dy * derivatives.0).store_partial(&mut da[whole..]);
        (dy * derivatives.1).store_partial(&mut db[whole..]);
    }
}
