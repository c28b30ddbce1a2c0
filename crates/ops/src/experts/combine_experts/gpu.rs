//! Bound by reading what the experts gave once.

use super::Grad;
use crate::common::gpu::form::{Form, QUADS, SINGLES};
use crate::common::gpu::rows::{ROWS, Sharing};
use crate::common::gpu::to_u32s;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Dims, Result, Tensor};

const TEXT: &str = include_str!("kernel.wgsl");
const WEIGHTS_TEXT: &str = include_str!("weights.wgsl");

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("combine_experts", &[QUADS, TEXT]),
    crate::common::gpu::kernel("combine_experts, scalar", &[SINGLES, TEXT]),
];
static WEIGHTS: [Kernel; 2] = [
    crate::common::gpu::kernel("combine_experts, to weights", &[QUADS, ROWS, WEIGHTS_TEXT]).reducing(),
    crate::common::gpu::kernel("combine_experts, scalar, to weights", &[SINGLES, ROWS, WEIGHTS_TEXT]).reducing(),
];

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;

/// Tokens, choices of each, values of a row.
#[derive(Clone, Copy)]
struct CombineSizes {
    tokens: usize,
    choices: usize,
    width: usize,
}

/// The bindings of the launches.
#[derive(Clone, Copy)]
enum CombineSide<'a> {
    /// A row for each choice.
    RoutedChoices(&'a Tensor),
    /// A row for each token.
    Tokens(&'a Tensor),
    /// A number for each choice.
    Weights(&'a Tensor),
    Unused,
}

/// Runs an entry over all tokens, in as many launches as bindings need.
fn launch<'a>(
    gpu: &Gpu,
    form: Form,
    entry: &'static str,
    sizes: CombineSizes,
    sides: &[CombineSide<'a>],
) -> Result<()> {
    let CombineSizes { tokens, choices, width } = sizes;
    let units = width / form.unit();
    let row = width * form.dtype().size();
    let sharing = Sharing::of(units);
    for run in gpu.segments(tokens, choices * row) {
        let part = |x: &'a Tensor, bytes: usize| Bind::Part(x, run.start * bytes..run.end * bytes);
        let (kernels, constants, count, each) = match entry {
            "forward" => (&KERNELS, vec![], run.len() * units, WORKGROUP),
            "to_rows" => (&KERNELS, vec![], run.len() * choices * units, WORKGROUP),
            _ => (&WEIGHTS, sharing.constants().to_vec(), run.len() * choices, sharing.at_once()),
        };
        let bind = |side: CombineSide<'a>| match side {
            CombineSide::RoutedChoices(x) => part(x, choices * row),
            CombineSide::Tokens(x) => part(x, row),
            CombineSide::Weights(x) => part(x, choices * 4),
            CombineSide::Unused => Bind::Unused,
        };
        let binds: Vec<Bind<'_>> = sides.iter().copied().map(bind).collect();
        gpu.launch(&Launch {
            kernel: form.choose(kernels),
            entry,
            constants: &constants,
            stored: &form.stored(),
            binds: &binds,
            params: bytemuck::bytes_of(&to_u32s([count, units, choices])?),
            groups: Groups::Line(count.div_ceil(each)),
        })?;
    }
    Ok(())
}

/// `z[n] = Σ_k weights[n, k] · y[n, k]`.
pub(super) fn forward(gpu: &Gpu, y: &Tensor, weights: &Tensor, dims: &Dims) -> Result<Tensor> {
    let sizes = CombineSizes { tokens: dims['N'], choices: dims['K'], width: dims['D'] };
    let form = Form::of(sizes.width, y.dtype());
    let from = gpu.convert(y, form.dtype())?;
    let z = gpu.empty(dims.shape("N D")?, form.dtype())?;
    launch(
        gpu,
        form,
        "forward",
        sizes,
        &[CombineSide::RoutedChoices(&from), CombineSide::Weights(weights), CombineSide::Tokens(&z)],
    )?;
    gpu.convert(&z, y.dtype())
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dz: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { y, weights } = saved;
    let sizes = CombineSizes { tokens: y.shape()[0], choices: y.shape()[1], width: y.shape()[2] };
    let form = Form::of(sizes.width, y.dtype());
    let from = gpu.convert(dz, form.dtype())?;
    let [mut dy, mut dw] = [None, None];
    if need[0] {
        let to = gpu.empty(y.shape(), form.dtype())?;
        let sides = [
            CombineSide::Unused,
            CombineSide::Weights(weights),
            CombineSide::Unused,
            CombineSide::Tokens(&from),
            CombineSide::RoutedChoices(&to),
        ];
        launch(gpu, form, "to_rows", sizes, &sides)?;
        dy = Some(gpu.convert(&to, y.dtype())?);
    }
    if need[1] {
        let to = gpu.empty(weights.shape(), DType::F32)?;
        let ys = gpu.convert(y, form.dtype())?;
        launch(
            gpu,
            form,
            "to_weights",
            sizes,
            &[CombineSide::RoutedChoices(&ys), CombineSide::Tokens(&from), CombineSide::Weights(&to)],
        )?;
        dw = Some(to);
    }
    Ok([dy, dw])
}
