//! Cross entropy, fused with a quantized output projection.

mod entry;
mod reference;

pub(crate) use entry::OP;

use crate::cross_entropy::{Grad, LossOptions, Reduction, cpu, gpu};
use crate::quantized::{Quantized, SCALES};
use alluvium_core::contract::{FLOATS, IDS};
use alluvium_core::{Arg, Backward, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `quantized_cross_entropy`.
pub(crate) static CONTRACT: Contract = Contract {
    op: "quantized_cross_entropy",
    args: &[
        Arg::new("x", "N D", FLOATS),
        Arg::new("w", "V W", IDS),
        Arg::new("scales", "V G", SCALES),
        Arg::new("biases", "V G", FLOATS).optional(),
        Arg::new("targets", "N", IDS),
    ],
    rules: &[],
};

/// The arguments of [`quantized_cross_entropy`].
#[derive(Clone, Copy, Debug)]
pub struct QuantizedCrossEntropyArgs<'a> {
    /// Hidden states, `[N, D]`.
    pub x: &'a Tensor,
    /// The output projection, `[V, D]`. It is frozen.
    pub q: Quantized<'a>,
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

impl QuantizedCrossEntropyArgs<'_> {
    pub(crate) fn options(&self) -> LossOptions {
        let QuantizedCrossEntropyArgs { ignore_index, reduction, z_loss, chunk, .. } = *self;
        LossOptions { ignore_index, reduction, z_loss, chunk }
    }
}

/// The negative log-likelihood of `targets` under `softmax(x·wᵀ)` with packed weights: the loss of
/// [`cross_entropy`](crate::cross_entropy) over a frozen head.
///
/// | tensor    | shape | dtype                                     | gradient |
/// |-----------|-------|-------------------------------------------|----------|
/// | `x`       | `N D` | f32, f16, bf16                            | yes      |
/// | `w`       | `V W` | u32                                       |          |
/// | `scales`  | `V G` | f32, f16, bf16; u8 for packings of floats | no       |
/// | `biases`  | `V G` | f32, f16, bf16; affine packing only       | no       |
/// | `targets` | `N`   | u32                                       | no       |
/// | result    | `[]`  | f32                                       |          |
///
/// `D` is `32·W / bits` and `G` is `D / group`. Logits are computed in f32 for `chunk` tokens at a time, and only for
/// tokens that are not ignored. Weights are dequantized block by block; the full matrix is never materialized. Where
/// `x` is traced, its gradient is computed in the same pass and kept in f32; the backward pass only scales it.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when `scales`
/// or `biases` are traced, for bits or groups that do not exist, when a target that the host knows is `V` or more,
/// `chunk` is 0 or `z_loss` is negative or not finite.
///
/// # Source
/// As [`cross_entropy`](crate::cross_entropy).
pub fn quantized_cross_entropy(args: QuantizedCrossEntropyArgs<'_>) -> Result<Tensor> {
    let QuantizedCrossEntropyArgs { x, q, targets, .. } = args;
    CONTRACT.check(&[Some(x), Some(q.w), Some(q.scales), q.biases, Some(targets)])?;
    let layout = q.layout(CONTRACT.op)?;
    layout.fits(CONTRACT.op, "x", x.shape())?;
    args.options().check(CONTRACT.op)?;
    if q.scales.is_traced() || q.biases.is_some_and(Tensor::is_traced) {
        let why = "`scales` or `biases` are traced, but they get no gradient; detach them, or use quantized_matmul";
        return Err(Error::value(CONTRACT.op, why));
    }
    let (loss, grad) = match x.device() {
        Device::Cpu(cpu) => {
            let (loss, grad) = cpu::forward_packed(cpu, &args, layout)?;
            (loss, Grad::Cpu(grad))
        }
        Device::Gpu(gpu) => {
            let (loss, grad) = gpu::forward_packed(gpu, &args, layout)?;
            (loss, Grad::Wgpu(gpu.clone(), grad))
        }
    };
    tape::record([x], loss, || HiddenGrad(grad))
}

/// `dx = dz · w`, as in [`Grad`].
struct HiddenGrad(Grad);

