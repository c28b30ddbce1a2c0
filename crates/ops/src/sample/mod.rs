//! Sampling of the next token from logits.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `sample`.
static CONTRACT: Contract = Contract { op: "sample", args: &[Arg::new("logits", "B V", FLOATS)], rules: &[] };

/// Why there is no gradient.
const WHY: &str = "a choice does not move with its logits";

/// The settings of [`sample`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The divisor of the logits; 0 takes the most likely token. Subnormal values count as the smallest normal f32.
    pub temperature: f32,
    /// Sample from the `top_k` most likely tokens; 0 disables it.
    pub top_k: usize,
    /// Keep the fewest most likely tokens whose probabilities sum to `top_p`; 1 disables it.
    pub top_p: f32,
    /// Keep tokens with at least this fraction of the probability of the most likely token; 0 disables it.
    pub min_p: f32,
}

/// Greedy sampling.
impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

impl Sampling {
    /// The same, with a temperature above 0 raised to the smallest normal f32: the reciprocal of a subnormal one is
    /// infinite, and some GPUs take it for 0. Softmax over logits that differ is the maximum either way.
    fn normal(self) -> Self {
        let temperature = if self.temperature > 0.0 { self.temperature.max(f32::MIN_POSITIVE) } else { 0.0 };
        Sampling { temperature, ..self }
    }

