//! The tape of eager autograd: a `Vec` of recorded operations that a reverse loop differentiates.
//!
//! An operation pushes one entry with its own [`Backward`]; there is no central `match` over operations. The loop pops
//! entries, so the tensors that an entry saved are freed as the loop passes it. [`recompute`] pushes an entry that runs
//! its part of the forward pass again when the loop reaches it, and so pushes that part's entries where the loop stands.
//!
//! A backward pass consumes the tape: results that were recorded before it have no history any more, and using one of
//! them in a later recorded operation or backward pass is an error. Tensors from [`Tape::watch`] stay usable.

mod backward;

use crate::{DType, Device, Error, Kind, Result, Shape, Tensor};
pub use backward::{Backward, BackwardAll, BackwardMany};
use backward::{Fixed, Single, miscounted};
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
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

/// The place of a traced tensor on its tape.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    tape: Weak<Inner>,
    index: usize,
    /// Whether [`Tape::watch`] made it, and no operation.
    leaf: bool,
}

impl Node {
    pub(crate) fn is_live(&self) -> bool {
        self.tape.strong_count() > 0
    }

    /// # Errors
    /// When a backward pass consumed the history of this result.
    fn check_history(&self, what: &'static str, state: &State) -> Result<()> {
        if self.leaf || self.index >= state.consumed {
            return Ok(());
        }
        let why = "the tensor was computed before an earlier backward pass, which consumed its history; pass all losses \
                   to one call of Tape::backward, or detach() the tensor";
        Err(Error::value(what, why))
    }
}

