//! Optimizers and the learning-rate schedule.

mod adafactor;
mod masters;
mod schedule;

pub use adafactor::Adafactor;
pub use masters::Masters;
pub use schedule::{LrSchedule, LrScheduleName, Schedule};

use alluvium_core::{DType, Error, Result, Tensor};
use alluvium_lm::{Parameters, visit_trainable_mut};
use alluvium_ops::{AdamW, adamw, cast, concat, newton_schulz, scale};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay, for every parameter.
    #[default]
    AdamW,
    /// Adam: AdamW without weight decay.
    Adam,
    /// Gradient descent without momentum.
    Sgd,
    /// Orthogonalized momentum for the matrices inside the layers; AdamW for all other parameters.
    Muon,
    /// Adafactor: no state of a matrix but the means of its rows and columns.
    Adafactor,
}

impl OptimizerKind {
    /// The f32 elements that it keeps for each trained one. Adafactor's rows and columns are not counted.
    pub fn moments(self) -> usize {
        match self {
            OptimizerKind::AdamW | OptimizerKind::Adam => 2,
            OptimizerKind::Muon => 1,
            OptimizerKind::Sgd | OptimizerKind::Adafactor => 0,
        }
    }
}

impl std::fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OptimizerKind::AdamW => "adamw",
            OptimizerKind::Adam => "adam",
            OptimizerKind::Sgd => "sgd",
            OptimizerKind::Muon => "muon",
            OptimizerKind::Adafactor => "adafactor",
        })
    }
}

impl std::str::FromStr for OptimizerKind {
    type Err = String;
    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "adamw" => Ok(OptimizerKind::AdamW),
            "adam" => Ok(OptimizerKind::Adam),
            "sgd" => Ok(OptimizerKind::Sgd),
            "muon" => Ok(OptimizerKind::Muon),
            "adafactor" => Ok(OptimizerKind::Adafactor),
            _ => Err(format!("`{name}` is not an optimizer; expected adamw, adam, muon, sgd or adafactor")),
        }
    }
}

/// The constants of an optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// The optimizer.
    pub kind: OptimizerKind,
    /// Decay of AdamW's mean of gradients.
    pub beta1: f32,
    /// Decay of AdamW's mean of squared gradients.
    pub beta2: f32,
    /// Added to AdamW's denominator.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// The parameters that are decayed.
    pub decayed: Decayed,
    /// Whether AdamW's running means are corrected for their start at zero. MLX does not by default.
    pub bias_correction: bool,
    /// The constants of Adafactor, which has none of those above but the weight decay.
    pub adafactor: Adafactor,
}

/// The parameters that weight decay applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decayed {
    /// Matrices; vectors (norms, gates, biases) are not decayed.
    Matrices,
    /// All parameters, as in MLX.
    All,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        OptimizerConfig {
            kind: OptimizerKind::AdamW,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            decayed: Decayed::Matrices,
            bias_correction: true,
            // the schedule's learning rate counts
            adafactor: Adafactor { relative_step: false, ..Adafactor::default() },
        }
    }
}

/// An optimizer and its state, in f32.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// By the parameter's name: the mean of gradients and, for AdamW, of their squares; for Adafactor, means of squares.
    moments: BTreeMap<String, Vec<Tensor>>,
    masters: Masters,
}

/// Muon's momentum, and its number of Newton–Schulz steps.
const MOMENTUM: f32 = 0.95;
const NEWTON_SCHULZ_STEPS: usize = 5;

impl Optimizer {
    /// An optimizer without any state.
    pub fn new(config: OptimizerConfig) -> Self {
        Optimizer { config, moments: BTreeMap::new(), masters: Masters::default() }
    }

    /// Updates these masters in place of the model's parameters, which become their roundings.
    pub fn with_masters(self, masters: Masters) -> Self {
        Optimizer { masters, ..self }
    }

    /// The masters of parameters that the model has in half precision.
    pub fn masters(&self) -> &Masters {
        &self.masters
    }

    /// Updates every parameter that has a gradient, in place where nothing else holds its memory. `step` counts from 1.
    ///
    /// # Errors
    /// When a gradient does not fit its parameter, or memory runs out.
    pub fn step<M: Parameters + ?Sized>(
        &mut self,
        model: &mut M,
        gradients: &mut BTreeMap<String, Tensor>,
        learning_rate: f32,
        step: u64,
    ) -> Result<()> {
        let step = u32::try_from(step).unwrap_or(u32::MAX);
        let mut result = Ok(());
        visit_trainable_mut(model, &mut |name, slot| {
            if let Some(gradient) = gradients.remove(&name)
                && result.is_ok()
            {
                result = self.update(&name, slot, &gradient, (learning_rate, step));
            }
        });
        result
    }

