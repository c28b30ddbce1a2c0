//! The entry of an operation in the list: contract, cases, reference, tolerances, cost.

use alluvium_core::{Contract, DType, Dims, Error, Result, Tensor};
use std::ops::Index;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The entry of an operation: everything that the proof, the tests, the benchmark and the documentation read.
#[derive(Debug)]
pub struct Op {
    /// Its arguments.
    pub contract: &'static Contract,
    /// A short description.
    pub summary: &'static str,
    /// The names of its results, in order.
    pub results: &'static [&'static str],
    /// Runs it on the arguments of a case. An argument that the operation overwrites is moved out of them.
    pub run: fn(&mut Given<Tensor>) -> Result<Vec<Tensor>>,
    /// The definition, in f64.
    pub reference: fn(&Given<Array>) -> Vec<Array>,
    /// Its gradient.
    pub gradient: Gradient,
    /// The tolerance of results and gradients.
    pub tolerance: Tolerance,
    /// The random values of arguments, by name; the others are standard normal. A case may replace them.
    pub fills: &'static [(&'static str, Fill)],
    /// The behavior of launches for a tensor that is larger than a binding.
    pub oversize: Oversize,
    /// The cases of the proof: the odd ones, each with the reason it is there.
    pub cases: &'static [Case],
    /// Letters that random shapes do not change.
    pub fixed: &'static [char],
    /// The largest size that random shapes give to a letter.
    pub largest: usize,
    /// The cases of the benchmark.
    pub bench: &'static [Case],
    /// The bytes and operations that one call needs at least.
    pub cost: fn(&Dims) -> Cost,
}

/// The gradient of an operation's reference.
#[derive(Clone, Copy, Debug)]
pub enum Gradient {
    /// Gradients to the arguments, in the contract's order, from the gradients of the results; none for an argument
    /// that has no gradient (ids, offsets) or was left out.
    Of(fn(&Given<Array>, &[Array]) -> Vec<Option<Array>>),
    /// There is none; the text says why.
    None(&'static str),
}

/// The tolerance of a tensor, relative to the size of its reference. docs/numerics.md gives the reasons.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Bound on ‖got − want‖ / ‖want‖.
    pub relative: f64,
    /// Bound on the largest |got − want| over the reference's root mean square.
    pub worst: f64,
    /// What is added to `relative`, and eight times to `worst`, where NVIDIA's matrix units multiply intermediate results
    /// that are rounded to bf16.
    pub matrix_units: f64,
}

impl Tolerance {
    /// A few roundings of f32 in each element: maps, short sums.
    pub const F32: Self = Tolerance { relative: 1e-6, worst: 1e-5, matrix_units: 0.0 };
    /// Sums of hundreds to thousands of f32 products, or an exponential of such a sum.
    pub const F32_SUMS: Self = Tolerance { relative: 5e-6, worst: 5e-5, matrix_units: 0.0 };
    /// The same; on matrix units, intermediate results are rounded to bf16 before they are multiplied.
    pub const MATRIX_UNITS: Self = Tolerance { matrix_units: 1.0 / 128.0, ..Self::F32_SUMS };
    /// Bound on |got − want| / |want| of a single element, for the results and gradients that a case lists in `each`.
    /// The terms of a random element may cancel by chance; `tests/gate_gradient.rs` bounds the others by 1e-4.
    pub const EACH: f64 = 5e-4;
    /// Nothing is computed: elements are moved.
    pub const EXACT: Self = Tolerance { relative: 0.0, worst: 0.0, matrix_units: 0.0 };
}

/// The least work of one call in f32.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Bytes a forward has to read and write.
    pub bytes: usize,
    /// Useful floating-point operations of a forward.
    pub flops: usize,
    /// Bytes a backward has to read and write, the forward not counted; 0 where there is none.
    pub backward_bytes: usize,
    /// Useful floating-point operations of a backward.
    pub backward_flops: usize,
}