    /// Refuses settings outside of their range.
    fn check(&self) -> Result<()> {
        let Sampling { temperature, top_p, min_p, .. } = *self;
        let numbers = [
            ("temperature", temperature, temperature >= 0.0 && temperature.is_finite(), "a finite number, 0 or more"),
            ("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "a number above 0, at most 1"),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), "a number from 0 to 1"),
        ];
        match numbers.into_iter().find(|&(_, _, good, _)| !good) {
            Some((name, x, _, want)) => Err(Error::value(CONTRACT.op, format!("{name} is {x}, expected {want}"))),
            None => Ok(()),
        }
    }
}

/// Samples a token for each row of logits with one uniform draw in `[0, 1)` per row.
///
/// At temperature 0 the result is the largest logit, the lowest id among equal ones. Otherwise the filters select
/// tokens by their probabilities at temperature 1, in descending order of logits, then ids: `top_p` keeps the fewest
/// tokens whose probabilities sum to it, `min_p` those with that fraction of the largest probability, `top_k` that
/// many. Of the tokens that pass all filters, weighted by `softmax(logits / temperature)`, the result is the first in
/// the order of ids at which the cumulative sum passes the draw.
///
/// | tensor   | shape | dtype          | gradient |
/// |----------|-------|----------------|----------|
/// | `logits` | `B V` | f32, f16, bf16 | no       |
/// | result   | `B`   | u32            |          |
///
/// A GPU is not waited for: a row of logits with NaN, +∞ or only −∞ gives `u32::MAX` there and no error.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold; `Value` when a number of
/// `sampling` or a draw is out of range, or a row of logits has NaN, +∞ or nothing but −∞; `NoGradient` when the logits
/// are traced: detach them.
///
/// # Source
/// Holtzman et al. 2020, arXiv:1904.09751 (top-p); Nguyen et al. 2024, arXiv:2407.01082 (min-p). The filters are those
/// of `make_sampler` in mlx-lm.
pub fn sample(logits: &Tensor, sampling: &Sampling, draws: &[f32]) -> Result<Tensor> {
    let dims = CONTRACT.check(&[logits])?;
    sampling.check()?;
    tape::no_gradient(CONTRACT.op, WHY, [logits])?;
    if draws.len() != dims['B'] {
        let why = format!("{} draws came, expected one for each of {} rows", draws.len(), dims['B']);
        return Err(Error::value(CONTRACT.op, why));
    }
    if let Some(draw) = draws.iter().find(|draw| !(0.0..1.0).contains(*draw)) {
        return Err(Error::value(CONTRACT.op, format!("a draw is {draw}, expected a number from 0 to below 1")));
    }
    let sampling = sampling.normal();
    match logits.device() {
        Device::Cpu(cpu) => cpu::sample(cpu, logits, &sampling, draws, &dims),
        Device::Gpu(gpu) => gpu::sample(gpu, logits, &sampling, draws, &dims),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(logits: &[f32]) -> Tensor {
        Tensor::from_slice(logits, [1, logits.len()], &Device::cpu()).unwrap()
    }

    fn ids(logits: &[f32], sampling: Sampling) -> Vec<u32> {
        let draws = (0..100).map(|i| i as f32 / 100.0);
        let mut ids: Vec<u32> =
            draws.map(|draw| sample(&row(logits), &sampling, &[draw]).unwrap().to_vec::<u32>().unwrap()[0]).collect();
        ids.dedup();
        ids
    }

    #[test]
    fn the_smallest_temperatures_take_the_largest_logit_on_every_device() {
        let mut devices = vec![Device::cpu()];
        devices.extend(alluvium_core::gpu::Gpu::builder().open_for_test().unwrap().map(Device::from));
        for device in &devices {
            let logits = Tensor::from_slice(&[0.5f32, 1.0, -3.0, 0.25], [1, 4], device).unwrap();
            for temperature in [1e-37, 1e-38, 2e-39, 1e-39, 1e-45] {
                let plain = Sampling { temperature, ..Sampling::default() };
                for sampling in [plain, Sampling { top_k: 3, ..plain }, Sampling { top_p: 0.9, min_p: 0.01, ..plain }] {
                    for draw in [0.0, 0.5, 0.999] {
                        let id = sample(&logits, &sampling, &[draw]).unwrap().to_vec::<u32>().unwrap();
                        assert_eq!(id, [1], "{device:?} {sampling:?} {draw}");
                    }
                }
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(ids(&[0.0, 3.0, -1.0, 3.0], Sampling::default()), [1]);
    }

    #[test]
    fn each_filter_keeps_its_tokens_and_equal_ones_by_id() {
        // probabilities 0.1, 0.4, 0.1, 0.4
        let logits = [1.0f32, 4.0, 1.0, 4.0].map(f32::ln);
        let all = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(ids(&logits, all), [0, 1, 2, 3]);
        assert_eq!(ids(&logits, Sampling { top_k: 1, ..all }), [1]);
        assert_eq!(ids(&logits, Sampling { top_k: 3, ..all }), [0, 1, 3]);
        assert_eq!(ids(&logits, Sampling { top_p: 0.39, ..all }), [1]);
        assert_eq!(ids(&logits, Sampling { top_p: 0.41, ..all }), [1, 3]);
        assert_eq!(ids(&logits, Sampling { top_p: 0.85, ..all }), [0, 1, 3]);
        assert_eq!(ids(&logits, Sampling { min_p: 0.26, ..all }), [1, 3]);
        assert_eq!(ids(&logits, Sampling { min_p: 0.24, ..all }), [0, 1, 2, 3]);
        assert_eq!(ids(&logits, Sampling { top_p: 0.85, top_k: 3, min_p: 0.5, ..all }), [1, 3]);
    }

    #[test]
    fn tokens_are_drawn_with_their_probabilities() {
        let logits: Vec<f32> = [1.0f32, 2.0, 3.0, 4.0].map(f32::ln).into_iter().cycle().take(10_000).collect();
        let tensor = row(&logits);
        for temperature in [1.0, 0.5] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let mut counts = [0.0f64; 4];
            for i in 0..2_000 {
                let draw = (i as f32 * 0.618_034).fract();
                let id = sample(&tensor, &sampling, &[draw]).unwrap().to_vec::<u32>().unwrap()[0];
                counts[id as usize % 4] += 1.0;
            }
            let weight = |i: usize| (i as f64 + 1.0).powf(f64::from(1.0 / temperature));
            let total: f64 = (0..4).map(weight).sum();
            for (i, count) in counts.iter().enumerate() {
                assert!((count / 2_000.0 - weight(i) / total).abs() < 0.04, "{temperature} {counts:?}");
            }
        }
    }

    #[test]
    fn settings_draws_and_logits_out_of_range_are_errors() {
        let good = Sampling { temperature: 1.0, ..Sampling::default() };
        let error = |logits: &[f32], sampling: Sampling, draws: &[f32]| {
            sample(&row(logits), &sampling, draws).unwrap_err().to_string()
        };
        let cold = Sampling { temperature: -1.0, ..good };
        assert_eq!(error(&[0.0], cold, &[0.0]), "sample: temperature is -1, expected a finite number, 0 or more");
        let none = Sampling { top_p: 0.0, ..good };
        assert_eq!(error(&[0.0], none, &[0.0]), "sample: top_p is 0, expected a number above 0, at most 1");
        assert_eq!(error(&[0.0], good, &[]), "sample: 0 draws came, expected one for each of 1 rows");
        assert_eq!(error(&[0.0], good, &[1.0]), "sample: a draw is 1, expected a number from 0 to below 1");
        let mut logits = vec![0.0; 50];
        logits[33] = f32::NAN;
        for sampling in [good, Sampling::default(), Sampling { top_k: 2, ..good }] {
            assert_eq!(error(&logits, sampling, &[0.5]), "sample: row 0 of the logits has NaN or +∞");
        }
        assert_eq!(error(&[f32::NEG_INFINITY; 3], good, &[0.5]), "sample: row 0 of the logits has nothing but −∞");
    }

    #[test]
    fn a_word_of_probability_zero_is_never_chosen() {
        let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        let all = Sampling { temperature: 1.0, ..Sampling::default() };
        for sampling in [all, Sampling { top_k: 4, ..all }, Sampling { top_p: 0.999, ..all }] {
            for draw in [0.0, 0.499, 0.501, 1.0 - f32::EPSILON] {
                let id = sample(&row(&logits), &sampling, &[draw]).unwrap().to_vec::<u32>().unwrap()[0];
                assert_eq!(id, if draw < 0.5 { 1 } else { 3 });
            }
        }
    }
}