    /// Updates a parameter, or its master and then the copy that the model has.
    fn update(&mut self, name: &str, slot: &mut Tensor, gradient: &Tensor, at: (f32, u32)) -> Result<()> {
        let Some(mut master) = self.masters.remove(name) else { return self.advance(name, slot, gradient, at) };
        let advanced = self.advance(name, &mut master, &cast(gradient, DType::F32)?, at);
        let working = advanced.and_then(|()| cast(&master, slot.dtype()));
        self.masters.insert(name, master);
        *slot = working?;
        Ok(())
    }

    fn advance(&mut self, name: &str, slot: &mut Tensor, gradient: &Tensor, at: (f32, u32)) -> Result<()> {
        let (learning_rate, step) = at;
        match self.config.kind {
            OptimizerKind::Muon if is_inner_matrix(name, slot) => self.muon(name, slot, gradient, learning_rate),
            OptimizerKind::Sgd => descend(slot, gradient, learning_rate),
            OptimizerKind::Adafactor => self.adafactor(name, slot, gradient, at),
            _ => self.adamw(name, slot, gradient, learning_rate, step),
        }
    }

    fn adamw(&mut self, name: &str, slot: &mut Tensor, gradient: &Tensor, learning_rate: f32, step: u32) -> Result<()> {
        // the model gives its parameter up, so that the operation can update it in place
        let parameter = std::mem::replace(slot, gradient.detach());
        let zeros = || Tensor::zeros(parameter.shape(), DType::F32, parameter.device());
        let (m, v) = match self.moments.remove(name).map(<[Tensor; 2]>::try_from) {
            Some(Ok([m, v])) => (m, v),
            Some(Err(_)) => return Err(Error::value("adamw", format!("the moments of {name} are not two tensors"))),
            None => (zeros()?, zeros()?),
        };
        let OptimizerConfig { kind, beta1, beta2, eps, bias_correction, .. } = self.config;
        let weight_decay =
            if self.is_decayed(&parameter) && kind != OptimizerKind::Adam { self.config.weight_decay } else { 0.0 };
        let settings = AdamW { learning_rate, beta1, beta2, eps, weight_decay, step, bias_correction };
        let next = adamw(parameter, gradient, m, v, &settings)?;
        *slot = next.p;
        self.moments.insert(name.to_owned(), vec![next.m, next.v]);
        Ok(())
    }

    fn adafactor(&mut self, name: &str, slot: &mut Tensor, gradient: &Tensor, at: (f32, u32)) -> Result<()> {
        let moments = self.moments.remove(name).unwrap_or_default();
        let weight_decay = if self.is_decayed(slot) { self.config.weight_decay } else { 0.0 };
        let (parameter, moments) =
            self.config.adafactor.step(&slot.detach(), gradient, moments, (at.0, weight_decay, at.1))?;
        *slot = parameter;
        self.moments.insert(name.to_owned(), moments);
        Ok(())
    }

    fn is_decayed(&self, parameter: &Tensor) -> bool {
        parameter.shape().rank() >= 2 || self.config.decayed == Decayed::All
    }

    /// Muon with Nesterov momentum, scaled to the root mean square of AdamW's updates.
    ///
    /// Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the scale:
    /// arXiv:2502.16982.
    fn muon(&mut self, name: &str, slot: &mut Tensor, gradient: &Tensor, learning_rate: f32) -> Result<()> {
        let before = self.moments.remove(name).and_then(|mut m| m.pop());
        let momentum = match before {
            Some(before) => alluvium_ops::add(&scale(&before, MOMENTUM)?, gradient)?,
            None => gradient.detach(),
        };
        let nesterov = alluvium_ops::add(&scale(&momentum, MOMENTUM)?, gradient)?;
        let direction = orthogonalized(&nesterov)?;
        let [rows, columns] = matrix_sides(slot);
        let size = 0.2 * learning_rate * (rows.max(columns) as f32).sqrt();
        let decayed = scale(slot, 1.0 - learning_rate * self.config.weight_decay)?;
        *slot = alluvium_ops::add(&decayed, &scale(&direction, -size)?)?;
        self.moments.insert(name.to_owned(), vec![momentum]);
        Ok(())
    }

    /// The moments, by name: `parameter.0`, `parameter.1`.
    pub fn state(&self) -> Vec<(String, &Tensor)> {
        let named = |(name, moments): (&String, &'_ Vec<Tensor>)| {
            (0..moments.len()).map(|i| format!("{name}.{i}")).collect::<Vec<_>>()
        };
        self.moments.iter().flat_map(|entry| named(entry).into_iter().zip(entry.1)).collect()
    }

