//! Learning-rate schedules.

use alluvium_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The learning rate of each step.
#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    /// The same rate at each step.
    Constant(f32),
    /// Linear warm-up, then a half cosine down to a tenth of the peak.
    WarmupCosine {
        /// The highest learning rate.
        peak: f32,
        /// Steps of the linear warm-up.
        warmup: u64,
        /// Steps of the run.
        steps: u64,
    },
    /// A schedule of MLX: `mlx.optimizers.schedulers`.
    Mlx(LrSchedule),
}

/// A schedule as mlx-lm's configurations have it: `lr_schedule`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LrSchedule {
    /// The name.
    pub name: LrScheduleName,
    /// The arguments of the function of this name; the first one is the initial rate.
    pub arguments: Vec<f64>,
    /// Steps of a linear warm-up before it.
    #[serde(default)]
    pub warmup: u64,
    /// The rate at which the warm-up begins.
    #[serde(default)]
    pub warmup_init: f64,
}

/// The functions of MLX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduleName {
    /// `init · cos` down to `end` over `decay_steps`: `[init, decay_steps, end = 0]`.
    CosineDecay,
    /// `init · decay_rate^step`: `[init, decay_rate]`.
    ExponentialDecay,
    /// `init · decay_rate^(step / step_size)`, with the division rounded down: `[init, decay_rate, step_size]`.
    StepDecay,
    /// A line from `init` to `end`: `[init, end, steps]`.
    LinearSchedule,
}

/// The learning rate at the end of [`Schedule::WarmupCosine`], as a share of the peak.
const FLOOR: f64 = 0.1;

impl Schedule {
    /// The learning rate of a step, counted from 1.
    pub fn rate(&self, step: u64) -> f32 {
        match self {
            Schedule::Constant(rate) => *rate,
            Schedule::WarmupCosine { peak, warmup, .. } if step <= *warmup => *peak * step as f32 / *warmup as f32,
            Schedule::WarmupCosine { peak, warmup, steps } => {
                let rest = steps.saturating_sub(*warmup).max(1);
                let share = ((step - warmup) as f64 / rest as f64).min(1.0);
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
                (f64::from(*peak) * (FLOOR + (1.0 - FLOOR) * cosine)) as f32
            }
            // MLX counts from 0
            Schedule::Mlx(schedule) => schedule.rate(step.saturating_sub(1)) as f32,
        }
    }
}

impl LrSchedule {
    /// Checks the number of arguments.
    ///
    /// # Errors
    /// When there are too few or too many, or one is not finite.
    pub fn check(&self) -> Result<()> {
        let (least, most) = match self.name {
            LrScheduleName::CosineDecay => (2, 3),
            LrScheduleName::ExponentialDecay => (2, 2),
            LrScheduleName::StepDecay | LrScheduleName::LinearSchedule => (3, 3),
        };
        let count = self.arguments.len();
        if !(least..=most).contains(&count) || self.arguments.iter().any(|x| !x.is_finite()) {
            let name = serde_json::to_value(self.name).unwrap_or(Value::Null);
            let why =
                format!("{name} has the arguments {:?}, expected {least} to {most} finite numbers", self.arguments);
            return Err(Error::value("lr_schedule", why));
        }
        Ok(())
    }

    /// The rate of a step, counted from 0.
    fn rate(&self, step: u64) -> f64 {
        let initial = self.arguments.first().copied().unwrap_or(0.0);
        if self.warmup > 0 && step <= self.warmup {
            return line(self.warmup_init, initial, self.warmup as f64, step as f64);
        }
        let step = if self.warmup > 0 { step - self.warmup - 1 } else { step } as f64;
        let argument = |index: usize| self.arguments.get(index).copied().unwrap_or(0.0);
        match self.name {
            LrScheduleName::CosineDecay => {
                let (steps, end) = (argument(1), argument(2));
                let share = if steps > 0.0 { step.min(steps) / steps } else { 1.0 };
                end + 0.5 * (1.0 + (std::f64::consts::PI * share).cos()) * (initial - end)
            }
            LrScheduleName::ExponentialDecay => initial * argument(1).powf(step),
            LrScheduleName::StepDecay => initial * argument(1).powf((step / argument(2).max(1.0)).floor()),
            LrScheduleName::LinearSchedule => line(initial, argument(1), argument(2), step),
        }
    }
}