impl Backward<1> for HiddenGrad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let [dx, _] = self.0.times(&dy)?;
        Ok([dx])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CrossEntropyArgs, Packing, cross_entropy, dequantize, quantize};
    use alluvium_core::cpu::Cpu;
    use alluvium_core::{DType, Tape};

    fn wave(shape: [usize; 2], device: &Device) -> Tensor {
        let data: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i as f32 * 0.37).sin()).collect();
        Tensor::from_slice(&data, shape, device).unwrap()
    }

    fn args<'a>(x: &'a Tensor, q: Quantized<'a>, targets: &'a Tensor, chunk: usize) -> QuantizedCrossEntropyArgs<'a> {
        let reduction = Reduction::Mean;
        QuantizedCrossEntropyArgs { x, q, targets, ignore_index: Some(7), reduction, z_loss: 0.0, chunk }
    }

    #[test]
    fn every_packing_has_the_loss_and_the_gradient_of_its_widened_copy() {
        let device = Device::cpu();
        let (x, w) = (wave([9, 64], &device), wave([33, 64], &device));
        let targets = Tensor::from_slice(&[1u32, 7, 32, 0, 5, 7, 7, 8, 9], [9], &device).unwrap();
        let affine = [1, 2, 3, 4, 5, 6, 8].map(|bits| Packing::Affine { bits, group: 32 });
        for packing in affine.into_iter().chain([Packing::Mxfp4, Packing::Mxfp8, Packing::Nvfp4]) {
            let packed = quantize(&w, packing).unwrap();
            let wide = dequantize(&packed.quantized(), DType::F32).unwrap();
            let run = |loss: &dyn Fn(&Tensor) -> Result<Tensor>| {
                let tape = Tape::new();
                let x = tape.watch(&x);
                let loss = loss(&x).unwrap();
                let dx = loss.backward().unwrap().get(&x).unwrap().to_vec::<f32>().unwrap();
                (loss.item().unwrap(), dx)
            };
            let got = run(&|x| quantized_cross_entropy(args(x, packed.quantized(), &targets, 4)));
            let (reduction, ignore_index) = (Reduction::Mean, Some(7));
            let want = run(&|x| {
                let (w, targets) = (&wide, &targets);
                cross_entropy(CrossEntropyArgs { x, w, targets, ignore_index, reduction, z_loss: 0.0, chunk: 4 })
            });
            assert!((got.0 - want.0).abs() < 1e-5, "{packing:?}: {} {}", got.0, want.0);
            let size = want.1.iter().fold(0f32, |most, x| most.max(x.abs()));
            assert!(got.1.iter().zip(&want.1).all(|(a, b)| (a - b).abs() < 1e-5 * size.max(1e-3)), "{packing:?}");
        }
    }

    #[test]
    fn traced_scales_and_hidden_states_of_another_width_are_refused() {
        let device = Device::cpu();
        let packed = quantize(&wave([5, 64], &device), Packing::Affine { bits: 4, group: 32 }).unwrap();
        let targets = Tensor::from_slice(&[1u32, 2], [2], &device).unwrap();
        let tape = Tape::new();
        let scales = tape.watch(&packed.scales);
        let traced = Quantized { scales: &scales, ..packed.quantized() };
        let x = wave([2, 64], &device);
        let error = quantized_cross_entropy(args(&x, traced, &targets, 2)).unwrap_err().to_string();
        assert!(error.starts_with("quantized_cross_entropy: `scales` or `biases` are traced"), "{error}");
        let narrow = wave([2, 32], &device);
        let error = quantized_cross_entropy(args(&narrow, packed.quantized(), &targets, 2)).unwrap_err().to_string();
        assert!(error.contains("`x` is [2, 32], expected [R.., I] with I = 64"), "{error}");
        let error = quantized_cross_entropy(args(&x, packed.quantized(), &targets, 0)).unwrap_err().to_string();
        assert_eq!(error, "quantized_cross_entropy: chunk is 0, expected the number of tokens at once");
        let far = Tensor::from_slice(&[1u32, 5], [2], &device).unwrap();
        let error = quantized_cross_entropy(args(&x, packed.quantized(), &far, 2)).unwrap_err().to_string();
        assert_eq!(error, "quantized_cross_entropy: the target of token 1 is 5, expected below V = 5");
    }

    #[test]
    fn memory_grows_with_the_chunk_and_never_by_the_widened_matrix() {
        let (width, words) = (256, 4_000);
        let peak = |n: usize, chunk: usize| {
            let device: Device = Cpu::builder().threads(1).open().unwrap().into();
            let packed = quantize(&wave([words, width], &device), Packing::Affine { bits: 4, group: 32 }).unwrap();
            let targets = Tensor::from_slice(&vec![3u32; n], [n], &device).unwrap();
            let tape = Tape::new();
            let x = tape.watch(&wave([n, width], &device));
            device.reset_peak();
            let before = device.memory_in_use();
            quantized_cross_entropy(args(&x, packed.quantized(), &targets, chunk)).unwrap();
            device.peak_memory() - before
        };
        let (few, many) = (peak(64, 16), peak(640, 16));
        // the gradient of the hidden states grows, in size classes of the pool
        assert!(many - few < 2 * 640 * width * 4, "{few} {many}");
        assert!(few < words * width * 4 / 2, "{few}");
        assert!(peak(640, 160) > many + 140 * words * 4);
    }
}
