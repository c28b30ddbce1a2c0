//! Chunk by chunk: a product for the logits, one workgroup a token for the softmax and its gradient in place, two
//! products that turn the gradient into those of the inputs. Nothing is read back.

use super::{CONTRACT, CrossEntropyArgs, LossOptions, Reduction};
use crate::common::gpu::MATH;
use crate::common::gpu::to_u32;
use crate::linalg::gpu::{Gemm, GemmSizes, GpuMatrix, gemm};
use crate::quantized::gpu::stretches;
use crate::quantized::quantized_cross_entropy::{self, QuantizedCrossEntropyArgs};
use crate::quantized::{Packed, PackedLayout};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch, Shader};
use alluvium_core::{DType, Dims, Error, Result, Tensor};
use std::ops::Range;

const TEXT: &str = include_str!("kernel.wgsl");
static KERNEL: Kernel =
    crate::common::gpu::kernel("cross_entropy", &[MATH, TEXT, include_str!("whole.wgsl")]).reducing();
/// The gradient leaves as two matrices in half precision.
static IN_HALVES: Kernel =
    crate::common::gpu::kernel("cross_entropy in halves", &[MATH, TEXT, include_str!("halves.wgsl")]).reducing();
static SCALED: Kernel = crate::common::gpu::kernel("scaled gradient", &[include_str!("scaled.wgsl")]);

/// Invocations of a workgroup.
const WG: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    tokens: u32,
    first: u32,
    words: u32,
    stride: u32,
    ignored: u32,
    ignores: u32,
    z_loss: f32,
    mean: u32,
}

/// The gradients for a loss whose own is 1, in f32, with the dtypes in which they are returned.
pub(crate) struct GpuGradients {
    dx: Option<(Tensor, DType)>,
    dw: Option<(Tensor, DType)>,
}

pub(super) fn forward(gpu: &Gpu, args: &CrossEntropyArgs<'_>, dims: &Dims) -> Result<(Tensor, GpuGradients)> {
    let CrossEntropyArgs { x, w, targets, .. } = *args;
    let dw = w.is_traced().then(|| gpu.zeros(w.shape(), DType::F32)).transpose()?;
    let loss = Loss { op: CONTRACT.op, x, targets, options: args.options() };
    let width = dims['D'];
    let (loss, dx) = loss.chunk_by_chunk(gpu, &Head::Plain(w), dims['V'], |dz, rows, tokens| {
        let Some(dw) = &dw else { return Ok(()) };
        let sizes = GemmSizes { m: dims['V'], k: tokens, n: width, count: 1 };
        gemm(gpu, &Gemm { a: dz.t(), b: rows, c: GpuMatrix::new(dw, width, 0), sizes, alpha: 1.0, beta: 1.0 })
    })?;
    Ok((loss, GpuGradients { dx: dx.map(|dx| (dx, x.gradient_dtype())), dw: dw.map(|dw| (dw, w.gradient_dtype())) }))
}

/// As [`forward`] for a quantized projection, which gets no gradient.
pub(crate) fn forward_packed(
    gpu: &Gpu,
    args: &QuantizedCrossEntropyArgs<'_>,
    layout: PackedLayout,
) -> Result<(Tensor, GpuGradients)> {
    let QuantizedCrossEntropyArgs { x, q, targets, .. } = *args;
    let loss = Loss { op: quantized_cross_entropy::CONTRACT.op, x, targets, options: args.options() };
    let words = q.w.shape()[0];
    let parts = stretches(gpu, layout, words).map(|part| Ok((q.detach().rows(&part)?, part)));
    let head = Head::Packed(parts.collect::<Result<_>>()?);
    let (loss, dx) = loss.chunk_by_chunk(gpu, &head, words, |_, _, _| Ok(()))?;
    Ok((loss, GpuGradients { dx: dx.map(|dx| (dx, x.gradient_dtype())), dw: None }))
}

/// The output projection.
enum Head<'a> {
    Plain(&'a Tensor),
    /// Rows that a binding holds.
    Packed(Vec<(Packed, Range<usize>)>),
}

