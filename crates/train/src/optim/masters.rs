//! Master parameters: what an optimizer updates where the model computes in half precision.

use alluvium_core::{DType, Error, Result, Tensor};
use alluvium_lm::{Parameters, is_kept_in_f32, set_dtype, visit_trainable, visit_trainable_mut};
use alluvium_ops::cast;
use std::collections::BTreeMap;

/// The f32 masters of parameters that a model has in half precision.
///
/// A step moves a weight by about a thousandth of it, which half precision would round away. So the optimizer updates the
/// master, and the model computes with its rounding: the working copy.
///
/// Source: Micikevicius et al. 2017, arXiv:1710.03740.
#[derive(Debug, Default)]
pub struct Masters {
    by_name: BTreeMap<String, Tensor>,
}

impl Masters {
    /// Makes a model compute in `dtype`, and takes its trainable parameters as masters: the model keeps copies of them that
    /// are rounded to `dtype`. With f32 the model stays as it is, and there are no masters.
    ///
    /// # Errors
    /// When `dtype` is neither f32 nor bf16, or memory runs out.
    pub fn take<M: Parameters + ?Sized>(model: &mut M, dtype: DType) -> Result<Self> {
        let mut masters = Masters::default();
        match dtype {
            DType::F32 => return Ok(masters),
            DType::BF16 => {}
            DType::F16 => {
                let why = "a model cannot be trained in f16: small gradients become 0 without loss scaling; use bf16";
                return Err(Error::value("masters", why));
            }
            other => return Err(Error::value("masters", format!("a model cannot be trained in {other}; use bf16"))),
        }
        let mut result = Ok(());
        visit_trainable_mut(model, &mut |name, slot| {
            if result.is_ok() && !is_kept_in_f32(&name) {
                result = masters.split(name, slot, dtype);
            }
        });
        result?;
        set_dtype(model, dtype)?;
        Ok(masters)
    }

    /// Takes a parameter as a master and leaves its working copy.
    fn split(&mut self, name: String, slot: &mut Tensor, dtype: DType) -> Result<()> {
        let master = cast(&slot.detach(), DType::F32)?;
        *slot = cast(&master, dtype)?;
        self.by_name.insert(name, master);
        Ok(())
    }

    /// The master of a parameter; `None` for one that the model has in f32.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name)
    }

    /// The trainable parameters of the model whose masters these are: the masters, and what the model has in f32.
    pub fn parameters<'a, M: Parameters + ?Sized>(&'a self, model: &'a M) -> Vec<(String, &'a Tensor)> {
        let mut parameters = Vec::new();
        visit_trainable(model, &mut |name, parameter| {
            let parameter = self.get(&name).unwrap_or(parameter);
            parameters.push((name, parameter));
        });
        parameters
    }

    /// Moves the master of a parameter out, so that a step can update it in place.
    pub(super) fn remove(&mut self, name: &str) -> Option<Tensor> {
        self.by_name.remove(name)
    }

    pub(super) fn insert(&mut self, name: &str, master: Tensor) {
        self.by_name.insert(name.to_owned(), master);
    }
}
