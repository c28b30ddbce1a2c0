//! The proof, once for every operation of the list.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::cpu::{Cpu, Level};
use alluvium_core::{DType, Device};
use alluvium_ops::check::{Zeros, bytes, check, gradient_of_reference, need, refusals};
use alluvium_ops::{Case, OPS, Op};

/// Work of a case above which the slow checks leave it out; every operation has smaller cases, too.
const SMALL: usize = 300_000;

fn poisoned(level: Level, threads: usize) -> Device {
    Cpu::builder().poison().level(level).threads(threads).open().unwrap().into()
}

/// Runs the check over all cases of all operations; panics with every fault at once.
fn prove(dtype: DType, device: &Device, wanted: impl Fn(&Op, &Case) -> bool) {
    let mut faults = Vec::new();
    for op in OPS {
        for case in op.cases.iter().filter(|case| wanted(op, case)) {
            let report = check(op, case, dtype, device, Zeros::MustFail).unwrap();
            faults.extend(report.faults.iter().map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
        }
    }
    assert!(faults.is_empty(), "{} faults in {dtype} on {device:?}:\n{}", faults.len(), faults.join("\n"));
}

fn work(op: &Op, case: &Case) -> usize {
    let cost = (op.cost)(&alluvium_core::Dims::of(case.sizes));
    cost.flops.max(cost.bytes)
}

#[test]
fn every_operation_matches_its_reference() {
    prove(DType::F32, &poisoned(Level::best(), 0), |_, _| true);
}

#[test]
fn every_instruction_set_matches_the_reference() {
    for level in Level::available() {
        prove(DType::F32, &poisoned(level, 3), |op, case| work(op, case) < 40 * SMALL);
    }
}

#[test]
fn the_bits_do_not_depend_on_the_number_of_threads() {
    let devices = [1, 2, 5].map(|threads| poisoned(Level::best(), threads));
    let mut faults = Vec::new();
    for op in OPS {
        for case in op.cases {
            let [one, two, five] =
                devices.each_ref().map(|device| bytes(op, case, DType::F32, device).unwrap_or_default());
            assert!(!one.is_empty(), "{}, {}: nothing came", op.name(), case.name);
            if one != two || one != five {
                faults.push(format!("{}, {}: 1, 2 and 5 threads give other bits", op.name(), case.name));
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn half_precision_storage_costs_only_its_roundings() {
    for dtype in [DType::BF16, DType::F16] {
        prove(dtype, &poisoned(Level::best(), 0), |op, case| work(op, case) < 40 * SMALL);
    }
}

#[test]
fn the_gradients_of_the_references_match_central_differences() {
    let mut faults = Vec::new();
    for op in OPS.iter().filter(|op| op.differentiable()) {
        let small: Vec<&Case> = op.cases.iter().filter(|case| work(op, case) < SMALL).collect();
        assert!(!small.is_empty(), "{} has no case small enough for differences", op.name());
        for case in small {
            let found = gradient_of_reference(op, case).unwrap();
            faults.extend(found.iter().map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn an_input_that_is_not_traced_costs_its_gradient_neither_bits_nor_memory() {
    let device = poisoned(Level::best(), 0);
    let mut faults = Vec::new();
    for op in OPS {
        for case in op.cases.iter().filter(|case| work(op, case) < 40 * SMALL) {
            let found = need(op, case, &device).unwrap();
            faults.extend(found.iter().map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn arguments_that_break_a_contract_are_refused_in_words() {
    let mut faults = Vec::new();
    for op in OPS {
        for case in op.cases.iter().filter(|case| work(op, case) < SMALL) {
            let found = refusals(op, case, &Device::cpu()).unwrap();
            faults.extend(found.iter().map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_list_is_whole_and_each_entry_can_be_proved() {
    let mut names: Vec<&str> = OPS.iter().map(|op| op.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), OPS.len(), "two entries share a name");
    for op in OPS {
        assert!(!op.cases.is_empty() && !op.bench.is_empty() && !op.results.is_empty(), "{}", op.name());
    }
}

#[test]
fn every_argument_and_option_has_a_case_small_enough_for_the_slow_checks() {
    let mut faults = Vec::new();
    for op in OPS {
        let small: Vec<&Case> = op.cases.iter().filter(|case| work(op, case) < SMALL).collect();
        for arg in op.contract.args {
            let left_out = |case: &Case| case.without.contains(&arg.name());
            if small.iter().all(|case| left_out(case)) {
                faults.push(format!("{}: no small case has `{}`", op.name(), arg.name()));
            }
            if op.cases.iter().any(left_out) && !small.iter().any(|case| left_out(case)) {
                faults.push(format!("{}: no small case is without `{}`", op.name(), arg.name()));
            }
        }
        for (option, _) in op.cases.iter().flat_map(|case| case.options).filter(|_| op.differentiable()) {
            if !small.iter().flat_map(|case| case.options).any(|(name, _)| name == option) {
                faults.push(format!("{}: no small case sets {option}", op.name()));
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
