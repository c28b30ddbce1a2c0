//! The tape: a `Vec` of what was done, undone by a reverse loop.
//!
//! An operation pushes one entry with its own [`Backward`]; there is no central `match` over operations. The loop pops
//! entries, so what an entry saved is dropped as the loop passes it. [`recompute`] pushes an entry that, when the loop
//! reaches it, runs its part of the forward again and so pushes that part's entries where the loop stands.

use crate::{Device, Error, Kind, Result, Tensor};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// What remembers operations on the tensors it watches, until it is dropped. Cheap to clone: a handle.
///
/// ```
/// use alluvium_core::{DType, Device, Tape, Tensor};
///
/// let tape = Tape::new();
/// let x = tape.watch(&Tensor::full([2, 3], 1.0, &Device::cpu())?);
/// let y = x.reshape([6])?;
/// let grads = tape.backward(&[(&y, &Tensor::full([6], 2.0, &Device::cpu())?)])?;
/// assert_eq!(grads.of(&x).unwrap().to_vec::<f32>()?, [2.0; 6]);
/// # Ok::<(), alluvium_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tape(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: Mutex<Vec<Entry>>,
    nodes: AtomicUsize,
    paused: AtomicBool,
}

/// Where a traced tensor stands on its tape.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    tape: Weak<Inner>,
    index: usize,
}

impl Node {
    pub(crate) fn is_live(&self) -> bool {
        self.tape.strong_count() > 0
    }
}

type Undo = Box<dyn FnOnce(Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Tensor>>> + Send>;

enum Entry {
    Op { op: &'static str, inputs: Vec<Option<usize>>, outputs: Vec<usize>, undo: Undo },
    Recompute { output: usize, forward: Box<dyn FnOnce() -> Result<Tensor> + Send> },
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Entry::Op { op, .. } => f.write_str(op),
            Entry::Recompute { .. } => f.write_str("recompute"),
        }
    }
}

/// The gradient of an operation with `N` inputs and one result.
pub trait Backward<const N: usize>: Send + 'static {
    /// The operation's name.
    fn op(&self) -> &'static str;

    /// The gradients to the inputs, in the order [`record`] was given them; `need` says which are wanted.
    fn backward(self, dy: Tensor, need: [bool; N]) -> Result<[Option<Tensor>; N]>;
}

/// The gradient of an operation with `N` inputs and `M` results.
pub trait BackwardMany<const N: usize, const M: usize>: Send + 'static {
    /// The operation's name.
    fn op(&self) -> &'static str;

    /// As [`Backward::backward`]; a result that nothing was computed from has no gradient.
    fn backward(self, dy: [Option<Tensor>; M], need: [bool; N]) -> Result<[Option<Tensor>; N]>;
}

/// The gradient of an operation whose numbers of inputs and results are known only when it runs.
pub trait BackwardAll: Send + 'static {
    /// The operation's name.
    fn op(&self) -> &'static str;

    /// As [`BackwardMany::backward`]: one place for each result in `dy`, one for each input in `need` and in what is
    /// returned.
    fn backward(self, dy: Vec<Option<Tensor>>, need: &[bool]) -> Result<Vec<Option<Tensor>>>;
}

/// Makes a one-result gradient fit where several are taken.
struct Single<G>(G);

impl<const N: usize, G: Backward<N>> BackwardMany<N, 1> for Single<G> {
    fn op(&self) -> &'static str {
        self.0.op()
    }

    fn backward(self, [dy]: [Option<Tensor>; 1], need: [bool; N]) -> Result<[Option<Tensor>; N]> {
        match dy {
            Some(dy) => self.0.backward(dy, need),
            None => Ok([const { None }; N]),
        }
    }
}

/// Records that `y` was computed from `inputs`, where one of them is traced; `grad` is made only then.
///
/// Takes `[&Tensor; N]`, or `[Option<&Tensor>; N]` where inputs may be absent.
///
/// # Errors
/// When inputs belong to different tapes.
pub fn record<'a, const N: usize, A, G>(inputs: [A; N], y: Tensor, grad: impl FnOnce() -> G) -> Result<Tensor>
where
    A: Into<Option<&'a Tensor>>,
    G: Backward<N>,
{
    let [y] = record_many(inputs, [y], || Single(grad()))?;
    Ok(y)
}

/// As [`record`], for an operation with several results.
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
    let Some(tape) = tape_of(&inputs)? else { return Ok(results) };
    let results = push(&tape, &inputs, results.into(), Fixed::<G, N, M>(grad()));
    <[Tensor; M]>::try_from(results).map_err(|_| lost("record"))
}

/// Makes a gradient of fixed numbers of inputs and results fit where they vary.
struct Fixed<G, const N: usize, const M: usize>(G);

