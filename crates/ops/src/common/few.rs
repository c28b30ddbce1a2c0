//! Lists that are usually short and then need no heap allocation, as in decoding.

use std::ops::{Deref, DerefMut};

/// A list with up to `N` elements on the stack and more on the heap.
pub(crate) struct InlineVec<T, const N: usize> {
    few: [T; N],
    many: Vec<T>,
    len: usize,
}

impl<T: Copy, const N: usize> InlineVec<T, N> {
    /// `len` copies of a value.
    pub(crate) fn new(len: usize, value: T) -> Self {
        InlineVec { few: [value; N], many: if len > N { vec![value; len] } else { Vec::new() }, len }
    }
}

impl<T, const N: usize> Deref for InlineVec<T, N> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        if self.len > N { &self.many } else { &self.few[..self.len] }
    }
}

impl<T, const N: usize> DerefMut for InlineVec<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        if self.len > N { &mut self.many } else { &mut self.few[..self.len] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_its_length_on_the_stack_and_off_it() {
        for len in [0, 3, 4, 5, 9] {
            let mut list: InlineVec<usize, 4> = InlineVec::new(len, 7);
            list.iter_mut().enumerate().for_each(|(i, x)| *x += i);
            assert_eq!(list.to_vec(), (0..len).map(|i| i + 7).collect::<Vec<_>>());
        }
    }
}
