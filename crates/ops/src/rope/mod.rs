//! Rotary position embedding.

mod cpu;
mod entry;
pub(crate) mod gpu;
pub(crate) mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::{Arg, Backward, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `rope`.
static CONTRACT: Contract =
    Contract { op: "rope", args: &[Arg::new("x", "B T H D", FLOATS), Arg::new("positions", "B T", IDS)], rules: &[] };

/// The options of [`rope`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base of the frequencies; the longer a context is to be, the larger.
    pub theta: f32,
    /// The number of leading elements of a head that are rotated, even; the rest passes through.
    pub dims: usize,
    /// The scaling of the frequencies for contexts longer than those of the training.
    pub scaling: RopeScaling,
    /// The layout of the pairs.
    pub pairs: Pairs,
}

/// The layout of the pairs of elements that are rotated together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pairs {
    /// `i` and `i + dims/2`, as most models have it.
    #[default]
    Halves,
    /// `2i` and `2i + 1`; MLX calls it traditional.
    Neighbours,
}

impl Pairs {
    /// The stride between pairs, and between the two elements of a pair.
    pub(crate) fn strides(self, pairs: usize) -> [usize; 2] {
        match self {
            Pairs::Halves => [1, pairs],
            Pairs::Neighbours => [2, 1],
        }
    }
}

/// The scaling of frequencies for longer contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All by the same factor: positions come closer together.
    Linear {
        /// The divisor of the frequencies.
        factor: f32,
    },
    /// Frequencies with fewer than `low` turns in `original` tokens are divided by `factor`, those with more than
    /// `high` are kept, those between are interpolated.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f32,
        /// Turns in the original context below which a frequency is low.
        low: f32,
        /// Turns in the original context above which a frequency is high.
        high: f32,
        /// Tokens that a text had in the first training.
        original: f32,
    },
    /// YaRN: frequencies that turn less than `beta_slow` times in `original` tokens are divided by `factor`, those that
    /// turn more than `beta_fast` times are kept, those between are interpolated linearly in the pair's index.
    ///
    /// Source: Peng et al. 2023, arXiv:2309.00071.
    Yarn {
        /// The divisor of the low frequencies.
        factor: f32,
        /// Tokens of a text in the first training.
        original: f32,
        /// Turns in the original context above which a frequency is kept.
        beta_fast: f32,
        /// Turns in the original context below which a frequency is divided.
        beta_slow: f32,
        /// The factor of rotated elements, which keeps the entropy of attention.
        attention_factor: f32,
        /// Whether the bounds of the interpolation are rounded to whole pairs.
        truncate: bool,
    },
}

