//! Shapes: the lengths of a tensor's axes.

use crate::{Error, Result};

/// The most axes a tensor can have.
pub const MAX_RANK: usize = 6;

/// The lengths of a tensor's axes, outermost first. Row-major: the last axis is contiguous.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: usize,
}

impl Shape {
    /// The shape with these axes.
    ///
    /// # Errors
    /// When there are more than [`MAX_RANK`] axes or more bytes than memory can address.
    pub fn new(dims: &[usize]) -> Result<Self> {
        if dims.len() > MAX_RANK {
            return Err(Error::value("shape", format!("{dims:?} has {} axes, at most {MAX_RANK} fit", dims.len())));
        }
        let mut shape = Shape { dims: [0; MAX_RANK], rank: dims.len() };
        shape.dims[..dims.len()].copy_from_slice(dims);
        shape.checked()
    }

    /// This shape followed by more axes. Its size is not checked.
    ///
    /// # Errors
    /// When together they are more than [`MAX_RANK`] axes.
    pub fn and(mut self, dims: &[usize]) -> Result<Self> {
        let rank = self.rank + dims.len();
        match self.dims.get_mut(self.rank..rank) {
            Some(free) => free.copy_from_slice(dims),
            None => {
                let why = format!("{self} and {dims:?} are {rank} axes, at most {MAX_RANK} fit");
                return Err(Error::value("shape", why));
            }
        }
        Ok(Shape { rank, ..self })
    }

    /// The same shape, if its size in bytes cannot overflow.
    ///
    /// # Errors
    /// When it does at the widest element, zeros counted as ones.
    pub(crate) fn checked(self) -> Result<Self> {
        let bytes = self.iter().try_fold(8usize, |n, &d| n.checked_mul(d.max(1)));
        match bytes {
            Some(bytes) if isize::try_from(bytes).is_ok() => Ok(self),
            _ => Err(Error::value("shape", format!("{self} has more elements than memory can address"))),
        }
    }

    /// The number of elements: the product of the axes, 1 for a scalar; `usize::MAX` for a shape that is too large to be
    /// a tensor's.
    pub fn elements(&self) -> usize {
        if self.contains(&0) { 0 } else { self.iter().fold(1, |n, &d| n.saturating_mul(d)) }
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The length of the last axis; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// The axes as a slice.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// This shape with the axis `axis` set to `len`. Without such an axis, the shape itself.
    pub fn with(mut self, axis: usize, len: usize) -> Self {
        if axis < self.rank {
            self.dims[axis] = len;
        }
        self
    }
}

impl std::ops::Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        self.dims()
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(array: [usize; N]) -> Self {
        const { assert!(N <= MAX_RANK, "a tensor has at most MAX_RANK axes") };
        let mut dims = [0; MAX_RANK];
        dims[..N].copy_from_slice(&array);
        Shape { dims, rank: N }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_that_overflows_is_an_error_and_not_a_wrap() {
        let error = Shape::new(&[usize::MAX, 2]).unwrap_err().to_string();
        assert_eq!(error, format!("shape: [{}, 2] has more elements than memory can address", usize::MAX));
        assert!(Shape::new(&[1; 7]).is_err());
    }

    #[test]
    fn a_scalar_has_one_element() {
        assert_eq!(Shape::from([]).elements(), 1);
    }
}
