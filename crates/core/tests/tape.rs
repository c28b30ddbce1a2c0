//! Misuse of the tape through the public API: every case is an error that names its cause, never a wrong gradient.
#![allow(clippy::unwrap_used)]

use alluvium_core::tape::{recompute, record, record_all, record_many};
use alluvium_core::{
    Backward, BackwardAll, BackwardMany, DType, Device, Gradients, Result, Shape, Tape, Tensor, cpu::Cpu,
};
use half::{bf16, f16};

/// `y = 2·x`, whose gradient is whatever the test makes of it.
fn twice(x: &Tensor, grad: fn(Tensor) -> Option<Tensor>) -> Result<Tensor> {
    struct Twice(fn(Tensor) -> Option<Tensor>);
    impl Backward<1> for Twice {
        fn op(&self) -> &'static str {
            "twice"
        }
        fn backward(self, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
            Ok([(self.0)(dy)])
        }
    }
    record([x], x.detach(), || Twice(grad))
}

fn vector(device: &Device) -> Tensor {
    Tensor::full([1], 3.0, device).unwrap()
}

fn message(result: Result<Gradients>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_second_loss_over_consumed_entries_is_an_error_that_says_what_to_do() {
    let tape = Tape::new();
    let x = tape.watch(&vector(&Device::cpu()));
    let y = twice(&x, Some).unwrap();
    let [first, second] = [twice(&y, Some).unwrap(), twice(&y, Some).unwrap()];
    assert!(first.backward().unwrap().get(&x).is_some());
    for error in [message(second.backward()), message(first.backward()), message(y.backward())] {
        assert!(error.contains("an earlier backward") && error.contains("one call"), "{error}");
    }
    // an operation on a result whose history is gone would lose the gradient to `x`
    let error = twice(&y, Some).unwrap_err().to_string();
    assert!(error.contains("an earlier backward"), "{error}");
    // leaves live on: the next step of training uses the same tape
    let y = twice(&x, Some).unwrap();
    assert!(y.backward().unwrap().get(&x).is_some());
    assert!(x.backward().unwrap().get(&x).is_some());
}

#[test]
fn a_backward_that_fails_leaves_a_tape_that_can_be_used() {
    let tape = Tape::new();
    let x = tape.watch(&vector(&Device::cpu()));
    let y = twice(&twice(&x, Some).unwrap(), |_| None).unwrap();
    assert!(y.backward().is_err());
    assert!(tape.is_empty());
    assert!(message(y.backward()).contains("an earlier backward"));
    assert!(twice(&x, Some).unwrap().backward().unwrap().get(&x).is_some());
}

#[test]
fn a_seed_of_another_device_handle_is_refused() {
    let other = Device::from(Cpu::builder().threads(1).open().unwrap());
    let tape = Tape::new();
    let x = tape.watch(&vector(&Device::cpu()));
    let y = twice(&x, Some).unwrap();
    let error = message(tape.backward(&[(&y, &vector(&other))]));
    assert!(error.contains("device"), "{error}");
    // nothing was consumed
    assert!(y.backward().unwrap().get(&x).is_some());
}

#[test]
fn a_missing_gradient_names_the_operation_and_the_input() {
    let tape = Tape::new();
    let x = tape.watch(&vector(&Device::cpu()));
    let error = message(twice(&x, |_| None).unwrap().backward());
    assert!(error.starts_with("twice: ") && error.contains("input 0"), "{error}");

    struct Few;
    impl BackwardAll for Few {
        fn op(&self) -> &'static str {
            "few"
        }
        fn backward(self, _: Vec<Option<Tensor>>, _: &[bool]) -> Result<Vec<Option<Tensor>>> {
            Ok(vec![])
        }
    }
    let y = record_all(&[Some(&x)], vec![x.detach()], || Few).unwrap();
    let error = message(y[0].backward());
    assert!(error.starts_with("few: ") && error.contains("0 gradients for 1 input"), "{error}");

    struct Pair;
    impl BackwardMany<1, 2> for Pair {
        fn op(&self) -> &'static str {
            "pair"
        }
        fn backward(self, _: [Option<Tensor>; 2], _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
            Ok([None])
        }
    }
    let [a, b] = record_many([&x], [x.detach(), x.detach()], || Pair).unwrap();
    let error = message(tape.backward(&[(&a, &vector(&Device::cpu())), (&b, &vector(&Device::cpu()))]));
    assert!(error.starts_with("pair: ") && error.contains("input 0"), "{error}");
}

