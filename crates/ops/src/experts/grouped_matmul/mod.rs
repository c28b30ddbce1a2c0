//! Rows times the transposed weights of their experts.

mod cpu;
mod entry;
mod gpu;
pub(crate) mod reference;

pub(crate) use entry::OP;

use crate::experts::cpu::check_rows;
use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::{Arg, Backward, Contract, DType, Device, Dims, Result, Tensor, tape};

/// The contract of `grouped_matmul`.
static CONTRACT: Contract = Contract {
    op: "grouped_matmul",
    args: &[Arg::new("x", "R.. I", FLOATS), Arg::new("w", "E O I", FLOATS).weight(), Arg::new("experts", "N K", IDS)],
    rules: &[],
};

/// Each row of `x` times the transposed weights of its token's experts: `y[n, k] = x · w[experts[n, k]]ᵀ`.
///
/// The rows of `x` are those of the tokens, `R = N`, or each choice has its own, `R = N·K`: the first projections of an
/// expert take the former, its last one the latter.
///
/// | tensor    | shape   | dtype          | gradient            |
/// |-----------|---------|----------------|---------------------|
/// | `x`       | `R.. I` | f32, f16, bf16 | yes                 |
/// | `w`       | `E O I` | f32, f16, bf16 | yes, not rounded    |
/// | `experts` | `N K`   | u32            |                     |
/// | result    | `N K O` | that of `x`    |                     |
///
/// The choices are sorted by expert, so the weights of an expert are read once for all its rows, and not at all when
/// no token chose it. Products are summed in f32; the gradient of an expert that no token chose is zero. The backward
/// pass keeps the arguments.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when an
/// expert is `E` or more. An id that a GPU made is not waited for: where it is `E` or more the row is NaN.
///
/// # Source
/// `mlx.core.gather_mm`; the grouped product of Gale et al. 2022, MegaBlocks, arXiv:2211.15841.
///
/// # Example
/// The MLP of a mixture of experts:
///
/// ```
/// use alluvium_core::{Device, Result, Tensor};
/// use alluvium_ops::{RouteOutput, Routing, combine_experts, grouped_matmul, linear, route, swiglu};
///
/// fn mlp(x: &Tensor, router: &Tensor, [gate, up, down]: [&Tensor; 3]) -> Result<Tensor> {
///     let routing = Routing { top_k: 2, norm_topk_prob: true };
///     let RouteOutput { weights, experts } = route(&linear(x, router)?, routing)?;
///     let h = swiglu(&grouped_matmul(x, gate, &experts)?, &grouped_matmul(x, up, &experts)?)?;
///     combine_experts(&grouped_matmul(&h, down, &experts)?, &weights)
/// }
///
/// let of = |shape: &[usize]| Tensor::full(alluvium_core::Shape::new(shape)?, 0.5, &Device::cpu());
/// let y = mlp(&of(&[3, 8])?, &of(&[4, 8])?, [&of(&[4, 6, 8])?, &of(&[4, 6, 8])?, &of(&[4, 8, 6])?])?;
/// assert_eq!(y.shape()[..], [3, 8]);
/// # Ok::<(), alluvium_core::Error>(())
/// ```
pub fn grouped_matmul(x: &Tensor, w: &Tensor, experts: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x, w, experts])?;
    check_rows(CONTRACT.op, x.shape(), &dims)?;
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, w, experts, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, x, w, experts, &dims)?,
    };
    tape::record([x, w], y, || {
        let dw_dtype = w.gradient_dtype();
        Grad { x: x.detach(), w: w.detach(), experts: experts.detach(), dims, dw_dtype }
    })
}

/// `dx = Σ dy · w[expert]` over the choices that share the row, `dw[e] = Σ dyᵀ · x` over those of the expert.
struct Grad {
    x: Tensor,
    w: Tensor,
    experts: Tensor,
    dims: Dims,
    dw_dtype: DType,
}

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        match self.x.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Tape;

    fn tensor<const N: usize>(data: &[f32], shape: [usize; N]) -> Tensor {
        Tensor::from_slice(data, shape, &Device::cpu()).unwrap()
    }

    fn ids<const N: usize>(data: &[u32], shape: [usize; N]) -> Tensor {
        Tensor::from_slice(data, shape, &Device::cpu()).unwrap()
    }

    #[test]
    fn an_expert_that_no_token_chose_has_a_gradient_of_zeros() {
        let tape = Tape::new();
        let x = tensor(&[1.0, 2.0], [1, 2]);
        let w = tape.watch(&tensor(&[1.0; 6], [3, 1, 2]));
        let y = grouped_matmul(&x, &w, &ids(&[2, 0], [1, 2])).unwrap();
        let grads = tape.backward(&[(&y, &tensor(&[1.0, 10.0], [1, 2, 1]))]).unwrap();
        assert_eq!(grads.get(&w).unwrap().to_vec::<f32>().unwrap(), [10.0, 20.0, 0.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn an_expert_that_is_not_there_and_rows_that_fit_nothing_are_refused() {
        let (x, w) = (tensor(&[1.0; 4], [2, 2]), tensor(&[1.0; 6], [3, 1, 2]));
        let error = |x: &Tensor, experts: &Tensor| grouped_matmul(x, &w, experts).unwrap_err().to_string();
        let text = "grouped_matmul: `experts` holds 3 at [1, 0], expected less than E = 3";
        assert_eq!(error(&x, &ids(&[0, 3], [2, 1])), text);
        let text = "grouped_matmul: `x` is [2, 2], expected 3 rows, one a token, or 6, one a choice, as `experts` has";
        assert_eq!(error(&x, &ids(&[0; 6], [3, 2])), text);
    }

    #[test]
    fn weights_in_half_precision_meet_activations_in_single() {
        let (x, w) = (tensor(&[1.0, 2.0], [1, 2]), tensor(&[0.5, 0.25, -1.0, 3.0], [2, 1, 2]));
        let half = crate::cast(&w, DType::BF16).unwrap();
        let y = grouped_matmul(&x, &half, &ids(&[1, 0], [1, 2])).unwrap();
        assert_eq!((y.dtype(), y.to_vec::<f32>().unwrap()), (DType::F32, vec![5.0, 1.0]));
    }
}
