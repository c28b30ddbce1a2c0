//! The line of the terminal that progress is drawn in.

use console::{Term, measure_text_width};
use indicatif::{ProgressDrawTarget, TermLike};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most columns of the line, so that it is not wrapped when a wide window becomes one of 80 columns.
const COLUMNS: u16 = 80;

/// Drawings a second.
const RATE: u8 = 10;

/// A line of the terminal that is drawn again and again. Terminals wrap it when the window becomes narrower; then all
/// rows that it takes are erased.
#[derive(Debug)]
pub(crate) struct ProgressLine<T> {
    terminal: T,
    /// The columns that were written since the line was erased.
    written: AtomicUsize,
}

impl ProgressLine<Term> {
    /// The line on standard error.
    pub(crate) fn target() -> ProgressDrawTarget {
        let line = ProgressLine { terminal: Term::buffered_stderr(), written: AtomicUsize::new(0) };
        ProgressDrawTarget::term_like_with_hz(Box::new(line), RATE)
    }
}

impl<T: TermLike> TermLike for ProgressLine<T> {
    fn width(&self) -> u16 {
        self.terminal.width().min(COLUMNS)
    }

    fn height(&self) -> u16 {
        self.terminal.height()
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.terminal.move_cursor_left(n)
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.written.store(0, Ordering::Relaxed);
        self.terminal.write_line(text)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.written.fetch_add(measure_text_width(text), Ordering::Relaxed);
        self.terminal.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        let written = self.written.swap(0, Ordering::Relaxed);
        // the cursor is in the last row of the line
        for _ in 0..written.saturating_sub(1) / usize::from(self.terminal.width()).max(1) {
            self.terminal.clear_line()?;
            self.terminal.move_cursor_up(1)?;
        }
        self.terminal.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.terminal.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU16;

    /// A terminal that records its calls.
    #[derive(Debug, Default)]
    struct Recorder {
        width: AtomicU16,
        calls: Mutex<Vec<String>>,
    }

    impl Recorder {
        fn record(&self, call: impl Into<String>) -> io::Result<()> {
            self.calls.lock().unwrap().push(call.into());
            Ok(())
        }
    }

    impl TermLike for Recorder {
        fn width(&self) -> u16 {
            self.width.load(Ordering::Relaxed)
        }

        fn move_cursor_up(&self, n: usize) -> io::Result<()> {
            self.record(format!("up {n}"))
        }

        fn move_cursor_down(&self, n: usize) -> io::Result<()> {
            self.record(format!("down {n}"))
        }

        fn move_cursor_right(&self, n: usize) -> io::Result<()> {
            self.record(format!("right {n}"))
        }

        fn move_cursor_left(&self, n: usize) -> io::Result<()> {
            self.record(format!("left {n}"))
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.record(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.record(text)
        }

        fn clear_line(&self) -> io::Result<()> {
            self.record("clear")
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is done to erase a line that filled a window of `before` columns, in one of `after`.
    fn erased(before: u16, after: u16) -> Vec<String> {
        let terminal = Recorder { width: before.into(), ..Recorder::default() };
        let line = ProgressLine { terminal, written: AtomicUsize::new(0) };
        line.write_str(&"━".repeat(line.width().into())).unwrap();
        line.terminal.width.store(after, Ordering::Relaxed);
        line.terminal.calls.lock().unwrap().clear();
        line.clear_line().unwrap();
        line.terminal.calls.into_inner().unwrap()
    }

    #[test]
    fn all_rows_of_a_wrapped_line_are_erased() {
        assert_eq!(erased(200, 80), ["clear"]);
        assert_eq!(erased(80, 80), ["clear"]);
        assert_eq!(erased(60, 200), ["clear"]);
        assert_eq!(erased(80, 50), ["clear", "up 1", "clear"]);
        assert_eq!(erased(200, 26), ["clear", "up 1", "clear", "up 1", "clear", "up 1", "clear"]);
    }
}
