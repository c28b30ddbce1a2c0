//! Tables, units and bars.

use crate::progress_line::ProgressLine;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes a line to standard error. Unlike `eprintln!` it does not panic when the reader is gone: `2>&1 | head`.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
pub(crate) use say;

/// Whether `--quiet` was given.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves everything but results, warnings and errors out.
pub(crate) fn set_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Whether progress is drawn: standard error is a terminal, and `--quiet` was not given.
pub(crate) fn shows_progress() -> bool {
    !is_quiet() && io::stderr().is_terminal()
}

/// Whether a stream takes colors: it is a terminal that can show them, and the user has not set NO_COLOR.
fn has_colors(is_terminal: bool) -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    is_terminal && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Text dimmed for standard output, where it takes colors.
pub(crate) fn dimmed(text: &str) -> String {
    match has_colors(io::stdout().is_terminal()) {
        true => format!("\x1b[2m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

/// Writes an error to standard error, in clap's colors.
pub(crate) fn say_error(error: &impl std::fmt::Display) {
    match has_colors(io::stderr().is_terminal()) {
        true => say!("\x1b[1;31merror:\x1b[0m {error:#}"),
        false => say!("error: {error:#}"),
    }
}

/// As [`say!`], for what `--quiet` leaves out.
macro_rules! note {
    ($($text:tt)*) => {
        if !$crate::output::is_quiet() {
            $crate::output::say!($($text)*);
        }
    };
}
pub(crate) use note;

/// The work was interrupted by a signal after its state was saved and said. The program exits with 128 + the signal.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Writes a table; the first column is aligned left, the others right.
pub(crate) fn table<const N: usize>(out: &mut impl Write, header: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let header = header.map(str::to_owned);
    let all = || std::iter::once(&header).chain(rows);
    let widths: [usize; N] = std::array::from_fn(|i| all().map(|row| row[i].chars().count()).max().unwrap_or(0));
    for row in all() {
        let mut line = String::new();
        for (i, (cell, width)) in row.iter().zip(widths).enumerate() {
            let gap = " ".repeat(width - cell.chars().count());
            line += &if i == 0 { format!("{cell}{gap}") } else { format!("  {gap}{cell}") };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Writes a table whose columns are all aligned left.
pub(crate) fn listing<const N: usize>(out: &mut impl Write, rows: &[[String; N]]) -> io::Result<()> {
    let widths: [usize; N] = std::array::from_fn(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0));
    for row in rows {
        let cells =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.chars().count())));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// A count with a unit prefix: 1.2 k, 3.4 M.
pub(crate) fn count(n: f64) -> String {
    match n {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e4 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// A size in bytes.
pub(crate) fn bytes(n: usize) -> String {
    match n as f64 {
        n if n >= 1024f64.powi(3) => format!("{:.2} GiB", n / 1024f64.powi(3)),
        n if n >= 1024f64.powi(2) => format!("{:.1} MiB", n / 1024f64.powi(2)),
        n if n >= 1024.0 => format!("{:.1} KiB", n / 1024.0),
        n => format!("{n:.0} B"),
    }
}

/// A duration in seconds, formatted with a suitable unit.
pub(crate) fn seconds(s: f64) -> String {
    match s {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), s % 60.0),
    }
}

/// A progress bar over `steps`, drawn only when standard error is a terminal. Its line is cut to 80 columns, or to those
/// of a narrower terminal.
pub(crate) fn bar(steps: u64, done: u64) -> ProgressBar {
    if !shows_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressLine::target()).with_position(done);
    if let Ok(style) = ProgressStyle::with_template("{bar:12} {pos}/{len} {wide_msg}") {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}

/// A line with the time that a step of unknown length takes, drawn only when standard error is a terminal.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    if !shows_progress() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::with_draw_target(None, ProgressLine::target()).with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{wide_msg} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(std::time::Duration::from_millis(500));
    spinner
}

/// Whether the output's reader is gone, which is not a failure.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_suitable_units() {
        assert_eq!((count(999.0).as_str(), count(12_345.0).as_str()), ("999", "12.3 k"));
        assert_eq!((bytes(1536).as_str(), bytes(5 << 30).as_str()), ("1.5 KiB", "5.00 GiB"));
        assert_eq!(
            (seconds(2.5e-5).as_str(), seconds(0.25).as_str(), seconds(125.0).as_str()),
            ("25.0 µs", "250.00 ms", "2 min 05 s")
        );
    }

    #[test]
    fn a_table_aligns_its_columns() {
        let mut out = Vec::new();
        table(&mut out, ["op", "time"], &[["add".into(), "1 µs".into()], ["rms_norm".into(), "12 µs".into()]]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "op         time\nadd        1 µs\nrms_norm  12 µs\n");
    }
}