impl Head<'_> {
    /// Whether it is plain and stored so.
    fn is_of(&self, dtype: DType) -> bool {
        matches!(self, Head::Plain(w) if w.dtype() == dtype)
    }

    /// `z = x · wᵀ`.
    fn logits(&self, gpu: &Gpu, x: GpuMatrix<'_>, z: GpuMatrix<'_>, [n, width, words]: [usize; 3]) -> Result<()> {
        let product = |b: GpuMatrix<'_>, c, words| {
            let sizes = GemmSizes { m: n, k: width, n: words, count: 1 };
            gemm(gpu, &Gemm { a: x, b: b.t(), c, sizes, alpha: 1.0, beta: 0.0 })
        };
        match self {
            Head::Plain(w) => product(GpuMatrix::new(w, width, 0), z, words),
            Head::Packed(parts) => parts.iter().try_for_each(|(own, part)| {
                let c = GpuMatrix { at: z.at + part.start, ..z };
                product(GpuMatrix::packed(own.quantized(), width), c, part.len())
            }),
        }
    }

    /// `dx = dz · w`; `dx` is zero before.
    fn back(&self, gpu: &Gpu, dz: GpuMatrix<'_>, dx: GpuMatrix<'_>, [n, width, words]: [usize; 3]) -> Result<()> {
        let product = |a, b, words, beta| {
            let sizes = GemmSizes { m: n, k: words, n: width, count: 1 };
            gemm(gpu, &Gemm { a, b, c: dx, sizes, alpha: 1.0, beta })
        };
        match self {
            Head::Plain(w) => product(dz, GpuMatrix::new(w, width, 0), words, 0.0),
            Head::Packed(parts) => parts.iter().try_for_each(|(own, part)| {
                let a = GpuMatrix { at: dz.at + part.start, ..dz };
                product(a, GpuMatrix::packed(own.quantized(), width), part.len(), 1.0)
            }),
        }
    }
}

/// The inputs of a loss besides the projection.
struct Loss<'a> {
    op: &'static str,
    x: &'a Tensor,
    targets: &'a Tensor,
    options: LossOptions,
}

impl Loss<'_> {
    /// The loss and, where `x` is traced, its gradient in f32. `weigh` gets the gradient of a chunk's logits, its rows
    /// and their number.
    fn chunk_by_chunk(
        &self,
        gpu: &Gpu,
        head: &Head<'_>,
        words: usize,
        weigh: impl Fn(GpuMatrix<'_>, GpuMatrix<'_>, usize) -> Result<()>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let Loss { op, x, targets, options: LossOptions { ignore_index, reduction, z_loss, chunk } } = *self;
        let (tokens, width) = (x.shape()[0], x.shape()[1]);
        if let Some(targets) = targets.host_mirror() {
            check(op, targets, ignore_index, words)?;
        }
        // rows of half precision begin at 16 bytes
        let stride = words.next_multiple_of(8);
        let params = Params {
            tokens: to_u32(tokens)?,
            first: 0,
            words: to_u32(words)?,
            stride: to_u32(stride / 4)?,
            ignored: ignore_index.unwrap_or(0),
            ignores: u32::from(ignore_index.is_some()),
            z_loss,
            mean: u32::from(reduction == Reduction::Mean),
        };
        let weight = gpu.empty([1], DType::F32)?;
        single(gpu, "weights", &[targets, &weight], params)?;
        let losses = gpu.zeros([tokens], DType::F32)?;
        let dx = x.is_traced().then(|| gpu.zeros(x.shape(), DType::F32)).transpose()?;
        let wanted = dx.is_some() || matches!(head, Head::Plain(w) if w.is_traced());
        // no more logits than a kernel can see at once
        let most = chunk.min(tokens).min((gpu.limits().binding / (4 * stride)).max(1));
        let z = gpu.empty([most, stride], DType::F32)?;
        // the library multiplies factors of one dtype
        let is_split = wanted && gpu.has_library_products() && head.is_of(DType::BF16) && x.dtype() == DType::BF16;
        let halves = if is_split { Some(halves(gpu, &z)?) } else { None };
        let dz = halves.as_ref().map_or(std::slice::from_ref(&z), |halves| &halves[..]);
        let [x_mat, z_mat] = [(x, width), (&z, stride)].map(|(tensor, width)| GpuMatrix::new(tensor, width, 0));
        for chunk in chunks(targets, ignore_index, tokens, most) {
            let (n, rows) = (chunk.len(), x_mat.after(chunk.start));
            head.logits(gpu, rows, z_mat, [n, width, words])?;
            let params = Params { tokens: to_u32(n)?, first: to_u32(chunk.start)?, ..params };
            softmax(gpu, [targets, &losses, &weight, &z], halves.as_ref(), params, wanted)?;
            let mut parts = dz.iter().map(|dz| GpuMatrix::new(dz, stride, 0));
            if wanted {
                parts.clone().try_for_each(|part| weigh(part, rows, n))?;
            }
            // the gradient of the rows is rounded anyway
            if let (Some(dx), Some(dz)) = (&dx, parts.next()) {
                head.back(gpu, dz, GpuMatrix::new(dx, width, 0).after(chunk.start), [n, width, words])?;
            }
        }
        let loss = gpu.empty([], DType::F32)?;
        single(gpu, "total", &[&losses, &loss, &weight], params)?;
        Ok((loss, dx))
    }
}

