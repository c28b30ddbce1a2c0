//! Normalized rows, as `rms_norm`, `l2_norm` and `gated_rms_norm` share them.

use super::form::Form;
use super::rows::Sharing;
use super::totals::{PARTS, totals};
use crate::common::gpu::to_u32;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};
use std::ops::Range;

/// Text before an operation's `gain`.
pub(crate) const NORM: &str = include_str!("norm.wgsl");
/// Text after [`NORM`], before an operation's `dy`, `sums`, `gain` and `finish`.
pub(crate) const NORM_GRADIENT: &str = include_str!("norm_gradient.wgsl");

/// A norm of rows, and what else its kernels read.
#[derive(Clone, Copy)]
pub(crate) struct Norm<'a> {
    /// Over vec4s, and over single elements.
    pub(crate) kernels: &'static [Kernel; 2],
    /// `[R.., D]`
    pub(crate) x: &'a Tensor,
    /// The weight of each column.
    pub(crate) w: Option<&'a Tensor>,
    /// The gate of each element.
    pub(crate) z: Option<&'a Tensor>,
    /// The factor of the sum of squares of a row: 1, or one over the width.
    pub(crate) share: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    share: f32,
    eps: f32,
    each: u32,
    first: u32,
    stride: u32,
}

/// The tensors as the kernels read them.
struct Read {
    form: Form,
    sharing: Sharing,
    rows: usize,
    width: usize,
    x: Tensor,
    w: Option<Tensor>,
    z: Option<Tensor>,
}

impl Read {
    fn new(gpu: &Gpu, norm: Norm<'_>) -> Result<Self> {
        let width = norm.x.shape().last();
        let form = Form::of(width, norm.x.dtype());
        let convert = |x: &Tensor| gpu.convert(x, form.dtype());
        Ok(Read {
            form,
            sharing: Sharing::of(width / form.unit()),
            rows: norm.x.elements() / width,
            width,
            x: convert(norm.x)?,
            w: norm.w.map(convert).transpose()?,
            z: norm.z.map(convert).transpose()?,
        })
    }

    /// These rows of a tensor like `x`.
    fn part<'a>(&self, x: &'a Tensor, rows: &Range<usize>) -> Bind<'a> {
        let row = self.width * self.form.dtype().size();
        Bind::Part(x, rows.start * row..rows.end * row)
    }

    /// Runs of rows that fit a binding.
    fn segments(&self, gpu: &Gpu) -> impl Iterator<Item = Range<usize>> + use<> {
        gpu.segments(self.rows, self.width * self.form.dtype().size())
    }

    /// The bindings of a launch over these rows: `x`, a tensor like it, the rows' scales, weights and gates.
    fn binds<'a>(&'a self, y: Bind<'a>, scales: &'a Tensor, rows: &Range<usize>) -> Vec<Bind<'a>> {
        let scales = Bind::Part(scales, rows.start * 4..rows.end * 4);
        let mut binds = vec![self.part(&self.x, rows), y, scales];
        binds.extend(self.w.iter().map(Bind::All));
        binds.extend(self.z.iter().map(|z| self.part(z, rows)));
        binds
    }
}

/// The normalized rows, and each row's scale.
pub(crate) fn forward(gpu: &Gpu, norm: Norm<'_>, eps: f32) -> Result<(Tensor, Tensor)> {
    let read = Read::new(gpu, norm)?;
    let y = gpu.empty(norm.x.shape(), read.form.dtype())?;
    let scales = gpu.empty([read.rows], DType::F32)?;
    for rows in read.segments(gpu) {
        let width = to_u32(read.width / read.form.unit())?;
        let params = Params { rows: to_u32(rows.len())?, width, share: norm.share, eps, ..Params::default() };
        gpu.launch(&Launch {
            kernel: read.form.choose(norm.kernels),
            entry: "forward",
            constants: &constants(read.sharing, [true; 3]),
            stored: &read.form.stored(),
            binds: &read.binds(read.part(&y, &rows), &scales, &rows),
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(rows.len().div_ceil(read.sharing.at_once())),
        })?;
    }
    Ok((gpu.convert(&y, norm.x.dtype())?, scales))
}

