//! Chunk by chunk: a product for the logits, one workgroup a token for the softmax and its gradient in place, two
//! products that turn the gradient into those of the inputs. Nothing is read back.

use super::{CONTRACT, CrossEntropyArgs, Reduction};
use crate::common::gpu::MATH;
use crate::common::gpu::to_u32;
use crate::linalg::gpu::{Gemm, GemmSizes, GpuMatrix, gemm};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Dims, Error, Result, Tensor};
use std::ops::Range;

static KERNEL: Kernel = crate::common::gpu::kernel("cross_entropy", &[MATH, include_str!("kernel.wgsl")]).reducing();
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

/// The gradients for a loss whose own is 1, in f32.
pub(super) struct GpuGradients {
    dtype: DType,
    dx: Option<Tensor>,
    dw: Option<Tensor>,
}

pub(super) fn forward(gpu: &Gpu, args: &CrossEntropyArgs<'_>, dims: &Dims) -> Result<(Tensor, GpuGradients)> {
    let CrossEntropyArgs { x, w, targets, ignore_index, .. } = *args;
    let (tokens, width, words) = (dims['N'], dims['D'], dims['V']);
    if let Some(targets) = targets.host_mirror() {
        check(targets, ignore_index, words)?;
    }
    let stride = words.next_multiple_of(4);
    let params = Params {
        tokens: to_u32(tokens)?,
        first: 0,
        words: to_u32(words)?,
        stride: to_u32(stride / 4)?,
        ignored: ignore_index.unwrap_or(0),
        ignores: u32::from(ignore_index.is_some()),
        z_loss: args.z_loss,
        mean: u32::from(args.reduction == Reduction::Mean),
    };
    let weight = gpu.empty([1], DType::F32)?;
    single(gpu, "weights", &[targets, &weight], params)?;
    let losses = gpu.zeros([tokens], DType::F32)?;
    let dx = x.is_traced().then(|| gpu.zeros(x.shape(), DType::F32)).transpose()?;
    let dw = w.is_traced().then(|| gpu.zeros(w.shape(), DType::F32)).transpose()?;
    // no more logits than a kernel can see at once
    let most = args.chunk.min(tokens).min((gpu.limits().binding / (4 * stride)).max(1));
    let z = gpu.empty([most, stride], DType::F32)?;
    let [x_mat, w_mat, z_mat] =
        [(x, width), (w, width), (&z, stride)].map(|(tensor, width)| GpuMatrix::new(tensor, width, 0));
    for chunk in chunks(targets, ignore_index, tokens, most) {
        let (n, rows) = (chunk.len(), x_mat.after(chunk.start));
        let sizes = |m, k, n| GemmSizes { m, k, n, count: 1 };
        let product = |a, b, c, sizes, beta| gemm(gpu, &Gemm { a, b, c, sizes, alpha: 1.0, beta });
        product(rows, w_mat.t(), z_mat, sizes(n, width, words), 0.0)?;
        let params = Params { tokens: to_u32(n)?, first: to_u32(chunk.start)?, ..params };
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry: "token",
            constants: &[("WG", WG), ("GRADIENT", u32::from(dx.is_some() || dw.is_some()))],
            stored: &[],
            binds: &[targets, &losses, &weight, &z].map(Bind::All),
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(n),
        })?;
        if let Some(dw) = &dw {
            product(z_mat.t(), rows, GpuMatrix::new(dw, width, 0), sizes(words, n, width), 1.0)?;
        }
        if let Some(dx) = &dx {
            product(z_mat, w_mat, GpuMatrix::new(dx, width, 0).after(chunk.start), sizes(n, words, width), 0.0)?;
        }
    }
    let loss = gpu.empty([], DType::F32)?;
    single(gpu, "total", &[&losses, &loss, &weight], params)?;
    Ok((loss, GpuGradients { dtype: x.dtype(), dx, dw }))
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
fn check(targets: &[u32], ignored: Option<u32>, words: usize) -> Result<()> {
    let wrong = targets.iter().position(|&target| Some(target) != ignored && target as usize >= words);
    match wrong {
        Some(i) => {
            let why = format!("the target of token {i} is {}, expected below V = {words}", targets[i]);
            Err(Error::value(CONTRACT.op, why))
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
        let GpuGradients { dtype, dx, dw } = self;
        let scaled = |grad: Option<Tensor>| grad.map(|grad| scaled(gpu, grad, dy, dtype)).transpose();
        Ok([scaled(dx)?, scaled(dw)?])
    }
}

/// A kept gradient times that of the loss, in the dtype of its input.
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
