//! Elementwise operations on a GPU: each gives its formula and derivative as WGSL and shares this launch.

use crate::common::gpu::to_u32;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{Result, Tensor};

/// Text before an operation's `value(x)` and `derivative(x)`.
pub(super) const UNARY: &str = include_str!("unary.wgsl");
/// Text before an operation's `value(a, b)` and `derivatives(a, b)`.
pub(super) const BINARY: &str = include_str!("binary.wgsl");

/// Invocations of a workgroup; each takes four elements.
const WORKGROUP: usize = 256;

/// A map that a GPU can run.
pub(super) trait WgslMap: Copy {
    /// The formula, with [`UNARY`] or [`BINARY`] before it.
    fn kernel(self) -> &'static Kernel;

    /// The value of `p.scalar` in the kernel.
    fn scalar(self) -> f32 {
        0.0
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    quads: u32,
    scalar: f32,
}

/// `f` of the elements at each place.
pub(super) fn values<F: WgslMap, const N: usize>(gpu: &Gpu, f: F, inputs: [&Tensor; N]) -> Result<Tensor> {
    let y = gpu.empty(inputs[0].shape(), inputs[0].dtype())?;
    let tensors: Vec<&Tensor> = inputs.into_iter().chain([&y]).collect();
    launch(gpu, f, "forward", &tensors)?;
    Ok(y)
}

/// `dy · f′(x)`, in the memory of `dy` if it is not shared.
pub(super) fn derivative<F: WgslMap>(gpu: &Gpu, f: F, x: &Tensor, mut dy: Tensor) -> Result<Tensor> {
    if dy.is_unique() {
        launch(gpu, f, "backward_in_place", &[x, &dy])?;
        return Ok(dy);
    }
    let dx = gpu.empty(x.shape(), x.dtype())?;
    launch(gpu, f, "backward", &[x, &dx, &dy])?;
    Ok(dx)
}

/// `dy · ∂f/∂a` and `dy · ∂f/∂b`, those that are needed; the first of them in the memory of `dy` if it is not shared.
pub(super) fn derivatives<F: WgslMap>(
    gpu: &Gpu,
    f: F,
    [a, b]: [&Tensor; 2],
    mut dy: Tensor,
    need: [bool; 2],
) -> Result<[Option<Tensor>; 2]> {
    let entries = match need {
        [true, true] => ["backward", "backward_in_place"],
        [true, false] => ["backward_a", "backward_a_in_place"],
        [false, true] => ["backward_b", "backward_b_in_place"],
        [false, false] => return Ok([None, None]),
    };
    let in_place = dy.is_unique();
    let first = if in_place { None } else { Some(gpu.empty(a.shape(), a.dtype())?) };
    let second = if need == [true; 2] { Some(gpu.empty(b.shape(), b.dtype())?) } else { None };
    let mut tensors = vec![a, b, first.as_ref().unwrap_or(&dy)];
    tensors.extend(&second);
    if !in_place {
        tensors.push(&dy);
    }
    launch(gpu, f, entries[usize::from(in_place)], &tensors)?;
    if let Some(first) = first {
        dy = first;
    }
    Ok(if need[0] { [Some(dy), second] } else { [None, Some(dy)] })
}

/// Runs an entry of the kernel over tensors of the same length and dtype, with one launch per segment that a binding
/// holds.
fn launch<F: WgslMap>(gpu: &Gpu, f: F, entry: &'static str, tensors: &[&Tensor]) -> Result<()> {
    let (elements, dtype) = (tensors[0].elements(), tensors[0].dtype());
    let quad = 4 * dtype.size();
    for part in gpu.segments(elements.div_ceil(4), quad) {
        let bytes = part.start * quad..(part.end * quad).min(elements * dtype.size());
        let binds: Vec<Bind<'_>> = tensors.iter().map(|tensor| Bind::Part(tensor, bytes.clone())).collect();
        let params = Params { quads: to_u32(part.len())?, scalar: f.scalar() };
        gpu.launch(&Launch {
            kernel: f.kernel(),
            entry,
            constants: &[],
            stored: &[("X", dtype)],
            binds: &binds,
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(part.len().div_ceil(WORKGROUP)),
        })?;
    }
    Ok(())
}
