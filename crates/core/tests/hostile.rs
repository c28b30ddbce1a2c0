//! Hostile values through the public API: an error comes back, the process never crashes and no size wraps.
#![allow(clippy::unwrap_used)]

use alluvium_core::contract::{F32, FLOATS};
use alluvium_core::cpu::{Cpu, GeneratedMatrix, Isa, MatRef, MatrixSource, gemm};
use alluvium_core::{Arg, Contract, DType, Device, Dims, Rule, Shape, Tensor};
use std::ops::Range;

struct Ones;
impl MatrixSource for Ones {
    fn write(&self, _: Isa, _: Range<usize>, _: Range<usize>, to: &mut [f32]) {
        to.fill(1.0);
    }
}

#[test]
fn a_product_whose_size_wraps_is_an_error() {
    let cpu = Cpu::shared();
    let a = MatRef::new(&[1.0; 4], 4, 1).unwrap();
    // 4 · 2⁶² wraps to 0, the length of the result
    assert!(gemm(&cpu, 1.0, a, GeneratedMatrix::new(&cpu, &Ones, 0..1, 1 << 62), 0.0, &mut []).is_err());
    let tall = GeneratedMatrix::new(&cpu, &Ones, 0..1 << 62, 4).t();
    assert!(gemm(&cpu, 1.0, MatRef::new(&[1.0; 16], 4, 4).unwrap(), tall, 0.0, &mut []).is_err());
    assert!(MatRef::new(&[], usize::MAX, 2).is_err());
    let nothing = MatRef::new(&[], usize::MAX, 0).unwrap();
    assert!(gemm(&cpu, 1.0, nothing, MatRef::new(&[], 0, usize::MAX).unwrap(), 0.0, &mut [1.0]).is_err());
    assert!(gemm(&cpu, 1.0, nothing, MatRef::new(&[], 0, 0).unwrap(), 0.0, &mut []).is_ok());
}

#[test]
fn shapes_whose_sizes_wrap_are_errors_wherever_they_come_in() {
    let device = Device::cpu();
    for shape in [Shape::from([usize::MAX, 2]), Shape::from([1 << 32, 1 << 32]), Shape::from([usize::MAX; 6])] {
        assert_eq!(shape.elements(), usize::MAX);
        assert!(Tensor::zeros(shape, DType::F32, &device).is_err());
        assert!(Tensor::full(shape, 1.0, &device).is_err());
        assert!(Tensor::from_slice::<f32>(&[], shape, &device).is_err());
        assert!(Tensor::from_bytes(&[], shape, DType::U8, &device).is_err());
        assert!(Tensor::filled(shape, DType::F32, &device, |_| Ok(())).is_err());
        assert!(Tensor::zeros([1], DType::F32, &device).unwrap().reshape(shape).is_err());
    }
    let cpu = Cpu::shared();
    for len in [usize::MAX, usize::MAX / 4, usize::MAX / 8, isize::MAX as usize] {
        assert!(cpu.buffer::<f32>(len).is_err() && cpu.zeros::<u8>(len).is_err());
    }
    assert!(Shape::new(&[0, usize::MAX, usize::MAX]).is_err());
}

#[test]
fn views_of_rows_that_are_not_there_are_errors() {
    let x = Tensor::zeros([3, 2], DType::F32, &Device::cpu()).unwrap();
    for (first, len) in [(0, 4), (3, 1), (usize::MAX, 1), (usize::MAX, usize::MAX), (1, usize::MAX), (0, 0)] {
        assert!(x.rows(first, len).is_err(), "{first} {len}");
    }
    let scalar = Tensor::full([], 1.0, &Device::cpu()).unwrap();
    assert!(scalar.rows(0, 1).is_err());
    let empty = Tensor::zeros([0, 2], DType::F32, &Device::cpu()).unwrap();
    assert!(empty.rows(0, 1).is_err() && empty.item().is_err());
    assert_eq!(empty.to_vec::<f32>().unwrap(), []);
}

#[test]
fn an_absurd_number_of_threads_is_an_error() {
    assert!(Cpu::builder().threads(usize::MAX).open().is_err());
    assert!(Cpu::builder().threads(100_000).open().is_err());
}

const MANY: [Arg; 13] = [Arg::new("x", "N", FLOATS).optional(); 13];

#[test]
fn a_contract_takes_any_number_of_arguments_and_refuses_more_than_it_names() {
    static THIRTEEN: Contract = Contract { op: "thirteen", args: &MANY, rules: &[] };
    let x = Tensor::zeros([4], DType::F32, &Device::cpu()).unwrap();
    assert_eq!(THIRTEEN.check(&[&x; 13]).unwrap()['N'], 4);
    assert_eq!(THIRTEEN.check(&[Some(&x), None]).unwrap()['N'], 4);
    let error = THIRTEEN.check(&[&x; 14]).unwrap_err().to_string();
    assert_eq!(error, "thirteen: 14 arguments, expected at most 13");
}

#[test]
fn a_contract_with_a_malformed_shape_or_a_rule_of_zero_is_an_error() {
    let x = Tensor::zeros([4], DType::F32, &Device::cpu()).unwrap();
    for shape in ["n", "N$", "N-", "R.. S..", "É", "N+99999999999999999999", "A B C D E F G H"] {
        let args: &'static [Arg] = Box::leak(Box::new([Arg::new("x", shape, F32)]));
        let contract = Contract { op: "odd", args, rules: &[] };
        assert!(contract.check(&[&x]).is_err(), "{shape}");
    }
    static ZERO: Contract =
        Contract { op: "zero", args: &[Arg::new("x", "N", F32)], rules: &[Rule::MultipleOfNumber('N', 0)] };
    assert!(ZERO.check(&[&x]).is_err());
    // N = 0 where the axis is N+1
    static NONE: Contract = Contract {
        op: "none",
        args: &[Arg::new("x", "M", F32), Arg::new("y", "N+1", F32)],
        rules: &[Rule::MultipleOfAxis('M', 'N')],
    };
    let one = Tensor::zeros([1], DType::F32, &Device::cpu()).unwrap();
    assert!(NONE.check(&[&x, &one]).is_err());
}

#[test]
fn a_letter_that_no_contract_names_is_not_a_size() {
    let dims = Dims::of(&[('T', 5)]);
    assert_eq!((dims['T'], dims.get('Q')), (5, None));
    assert!(dims.shape("T Q").is_err());
    assert!(std::panic::catch_unwind(|| dims['Q']).is_err());
    assert!(std::panic::catch_unwind(|| dims['q']).is_err());
}

#[test]
fn two_handles_of_the_processor_are_told_apart_in_words() {
    static TWO: Contract =
        Contract { op: "two", args: &[Arg::new("x", "N", F32), Arg::new("w", "N", F32)], rules: &[] };
    let other = Device::from(Cpu::builder().threads(1).open().unwrap());
    let [x, w] = [Device::cpu(), other].map(|device| Tensor::zeros([4], DType::F32, &device).unwrap());
    let error = TWO.check(&[&x, &w]).unwrap_err().to_string();
    assert_eq!(error, "two: `x` and `w` are on two handles of cpu; open the device once and clone the handle");
}
