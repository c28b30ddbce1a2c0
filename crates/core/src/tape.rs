//! The tape of eager autograd: a `Vec` of recorded operations that a reverse loop differentiates.
//!
//! An operation pushes one entry with its own [`Backward`]; there is no central `match` over operations. The loop pops
//! entries, so the tensors that an entry saved are freed as the loop passes it. [`recompute`] pushes an entry that runs
//! its part of the forward pass again when the loop reaches it, and so pushes that part's entries where the loop stands.
//!
//! A gradient has its tensor's dtype, or f32; that of a floating tensor that the tape watches is always f32, because its
//! sums over tokens and batches must not be rounded. [`Tensor::gradient_dtype`] tells operations which gradients to round.
//! Gradients of one tensor are added in f32. An operation takes the gradient of its result in the result's dtype.
//!
//! A backward pass consumes the tape: results that were recorded before it have no history any more, and using one of
//! them in a later recorded operation or backward pass is an error. Tensors from [`Tape::watch`] stay usable.

mod backward;
mod entry;
mod gradients;
#[cfg(test)]
mod tests;

use crate::{DType, Error, Kind, Result, Tensor};
pub use backward::{Backward, BackwardAll, BackwardMany};
use backward::{Fixed, Single, miscounted};
pub(crate) use entry::Node;
use entry::{Entry, GradientFn, Input, Output};
pub use gradients::{Gradients, accumulate};
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

/// Records the operations on the tensors it watches, until it is dropped. Cheap to clone: a handle.
///
/// One thread at a time runs [`Tape::backward`] or [`recompute`]; meanwhile operations of other threads on tensors of
/// the same tape are errors.
///
/// ```
/// use alluvium_core::{DType, Device, Tape, Tensor};
///
/// let tape = Tape::new();
/// let x = tape.watch(&Tensor::full([2, 3], 1.0, &Device::cpu())?);
/// let y = x.reshape([6])?;
/// let grads = tape.backward(&[(&y, &Tensor::full([6], 2.0, &Device::cpu())?)])?;
/// assert_eq!(grads.get(&x).unwrap().to_vec::<f32>()?, [2.0; 6]);
/// # Ok::<(), alluvium_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tape(Arc<Inner>);

type Inner = Mutex<State>;

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    /// Nodes that were made so far; their indices count up.
    nodes: usize,
    /// Results with a lower index lost their history to a backward pass.
    consumed: usize,
    /// The thread that runs a backward pass or the first pass of a recomputed part.
    owner: Option<ThreadId>,
    /// Whether operations of the owner are not recorded.
    paused: bool,
    /// Whether a backward pass runs.
    unwinding: bool,
}

/// Whether a tape watches this tensor itself.
fn is_leaf(x: &Tensor) -> bool {
    x.node().is_some_and(|node| node.leaf)
}

/// Whether a gradient of dtype `gradient` is one of a tensor of dtype `tensor`.
fn fits(gradient: DType, tensor: DType) -> bool {
    gradient == tensor || gradient == DType::F32 && tensor.is_float()
}

/// Records that `y` was computed from `inputs` if one of them is traced; `grad` is called only then.
///
/// Takes `[&Tensor; N]`, or `[Option<&Tensor>; N]` where inputs may be absent.
///
/// # Errors
/// When inputs belong to two tapes, or a backward pass consumed the history of one.
pub fn record<'a, const N: usize, A, G>(inputs: [A; N], y: Tensor, grad: impl FnOnce() -> G) -> Result<Tensor>
where
    A: Into<Option<&'a Tensor>>,
    G: Backward<N>,
{
    let [y] = record_many(inputs, [y], || Single(grad()))?;
    Ok(y)
}

