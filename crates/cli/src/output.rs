//! Tables, units and bars.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Write};

/// Writes a line to standard error. Unlike `eprintln!` it does not panic when the reader is gone: `2>&1 | head`.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
pub(crate) use say;

/// The work was interrupted by a signal after its state was saved and said. The program exits with code 130.
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

/// A progress bar over `steps`, drawn only when standard error is a terminal.
pub(crate) fn bar(steps: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps).with_position(done);
    let style = "{bar:28} {pos}/{len} {msg} · {eta} left";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
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
