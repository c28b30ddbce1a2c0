//! One workgroup a row: a pass for the two maxima, a pass for the sums; the second finds the row in cache.

use super::Grad;
use crate::common::gpu::to_u32s;
use crate::common::gpu::{MATH, ODD};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Dims, Result, Tensor};

const TEXT: &str = include_str!("kernel.wgsl");

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("kl_div", &[MATH, ODD, include_str!("vec4.wgsl"), TEXT]).reducing(),
    crate::common::gpu::kernel("kl_div, scalar", &[MATH, ODD, include_str!("scalar.wgsl"), TEXT]).reducing(),
];

/// Invocations of a workgroup.
const WG: usize = 256;

/// Rows, vocabulary entries of a row, and how both sides are stored.
struct KlRows {
    rows: usize,
    words: usize,
    dtypes: [DType; 2],
}

impl KlRows {
    fn is_even(&self) -> bool {
        self.words.is_multiple_of(4)
    }

    fn launch(&self, gpu: &Gpu, entry: &'static str, tensors: &[&Tensor], groups: usize, to: To) -> Result<()> {
        let odd = !self.is_even();
        let binds: Vec<Bind<'_>> = tensors.iter().map(|tensor| Bind::All(tensor)).collect();
        let teacher = to == To::Teacher;
        let [s, t] = self.dtypes;
        gpu.launch(&Launch {
            kernel: &KERNELS[usize::from(odd)],
            entry,
            constants: &[("WG", WG as u32), ("ODD", u32::from(odd)), ("TO_TEACHER", u32::from(teacher))],
            stored: &[("S", s), ("T", t), ("Y", if teacher { t } else { s })],
            binds: &binds,
            params: bytemuck::bytes_of(&to_u32s([self.rows, self.words])?),
            groups: Groups::Line(groups),
        })
    }
}

/// The input whose gradient is computed.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Student,
    Teacher,
}

pub(super) fn forward(gpu: &Gpu, logits: &Tensor, teacher: &Tensor, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let sizes = KlRows { rows: dims['R'], words: dims['V'], dtypes: [logits.dtype(), teacher.dtype()] };
    let rows = gpu.empty([sizes.rows, 3], DType::F32)?;
    sizes.launch(gpu, "forward", &[logits, teacher, &rows], sizes.rows, To::Student)?;
    let loss = gpu.empty([], DType::F32)?;
    sizes.launch(gpu, "mean", &[&rows, &loss], 1, To::Student)?;
    Ok((loss, rows))
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { logits, teacher, rows } = saved;
    let count = rows.shape()[0];
    let sizes = KlRows { rows: count, words: logits.elements() / count, dtypes: [logits.dtype(), teacher.dtype()] };
    let gradient = |of: &Tensor, to: To| -> Result<Option<Tensor>> {
        // odd rows are written in f32 and rounded afterwards
        let out = gpu.empty(of.shape(), if sizes.is_even() { of.dtype() } else { DType::F32 })?;
        let groups = (count * sizes.words.div_ceil(4)).div_ceil(WG);
        sizes.launch(gpu, "backward", &[logits, teacher, rows, dy, &out], groups, to)?;
        gpu.convert(&out, of.dtype()).map(Some)
    };
    Ok([
        if need[0] { gradient(logits, To::Student)? } else { None },
        if need[1] { gradient(teacher, To::Teacher)? } else { None },
    ])
}
