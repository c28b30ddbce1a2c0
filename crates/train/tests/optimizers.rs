//! Adafactor against MLX's steps and against its definition.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Device, Shape, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::params;
use alluvium_train::{Adafactor, Decayed, Optimizer, OptimizerConfig, OptimizerKind};
use std::collections::BTreeMap;
use std::path::Path;

struct One {
    weight: Tensor,
}
params!(One { weight });

fn values(x: &Tensor) -> Vec<f32> {
    x.to_vec().unwrap()
}

fn optimizer(adafactor: Adafactor, weight_decay: f32) -> Optimizer {
    let kind = OptimizerKind::Adafactor;
    let default = OptimizerConfig::default();
    Optimizer::new(OptimizerConfig { kind, weight_decay, decayed: Decayed::All, adafactor, ..default })
}

/// The parameter after each gradient.
fn steps(start: Tensor, gradients: &[Tensor], mut optimizer: Optimizer, rate: f32) -> Vec<Vec<f32>> {
    let mut model = One { weight: start };
    let mut step = |(i, gradient): (usize, &Tensor)| {
        let mut gradients = BTreeMap::from([("weight".to_owned(), gradient.clone())]);
        optimizer.step(&mut model, &mut gradients, rate, i as u64 + 1).unwrap();
        values(&model.weight)
    };
    gradients.iter().enumerate().map(&mut step).collect()
}

fn near(got: &[f32], want: &[f64], bound: f64, what: &str) {
    assert_eq!(got.len(), want.len());
    let size = want.iter().fold(1e-3f64, |most, x| most.max(x.abs()));
    for (got, want) in got.iter().zip(want) {
        assert!((f64::from(*got) - want).abs() < bound * size, "{what}: {got}, expected {want}");
    }
}

#[test]
fn steps_are_those_of_mlx() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/ops/optim.safetensors");
    let file = safetensors::read(path).unwrap();
    let read = |name: String| file.tensor(&format!("adafactor/{name}"), &Device::cpu()).unwrap();
    let settings = Adafactor { relative_step: false, scale_parameter: false, ..Adafactor::default() };
    for name in ["w", "b"] {
        let gradients: Vec<Tensor> = (1..=3).map(|i| read(format!("g{name}{i}"))).collect();
        let found = steps(read(format!("{name}0")), &gradients, optimizer(settings, 0.0), 0.01);
        for (i, found) in found.iter().enumerate() {
            let want: Vec<f64> = values(&read(format!("{name}{}", i + 1))).iter().map(|&x| x.into()).collect();
            near(found, &want, 1e-5, &format!("{name}{}", i + 1));
        }
    }
}

/// The definition on one matrix, in f64.
struct Reference {
    settings: Adafactor,
    weight_decay: f64,
    size: [usize; 2],
    rows: Vec<f64>,
    columns: Vec<f64>,
    mean: Vec<f64>,
}

impl Reference {
    fn step(&mut self, p: &mut [f64], g: &[f64], given: f64, step: f64) {
        let [rows, columns] = self.size;
        let Adafactor { eps, clip_threshold, decay_rate, beta1, .. } = self.settings;
        let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64).sqrt();
        let beta2 = 1.0 - step.powf(decay_rate.into());
        let square = |i: usize, j: usize| g[i * columns + j].powi(2) + f64::from(eps[0]);
        for i in 0..rows {
            let mean = (0..columns).map(|j| square(i, j)).sum::<f64>() / columns as f64;
            self.rows[i] = beta2 * self.rows[i] + (1.0 - beta2) * mean;
        }
        for j in 0..columns {
            let mean = (0..rows).map(|i| square(i, j)).sum::<f64>() / rows as f64;
            self.columns[j] = beta2 * self.columns[j] + (1.0 - beta2) * mean;
        }
        let whole = self.rows.iter().sum::<f64>() / rows as f64;
        let mut update: Vec<f64> = (0..g.len())
            .map(|at| g[at] / (self.rows[at / columns] / whole * self.columns[at % columns]).sqrt())
            .collect();
        let clip = (rms(&update) / f64::from(clip_threshold)).max(1.0);
        let least = if self.settings.warmup_init { 1e-6 * step } else { 1e-2 };
        let rate = if self.settings.relative_step { step.powf(-0.5).min(least) } else { given };
        let rate = if self.settings.scale_parameter { rate * rms(p).max(eps[1].into()) } else { rate };
        update.iter_mut().for_each(|u| *u *= rate / clip);
        if let Some(beta1) = beta1.map(f64::from) {
            self.mean.iter_mut().zip(&update).for_each(|(m, u)| *m = beta1 * *m + (1.0 - beta1) * u);
            update.clone_from(&self.mean);
        }
        p.iter_mut().zip(update).for_each(|(p, u)| *p -= self.weight_decay * rate * *p + u);
    }
}