/// As [`record`], for an operation with several results.
///
/// # Errors
/// As [`record`].
pub fn record_many<'a, const N: usize, const M: usize, A, G>(
    inputs: [A; N],
    results: [Tensor; M],
    grad: impl FnOnce() -> G,
) -> Result<[Tensor; M]>
where
    A: Into<Option<&'a Tensor>>,
    G: BackwardMany<N, M>,
{
    let inputs = inputs.map(Into::into);
    let Some(tape) = recording_tape(&inputs)? else { return Ok(results) };
    let results = push(&tape, &inputs, results.into(), Fixed::<G, N, M>(grad()));
    <[Tensor; M]>::try_from(results).map_err(|_| miscounted("record"))
}

/// As [`record_many`], where the numbers of inputs and results are known only at run time: concatenating, splitting.
///
/// # Errors
/// As [`record`].
pub fn record_all<G: BackwardAll>(
    inputs: &[Option<&Tensor>],
    results: Vec<Tensor>,
    grad: impl FnOnce() -> G,
) -> Result<Vec<Tensor>> {
    match recording_tape(inputs)? {
        Some(tape) => Ok(push(&tape, inputs, results, grad())),
        None => Ok(results),
    }
}

/// Pushes an entry; returns the results as nodes of the tape.
fn push<G: BackwardAll>(tape: &Tape, inputs: &[Option<&Tensor>], results: Vec<Tensor>, grad: G) -> Vec<Tensor> {
    let op = grad.op();
    let wide = grad.moves() && inputs.iter().flatten().filter_map(|x| x.node()).all(|node| node.wide);
    let gradient: GradientFn = Box::new(move |dy, need| grad.backward(dy, need));
    let inputs = inputs.iter().map(|x| x.and_then(|x| Input::of(tape, x))).collect();
    let mut state = tape.state();
    let first = state.nodes;
    state.nodes += results.len();
    let output = |(index, y): (usize, &Tensor)| Output { index, dtype: (!wide).then_some(y.dtype()) };
    let outputs = (first..).zip(&results).map(output).collect();
    state.entries.push(Entry::Op { op, inputs, outputs, gradient });
    let node = |index| Node { tape: Arc::downgrade(&tape.0), index, leaf: false, wide };
    results.into_iter().zip(first..).map(|(y, index)| y.with_node(node(index))).collect()
}

/// Errs if a traced tensor reached an operation that has no gradient.
///
/// # Errors
/// [`Kind::NoGradient`] with `op` and `why`.
pub fn no_gradient<'a, const N: usize, A: Into<Option<&'a Tensor>>>(
    op: &'static str,
    why: &'static str,
    inputs: [A; N],
) -> Result<()> {
    match recording_tape(&inputs.map(Into::into))? {
        Some(_) => Err(Kind::NoGradient { op, why }.into()),
        None => Ok(()),
    }
}

/// Runs `layer(x)` without saving what its operations need for their gradients; the backward pass runs it again.
///
/// The layer's own parameters may be traced, too. Where `x` is not traced the layer is simply run.
///
/// # Errors
/// Those of the layer, and those of [`record`].
pub fn recompute(x: &Tensor, layer: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static) -> Result<Tensor> {
    let Some(tape) = recording_tape(&[Some(x)])? else { return layer(x) };
    let y = {
        let _paused = tape.own(true);
        layer(x)?
    };
    let x = x.clone();
    let mut state = tape.state();
    let output = state.nodes;
    state.nodes += 1;
    state.entries.push(Entry::Recompute { output, forward: Box::new(move || layer(&x)) });
    // a new node even if the layer returns its input
    Ok(y.with_node(Node { tape: Arc::downgrade(&tape.0), index: output, leaf: false, wide: false }))
}

