//! Comparison of the gradient of a reference with central differences of the reference, in f64.

use super::Inputs;
use crate::op::{Array, Case, Given, Gradient, Op};
use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Result};

/// The step that balances the rounding of f64 with the curvature that the difference leaves out.
const STEP: f64 = 1e-5;
/// Relative to the size of the gradient: the step's own error is about 1e-9 of the third derivative.
const ALLOWED: f64 = 1e-6;
/// The number of single elements that are compared besides random directions.
const ELEMENTS: usize = 12;

/// Compares the gradient of the reference with differences along random directions and in single elements.
///
/// Returns one line per fault.
///
/// # Errors
/// When the inputs cannot be made.
pub fn gradient_of_reference(op: &Op, case: &Case) -> Result<Vec<String>> {
    let Gradient::Of(gradient) = op.gradient else { return Ok(Vec::new()) };
    let inputs = Inputs::new(op, case, DType::F32, &Device::cpu())?;
    let given = &inputs.arrays;
    let mut rng = Rng::new(3, &format!("{} {} differences", op.name(), case.name));
    let seeds: Vec<Array> = (op.reference)(given).iter().map(|y| y.map(|_| 0.0)).collect();
    let seeds: Vec<Array> = seeds.iter().map(|y| Array::new(y.shape.clone(), normal(y.data.len(), &mut rng))).collect();
    let loss = |given: &Given<Array>| -> f64 {
        let results = (op.reference)(given);
        results.iter().zip(&seeds).flat_map(|(y, dy)| y.data.iter().zip(&dy.data)).map(|(y, dy)| y * dy).sum()
    };

    let mut faults = Vec::new();
    for (index, dx) in gradient(given, &seeds).iter().enumerate() {
        let Some(dx) = dx else { continue };
        let (name, n) = (given.args[index].0, dx.data.len());
        let norm = dx.data.iter().map(|x| x * x).sum::<f64>().sqrt();
        let mut directions: Vec<Vec<f64>> = (0..2).map(|_| normal(n, &mut rng)).collect();
        for _ in 0..ELEMENTS.min(n) {
            let mut one = vec![0.0; n];
            one[rng.below(n)] = 1.0;
            directions.push(one);
        }
        for direction in directions {
            let derivative: f64 = dx.data.iter().zip(&direction).map(|(a, b)| a * b).sum();
            let moved = |step: f64| loss(&shifted(given, index, &direction, step));
            let measured = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let gap = (derivative - measured).abs();
            // the difference of two losses has the rounding errors of both
            let noise = 1e-15 * loss(given).abs().max(1.0) / STEP * (n as f64).sqrt();
            if gap.is_nan() || gap > ALLOWED * norm.max(derivative.abs()) + noise {
                faults.push(format!("d {name}: the reference says {derivative}, differences say {measured}"));
            }
        }
    }
    Ok(faults)
}

fn normal(n: usize, rng: &mut Rng) -> Vec<f64> {
    (0..n).map(|_| rng.normal()).collect()
}

fn shifted(given: &Given<Array>, index: usize, direction: &[f64], step: f64) -> Given<Array> {
    let mut given = given.clone();
    if let Some(x) = &mut given.args[index].1 {
        x.data.iter_mut().zip(direction).for_each(|(x, d)| *x += step * d);
    }
    given
}
