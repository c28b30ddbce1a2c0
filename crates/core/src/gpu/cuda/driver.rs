//! The driver's functions: they return errors in words, and need the libraries that [`super::libraries`] found.

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUfunction, CUfunction_attribute, CUmodule, CUresult,
    CUstream, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};
use std::ffi::{CStr, CString, c_int, c_void};

/// Calls a function of the driver; `Err` with the driver's words if it fails.
macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: `libraries::load` found the function; pointers that it gets are to live variables of the types
        // that its C declaration names, and handles are those that the driver gave.
        let code = unsafe { sys::$name($($argument),*) };
        checked(stringify!($name), code)
    }};
}

/// A failure of the driver: its code, and words.
#[derive(Debug)]
pub(super) struct DriverError {
    pub(super) code: CUresult,
    pub(super) words: String,
}

impl DriverError {
    pub(super) fn into_words(self) -> String {
        self.words
    }
}

fn checked(function: &str, code: CUresult) -> Result<(), DriverError> {
    if code == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(DriverError { code, words: format!("{function}: {}", described(code)) })
}

/// The name of a code and what it means.
fn described(code: CUresult) -> String {
    let mut texts = [std::ptr::null(); 2];
    let [name, meaning] = &mut texts;
    // SAFETY: both functions are there, and write the address of a text of static lifetime or nothing.
    unsafe {
        let _ = sys::cuGetErrorName(code, name);
        let _ = sys::cuGetErrorString(code, meaning);
    }
    let text = |pointer: *const std::ffi::c_char| {
        // SAFETY: the driver's texts end with a zero and live as long as the process.
        (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
    };
    match (text(texts[0]), text(texts[1])) {
        (Some(name), Some(meaning)) => format!("{name} ({meaning})"),
        _ => format!("error {}", code as u32),
    }
}

/// The driver's version, as 1000 × major + 10 × minor.
pub(super) fn version() -> Result<i32, DriverError> {
    let mut version = 0;
    call!(cuDriverGetVersion(&mut version))?;
    Ok(version)
}

/// The number of GPUs.
pub(super) fn count() -> Result<usize, DriverError> {
    call!(cuInit(0))?;
    let mut count = 0;
    call!(cuDeviceGetCount(&mut count))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// What the driver says of a GPU.
#[derive(Clone, Debug)]
pub(super) struct Properties {
    pub(super) name: String,
    pub(super) memory: usize,
    /// The compute capability: 90 is 9.0.
    pub(super) capability: u32,
    pub(super) multiprocessors: usize,
    /// Bytes of shared memory that a block gets without asking, and at most.
    pub(super) shared: usize,
    pub(super) shared_most: usize,
    /// Threads of a block at most.
    pub(super) threads: usize,
    pub(super) device: CUdevice,
}

impl Properties {
    pub(super) fn of(index: usize) -> Result<Self, DriverError> {
        let mut device = 0;
        call!(cuDeviceGet(&mut device, c_int::try_from(index).unwrap_or(c_int::MAX)))?;
        let mut name = [0; 128];
        call!(cuDeviceGetName(name.as_mut_ptr(), 127, device))?;
        // SAFETY: the driver wrote at most 127 bytes and a zero; the last byte of the array is a zero in any case.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let mut memory = 0;
        call!(cuDeviceTotalMem_v2(&mut memory, device))?;
        let attribute = |which: CUdevice_attribute| -> Result<usize, DriverError> {
            let mut value = 0;
            call!(cuDeviceGetAttribute(&mut value, which, device))?;
            Ok(usize::try_from(value).unwrap_or(0))
        };
        use CUdevice_attribute as A;
        let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Properties {
            name,
            memory,
            capability: (10 * major + minor) as u32,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?,
            shared_most: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            threads: attribute(A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            device,
        })
    }
}

/// A context and its one stream: everything that is enqueued runs in order.
#[derive(Debug)]
pub(super) struct Stream {
    context: CUcontext,
    stream: CUstream,
    device: CUdevice,
}

// SAFETY: the driver's functions may be called from any thread; each call below makes the context current first.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks its own state.
unsafe impl Sync for Stream {}

impl Stream {
    /// Opens the device's primary context.
    pub(super) fn open(device: CUdevice) -> Result<Self, DriverError> {
        let mut context = std::ptr::null_mut();
        call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
        let mut opened = Stream { context, stream: std::ptr::null_mut(), device };
        opened.enter()?;
        let mut stream = std::ptr::null_mut();
        call!(cuStreamCreate(&mut stream, 1))?; // CU_STREAM_NON_BLOCKING
        opened.stream = stream;
        Ok(opened)
    }

    /// Makes the context that of this thread.
    pub(super) fn enter(&self) -> Result<(), DriverError> {
        call!(cuCtxSetCurrent(self.context))
    }

    /// The handle that other libraries take.
    pub(super) fn handle(&self) -> CUstream {
        self.stream
    }

    /// Memory of `len` bytes; `None` if there is not as much.
    pub(super) fn allocate(&self, len: usize) -> Result<Option<CUdeviceptr>, DriverError> {
        self.enter()?;
        let mut pointer = 0;
        match call!(cuMemAlloc_v2(&mut pointer, len)) {
            Ok(()) => Ok(Some(pointer)),
            Err(error) if error.code == CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives memory back, after the launches that use it.
    pub(super) fn free(&self, pointer: CUdeviceptr) {
        // a context that is gone has freed it
        let _ = self.enter().and_then(|()| call!(cuMemFree_v2(pointer)));
    }

    /// Enqueues writing `data`, which may change once this returns.
    pub(super) fn write(&self, to: CUdeviceptr, data: &[u8]) -> Result<(), DriverError> {
        self.enter()?;
        call!(cuMemcpyHtoDAsync_v2(to, data.as_ptr().cast(), data.len(), self.stream))
    }

    /// Waits for everything before, and reads.
    pub(super) fn read(&self, from: CUdeviceptr, data: &mut [u8]) -> Result<(), DriverError> {
        self.enter()?;
        call!(cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), from, data.len(), self.stream))?;
        self.wait()
    }

    pub(super) fn copy(&self, from: CUdeviceptr, to: CUdeviceptr, len: usize) -> Result<(), DriverError> {
        self.enter()?;
        call!(cuMemcpyDtoDAsync_v2(to, from, len, self.stream))
    }

    pub(super) fn clear(&self, at: CUdeviceptr, len: usize) -> Result<(), DriverError> {
        self.enter()?;
        call!(cuMemsetD8Async(at, 0, len, self.stream))
    }

    pub(super) fn wait(&self) -> Result<(), DriverError> {
        self.enter()?;
        call!(cuStreamSynchronize(self.stream))
    }

    /// Loads a kernel from compiled code.
    pub(super) fn load(&self, code: &[u8], entry: &str) -> Result<Function, DriverError> {
        self.enter()?;
        // code in the assembly language is a text that ends with a zero
        let code = [code, &[0]].concat();
        let mut module = std::ptr::null_mut();
        call!(cuModuleLoadData(&mut module, code.as_ptr().cast()))?;
        let name = CString::new(entry).unwrap_or_default();
        let mut function = std::ptr::null_mut();
        call!(cuModuleGetFunction(&mut function, module, name.as_ptr()))?;
        Ok(Function { handle: function, module })
    }

    /// Lets blocks of a kernel ask for as many bytes of shared memory.
    pub(super) fn allow_shared(&self, function: &Function, bytes: u32) -> Result<(), DriverError> {
        self.enter()?;
        let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        call!(cuFuncSetAttribute(function.handle, most, bytes as c_int))
    }

    /// Enqueues a run of `grid` blocks of `threads` with bytes of dynamic shared memory. The arguments are what the kernel's declaration says.
    pub(super) fn launch(
        &self,
        function: &Function,
        [x, y, z]: [u32; 3],
        (threads, shared): (u32, u32),
        arguments: &mut [*mut c_void],
    ) -> Result<(), DriverError> {
        self.enter()?;
        let arguments = arguments.as_mut_ptr();
        let function = function.handle;
        let stream = self.stream;
        call!(cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, stream, arguments, std::ptr::null_mut()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // failures have no one to hear them
        let _ = self.enter();
        let _ = call!(cuStreamDestroy_v2(self.stream));
        let _ = call!(cuDevicePrimaryCtxRelease_v2(self.device));
    }
}

/// A matrix of bf16 as the copy engine sees it, in boxes of 64 × 64 that shared memory holds swizzled.
#[repr(align(64))]
pub(super) struct TensorMap(#[expect(dead_code, reason = "kernels read it")] CUtensorMap);

impl TensorMap {
    pub(super) fn of_bf16(address: CUdeviceptr, [rows, width]: [usize; 2]) -> Result<Self, DriverError> {
        let mut map = CUtensorMap { opaque: [0; 16] };
        let (sizes, stride) = ([width as u64, rows as u64], 2 * width as u64);
        let (side, steps) = ([64, 64], [1, 1]);
        call!(cuTensorMapEncodeTiled(
            &mut map,
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            address as *mut c_void,
            sizes.as_ptr(),
            &stride,
            side.as_ptr(),
            steps.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ))?;
        Ok(TensorMap(map))
    }
}

/// A kernel in the context. It is never unloaded before the context.
#[derive(Debug)]
pub(super) struct Function {
    handle: CUfunction,
    #[expect(dead_code, reason = "the module that holds the function")]
    module: CUmodule,
}

// SAFETY: handles of the driver, which any thread may use.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}
