//! Trains a model that is no language model on tensors of the caller: a small network that learns XOR.
//!
//! `cargo run --release -p alluvium --example own_tensors`

use alluvium::core::rng::Rng;
use alluvium::lm::params;
use alluvium::ops::{Over, linear, mean, mul, silu, sub};
use alluvium::train::{Optimizer, OptimizerConfig, StepOptions, train_step};
use alluvium::{Device, Result, Tensor};

struct Network {
    hidden: Tensor,
    output: Tensor,
}
params!(Network { hidden, output });

impl Network {
    /// `x [N, 3]` → `[N, 1]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(&silu(&linear(x, &self.hidden)?)?, &self.output)
    }
}

fn main() -> Result<()> {
    let device = Device::cpu();
    let random = |name, shape: [usize; 2]| {
        let mut rng = Rng::new(0, name);
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| rng.normal() as f32).collect();
        Tensor::from_slice(&values, shape, &device)
    };
    let mut network = Network { hidden: random("hidden", [16, 3])?, output: random("output", [1, 16])? };

    // two bits and a constant 1, which stands in for a bias
    let x = [[0., 0., 1.], [0., 1., 1.], [1., 0., 1.], [1., 1., 1.]].concat();
    let x = Tensor::from_slice::<f32>(&x, [4, 3], &device)?;
    let y = Tensor::from_slice(&[0.0f32, 1.0, 1.0, 0.0], [4, 1], &device)?;

    let objective = |network: &Network, (x, y): &(Tensor, Tensor)| {
        let error = sub(&network.forward(x)?, y)?;
        mean(&mul(&error, &error)?, Over::All)
    };
    let mut optimizer = Optimizer::new(OptimizerConfig { weight_decay: 0.0, ..OptimizerConfig::default() });
    let batch = [(x.clone(), y)];
    for step in 1..=400 {
        let options = StepOptions { step, learning_rate: 0.02, grad_clip: 1.0 };
        let stats = train_step(&mut network, &objective, &mut optimizer, &batch, &options)?;
        if step % 100 == 0 {
            println!("step {step}: loss {:.2e}", stats.read()?.0);
        }
    }
    println!("{:.2?}", network.forward(&x)?.to_vec::<f32>()?);
    Ok(())
}
