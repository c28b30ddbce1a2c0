//! Contracts: what the arguments of an operation must be, as data.
//!
//! One table has four readers: it checks the arguments, words the error, gives the shapes of the inputs of tests, and fills the
//! row in `docs/ops.md`.

mod pattern;

use crate::{DType, Error, Kind, Result, Shape, Tensor};
use pattern::{Axis, LETTERS, Pattern, slot};
use std::ops::Index;

/// Every floating dtype.
pub const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];
/// Every dtype: elements are moved, nothing is computed.
pub const ANY: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::U32, DType::U8];
/// Single precision only: gates, states, statistics.
pub const F32: &[DType] = &[DType::F32];
/// The dtype of the first argument.
pub const SAME: &[DType] = &[];
/// Token ids and offsets.
pub const IDS: &[DType] = &[DType::U32];

/// One argument of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Arg {
    name: &'static str,
    shape: &'static str,
    /// `shape`, parsed.
    pattern: Pattern,
    dtypes: &'static [DType],
    optional: bool,
    weight: bool,
}

impl Arg {
    /// A required argument of this name, shape pattern and these dtypes ([`SAME`]: that of the first argument).
    ///
    /// The pattern names axes: `"B T H K"`. The first argument that names a letter binds it. `R..` stands for any number
    /// of leading axes and binds `R` to their product; `K-1` and `N+1` are computed from a letter; a number is itself.
    pub const fn new(name: &'static str, shape: &'static str, dtypes: &'static [DType]) -> Self {
        Arg { name, shape, pattern: Pattern::parse(shape), dtypes, optional: false, weight: false }
    }

    /// The same argument, which may be left out.
    pub const fn optional(self) -> Self {
        Arg { optional: true, ..self }
    }

    /// The same argument, as a weight: its gradient is a sum over rows or tokens, in f32 where
    /// [`Tensor::gradient_dtype`] asks for that.
    pub const fn weight(self) -> Self {
        Arg { weight: true, ..self }
    }

    /// Its name in the public function.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its shape pattern, as text.
    pub const fn shape(&self) -> &'static str {
        self.shape
    }

    /// The dtypes it takes; empty for that of the first argument.
    pub const fn dtypes(&self) -> &'static [DType] {
        self.dtypes
    }

    /// Whether it may be left out.
    pub const fn is_optional(&self) -> bool {
        self.optional
    }

    /// Whether it is a weight.
    pub const fn is_weight(&self) -> bool {
        self.weight
    }
}

/// A condition on the sizes that a contract bound.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// The first axis is a multiple of the second.
    MultipleOfAxis(char, char),
    /// The axis is a multiple of the number.
    MultipleOfNumber(char, usize),
    /// The first axis is at most as long as the second.
    AtMostAxis(char, char),
    /// The axis is at most as long as the number says.
    AtMostNumber(char, usize),
}

/// The table of an operation: its arguments and the conditions on their sizes.
#[derive(Debug)]
pub struct Contract {
    /// The operation's name: that of the public function.
    pub op: &'static str,
    /// Its tensors, in order.
    pub args: &'static [Arg],
    /// Conditions on the sizes.
    pub rules: &'static [Rule],
}

/// The size of a letter, and the argument that bound it.
#[derive(Clone, Copy, Debug)]
struct Binding {
    size: usize,
    arg: usize,
}

/// The sizes that a checked contract bound, by letter: `dims['T']`.
#[derive(Clone, Debug, Default)]
pub struct Dims {
    bound: [Option<Binding>; LETTERS],
    /// One bit for each letter that the contract names, bound or not.
    named: u32,
    leading: Option<Shape>,
}

/// The size of a letter that the contract names; 1 if only an absent optional argument would have bound it.
///
/// # Panics
/// For a letter that the contract does not name, as indexing a slice past its end does. [`Dims::get`] does not.
impl Index<char> for Dims {
    type Output = usize;
    fn index(&self, letter: char) -> &usize {
        let slot = slot(letter).filter(|slot| self.named >> slot & 1 == 1);
        assert!(slot.is_some(), "no axis {letter:?} in this contract");
        slot.and_then(|slot| self.bound[slot].as_ref()).map_or(&1, |binding| &binding.size)
    }
}

