//! The learning-rate schedule.

/// Linear warm-up, then a half cosine down to a tenth of the peak.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f32,
    /// Steps of the linear warm-up.
    pub warmup: u64,
    /// Steps of the run.
    pub steps: u64,
}

/// The learning rate at the end, as a share of the peak.
const FLOOR: f64 = 0.1;

impl Schedule {
    /// The learning rate of a step, counted from 1.
    pub fn rate(&self, step: u64) -> f32 {
        if step <= self.warmup {
            return self.peak * step as f32 / self.warmup as f32;
        }
        let rest = self.steps.saturating_sub(self.warmup).max(1);
        let share = ((step - self.warmup) as f64 / rest as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
        (f64::from(self.peak) * (FLOOR + (1.0 - FLOOR) * cosine)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_linearly_and_falls_to_a_tenth() {
        let schedule = Schedule { peak: 1.0, warmup: 10, steps: 110 };
        assert_eq!((schedule.rate(1), schedule.rate(5), schedule.rate(10)), (0.1, 0.5, 1.0));
        assert!((schedule.rate(60) - 0.55).abs() < 1e-6);
        assert!((schedule.rate(110) - 0.1).abs() < 1e-6);
        assert_eq!(schedule.rate(500), schedule.rate(110));
        assert_eq!(Schedule { peak: 1.0, warmup: 0, steps: 0 }.rate(1), 0.1);
    }
}
