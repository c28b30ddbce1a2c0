//! Shape patterns such as `"B T H K-1"`, parsed at compile time.

use crate::{Error, MAX_RANK, Result};

/// Letters that can name axes.
pub(super) const LETTERS: usize = 26;

pub(super) const fn slot(letter: char) -> Option<usize> {
    if letter.is_ascii_uppercase() { Some(letter as usize - 'A' as usize) } else { None }
}

/// One word of a shape pattern.
#[derive(Clone, Copy, Debug)]
pub(super) enum Axis {
    /// `R..`: any number of axes.
    Leading(char),
    /// A number.
    Fixed(usize),
    /// `K`, `K-1`, `N+1`.
    Letter { letter: char, offset: isize },
}

/// A parsed shape pattern: its words, or the mark of a malformed one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern {
    axes: [Axis; MAX_RANK],
    len: usize,
    malformed: bool,
}

impl Pattern {
    const MALFORMED: Self = Pattern { axes: [Axis::Fixed(0); MAX_RANK], len: 0, malformed: true };

    /// Parses at compile time where the contract is a `static`: a check then only compares integers.
    pub(super) const fn parse(text: &str) -> Self {
        let (text, mut at) = (text.as_bytes(), 0);
        let mut pattern = Pattern { malformed: false, ..Pattern::MALFORMED };
        let mut leading = false;
        while at < text.len() {
            if text[at] == b' ' {
                at += 1;
                continue;
            }
            let mut end = at;
            while end < text.len() && text[end] != b' ' {
                end += 1;
            }
            let Some(axis) = Axis::parse(text, at, end) else { return Pattern::MALFORMED };
            // two free axes would leave open where the first one ends
            let free = matches!(axis, Axis::Leading(_));
            if pattern.len == MAX_RANK || (free && leading) {
                return Pattern::MALFORMED;
            }
            leading = leading || free;
            pattern.axes[pattern.len] = axis;
            pattern.len += 1;
            at = end;
        }
        pattern
    }

    /// # Errors
    /// When the pattern is malformed.
    pub(super) fn axes(&self, what: &'static str, text: &str) -> Result<&[Axis]> {
        if self.malformed {
            let want = format!("at most {MAX_RANK} of `N`, `N+1`, `N-1`, `4` and one `R..`, with spaces between");
            return Err(Error::value(what, format!("the shape pattern {text:?} is malformed, expected {want}")));
        }
        Ok(&self.axes[..self.len])
    }

    pub(super) fn has_leading(&self) -> bool {
        self.axes[..self.len].iter().any(|axis| matches!(axis, Axis::Leading(_)))
    }
}

impl Axis {
    /// The word between two places of a pattern.
    const fn parse(text: &[u8], from: usize, end: usize) -> Option<Self> {
        if text[from].is_ascii_digit() {
            return match number(text, from, end) {
                Some(n) => Some(Axis::Fixed(n)),
                None => None,
            };
        }
        if !text[from].is_ascii_uppercase() {
            return None;
        }
        let letter = text[from] as char;
        if end - from == 1 {
            return Some(Axis::Letter { letter, offset: 0 });
        }
        if end - from == 3 && text[from + 1] == b'.' && text[from + 2] == b'.' {
            return Some(Axis::Leading(letter));
        }
        let offset = match number(text, from + 2, end) {
            Some(n) if n > 0 && n < MAX_OFFSET => n as isize,
            _ => return None,
        };
        match text[from + 1] {
            b'+' => Some(Axis::Letter { letter, offset }),
            b'-' => Some(Axis::Letter { letter, offset: -offset }),
            _ => None,
        }
    }
}

/// The `n` of `N+n` is smaller.
const MAX_OFFSET: usize = 1 << 16;

/// The decimal number between two places; `None` where there is none or it does not fit.
const fn number(text: &[u8], from: usize, end: usize) -> Option<usize> {
    let (mut n, mut at) = (0usize, from);
    while at < end {
        if !text[at].is_ascii_digit() {
            return None;
        }
        n = match n.checked_mul(10) {
            Some(n) => n,
            None => return None,
        };
        n = match n.checked_add((text[at] - b'0') as usize) {
            Some(n) => n,
            None => return None,
        };
        at += 1;
    }
    if from == end { None } else { Some(n) }
}
