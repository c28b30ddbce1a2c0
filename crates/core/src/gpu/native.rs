//! Kernels in CUDA C++, for what WGSL cannot say: matrix units of Hopper, its copy engine, clusters.
//!
//! An operation with such a kernel asks [`Gpu::is_hopper`] and has its portable kernels for every other GPU.

use super::{Gpu, failed};
use crate::{DType, Result, Tensor};

/// A kernel as CUDA C++ without includes. The launch defines its constants.
#[derive(Debug)]
pub struct CudaKernel {
    /// The name of its `extern "C" __global__` function, which errors use.
    pub name: &'static str,
    /// The text, in pieces that kernels share.
    pub text: &'static [&'static str],
}

impl CudaKernel {
    /// A kernel.
    ///
    /// # Safety
    /// Every launch of this kernel that its crate makes gives it the arguments that its declaration names, and it reads
    /// and writes inside them.
    pub const unsafe fn new(name: &'static str, text: &'static [&'static str]) -> Self {
        CudaKernel { name, text }
    }

    /// The whole text of a variant, as the compiler gets it.
    pub fn source(&self, constants: &[(&'static str, u32)]) -> String {
        let constants = constants.iter().map(|(name, value)| format!("#define {name} {value}\n"));
        constants.chain(self.text.iter().map(|part| (*part).to_owned())).collect()
    }
}

/// One run of a kernel.
#[derive(Debug)]
pub struct CudaLaunch<'a> {
    /// The kernel.
    pub kernel: &'static CudaKernel,
    /// What its text is compiled with: `("STAGES", 3)` defines `STAGES`.
    pub constants: &'a [(&'static str, u32)],
    /// Its arguments.
    pub arguments: &'a [CudaArgument<'a>],
    /// Blocks along x and y.
    pub grid: [usize; 2],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory that a block asks for.
    pub shared: u32,
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum CudaArgument<'a> {
    /// A pointer to a tensor that is only read; it starts at a multiple of 16 bytes.
    Read(&'a Tensor),
    /// A pointer to a tensor that is written.
    Write(&'a Tensor),
    /// A null pointer.
    Null,
    /// A matrix of bf16 with rows of this many elements as the copy engine sees it, in boxes of 64 × 64: only read.
    ReadBoxes(&'a Tensor, usize),
    /// The same, written.
    WriteBoxes(&'a Tensor, usize),
    /// A struct by value.
    Params(&'a [u8]),
}

impl<'a> CudaArgument<'a> {
    /// The tensor, and whether it is written.
    pub(super) fn tensor(&self) -> Option<(&'a Tensor, bool)> {
        match *self {
            CudaArgument::Read(x) | CudaArgument::ReadBoxes(x, _) => Some((x, false)),
            CudaArgument::Write(x) | CudaArgument::WriteBoxes(x, _) => Some((x, true)),
            CudaArgument::Null | CudaArgument::Params(_) => None,
        }
    }
}

impl Gpu {
    /// Whether kernels in CUDA C++ run here: on NVIDIA's GPUs from A100 on, through CUDA.
    pub fn runs_cuda_kernels(&self) -> bool {
        self.cuda_shared_memory() > 0
    }

    /// The most bytes of shared memory that a block of a CUDA kernel may ask for; 0 where such kernels do not run.
    pub fn cuda_shared_memory(&self) -> usize {
        self.engine().cuda_shared_memory()
    }

    /// Whether kernels for Hopper (compute capability 9.0) run here.
    pub fn is_hopper(&self) -> bool {
        self.engine().is_hopper()
    }

    /// Enqueues a run of a CUDA kernel.
    ///
    /// # Errors
    /// When a tensor is of another device or starts where the kernel cannot read it, the compiler refuses the kernel, or
    /// the device was lost.
    pub fn launch_cuda(&self, launch: &CudaLaunch<'_>) -> Result<()> {
        self.check_alive()?;
        let refused = |why: String| failed(self.name(), format!("{} {why}", launch.kernel.name));
        let [x, y] = launch.grid;
        if x > i32::MAX as usize || y > u16::MAX as usize {
            return Err(refused(format!("has {x} × {y} blocks, at most 2147483647 × 65535; use smaller sizes")));
        }
        if launch.shared as usize > self.cuda_shared_memory() {
            let most = self.cuda_shared_memory();
            return Err(refused(format!("asks for {} bytes of shared memory, at most {most}", launch.shared)));
        }
        for argument in launch.arguments {
            let Some((tensor, is_written)) = argument.tensor() else { continue };
            self.check_own(launch.kernel.name, tensor)?;
            if !tensor.offset().is_multiple_of(16) {
                return Err(refused(format!("reads {tensor:?}, which starts at no multiple of 16 bytes; use a copy")));
            }
            if let CudaArgument::ReadBoxes(_, width) | CudaArgument::WriteBoxes(_, width) = *argument
                && (tensor.dtype() != DType::BF16 || width % 8 != 0 || !tensor.elements().is_multiple_of(width.max(1)))
            {
                return Err(refused(format!("takes rows of {width} bf16, a multiple of 8, got {tensor:?}")));
            }
            if is_written {
                tensor.gpu_bytes()?.invalidate_mirror();
            }
        }
        self.0.launches.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.engine().launch_cuda(launch)
    }

    /// The tensor itself, or a copy that starts where the copy engine may read.
    ///
    /// # Errors
    /// When memory is used up.
    pub fn at_16_bytes(&self, x: &Tensor) -> Result<Tensor> {
        if x.offset().is_multiple_of(16) { Ok(x.detach()) } else { self.copied(x) }
    }
}