/// The random values that an argument gets in the proof.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Normal values of this standard deviation.
    Normal(f64),
    /// Uniform values between the two.
    Uniform(f64, f64),
    /// Rows (last axis) of unit length.
    UnitRows,
    /// Integers below the length of the axis with this letter.
    Ids(char),
    /// Integers from the first to the second, inclusive.
    Whole(u32, u32),
    /// u32 whose four bytes are from the first to the second, inclusive.
    Bytes(u8, u8),
    /// Rising offsets from 0 to the length of the axis with this letter: packed sequences.
    Offsets(char),
    /// Rows of `C` elements, row `i` non-zero only left of column `i mod C`: a strictly lower triangular matrix per
    /// chunk.
    StrictLower(f64),
    /// Like [`Fill::StrictLower`] with ones on the diagonal.
    UnitLower(f64),
    /// Running sums, along axis 1 and from zero at each multiple of the chunk of 64, of uniform values between the two.
    ChunkSums(f64, f64),
}

/// The behavior of GPU launches for a tensor that is larger than a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oversize {
    /// It is an error that names the limit.
    Refused,
    /// The launch is cut between elements.
    CutElements,
    /// The launch is cut between rows, and a binding must hold the smaller arguments.
    CutRows,
}

/// One set of sizes and options that an operation is tested or timed on.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The reason for the case.
    pub name: &'static str,
    /// The contract's letters.
    pub sizes: &'static [(char, usize)],
    /// Optional arguments that are left out; the others are given.
    pub without: &'static [&'static str],
    /// Other random values than [`Op::fills`] gives.
    pub fills: &'static [(&'static str, Fill)],
    /// Arguments whose dtype the case sets, for every storage that is checked.
    pub stored: &'static [(&'static str, DType)],
    /// Options by name; a flag is 1 or absent.
    pub options: &'static [(&'static str, f64)],
    /// Results and gradients (`"d g"`) that are truly zero here; everywhere else a result of zeros must fail.
    pub zeros: &'static [&'static str],
    /// Results and gradients (`"d g"`) of which every element must be within [`Tolerance::EACH`] of itself.
    pub each: &'static [&'static str],
}

impl Case {
    /// All arguments, no options.
    pub const fn new(name: &'static str, sizes: &'static [(char, usize)]) -> Self {
        Case { name, sizes, without: &[], fills: &[], stored: &[], options: &[], zeros: &[], each: &[] }
    }

    /// Without these optional arguments.
    pub const fn without(self, without: &'static [&'static str]) -> Self {
        Case { without, ..self }
    }

    /// With other random values of these arguments.
    pub const fn filled(self, fills: &'static [(&'static str, Fill)]) -> Self {
        Case { fills, ..self }
    }

    /// With these arguments stored in these dtypes.
    pub const fn stored(self, stored: &'static [(&'static str, DType)]) -> Self {
        Case { stored, ..self }
    }

    /// With these options.
    pub const fn options(self, options: &'static [(&'static str, f64)]) -> Self {
        Case { options, ..self }
    }

    /// Where every element of these results and gradients is compared relative to itself.
    pub const fn each(self, each: &'static [&'static str]) -> Self {
        Case { each, ..self }
    }

    /// Where these results and gradients are truly zero.
    pub const fn zeros(self, zeros: &'static [&'static str]) -> Self {
        Case { zeros, ..self }
    }
}

/// The arguments of a case, by name: tensors for a kernel, arrays of f64 for a reference.
#[derive(Clone, Debug)]
pub struct Given<T> {
    /// The arguments in the contract's order; none for one that was left out.
    pub args: Vec<(&'static str, Option<T>)>,
    /// The sizes.
    pub dims: Dims,
    /// The options.
    pub options: Options,
}

/// The options of a case. Clones share the record of which were read, so that the proof can refuse a misspelt one.
#[derive(Clone, Debug)]
pub struct Options {
    values: &'static [(&'static str, f64)],
    /// Bit `i` is set once option `i` was read.
    read: Arc<AtomicU64>,
}

