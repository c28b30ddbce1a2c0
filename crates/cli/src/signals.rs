//! Ctrl-C, SIGTERM and SIGHUP.

use crate::output::say;
use alluvium::lm::formats::atomic::remove_partials;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU8, Ordering};

/// The number of the signal that Ctrl-C sends.
const SIGINT: u8 = 2;

/// A signal removes partial output and ends the program.
const EXIT: u8 = 0;
/// The next signal asks the work to stop, and the one after it ends the program.
const ASK: u8 = 1;
/// The same for Ctrl-C alone, which the work answers at once and in words; any other signal ends the program.
const ASK_CTRL_C: u8 = 2;
/// A signal asked the work to stop.
const ASKED: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(EXIT);
/// The last signal.
static SIGNAL: AtomicU8 = AtomicU8::new(SIGINT);

/// The exit code after an interruption: 128 + the signal, so 130 after Ctrl-C and 143 after SIGTERM.
pub(crate) fn exit_code() -> u8 {
    128 + SIGNAL.load(Ordering::Relaxed)
}

/// Listens for signals for the life of the program. Must be called before threads are started.
pub(crate) fn listen() -> anyhow::Result<()> {
    system::listen()
}

/// Remembers the present mode of the terminal, which a signal restores before it ends the program.
pub(crate) fn restore_terminal_on_exit() {
    system::remember_terminal();
}

/// Answers a signal.
fn receive(signal: u8) {
    SIGNAL.store(signal, Ordering::Relaxed);
    let asks = |state: u8| STATE.compare_exchange(state, ASKED, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if asks(ASK) {
        say!("\nstopping; a second signal ends the program at once");
        return;
    }
    if signal == SIGINT && asks(ASK_CTRL_C) {
        return;
    }
    system::restore_terminal();
    match remove_partials() {
        0 => say!("\nstopped"),
        _ => say!("\nstopped; the partial output is removed"),
    }
    std::process::exit(exit_code().into());
}

/// While it lives, the first signal asks the work to stop, and only a second one ends the program.
pub(crate) struct Stoppable(());

impl Stoppable {
    pub(crate) fn new() -> Self {
        STATE.store(ASK, Ordering::Relaxed);
        Stoppable(())
    }

    /// For work that Ctrl-C stops at once and that says so itself. Other signals end the program.
    pub(crate) fn by_ctrl_c() -> Self {
        STATE.store(ASK_CTRL_C, Ordering::Relaxed);
        Stoppable(())
    }

    /// `Break` once a signal asked for it.
    pub(crate) fn check(&self) -> ControlFlow<()> {
        match STATE.load(Ordering::Relaxed) {
            ASKED => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        STATE.store(EXIT, Ordering::Relaxed);
    }
}

#[cfg(unix)]
mod system {
    use anyhow::Context;
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
    use std::io::Write;
    use std::sync::Mutex;

    /// The mode of the terminal before a line editor changed it.
    static TERMINAL: Mutex<Option<Termios>> = Mutex::new(None);

    /// The sequence that ends the bracketed paste of a line editor.
    const BRACKETED_PASTE_OFF: &[u8] = b"\x1b[?2004l";

    /// Blocks the signals in all threads and waits for them in one.
    pub(super) fn listen() -> anyhow::Result<()> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        if !hangup_is_ignored() {
            signals.add(Signal::SIGHUP);
        }
        signals.thread_block().context("cannot listen for signals")?;
        let wait = move || {
            while let Ok(signal) = signals.wait() {
                super::receive(signal as u8);
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot listen for signals")?;
        Ok(())
    }

    /// Whether `nohup` started the program. Linux delivers an ignored signal to a thread that waits for it.
    fn hangup_is_ignored() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        mask & (1 << (Signal::SIGHUP as u8 - 1)) != 0
    }

    pub(super) fn remember_terminal() {
        if let (Ok(mode), Ok(mut terminal)) = (tcgetattr(std::io::stdin()), TERMINAL.lock()) {
            *terminal = Some(mode);
        }
    }

    pub(super) fn restore_terminal() {
        let Ok(terminal) = TERMINAL.lock() else { return };
        let Some(mode) = terminal.as_ref() else { return };
        // a terminal that is gone needs no mode
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, mode);
        let _ = std::io::stderr().write_all(BRACKETED_PASTE_OFF);
    }
}

#[cfg(not(unix))]
mod system {
    use anyhow::Context;

    pub(super) fn listen() -> anyhow::Result<()> {
        ctrlc::set_handler(|| super::receive(super::SIGINT)).context("cannot listen for Ctrl-C")
    }

    pub(super) fn remember_terminal() {}

    pub(super) fn restore_terminal() {}
}