impl Dims {
    /// These sizes, as a test case gives them.
    pub fn of(sizes: &[(char, usize)]) -> Self {
        let mut dims = Dims::default();
        for &(letter, size) in sizes {
            dims.bind(letter, size, 0);
        }
        dims
    }

    /// The size of a letter, if it is bound.
    pub fn get(&self, letter: char) -> Option<usize> {
        slot(letter).and_then(|slot| self.bound[slot]).map(|binding| binding.size)
    }

    /// The axes that `R..` stands for; `[R]` where a size was given for `R` alone, and no axes without one.
    pub fn leading(&self) -> Shape {
        self.leading.unwrap_or_else(|| self.get('R').map_or(Shape::from([]), |rows| Shape::from([rows])))
    }

    /// The shape that a pattern means with these sizes.
    ///
    /// # Errors
    /// When the pattern is malformed or names a letter that has no size, or the shape has too many axes or elements.
    pub fn shape(&self, pattern: &str) -> Result<Shape> {
        let mut shape = Shape::from([]);
        for axis in Pattern::parse(pattern).axes("shape", pattern)? {
            match *axis {
                Axis::Leading(_) => shape = shape.and(&self.leading())?,
                Axis::Fixed(n) => shape = shape.and(&[n])?,
                Axis::Letter { letter, offset } => {
                    let size = match (self.get(letter), slot(letter)) {
                        (Some(size), _) => size,
                        (None, Some(slot)) if self.named >> slot & 1 == 1 => 1,
                        _ => {
                            return Err(Error::value(
                                "shape",
                                format!("{pattern:?} names {letter}, which has no size"),
                            ));
                        }
                    };
                    shape = shape.and(&[size.saturating_add_signed(offset)])?;
                }
            }
        }
        shape.checked()
    }

    /// Binds the letter if it is free; returns the size it is bound to.
    fn bind(&mut self, letter: char, size: usize, arg: usize) -> usize {
        let Some(slot) = slot(letter) else { return size };
        self.named |= 1 << slot;
        self.bound[slot].get_or_insert(Binding { size, arg }).size
    }
}

impl Contract {
    /// Checks the arguments against the table and returns the sizes of its letters.
    ///
    /// Takes `[&Tensor; N]`, or `[Option<&Tensor>; N]` where arguments may be left out.
    ///
    /// # Errors
    /// [`Kind::Shape`], [`Kind::Dtype`] or [`Kind::Device`], worded for a person; an axis of length 0 is an error, too.
    /// [`Kind::Value`] when a required argument is missing or there are more arguments than the table has.
    pub fn check<'a, A: Into<Option<&'a Tensor>> + Copy>(&self, args: &[A]) -> Result<Dims> {
        if args.len() > self.args.len() {
            let why = format!("{} arguments, expected at most {}", args.len(), self.args.len());
            return Err(Error::value(self.op, why));
        }
        let given = |index: usize| -> Option<&'a Tensor> { args.get(index).and_then(|&arg| arg.into()) };
        let mut dims = Dims::default();
        let mut first: Option<(usize, &Tensor)> = None;
        for (index, arg) in self.args.iter().enumerate() {
            match given(index) {
                Some(tensor) => {
                    self.check_dtype(arg, tensor, given(0))?;
                    self.check_shape(index, tensor, &given, &mut dims)?;
                    let (other, before) = *first.get_or_insert((index, tensor));
                    if before.device() != tensor.device() {
                        let [a, b] = [self.args[other].name, arg.name];
                        return Err(Kind::device(self.op, (a, before.device()), (b, tensor.device())).into());
                    }
                }
                None if arg.optional => {
                    for axis in arg.pattern.axes(self.op, arg.shape)? {
                        if let Axis::Letter { letter, .. } | Axis::Leading(letter) = axis
                            && let Some(slot) = slot(*letter)
                        {
                            dims.named |= 1 << slot;
                        }
                    }
                }
                None => return Err(Error::value(self.op, format!("`{}` is missing", arg.name))),
            }
        }
        self.check_rules(&dims, &given)?;
        Ok(dims)
    }

