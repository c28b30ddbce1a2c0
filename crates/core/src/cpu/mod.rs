//! The CPU: threads, SIMD kernels, pooled memory and matrix products.

mod chunk;
mod floats;
mod gemm;
mod memory;
pub mod simd;
mod spin;
mod stream;

pub use floats::Floats;
pub(crate) use floats::{narrow, widen};
pub use gemm::{GeneratedMatrix, MatRef, MatrixSource, Rhs, gemm};
pub(crate) use memory::Bytes;
pub use memory::{Buffer, Memory};
pub use simd::Isa;
pub use stream::{NonTemporalWriter, Prefetch, StoreHint, prefetch};

use crate::{Element, Error, Result};
use spin::Spinner;
use std::sync::{Arc, OnceLock};

/// The bits of activations in products with packed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationBits {
    /// As f32: 24 bits beside the largest of a group of the weights.
    #[default]
    All,
    /// In 8 bits beside the largest of 4 to 16 neighbors, in products of at most 32 rows with integer codes below 64 and
    /// with 4-bit floats. Other products take [`ActivationBits::All`].
    Eight,
}

/// A handle on the CPU: its threads, its instruction set and a memory pool.
#[derive(Clone)]
pub struct Cpu(Arc<Inner>);

struct Inner {
    threads: rayon::ThreadPool,
    spinner: Spinner,
    memory: Memory,
    isa: Isa,
    activation_bits: ActivationBits,
}

/// Two handles are equal when they share threads and memory.
impl PartialEq for Cpu {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} threads, {}", self.threads(), self.isa())
    }
}

/// The most threads that a handle starts.
const MAX_THREADS: usize = 4096;

/// Options for opening a [`Cpu`] that is not the shared one.
#[derive(Debug, Default)]
pub struct Builder {
    threads: usize,
    limit: Option<usize>,
    poison: bool,
    isa: Option<Isa>,
    activation_bits: ActivationBits,
    /// Whether the caller's thread is the pool, which then starts none.
    current_thread: bool,
}

impl Builder {
    /// This many threads; 0 is one per core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// At most this many bytes of memory.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Fills memory with NaN before it is handed out and after it is dropped, so that tests find elements that were
    /// never written.
    pub fn poison(mut self) -> Self {
        self.poison = true;
        self
    }

    /// At most this instruction set.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// How exactly products with packed weights read their activations.
    pub fn activation_bits(mut self, bits: ActivationBits) -> Self {
        self.activation_bits = bits;
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// When there are too many threads, or the system refuses one.
    pub fn open(self) -> Result<Cpu> {
        if self.threads > MAX_THREADS {
            let why = format!("{} threads were asked for, expected at most {MAX_THREADS}", self.threads);
            return Err(Error::value("cpu", why));
        }
        let isa = self.isa.unwrap_or_else(Isa::best);
        let mut threads = rayon::ThreadPoolBuilder::new().num_threads(self.threads);
        if self.current_thread {
            threads = threads.use_current_thread();
        }
        let threads = threads
            .thread_name(|i| format!("alluvium-{i}"))
            .build()
            .map_err(|e| Error::value("cpu", format!("cannot start threads: {e}")))?;
        Ok(Cpu(Arc::new(Inner {
            threads,
            spinner: Spinner::default(),
            memory: Memory::new(self.limit, self.poison),
            isa,
            activation_bits: self.activation_bits,
        })))
    }
}

static SHARED: OnceLock<Cpu> = OnceLock::new();

impl Cpu {
    /// Makes this handle the one that [`Cpu::shared`] returns.
    ///
    /// # Errors
    /// When the shared handle is in use already.
    pub fn share(self) -> Result<()> {
        let used =
            |_| Error::value("cpu", "the shared handle is in use already; share another one before its first use");
        SHARED.set(self).map_err(used)
    }

    /// The handle that the whole process shares: all cores, the best instruction set, no limit, unless
    /// [`Cpu::share`] replaced it.
    ///
    /// Where the system refuses to start threads, work runs on the calling thread.
    ///
    /// # Panics
    /// When no thread can be started and the caller is a worker of another pool.
    pub fn shared() -> Self {
        let open = || {
            let cpu = Cpu::builder().open().or_else(|_| Cpu::builder().threads(1).open());
            cpu.or_else(|_| Builder { current_thread: true, ..Cpu::builder().threads(1) }.open())
                .unwrap_or_else(|error| std::panic::resume_unwind(Box::new(error.to_string())))
        };
        SHARED.get_or_init(open).clone()
    }

    /// Options for another handle.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The memory pool.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// The instruction set that kernels run with.
    pub fn isa(&self) -> Isa {
        self.0.isa
    }

    /// How exactly products with packed weights read their activations.
    pub fn activation_bits(&self) -> ActivationBits {
        self.0.activation_bits
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.0.threads.current_num_threads()
    }

    /// Runs `work` on the pool, where rayon's parallel iterators use its threads. Cheap when already there.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.spinner.plain(&self.0.threads, work)
    }

    /// As [`Cpu::run`], for work of many short parallel parts: the other threads spin until it returns.
    pub(crate) fn run_spinning<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.0.spinner.run(&self.0.threads, work)
    }

    /// Runs `work` on every task: on all threads, or on the calling thread if there is one task only.
    pub fn each<T: Send>(&self, tasks: Vec<T>, work: impl Fn(T) + Sync) {
        use rayon::prelude::*;
        if tasks.len() > 1 {
            self.run(|| tasks.into_par_iter().for_each(&work));
        } else {
            tasks.into_iter().for_each(work);
        }
    }

    /// The rows of a task: at least about 32 thousand units of work, and at most what gives each thread four tasks.
    pub fn grain(&self, rows: usize, work_per_row: usize) -> usize {
        let worth = (32 * 1024usize).div_ceil(work_per_row.max(1));
        rows.div_ceil(4 * self.threads()).max(worth).min(rows).max(1)
    }

    /// Memory for `len` elements, with unspecified contents.
    ///
    /// # Errors
    /// When memory, or its limit, is used up.
    pub fn buffer<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        self.0.memory.allocate(len)
    }

    /// As [`Cpu::buffer`], not rounded up to a size class: for allocations that live as long as a model.
    pub(crate) fn exact_buffer<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        self.0.memory.allocate_exact(len)
    }

    /// Memory for `len` elements of zero.
    ///
    /// # Errors
    /// As [`Cpu::buffer`].
    pub fn zeros<T: Element>(&self, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.buffer(len)?;
        buffer.fill(T::zeroed());
        Ok(buffer)
    }
}

/// `sum += x`, on all threads.
pub(crate) fn add_assign(cpu: &Cpu, sum: &mut [f32], x: &[f32]) {
    use rayon::prelude::*;
    let grain = cpu.grain(sum.len(), 1);
    let isa = cpu.isa();
    cpu.run(|| sum.par_chunks_mut(grain).zip(x.par_chunks(grain)).for_each(|(sum, x)| gemm::axpy(isa, 1.0, x, sum)));
}
