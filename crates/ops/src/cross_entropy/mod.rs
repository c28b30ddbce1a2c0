//! Cross entropy, fused with the output projection.

pub(crate) mod cpu;
pub(crate) mod entry;
pub(crate) mod gpu;
pub(crate) mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Arg, Backward, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `cross_entropy`.
static CONTRACT: Contract = Contract {
    op: "cross_entropy",
    args: &[Arg::new("x", "N D", FLOATS), Arg::new("w", "V D", FLOATS).weight(), Arg::new("targets", "N", IDS)],
    rules: &[],
};

/// The reduction of the tokens' losses to one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The mean over the targets that are not ignored.
    Mean,
    /// The sum over the targets that are not ignored.
    Sum,
}

/// The arguments of [`cross_entropy`].
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropyArgs<'a> {
    /// Hidden states, `[N, D]`.
    pub x: &'a Tensor,
    /// The output projection, `[V, D]`.
    pub w: &'a Tensor,
    /// The ids of the target tokens, `[N]`, u32.
    pub targets: &'a Tensor,
    /// The id that marks ignored targets: prompts, padding.
    pub ignore_index: Option<u32>,
    /// Mean or sum over the tokens.
    pub reduction: Reduction,
    /// Adds `z_loss · logsumexp²` to each token's loss, which keeps logits from drifting; 0 disables it.
    pub z_loss: f32,
    /// The number of tokens whose logits are in memory at once.
    pub chunk: usize,
}

impl CrossEntropyArgs<'_> {
    fn options(&self) -> LossOptions {
        let CrossEntropyArgs { ignore_index, reduction, z_loss, chunk, .. } = *self;
        LossOptions { ignore_index, reduction, z_loss, chunk }
    }
}

/// The arguments that are no tensors.
#[derive(Clone, Copy)]
pub(crate) struct LossOptions {
    pub(crate) ignore_index: Option<u32>,
    pub(crate) reduction: Reduction,
    pub(crate) z_loss: f32,
    pub(crate) chunk: usize,
}

impl LossOptions {
    pub(crate) fn check(&self, op: &'static str) -> Result<()> {
        let z_loss = self.z_loss;
        if self.chunk == 0 {
            return Err(Error::value(op, "chunk is 0, expected the number of tokens at once"));
        }
        match z_loss >= 0.0 && z_loss.is_finite() {
            true => Ok(()),
            false => Err(Error::value(op, format!("z_loss is {z_loss}, expected a finite number, 0 or more"))),
        }
    }
}

/// The negative log-likelihood of `targets` under `softmax(x·wᵀ)`, without materializing all logits.
///
/// `loss = Σ_n (lse_n − z_n[target_n] + z_loss·lse_n²)` with `z_n = w·x_n` and `lse_n = log Σ_v exp z_n[v]`, over the
/// tokens whose target is not `ignore_index`; the mean divides by their count. If all targets are ignored, the loss and
/// its gradients are 0.
///
/// | tensor    | shape | dtype          | gradient         |
/// |-----------|-------|----------------|------------------|
/// | `x`       | `N D` | f32, f16, bf16 | yes              |
/// | `w`       | `V D` | f32, f16, bf16 | yes, not rounded |
/// | `targets` | `N`   | u32            | no               |
/// | result    | `[]`  | f32            |                  |
///
/// `w` may be stored in less precision than `x`: it is widened as it is read, and no copy of it is made.
///
/// Targets that a GPU computed are not read back: one of `V` or more is taken as `V − 1`.
///
/// Logits are computed in f32 for `chunk` tokens at a time, and only for tokens that are not ignored. Where `x` or `w`
/// is traced, their gradients are computed in the same pass and kept in f32; the backward pass only scales them.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when a
/// target that the host knows is `V` or more, `chunk` is 0 or `z_loss` is negative or not finite.
///
/// # Source
/// Wijmans et al. 2024, arXiv:2411.09009, for the fusion; Chowdhery et al. 2022, arXiv:2204.02311, for the z-loss.
pub fn cross_entropy(args: CrossEntropyArgs<'_>) -> Result<Tensor> {
    let CrossEntropyArgs { x, w, targets, .. } = args;
    let dims = CONTRACT.check(&[x, w, targets])?;
    args.options().check(CONTRACT.op)?;
    let (loss, grad) = match x.device() {
        Device::Cpu(cpu) => {
            let (loss, grad) = cpu::forward(cpu, &args, &dims)?;
            (loss, Grad::Cpu(grad))
        }
        Device::Gpu(gpu) => {
            let (loss, grad) = gpu::forward(gpu, &args, &dims)?;
            (loss, Grad::Wgpu(gpu.clone(), grad))
        }
    };
    tape::record([x, w], loss, || grad)
}