/// Memory for f32 values as sums of two in bf16.
fn halves(gpu: &Gpu, z: &Tensor) -> Result<[Tensor; 2]> {
    Ok([gpu.empty(z.shape(), DType::BF16)?, gpu.empty(z.shape(), DType::BF16)?])
}

/// The shader of a product by the library, which a software GPU has not.
///
/// # Errors
/// Never: every storage dtype here is a floating one.
pub(crate) fn unreached_shader() -> Result<Shader> {
    IN_HALVES.shader("token", &[("WG", WG), ("GRADIENT", 1)], &[("X", DType::BF16)])
}

/// The losses of a chunk, and its gradient where it is wanted: in place of the logits, or in two halves.
fn softmax(gpu: &Gpu, whole: [&Tensor; 4], halves: Option<&[Tensor; 2]>, params: Params, wanted: bool) -> Result<()> {
    let mut binds: Vec<Bind<'_>> = whole.map(Bind::All).into();
    binds.extend(halves.into_iter().flatten().map(Bind::All));
    gpu.launch(&Launch {
        kernel: if halves.is_some() { &IN_HALVES } else { &KERNEL },
        entry: "token",
        constants: &[("WG", WG), ("GRADIENT", u32::from(wanted))],
        stored: if halves.is_some() { &[("X", DType::BF16)] } else { &[] },
        binds: &binds,
        params: bytemuck::bytes_of(&params),
        groups: Groups::Line(params.tokens as usize),
    })
}

/// The chunks in which a target counts, as far as that is known here.
fn chunks(targets: &Tensor, ignored: Option<u32>, tokens: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let all = (0..tokens).step_by(most).map(move |first| first..tokens.min(first + most));
    all.filter(move |chunk| match targets.host_mirror() {
        Some(targets) => targets[chunk.clone()].iter().any(|&target| Some(target) != ignored),
        None => true,
    })
}

/// Errs, naming the token, if a target is no token.
fn check(op: &'static str, targets: &[u32], ignored: Option<u32>, words: usize) -> Result<()> {
    let wrong = targets.iter().position(|&target| Some(target) != ignored && target as usize >= words);
    match wrong {
        Some(i) => {
            let why = format!("the target of token {i} is {}, expected below V = {words}", targets[i]);
            Err(Error::value(op, why))
        }
        None => Ok(()),
    }
}

