//! Rows written into a cache in place.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{ANY, SAME};
use alluvium_core::{Arg, Contract, Device, Error, Result, Rule, Tensor, tape};

/// The contract of `write_rows`.
static CONTRACT: Contract = Contract {
    op: "write_rows",
    args: &[Arg::new("cache", "S R..", ANY), Arg::new("rows", "N R..", SAME)],
    rules: &[Rule::AtMostAxis('N', 'S')],
};

/// `cache` with its rows from `at` on replaced by `rows`: the step of a cache of keys and values.
///
/// | tensor  | shape   | dtype           | gradient                 |
/// |---------|---------|-----------------|--------------------------|
/// | `cache` | `S R..` | any             | no: it is written over   |
/// | `rows`  | `N R..` | that of `cache` | no                       |
/// | result  | `S R..` | that of `cache` |                          |
///
/// `cache` is handed over: it is written in its own memory if it is not shared, and copied otherwise.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when the
/// rows do not fit; `NoGradient` when a traced tensor comes.
pub fn write_rows(cache: Tensor, rows: &Tensor, at: usize) -> Result<Tensor> {
    tape::no_gradient(CONTRACT.op, NO_GRADIENT, [&cache, rows])?;
    let dims = CONTRACT.check(&[&cache, rows])?;
    let (have, add) = (dims['S'], dims['N']);
    if at.checked_add(add).is_none_or(|end| end > have) {
        return Err(Error::value(CONTRACT.op, format!("{add} rows from {at} on do not fit in {}", cache.shape())));
    }
    match rows.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, cache, rows, at),
        Device::Gpu(gpu) => gpu::forward(gpu, cache, rows, at),
    }
}

/// Why there is none.
const NO_GRADIENT: &str = "the memory that a gradient would need is written over; concat has one";

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Tape;

    #[test]
    fn a_cache_is_written_in_place_and_copied_if_it_is_shared() {
        let device = Device::cpu();
        let rows = Tensor::full([1, 2], 5.0, &device).unwrap();
        let cache = Tensor::full([3, 2], 1.0, &device).unwrap();
        let place = cache.slice::<f32>().unwrap().as_ptr();
        let cache = write_rows(cache, &rows, 1).unwrap();
        assert_eq!(cache.slice::<f32>().unwrap().as_ptr(), place);
        let next = write_rows(cache.clone(), &rows, 2).unwrap();
        assert_eq!(cache.to_vec::<f32>().unwrap(), [1.0, 1.0, 5.0, 5.0, 1.0, 1.0]);
        assert_eq!(next.to_vec::<f32>().unwrap(), [1.0, 1.0, 5.0, 5.0, 5.0, 5.0]);
    }

    #[test]
    fn rows_that_do_not_fit_and_traced_tensors_are_refused() {
        let device = Device::cpu();
        let (cache, rows) = (Tensor::full([3, 2], 1.0, &device).unwrap(), Tensor::full([2, 2], 5.0, &device).unwrap());
        for at in [2, usize::MAX] {
            let error = write_rows(cache.clone(), &rows, at).unwrap_err().to_string();
            assert_eq!(error, format!("write_rows: 2 rows from {at} on do not fit in [3, 2]"));
        }
        let tape = Tape::new();
        let error = write_rows(cache, &tape.watch(&rows), 0).unwrap_err().to_string();
        assert!(error.starts_with("write_rows: a traced tensor came"), "{error}");
    }
}