/// The one tape that these tensors are traced by, if it is recording.
fn recording_tape(inputs: &[Option<&Tensor>]) -> Result<Option<Tape>> {
    let mut found: Option<Tape> = None;
    for node in inputs.iter().flatten().filter_map(|x| x.node()) {
        let Some(tape) = node.tape.upgrade().map(Tape) else { continue };
        match &found {
            Some(other) if !Arc::ptr_eq(&other.0, &tape.0) => {
                return Err(Error::value("tape", "tensors of two tapes meet in one operation; detach() one of them"));
            }
            _ => found = Some(tape),
        }
    }
    let Some(tape) = found else { return Ok(None) };
    {
        let state = tape.state();
        if state.owner.is_some_and(|owner| owner != std::thread::current().id()) {
            let why = "another thread runs a backward pass or a recomputed layer on this tape; use one tape a thread";
            return Err(Error::value("tape", why));
        }
        if state.paused {
            return Ok(None);
        }
        for node in inputs.iter().flatten().filter_map(|x| x.node()) {
            node.check_history("tape", &state)?;
        }
    }
    Ok(Some(tape))
}

/// Gives the tape back as it was before [`Tape::own`].
struct Owned<'a> {
    tape: &'a Tape,
    before: (Option<ThreadId>, bool),
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        let mut state = self.tape.state();
        (state.owner, state.paused) = self.before;
    }
}

/// A backward pass; its end, even by a panic, leaves an empty tape whose results are consumed.
struct Unwinding<'a>(&'a Tape);

impl Drop for Unwinding<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let rest = std::mem::take(&mut state.entries);
        state.consumed = state.nodes;
        state.unwinding = false;
        drop(state);
        // outside the lock: entries own tensors
        drop(rest);
    }
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same tensor, traced from here on: a leaf, whose gradient [`Tape::backward`] returns.
    pub fn watch(&self, x: &Tensor) -> Tensor {
        let mut state = self.state();
        let index = state.nodes;
        state.nodes += 1;
        x.detach().with_node(Node { tape: Arc::downgrade(&self.0), index, leaf: true, wide: true })
    }

    /// The number of recorded operations.
    pub fn len(&self) -> usize {
        self.state().entries.len()
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Computes the gradients of all watched tensors, in f32, from the gradients `seeds` of these results.
    ///
    /// The pass consumes everything that is recorded, even if it fails: a second pass over the same results is an
    /// error. Pass all losses to one call.
    ///
    /// # Errors
    /// When a seed has another shape, dtype or device handle than its tensor, a tensor is not traced by this tape or
    /// its history is consumed, a backward pass of this tape is running, or an operation's gradient fails, is missing or
    /// does not fit its input.
    pub fn backward(&self, seeds: &[(&Tensor, &Tensor)]) -> Result<Gradients> {
        let mut grads = HashMap::new();
        for &(y, dy) in seeds {
            gradients::add(&mut grads, self.seed(y, dy)?, dy.detach(), is_leaf(y))?;
        }
        {
            let mut state = self.state();
            if std::mem::replace(&mut state.unwinding, true) {
                return Err(Error::value("backward", "a backward pass of this tape is running"));
            }
        }
        let _unwinding = Unwinding(self);
        let _paused = self.own(true);
        self.unwind(&mut grads)?;
        Ok(Gradients { grads, tape: Arc::downgrade(&self.0) })
    }

    /// The node of `y`, if `dy` fits it.
    fn seed(&self, y: &Tensor, dy: &Tensor) -> Result<usize> {
        let index = self.index(y).ok_or_else(|| Error::value("backward", "the tensor is not traced by this tape"))?;
        if let Some(node) = y.node() {
            node.check_history("backward", &self.state())?;
        }
        if y.shape() != dy.shape() || !fits(dy.dtype(), y.dtype()) {
            let (got, want) = (format!("{} {}", dy.shape(), dy.dtype()), format!("{} {}", y.shape(), y.dtype()));
            return Err(Error::value("backward", format!("the gradient is {got}, expected {want}")));
        }
        if y.device() != dy.device() {
            return Err(Kind::device("backward", ("tensor", y.device()), ("gradient", dy.device())).into());
        }
        Ok(index)
    }

    fn unwind(&self, grads: &mut HashMap<usize, Tensor>) -> Result<()> {
        // popped one by one: a recomputed part pushes its entries where the loop stands
        loop {
            let Some(entry) = self.state().entries.pop() else { return Ok(()) };
            match entry {
                Entry::Op { op, inputs, outputs, gradient } => {
                    let dy = outputs.iter().map(|y| y.take(grads)).collect::<Result<Vec<_>>>()?;
                    if dy.iter().all(Option::is_none) {
                        continue;
                    }
                    let complete = dy.iter().all(Option::is_some);
                    let need: Vec<bool> = inputs.iter().map(Option::is_some).collect();
                    let dx = gradient(dy, &need)?;
                    if dx.len() != inputs.len() {
                        let why = format!("it returned {} gradients for {} input(s)", dx.len(), inputs.len());
                        return Err(Error::value(op, why));
                    }
                    for (number, (input, dx)) in inputs.into_iter().zip(dx).enumerate() {
                        match (input, dx) {
                            (Some(input), Some(dx)) => {
                                input.check(op, number, &dx)?;
                                gradients::add(grads, input.index, dx.detach(), input.leaf)?;
                            }
                            (Some(_), None) if complete => {
                                return Err(Error::value(op, format!("it returned no gradient of input {number}")));
                            }
                            _ => {}
                        }
                    }
                }
                Entry::Recompute { output, forward } => {
                    let Some(dy) = grads.remove(&output) else { continue };
                    let y = {
                        let _recording = self.own(false);
                        forward()?
                    };
                    let index = self.index(&y).filter(|_| y.shape() == dy.shape() && fits(dy.dtype(), y.dtype()));
                    let why = "the layer's result is not traced, or has another shape or dtype than in the first run";
                    let index = index.ok_or_else(|| Error::value("recompute", why))?;
                    gradients::add(grads, index, dy, is_leaf(&y))?;
                }
            }
        }
    }

    /// Makes this thread the one whose operations the tape takes, recorded or not, until the guard is dropped.
    fn own(&self, paused: bool) -> Owned<'_> {
        let mut state = self.state();
        let before = (state.owner, state.paused);
        (state.owner, state.paused) = (Some(std::thread::current().id()), paused);
        Owned { tape: self, before }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // each change is a few assignments: a panic elsewhere leaves no half-made state
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self, x: &Tensor) -> Option<usize> {
        x.node().filter(|node| std::ptr::eq(node.tape.as_ptr(), Arc::as_ptr(&self.0))).map(|node| node.index)
    }
}

