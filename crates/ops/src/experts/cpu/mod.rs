//! Products of rows with the weights of their experts on the CPU.

mod product;

pub(crate) use product::{back, forward, sorted_rows};

use crate::common::ids::below;
use alluvium_core::{Dims, Kind, Result, Shape, Tensor};
use std::ops::Range;

/// The choices of all tokens, sorted by expert.
#[derive(Debug)]
pub(crate) struct Choices {
    /// Token `n`'s choice `k` is number `n · per_token + k`; those of the same expert stay in order.
    order: Vec<usize>,
    /// Each expert that was chosen, and its part of `order`.
    jobs: Vec<(usize, Range<usize>)>,
    /// Choices that share a row of `x`: those of a token, or 1 where each has its own.
    shared: usize,
}

impl Choices {
    /// The choices that `experts` holds; the sizes say whether `x` has a row for each token or for each choice.
    ///
    /// # Errors
    /// When an expert is not there.
    pub(crate) fn new(op: &'static str, experts: &Tensor, dims: &Dims) -> Result<Self> {
        let ids = below(op, "experts", experts, ('E', dims['E']))?;
        let mut starts = vec![0; dims['E'] + 1];
        ids.iter().for_each(|&id| starts[id as usize + 1] += 1);
        for i in 0..dims['E'] {
            starts[i + 1] += starts[i];
        }
        let parts = starts.windows(2).map(|part| part[0]..part[1]).enumerate();
        let jobs = parts.filter(|(_, part)| !part.is_empty()).collect();
        let mut order = vec![0; ids.len()];
        for (choice, &id) in ids.iter().enumerate() {
            order[starts[id as usize]] = choice;
            starts[id as usize] += 1;
        }
        Ok(Choices { order, jobs, shared: if dims['R'] == dims['N'] { dims['K'] } else { 1 } })
    }

    /// The row of `x` of a place in the order.
    fn row(&self, place: usize) -> usize {
        self.order[place] / self.shared
    }

    /// Each expert that was chosen, and its places in the order.
    pub(crate) fn jobs(&self) -> &[(usize, Range<usize>)] {
        &self.jobs
    }
}

/// Errs unless `x` has a row for each token or a row for each choice.
pub(crate) fn check_rows(op: &'static str, x: Shape, dims: &Dims) -> Result<()> {
    let (rows, tokens, choices) = (dims['R'], dims['N'], dims['N'] * dims['K']);
    if rows == tokens || rows == choices {
        return Ok(());
    }
    let want = format!("{tokens} rows, one a token, or {choices}, one a choice, as `experts` has");
    Err(Kind::Shape { op, arg: "x", got: x, want }.into())
}