/// The constants of the text; `need` as in [`backward`].
fn constants(sharing: Sharing, need: [bool; 3]) -> [(&'static str, u32); 6] {
    let [group, lanes, keep] = sharing.constants();
    let [x, w, z] = need.map(u32::from);
    [group, lanes, keep, ("DX", x), ("DW", w), ("DZ", z)]
}

/// The gradients that a norm has and that are needed.
pub(crate) struct NormGradients {
    pub(crate) dx: Option<Tensor>,
    pub(crate) dw: Option<Tensor>,
    pub(crate) dz: Option<Tensor>,
}

/// The gradients to `x`, `w` and `z` that are needed; that to `w` in the dtype `of_weights`.
pub(crate) fn backward(
    gpu: &Gpu,
    norm: Norm<'_>,
    scales: &Tensor,
    dy: &Tensor,
    need: [bool; 3],
    of_weights: DType,
) -> Result<NormGradients> {
    let need = [need[0], need[1] && norm.w.is_some(), need[2] && norm.z.is_some()];
    let read = Read::new(gpu, norm)?;
    let dy = gpu.convert(dy, read.form.dtype())?;
    // a gradient that is not needed is bound, but not written
    let like = |need: bool| match need {
        true => gpu.empty(norm.x.shape(), read.form.dtype()),
        false => gpu.empty([4], DType::F32),
    };
    let (dx, dz) = (like(need[0])?, norm.z.map(|_| like(need[2])).transpose()?);
    // where nothing is summed, every batch of rows is a workgroup's
    let parts_at_most = if need[1] { PARTS } else { read.rows };
    let each = read.rows.div_ceil(parts_at_most).next_multiple_of(read.sharing.at_once());
    let parts = |rows: &Range<usize>| rows.len().div_ceil(each);
    let stride = read.width.next_multiple_of(4);
    let sums = match norm.w {
        Some(_) if need[1] => Some(gpu.empty([read.segments(gpu).map(|rows| parts(&rows)).sum(), stride], DType::F32)?),
        Some(_) => Some(gpu.empty([4], DType::F32)?),
        None => None,
    };
    let mut first = 0;
    for rows in read.segments(gpu) {
        let part = |need: bool, x| if need { read.part(x, &rows) } else { Bind::All(x) };
        let mut binds = read.binds(part(need[0], &dx), scales, &rows);
        binds.push(read.part(&dy, &rows));
        binds.extend(sums.iter().map(Bind::All));
        binds.extend(dz.iter().map(|dz| part(need[2], dz)));
        let unit = read.form.unit();
        let params = Params {
            rows: to_u32(rows.len())?,
            width: to_u32(read.width / unit)?,
            share: norm.share,
            eps: 0.0,
            each: to_u32(each)?,
            first: to_u32(first)?,
            stride: to_u32(stride / unit)?,
        };
        gpu.launch(&Launch {
            kernel: read.form.choose(norm.kernels),
            entry: "backward",
            constants: &constants(read.sharing, need),
            stored: &read.form.stored(),
            binds: &binds,
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(parts(&rows)),
        })?;
        first += parts(&rows);
    }
    let convert = |x: &Tensor| gpu.convert(x, norm.x.dtype());
    let dw = match (norm.w, &sums) {
        (Some(w), Some(sums)) if need[1] => Some(gpu.convert(&totals(gpu, sums, w.shape())?, of_weights)?),
        _ => None,
    };
    let dx = need[0].then(|| convert(&dx)).transpose()?;
    let dz = dz.as_ref().filter(|_| need[2]).map(convert).transpose()?;
    Ok(NormGradients { dx, dw, dz })
}