    /// Takes the moments that [`Optimizer::state`] returned.
    ///
    /// # Errors
    /// When a name does not end in the moment's number.
    pub fn restore(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let mut moments: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
        for (name, tensor) in state {
            let parsed = name.rsplit_once('.').and_then(|(name, i)| Some((name.to_owned(), i.parse().ok()?)));
            let (parameter, index) = parsed.ok_or_else(|| {
                Error::value("optimizer", format!("`{name}` came, expected a parameter's name and a number"))
            })?;
            moments.entry(parameter).or_default().insert(index, tensor);
        }
        self.moments = moments.into_iter().map(|(name, m)| (name, m.into_values().collect())).collect();
        Ok(())
    }
}

/// One step of gradient descent.
fn descend(slot: &mut Tensor, gradient: &Tensor, learning_rate: f32) -> Result<()> {
    *slot = alluvium_ops::add(&slot.detach(), &scale(gradient, -learning_rate)?)?;
    Ok(())
}

/// Whether Muon updates a parameter: matrices, and experts as stacks of matrices, but neither the embedding nor the
/// output projection.
fn is_inner_matrix(name: &str, parameter: &Tensor) -> bool {
    parameter.shape().rank() >= 2 && !name.contains("embed") && !name.contains("lm_head")
}

/// Rows and columns of the last two axes.
fn matrix_sides(tensor: &Tensor) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[shape.rank() - 2], shape[shape.rank() - 1]]
}

/// Newton–Schulz orthogonalization of each matrix of `[.., M, N]`.
fn orthogonalized(x: &Tensor) -> Result<Tensor> {
    let [rows, columns] = matrix_sides(x);
    if x.shape().rank() == 2 {
        return newton_schulz(x, NEWTON_SCHULZ_STEPS);
    }
    let stack = x.reshape([x.elements() / columns, columns])?;
    let matrices = (0..stack.shape()[0] / rows)
        .map(|i| newton_schulz(&stack.rows(i * rows, rows)?, NEWTON_SCHULZ_STEPS))
        .collect::<Result<Vec<Tensor>>>()?;
    concat(&matrices.iter().collect::<Vec<_>>(), 0)?.reshape(x.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Device;
    use alluvium_lm::Role;

    fn tensor<const N: usize>(shape: [usize; N], seed: usize) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| ((i * 37 + seed * 11) % 17) as f32 - 8.0).collect();
        Tensor::from_slice(&values, shape, &Device::cpu()).unwrap()
    }

    /// One step on a parameter of this name; what it becomes.
    fn stepped(kind: OptimizerKind, name: &str, parameter: &Tensor, gradient: &Tensor) -> Vec<f32> {
        struct One(String, Tensor);
        impl Parameters for One {
            fn parameters<'a>(&'a self, _: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
                f(self.0.clone(), &self.1, Role::Trainable);
            }
            fn parameters_mut<'a>(&'a mut self, _: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
                f(self.0.clone(), &mut self.1, &mut Role::Trainable);
            }
        }
        let mut model = One(name.to_owned(), parameter.clone());
        let mut optimizer = Optimizer::new(OptimizerConfig { kind, ..OptimizerConfig::default() });
        let mut gradients = BTreeMap::from([(name.to_owned(), gradient.clone())]);
        optimizer.step(&mut model, &mut gradients, 0.01, 1).unwrap();
        model.1.to_vec::<f32>().unwrap()
    }

    #[test]
    fn muon_updates_each_expert_as_a_matrix_of_its_own() {
        let (weights, gradient) = (tensor([3, 4, 6], 1), tensor([3, 4, 6], 2));
        let all = stepped(OptimizerKind::Muon, "layers.0.mlp.experts", &weights, &gradient);
        for expert in 0..3 {
            let one = |x: &Tensor| x.reshape([12, 6]).unwrap().rows(4 * expert, 4).unwrap();
            let alone = stepped(OptimizerKind::Muon, "layers.0.mlp.w", &one(&weights), &one(&gradient));
            assert_eq!(all[24 * expert..24 * (expert + 1)], alone);
        }
        assert_ne!(all, stepped(OptimizerKind::AdamW, "layers.0.mlp.experts", &weights, &gradient));
    }

    #[test]
    fn embedding_and_head_get_adamw_and_only_matrices_decay() {
        let (weights, gradient) = (tensor([4, 6], 1), tensor([4, 6], 2));
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let both = [OptimizerKind::Muon, OptimizerKind::AdamW].map(|kind| stepped(kind, name, &weights, &gradient));
            assert_eq!(both[0], both[1]);
        }
        let still =
            |x: Tensor| stepped(OptimizerKind::AdamW, "w", &x, &scale(&x, 0.0).unwrap()) == x.to_vec::<f32>().unwrap();
        assert!(still(tensor([24], 3)) && !still(tensor([4, 6], 3)) && !still(tensor([2, 3, 4], 3)));
    }
}