fn wave(shape: Shape, seed: f32, size: f32, device: &Device) -> Tensor {
    let count = shape.elements();
    let values: Vec<f32> = (0..count).map(|i| size * ((i as f32 * 0.37 + seed).sin() + 0.1 * seed)).collect();
    Tensor::from_slice(&values, shape, device).unwrap()
}

const SETTINGS: [Adafactor; 3] = {
    let mlx = Adafactor {
        eps: [1e-30, 1e-3],
        clip_threshold: 1.0,
        decay_rate: -0.8,
        beta1: None,
        scale_parameter: true,
        relative_step: true,
        warmup_init: false,
    };
    [
        mlx,
        Adafactor { beta1: Some(0.9), warmup_init: true, clip_threshold: 0.5, ..mlx },
        Adafactor { relative_step: false, eps: [1e-12, 0.3], decay_rate: -0.5, ..mlx },
    ]
};

#[test]
fn a_stack_of_matrices_follows_the_definition_on_every_device() {
    let mut devices = vec![Device::cpu()];
    devices.extend(Gpu::builder().open_for_test().unwrap().map(Device::from));
    let shape = Shape::from([3, 5, 7]);
    for (device, settings) in devices.iter().flat_map(|device| SETTINGS.map(|settings| (device, settings))) {
        // a parameter of zeros, as `lora_b` begins, has the least size
        for size in [0.0, 0.4] {
            let start = wave(shape, 0.3, size, device);
            let gradients: Vec<Tensor> = (0..4).map(|i| wave(shape, 1.0 + i as f32, 0.02, device)).collect();
            let found = steps(start.clone(), &gradients, optimizer(settings, 0.1), 0.03);
            let mut whole: Vec<f64> = values(&start).iter().map(|&x| x.into()).collect();
            // the size of the parameter and the clipping are those of the stack, so a stack of one has a reference
            let one = |x: &Tensor| x.reshape([15, 7]).unwrap().rows(0, 5).unwrap();
            let alone =
                steps(one(&start), &gradients.iter().map(one).collect::<Vec<_>>(), optimizer(settings, 0.1), 0.03);
            whole.truncate(35);
            let (rows, columns, mean) = (vec![0.0; 5], vec![0.0; 7], vec![0.0; 35]);
            let weight_decay = 0.1;
            let mut reference = Reference { settings, weight_decay, size: [5, 7], rows, columns, mean };
            for (i, gradient) in gradients.iter().enumerate() {
                let gradient: Vec<f64> = values(&one(gradient)).iter().map(|&x| x.into()).collect();
                reference.step(&mut whole, &gradient, 0.03, i as f64 + 1.0);
                near(&alone[i], &whole, 3e-5, &format!("{settings:?}, step {}", i + 1));
            }
            assert!(found[3].iter().all(|x| x.is_finite()) && found[3] != values(&start));
            assert_eq!(found, steps(start, &gradients, optimizer(settings, 0.1), 0.03), "not bit-identical");
        }
    }
}

#[test]
fn state_is_that_of_rows_and_columns_and_is_restored() {
    let settings = Adafactor { beta1: Some(0.9), ..Adafactor::default() };
    for (shape, elements) in [(Shape::from([6, 4]), vec![6, 4, 24]), (Shape::from([9]), vec![9, 9])] {
        let gradients: Vec<Tensor> = (0..4).map(|i| wave(shape, i as f32, 0.1, &Device::cpu())).collect();
        let start = wave(shape, 0.5, 1.0, &Device::cpu());
        let whole = steps(start.clone(), &gradients, optimizer(settings, 0.0), 0.0);
        let mut model = One { weight: start };
        let mut first = optimizer(settings, 0.0);
        let step = |optimizer: &mut Optimizer, model: &mut One, i: usize| {
            let mut gradients = BTreeMap::from([("weight".to_owned(), gradients[i].clone())]);
            optimizer.step(model, &mut gradients, 0.0, i as u64 + 1).unwrap();
        };
        (0..2).for_each(|i| step(&mut first, &mut model, i));
        let state: Vec<(String, Tensor)> = first.state().into_iter().map(|(name, x)| (name, x.clone())).collect();
        assert_eq!(state.iter().map(|(_, x)| x.elements()).collect::<Vec<_>>(), elements);
        assert!(state.iter().all(|(_, x)| x.dtype() == DType::F32));
        let mut second = optimizer(settings, 0.0);
        second.restore(state).unwrap();
        (2..4).for_each(|i| step(&mut second, &mut model, i));
        assert_eq!(values(&model.weight), whole[3]);
    }
}
