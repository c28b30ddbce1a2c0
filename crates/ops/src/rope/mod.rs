//! Rotary position embedding.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{FLOATS, Fill, IDS};
use alluvium_core::{Arg, Backward, Contract, Device, Error, Result, Tensor, tape};

/// What `rope` takes.
static CONTRACT: Contract = Contract {
    op: "rope",
    args: &[Arg::new("x", "B T H D", FLOATS), Arg::new("positions", "B T", IDS).filled(Fill::Uniform(0.0, 4_000.0))],
    rules: &[],
};

/// How far [`rope`] turns, and what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies; the longer a context is to be, the larger.
    pub theta: f32,
    /// The first so many elements of a head are turned, an even number; the rest passes through.
    pub dims: usize,
}

/// Turns pairs of elements of each head by angles that grow with the token's position.
///
/// Elements `i` and `i + dims/2` are a pair, turned by `position · theta^(−2i/dims)`: the angle is computed in f64, on
/// a GPU in 64 bits of a turn, so that positions of a million are as sharp as the first.
///
/// | tensor      | shape     | dtype          | gradient |
/// |-------------|-----------|----------------|----------|
/// | `x`         | `B T H D` | f32, f16, bf16 | yes      |
/// | `positions` | `B T`     | u32            |          |
/// | result      | `B T H D` | that of `x`    |          |
///
/// The backward pass turns back, and keeps `positions` alone.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when `dims`
/// is 0, odd or more than `D`, or `theta` is not a positive number.
///
/// # Source
/// Su et al. 2021, arXiv:2104.09864. Same numbers as `mlx.fast.rope` with `traditional=False`, whose angles are f32.
pub fn rope(x: &Tensor, positions: &Tensor, turn: Rope) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x, positions])?;
    if turn.dims == 0 || !turn.dims.is_multiple_of(2) || turn.dims > dims['D'] {
        let why = format!("dims is {}, expected an even number from 2 to D = {}", turn.dims, dims['D']);
        return Err(Error::value(CONTRACT.op, why));
    }
    if !(turn.theta > 0.0 && turn.theta.is_finite()) {
        return Err(Error::value(CONTRACT.op, format!("theta is {}, expected a positive number", turn.theta)));
    }
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::rotate(cpu, x, positions, turn, Way::Forward)?,
        Device::Wgpu(gpu) => gpu::rotate(gpu, x, positions, turn, Way::Forward)?,
    };
    tape::record([x], y, || Grad { positions: positions.clone(), turn })
}

/// Which way to turn.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Forward,
    Back,
}

/// A rotation's transpose is the rotation back.
struct Grad {
    positions: Tensor,
    turn: Rope,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        match dy.device() {
            Device::Cpu(cpu) => Ok([Some(cpu::rotate(cpu, &dy, &self.positions, self.turn, Way::Back)?)]),
            Device::Wgpu(gpu) => Ok([Some(gpu::rotate(gpu, &dy, &self.positions, self.turn, Way::Back)?)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(dims: usize, theta: f32, width: usize) -> Result<Vec<f32>> {
        let device = Device::cpu();
        let x = Tensor::full([1, 1, 1, width], 1.0, &device)?;
        let positions = Tensor::from_slice(&[0u32], [1, 1], &device)?;
        rope(&x, &positions, Rope { theta, dims })?.to_vec()
    }

    #[test]
    fn position_zero_turns_nothing() {
        assert_eq!(turned(4, 1e4, 6).unwrap(), [1.0; 6]);
    }

    #[test]
    fn sizes_that_cannot_be_turned_are_refused() {
        let words = |dims, theta| turned(dims, theta, 6).unwrap_err().to_string();
        assert_eq!(words(3, 1e4), "rope: dims is 3, expected an even number from 2 to D = 6");
        assert_eq!(words(8, 1e4), "rope: dims is 8, expected an even number from 2 to D = 6");
        assert_eq!(words(4, 0.0), "rope: theta is 0, expected a positive number");
    }
}
