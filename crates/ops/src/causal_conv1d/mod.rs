//! Causal depthwise convolution along the tokens.

mod cpu;
mod entry;
mod gpu;
mod kernel;
pub(crate) mod reference;

pub(crate) use entry::OP;

use crate::common::packed;
use alluvium_core::contract::{FLOATS, IDS, SAME};
use alluvium_core::{Arg, BackwardMany, Contract, DType, Device, Dims, Error, Kind, Result, Tensor, tape};
use std::ops::Range;

/// The contract of `causal_conv1d`.
static CONTRACT: Contract = Contract {
    op: "causal_conv1d",
    args: &[
        Arg::new("x", "B T C", FLOATS),
        Arg::new("w", "C K", SAME).weight(),
        Arg::new("initial_state", "N K-1 C", SAME).optional(),
        Arg::new("cu_seqlens", "N+1", IDS).optional(),
    ],
    rules: &[],
};

/// The arguments of [`causal_conv1d`].
#[derive(Clone, Copy, Debug)]
pub struct CausalConv1dArgs<'a> {
    /// The tokens, `[B, T, C]`.
    pub x: &'a Tensor,
    /// The taps of each channel, `[C, K]`; the last is that of the current token.
    pub w: &'a Tensor,
    /// The `K-1` tokens before the first, `[N, K-1, C]`; zeros if `None`.
    pub initial_state: Option<&'a Tensor>,
    /// The `N+1` offsets of packed sequences, from 0 to `T`; `B` is then 1.
    pub cu_seqlens: Option<&'a Tensor>,
    /// The activation of the sums.
    pub activation: Activation,
}

/// The activation of a convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `z·σ(z)`.
    Silu,
}

/// The results of [`causal_conv1d`].
#[derive(Clone, Debug)]
pub struct ConvOutput {
    /// The convolved tokens, `[B, T, C]`.
    pub y: Tensor,
    /// The last `K-1` inputs of each sequence, `[N, K-1, C]`: the initial state of the next call. `None` when `K = 1`.
    pub final_state: Option<Tensor>,
}

/// Causal depthwise convolution: each channel has `K` taps over the current token and those before it.
///
/// `y[t, c] = act(Σ_k w[c, k] · x[t + k − (K−1), c])`; before the start are the rows of `initial_state`, or zeros.
///
/// | tensor          | shape     | dtype          | gradient            |
/// |-----------------|-----------|----------------|---------------------|
/// | `x`             | `B T C`   | f32, f16, bf16 | yes                 |
/// | `w`             | `C K`     | that of `x`    | yes, not rounded    |
/// | `initial_state` | `N K-1 C` | that of `x`    | yes                 |
/// | `cu_seqlens`    | `N+1`     | u32            |                     |
/// | `y`             | `B T C`   | that of `x`    |                     |
/// | `final_state`   | `N K-1 C` | that of `x`    |                     |
///
/// `N` is the number of packed sequences, or `B`. Any `K ≥ 1` is taken, `K > T` too: the final state then begins with
/// rows of the initial one. The backward pass keeps the arguments and computes the sums again.
///
/// # Errors
/// [`Kind::Shape`], `Dtype` or `Device` where the table does not hold; `Value` when `cu_seqlens` does not rise from 0
/// to `T` or comes with `B > 1`, or a state is given with `K = 1`.
///
/// # Source
/// `Conv1d(groups=C)` after padding on the left, as in the Gated DeltaNet layers of mlx-lm.
pub fn causal_conv1d(args: CausalConv1dArgs<'_>) -> Result<ConvOutput> {
    let CausalConv1dArgs { x, w, initial_state, cu_seqlens, activation } = args;
    if initial_state.is_some() && w.shape().rank() == 2 && w.shape().last() == 1 {
        return Err(Error::value(CONTRACT.op, "`initial_state` came, but with K = 1 nothing before a token matters"));
    }
    let dims = CONTRACT.check(&[Some(x), Some(w), initial_state, cu_seqlens])?;
    let saved = Saved {
        x: x.detach(),
        w: w.detach(),
        dw_dtype: w.gradient_dtype(),
        state: initial_state.map(Tensor::detach),
        sequences: sequences(&args, &dims)?,
        activation,
    };
    let (y, final_state) = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, &saved)?,
        Device::Gpu(gpu) => gpu::forward(gpu, &saved)?,
    };
    let inputs = [Some(x), Some(w), initial_state];
    if let Some(state) = final_state {
        let [y, state] = tape::record_many(inputs, [y, state], || saved)?;
        Ok(ConvOutput { y, final_state: Some(state) })
    } else {
        let [y] = tape::record_many(inputs, [y], || saved)?;
        Ok(ConvOutput { y, final_state: None })
    }
}

