//! The questions of the proof: tests ask them one by one, `alluvium check --all` asks all of them.

use super::{Zeros, bytes, check, gradient_of_reference, isolation, need, refusals};
use crate::op::{Case, Fill, Op};
use alluvium_core::cpu::{Cpu, Isa};
use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Dims, Result, Rule};

/// The work above which slow questions skip a case. Every operation has smaller cases.
pub const SMALL: usize = 300_000;
/// The same for questions that are asked of every instruction set or input.
pub const MEDIUM: usize = 40 * SMALL;

/// A question about an operation; the answer has one line per fault.
pub type Question = fn(&Op) -> Result<Vec<String>>;

/// All questions that are asked on the CPU, by name.
pub const QUESTIONS: &[(&str, Question)] = &[
    ("values and gradients match the reference", matches_the_reference),
    ("every instruction set matches the reference", matches_on_every_instruction_set),
    ("half-precision storage costs only its roundings", matches_in_half_precision),
    ("the reference's gradient matches differences", matches_differences),
    ("broken arguments are refused", refuses_broken_arguments),
    ("the bits do not depend on the threads", is_independent_of_threads),
    ("inputs that are not traced cost nothing", computes_only_what_is_needed),
    ("random shapes match the reference", matches_on_random_shapes),
    ("packed sequences do not see each other's NaN", keeps_sequences_apart),
];

/// The work of a case: its floating-point operations or bytes, whichever are more.
pub fn work(op: &Op, case: &Case) -> usize {
    let cost = (op.cost)(&Dims::of(case.sizes));
    cost.flops.max(cost.bytes)
}

/// Proves the cases whose work is below `most` on a device. Returns the faults.
///
/// # Errors
/// When the inputs cannot be made.
pub fn prove(op: &Op, dtype: DType, device: &Device, most: usize) -> Result<Vec<String>> {
    each(op, most, |case| Ok(check(op, case, dtype, device, Zeros::MustFail)?.faults))
}

fn each(op: &Op, most: usize, mut ask: impl FnMut(&Case) -> Result<Vec<String>>) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for case in op.cases.iter().filter(|case| work(op, case) < most) {
        faults.extend(ask(case)?.into_iter().map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
    }
    Ok(faults)
}

/// A CPU whose memory is poisoned with NaN; 0 threads are as many as it has.
fn poisoned(isa: Isa, threads: usize) -> Result<Device> {
    Ok(Cpu::builder().poison().isa(isa).threads(threads).open()?.into())
}

fn matches_the_reference(op: &Op) -> Result<Vec<String>> {
    prove(op, DType::F32, &poisoned(Isa::best(), 0)?, usize::MAX)
}

fn matches_on_every_instruction_set(op: &Op) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for isa in Isa::available() {
        let found = prove(op, DType::F32, &poisoned(isa, 3)?, MEDIUM)?;
        faults.extend(found.into_iter().map(|fault| format!("{fault} ({isa})")));
    }
    Ok(faults)
}

fn matches_in_half_precision(op: &Op) -> Result<Vec<String>> {
    let device = poisoned(Isa::best(), 0)?;
    let mut faults = Vec::new();
    for dtype in [DType::BF16, DType::F16] {
        faults.extend(prove(op, dtype, &device, MEDIUM)?.into_iter().map(|fault| format!("{fault} ({dtype})")));
    }
    Ok(faults)
}

fn matches_differences(op: &Op) -> Result<Vec<String>> {
    each(op, SMALL, |case| gradient_of_reference(op, case))
}

fn refuses_broken_arguments(op: &Op) -> Result<Vec<String>> {
    each(op, SMALL, |case| refusals(op, case, &Device::cpu()))
}

fn is_independent_of_threads(op: &Op) -> Result<Vec<String>> {
    let devices = [poisoned(Isa::best(), 1)?, poisoned(Isa::best(), 2)?, poisoned(Isa::best(), 5)?];
    each(op, usize::MAX, |case| {
        let [one, two, five] = devices.each_ref().map(|device| bytes(op, case, DType::F32, device));
        let (one, two, five) = (one?, two?, five?);
        let same = !one.is_empty() && one == two && one == five;
        Ok(if same { Vec::new() } else { vec!["1, 2 and 5 threads give other bits".to_owned()] })
    })
}

fn computes_only_what_is_needed(op: &Op) -> Result<Vec<String>> {
    let device = poisoned(Isa::best(), 0)?;
    each(op, MEDIUM, |case| need(op, case, &device))
}

fn keeps_sequences_apart(op: &Op) -> Result<Vec<String>> {
    let device = poisoned(Isa::best(), 0)?;
    each(op, usize::MAX, |case| isolation(op, case, &device))
}

/// The number of cases with random sizes. They are the same in every run, so that a fault is reproducible.
const RANDOM: usize = 24;

fn matches_on_random_shapes(op: &Op) -> Result<Vec<String>> {
    let mut rng = Rng::new(4, &format!("{} shapes", op.name()));
    let mut faults = Vec::new();
    for _ in 0..RANDOM {
        let case = &op.cases[rng.below(op.cases.len())];
        // a case borrows its sizes for ever; these are few and small
        let sizes: &'static [(char, usize)] = random_sizes(op, case, &mut rng).leak();
        let report = check(op, &Case { sizes, ..*case }, DType::F32, &Device::cpu(), Zeros::MayPass)?;
        faults.extend(report.faults.iter().map(|fault| format!("{}, {sizes:?} of {}: {fault}", op.name(), case.name)));
    }
    Ok(faults)
}

/// The sizes of a case, replaced by random ones and then repaired to what the contract's rules ask for.
fn random_sizes(op: &Op, case: &Case, rng: &mut Rng) -> Vec<(char, usize)> {
    let mut draw = |(letter, size): (char, usize)| {
        let draw = 1 + rng.below(op.largest);
        (letter, if op.fixed.contains(&letter) { size } else { draw })
    };
    let mut sizes: Vec<(char, usize)> = case.sizes.iter().map(|&size| draw(size)).collect();
    for rule in op.contract.rules {
        let size_of = |letter| sizes.iter().find(|s| s.0 == letter).map_or(1, |s| s.1);
        let (letter, size) = match *rule {
            Rule::MultipleOfAxis(a, b) => (a, size_of(b) * (1 + size_of(a) % 3)),
            Rule::AtMostNumber(a, most) => (a, size_of(a).min(most)),
            Rule::MultipleOfNumber(a, of) => (a, size_of(a).next_multiple_of(of)),
            Rule::AtMostAxis(a, b) => (a, size_of(a).min(size_of(b))),
        };
        sizes.iter_mut().filter(|s| s.0 == letter).for_each(|s| s.1 = size);
    }
    // packed sequences have a token each at least
    for (_, fill) in op.fills.iter().filter(|(name, _)| !case.without.contains(name)) {
        if let Fill::Offsets(letter) = *fill {
            let count = sizes.iter().find(|s| s.0 == 'N').map_or(1, |s| s.1);
            sizes.iter_mut().filter(|s| s.0 == letter).for_each(|s| s.1 = s.1.max(count));
        }
    }
    sizes
}
