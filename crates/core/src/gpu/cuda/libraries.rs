//! NVIDIA's libraries: loaded when a device is opened, never needed to build.
//!
//! `cudarc` panics where a library or one of its functions is missing, so both are asked for before anything is called.

use cudarc::{cublaslt, driver, nvrtc};
use std::sync::OnceLock;

/// The functions of the driver that this engine calls.
const DRIVER: &[&str] = &[
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuTensorMapEncodeTiled",
];

/// The functions of the compiler that this engine calls.
const COMPILER: &[&str] = &[
    "nvrtcCompileProgram",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBIN",
    "nvrtcGetCUBINSize",
    "nvrtcGetErrorString",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetPTX",
    "nvrtcGetPTXSize",
    "nvrtcGetProgramLog",
    "nvrtcGetProgramLogSize",
    "nvrtcGetSupportedArchs",
    "nvrtcVersion",
];

/// The functions of cuBLASLt that this engine calls.
const PRODUCTS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatrixLayoutSetAttribute",
];

/// A function that loads a library, once; `Err` in words where it is not there, or lacks a function.
macro_rules! library {
    ($(#[$doc:meta])* $name:ident, $sys:ident, $functions:expr, absent: $absent:expr, lacking: $lacking:expr) => {
        $(#[$doc])*
        pub(super) fn $name() -> Result<(), String> {
            static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
            let find = || {
                // SAFETY: loading the library runs its initializers, as every program that uses it does.
                if !unsafe { $sys::sys::is_culib_present() } {
                    return Err($absent.to_owned());
                }
                // SAFETY: the library is there.
                let library = unsafe { $sys::sys::culib() };
                // SAFETY: the functions are looked up, not called.
                let is_there = |name: &str| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_ok();
                match $functions.iter().find(|name| !is_there(name)) {
                    Some(name) => Err(format!($lacking, name)),
                    None => Ok(()),
                }
            };
            FOUND.get_or_init(find).clone()
        }
    };
}

library! {
    /// Loads the driver.
    driver, driver, DRIVER,
    absent: "NVIDIA's driver (libcuda) was not found; install it, or use --device auto or cpu",
    lacking: "NVIDIA's driver lacks {}; install a driver of CUDA 12 or later"
}

library! {
    /// Loads the compiler of kernels.
    compiler, nvrtc, COMPILER,
    absent: "NVIDIA's compiler of kernels (libnvrtc) was not found; install the CUDA toolkit 12 or 13, or Python's \
        nvidia-cuda-nvrtc with its folder in LD_LIBRARY_PATH",
    lacking: "NVIDIA's libnvrtc lacks {}; install that of CUDA 12 or 13"
}

library! {
    /// Loads cuBLASLt.
    products, cublaslt, PRODUCTS,
    absent: "NVIDIA's libcublasLt was not found",
    lacking: "NVIDIA's libcublasLt lacks {}"
}
