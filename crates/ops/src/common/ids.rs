//! Ids that tensors hold: each has to be below the length of an axis.

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

/// Errs as [`below`] for ids that the processor knows; those that a GPU made are not waited for.
pub(crate) fn known_below(op: &'static str, arg: &str, ids: &Tensor, axis: (char, usize)) -> Result<()> {
    let known = ids.known().unwrap_or_default();
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

/// For each id that occurs its number and where its places begin and end; then the places, in order.
pub(crate) fn places(ids: &[u32], vocabulary: usize) -> (Vec<u32>, usize) {
    // counting walks through the vocabulary, sorting does not
    let places = if ids.len() < vocabulary / 16 { sorted(ids, vocabulary) } else { counted(ids, vocabulary) };
    let mut table = Vec::new();
    let mut first = 0;
    for same in places.chunk_by(|&a, &b| ids[a as usize] == ids[b as usize]) {
        table.extend([ids[same[0] as usize], first, first + same.len() as u32]);
        first += same.len() as u32;
    }
    let count = table.len() / 3;
    table.extend(places);
    (table, count)
}

/// The places by their ids, those of the same id in order, and with them the bits of sums over them.
fn sorted(ids: &[u32], vocabulary: usize) -> Vec<u32> {
    let mut places: Vec<u32> = (0..ids.len() as u32).collect();
    places.retain(|&place| (ids[place as usize] as usize) < vocabulary);
    places.sort_by_key(|&place| ids[place as usize]);
    places
}

/// As [`sorted`], in two passes.
fn counted(ids: &[u32], vocabulary: usize) -> Vec<u32> {
    // how many places the ids before each have, and then where its next place goes
    let mut next = vec![0u32; vocabulary + 1];
    let known = || ids.iter().map(|&id| id as usize).enumerate().filter(|&(_, id)| id < vocabulary);
    known().for_each(|(_, id)| next[id + 1] += 1);
    for id in 0..vocabulary {
        next[id + 1] += next[id];
    }
    let mut places = vec![0; next[vocabulary] as usize];
    for (place, id) in known() {
        places[next[id] as usize] = place as u32;
        next[id] += 1;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_counted_are_places_sorted() {
        let ids: Vec<u32> = (0..1_000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 22).collect();
        for vocabulary in [1, 7, 700, 1_024] {
            let places = counted(&ids, vocabulary);
            assert_eq!(places, sorted(&ids, vocabulary), "{vocabulary}");
            assert_eq!(places.len(), ids.iter().filter(|&&id| (id as usize) < vocabulary).count());
        }
        assert!(counted(&[], 5).is_empty() && counted(&[5], 5).is_empty());
    }
}