type GradientFn = Box<dyn FnOnce(Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Tensor>>> + Send>;

enum Entry {
    Op { op: &'static str, inputs: Vec<Option<Input>>, outputs: Vec<usize>, gradient: GradientFn },
    Recompute { output: usize, forward: Box<dyn FnOnce() -> Result<Tensor> + Send> },
}

/// A traced input of an operation: its node, and what its gradient must be.
struct Input {
    index: usize,
    shape: Shape,
    dtype: DType,
    device: Device,
}

impl Input {
    fn of(tape: &Tape, x: &Tensor) -> Option<Self> {
        let index = tape.index(x)?;
        Some(Input { index, shape: x.shape(), dtype: x.dtype(), device: x.device().clone() })
    }

    /// # Errors
    /// When `dx` is no gradient of this input: another shape, dtype or device.
    fn check(&self, op: &'static str, number: usize, dx: &Tensor) -> Result<()> {
        if (dx.shape(), dx.dtype()) != (self.shape, self.dtype) {
            let (got, want) = (format!("{} {}", dx.shape(), dx.dtype()), format!("{} {}", self.shape, self.dtype));
            return Err(Error::value(op, format!("the gradient of input {number} is {got}, expected {want}")));
        }
        if *dx.device() != self.device {
            let want = format!("expected {}, the input's handle", self.device);
            return Err(Error::value(op, format!("the gradient of input {number} is on {}, {want}", dx.device())));
        }
        Ok(())
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Entry::Op { op, .. } => f.write_str(op),
            Entry::Recompute { .. } => f.write_str("recompute"),
        }
    }
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
    let gradient: GradientFn = Box::new(move |dy, need| grad.backward(dy, need));
    let inputs = inputs.iter().map(|x| x.and_then(|x| Input::of(tape, x))).collect();
    let mut state = tape.state();
    let first = state.nodes;
    state.nodes += results.len();
    let outputs = (first..state.nodes).collect();
    state.entries.push(Entry::Op { op, inputs, outputs, gradient });
    let node = |index| Node { tape: Arc::downgrade(&tape.0), index, leaf: false };
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
    Ok(y.with_node(Node { tape: Arc::downgrade(&tape.0), index: output, leaf: false }))
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
        x.detach().with_node(Node { tape: Arc::downgrade(&self.0), index, leaf: true })
    }

    /// The number of recorded operations.
    pub fn len(&self) -> usize {
        self.state().entries.len()
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Computes the gradients of all watched tensors from the gradients `seeds` of these results.
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
            add(&mut grads, self.seed(y, dy)?, dy.detach())?;
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
        if y.shape() != dy.shape() || y.dtype() != dy.dtype() {
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
                    let dy: Vec<Option<Tensor>> = outputs.iter().map(|i| grads.remove(i)).collect();
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
                                add(grads, input.index, dx.detach())?;
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
                    let index = self.index(&y).filter(|_| y.shape() == dy.shape() && y.dtype() == dy.dtype());
                    let why = "the layer's result is not traced, or has another shape or dtype than in the first run";
                    add(grads, index.ok_or_else(|| Error::value("recompute", why))?, dy)?;
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
}

/// The gradients of the watched tensors that a backward pass returns.
#[derive(Debug)]
pub struct Gradients {
    grads: HashMap<usize, Tensor>,
    tape: Weak<Inner>,
}

impl Gradients {
    /// The gradient of a watched tensor; `None` where no loss depends on it.
    pub fn get(&self, x: &Tensor) -> Option<&Tensor> {
        self.grads.get(&self.index(x)?)
    }

    /// As [`Gradients::get`], removed from here.
    pub fn take(&mut self, x: &Tensor) -> Option<Tensor> {
        let index = self.index(x)?;
        self.grads.remove(&index)
    }

    fn index(&self, x: &Tensor) -> Option<usize> {
        x.node().filter(|node| node.tape.ptr_eq(&self.tape)).map(|node| node.index)
    }
}

fn add(grads: &mut HashMap<usize, Tensor>, index: usize, dx: Tensor) -> Result<()> {
    let sum = match grads.remove(&index) {
        Some(sum) => sum.accumulate(&dx)?,
        None => dx,
    };
    grads.insert(index, sum);
    Ok(())
}

/// See [`Tensor::accumulate`].
///
/// # Errors
/// As [`Tensor::accumulate`].
pub fn accumulate(sum: Tensor, x: &Tensor) -> Result<Tensor> {
    sum.accumulate(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `y = c·x`, by hand.
    fn times(x: &Tensor, c: f32) -> Result<Tensor> {
        struct Times(f32);
        impl Backward<1> for Times {
            fn op(&self) -> &'static str {
                "times"
            }
            fn backward(self, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
                Ok([Some(times(&dy, self.0)?)])
            }
        }
        let data: Vec<f32> = x.to_vec::<f32>()?.iter().map(|x| c * x).collect();
        record([x], Tensor::from_slice(&data, x.shape(), x.device())?, || Times(c))
    }

    /// `a + b`, by hand.
    fn plus(a: &Tensor, b: &Tensor) -> Result<Tensor> {
        struct Plus;
        impl Backward<2> for Plus {
            fn op(&self) -> &'static str {
                "plus"
            }
            fn backward(self, dy: Tensor, _: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
                Ok([Some(dy.clone()), Some(dy)])
            }
        }
        record([a, b], accumulate(a.detach(), &b.detach())?, || Plus)
    }

    fn number(x: f32) -> Tensor {
        Tensor::full([1], x, &Device::cpu()).unwrap()
    }

    #[test]
    fn a_tensor_used_twice_gets_the_sum_of_both_gradients() {
        let tape = Tape::new();
        let x = tape.watch(&number(3.0));
        let y = plus(&times(&x, 2.0).unwrap(), &times(&x, 5.0).unwrap()).unwrap();
        assert_eq!(y.item().unwrap(), 21.0);
        assert_eq!(y.backward().unwrap().get(&x).unwrap().item().unwrap(), 7.0);
        assert!(tape.is_empty());
    }

    /// The sum of any number of tensors and, as a second result, of the last alone.
    fn total(parts: &[&Tensor]) -> Vec<Tensor> {
        struct Total(usize);
        impl BackwardAll for Total {
            fn op(&self) -> &'static str {
                "total"
            }
            fn backward(self, dy: Vec<Option<Tensor>>, need: &[bool]) -> Result<Vec<Option<Tensor>>> {
                assert_eq!((dy.len(), need.len()), (2, self.0));
                Ok(need.iter().map(|&need| dy[0].clone().filter(|_| need)).collect())
            }
        }
        let zero = number(0.0);
        let sum = parts.iter().fold(zero, |sum, x| accumulate(sum, x).unwrap());
        let inputs: Vec<Option<&Tensor>> = parts.iter().map(|&x| Some(x)).collect();
        record_all(&inputs, vec![sum, parts[parts.len() - 1].detach()], || Total(parts.len())).unwrap()
    }

    #[test]
    fn an_operation_of_any_number_of_inputs_gives_each_traced_one_its_gradient() {
        let tape = Tape::new();
        let (x, y, plain) = (tape.watch(&number(3.0)), tape.watch(&number(4.0)), number(5.0));
        let results = total(&[&x, &plain, &y, &x]);
        assert_eq!(results[0].item().unwrap(), 15.0);
        let grads = times(&results[0], 2.0).unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().item().unwrap(), 4.0);
        assert_eq!(grads.get(&y).unwrap().item().unwrap(), 2.0);
        assert!(!total(&[&plain])[0].is_traced());
    }

    #[test]
    fn a_recomputed_layer_has_the_gradients_of_a_kept_one_and_keeps_nothing() {
        for recomputed in [false, true] {
            let tape = Tape::new();
            let (x, w) = (tape.watch(&number(3.0)), tape.watch(&number(4.0)));
            let (inner, h) = (w.clone(), times(&x, 2.0).unwrap());
            let layer = move |x: &Tensor| times(&plus(x, &times(&inner, 3.0)?)?, 10.0);
            let h = if recomputed { recompute(&h, layer) } else { layer(&h) }.unwrap();
            assert_eq!(tape.len(), if recomputed { 2 } else { 4 });
            let grads = times(&h, 1.0).unwrap().backward().unwrap();
            assert_eq!(grads.get(&x).unwrap().item().unwrap(), 20.0);
            assert_eq!(grads.get(&w).unwrap().item().unwrap(), 30.0);
        }
    }

    #[test]
    fn a_recomputed_layer_that_hands_its_input_through_keeps_the_gradient() {
        let tape = Tape::new();
        let x = tape.watch(&number(3.0));
        let y = recompute(&x, |x| Ok(x.clone())).unwrap();
        assert_eq!(y.backward().unwrap().get(&x).unwrap().item().unwrap(), 1.0);
    }

    #[test]
    fn two_tapes_in_one_operation_are_an_error() {
        let (one, two) = (Tape::new(), Tape::new());
        let error = plus(&one.watch(&number(1.0)), &two.watch(&number(1.0))).unwrap_err().to_string();
        assert_eq!(error, "tape: tensors of two tapes meet in one operation; detach() one of them");
    }

    #[test]
    fn a_tensor_outlives_its_tape_as_a_plain_one() {
        let tape = Tape::new();
        let x = tape.watch(&number(1.0));
        drop(tape);
        assert!(!x.is_traced() && !times(&x, 2.0).unwrap().is_traced());
        assert_eq!(x.backward().unwrap_err().to_string(), "backward: the tensor is not traced");
    }

    #[test]
    fn an_operation_without_gradient_refuses_a_traced_tensor() {
        let tape = Tape::new();
        let x = tape.watch(&number(1.0));
        let error = no_gradient("argmax", "an index does not move", [&x]).unwrap_err().to_string();
        assert!(error.starts_with("argmax: a traced tensor came, but there is no gradient: an index does not move"));
        assert!(no_gradient("argmax", "an index does not move", [&x.detach()]).is_ok());
    }

    #[test]
    fn what_the_result_does_not_depend_on_has_no_gradient() {
        let tape = Tape::new();
        let (x, other) = (tape.watch(&number(1.0)), tape.watch(&number(1.0)));
        assert!(times(&x, 2.0).unwrap().backward().unwrap().get(&other).is_none());
    }
}
