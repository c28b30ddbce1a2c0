//! Property tests: every operation on sizes that nobody chose.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::contract::Fill;
use alluvium_core::{DType, Device, Rule};
use alluvium_ops::check::{Zeros, check};
use alluvium_ops::{Case, OPS, Op};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The sizes of a case, replaced by random ones and then repaired to what the contract's rules ask for.
fn sizes(op: &Op, case: &Case, draws: &[usize]) -> Vec<(char, usize)> {
    let mut sizes: Vec<(char, usize)> = case
        .sizes
        .iter()
        .zip(draws)
        .map(|(&(letter, size), &draw)| (letter, if op.fixed.contains(&letter) { size } else { draw }))
        .collect();
    for rule in op.contract.rules {
        let size_of = |sizes: &[(char, usize)], letter| sizes.iter().find(|s| s.0 == letter).map_or(1, |s| s.1);
        let (letter, size) = match *rule {
            Rule::MultipleOfAxis(a, b) => (a, size_of(&sizes, b) * (1 + size_of(&sizes, a) % 3)),
            Rule::AtMostNumber(a, most) => (a, size_of(&sizes, a).min(most)),
            Rule::MultipleOfNumber(a, of) => (a, size_of(&sizes, a).next_multiple_of(of)),
            Rule::AtMostAxis(a, b) => (a, size_of(&sizes, a).min(size_of(&sizes, b))),
        };
        sizes.iter_mut().filter(|s| s.0 == letter).for_each(|s| s.1 = size);
    }
    // packed sequences have a token each at least
    for arg in op.contract.args.iter().filter(|arg| !case.without.contains(&arg.name())) {
        if let Fill::Offsets(letter) = arg.fill() {
            let count = sizes.iter().find(|s| s.0 == 'N').map_or(1, |s| s.1);
            sizes.iter_mut().filter(|s| s.0 == letter).for_each(|s| s.1 = s.1.max(count));
        }
    }
    sizes
}

#[test]
fn every_operation_holds_on_random_shapes() {
    for op in OPS {
        let strategy = (0..op.cases.len(), prop::collection::vec(1usize..=op.largest, 10));
        // the same sizes in every run: who sees it fail can see it again
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, rng);
        let outcome = runner.run(&strategy, |(index, draws)| {
            let case = &op.cases[index];
            let sizes: &'static [(char, usize)] = sizes(op, case, &draws).leak();
            let case = Case { sizes, ..*case };
            let report = check(op, &case, DType::F32, &Device::cpu(), Zeros::MayPass).unwrap();
            prop_assert!(report.passed(), "{} {:?} {:?}: {}", op.name(), sizes, case.name, report.faults.join("; "));
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{error}");
        }
    }
}
