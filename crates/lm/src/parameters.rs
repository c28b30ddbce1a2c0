//! The tensors of a model, by the names they have in a checkpoint.

use crate::weight::Weight;
use alluvium_core::{DType, Tensor};
use std::ops::Deref;

/// The role of a tensor in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives a gradient and is updated.
    Trainable,
    /// Is not updated and costs the backward pass nothing.
    Frozen,
    /// Packed integer codes of a quantized weight, which cannot be trained.
    Codes,
}

/// A tensor with a role that can be changed. A plain [`Tensor`] among the fields of a model is always trainable if it
/// holds floating-point elements.
#[derive(Clone, Debug)]
pub struct Parameter {
    tensor: Tensor,
    role: Role,
}

impl Parameter {
    /// A parameter of this role. Integer tensors are codes whatever role is given.
    pub fn new(tensor: Tensor, role: Role) -> Self {
        let role = if is_codes(&tensor) { Role::Codes } else { role };
        Parameter { tensor, role }
    }

    /// Its role in training.
    pub fn role(&self) -> Role {
        self.role
    }
}

/// A trainable parameter.
impl From<Tensor> for Parameter {
    fn from(tensor: Tensor) -> Self {
        Parameter::new(tensor, Role::Trainable)
    }
}

impl From<Parameter> for Tensor {
    fn from(parameter: Parameter) -> Self {
        parameter.tensor
    }
}

impl Deref for Parameter {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

fn is_codes(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DType::U32 | DType::U8)
}

fn role_of(tensor: &Tensor) -> Role {
    if is_codes(tensor) { Role::Codes } else { Role::Trainable }
}

/// The use that a module makes of its matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// A linear projection, `[O, I]`.
    Linear,
    /// The projections of all experts of a layer, `[E, O, I]`.
    Experts,
    /// An embedding, `[V, D]`, which may be the output projection, too.
    Embedding,
}

/// A part of a model that holds parameters. [`params!`](crate::params) implements it for structs and enums.
pub trait Parameters {
    /// Calls `f` with the name, the tensor and the role of each parameter, in a fixed order. Names begin with `prefix`.
    fn parameters<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor, Role));

    /// As [`Parameters::parameters`], to replace tensors and to change roles. The role of codes stays.
    fn parameters_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role));

    /// Calls `f` with the name of each module that has a matrix, its kind and the matrix, to attach an adapter or to
    /// replace the matrix.
    fn weights_mut(&mut self, _prefix: &str, _f: &mut dyn FnMut(&str, ModuleKind, &mut Weight)) {}

    /// Calls `f` with the name and the tensor of each parameter.
    fn visit<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor)) {
        self.parameters(prefix, &mut |name, tensor, _| f(name, tensor));
    }

    /// Calls `f` with the name and the tensor of each parameter, to replace the tensor.
    fn visit_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor)) {
        self.parameters_mut(prefix, &mut |name, tensor, _| f(name, tensor));
    }
}

/// Calls `f` with the name and the tensor of each trainable parameter.
pub fn visit_trainable<'a, P: Parameters + ?Sized>(model: &'a P, f: &mut dyn FnMut(String, &'a Tensor)) {
    model.parameters("", &mut |name, tensor, role| {
        if role == Role::Trainable {
            f(name, tensor);
        }
    });
}

/// As [`visit_trainable`], to replace the tensors: by traced ones, by updated ones.
pub fn visit_trainable_mut<'a, P: Parameters + ?Sized>(model: &'a mut P, f: &mut dyn FnMut(String, &'a mut Tensor)) {
    model.parameters_mut("", &mut |name, tensor, role| {
        if *role == Role::Trainable {
            f(name, tensor);
        }
    });
}

/// Freezes every parameter whose name `is` says yes to, and returns how many were trainable before.
///
/// ```
/// # use alluvium_core::{Device, Tensor};
/// # use alluvium_lm::{Parameter, freeze, params, unfreeze};
/// # struct Model { embed: Parameter, norm: Parameter }
/// # params!(Model { embed, norm });
/// # let one = || Tensor::full([1], 1.0, &Device::cpu());
/// # let mut model = Model { embed: one()?.into(), norm: one()?.into() };
/// assert_eq!(freeze(&mut model, &|name| name != "norm"), 1);
/// assert_eq!(unfreeze(&mut model, &|name| name.starts_with("embed")), 1);
/// # Ok::<(), alluvium_core::Error>(())
/// ```
pub fn freeze<P: Parameters + ?Sized>(model: &mut P, is: &dyn Fn(&str) -> bool) -> usize {
    turn(model, is, Role::Trainable, Role::Frozen)
}

/// Makes every frozen parameter trainable whose name `is` says yes to, and returns how many those are. Codes stay
/// codes.
pub fn unfreeze<P: Parameters + ?Sized>(model: &mut P, is: &dyn Fn(&str) -> bool) -> usize {
    turn(model, is, Role::Frozen, Role::Trainable)
}

fn turn<P: Parameters + ?Sized>(model: &mut P, is: &dyn Fn(&str) -> bool, from: Role, to: Role) -> usize {
    let mut count = 0;
    model.parameters_mut("", &mut |name, _, role| {
        if *role == from && is(&name) {
            *role = to;
            count += 1;
        }
    });
    count
}

/// The number of elements of all parameters.
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
    fn parameters<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
        f(prefix.to_owned(), self, role_of(self));
    }

    fn parameters_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
        let mut role = role_of(self);
        f(prefix.to_owned(), self, &mut role);
    }
}

