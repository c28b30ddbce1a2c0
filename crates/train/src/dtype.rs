//! The dtype of a training run.

use alluvium_core::DType;
use serde::{Deserialize, Serialize};

/// The dtype of activations, their gradients and the working weights of a training run. Masters, moments, gradients of
/// parameters, states, statistics and losses are f32 in every run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TrainDtype {
    /// Single precision.
    #[default]
    F32,
    /// bfloat16: the exponents of f32 in half its bytes.
    Bf16,
}

impl From<TrainDtype> for DType {
    fn from(dtype: TrainDtype) -> DType {
        match dtype {
            TrainDtype::F32 => DType::F32,
            TrainDtype::Bf16 => DType::BF16,
        }
    }
}

impl std::fmt::Display for TrainDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        DType::from(*self).fmt(f)
    }
}

impl From<TrainDtype> for String {
    fn from(dtype: TrainDtype) -> String {
        dtype.to_string()
    }
}

impl std::str::FromStr for TrainDtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" | "float32" => Ok(TrainDtype::F32),
            "bf16" | "bfloat16" => Ok(TrainDtype::Bf16),
            "f16" | "float16" => {
                Err("f16 cannot be trained in: small gradients become 0 without loss scaling; use bf16".to_owned())
            }
            _ => Err(format!("`{name}` is not a dtype of training; expected f32 or bf16")),
        }
    }
}

impl TryFrom<String> for TrainDtype {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        name.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dtype_is_read_by_its_names_and_f16_is_refused_with_the_reason() {
        for (name, dtype) in [("f32", TrainDtype::F32), ("bfloat16", TrainDtype::Bf16), ("bf16", TrainDtype::Bf16)] {
            assert_eq!(name.parse(), Ok(dtype));
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        let refused = |name: &str| name.parse::<TrainDtype>().unwrap_err();
        assert_eq!(refused("f16"), "f16 cannot be trained in: small gradients become 0 without loss scaling; use bf16");
        assert_eq!(refused("u8"), "`u8` is not a dtype of training; expected f32 or bf16");
    }
}