impl Rope {
    /// The angle, in radians a token, of pair `i` of `dims / 2`.
    pub fn frequency(&self, i: usize) -> f64 {
        let plain = f64::from(self.theta).powf(-2.0 * i as f64 / self.dims as f64);
        match self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / f64::from(factor),
            RopeScaling::Llama3 { factor, low, high, original } => {
                let [factor, low, high, original] = [factor, low, high, original].map(f64::from);
                let turns = original * plain / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                plain * (kept + (1.0 - kept) / factor)
            }
            RopeScaling::Yarn { factor, .. } => {
                let [low, high] = self.yarn_bounds();
                let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                plain * (1.0 - divided + divided / f64::from(factor))
            }
        }
    }

    /// The pairs between which YaRN interpolates.
    fn yarn_bounds(&self) -> [f64; 2] {
        let RopeScaling::Yarn { original, beta_fast, beta_slow, truncate, .. } = self.scaling else {
            return [0.0, 1.0];
        };
        let dims = self.dims as f64;
        // the pair that turns this many times in the original context
        let pair = |turns: f32| {
            let wavelength = f64::from(original) / (f64::from(turns) * std::f64::consts::TAU);
            dims * wavelength.ln() / (2.0 * f64::from(self.theta).ln())
        };
        let [low, high] = match truncate {
            true => [pair(beta_fast).floor(), pair(beta_slow).ceil()],
            false => [pair(beta_fast), pair(beta_slow)],
        };
        let [low, high] = [low.max(0.0), high.min(dims - 1.0)];
        [low, if low == high { high + 1e-3 } else { high }]
    }

    /// The factor of rotated elements.
    pub(crate) fn magnitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    pub(crate) fn check(&self, width: usize) -> Result<()> {
        if self.dims == 0 || !self.dims.is_multiple_of(2) || self.dims > width {
            let why = format!("dims is {}, expected an even number from 2 to D = {width}", self.dims);
            return Err(Error::value(CONTRACT.op, why));
        }
        let positive = |name: &str, x: f32| match x > 0.0 && x.is_finite() {
            true => Ok(()),
            false => Err(Error::value(CONTRACT.op, format!("{name} is {x}, expected a positive number"))),
        };
        positive("theta", self.theta)?;
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", factor),
            RopeScaling::Llama3 { factor, low, high, original } => {
                positive("factor", factor)?;
                positive("original", original)?;
                positive("high - low", high - low)
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor, .. } => {
                positive("factor", factor)?;
                positive("original", original)?;
                positive("beta_slow", beta_slow)?;
                positive("beta_fast - beta_slow", beta_fast - beta_slow)?;
                positive("attention_factor", attention_factor)?;
                positive("theta - 1", self.theta - 1.0)
            }
        }
    }
}

/// Rotary position embedding: rotates pairs of elements of each head by angles that grow with the token's position.
///
/// Elements `i` and `i + dims/2` are a pair (or `2i` and `2i + 1`, see [`Pairs`]), turned by `position ·
/// theta^(−2i/dims)`, which [`RopeScaling`] may lower: the angle is computed in f64, on a GPU in 64 bits of a turn, so
/// that positions of a million are as sharp as the first.
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
/// is 0, odd or more than `D`, or a number of [`Rope`] is not positive.
///
/// # Source
/// Su et al. 2021, arXiv:2104.09864. Agrees with `mlx.fast.rope`, whose angles are f32, with `Llama3RoPE` and
/// `YarnRoPE` of mlx-lm and with `modeling_rope_utils.py` of transformers.
pub fn rope(x: &Tensor, positions: &Tensor, turn: Rope) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x, positions])?;
    turn.check(dims['D'])?;
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::rotate(cpu, x, positions, turn, Rotation::Forward)?,
        Device::Gpu(gpu) => gpu::rotate(gpu, x, positions, turn, Rotation::Forward)?,
    };
    tape::record([x], y, || Grad { positions: positions.clone(), turn })
}

/// Which way to turn.
#[derive(Clone, Copy, PartialEq)]
enum Rotation {
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
            Device::Cpu(cpu) => Ok([Some(cpu::rotate(cpu, &dy, &self.positions, self.turn, Rotation::Back)?)]),
            Device::Gpu(gpu) => Ok([Some(gpu::rotate(gpu, &dy, &self.positions, self.turn, Rotation::Back)?)]),
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
        rope(&x, &positions, Rope { theta, dims, scaling: RopeScaling::None, pairs: Pairs::Halves })?.to_vec()
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

    #[test]
    fn low_frequencies_are_lowered_and_high_ones_kept() {
        let scaling = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 512.0 };
        let (plain, turn) = (
            Rope { theta: 5e5, dims: 32, scaling: RopeScaling::None, pairs: Pairs::Halves },
            Rope { theta: 5e5, dims: 32, scaling, pairs: Pairs::Halves },
        );
        let ratio: Vec<f64> = (0..16).map(|i| turn.frequency(i) / plain.frequency(i)).collect();
        assert_eq!((ratio[0], ratio[15]), (1.0, 0.125));
        assert!(ratio.windows(2).all(|pair| pair[1] <= pair[0]) && ratio.iter().any(|r| (0.2..0.9).contains(r)));
    }
}
