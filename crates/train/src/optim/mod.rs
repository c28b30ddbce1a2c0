//! What turns gradients into smaller losses.

mod schedule;

pub use schedule::Schedule;

use alluvium_core::{DType, Error, Result, Tensor};
use alluvium_lm::Parameters;
use alluvium_ops::{AdamW, adamw, newton_schulz, scale};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which optimiser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimiserKind {
    /// Adam with decoupled weight decay, for every parameter.
    #[default]
    AdamW,
    /// Momentum made orthogonal, for the matrices inside the layers; AdamW for the rest.
    Muon,
}

impl std::fmt::Display for OptimiserKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            OptimiserKind::AdamW => "adamw",
            OptimiserKind::Muon => "muon",
        })
    }
}

impl std::str::FromStr for OptimiserKind {
    type Err = String;
    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "adamw" => Ok(OptimiserKind::AdamW),
            "muon" => Ok(OptimiserKind::Muon),
            _ => Err(format!("`{name}` is no optimiser; expected adamw or muon")),
        }
    }
}

/// An optimiser and what it remembers of each parameter, in f32.
#[derive(Debug)]
pub struct Optimiser {
    kind: OptimiserKind,
    settings: AdamW,
    /// By the parameter's name: the mean of gradients and, for AdamW, of their squares.
    moments: BTreeMap<String, Vec<Tensor>>,
}

/// How much of Muon's momentum is kept, and its Newton–Schulz steps.
const MOMENTUM: f32 = 0.95;
const STEPS: usize = 5;

impl Optimiser {
    /// A fresh one. Learning rate and step of `settings` are set at each [`Optimiser::step`].
    pub fn new(kind: OptimiserKind, settings: AdamW) -> Self {
        Optimiser { kind, settings, moments: BTreeMap::new() }
    }

    /// Moves every parameter that has a gradient. Parameters must not be traced; their memory is reused.
    ///
    /// # Errors
    /// When a gradient does not fit its parameter, or memory runs out.
    pub fn step(
        &mut self,
        model: &mut dyn Parameters,
        gradients: &mut BTreeMap<String, Tensor>,
        rate: f32,
        step: u64,
    ) -> Result<()> {
        let step = u32::try_from(step).unwrap_or(u32::MAX);
        let mut failed = None;
        model.visit_mut("", &mut |name, slot| {
            let Some(gradient) = gradients.remove(&name) else { return };
            if failed.is_some() {
                return;
            }
            if let Err(error) = self.update(&name, slot, &gradient, rate, step) {
                failed = Some(error);
            }
        });
        failed.map_or(Ok(()), Err)
    }

    fn update(&mut self, name: &str, slot: &mut Tensor, gradient: &Tensor, rate: f32, step: u32) -> Result<()> {
        let matrix = slot.shape().rank() == 2;
        if self.kind == OptimiserKind::Muon && matrix && name.contains(".layers.") {
            return self.muon(name, slot, gradient, rate);
        }
        // the model lets go of its parameter, so that it can be updated in place
        let parameter = std::mem::replace(slot, gradient.detach());
        let zeros = || Tensor::zeros(parameter.shape(), DType::F32, parameter.device());
        let (m, v) = match self.moments.remove(name).map(<[Tensor; 2]>::try_from) {
            Some(Ok([m, v])) => (m, v),
            Some(Err(_)) => return Err(Error::value("adamw", format!("the moments of {name} are not two tensors"))),
            None => (zeros()?, zeros()?),
        };
        // gains, gates and biases are scales, not directions: decay would only pull them off their meaning
        let weight_decay = if matrix { self.settings.weight_decay } else { 0.0 };
        let settings = AdamW { learning_rate: rate, weight_decay, step, ..self.settings };
        let next = adamw(parameter, gradient, m, v, &settings)?;
        *slot = next.p;
        self.moments.insert(name.to_owned(), vec![next.m, next.v]);
        Ok(())
    }

    /// Keller Jordan's Muon with Nesterov momentum; the update has the size that AdamW's has.
    fn muon(&mut self, name: &str, slot: &mut Tensor, gradient: &Tensor, rate: f32) -> Result<()> {
        let before = self.moments.remove(name).and_then(|mut m| m.pop());
        let momentum = match before {
            Some(before) => alluvium_ops::add(&scale(&before, MOMENTUM)?, gradient)?,
            None => gradient.detach(),
        };
        let ahead = alluvium_ops::add(&scale(&momentum, MOMENTUM)?, gradient)?;
        let direction = newton_schulz(&ahead, STEPS)?;
        let longest = slot.shape().iter().copied().max().unwrap_or(1) as f32;
        let kept = scale(slot, 1.0 - rate * self.settings.weight_decay)?;
        *slot = alluvium_ops::add(&kept, &scale(&direction, -0.2 * rate * longest.sqrt())?)?;
        self.moments.insert(name.to_owned(), vec![momentum]);
        Ok(())
    }

    /// What is remembered, by name: `parameter.0`, `parameter.1`.
    pub fn state(&self) -> Vec<(String, &Tensor)> {
        let each = |(name, moments): &'_ (&String, &Vec<Tensor>)| {
            (0..moments.len()).map(|i| format!("{name}.{i}")).collect::<Vec<_>>()
        };
        self.moments.iter().flat_map(|entry| each(&entry).into_iter().zip(entry.1)).collect()
    }

    /// Takes back what [`Optimiser::state`] gave.
    ///
    /// # Errors
    /// When a name does not end in the moment's number.
    pub fn restore(&mut self, state: Vec<(String, Tensor)>) -> Result<()> {
        let mut moments: BTreeMap<String, BTreeMap<usize, Tensor>> = BTreeMap::new();
        for (name, tensor) in state {
            let parsed = name.rsplit_once('.').and_then(|(name, i)| Some((name.to_owned(), i.parse().ok()?)));
            let (parameter, index) =
                parsed.ok_or_else(|| Error::value("optimiser", format!("`{name}` is no moment of a parameter")))?;
            moments.entry(parameter).or_default().insert(index, tensor);
        }
        self.moments = moments.into_iter().map(|(name, m)| (name, m.into_values().collect())).collect();
        Ok(())
    }
}