    fn check_dtype(&self, arg: &Arg, tensor: &Tensor, first: Option<&Tensor>) -> Result<()> {
        let got = tensor.dtype();
        let want = if arg.dtypes.is_empty() {
            match first {
                Some(first) if first.dtype() != got => format!("{} like `{}`", first.dtype(), self.args[0].name),
                _ => return Ok(()),
            }
        } else if arg.dtypes.contains(&got) {
            return Ok(());
        } else {
            let names: Vec<String> = arg.dtypes.iter().map(DType::to_string).collect();
            names.join(" or ")
        };
        Err(Kind::Dtype { op: self.op, arg: arg.name, got, want }.into())
    }

    fn check_shape<'a>(
        &self,
        index: usize,
        tensor: &Tensor,
        given: &impl Fn(usize) -> Option<&'a Tensor>,
        dims: &mut Dims,
    ) -> Result<()> {
        let arg = &self.args[index];
        let shape = tensor.shape();
        let wrong = |want: String| Kind::Shape { op: self.op, arg: arg.name, got: shape, want }.into();
        if shape.contains(&0) {
            return Err(wrong("no axis of length 0".to_owned()));
        }
        let axes = arg.pattern.axes(self.op, arg.shape)?;
        let free = arg.pattern.has_leading();
        if (free && shape.rank() + 1 < axes.len()) || (!free && shape.rank() != axes.len()) {
            return Err(wrong(self.expected(index, dims, given)));
        }
        let mut sizes = shape.iter().copied();
        for axis in axes {
            let fits = match *axis {
                Axis::Leading(letter) => {
                    let mut lead = Shape::from([]);
                    for size in sizes.by_ref().take(shape.rank() + 1 - axes.len()) {
                        lead = lead.and(&[size])?;
                    }
                    let same = dims.leading.is_none_or(|known| known == lead);
                    dims.leading.get_or_insert(lead);
                    dims.bind(letter, lead.elements(), index);
                    same
                }
                Axis::Fixed(n) => sizes.next() == Some(n),
                Axis::Letter { letter, offset } => {
                    let size = sizes.next().unwrap_or(0).checked_add_signed(-offset);
                    size.is_some_and(|size| dims.bind(letter, size, index) == size)
                }
            };
            if !fits {
                return Err(wrong(self.expected(index, dims, given)));
            }
        }
        Ok(())
    }

    /// ``[D] with D = 256 from `x` [4, 7, 256]``
    fn expected<'a>(&self, index: usize, dims: &Dims, given: &impl Fn(usize) -> Option<&'a Tensor>) -> String {
        let words: Vec<&str> = self.args[index].shape.split_whitespace().collect();
        let mut text = format!("[{}]", words.join(", "));
        let mut joint = " with";
        for word in words {
            let letter = word.chars().next().unwrap_or('?');
            let Some(binding) = slot(letter).and_then(|i| dims.bound[i]).filter(|b| b.arg < index) else { continue };
            let Some(tensor) = given(binding.arg) else { continue };
            let size = match (word.ends_with(".."), dims.leading) {
                (true, Some(leading)) => leading.to_string(),
                _ => binding.size.to_string(),
            };
            let name = self.args[binding.arg].name;
            text += &format!("{joint} {letter} = {size} from `{name}` {}", tensor.shape());
            joint = ",";
        }
        text
    }

    fn check_rules<'a>(&self, dims: &Dims, given: &impl Fn(usize) -> Option<&'a Tensor>) -> Result<()> {
        for rule in self.rules {
            let (letter, holds, want): (_, fn(usize, usize) -> bool, _) = match *rule {
                Rule::MultipleOfAxis(a, b) => (a, is_multiple, Bound::Axis(b)),
                Rule::MultipleOfNumber(a, n) => (a, is_multiple, Bound::Number(n)),
                Rule::AtMostAxis(a, b) => (a, |size, most| size <= most, Bound::Axis(b)),
                Rule::AtMostNumber(a, n) => (a, |size, most| size <= most, Bound::Number(n)),
            };
            let Some(binding) = slot(letter).and_then(|slot| dims.bound[slot]) else { continue };
            let bound = match want {
                Bound::Axis(b) => dims.get(b),
                Bound::Number(n) => Some(n),
            };
            // an absent optional argument bounds nothing
            let Some(bound) = bound.filter(|&bound| !holds(binding.size, bound)) else { continue };
            let words = match want {
                Bound::Axis(b) => format!("{b} = {bound}"),
                Bound::Number(n) => n.to_string(),
            };
            let relation = match rule {
                Rule::MultipleOfAxis(..) | Rule::MultipleOfNumber(..) => "a multiple of",
                Rule::AtMostAxis(..) | Rule::AtMostNumber(..) => "at most",
            };
            let Some(tensor) = given(binding.arg) else { continue };
            let arg = &self.args[binding.arg];
            let axes = arg.shape.split_whitespace().collect::<Vec<_>>().join(", ");
            let want = format!("[{axes}] with {letter} {relation} {words}");
            return Err(Kind::Shape { op: self.op, arg: arg.name, got: tensor.shape(), want }.into());
        }
        Ok(())
    }
}

