//! Batched products of matrices.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{FLOATS, SAME};
use alluvium_core::{Arg, Backward, Contract, DType, Device, Result, Tensor, tape};

/// The contract of `matmul` where neither side is stored transposed.
static CONTRACT: Contract =
    contract(&[Arg::new("a", "R.. M K", FLOATS).weight(), Arg::new("b", "R.. K N", SAME).weight()]);
static LEFT: Contract = contract(&[Arg::new("a", "R.. K M", FLOATS).weight(), Arg::new("b", "R.. K N", SAME).weight()]);
static RIGHT: Contract =
    contract(&[Arg::new("a", "R.. M K", FLOATS).weight(), Arg::new("b", "R.. N K", SAME).weight()]);
static BOTH: Contract = contract(&[Arg::new("a", "R.. K M", FLOATS).weight(), Arg::new("b", "R.. N K", SAME).weight()]);

const fn contract(args: &'static [Arg]) -> Contract {
    Contract { op: "matmul", args, rules: &[] }
}

/// Which sides of a [`matmul`] are stored transposed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transpose {
    /// `a [M, K]` by `b [K, N]`.
    #[default]
    Neither,
    /// `a [K, M]` by `b [K, N]`.
    Left,
    /// `a [M, K]` by `b [N, K]`.
    Right,
    /// `a [K, M]` by `b [N, K]`.
    Both,
}

impl Transpose {
    fn left(self) -> bool {
        matches!(self, Transpose::Left | Transpose::Both)
    }

    fn right(self) -> bool {
        matches!(self, Transpose::Right | Transpose::Both)
    }

    fn contract(self) -> &'static Contract {
        match self {
            Transpose::Neither => &CONTRACT,
            Transpose::Left => &LEFT,
            Transpose::Right => &RIGHT,
            Transpose::Both => &BOTH,
        }
    }
}

/// The product of each pair of matrices: `c = a · b`, where the sides that `transpose` names are read transposed.
///
/// | tensor | shape                           | dtype          | gradient            |
/// |--------|---------------------------------|----------------|---------------------|
/// | `a`    | `R.. M K`, transposed `R.. K M` | f32, f16, bf16 | yes, not rounded    |
/// | `b`    | `R.. K N`, transposed `R.. N K` | that of `a`    | yes, not rounded    |
/// | result | `R.. M N`                       | that of `a`    |                     |
///
/// The leading axes are equal: one product for each. Products are summed in f32. The backward pass keeps `a` and `b`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
///
/// # Source
/// The product of linear algebra; same values as `mlx.core.matmul`.
pub fn matmul(a: &Tensor, b: &Tensor, transpose: Transpose) -> Result<Tensor> {
    let dims = transpose.contract().check(&[a, b])?;
    let sizes = MatmulSizes { m: dims['M'], k: dims['K'], n: dims['N'], transpose };
    let c = match a.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, a, b, sizes, dims.shape("R.. M N")?)?,
        Device::Gpu(gpu) => gpu::forward(gpu, a, b, sizes, dims.shape("R.. M N")?)?,
    };
    tape::record([a, b], c, || {
        let dtypes = [a.gradient_dtype(), b.gradient_dtype()];
        Grad { a: a.detach(), b: b.detach(), sizes, dtypes }
    })
}

/// The sizes of each product.
#[derive(Clone, Copy)]
struct MatmulSizes {
    m: usize,
    k: usize,
    n: usize,
    transpose: Transpose,
}

/// `da = dc · bᵀ` and `db = aᵀ · dc`, each transposed where its side is stored so.
struct Grad {
    a: Tensor,
    b: Tensor,
    sizes: MatmulSizes,
    /// Those of the gradients.
    dtypes: [DType; 2],
}

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dc: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        match self.a.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dc, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dc, need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_that_is_not_transposed_as_said_is_refused_with_both_shapes() {
        let device = Device::cpu();
        let a = Tensor::full([2, 3, 5], 1.0, &device).unwrap();
        let b = Tensor::full([2, 5, 4], 1.0, &device).unwrap();
        assert_eq!(matmul(&a, &b, Transpose::Neither).unwrap().shape()[..], [2, 3, 4]);
        let error = matmul(&a, &b, Transpose::Left).unwrap_err().to_string();
        let want =
            "matmul: `b` is [2, 5, 4], expected [R.., K, N] with R = [2] from `a` [2, 3, 5], K = 3 from `a` [2, 3, 5]";
        assert_eq!(error, want);
        let error = matmul(&a, &b, Transpose::Right).unwrap_err().to_string();
        let want =
            "matmul: `b` is [2, 5, 4], expected [R.., N, K] with R = [2] from `a` [2, 3, 5], K = 5 from `a` [2, 3, 5]";
        assert_eq!(error, want);
    }
}