impl<const N: usize, const M: usize, G: BackwardMany<N, M>> BackwardAll for Fixed<G, N, M> {
    fn op(&self) -> &'static str {
        self.0.op()
    }

    fn backward(self, dy: Vec<Option<Tensor>>, need: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let op = self.op();
        let dy = <[Option<Tensor>; M]>::try_from(dy).map_err(|_| lost(op))?;
        let need = <[bool; N]>::try_from(need).map_err(|_| lost(op))?;
        Ok(self.0.backward(dy, need)?.into())
    }
}

/// As [`record_many`], where the numbers of inputs and results are known only now: joining, splitting.
pub fn record_all<G: BackwardAll>(
    inputs: &[Option<&Tensor>],
    results: Vec<Tensor>,
    grad: impl FnOnce() -> G,
) -> Result<Vec<Tensor>> {
    match tape_of(inputs)? {
        Some(tape) => Ok(push(&tape, inputs, results, grad())),
        None => Ok(results),
    }
}

/// Adds an entry; returns the results as the tape follows them.
fn push<G: BackwardAll>(tape: &Tape, inputs: &[Option<&Tensor>], results: Vec<Tensor>, grad: G) -> Vec<Tensor> {
    let op = grad.op();
    let undo: Undo = Box::new(move |dy, need| grad.backward(dy, need));
    let results: Vec<Tensor> = results.iter().map(|y| tape.watch(y)).collect();
    tape.entries().push(Entry::Op {
        op,
        inputs: inputs.iter().map(|x| x.and_then(|x| tape.index(x))).collect(),
        outputs: results.iter().filter_map(|y| tape.index(y)).collect(),
        undo,
    });
    results
}

/// Errs if a traced tensor reached an operation that has no gradient.
pub fn no_gradient<'a, const N: usize, A: Into<Option<&'a Tensor>>>(
    op: &'static str,
    why: &'static str,
    inputs: [A; N],
) -> Result<()> {
    match tape_of(&inputs.map(Into::into))? {
        Some(_) => Err(Kind::NoGradient { op, why }.into()),
        None => Ok(()),
    }
}

/// Runs `layer(x)` without keeping what its operations save; the backward pass runs it again.
///
/// The layer's own parameters may be traced, too. Where `x` is not traced the layer is simply run.
pub fn recompute(x: &Tensor, layer: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static) -> Result<Tensor> {
    let Some(tape) = tape_of(&[Some(x)])? else { return layer(x) };
    let y = tape.while_paused(true, || layer(x))?;
    // the layer may hand its input through: the result is a new place on the tape all the same
    let y = tape.watch(&y.detach());
    if let Some(output) = tape.index(&y) {
        let x = x.clone();
        tape.entries().push(Entry::Recompute { output, forward: Box::new(move || layer(&x)) });
    }
    Ok(y)
}

/// The one tape that follows these tensors and is recording.
fn tape_of(inputs: &[Option<&Tensor>]) -> Result<Option<Tape>> {
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
    Ok(found.filter(|tape| !tape.0.paused.load(Ordering::Relaxed)))
}

fn lost(op: &'static str) -> Error {
    Error::value(op, "the tape lost a gradient's place")
}

impl Tape {
    /// An empty tape.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same tensor, followed from here on: a leaf, whose gradient [`Tape::backward`] keeps.
    pub fn watch(&self, x: &Tensor) -> Tensor {
        let index = self.0.nodes.fetch_add(1, Ordering::Relaxed);
        x.detach().with_node(Node { tape: Arc::downgrade(&self.0), index })
    }

    /// The number of operations recorded.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Undoes everything recorded, from the gradients of these results, and empties the tape.
    ///
    /// # Errors
    /// When a seed has another shape than its tensor, a tensor is not of this tape, or an operation's gradient fails.
    pub fn backward(&self, seeds: &[(&Tensor, &Tensor)]) -> Result<Gradients> {
        let mut grads = HashMap::new();
        for &(y, dy) in seeds {
            let index =
                self.index(y).ok_or_else(|| Error::value("backward", "the tensor is not traced by this tape"))?;
            if y.shape() != dy.shape() || y.dtype() != dy.dtype() {
                let (got, want) = (format!("{} {}", dy.shape(), dy.dtype()), format!("{} {}", y.shape(), y.dtype()));
                return Err(Error::value("backward", format!("the gradient is {got}, expected {want}")));
            }
            add(&mut grads, index, dy.detach())?;
        }
        self.while_paused(true, || self.unwind(&mut grads))?;
        Ok(Gradients { grads, tape: Arc::downgrade(&self.0) })
    }

