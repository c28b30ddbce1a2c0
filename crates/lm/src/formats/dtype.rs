//! The dtypes of the safetensors format.

use alluvium_core::DType;
use std::fmt;

/// A dtype that a safetensors file can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredDtype {
    name: &'static str,
    size: usize,
}

const ALL: [StoredDtype; 19] = {
    const fn of(name: &'static str, size: usize) -> StoredDtype {
        StoredDtype { name, size }
    }
    [
        of("F32", 4),
        of("F16", 2),
        of("BF16", 2),
        of("U32", 4),
        of("U8", 1),
        of("BOOL", 1),
        of("I8", 1),
        of("F8_E4M3", 1),
        of("F8_E5M2", 1),
        of("F8_E8M0", 1),
        of("I16", 2),
        of("U16", 2),
        of("I32", 4),
        of("F64", 8),
        of("I64", 8),
        of("U64", 8),
        of("F8_E4M3FNUZ", 1),
        of("F8_E5M2FNUZ", 1),
        of("C64", 8),
    ]
};

impl StoredDtype {
    /// 32-bit integers, which prompt caches hold.
    pub(crate) const I32: StoredDtype = StoredDtype { name: "I32", size: 4 };

    /// The dtype that files call `name`: `F32`, `BF16`, `I64`.
    pub fn from_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|known| known.name == name)
    }

    /// As files call it.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        self.size
    }

    /// The dtype of a tensor read from here; none where tensors have no such dtype.
    pub fn tensor_dtype(self) -> Option<DType> {
        Some(match self.name {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            "U32" => DType::U32,
            "U8" => DType::U8,
            _ => return None,
        })
    }

    /// Whether tensors have this dtype and it is a floating one.
    pub fn is_float(self) -> bool {
        self.tensor_dtype().is_some_and(DType::is_float)
    }
}

impl From<DType> for StoredDtype {
    fn from(dtype: DType) -> Self {
        ALL[match dtype {
            DType::F32 => 0,
            DType::F16 => 1,
            DType::BF16 => 2,
            DType::U32 => 3,
            DType::U8 => 4,
        }]
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