/// With `p = softmax(z)` and `c` = 1, or 1 over the number of targets that count:
/// `dz = c·(p·(1 + 2·z_loss·lse) − onehot(target))`, `dx = dz·w`, `dw = dzᵀ·x`; both are made while the logits exist.
pub(crate) enum Grad {
    Cpu(cpu::CpuGradients),
    Wgpu(Gpu, gpu::GpuGradients),
}

impl Grad {
    /// The gradients for a loss whose own is `dy`.
    pub(crate) fn times(self, dy: &Tensor) -> Result<[Option<Tensor>; 2]> {
        match self {
            Grad::Cpu(gradients) => gradients.times(dy.item()?),
            Grad::Wgpu(gpu, gradients) => gradients.times(&gpu, dy),
        }
    }
}

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        self.times(&dy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Tape;
    use alluvium_core::cpu::Cpu;

    fn tensors(device: &Device, n: usize, d: usize, v: usize) -> (Tensor, Tensor) {
        let wave = |len: usize| (0..len).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
        let x = Tensor::from_slice(&wave(n * d), [n, d], device).unwrap();
        (x, Tensor::from_slice(&wave(v * d), [v, d], device).unwrap())
    }

    fn plain<'a>(x: &'a Tensor, w: &'a Tensor, targets: &'a Tensor, chunk: usize) -> CrossEntropyArgs<'a> {
        CrossEntropyArgs { x, w, targets, ignore_index: Some(7), reduction: Reduction::Mean, z_loss: 0.0, chunk }
    }

    #[test]
    fn a_target_outside_the_vocabulary_names_its_token() {
        let device = Device::cpu();
        let (x, w) = tensors(&device, 3, 4, 5);
        let targets = Tensor::from_slice(&[1u32, 7, 5], [3], &device).unwrap();
        let error = cross_entropy(plain(&x, &w, &targets, 2)).unwrap_err().to_string();
        assert_eq!(error, "cross_entropy: the target of token 2 is 5, expected below V = 5");
        let error = cross_entropy(plain(&x, &w, &targets, 0)).unwrap_err().to_string();
        assert_eq!(error, "cross_entropy: chunk is 0, expected the number of tokens at once");
    }

    #[test]
    fn where_no_target_counts_the_loss_and_its_gradients_are_zero() {
        let device = Device::cpu();
        let tape = Tape::new();
        let (x, w) = tensors(&device, 3, 4, 5);
        let (x, w) = (tape.watch(&x), tape.watch(&w));
        let targets = Tensor::from_slice(&[7u32; 3], [3], &device).unwrap();
        let loss = cross_entropy(plain(&x, &w, &targets, 2)).unwrap();
        assert_eq!(loss.item().unwrap(), 0.0);
        let grads = loss.backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().to_vec::<f32>().unwrap(), [0.0; 12]);
        assert_eq!(grads.get(&w).unwrap().to_vec::<f32>().unwrap(), [0.0; 20]);
    }

    #[test]
    fn memory_grows_with_the_chunk_and_not_with_the_tokens() {
        let (d, v) = (8, 4_000);
        let peak = |n: usize, chunk: usize, traced: bool| {
            let device: Device = Cpu::builder().threads(1).open().unwrap().into();
            let (x, w) = tensors(&device, n, d, v);
            let targets = Tensor::from_slice(&vec![3u32; n], [n], &device).unwrap();
            let tape = Tape::new();
            let (x, w) = if traced { (tape.watch(&x), tape.watch(&w)) } else { (x, w) };
            cross_entropy(plain(&x, &w, &targets, chunk)).unwrap();
            x.device().peak_memory()
        };
        for traced in [false, true] {
            let (few, many) = (peak(64, 16, traced), peak(640, 16, traced));
            assert!(many - few < 640 * d * 4 * 4, "{few} {many}");
            assert!(peak(640, 160, traced) > many + 140 * v * 4);
        }
    }

    #[test]
    fn a_huge_logit_wins_without_overflow() {
        let device = Device::cpu();
        let x = Tensor::from_slice(&[1e30f32, 1.0], [1, 2], &device).unwrap();
        let w = Tensor::from_slice(&[1.0f32, 0.0, -1.0, 0.0, 0.0, 1.0], [3, 2], &device).unwrap();
        let targets = Tensor::from_slice(&[0u32], [1], &device).unwrap();
        assert_eq!(cross_entropy(plain(&x, &w, &targets, 1)).unwrap().item().unwrap(), 0.0);
    }
}