fn sequences(args: &CausalConv1dArgs<'_>, dims: &Dims) -> Result<Sequences> {
    let (batch, tokens) = (dims['B'], dims['T']);
    if let Some(offsets) = args.cu_seqlens {
        return packed(CONTRACT.op, offsets, batch, tokens).map(Sequences::Packed);
    }
    match args.initial_state.map(Tensor::shape) {
        Some(got) if got[0] != batch => {
            let want = format!("[N, K-1, C] with N = {batch}, the B of `x` {}", args.x.shape());
            Err(Kind::Shape { op: CONTRACT.op, arg: "initial_state", got, want }.into())
        }
        _ => Ok(Sequences::Even { count: batch, tokens }),
    }
}

/// The rows of each sequence among the `B · T` rows of `x`.
enum Sequences {
    Even { count: usize, tokens: usize },
    Packed(Vec<Range<usize>>),
}

impl Sequences {
    fn len(&self) -> usize {
        match self {
            Sequences::Even { count, .. } => *count,
            Sequences::Packed(rows) => rows.len(),
        }
    }

    fn rows(&self, sequence: usize) -> Range<usize> {
        match self {
            Sequences::Even { tokens, .. } => sequence * tokens..(sequence + 1) * tokens,
            Sequences::Packed(rows) => rows[sequence].clone(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        (0..self.len()).map(|sequence| self.rows(sequence))
    }
}

/// With `z` the sums and `dz = dy · act'(z)`: `dx[i] = Σ_k w[k] · dz[i + K−1 − k]` and
/// `dw[k] = Σ_t x[t + k − (K−1)] · dz[t]`. Rows of the initial state are inputs `x[i]` with `i < 0`; the gradient of
/// the final state adds to the inputs that it repeats.
struct Saved {
    x: Tensor,
    w: Tensor,
    dw_dtype: DType,
    state: Option<Tensor>,
    sequences: Sequences,
    activation: Activation,
}

impl<const M: usize> BackwardMany<3, M> for Saved {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: [Option<Tensor>; M], need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
        let mut dy = dy.into_iter();
        let (dy, dstate) = (dy.next().flatten(), dy.next().flatten());
        match self.x.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, [dy.as_ref(), dstate.as_ref()], need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, [dy.as_ref(), dstate.as_ref()], need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: [usize; 3], name: &str) -> Tensor {
        let mut rng = alluvium_core::rng::Rng::new(1, name);
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
        Tensor::from_slice(&data, shape, &Device::cpu()).unwrap()
    }

    fn conv<'a>(x: &'a Tensor, w: &'a Tensor, initial_state: Option<&'a Tensor>) -> CausalConv1dArgs<'a> {
        CausalConv1dArgs { x, w, initial_state, cu_seqlens: None, activation: Activation::Silu }
    }

    #[test]
    fn a_sequence_in_pieces_gives_the_bits_of_the_whole() {
        let (x, w) = (random([1, 11, 37], "x"), random([1, 37, 4], "w").reshape([37, 4]).unwrap());
        let whole = causal_conv1d(conv(&x, &w, None)).unwrap();
        let (mut state, mut y) = (None, Vec::new());
        for (first, len) in [(0, 1), (1, 2), (3, 7), (10, 1)] {
            let piece = x.reshape([11, 37]).unwrap().rows(first, len).unwrap().reshape([1, len, 37]).unwrap();
            let part = causal_conv1d(conv(&piece, &w, state.as_ref())).unwrap();
            y.extend(part.y.to_vec::<f32>().unwrap());
            state = part.final_state;
        }
        assert_eq!(y, whole.y.to_vec::<f32>().unwrap());
        let (a, b) = (state.unwrap(), whole.final_state.unwrap());
        assert_eq!(a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap());
    }

    #[test]
    fn a_state_that_does_not_fit_is_an_error() {
        let (x, w) = (random([2, 3, 4], "x"), random([1, 4, 3], "w").reshape([4, 3]).unwrap());
        let error = causal_conv1d(conv(&x, &w, Some(&random([3, 2, 4], "s")))).unwrap_err().to_string();
        let want =
            "causal_conv1d: `initial_state` is [3, 2, 4], expected [N, K-1, C] with N = 2, the B of `x` [2, 3, 4]";
        assert_eq!(error, want);
        let one = random([1, 4, 1], "w").reshape([4, 1]).unwrap();
        let error = causal_conv1d(conv(&x, &one, Some(&random([2, 1, 4], "s")))).unwrap_err().to_string();
        assert_eq!(error, "causal_conv1d: `initial_state` came, but with K = 1 nothing before a token matters");
    }
}