/// One workgroup.
fn single(gpu: &Gpu, entry: &'static str, tensors: &[&Tensor], params: Params) -> Result<()> {
    let binds: Vec<Bind<'_>> = tensors.iter().map(|tensor| Bind::All(tensor)).collect();
    gpu.launch(&Launch {
        kernel: &KERNEL,
        entry,
        constants: &[("WG", WG), ("GRADIENT", 0)],
        stored: &[],
        binds: &binds,
        params: bytemuck::bytes_of(&params),
        groups: Groups::Line(1),
    })
}

impl GpuGradients {
    /// The gradients for a loss whose own is `dy`.
    pub(super) fn times(self, gpu: &Gpu, dy: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let GpuGradients { dx, dw } = self;
        let scaled = |grad: Option<(Tensor, DType)>| grad.map(|(grad, dtype)| scaled(gpu, grad, dy, dtype)).transpose();
        Ok([scaled(dx)?, scaled(dw)?])
    }
}

/// A kept gradient times that of the loss, rounded to `dtype`.
fn scaled(gpu: &Gpu, grad: Tensor, dy: &Tensor, dtype: DType) -> Result<Tensor> {
    let in_place = dtype == DType::F32;
    let to = if in_place { None } else { Some(gpu.empty(grad.shape(), dtype)?) };
    for part in gpu.segments(grad.elements().div_ceil(4), 16) {
        let bytes = |x: &Tensor| {
            let quad = 4 * x.dtype().size();
            part.start * quad..(part.end * quad).min(x.elements() * x.dtype().size())
        };
        let mut binds = vec![Bind::All(dy), Bind::Part(&grad, bytes(&grad))];
        binds.extend(to.as_ref().map(|to| Bind::Part(to, bytes(to))));
        gpu.launch(&Launch {
            kernel: &SCALED,
            entry: if in_place { "in_place" } else { "narrowed" },
            constants: &[],
            stored: &[("X", dtype)],
            binds: &binds,
            params: bytemuck::bytes_of(&to_u32(part.len())?),
            groups: Groups::Line(part.len().div_ceil(256)),
        })?;
    }
    Ok(to.unwrap_or(grad))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::rng::Rng;

    #[test]
    fn two_halves_of_a_gradient_keep_seventeen_bits() {
        let Some(gpu) = Gpu::builder().poison().open_for_test().unwrap() else { return };
        let (tokens, words, stride) = (3, 1_001, 1_008);
        let mut rng = Rng::new(1, "halves");
        let logits: Vec<f32> = (0..tokens * stride).map(|_| 8.0 * rng.normal() as f32).collect();
        let params = Params {
            tokens: tokens as u32,
            first: 0,
            words: words as u32,
            stride: stride as u32 / 4,
            ignored: 0,
            ignores: 0,
            z_loss: 0.1,
            mean: 0,
        };
        let on_gpu = |data: &[f32], shape: [usize; 2]| Tensor::from_slice(data, shape, &gpu.clone().into()).unwrap();
        let targets = Tensor::from_slice(&[5u32, 1_000, 77], [tokens], &gpu.clone().into()).unwrap();
        let weight = on_gpu(&[0.7], [1, 1]);
        let gradient = |split: bool| {
            let (losses, z) = (gpu.zeros([tokens], DType::F32).unwrap(), on_gpu(&logits, [tokens, stride]));
            let parts = split.then(|| halves(&gpu, &z).unwrap());
            softmax(&gpu, [&targets, &losses, &weight, &z], parts.as_ref(), params, true).unwrap();
            let all = parts.map_or_else(|| vec![z], Vec::from);
            all.iter().map(|part| part.to_floats().unwrap()).collect::<Vec<_>>()
        };
        let (whole, halves) = (gradient(false), gradient(true));
        for i in (0..tokens * stride).filter(|i| i % stride < words) {
            let (z, high, low) = (whole[0][i], halves[0][i], halves[1][i]);
            // below the smallest normal number of bf16 nothing is kept of the rest
            assert!((z - high - low).abs() <= z.abs() / 131_072.0 + 1e-38, "{z}: {high} and {low}");
            assert!((z - high).abs() <= z.abs() / 256.0 + 1e-38, "{z}: {high}");
        }
    }
}