impl Parameters for Parameter {
    fn parameters<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
        f(prefix.to_owned(), &self.tensor, self.role);
    }

    fn parameters_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
        let before = self.role;
        f(prefix.to_owned(), &mut self.tensor, &mut self.role);
        if before == Role::Codes || self.role == Role::Codes {
            self.role = before;
        }
    }
}

/// An absent part has no parameters.
impl<P: Parameters> Parameters for Option<P> {
    fn parameters<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
        if let Some(part) = self {
            part.parameters(prefix, f);
        }
    }

    fn parameters_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
        if let Some(part) = self {
            part.parameters_mut(prefix, f);
        }
    }

    fn weights_mut(&mut self, prefix: &str, f: &mut dyn FnMut(&str, ModuleKind, &mut Weight)) {
        if let Some(part) = self {
            part.weights_mut(prefix, f);
        }
    }
}

/// Parts are numbered from 0: `layers.0`, `layers.1`.
impl<P: Parameters> Parameters for Vec<P> {
    fn parameters<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
        for (index, part) in self.iter().enumerate() {
            part.parameters(&join(prefix, &index.to_string()), f);
        }
    }

    fn parameters_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
        for (index, part) in self.iter_mut().enumerate() {
            part.parameters_mut(&join(prefix, &index.to_string()), f);
        }
    }

    fn weights_mut(&mut self, prefix: &str, f: &mut dyn FnMut(&str, ModuleKind, &mut Weight)) {
        for (index, part) in self.iter_mut().enumerate() {
            part.weights_mut(&join(prefix, &index.to_string()), f);
        }
    }
}

/// Implements [`Parameters`] for a struct or an enum. Fields are keys of a checkpoint; a key that differs from the
/// field is spelled out. A part with an empty key has its tensors where the struct has its own.
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
/// enum Mixer {
///     Linear(Gates),
///     Full(Tensor),
/// }
/// params!(enum Mixer { Linear: "linear_attn", Full: "self_attn" });
///
/// let zero = Tensor::full([1], 0.0, &Device::cpu())?;
/// let mut names = Vec::new();
/// Mixer::Linear(Gates { dt_bias: zero.clone(), a_log: zero.clone() }).visit("0", &mut |name, _| names.push(name));
/// Mixer::Full(zero).visit("1", &mut |name, _| names.push(name));
/// assert_eq!(names, ["0.linear_attn.dt_bias", "0.linear_attn.A_log", "1.self_attn"]);
/// # Ok::<(), alluvium_core::Error>(())
/// ```
#[macro_export]
macro_rules! params {
    (enum $type:ty { $($variant:ident $(: $key:literal)?),* $(,)? }) => {
        impl $crate::Parameters for $type {
            fn parameters<'a>(
                &'a self,
                prefix: &str,
                f: &mut dyn FnMut(String, &'a $crate::__core::Tensor, $crate::Role),
            ) {
                match self {
                    $(Self::$variant(part) => {
                        $crate::Parameters::parameters(part, &$crate::join(prefix, $crate::params!(@part $($key)?)), f);
                    })*
                }
            }

            fn parameters_mut<'a>(
                &'a mut self,
                prefix: &str,
                f: &mut dyn FnMut(String, &'a mut $crate::__core::Tensor, &mut $crate::Role),
            ) {
                match self {
                    $(Self::$variant(part) => {
                        $crate::Parameters::parameters_mut(
                            part,
                            &$crate::join(prefix, $crate::params!(@part $($key)?)),
                            f,
                        );
                    })*
                }
            }

            fn weights_mut(
                &mut self,
                prefix: &str,
                f: &mut dyn FnMut(&str, $crate::parameters::ModuleKind, &mut $crate::Weight),
            ) {
                match self {
                    $(Self::$variant(part) => {
                        let place = $crate::join(prefix, $crate::params!(@part $($key)?));
                        $crate::Parameters::weights_mut(part, &place, f);
                    })*
                }
            }
        }
    };
    ($type:ty { $($field:ident $(: $key:literal)?),* $(,)? }) => {
        impl $crate::Parameters for $type {
            fn parameters<'a>(
                &'a self,
                prefix: &str,
                f: &mut dyn FnMut(String, &'a $crate::__core::Tensor, $crate::Role),
            ) {
                $(
                    let key = $crate::params!(@key $field $($key)?);
                    $crate::Parameters::parameters(&self.$field, &$crate::join(prefix, key), f);
                )*
            }

            fn parameters_mut<'a>(
                &'a mut self,
                prefix: &str,
                f: &mut dyn FnMut(String, &'a mut $crate::__core::Tensor, &mut $crate::Role),
            ) {
                $(
                    let key = $crate::params!(@key $field $($key)?);
                    $crate::Parameters::parameters_mut(&mut self.$field, &$crate::join(prefix, key), f);
                )*
            }

            fn weights_mut(
                &mut self,
                prefix: &str,
                f: &mut dyn FnMut(&str, $crate::parameters::ModuleKind, &mut $crate::Weight),
            ) {
                $(
                    let key = $crate::params!(@key $field $($key)?);
                    $crate::Parameters::weights_mut(&mut self.$field, &$crate::join(prefix, key), f);
                )*
            }
        }
    };
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
    (@part) => { "" };
    (@part $key:literal) => { $key };
}
