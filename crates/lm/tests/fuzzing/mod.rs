//! Throws damaged files at a reader, and sees that it neither panics nor hangs nor takes memory that the file does not
//! account for.
//!
//! Each input follows from the name of the run and its number alone, so one that fails can be made again; it is also
//! written to the folder of temporary files.

mod memory;
mod mutate;

pub(crate) use mutate::Seed;

use alluvium_core::rng::Rng;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// A reader and what it is fed.
pub(crate) struct Fuzz<'a> {
    pub(crate) name: &'a str,
    /// Valid files; each input is one of them with some damage.
    pub(crate) seeds: &'a [Seed],
    /// How many inputs.
    pub(crate) inputs: usize,
    /// What a reader may take whatever the file: buffers, a model's parts.
    pub(crate) constant: usize,
}

/// The most memory that a byte of a file may cost at once. The worst honest case is a list of numbers in JSON: two
/// bytes, `0,`, are 32 bytes in a vector whose capacity doubles and which is copied while it grows, so 48 for a byte; maps
/// with one-letter keys come to twice that.
const PER_BYTE: usize = 128;

/// Tenths of a second after which a reader of one small file counts as hanging.
const PATIENCE: usize = 300;

/// Inputs a thread reads before the next takes over: what a reader keeps for each thread goes with it.
const BLOCK: usize = 2_000;

impl Fuzz<'_> {
    /// Feeds `read` with all inputs; it says whether it took one. Returns how many were taken.
    pub(crate) fn run(&self, read: impl Fn(&[u8]) -> bool + Sync) -> usize {
        for seed in self.seeds {
            self.one(&seed.bytes, &read, "a valid file").unwrap_or_else(|why| panic!("{}: {why}", self.name));
            assert!(read(&seed.bytes), "{}: a valid file was refused: {}", self.name, seed.bytes.escape_ascii());
        }
        let (current, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let mut taken = 0;
        std::thread::scope(|threads| {
            threads.spawn(|| self.watch(&current, &done));
            for first in (0..self.inputs).step_by(BLOCK) {
                let inputs = first..self.inputs.min(first + BLOCK);
                let block = threads.spawn(|| self.block(inputs, &read, &current));
                let ended = block.join().unwrap_or_else(|_| Err("the thread died".to_owned()));
                match ended {
                    Ok(more) => taken += more,
                    Err(why) => {
                        done.store(true, Ordering::Relaxed);
                        panic!("{}: {why}", self.name);
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        println!("{}: {} inputs, {taken} taken", self.name, self.inputs);
        taken
    }

    /// How many of these inputs were taken, or what is wrong with one.
    fn block(
        &self,
        inputs: Range<usize>,
        read: &impl Fn(&[u8]) -> bool,
        current: &AtomicUsize,
    ) -> Result<usize, String> {
        let mut taken = 0;
        for input in inputs {
            current.store(input, Ordering::Relaxed);
            let bytes = self.input(input);
            let outcome = self.one(&bytes, read, &format!("input {input}"));
            taken += usize::from(outcome.map_err(|why| self.describe(&bytes, &why))?);
        }
        Ok(taken)
    }

    fn input(&self, number: usize) -> Vec<u8> {
        mutate::damaged(self.seeds, &mut Rng::new(number as u64, self.name))
    }

    fn one(&self, bytes: &[u8], read: &impl Fn(&[u8]) -> bool, what: &str) -> Result<bool, String> {
        let (outcome, peak) = memory::measured(|| catch_unwind(AssertUnwindSafe(|| read(bytes))));
        let taken = outcome.map_err(|_| format!("{what} made the reader panic"))?;
        let most = PER_BYTE * bytes.len() + self.constant;
        match peak > most {
            true => Err(format!(
                "{what} of {} bytes took {peak} bytes of memory, at most {most} are justified",
                bytes.len()
            )),
            false => Ok(taken),
        }
    }

    fn describe(&self, bytes: &[u8], why: &str) -> String {
        let path = self.path();
        let written = std::fs::write(&path, bytes).is_ok();
        let whole = bytes[..bytes.len().min(3_000)].escape_ascii();
        format!("{why}\n{}: {whole}", if written { path.display().to_string() } else { String::new() })
    }

    fn path(&self) -> PathBuf {
        std::env::temp_dir().join(format!("alluvium-fuzz-{}", self.name))
    }

    /// Ends the program when an input takes too long: a thread that hangs cannot be ended otherwise. It counts its own
    /// naps, so a machine that sleeps is not taken for a hang.
    fn watch(&self, current: &AtomicUsize, done: &AtomicBool) {
        let (mut last, mut naps) = (usize::MAX, 0);
        while !done.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            let now = current.load(Ordering::Relaxed);
            naps = if now == last { naps + 1 } else { 0 };
            last = now;
            if naps > PATIENCE {
                eprintln!("{}: input {now} hangs: {}", self.name, self.describe(&self.input(now), ""));
                std::process::abort();
            }
        }
    }
}
