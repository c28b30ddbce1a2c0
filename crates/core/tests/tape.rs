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
        assert_eq!((dx.dtype(), dx.item().unwrap()), (DType::F32, 1.0));
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

/// The same elements in bf16.
fn bf16s(data: &[f32]) -> Tensor {
    let data: Vec<bf16> = data.iter().map(|&x| bf16::from_f32(x)).collect();
    Tensor::from_slice(&data, [data.len()], &Device::cpu()).unwrap()
}

/// An operation whose gradient is f32 where `x` asks for it; `seen` is what `dy` must be.
fn weighed(x: &Tensor, seen: DType) -> Tensor {
    struct Weighed(DType, DType);
    impl Backward<1> for Weighed {
        fn op(&self) -> &'static str {
            "weighed"
        }
        fn backward(self, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
            assert_eq!(dy.dtype(), self.1);
            let third = vec![1.0f32 / 3.0; dy.elements()];
            let dx = Tensor::from_slice(&third, dy.shape(), dy.device())?;
            Ok([Some(if self.0 == DType::F32 { dx } else { bf16s(&third) })])
        }
    }
    record([x], x.detach(), || Weighed(x.gradient_dtype(), seen)).unwrap()
}

#[test]
fn a_watched_tensor_in_half_precision_gets_its_gradient_in_f32_and_a_result_in_its_own_dtype() {
    let tape = Tape::new();
    let w = tape.watch(&bf16s(&[1.0, 2.0, 3.0]));
    assert_eq!((w.gradient_dtype(), w.detach().gradient_dtype()), (DType::F32, DType::BF16));
    let h = weighed(&w, DType::BF16);
    assert_eq!(h.gradient_dtype(), DType::BF16);
    let y = weighed(&h, DType::BF16);
    let grads = tape.backward(&[(&y, &bf16s(&[1.0; 3]))]).unwrap();
    assert_eq!(grads.get(&w).unwrap().to_vec::<f32>().unwrap(), [1.0 / 3.0; 3]);
}

#[test]
fn gradients_that_an_operation_rounded_are_added_in_f32_at_a_watched_tensor() {
    let tape = Tape::new();
    let x = tape.watch(&bf16s(&[1.0]));
    let third = |_: Tensor| Some(bf16s(&[1.0 / 3.0]));
    let [a, b] = [twice(&x, third).unwrap(), twice(&x, |_| Some(bf16s(&[1.0]))).unwrap()];
    let grads = tape.backward(&[(&a, &bf16s(&[1.0])), (&b, &bf16s(&[1.0]))]).unwrap();
    let dx = grads.get(&x).unwrap();
    assert_eq!((dx.dtype(), dx.item().unwrap()), (DType::F32, 1.0 + bf16::from_f32(1.0 / 3.0).to_f32()));
}

#[test]
fn an_f32_gradient_of_a_result_in_half_precision_is_rounded_when_its_operation_takes_it() {
    let tape = Tape::new();
    let w = tape.watch(&bf16s(&[1.0; 3]));
    let y = weighed(&w, DType::BF16);
    let wide = Tensor::full([3], 1.0 + 1.0 / 512.0, &Device::cpu()).unwrap();
    assert!(tape.backward(&[(&y, &wide)]).unwrap().get(&w).is_some());
    // another half-precision dtype is none of its gradients
    let other = Tensor::zeros([3], DType::F16, &Device::cpu()).unwrap();
    let error = message(tape.backward(&[(&weighed(&w, DType::BF16), &other)]));
    assert_eq!(error, "backward: the gradient is [3] f16, expected [3] bf16");
}

#[test]
fn the_gradient_of_a_reshaped_weight_stays_f32_on_its_way() {
    let tape = Tape::new();
    let w = tape.watch(&bf16s(&[1.0; 6]));
    let moved = w.reshape([2, 3]).unwrap().reshape([6]).unwrap();
    assert_eq!(moved.gradient_dtype(), DType::F32);
    let grads = tape.backward(&[(&weighed(&moved, DType::BF16), &bf16s(&[1.0; 6]))]).unwrap();
    assert_eq!(grads.get(&w).unwrap().to_vec::<f32>().unwrap(), [1.0 / 3.0; 6]);
    // a reshaped result of another operation is no weight
    assert_eq!(weighed(&w, DType::BF16).reshape([2, 3]).unwrap().gradient_dtype(), DType::BF16);
}

#[test]
fn sums_of_gradients_are_f32_where_an_addend_is_and_rounded_once_elsewhere() {
    let n = 3 * 1024 + 5;
    let (device, third) = (Device::cpu(), 1.0f32 / 3.0);
    let wide = |x: f32| Tensor::full([n], x, &device).unwrap();
    let half = |x: f32| bf16s(&vec![x; n]);
    let rounded = |x: f32| bf16::from_f32(x).to_f32();
    for (sum, x, want, dtype) in [
        (wide(third), half(1.0), third + 1.0, DType::F32),
        (half(1.0), wide(third), third + 1.0, DType::F32),
        (half(1.0), half(third), rounded(1.0 + rounded(third)), DType::BF16),
    ] {
        // shared memory is left as it was
        let (before, kept) = (sum.clone(), sum.to_floats().unwrap());
        let apart = sum.accumulate(&x).unwrap();
        assert_eq!(before.to_floats().unwrap(), kept);
        let in_place = before.accumulate(&x).unwrap();
        for sum in [apart, in_place] {
            assert_eq!((sum.dtype(), sum.to_floats().unwrap()), (dtype, vec![want; n]));
        }
    }
    let halves = Tensor::from_slice(&vec![f16::ONE; n], [n], &device).unwrap();
    assert_eq!(halves.clone().accumulate(&halves).unwrap().to_floats().unwrap(), vec![2.0; n]);
    let error = half(1.0).accumulate(&halves).unwrap_err().to_string();
    assert_eq!(error, format!("accumulate: {:?} and {halves:?} cannot be added", half(1.0)));
    let ids = Tensor::zeros([n], DType::U32, &device).unwrap();
    assert!(ids.clone().accumulate(&ids).is_err());
}
