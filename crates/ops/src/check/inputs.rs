//! The inputs of a case, made from the contract: the same values as tensors of a device and as arrays of f64.

use crate::op::{Array, Case, Fill, Given, Op, Options};
use alluvium_core::contract::Arg;
use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Dims, Error, Result, Shape, Tape, Tensor};
use half::{bf16, f16};

/// The tokens of a chunk of the gated delta rule, for the fills that are made per chunk.
const CHUNK: usize = 64;

/// The arguments of a case, as tensors and as arrays.
#[derive(Debug)]
pub struct Inputs {
    /// On the device.
    pub tensors: Given<Tensor>,
    /// The same values, after rounding to the storage, in f64.
    pub arrays: Given<Array>,
    name: String,
    dtype: DType,
    device: Device,
}

impl Inputs {
    /// Inputs for a case; the values depend on the operation's and the case's name only.
    ///
    /// # Errors
    /// When the device is out of memory or the case's sizes do not fit a shape.
    pub fn new(op: &Op, case: &Case, dtype: DType, device: &Device) -> Result<Self> {
        let dims = Dims::of(case.sizes);
        let name = format!("{} {}", op.name(), case.name);
        let (mut tensors, mut arrays) = (Vec::new(), Vec::new());
        for arg in op.contract.args {
            if case.without.contains(&arg.name()) {
                tensors.push((arg.name(), None));
                arrays.push((arg.name(), None));
                continue;
            }
            let shape = dims.shape(arg.shape())?;
            let named = |fills: &[(&str, Fill)]| fills.iter().find(|(n, _)| *n == arg.name()).map(|&(_, fill)| fill);
            let fill = named(case.fills).or_else(|| named(op.fills)).unwrap_or(Fill::Normal(1.0));
            let data = values_for(fill, shape, &dims, &mut Rng::new(1, &format!("{name} {}", arg.name())));
            let stored = case.stored.iter().find(|(n, _)| *n == arg.name()).map_or(storage(arg, dtype), |&(_, d)| d);
            let tensor = store(&data, shape, stored, device)?;
            arrays.push((arg.name(), Some(Array::new(shape.to_vec(), values(&tensor)?))));
            tensors.push((arg.name(), Some(tensor)));
        }
        Ok(Inputs {
            tensors: Given { args: tensors, dims: dims.clone(), options: Options::new(case.options) },
            arrays: Given { args: arrays, dims, options: Options::new(case.options) },
            name,
            dtype,
            device: device.clone(),
        })
    }