impl Options {
    /// The options of a case, none of them read.
    pub fn new(values: &'static [(&'static str, f64)]) -> Self {
        Options { values, read: Arc::default() }
    }

    /// The value of an option; `None` if the case does not set it.
    pub fn get(&self, name: &str) -> Option<f64> {
        let index = self.values.iter().position(|(n, _)| *n == name)?;
        self.read.fetch_or(1 << index, Ordering::Relaxed);
        Some(self.values[index].1)
    }

    /// The names of the options that were not read.
    pub fn unread(&self) -> impl Iterator<Item = &'static str> + use<> {
        let read = self.read.load(Ordering::Relaxed);
        self.values.iter().enumerate().filter(move |(i, _)| read >> i & 1 == 0).map(|(_, (name, _))| *name)
    }
}

impl<T> Given<T> {
    /// An argument that may be left out.
    pub fn get(&self, name: &str) -> Option<&T> {
        self.args.iter().find(|(n, _)| *n == name).and_then(|(_, value)| value.as_ref())
    }

    /// The value of an option; `None` if the case does not set it.
    pub fn option(&self, name: &str) -> Option<f64> {
        self.options.get(name)
    }

    /// Whether a flag is set.
    pub fn flag(&self, name: &str) -> bool {
        self.option(name).is_some_and(|value| value != 0.0)
    }
}

impl Given<Tensor> {
    /// Moves an argument out, so that an operation can overwrite it in place.
    ///
    /// # Errors
    /// When it was left out or taken before.
    pub fn take(&mut self, name: &'static str) -> Result<Tensor> {
        let slot = self.args.iter_mut().find(|(n, _)| *n == name).and_then(|(_, value)| value.take());
        slot.ok_or_else(|| Error::value(name, "the entry takes an argument that is not there"))
    }
}

/// A required argument. The contract has been checked before, so it is there.
impl<T> Index<&str> for Given<T> {
    type Output = T;
    #[allow(clippy::panic)]
    fn index(&self, name: &str) -> &T {
        match self.get(name) {
            Some(value) => value,
            None => panic!("the entry reads `{name}`, which its contract does not require"),
        }
    }
}

/// An array of f64, for references.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// The lengths of the axes.
    pub shape: Vec<usize>,
    /// The elements, row-major. Ids and offsets are integers.
    pub data: Vec<f64>,
}

impl Array {
    /// An array of these elements.
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f64>) -> Self {
        let shape = shape.into();
        debug_assert_eq!(shape.iter().product::<usize>(), data.len(), "{shape:?}");
        Array { shape, data }
    }

    /// Zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let data = vec![0.0; shape.iter().product()];
        Array { shape, data }
    }

    /// The same shape, each element mapped.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Array { shape: self.shape.clone(), data: self.data.iter().map(|&x| f(x)).collect() }
    }

    /// The same shape, elements of two arrays combined.
    pub fn zip(&self, other: &Array, f: impl Fn(f64, f64) -> f64) -> Self {
        let data = self.data.iter().zip(&other.data).map(|(&a, &b)| f(a, b)).collect();
        Array { shape: self.shape.clone(), data }
    }

    /// The length of the last axis.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The rows along the last axis.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, f64> {
        self.data.chunks_exact(self.width())
    }

    /// The element as an index.
    pub fn index(&self, i: usize) -> usize {
        self.data[i] as usize
    }
}

impl Op {
    /// The fields that most entries leave as they are: `..Op::BASE`. An entry sets at least the contract, the summary,
    /// `run`, `reference`, `cases` and `bench`.
    pub const BASE: Op = Op {
        contract: &Contract { op: "", args: &[], rules: &[] },
        summary: "",
        results: &["y"],
        run: |_| Ok(Vec::new()),
        reference: |_| Vec::new(),
        gradient: Gradient::None("it has none"),
        tolerance: Tolerance::F32,
        fills: &[],
        oversize: Oversize::Refused,
        cases: &[],
        fixed: &[],
        largest: 70,
        bench: &[],
        cost: |_| Cost { bytes: 0, flops: 0, backward_bytes: 0, backward_flops: 0 },
    };

    /// The name of the public function.
    pub fn name(&self) -> &'static str {
        self.contract.op
    }

    /// Whether it has a gradient.
    pub fn differentiable(&self) -> bool {
        matches!(self.gradient, Gradient::Of(_))
    }
}