fn line(from: f64, to: f64, steps: f64, step: f64) -> f64 {
    if steps > 0.0 { from + step.min(steps) * (to - from) / steps } else { to }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_linearly_and_falls_to_a_tenth() {
        let schedule = Schedule::WarmupCosine { peak: 1.0, warmup: 10, steps: 110 };
        assert_eq!((schedule.rate(1), schedule.rate(5), schedule.rate(10)), (0.1, 0.5, 1.0));
        assert!((schedule.rate(60) - 0.55).abs() < 1e-6);
        assert!((schedule.rate(110) - 0.1).abs() < 1e-6);
        assert_eq!(schedule.rate(500), schedule.rate(110));
        assert_eq!(Schedule::WarmupCosine { peak: 1.0, warmup: 0, steps: 0 }.rate(1), 0.1);
    }

    /// `build_schedule` of mlx-lm 0.32.2 at steps 0, 1, 3, 4, 5, 10 and 40.
    #[test]
    fn schedules_of_mlx_have_its_rates() {
        let steps = [0u64, 1, 3, 4, 5, 10, 40];
        for (text, want) in [
            (MLX_COSINE, MLX_COSINE_RATES),
            (MLX_EXPONENTIAL, MLX_EXPONENTIAL_RATES),
            (MLX_STEP, MLX_STEP_RATES),
            (MLX_LINEAR, MLX_LINEAR_RATES),
        ] {
            let schedule: LrSchedule = serde_json::from_str(text).unwrap();
            schedule.check().unwrap();
            for (step, want) in steps.into_iter().zip(want) {
                let got = Schedule::Mlx(schedule.clone()).rate(step + 1);
                assert!((got - want).abs() <= 1e-6 * want.abs() + 1e-12, "{text} at {step}: {got}, expected {want}");
            }
        }
        let few: LrSchedule = serde_json::from_str(r#"{"name":"cosine_decay","arguments":[1e-5]}"#).unwrap();
        assert!(few.check().unwrap_err().to_string().contains("expected 2 to 3"));
    }

    const MLX_COSINE: &str = r#"{"name": "cosine_decay", "arguments": [1e-05, 30, 1e-07], "warmup": 3}"#;
    const MLX_COSINE_RATES: [f32; 7] = [0.0, 3.333_333_3e-6, 1e-5, 1e-5, 9.972_883e-6, 9.054_634e-6, 1e-7];
    const MLX_EXPONENTIAL: &str = r#"{"name": "exponential_decay", "arguments": [0.001, 0.9]}"#;
    const MLX_EXPONENTIAL_RATES: [f32; 7] = [
        0.001,
        0.000_900_000_04,
        0.000_728_999_96,
        0.000_656_099_93,
        0.000_590_489_94,
        0.000_348_678_35,
        1.478_086_8e-5,
    ];
    const MLX_STEP: &str = r#"{"name": "step_decay", "arguments": [0.01, 0.5, 4], "warmup": 2, "warmup_init": 0.001}"#;
    const MLX_STEP_RATES: [f32; 7] = [0.001, 0.005_5, 0.01, 0.01, 0.01, 0.005, 1.953_125e-5];
    const MLX_LINEAR: &str = r#"{"name": "linear_schedule", "arguments": [0.0, 0.0001, 20]}"#;
    const MLX_LINEAR_RATES: [f32; 7] = [0.0, 5e-6, 1.5e-5, 2e-5, 2.5e-5, 5e-5, 1e-4];
}
