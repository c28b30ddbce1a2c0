//! What an operation takes, as data.
//!
//! One table has four readers: it checks the arguments, words the error, makes the random inputs of the tests and
//! fills the row in `docs/ops.md`.

use crate::{DType, Error, Kind, Result, Shape, Tensor};
use std::ops::Index;

/// Every floating type.
pub const FLOATS: &[DType] = &[DType::F32, DType::F16, DType::BF16];
/// Every type: elements are moved, nothing is computed.
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
    /// As the public function names it.
    pub name: &'static str,
    /// The axes: `"B T H K"`. A letter is bound by the first argument that names it; `R..` stands for any number of
    /// leading axes, `R` for their product; `K-1` and `N+1` are computed from a bound letter; a number is itself.
    pub shape: &'static str,
    /// The dtypes that are taken; [`SAME`] is that of the first argument.
    pub dtypes: &'static [DType],
    /// Whether it may be left out.
    pub optional: bool,
    /// What random inputs of the tests look like.
    pub fill: Fill,
}

impl Arg {
    /// A required argument, filled with standard normal numbers in tests.
    pub const fn new(name: &'static str, shape: &'static str, dtypes: &'static [DType]) -> Self {
        Arg { name, shape, dtypes, optional: false, fill: Fill::Normal(1.0) }
    }

    /// The same argument, which may be left out.
    pub const fn optional(self) -> Self {
        Arg { optional: true, ..self }
    }

    /// The same argument with other random inputs in tests.
    pub const fn filled(self, fill: Fill) -> Self {
        Arg { fill, ..self }
    }
}

/// What the random inputs of an argument look like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Normal numbers of this standard deviation.
    Normal(f64),
    /// Uniform numbers between the two.
    Uniform(f64, f64),
    /// Rows (last axis) of unit length.
    UnitRows,
    /// Whole numbers below the length of the axis with this letter.
    Ids(char),
    /// Whole numbers from the first to the second, both among them.
    Whole(u32, u32),
    /// Words of 32 bits whose four bytes are from the first to the second, both among them.
    Bytes(u8, u8),
    /// Rising offsets from 0 to the length of the axis with this letter: packed sequences.
    Offsets(char),
    /// Rows of `C` numbers, row `i` non-zero only left of column `i mod C`: a strictly lower triangular matrix per chunk.
    StrictLower(f64),
    /// Like [`Fill::StrictLower`] with ones on the diagonal.
    UnitLower(f64),
    /// Running sums, along axis 1 and from zero at each multiple of the chunk of 64, of uniform numbers between the two.
    ChunkSums(f64, f64),
}

/// A condition between the letters of a contract.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// The first letter is a multiple of the second.
    MultipleOf(char, char),
    /// The letter is at most the number.
    AtMost(char, usize),
    /// The letter is a multiple of the number.
    Multiple(char, usize),
    /// The first letter is at most the second.
    NoMoreThan(char, char),
}

/// What an operation takes.
#[derive(Debug)]
pub struct Contract {
    /// The operation's name: that of the public function.
    pub op: &'static str,
    /// Its tensors, in order.
    pub args: &'static [Arg],
    /// Conditions between the sizes.
    pub rules: &'static [Rule],
}

/// What a letter was bound to, and by which argument.
#[derive(Clone, Copy, Debug)]
struct Binding {
    size: usize,
    arg: usize,
}

/// The sizes that a checked contract bound, by letter: `dims['T']`.
#[derive(Clone, Debug, Default)]
pub struct Dims {
    bound: [Option<Binding>; 26],
    leading: Option<Shape>,
}

/// The size of a letter that the contract bound; 1 for a letter that only an absent optional argument would have bound.
impl Index<char> for Dims {
    type Output = usize;
    fn index(&self, letter: char) -> &usize {
        slot(letter).and_then(|i| self.bound[i].as_ref()).map_or(&1, |b| &b.size)
    }
}

