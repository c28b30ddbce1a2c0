//! Tensors in the memory of a GPU: making, filling, uploading and downloading them.

use super::{Storage, Tensor};
use crate::gpu::{Bytes, Gpu};
use crate::{DType, Result, Shape};
use std::sync::Arc;

/// The word of memory that is NaN in every floating dtype.
const POISON: u32 = u32::MAX;

impl Gpu {
    /// A tensor with unspecified contents, for a kernel to write.
    ///
    /// # Errors
    /// When the memory, or its limit, is used up.
    pub fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let tensor = self.unfilled(shape.into(), dtype)?;
        if self.is_poisoned() {
            self.fill_words(&tensor, POISON)?;
        }
        Ok(tensor)
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// As [`Gpu::empty`].
    pub fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into().checked()?;
        Ok(self.tensor(self.zeroed(shape.elements() * dtype.size())?, shape, dtype))
    }

    /// An f32 tensor filled with one value.
    ///
    /// # Errors
    /// As [`Gpu::empty`].
    pub fn full(&self, shape: impl Into<Shape>, value: f32) -> Result<Tensor> {
        let tensor = self.unfilled(shape.into(), DType::F32)?;
        self.fill_words(&tensor, value.to_bits())?;
        Ok(tensor)
    }

    /// As [`Gpu::empty`], without the poison of a proof: every element is written at once.
    pub(crate) fn unfilled(&self, shape: Shape, dtype: DType) -> Result<Tensor> {
        let shape = shape.checked()?;
        let bytes = (shape.elements() * dtype.size()).next_multiple_of(4);
        Ok(self.tensor(self.allocated(bytes)?, shape, dtype))
    }

    /// A tensor of these bytes.
    ///
    /// # Errors
    /// When the memory, or its limit, is used up, or the device was lost.
    pub(crate) fn upload(&self, data: &[u8], shape: Shape, dtype: DType) -> Result<Tensor> {
        Ok(self.tensor(self.uploaded(data, dtype)?, shape, dtype))
    }

    /// A tensor of this memory.
    pub(crate) fn tensor(&self, bytes: Arc<Bytes>, shape: Shape, dtype: DType) -> Tensor {
        Tensor::new(Storage::Gpu(bytes), shape, dtype, self.clone().into())
    }

    /// The bytes of a tensor. Waits for the launches before.
    ///
    /// # Errors
    /// When the tensor is of another handle, or the device was lost.
    pub(crate) fn download(&self, x: &Tensor) -> Result<Vec<u8>> {
        self.check_own("read", x)?;
        self.downloaded(x.gpu_bytes()?, x.offset()..x.offset() + x.bytes_len())
    }
}
