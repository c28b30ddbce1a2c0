//! Top-k routing of tokens to experts.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `route`.
static CONTRACT: Contract = Contract { op: "route", args: &[Arg::new("logits", "N E", FLOATS)], rules: &[] };

/// The options of [`route`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// The experts of a token.
    pub top_k: usize,
    /// Whether the weights of a token's experts are divided by their sum; otherwise they are those of the softmax over
    /// all experts.
    pub norm_topk_prob: bool,
}

/// The results of [`route`].
#[derive(Clone, Debug)]
pub struct RouteOutput {
    /// The weights of the chosen experts, `N K`, f32.
    pub weights: Tensor,
    /// The chosen experts, `N K`, u32: the likeliest first.
    pub experts: Tensor,
}

/// The `top_k` likeliest experts of each token: a softmax over all experts in f32, then the largest.
///
/// Experts come in the order of their logits, the largest first; of equal ones the lower number first. A NaN comes
/// after −∞, on every device; the weights of a token are NaN where a chosen logit is, and without `norm_topk_prob`
/// where any is.
///
/// | tensor    | shape | dtype          | gradient |
/// |-----------|-------|----------------|----------|
/// | `logits`  | `N E` | f32, f16, bf16 | yes      |
/// | `weights` | `N K` | f32            |          |
/// | `experts` | `N K` | u32            |          |
///
/// The choice itself has no gradient: only the weights have. The backward pass keeps the logits and both results.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold; `Value` when `top_k` is 0 or
/// more than there are experts.
///
/// # Source
/// Shazeer et al. 2017, arXiv:1701.06538; the router of `Qwen3NextSparseMoeBlock` in mlx-lm, which has
/// `norm_topk_prob`, too.
pub fn route(logits: &Tensor, routing: Routing) -> Result<RouteOutput> {
    let Routing { top_k, norm_topk_prob } = routing;
    let dims = CONTRACT.check(&[logits])?;
    if top_k == 0 || top_k > dims['E'] {
        let why = format!("top_k is {top_k}, expected 1 to {}, as many as there are experts", dims['E']);
        return Err(Error::value(CONTRACT.op, why));
    }
    let RouteOutput { weights, experts } = match logits.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, logits, routing)?,
        Device::Gpu(gpu) => gpu::forward(gpu, logits, routing)?,
    };
    let route = RouteOutput { weights: weights.clone(), experts: experts.clone() };
    let weights = tape::record([logits], weights, || Grad { logits: logits.detach(), route, norm_topk_prob })?;
    Ok(RouteOutput { weights, experts })
}

/// With `p` the softmax over all experts and `w` the weights: normalized, `w` is a softmax over the chosen, so
/// `dlogit_j = w_j (dw_j − Σ w dw)` for them; else `dlogit_j = p_j (dw_j − Σ p dw)`, with `dw_j = 0` for the others.
struct Grad {
    logits: Tensor,
    route: RouteOutput,
    norm_topk_prob: bool,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        match dy.device() {
            Device::Cpu(cpu) => Ok([Some(cpu::backward(cpu, &self, &dy)?)]),
            Device::Gpu(gpu) => Ok([Some(gpu::backward(gpu, &self, &dy)?)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(logits: &[f32], top_k: usize, norm_topk_prob: bool) -> (Vec<u32>, Vec<f32>) {
        let logits = Tensor::from_slice(logits, [1, logits.len()], &Device::cpu()).unwrap();
        let route = route(&logits, Routing { top_k, norm_topk_prob }).unwrap();
        (route.experts.to_vec().unwrap(), route.weights.to_vec().unwrap())
    }

    #[test]
    fn of_equal_experts_the_lower_number_comes_first() {
        let (experts, weights) = chosen(&[1.0, 3.0, 3.0, 1.0, 3.0, 1.0], 4, true);
        assert_eq!(experts, [1, 2, 4, 0]);
        assert_eq!(weights[0], weights[2]);
    }

    #[test]
    fn a_nan_is_chosen_last_on_every_device() {
        let mut devices = vec![Device::cpu()];
        devices.extend(alluvium_core::gpu::Gpu::builder().open_for_test().unwrap().map(Device::from));
        for device in &devices {
            for (logits, want) in [
                ([f32::NAN, 1.0, 2.0, f32::NAN], [2, 1, 0, 3]),
                ([-0.0, f32::NEG_INFINITY, -f32::NAN, 0.0], [0, 3, 1, 2]),
                ([f32::NAN; 4], [0, 1, 2, 3]),
            ] {
                let x = Tensor::from_slice(&logits, [1, 4], device).unwrap();
                for top_k in 1..=4 {
                    let route = route(&x, Routing { top_k, norm_topk_prob: true }).unwrap();
                    assert_eq!(route.experts.to_vec::<u32>().unwrap(), want[..top_k], "{device:?} {logits:?}");
                }
            }
            let x = Tensor::from_slice(&[f32::NAN, 1.0, 2.0, f32::NAN], [1, 4], device).unwrap();
            let weights =
                route(&x, Routing { top_k: 2, norm_topk_prob: true }).unwrap().weights.to_vec::<f32>().unwrap();
            assert!((weights[0] - 0.731_058_6).abs() < 1e-6 && (weights[1] - 0.268_941_4).abs() < 1e-6);
        }
    }

    #[test]
    fn large_logits_neither_overflow_nor_lose_their_sum() {
        let (experts, weights) = chosen(&[-3e38, 3e38, 3e38, 0.0], 2, false);
        assert_eq!((experts, weights), (vec![1, 2], vec![0.5, 0.5]));
        let (_, weights) = chosen(&[0.0; 8], 2, false);
        assert_eq!(weights, [0.125, 0.125]);
    }

    #[test]
    fn more_choices_than_experts_are_refused() {
        let logits = Tensor::full([2, 4], 1.0, &Device::cpu()).unwrap();
        for top_k in [0, 5] {
            let error = route(&logits, Routing { top_k, norm_topk_prob: true }).unwrap_err().to_string();
            assert_eq!(error, format!("route: top_k is {top_k}, expected 1 to 4, as many as there are experts"));
        }
    }
}