#[test]
fn a_gradient_of_another_shape_dtype_or_device_than_its_input_is_refused() {
    let wrong: [fn(Tensor) -> Option<Tensor>; 3] = [
        |_| Tensor::full([2], 1.0, &Device::cpu()).ok(),
        |_| Tensor::zeros([1], DType::BF16, &Device::cpu()).ok(),
        |_| Tensor::full([1], 1.0, &Cpu::builder().threads(1).open().ok()?.into()).ok(),
    ];
    for grad in wrong {
        let tape = Tape::new();
        let x = tape.watch(&vector(&Device::cpu()));
        let error = message(twice(&x, grad).unwrap().backward());
        assert!(error.starts_with("twice: the gradient of input 0 is "), "{error}");
    }
}

#[test]
fn a_loss_in_half_precision_has_a_backward() {
    let device = Device::cpu();
    for x in [
        Tensor::from_slice(&[bf16::from_f32(3.0)], [1], &device).unwrap(),
        Tensor::from_slice(&[f16::from_f32(3.0)], [], &device).unwrap(),
    ] {
        let tape = Tape::new();
        let x = tape.watch(&x);
        let grads = twice(&x, Some).unwrap().backward().unwrap();
        let dx = grads.get(&x).unwrap();
        assert_eq!((dx.dtype(), dx.item().unwrap()), (x.dtype(), 1.0));
    }
    let tape = Tape::new();
    let ids = tape.watch(&Tensor::from_slice(&[1u32], [1], &device).unwrap());
    assert!(message(ids.backward()).contains("u32"));
}

#[test]
fn a_panic_inside_recompute_leaves_the_tape_recording() {
    let tape = Tape::new();
    let x = tape.watch(&vector(&Device::cpu()));
    let panics = std::panic::AssertUnwindSafe(|| recompute(&x, |_| std::panic::panic_any("on purpose")));
    assert!(std::panic::catch_unwind(panics).is_err());
    let y = twice(&x, Some).unwrap();
    assert!(y.is_traced() && tape.len() == 1);
}

#[test]
fn a_backward_inside_a_backward_is_refused() {
    let tape = Tape::new();
    let x = tape.watch(&vector(&Device::cpu()));
    let inner = x.clone();
    // the second run of the layer is inside the backward pass
    let y = recompute(&x, move |x| {
        let y = twice(x, Some)?;
        if y.is_traced() && inner.backward().is_err() {
            return Err(alluvium_core::Error::value("layer", "refused"));
        }
        Ok(y)
    });
    assert_eq!(message(y.unwrap().backward()), "layer: refused");
    assert!(twice(&x, Some).unwrap().backward().is_ok());
}

#[test]
fn work_of_a_second_thread_during_a_recomputed_layer_is_refused_and_not_lost() {
    let tape = Tape::new();
    let (x, shape) = (tape.watch(&vector(&Device::cpu())), Shape::from([1]));
    let other = x.clone();
    let y = recompute(&x, move |x| {
        let result = std::thread::scope(|scope| scope.spawn(|| twice(&other, Some)).join());
        let traced = result.is_ok_and(|y| y.is_ok_and(|y| !y.is_traced()));
        if traced { Err(alluvium_core::Error::value("layer", "lost")) } else { x.reshape(shape) }
    });
    assert!(y.is_ok(), "{y:?}");
}