impl Tensor {
    /// The gradients of this tensor of one element to everything its tape watches.
    ///
    /// # Errors
    /// When it is not traced, has more or less than one element or no floating dtype, and as [`Tape::backward`].
    pub fn backward(&self) -> Result<Gradients> {
        let tape = self.node().and_then(|node| node.tape.upgrade()).map(Tape);
        let tape = tape.ok_or_else(|| Error::value("backward", "the tensor is not traced"))?;
        if self.elements() != 1 {
            let why = format!("{} is not one element; use Tape::backward with its gradient", self.shape());
            return Err(Error::value("backward", why));
        }
        let one = match self.dtype() {
            DType::F32 => &1.0f32.to_le_bytes()[..],
            DType::F16 => &f16::ONE.to_le_bytes(),
            DType::BF16 => &bf16::ONE.to_le_bytes(),
            other => return Err(Error::value("backward", format!("the tensor is {other}, expected a floating dtype"))),
        };
        tape.backward(&[(self, &Tensor::from_bytes(one, self.shape(), self.dtype(), self.device())?)])
    }

    /// The dtype in which an operation returns its gradient where that is a sum over rows or tokens: f32 for a floating
    /// tensor that a tape watches, or that was only moved out of such tensors (reshaped, joined); otherwise its own.
    pub fn gradient_dtype(&self) -> DType {
        let wide = self.dtype().is_float() && self.node().is_some_and(|node| node.is_live() && node.wide);
        if wide { DType::F32 } else { self.dtype() }
    }
}