impl Dims {
    /// Sizes given by hand, as a test case does.
    pub fn of(sizes: &[(char, usize)]) -> Self {
        let mut dims = Dims::default();
        for &(letter, size) in sizes {
            if let Some(i) = slot(letter) {
                dims.bound[i] = Some(Binding { size, arg: 0 });
            }
        }
        dims
    }

    /// The size of a letter, if it is bound.
    pub fn get(&self, letter: char) -> Option<usize> {
        slot(letter).and_then(|i| self.bound[i]).map(|b| b.size)
    }

    /// The axes that `R..` stands for.
    pub fn leading(&self) -> Shape {
        self.leading.unwrap_or(Shape::from([self['R']]))
    }

    /// The shape that a contract's string means with these sizes; an unbound letter counts as 1.
    pub fn shape(&self, pattern: &str) -> Result<Shape> {
        let mut shape = Shape::from([]);
        for axis in pattern.split_whitespace().map(Axis::parse) {
            match axis {
                Axis::Leading => shape = shape.and(&self.leading())?,
                Axis::Fixed(n) => shape = shape.and(&[n])?,
                Axis::Letter { letter, offset } => shape = shape.and(&[self[letter].saturating_add_signed(offset)])?,
            }
        }
        shape.checked()
    }
}

/// One word of a shape string.
enum Axis {
    Leading,
    Fixed(usize),
    Letter { letter: char, offset: isize },
}

impl Axis {
    fn parse(word: &str) -> Self {
        if word.ends_with("..") {
            return Axis::Leading;
        }
        if let Ok(n) = word.parse() {
            return Axis::Fixed(n);
        }
        let letter = word.chars().next().unwrap_or('?');
        Axis::Letter { letter, offset: word[letter.len_utf8()..].parse().unwrap_or(0) }
    }
}

fn slot(letter: char) -> Option<usize> {
    letter.is_ascii_uppercase().then(|| letter as usize - 'A' as usize)
}

