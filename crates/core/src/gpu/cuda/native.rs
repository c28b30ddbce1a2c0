//! Launches of kernels that are written in CUDA C++.

use super::driver::{DriverError, Function, TensorMap};
use super::{Engine, failed};
use crate::Result;
use crate::gpu::Variant;
use crate::gpu::engine::Buffer;
use crate::gpu::native::{CudaArgument, CudaLaunch};
use std::ffi::c_void;
use std::sync::Arc;

/// The compute capability whose instructions the kernels use.
const HOPPER: u32 = 90;

/// A compiled variant of a CUDA kernel.
pub(in crate::gpu) struct NativePipeline {
    function: Function,
}

/// An argument as the driver reads it.
enum Value {
    Address(u64),
    Map(Box<TensorMap>),
    Params(Vec<u8>),
}

impl Value {
    fn pointer(&self) -> *mut c_void {
        match self {
            Value::Address(address) => std::ptr::from_ref(address).cast_mut().cast(),
            Value::Map(map) => std::ptr::from_ref::<TensorMap>(map).cast_mut().cast(),
            Value::Params(params) => params.as_ptr().cast_mut().cast(),
        }
    }
}

impl Engine {
    /// See [`super::super::engine::Engine::cuda_shared_memory`].
    pub(in crate::gpu) fn cuda_shared_memory(&self) -> usize {
        if self.plain { 0 } else { self.shared }
    }

    /// See [`super::super::engine::Engine::is_hopper`].
    pub(in crate::gpu) fn is_hopper(&self) -> bool {
        self.capability == HOPPER && !self.plain
    }

    fn native(&self, launch: &CudaLaunch<'_>) -> Result<Arc<NativePipeline>> {
        let CudaLaunch { kernel, constants, .. } = *launch;
        let variant = Variant { entry: kernel.name, constants, stored: &[] };
        self.natives.get(kernel, variant, || {
            let refused = |why: String| failed(&self.name, format!("the kernel {} was refused: {why}", kernel.name));
            let code = self.compiler.compile(kernel.name, &kernel.source(constants), &[]).map_err(refused)?;
            let function = self.queue.stream().load(&code, kernel.name).map_err(|error| refused(error.words))?;
            self.queue.stream().allow_shared(&function, launch.shared).map_err(|error| refused(error.words))?;
            Ok(NativePipeline { function })
        })
    }

    /// See [`super::super::engine::Engine::launch_cuda`].
    pub(in crate::gpu) fn launch_cuda(&self, launch: &CudaLaunch<'_>) -> Result<()> {
        let pipeline = self.native(launch)?;
        let mut values = Vec::with_capacity(launch.arguments.len());
        for argument in launch.arguments {
            let address = match argument.tensor() {
                Some((tensor, _)) => match tensor.gpu_bytes()?.buffer()? {
                    Buffer::Cuda(buffer) => buffer.pointer + tensor.offset() as u64,
                    Buffer::Wgpu(_) => return Err(crate::gpu::engine::foreign()),
                },
                None => 0,
            };
            values.push(match *argument {
                CudaArgument::ReadBoxes(tensor, width) | CudaArgument::WriteBoxes(tensor, width) => {
                    let map = TensorMap::of_bf16(address, [tensor.elements() / width, width]);
                    Value::Map(Box::new(map.map_err(|error| self.lost(error))?))
                }
                CudaArgument::Params(params) => Value::Params(params.to_vec()),
                _ => Value::Address(address),
            });
        }
        let [x, y] = launch.grid.map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX));
        if x == 0 || y == 0 {
            return Ok(());
        }
        let (grid, block) = ([x, y, 1], (launch.threads, launch.shared));
        self.queue.push(move |stream| {
            let mut pointers: Vec<*mut c_void> = values.iter().map(Value::pointer).collect();
            stream.launch(&pipeline.function, grid, block, &mut pointers).map_err(DriverError::into_words)
        });
        Ok(())
    }
}
