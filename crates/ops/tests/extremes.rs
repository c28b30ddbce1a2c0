//! Results and gradients where a difference of nearly equal numbers would lose them: each element is compared relative
//! to itself, on the CPU and on a GPU.
#![allow(clippy::unwrap_used)]

use alluvium_core::gpu::Gpu;
use alluvium_core::{Device, Tape, Tensor};
use alluvium_ops::{CrossEntropyArgs, Reduction, cross_entropy, gdn_gate, global_norm, sigmoid};

fn devices() -> Vec<Device> {
    let mut devices = vec![Device::cpu()];
    devices.extend(Gpu::builder().poison().open_for_test().unwrap().map(Device::from));
    devices
}

/// Fails unless each element is within `bound` of itself.
fn hold(got: &[f32], want: &[f64], bound: f64, name: &str) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs() / want.abs().max(1e-37);
        assert!(error <= bound, "{name}, element {i}: {got:e} for {want:e}, {error:.1e} of itself away");
    }
}

/// `p − 1` of a likely target and the loss of such a target are as accurate as those of an unlikely one.
#[test]
fn cross_entropy_of_a_likely_target_keeps_its_digits() {
    for device in devices() {
        for (top, target) in [5.0f32, 12.0, 20.0, 40.0, 80.0].iter().flat_map(|&z| [(z, 0), (z, 1)]) {
            for z_loss in [0.0f32, 1e-3] {
                let z = [top, 0.0, -1.0, -3.0, 2.0];
                let tape = Tape::new();
                let w = tape.watch(&Tensor::from_slice(&z, [5, 1], &device).unwrap());
                let loss = cross_entropy(CrossEntropyArgs {
                    x: &Tensor::full([1, 1], 1.0f32, &device).unwrap(),
                    w: &w,
                    targets: &Tensor::from_slice(&[target as u32], [1], &device).unwrap(),
                    ignore_index: None,
                    reduction: Reduction::Mean,
                    z_loss,
                    chunk: 8,
                })
                .unwrap();
                let dw = loss.backward().unwrap().get(&w).unwrap().to_vec::<f32>().unwrap();

                let below = |i: usize| f64::from(z[i] - top);
                let others: f64 = (0..5).filter(|&i| i != target).map(|i| below(i).exp()).sum();
                let (own, z_loss) = (below(target).exp(), f64::from(z_loss));
                let rest: f64 = (1..5).map(|i| below(i).exp()).sum();
                let lse = f64::from(top) + rest.ln_1p();
                let want = rest.ln_1p() - below(target) + z_loss * lse * lse;
                let gradient = |i: usize| match i {
                    _ if i == target => (2.0 * z_loss * lse * own - others) / (own + others),
                    _ => (1.0 + 2.0 * z_loss * lse) * below(i).exp() / (own + others),
                };
                let name = format!("{device}, logit {top}, target {target}, z-loss {z_loss}");
                hold(&loss.to_vec::<f32>().unwrap(), &[want], 2e-6, &name);
                hold(&dw, &(0..5).map(gradient).collect::<Vec<_>>(), 2e-6, &name);
            }
        }
    }
}

/// `β (1 − β)` where β rounds to 1.
#[test]
fn the_derivative_of_a_saturated_gate_keeps_its_digits() {
    let x: Vec<f32> = (-80..=80).map(|x| x as f32).collect();
    let want: Vec<f64> = x.iter().map(|&x| f64::from(x).exp() / (1.0 + f64::from(x).exp()).powi(2)).collect();
    let n = x.len();
    for device in devices() {
        let tape = Tape::new();
        let b = tape.watch(&Tensor::from_slice(&x, [n, 1], &device).unwrap());
        let zeros = |shape: &[usize]| Tensor::full(alluvium_core::Shape::new(shape).unwrap(), 0.0f32, &device).unwrap();
        let beta = gdn_gate(&zeros(&[n, 1]), &b, &zeros(&[1]), &zeros(&[1])).unwrap().beta;
        let ones = Tensor::full([n, 1], 1.0f32, &device).unwrap();
        let db = tape.backward(&[(&beta, &ones)]).unwrap().get(&b).unwrap().to_vec::<f32>().unwrap();
        hold(&db, &want, 2e-6, &format!("gdn_gate, {device}"));

        let tape = Tape::new();
        let b = tape.watch(&Tensor::from_slice(&x, [n, 1], &device).unwrap());
        let db = tape.backward(&[(&sigmoid(&b).unwrap(), &ones)]).unwrap().get(&b).unwrap().to_vec::<f32>().unwrap();
        hold(&db, &want, 2e-6, &format!("sigmoid, {device}"));
    }
}

/// Squares that f32 cannot hold.
#[test]
fn the_norm_of_huge_and_of_tiny_elements_is_finite_and_right() {
    for device in devices() {
        for size in [1e-30f32, 1e-20, 1.0, 1e20, 1e36] {
            let x = Tensor::full([3, 3], size, &device).unwrap();
            hold(&global_norm(&[&x]).unwrap().to_vec::<f32>().unwrap(), &[3.0 * f64::from(size)], 1e-6, "global_norm");
        }
    }
}
