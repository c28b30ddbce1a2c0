//! The search for stop texts in a completion that comes in pieces.

/// Holds back text that may be the beginning of a stop text.
#[derive(Debug)]
pub(super) struct StopBuffer {
    stops: Vec<String>,
    held: String,
    /// The stop text that was found.
    found: Option<String>,
}

impl StopBuffer {
    pub(super) fn new(stops: &[String]) -> Self {
        StopBuffer {
            stops: stops.iter().filter(|stop| !stop.is_empty()).cloned().collect(),
            held: String::new(),
            found: None,
        }
    }

    /// Appends a piece. Returns the text that no stop text can begin in any more, and whether a stop text follows it.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held += piece;
        let places = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        let first = places.min_by_key(|(at, _)| *at).map(|(at, stop)| (at, stop.clone()));
        let stop = first.as_ref().map(|(at, _)| *at);
        self.found = first.map(|(_, stop)| stop).or(self.found.take());
        let end = stop.unwrap_or_else(|| self.held.len() - self.partial_stop());
        let rest = self.held.split_off(end);
        (std::mem::replace(&mut self.held, rest), stop.is_some())
    }

    /// The stop text that was found.
    pub(super) fn found(&self) -> Option<String> {
        self.found.clone()
    }

    /// As [`StopBuffer::push`] for the last piece: nothing is held back.
    pub(super) fn finish(&mut self, piece: &str) -> (String, bool) {
        let (mut text, is_stop) = self.push(piece);
        if !is_stop {
            text += &std::mem::take(&mut self.held);
        }
        (text, is_stop)
    }

    /// The length of the longest suffix that a stop text begins with.
    fn partial_stop(&self) -> usize {
        let of = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at).rev();
            lengths.into_iter().find(|&n| self.held.ends_with(&stop[..n])).unwrap_or(0)
        };
        self.stops.iter().map(of).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut buffer = StopBuffer::new(&stops);
        let mut out = String::new();
        for piece in pieces {
            let (text, is_stop) = buffer.push(piece);
            out += &text;
            if is_stop {
                return (out, true);
            }
        }
        let (text, is_stop) = buffer.finish("");
        (out + &text, is_stop)
    }

    #[test]
    fn a_stop_text_across_pieces_is_left_out() {
        assert_eq!(completion(&["END"], &["one E", "N", "D two"]), ("one ".to_owned(), true));
    }

    #[test]
    fn text_that_only_begins_like_a_stop_text_is_returned() {
        assert_eq!(completion(&["END", ""], &["one E", "N", "ough", " EN"]), ("one ENough EN".to_owned(), false));
        assert_eq!(completion(&["🙂x"], &["🙂", "y"]), ("🙂y".to_owned(), false));
    }
}
