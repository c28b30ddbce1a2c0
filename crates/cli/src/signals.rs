//! Ctrl-C and SIGTERM.

use crate::output::say;
use alluvium::lm::formats::atomic::remove_partials;
use anyhow::Context;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// The exit code after an interruption: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// A signal removes partial output and ends the program.
const EXIT: u8 = 0;
/// The next signal asks the work to stop, and the one after it ends the program.
const ASK: u8 = 1;
/// A signal asked the work to stop.
const ASKED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(EXIT);
/// Whether nothing is said when the work is asked to stop, because it stops at once.
static QUIETLY: AtomicBool = AtomicBool::new(false);

/// Listens for signals for the life of the program.
pub(crate) fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if STATE.compare_exchange(ASK, ASKED, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            if !QUIETLY.load(Ordering::Relaxed) {
                say!("\nstopping; a second signal ends the program at once");
            }
            return;
        }
        match remove_partials() {
            0 => say!("\nstopped"),
            _ => say!("\nstopped; the partial output is removed"),
        }
        std::process::exit(INTERRUPTED.into());
    })
    .context("cannot listen for Ctrl-C")
}

/// While it lives, the first signal asks the work to stop, and only a second one ends the program.
pub(crate) struct Stoppable(());

impl Stoppable {
    pub(crate) fn new() -> Self {
        QUIETLY.store(false, Ordering::Relaxed);
        STATE.store(ASK, Ordering::Relaxed);
        Stoppable(())
    }

    /// For work that stops at once and says so itself.
    pub(crate) fn quietly() -> Self {
        let stoppable = Self::new();
        QUIETLY.store(true, Ordering::Relaxed);
        stoppable
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
