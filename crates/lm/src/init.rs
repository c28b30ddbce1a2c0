//! Sources of a model's tensors when it is built: files or random initialization.

use crate::parameters::{Parameter, join};
use crate::weight::Weight;
use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Result, Shape, Tensor};

/// The initial values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All ones: the weight of a norm.
    Ones,
    /// All zeros: a bias.
    Zeros,
    /// Normal values with this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this bound.
    Uniform(f64),
    /// The logarithm of a number uniform between the two: `A_log`.
    LogOfUniform(f64, f64),
    /// The inverse softplus of a number whose logarithm is uniform between those of the two: `dt_bias`.
    InverseSoftplusOfLogUniform(f64, f64),
}

/// Gives each named tensor of a model that is being built.
pub trait WeightSource {
    /// The tensor called `name`, of this shape, f32.
    ///
    /// # Errors
    /// When it is not there, or of another shape.
    fn tensor(&mut self, name: &str, shape: Shape, init: Init) -> Result<Tensor>;

    /// The matrix of the module called `module`, of this shape, as it is stored: `module.weight` where it is plain.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`].
    fn weight(&mut self, module: &str, shape: Shape, init: Init) -> Result<Weight> {
        Ok(Weight::Dense(self.tensor(&join(module, "weight"), shape, init)?.into()))
    }

    /// Whether matrices that multiply one input are laid one after the other in memory, for generation on a GPU.
    fn joins_projections(&self) -> bool {
        false
    }
}

/// Random initialization. Each tensor depends only on the seed and its name.
#[derive(Clone, Debug)]
pub struct RandomInit {
    /// The seed. Equal seeds give bit-identical tensors.
    pub seed: u64,
    /// The device of the tensors.
    pub device: Device,
}

impl WeightSource for RandomInit {
    fn tensor(&mut self, name: &str, shape: Shape, init: Init) -> Result<Tensor> {
        let mut rng = Rng::new(self.seed, name);
        let mut draw = || match init {
            Init::Ones => 1.0,
            Init::Zeros => 0.0,
            Init::Normal(deviation) => deviation * rng.normal(),
            Init::Uniform(bound) => rng.between(-bound, bound),
            Init::LogOfUniform(low, high) => rng.between(low, high).ln(),
            Init::InverseSoftplusOfLogUniform(low, high) => inverse_softplus(rng.between(low.ln(), high.ln()).exp()),
        };
        let data: Vec<f32> = (0..shape.elements()).map(|_| draw() as f32).collect();
        Tensor::from_slice(&data, shape, &self.device)
    }
}

/// Counts the elements of a model's tensors and gives none of them memory: what a model takes is known before it is
/// built.
#[derive(Clone, Debug)]
pub struct ShapeSource {
    /// The elements of all tensors so far.
    pub elements: usize,
    nothing: Tensor,
}

impl ShapeSource {
    /// A source that has given no tensor yet.
    ///
    /// # Errors
    /// When there is no memory at all.
    pub fn new() -> Result<Self> {
        Ok(ShapeSource { elements: 0, nothing: Tensor::zeros([1], DType::F32, &Device::cpu())? })
    }
}

impl WeightSource for ShapeSource {
    fn tensor(&mut self, _: &str, shape: Shape, _: Init) -> Result<Tensor> {
        self.elements = self.elements.saturating_add(shape.elements());
        Ok(self.nothing.clone())
    }
}

fn inverse_softplus(y: f64) -> f64 {
    y + (-(-y).exp_m1()).ln()
}

/// A source and the place in the model that is being built.
pub struct VarBuilder<'a> {
    source: &'a mut dyn WeightSource,
    place: String,
}

impl std::fmt::Debug for VarBuilder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VarBuilder at `{}`", self.place)
    }
}

impl<'a> VarBuilder<'a> {
    /// A builder of the whole model.
    pub fn new(source: &'a mut dyn WeightSource) -> Self {
        VarBuilder { source, place: String::new() }
    }

    /// A builder of the part called `name`: "push prefix", as in candle.
    pub fn pp(&mut self, name: &str) -> VarBuilder<'_> {
        VarBuilder { place: join(&self.place, name), source: self.source }
    }

    /// The tensor called `name` here.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`].
    pub fn tensor(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        self.source.tensor(&join(&self.place, name), shape.into(), init)
    }

    /// As [`VarBuilder::tensor`], as a parameter that can be frozen.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`].
    pub fn parameter(&mut self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Parameter> {
        self.tensor(name, shape, init).map(Parameter::from)
    }

    /// As [`WeightSource::joins_projections`].
    pub fn joins_projections(&self) -> bool {
        self.source.joins_projections()
    }

    /// The matrix of the module here.
    ///
    /// # Errors
    /// As [`WeightSource::weight`].
    pub fn weight(&mut self, shape: impl Into<Shape>, init: Init) -> Result<Weight> {
        self.source.weight(&self.place, shape.into(), init)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_of_softplus_is_its_inverse() {
        for y in [1e-3, 0.1, 1.0, 30.0] {
            let back = inverse_softplus(y).exp().ln_1p();
            assert!((back - y).abs() < 1e-9 * y.max(1.0), "{y} became {back}");
        }
    }
}