    fn unwind(&self, grads: &mut HashMap<usize, Tensor>) -> Result<()> {
        // popped one by one: a recomputed part pushes its entries where the loop stands
        loop {
            let Some(entry) = self.entries().pop() else { return Ok(()) };
            match entry {
                Entry::Op { op, inputs, outputs, undo } => {
                    let dy: Vec<Option<Tensor>> = outputs.iter().map(|i| grads.remove(i)).collect();
                    if dy.iter().all(Option::is_none) {
                        continue;
                    }
                    let need: Vec<bool> = inputs.iter().map(Option::is_some).collect();
                    let dx = undo(dy, &need)?;
                    for (index, dx) in inputs.into_iter().zip(dx) {
                        match (index, dx) {
                            (Some(index), Some(dx)) => add(grads, index, dx.detach())?,
                            (Some(_), None) if outputs.len() == 1 => return Err(lost(op)),
                            _ => {}
                        }
                    }
                }
                Entry::Recompute { output, forward } => {
                    let Some(dy) = grads.remove(&output) else { continue };
                    let y = self.while_paused(false, forward)?;
                    let index =
                        self.index(&y).ok_or_else(|| Error::value("recompute", "the layer's result is not traced"))?;
                    add(grads, index, dy)?;
                }
            }
        }
    }

    fn while_paused<R>(&self, paused: bool, work: impl FnOnce() -> R) -> R {
        let before = self.0.paused.swap(paused, Ordering::Relaxed);
        let result = work();
        self.0.paused.store(before, Ordering::Relaxed);
        result
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self, x: &Tensor) -> Option<usize> {
        x.node().filter(|node| std::ptr::eq(node.tape.as_ptr(), Arc::as_ptr(&self.0))).map(|node| node.index)
    }
}

impl Tensor {
    /// The gradients of this one number to everything its tape watches.
    ///
    /// # Errors
    /// When it is not traced or has more than one element.
    pub fn backward(&self) -> Result<Gradients> {
        let tape = self.node().and_then(|node| node.tape.upgrade()).map(Tape);
        let tape = tape.ok_or_else(|| Error::value("backward", "the tensor is not traced"))?;
        if self.elements() != 1 {
            let why = format!("{} is no single number; use Tape::backward with its gradient", self.shape());
            return Err(Error::value("backward", why));
        }
        tape.backward(&[(self, &Tensor::full(self.shape(), 1.0, self.device())?)])
    }
}

/// The gradients that a backward pass left: those of the watched tensors.
#[derive(Debug)]
pub struct Gradients {
    grads: HashMap<usize, Tensor>,
    tape: Weak<Inner>,
}

impl Gradients {
    /// The gradient of a watched tensor; none where the result does not depend on it.
    pub fn of(&self, x: &Tensor) -> Option<&Tensor> {
        self.grads.get(&self.index(x)?)
    }

    /// As [`Gradients::of`], taken out.
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
        Some(sum) => accumulate(sum, &dx)?,
        None => dx,
    };
    grads.insert(index, sum);
    Ok(())
}

/// `sum + x`, in place where nobody else holds `sum`.
///
/// # Errors
/// When the shapes, dtypes or devices differ.
pub fn accumulate(mut sum: Tensor, x: &Tensor) -> Result<Tensor> {
    if sum.shape() != x.shape() || sum.dtype() != x.dtype() || sum.device() != x.device() {
        let (a, b) = (format!("{sum:?}"), format!("{x:?}"));
        return Err(Error::value("accumulate", format!("{a} and {b} cannot be added")));
    }
    match x.device() {
        Device::Cpu(cpu) => {
            let add = cpu.read(x)?;
            if sum.slice_mut::<f32>().map(|sum| crate::cpu::add_assign(cpu, sum, &add)).is_some() {
                return Ok(sum);
            }
            let mut out = cpu.buffer::<f32>(x.elements())?;
            out.copy_from_slice(&cpu.read(&sum)?);
            crate::cpu::add_assign(cpu, &mut out, &add);
            cpu.tensor(out, sum.shape(), sum.dtype())
        }
        Device::Gpu(gpu) => crate::gpu::accumulate(gpu, sum, x),
    }
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
        assert_eq!(y.backward().unwrap().of(&x).unwrap().item().unwrap(), 7.0);
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
        assert_eq!(grads.of(&x).unwrap().item().unwrap(), 4.0);
        assert_eq!(grads.of(&y).unwrap().item().unwrap(), 2.0);
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
            assert_eq!(grads.of(&x).unwrap().item().unwrap(), 20.0);
            assert_eq!(grads.of(&w).unwrap().item().unwrap(), 30.0);
        }
    }

    #[test]
    fn a_recomputed_layer_that_hands_its_input_through_keeps_the_gradient() {
        let tape = Tape::new();
        let x = tape.watch(&number(3.0));
        let y = recompute(&x, |x| Ok(x.clone())).unwrap();
        assert_eq!(y.backward().unwrap().of(&x).unwrap().item().unwrap(), 1.0);
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
        assert!(times(&x, 2.0).unwrap().backward().unwrap().of(&other).is_none());
    }
}
