//! The division of rows among the invocations of a workgroup.

/// Text before a kernel that calls `row_sum`; the kernel reduces.
pub(crate) const ROWS: &str = include_str!("rows.wgsl");

/// Units of a row that an invocation keeps in registers; it reads what is left twice.
const KEEP: usize = 8;
/// Invocations of a workgroup of several rows.
const SEVERAL: usize = 128;

/// The division of rows of one width.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharing {
    group: usize,
    lanes: usize,
    keep: usize,
}

impl Sharing {
    /// Lanes for rows of this many units: about four units for an invocation, so that enough loads are in flight.
    pub(crate) fn of(units: usize) -> Self {
        let lanes = units.div_ceil(4).next_power_of_two();
        // up to 16 lanes a sum takes one exchange; from 64 on a row has a workgroup of its own
        let (group, lanes) = if lanes <= 16 { (SEVERAL, lanes) } else { (lanes.clamp(64, 256), lanes.clamp(64, 256)) };
        Sharing { group, lanes, keep: units.div_ceil(lanes).min(KEEP) }
    }

    /// Rows that a workgroup has under way at once.
    pub(crate) fn at_once(self) -> usize {
        self.group / self.lanes
    }

    /// The constants of the text.
    pub(crate) fn constants(self) -> [(&'static str, u32); 3] {
        [("WG", self.group as u32), ("LANES", self.lanes as u32), ("KEEP", self.keep as u32)]
    }
}
