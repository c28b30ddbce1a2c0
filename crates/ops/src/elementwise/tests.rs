//! Properties of single rows of the tables.

use super::unary::{gelu, gelu_approx, log, relu, sigmoid, silu, softplus};
use alluvium_core::{Device, Result, Tape, Tensor};

const INF: f32 = f32::INFINITY;

/// The values and derivatives of an operation at these points.
fn at(op: fn(&Tensor) -> Result<Tensor>, points: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (tape, device) = (Tape::new(), Device::cpu());
    let x = tape.watch(&Tensor::from_slice(points, [points.len()], &device).unwrap());
    let y = op(&x).unwrap();
    let grads = tape.backward(&[(&y, &Tensor::full([points.len()], 1.0, &device).unwrap())]).unwrap();
    (y.to_vec().unwrap(), grads.get(&x).unwrap().to_vec().unwrap())
}

#[test]
fn silu_at_the_infinities_has_its_limits() {
    assert_eq!(at(silu, &[-INF, INF]), (vec![0.0, INF], vec![0.0, 1.0]));
}

#[test]
fn silu_of_every_finite_element_is_finite_and_has_a_finite_derivative() {
    let points: Vec<f32> = (0..=u32::MAX >> 12).map(|bits| f32::from_bits(bits << 12)).collect();
    let points: Vec<f32> = points.into_iter().filter(|x| x.is_finite()).chain([f32::MAX, f32::MIN]).collect();
    let (y, derivative) = at(silu, &points);
    assert!(y.iter().chain(&derivative).all(|y| y.is_finite()));
}

#[test]
fn a_gradient_that_is_held_elsewhere_is_not_overwritten() {
    let (tape, device) = (Tape::new(), Device::cpu());
    let x = tape.watch(&Tensor::full([100], 1.0, &device).unwrap());
    let dy = Tensor::full([100], 2.0, &device).unwrap();
    let y = silu(&x).unwrap();
    let grads = tape.backward(&[(&y, &dy)]).unwrap();
    assert_eq!(dy.to_vec::<f32>().unwrap(), [2.0; 100]);
    assert!((grads.get(&x).unwrap().to_vec::<f32>().unwrap()[99] - 2.0 * 0.927_670_5).abs() < 1e-6);
}

#[test]
fn sigmoid_at_the_infinities_has_its_limits() {
    assert_eq!(at(sigmoid, &[-INF, INF, f32::MIN, f32::MAX]), (vec![0.0, 1.0, 0.0, 1.0], vec![0.0; 4]));
}

#[test]
fn softplus_far_from_zero_is_the_ramp() {
    assert_eq!(at(softplus, &[-INF, INF, -1e4, 1e4]), (vec![0.0, INF, 0.0, 1e4], vec![0.0, 1.0, 0.0, 1.0]));
}

#[test]
fn gelu_and_gelu_approx_at_the_infinities_have_their_limits() {
    for op in [gelu, gelu_approx] {
        let (y, derivative) = at(op, &[-INF, INF, 0.0, f32::MIN, f32::MAX]);
        assert_eq!(y, [0.0, INF, 0.0, 0.0, f32::MAX]);
        assert_eq!(derivative, [0.0, 1.0, 0.5, 0.0, 1.0]);
    }
}

#[test]
fn the_derivative_of_relu_is_one_above_zero_and_zero_from_there_on() {
    let tiny = f32::from_bits(1);
    let (y, derivative) = at(relu, &[-INF, -tiny, -0.0, 0.0, tiny, 1e-20, f32::MAX, INF]);
    assert_eq!(y, [0.0, 0.0, 0.0, 0.0, tiny, 1e-20, f32::MAX, INF]);
    assert_eq!(derivative, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn the_limits_of_log_are_those_of_the_logarithm() {
    assert_eq!(at(log, &[0.0, INF, 1.0]), (vec![-INF, INF, 0.0], vec![INF, 0.0, 1.0]));
    assert!(at(log, &[-1.0]).0[0].is_nan());
}
