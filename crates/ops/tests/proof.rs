//! What the proof refuses: cases that would silently test something else than they say.
#![allow(clippy::unwrap_used)]

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, DType, Device};
use alluvium_ops::check::{Zeros, check, unknown_names};
use alluvium_ops::{Case, Cost, Fill, OPS, Op, find};

/// The faults of one case of `rms_norm`.
fn faults(case: Case) -> Vec<String> {
    let op = find("rms_norm").unwrap();
    check(op, &case, DType::F32, &Device::cpu(), Zeros::MustFail).unwrap().faults
}

const SIZES: &[(char, usize)] = &[('R', 3), ('D', 63)];

#[test]
fn a_case_whose_names_are_all_known_passes() {
    let case =
        Case::new("plain", SIZES).options(&[("eps", 0.5)]).filled(&[("w", Fill::Uniform(0.5, 1.0))]).each(&["y"]);
    assert_eq!(faults(case), [""; 0]);
}

#[test]
fn an_option_that_the_operation_does_not_read_fails() {
    let misspelt = faults(Case::new("misspelt", SIZES).options(&[("epsilon", 0.5)]));
    assert_eq!(misspelt, ["option `epsilon` is not read by rms_norm"]);
    let both = faults(Case::new("one of two", SIZES).options(&[("eps", 0.5), ("axis", 1.0)]));
    assert_eq!(both, ["option `axis` is not read by rms_norm"]);
}

#[test]
fn a_name_that_is_no_argument_or_result_fails() {
    let case = Case::new("unknown names", SIZES)
        .without(&["bias"])
        .filled(&[("weight", Fill::Normal(2.0))])
        .stored(&[("z", DType::F32)])
        .zeros(&["d z"])
        .each(&["d y"]);
    let faults = faults(case);
    for name in ["`bias`", "`weight`", "`z`", "`d z`", "`d y`"] {
        assert_eq!(faults.iter().filter(|fault| fault.contains(name)).count(), 1, "{name} in {faults:?}");
    }
}

#[test]
fn a_letter_that_the_contract_does_not_name_fails() {
    let faults = faults(Case::new("a letter too many", &[('R', 3), ('D', 63), ('Q', 2)]));
    assert_eq!(faults, ["size `Q` is not an axis of rms_norm"]);
}

#[test]
fn a_cost_that_reads_an_unknown_letter_panics() {
    static CONTRACT: Contract = Contract { op: "copy", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };
    static COPY: Op = Op {
        contract: &CONTRACT,
        run: |t| Ok(vec![t["x"].clone()]),
        reference: |t| vec![t["x"].clone()],
        cases: &[Case::new("plain", SIZES)],
        cost: |d| Cost { bytes: 8 * d['R'] * d['N'], ..Cost::default() },
        ..Op::BASE
    };
    let cost = std::panic::catch_unwind(|| alluvium_ops::check::work(&COPY, &COPY.cases[0]));
    assert!(cost.is_err(), "an unbound letter counted as {:?}", cost.unwrap());
}

#[test]
fn cases_that_are_timed_name_axes_and_arguments_of_their_operation() {
    let cases = OPS.iter().flat_map(|op| op.bench.iter().map(move |case| unknown_names(op, case)));
    assert_eq!(cases.flatten().collect::<Vec<_>>(), [""; 0]);
}