/// What a rule compares an axis with.
enum Bound {
    Axis(char),
    Number(usize),
}

/// Whether `size` is a multiple of `of`; nothing but 0 is one of 0.
fn is_multiple(size: usize, of: usize) -> bool {
    size.is_multiple_of(of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    static NORM: Contract = Contract {
        op: "rms_norm",
        args: &[Arg::new("x", "R.. D", FLOATS), Arg::new("w", "D", SAME)],
        rules: &[Rule::AtMostNumber('D', 300)],
    };
    static CONV: Contract = Contract {
        op: "conv",
        args: &[
            Arg::new("x", "B T C", FLOATS),
            Arg::new("w", "C K", SAME),
            Arg::new("state", "B K-1 C", F32).optional(),
        ],
        rules: &[],
    };

    fn zeros(dims: &[usize]) -> Tensor {
        Tensor::zeros(Shape::new(dims).unwrap(), DType::F32, &Device::cpu()).unwrap()
    }

    #[test]
    fn a_shape_error_names_the_op_the_argument_and_both_shapes() {
        let (x, w) = (zeros(&[4, 7, 256]), zeros(&[128]));
        assert_eq!(
            NORM.check(&[&x, &w]).unwrap_err().to_string(),
            "rms_norm: `w` is [128], expected [D] with D = 256 from `x` [4, 7, 256]"
        );
    }

    #[test]
    fn leading_axes_bind_their_product() {
        let (x, w) = (zeros(&[4, 7, 256]), zeros(&[256]));
        let dims = NORM.check(&[&x, &w]).unwrap();
        assert_eq!((dims['R'], dims['D'], dims.leading()), (28, 256, Shape::from([4, 7])));
    }

    #[test]
    fn an_axis_computed_from_a_letter_is_checked_and_an_absent_argument_is_not() {
        let (x, w) = (zeros(&[2, 5, 3]), zeros(&[3, 4]));
        assert!(CONV.check(&[Some(&x), Some(&w), None]).is_ok());
        assert!(CONV.check(&[Some(&x), Some(&w), Some(&zeros(&[2, 3, 3]))]).is_ok());
        assert_eq!(
            CONV.check(&[Some(&x), Some(&w), Some(&zeros(&[2, 4, 3]))]).unwrap_err().to_string(),
            "conv: `state` is [2, 4, 3], expected [B, K-1, C] with B = 2 from `x` [2, 5, 3], K = 4 from `w` [3, 4], \
             C = 3 from `x` [2, 5, 3]"
        );
        assert_eq!(CONV.check(&[Some(&x), None, None]).unwrap_err().to_string(), "conv: `w` is missing");
    }

    #[test]
    fn a_rule_a_dtype_and_an_empty_axis_are_worded() {
        assert_eq!(
            NORM.check(&[&zeros(&[1, 301]), &zeros(&[301])]).unwrap_err().to_string(),
            "rms_norm: `x` is [1, 301], expected [R.., D] with D at most 300"
        );
        let ids = Tensor::from_slice(&[1u32], [1], &Device::cpu()).unwrap();
        assert_eq!(
            NORM.check(&[&ids, &zeros(&[1])]).unwrap_err().to_string(),
            "rms_norm: `x` is u32, expected f32 or f16 or bf16"
        );
        assert_eq!(
            NORM.check(&[&zeros(&[0, 4]), &zeros(&[4])]).unwrap_err().to_string(),
            "rms_norm: `x` is [0, 4], expected no axis of length 0"
        );
    }
}
