//! Checks that ids are below the length of an axis.

use alluvium_core::{Error, Result, Tensor};

/// The ids, once each is known to be below the size of the axis `letter`.
///
/// # Errors
/// `Value`, which names the first that is not, and its place.
pub(crate) fn below<'a>(op: &'static str, arg: &str, ids: &'a Tensor, axis: (char, usize)) -> Result<&'a [u32]> {
    let each = ids.slice::<u32>()?;
    match each.iter().position(|&id| id as usize >= axis.1) {
        Some(place) => Err(outside(op, arg, ids, (place, each[place]), axis)),
        None => Ok(each),
    }
}

/// Errs as [`below`] for ids that the CPU knows; those that a GPU made are not waited for.
pub(crate) fn known_below(op: &'static str, arg: &str, ids: &Tensor, axis: (char, usize)) -> Result<()> {
    let known = ids.host_mirror().unwrap_or_default();
    match known.iter().position(|&id| id as usize >= axis.1) {
        Some(place) => Err(outside(op, arg, ids, (place, known[place]), axis)),
        None => Ok(()),
    }
}

/// The error of an id, by its place in memory, that is not below the size of its axis.
pub(crate) fn outside(op: &'static str, arg: &str, ids: &Tensor, id: (usize, u32), axis: (char, usize)) -> Error {
    let ((mut rest, id), (letter, size)) = (id, axis);
    let mut at: Vec<usize> = ids.shape().iter().rev().map(|&n| (rest % n, rest /= n).0).collect();
    at.reverse();
    Error::value(op, format!("`{arg}` holds {id} at {at:?}, expected less than {letter} = {size}"))
}
