//! Limits of a rendering: work, memory and time.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Units of work of one rendering. Evaluating a node costs one unit, touching 32 bytes or one element another.
pub(super) const WORK: u64 = 12_000_000;
/// Bytes that all values made by a template may hold at once, its output included.
pub(super) const MEMORY: usize = 48 << 20;
/// Wall-clock time of one rendering. The evaluator checks it every [`CHECK`] units.
pub(super) const TIME: Duration = Duration::from_millis(1500);
/// Levels of nesting: expressions, statements and macro calls together.
pub(super) const DEPTH: usize = 400;
/// Levels of lists and maps inside each other.
pub(super) const VALUE_DEPTH: u32 = 128;

/// Units between two looks at the clock.
const CHECK: u64 = 4096;
/// Bytes that cost a unit.
const BYTES: usize = 32;

/// Why a rendering failed.
pub(super) type Fault = String;
pub(super) type Result<T> = std::result::Result<T, Fault>;

/// The remaining work, memory and time.
#[derive(Debug)]
pub(super) struct Budget {
    work: Cell<u64>,
    next_check: Cell<u64>,
    held: Cell<usize>,
    memory: usize,
    deadline: Instant,
}

impl Budget {
    pub(super) fn new() -> Rc<Self> {
        let [work, next_check] = [WORK, WORK - CHECK].map(Cell::new);
        Rc::new(Budget { work, next_check, held: Cell::new(0), memory: MEMORY, deadline: Instant::now() + TIME })
    }

    /// For the values of the caller, which are as large as they are.
    pub(super) fn unlimited() -> Rc<Self> {
        let [work, next_check] = [u64::MAX, 0].map(Cell::new);
        Rc::new(Budget { work, next_check, held: Cell::new(0), memory: usize::MAX, deadline: Instant::now() })
    }

    /// Pays for `units` of work.
    pub(super) fn work(&self, units: u64) -> Result<()> {
        let Some(left) = self.work.get().checked_sub(units) else {
            self.work.set(0);
            return Err("it takes too many steps; a template of a chat needs far fewer".to_owned());
        };
        self.work.set(left);
        if left < self.next_check.get() {
            self.next_check.set(left.saturating_sub(CHECK));
            if Instant::now() > self.deadline {
                return Err(format!("it takes more than {TIME:?}"));
            }
        }
        Ok(())
    }

    /// Pays for reading or writing `bytes`.
    pub(super) fn touch(&self, bytes: usize) -> Result<()> {
        self.work((bytes / BYTES) as u64 + 1)
    }

    /// Pays for writing `bytes` and holds them until the charge is dropped. To be called before they are allocated.
    pub(super) fn hold(self: &Rc<Self>, bytes: usize) -> Result<Charge> {
        let mut charge = Charge { budget: self.clone(), bytes: 0 };
        charge.grow(bytes)?;
        Ok(charge)
    }
}

/// Memory that a value holds.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Holds `bytes` more.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<()> {
        self.budget.touch(bytes)?;
        let held = self.budget.held.get().saturating_add(bytes);
        if held > self.budget.memory {
            return Err(format!("its values take more than {} MiB", MEMORY >> 20));
        }
        self.budget.held.set(held);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.held.set(self.budget.held.get().saturating_sub(self.bytes));
    }
}

/// A string that grows within the budget.
#[derive(Debug)]
pub(super) struct Buffer {
    pub(super) text: String,
    charge: Charge,
}

impl Buffer {
    pub(super) fn new(budget: &Rc<Budget>) -> Result<Self> {
        Ok(Buffer { text: String::new(), charge: budget.hold(0)? })
    }

    pub(super) fn push(&mut self, text: &str) -> Result<()> {
        self.charge.budget.touch(text.len())?;
        let room = self.text.capacity() - self.text.len();
        if text.len() > room {
            let more = text.len().max(self.text.capacity()).max(64);
            self.charge.grow(more - room.min(more))?;
            self.text.reserve_exact(more);
        }
        self.text.push_str(text);
        Ok(())
    }

    /// The text and the memory it holds.
    pub(super) fn into_parts(self) -> (String, Charge) {
        (self.text, self.charge)
    }
}