    /// The tensors, with those of a floating dtype traced, or `only` one of them.
    pub fn watched(&self, tape: &Tape, only: Option<&str>) -> Given<Tensor> {
        let watch = |name: &str, x: &Tensor| {
            let wanted = x.dtype().is_float() && only.is_none_or(|only| only == name);
            if wanted { tape.watch(x) } else { x.clone() }
        };
        let each = |(name, x): &(&'static str, Option<Tensor>)| (*name, x.as_ref().map(|x| watch(name, x)));
        let args = self.tensors.args.iter().map(each).collect();
        Given { args, dims: self.tensors.dims.clone(), options: self.tensors.options.clone() }
    }

    /// Copies of the tensors.
    pub(super) fn copied(&self) -> Result<Given<Tensor>> {
        let copy = |x: &Tensor| Tensor::from_bytes(&x.to_bytes()?, x.shape(), x.dtype(), &self.device);
        let each = |(name, x): &(&'static str, Option<Tensor>)| Ok((*name, x.as_ref().map(copy).transpose()?));
        let args = self.tensors.args.iter().map(each).collect::<Result<_>>()?;
        Ok(Given { args, dims: self.tensors.dims.clone(), options: self.tensors.options.clone() })
    }

    /// Random gradients for the results, rounded to the storage that is checked.
    pub(super) fn seeds(&self, results: &[Array]) -> Result<Vec<Tensor>> {
        let seed = |(i, y): (usize, &Array)| {
            let mut rng = Rng::new(2, &format!("{} result {i}", self.name));
            let data: Vec<f64> = y.data.iter().map(|_| rng.normal()).collect();
            store(&data, Shape::new(&y.shape)?, self.dtype, &self.device)
        };
        results.iter().enumerate().map(seed).collect()
    }

    /// A seed in the dtype of the result it belongs to.
    pub(super) fn like(&self, seed: &Tensor, result: &Tensor) -> Result<Tensor> {
        store(&values(seed)?, seed.shape(), result.dtype(), &self.device)
    }
}

/// The dtype an argument is stored in: the one asked for, where the contract takes it.
fn storage(arg: &Arg, dtype: DType) -> DType {
    match arg.dtypes() {
        [] => dtype,
        dtypes if dtypes.contains(&dtype) => dtype,
        dtypes => dtypes[0],
    }
}

fn values_for(fill: Fill, shape: Shape, dims: &Dims, rng: &mut Rng) -> Vec<f64> {
    let (n, width) = (shape.elements(), shape.last());
    match fill {
        Fill::Normal(std) => (0..n).map(|_| std * rng.normal()).collect(),
        Fill::Uniform(low, high) => (0..n).map(|_| rng.between(low, high)).collect(),
        Fill::UnitRows => {
            let mut data: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
            for row in data.chunks_mut(width) {
                let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                row.iter_mut().for_each(|x| *x /= norm);
            }
            data
        }
        Fill::Whole(low, high) => {
            let count = u64::from(high) - u64::from(low) + 1;
            (0..n).map(|_| f64::from(low) + rng.below(count as usize) as f64).collect()
        }
        Fill::Bytes(low, high) => {
            let mut byte = || u32::from(low) + rng.below(usize::from(high - low) + 1) as u32;
            (0..n).map(|_| f64::from((0..4).fold(0, |word, _| word << 8 | byte()))).collect()
        }
        Fill::Ids(letter) => (0..n).map(|_| rng.below(dims[letter]) as f64).collect(),
        Fill::Offsets(letter) => {
            let mut cuts: Vec<usize> = (1..dims[letter]).collect();
            rng.shuffle(&mut cuts);
            cuts.truncate(n.saturating_sub(2));
            cuts.extend([0, dims[letter]]);
            cuts.sort_unstable();
            cuts.into_iter().map(|x| x as f64).collect()
        }
        Fill::StrictLower(std) => lower(shape, |row, column| if column < row { std * rng.normal() } else { 0.0 }),
        Fill::UnitLower(std) => lower(shape, |row, column| match column {
            c if c < row => std * rng.normal(),
            c if c == row => 1.0,
            _ => 0.0,
        }),
        Fill::ChunkSums(low, high) => {
            let mut data: Vec<f64> = (0..n).map(|_| rng.between(low, high)).collect();
            let (tokens, inner) = (shape[1], shape[2..].iter().product::<usize>());
            for i in inner..n {
                if (i / inner) % tokens % CHUNK != 0 {
                    data[i] += data[i - inner];
                }
            }
            data
        }
    }
}

/// `[B, T, G, C]`: the row of a chunk's matrix is the token's place in its chunk.
fn lower(shape: Shape, mut at: impl FnMut(usize, usize) -> f64) -> Vec<f64> {
    let (tokens, heads, width) = (shape[1], shape[2], shape[3]);
    let element = |i: usize| at((i / width / heads) % tokens % width, i % width);
    (0..shape.elements()).map(element).collect()
}

fn store(data: &[f64], shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
    match dtype {
        DType::F32 => Tensor::from_slice(&data.iter().map(|&x| x as f32).collect::<Vec<_>>(), shape, device),
        DType::F16 => Tensor::from_slice(&data.iter().map(|&x| f16::from_f64(x)).collect::<Vec<_>>(), shape, device),
        DType::BF16 => Tensor::from_slice(&data.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>(), shape, device),
        DType::U32 => Tensor::from_slice(&data.iter().map(|&x| x as u32).collect::<Vec<_>>(), shape, device),
        DType::U8 => Tensor::from_slice(&data.iter().map(|&x| x as u8).collect::<Vec<_>>(), shape, device),
    }
}

/// The elements in f64, whatever they are stored as.
pub(super) fn values(x: &Tensor) -> Result<Vec<f64>> {
    match x.dtype() {
        DType::U32 => Ok(x.to_vec::<u32>()?.into_iter().map(f64::from).collect()),
        DType::U8 => Ok(x.to_vec::<u8>()?.into_iter().map(f64::from).collect()),
        dtype if dtype.is_float() => Ok(x.to_floats()?.into_iter().map(f64::from).collect()),
        dtype => Err(Error::value("check", format!("{dtype} cannot be read as floats"))),
    }
}