impl Contract {
    /// Holds the arguments against the table and returns the sizes of its letters.
    ///
    /// Takes `[&Tensor; N]`, or `[Option<&Tensor>; N]` where arguments may be left out.
    ///
    /// # Errors
    /// [`Kind::Shape`], [`Kind::Dtype`] or [`Kind::Device`], worded for a person; a dimension of 0 is an error, too.
    pub fn check<'a, A: Into<Option<&'a Tensor>> + Copy>(&self, args: &[A]) -> Result<Dims> {
        let args: [Option<&Tensor>; 12] = std::array::from_fn(|i| args.get(i).and_then(|&a| a.into()));
        let mut dims = Dims::default();
        for (index, arg) in self.args.iter().enumerate() {
            match args[index] {
                Some(tensor) => {
                    self.check_dtype(arg, tensor, args[0])?;
                    self.check_shape(index, tensor, &args, &mut dims)?;
                    self.check_device(index, tensor, &args)?;
                }
                None if arg.optional => {}
                None => return Err(Error::value(self.op, format!("`{}` is missing", arg.name))),
            }
        }
        self.check_rules(&dims, &args)?;
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

    fn check_device(&self, index: usize, tensor: &Tensor, args: &[Option<&Tensor>]) -> Result<()> {
        match args[..index].iter().position(|a| a.is_some_and(|a| a.device() != tensor.device())) {
            Some(other) => {
                Err(Kind::Device { op: self.op, args: [self.args[other].name, self.args[index].name] }.into())
            }
            None => Ok(()),
        }
    }

    fn check_shape(&self, index: usize, tensor: &Tensor, args: &[Option<&Tensor>], dims: &mut Dims) -> Result<()> {
        let arg = &self.args[index];
        let shape = tensor.shape();
        let wrong = |want: String| Kind::Shape { op: self.op, arg: arg.name, got: shape, want }.into();
        if shape.contains(&0) {
            return Err(wrong("no axis of length 0".to_owned()));
        }
        let axes = arg.shape.split_whitespace().count();
        let free = arg.shape.contains("..");
        if (free && shape.rank() + 1 < axes) || (!free && shape.rank() != axes) {
            return Err(wrong(self.expected(arg, dims, args)));
        }
        let mut sizes = shape.iter().copied();
        for axis in arg.shape.split_whitespace().map(Axis::parse) {
            let fits = match axis {
                Axis::Leading => {
                    let mut lead = Shape::from([]);
                    for size in sizes.by_ref().take(shape.rank() + 1 - axes) {
                        lead = lead.and(&[size])?;
                    }
                    let product = lead.elements();
                    let same = dims.leading.is_none_or(|known| known == lead);
                    dims.leading.get_or_insert(lead);
                    bind(dims, 'R', product, index);
                    same
                }
                Axis::Fixed(n) => sizes.next() == Some(n),
                Axis::Letter { letter, offset: 0 } => {
                    let size = sizes.next().unwrap_or(0);
                    bind(dims, letter, size, index) == size
                }
                Axis::Letter { letter, offset } => {
                    let size = sizes.next().unwrap_or(0);
                    match size.checked_add_signed(-offset) {
                        Some(base) => bind(dims, letter, base, index) == base,
                        None => false,
                    }
                }
            };
            if !fits {
                return Err(wrong(self.expected(arg, dims, args)));
            }
        }
        Ok(())
    }

    /// `[D] with D = 256 from `x` [4, 7, 256]`
    fn expected(&self, arg: &Arg, dims: &Dims, args: &[Option<&Tensor>]) -> String {
        let words: Vec<&str> = arg.shape.split_whitespace().collect();
        let mut text = format!("[{}]", words.join(", "));
        let mut joint = " with";
        let this = self.args.iter().position(|a| a.name == arg.name).unwrap_or(0);
        for word in words {
            let letter = word.chars().next().unwrap_or('?');
            let Some(binding) = slot(letter).and_then(|i| dims.bound[i]).filter(|b| b.arg < this) else { continue };
            let Some(tensor) = args[binding.arg] else { continue };
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

    fn check_rules(&self, dims: &Dims, args: &[Option<&Tensor>]) -> Result<()> {
        for rule in self.rules {
            let (letter, want) = match *rule {
                Rule::MultipleOf(a, b) if dims.get(a).is_some_and(|n| n % dims[b] != 0) => {
                    (a, format!("{a} a multiple of {b} = {}", dims[b]))
                }
                Rule::AtMost(a, most) if dims.get(a).is_some_and(|n| n > most) => (a, format!("{a} at most {most}")),
                Rule::Multiple(a, of) if dims.get(a).is_some_and(|n| n % of != 0) => {
                    (a, format!("{a} a multiple of {of}"))
                }
                Rule::NoMoreThan(a, b) if dims.get(a).is_some_and(|n| n > dims[b]) => {
                    (a, format!("{a} at most {b} = {}", dims[b]))
                }
                _ => continue,
            };
            let Some(binding) = slot(letter).and_then(|i| dims.bound[i]) else { continue };
            let Some(tensor) = args[binding.arg] else { continue };
            let arg = &self.args[binding.arg];
            let want = format!("[{}] with {want}", arg.shape.split_whitespace().collect::<Vec<_>>().join(", "));
            return Err(Kind::Shape { op: self.op, arg: arg.name, got: tensor.shape(), want }.into());
        }
        Ok(())
    }
}

/// Binds the letter if it is free; returns what it is bound to.
fn bind(dims: &mut Dims, letter: char, size: usize, arg: usize) -> usize {
    match slot(letter) {
        Some(i) => dims.bound[i].get_or_insert(Binding { size, arg }).size,
        None => size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    static NORM: Contract = Contract {
        op: "rms_norm",
        args: &[Arg::new("x", "R.. D", FLOATS), Arg::new("w", "D", SAME)],
        rules: &[Rule::AtMost('D', 300)],
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
