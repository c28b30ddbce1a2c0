//! Products with packed weights and activations in 8 bits ([`ActivationBits::Eight`]), on every instruction set.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::cpu::{ActivationBits, Cpu, Isa};
use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Tensor};
use alluvium_ops::*;

const OUTER: usize = 37;
const INNER: usize = 320;
/// The packings, and the neighbors that share a unit.
const PACKINGS: &[(Packing, usize)] = &[
    (Packing::Affine { bits: 1, group: 32 }, 4),
    (Packing::Affine { bits: 2, group: 32 }, 16),
    (Packing::Affine { bits: 3, group: 32 }, 4),
    (Packing::Affine { bits: 4, group: 32 }, 8),
    (Packing::Affine { bits: 4, group: 64 }, 8),
    (Packing::Affine { bits: 5, group: 64 }, 4),
    (Packing::Affine { bits: 6, group: 64 }, 4),
    (Packing::Mxfp4, 8),
    (Packing::Nvfp4, 8),
];

fn device(isa: Isa, threads: usize, bits: ActivationBits) -> Device {
    Cpu::builder().isa(isa).threads(threads).activation_bits(bits).poison().open().unwrap().into()
}

/// Values with a few large ones among them, as activations have.
fn activations(rows: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, "activations");
    let large = |i: usize| if i % 41 == 7 { 12.0 } else { 1.0 };
    (0..rows * INNER).map(|i| rng.normal() as f32 * large(i)).collect()
}

fn tensor(x: &[f32], width: usize, device: &Device) -> Tensor {
    Tensor::from_slice(x, [x.len() / width, width], device).unwrap()
}

fn weights(packing: Packing, device: &Device) -> Packed {
    let mut rng = Rng::new(3, "weights");
    let w: Vec<f32> = (0..OUTER * INNER).map(|_| rng.normal() as f32 * 0.1).collect();
    quantize(&tensor(&w, INNER, device), packing).unwrap()
}

fn product(packing: Packing, x: &[f32], device: &Device) -> Vec<f32> {
    let packed = weights(packing, device);
    quantized_matmul(&tensor(x, INNER, device), &packed.quantized()).unwrap().to_vec::<f32>().unwrap()
}

/// The rounding of an activation is within half a unit, and independent of the weight: as that of a uniform error, its
/// variance is unit² / 12. No sum of these is beyond six of its standard deviations, to which the sums of f32 add 1e-5 of
/// the size of the products. Sums of groups that are not rounded as products are go beyond them.
#[test]
fn errors_are_those_of_rounding_activations_to_their_units() {
    let x = activations(5, 1);
    for &(packing, neighbors) in PACKINGS {
        for isa in Isa::available() {
            let device = device(isa, 2, ActivationBits::Eight);
            let y = product(packing, &x, &device);
            let packed = weights(packing, &device);
            let w = dequantize(&packed.quantized(), DType::F32).unwrap().to_vec::<f32>().unwrap();
            for (x, y) in x.chunks(INNER).zip(y.chunks(OUTER)) {
                for (o, (w, &y)) in w.chunks(INNER).zip(y).enumerate() {
                    let (mut want, mut variance, mut size) = (0.0, 0.0, 0.0);
                    for (x, w) in x.chunks(neighbors).zip(w.chunks(neighbors)) {
                        let unit = x.iter().fold(0.0, |m, &x| f64::from(x.abs()).max(m)) / 127.0;
                        for (&x, &w) in x.iter().zip(w) {
                            let (x, w) = (f64::from(x), f64::from(w));
                            want += x * w;
                            size += (x * w).powi(2);
                            variance += (unit * w).powi(2) / 12.0;
                        }
                    }
                    let bound = 6.0 * f64::sqrt(variance) + 1e-5 * f64::sqrt(size);
                    let error = (f64::from(y) - want).abs();
                    assert!(error < bound, "{packing:?}, {isa}, output {o}: {error:.2e} of at most {bound:.2e}");
                }
            }
        }
    }
}

/// As above, over all outputs: units that are 1.6 times as large show here first.
#[test]
fn errors_are_not_larger_on_average_than_the_units_explain() {
    let x = activations(8, 5);
    for &(packing, neighbors) in PACKINGS {
        for isa in Isa::available() {
            let y = product(packing, &x, &device(isa, 1, ActivationBits::Eight));
            let exact = product(packing, &x, &device(isa, 1, ActivationBits::All));
            let w = dequantize(&weights(packing, &device(isa, 1, ActivationBits::All)).quantized(), DType::F32);
            let w = w.unwrap().to_vec::<f32>().unwrap();
            let errors: f64 = y.iter().zip(&exact).map(|(y, e)| f64::from(y - e).powi(2)).sum();
            let mut expected = 0.0;
            for x in x.chunks(INNER) {
                for w in w.chunks(INNER) {
                    for (x, w) in x.chunks(neighbors).zip(w.chunks(neighbors)) {
                        let unit = x.iter().fold(0.0, |m, &x| f64::from(x.abs()).max(m)) / 127.0;
                        expected += w.iter().map(|&w| (unit * f64::from(w)).powi(2) / 12.0).sum::<f64>();
                    }
                }
            }
            // less, because the largest of each unit is exact
            assert!(errors < 1.2 * expected, "{packing:?}, {isa}: {errors:.2e} for {expected:.2e}");
            assert!(errors > 0.0, "{packing:?}, {isa}: nothing was rounded");
        }
    }
}

#[test]
fn a_row_is_bit_identical_alone_and_beside_others_with_any_number_of_threads() {
    let x = activations(32, 2);
    for &(packing, _) in PACKINGS {
        for isa in Isa::available() {
            let together = product(packing, &x, &device(isa, 1, ActivationBits::Eight));
            for threads in [2, 5] {
                assert!(product(packing, &x, &device(isa, threads, ActivationBits::Eight)) == together, "{packing:?}");
            }
            let one = device(isa, 2, ActivationBits::Eight);
            for (x, y) in x.chunks(INNER).zip(together.chunks(OUTER)).step_by(7) {
                assert!(product(packing, x, &one) == y, "{packing:?}, {isa}: a row alone has other bits");
            }
        }
    }
}

#[test]
fn a_nan_or_infinity_shows_in_its_row_alone() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = activations(3, 4);
        x[INNER + 77] = bad;
        for &(packing, _) in PACKINGS {
            for isa in Isa::available() {
                let y = product(packing, &x, &device(isa, 1, ActivationBits::Eight));
                assert!(y[OUTER..2 * OUTER].iter().all(|y| !y.is_finite()), "{packing:?}, {isa}, {bad}");
                assert!(y[..OUTER].iter().chain(&y[2 * OUTER..]).all(|y| y.is_finite()), "{packing:?}, {isa}, {bad}");
            }
        }
    }
}

#[test]
fn rows_of_zeros_and_of_tiny_and_huge_values_stay_finite() {
    for &(packing, _) in PACKINGS {
        for isa in Isa::available() {
            let device = device(isa, 1, ActivationBits::Eight);
            assert!(product(packing, &[0.0; INNER], &device).iter().all(|&y| y == 0.0), "{packing:?}, {isa}");
            for scale in [1e-38, 1e-30, 1e30] {
                let x: Vec<f32> = activations(1, 6).iter().map(|x| x * scale).collect();
                assert!(product(packing, &x, &device).iter().all(|y| y.is_finite()), "{packing:?}, {isa}, {scale}");
            }
        }
    }
}
