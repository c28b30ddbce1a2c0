//! The proof: one module for each operation of the list, one test for each question. `cargo test rms_norm` proves
//! `rms_norm`.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_ops::check::{QUESTIONS, SMALL, work};
use alluvium_ops::{Case, OPS, find};

/// Asks a question about an operation; panics with every fault at once.
fn ask(op: &str, question: usize) {
    let (what, ask) = QUESTIONS[question];
    let faults = ask(find(op).unwrap()).unwrap();
    assert!(faults.is_empty(), "{what}: {} faults:\n{}", faults.len(), faults.join("\n"));
}

macro_rules! questions {
    ($($op:ident)*) => {$(
        mod $op {
            const NAME: &str = stringify!($op);

            #[test]
            fn values_and_gradients_match_the_reference() {
                super::ask(NAME, 0);
            }

            #[test]
            fn every_instruction_set_matches_the_reference() {
                super::ask(NAME, 1);
            }

            #[test]
            fn half_precision_storage_costs_only_its_roundings() {
                super::ask(NAME, 2);
            }

            #[test]
            fn the_gradient_of_the_reference_matches_differences() {
                super::ask(NAME, 3);
            }

            #[test]
            fn broken_arguments_are_refused() {
                super::ask(NAME, 4);
            }

            #[test]
            fn the_bits_do_not_depend_on_the_threads() {
                super::ask(NAME, 5);
            }

            #[test]
            fn inputs_that_are_not_traced_cost_nothing() {
                super::ask(NAME, 6);
            }

            #[test]
            fn random_shapes_match_the_reference() {
                super::ask(NAME, 7);
            }

            #[test]
            fn packed_sequences_do_not_see_each_others_nan() {
                super::ask(NAME, 8);
            }
        }
    )*};
}

alluvium_ops::for_each_op!(questions);

#[test]
fn every_question_is_a_test() {
    assert_eq!(QUESTIONS.len(), 9);
    let packed = |case: &Case| case.sizes.iter().any(|size| size.0 == 'N') && !case.without.contains(&"cu_seqlens");
    for op in OPS.iter().filter(|op| op.contract.args.iter().any(|arg| arg.name() == "cu_seqlens")) {
        assert!(op.cases.iter().any(packed), "{} has no case of packed sequences", op.name());
    }
    for op in OPS.iter().filter(|op| op.differentiable()) {
        assert!(op.cases.iter().any(|case| work(op, case) < SMALL), "{} has no case for differences", op.name());
    }
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
