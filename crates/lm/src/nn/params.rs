//! Every tensor of a model, by the name it has in a checkpoint.

use alluvium_core::Tensor;

/// Something that holds parameters. Implemented by [`params!`](crate::params) for the layers.
pub trait Parameters {
    /// Calls `f` with the name and the tensor of each parameter, in a fixed order; names begin with `prefix`.
    fn visit<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor));

    /// As [`Parameters::visit`], to replace the tensors: by traced ones, by updated ones.
    fn visit_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor));
}

/// The number of elements in all parameters.
pub fn parameter_count<P: Parameters + ?Sized>(model: &P) -> usize {
    let mut count = 0;
    model.visit("", &mut |_, tensor| count += tensor.elements());
    count
}

/// `model.layers` and `0` give `model.layers.0`; where one is empty, the other alone.
pub fn join(prefix: &str, name: &str) -> String {
    let dot = if prefix.is_empty() || name.is_empty() { "" } else { "." };
    format!("{prefix}{dot}{name}")
}

impl Parameters for Tensor {
    fn visit<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor)) {
        f(prefix.to_owned(), self);
    }

    fn visit_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor)) {
        f(prefix.to_owned(), self);
    }
}

/// What is absent has no parameters: an output projection that is the embedding.
impl<P: Parameters> Parameters for Option<P> {
    fn visit<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor)) {
        if let Some(part) = self {
            part.visit(prefix, f);
        }
    }

    fn visit_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor)) {
        if let Some(part) = self {
            part.visit_mut(prefix, f);
        }
    }
}

/// Parts are numbered from 0: `layers.0`, `layers.1`.
impl<P: Parameters> Parameters for Vec<P> {
    fn visit<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor)) {
        for (index, part) in self.iter().enumerate() {
            part.visit(&join(prefix, &index.to_string()), f);
        }
    }

    fn visit_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor)) {
        for (index, part) in self.iter_mut().enumerate() {
            part.visit_mut(&join(prefix, &index.to_string()), f);
        }
    }
}

/// Implements [`Parameters`] for a struct: its fields are checkpoint keys; where they differ the key is spelled out. A part
/// whose key is empty has its tensors where the struct has its own.
///
/// ```
/// use alluvium_core::{Device, Tensor};
/// use alluvium_lm::{Parameters, params};
///
/// struct Gates {
///     dt_bias: Tensor,
///     a_log: Tensor,
/// }
/// params!(Gates { dt_bias, a_log: "A_log" });
///
/// let zero = Tensor::full([1], 0.0, &Device::cpu())?;
/// let mut names = Vec::new();
/// Gates { dt_bias: zero.clone(), a_log: zero }.visit("linear_attn", &mut |name, _| names.push(name));
/// assert_eq!(names, ["linear_attn.dt_bias", "linear_attn.A_log"]);
/// # Ok::<(), alluvium_core::Error>(())
/// ```
#[macro_export]
macro_rules! params {
    ($type:ty { $($field:ident $(: $key:literal)?),* $(,)? }) => {
        impl $crate::nn::params::Parameters for $type {
            fn visit<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a alluvium_core::Tensor)) {
                $(
                    let key = $crate::params!(@key $field $($key)?);
                    $crate::nn::params::Parameters::visit(&self.$field, &$crate::nn::params::join(prefix, key), f);
                )*
            }

            fn visit_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut alluvium_core::Tensor)) {
                $(
                    let key = $crate::params!(@key $field $($key)?);
                    $crate::nn::params::Parameters::visit_mut(
                        &mut self.$field,
                        &$crate::nn::params::join(prefix, key),
                        f,
                    );
                )*
            }
        }
    };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
}
