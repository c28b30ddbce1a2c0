use super::*;
use crate::Device;

/// `y = c·x`, by hand.
fn times(x: &Tensor, c: f32) -> Result<Tensor> {
    struct Times(f32);
    impl Backward<1> for Times {
        fn op(&self) -> &'static str {
            "times"
        }
        fn backward(self, dy: Tensor, _: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
            Ok([Some(times(&dy, self.0)?)])
        }
    }
    let data: Vec<f32> = x.to_vec::<f32>()?.iter().map(|x| c * x).collect();
    record([x], Tensor::from_slice(&data, x.shape(), x.device())?, || Times(c))
}

/// `a + b`, by hand.
fn plus(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    struct Plus;
    impl Backward<2> for Plus {
        fn op(&self) -> &'static str {
            "plus"
        }
        fn backward(self, dy: Tensor, _: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
            Ok([Some(dy.clone()), Some(dy)])
        }
    }
    record([a, b], accumulate(a.detach(), &b.detach())?, || Plus)
}

fn number(x: f32) -> Tensor {
    Tensor::full([1], x, &Device::cpu()).unwrap()
}

#[test]
fn a_tensor_used_twice_gets_the_sum_of_both_gradients() {
    let tape = Tape::new();
    let x = tape.watch(&number(3.0));
    let y = plus(&times(&x, 2.0).unwrap(), &times(&x, 5.0).unwrap()).unwrap();
    assert_eq!(y.item().unwrap(), 21.0);
    assert_eq!(y.backward().unwrap().get(&x).unwrap().item().unwrap(), 7.0);
    assert!(tape.is_empty());
}

/// The sum of any number of tensors and, as a second result, of the last alone.
fn total(parts: &[&Tensor]) -> Vec<Tensor> {
    struct Total(usize);
    impl BackwardAll for Total {
        fn op(&self) -> &'static str {
            "total"
        }
        fn backward(self, dy: Vec<Option<Tensor>>, need: &[bool]) -> Result<Vec<Option<Tensor>>> {
            assert_eq!((dy.len(), need.len()), (2, self.0));
            Ok(need.iter().map(|&need| dy[0].clone().filter(|_| need)).collect())
        }
    }
    let zero = number(0.0);
    let sum = parts.iter().fold(zero, |sum, x| accumulate(sum, x).unwrap());
    let inputs: Vec<Option<&Tensor>> = parts.iter().map(|&x| Some(x)).collect();
    record_all(&inputs, vec![sum, parts[parts.len() - 1].detach()], || Total(parts.len())).unwrap()
}

#[test]
fn an_operation_of_any_number_of_inputs_gives_each_traced_one_its_gradient() {
    let tape = Tape::new();
    let (x, y, plain) = (tape.watch(&number(3.0)), tape.watch(&number(4.0)), number(5.0));
    let results = total(&[&x, &plain, &y, &x]);
    assert_eq!(results[0].item().unwrap(), 15.0);
    let grads = times(&results[0], 2.0).unwrap().backward().unwrap();
    assert_eq!(grads.get(&x).unwrap().item().unwrap(), 4.0);
    assert_eq!(grads.get(&y).unwrap().item().unwrap(), 2.0);
    assert!(!total(&[&plain])[0].is_traced());
}

#[test]
fn a_recomputed_layer_has_the_gradients_of_a_kept_one_and_keeps_nothing() {
    for recomputed in [false, true] {
        let tape = Tape::new();
        let (x, w) = (tape.watch(&number(3.0)), tape.watch(&number(4.0)));
        let (inner, h) = (w.clone(), times(&x, 2.0).unwrap());
        let layer = move |x: &Tensor| times(&plus(x, &times(&inner, 3.0)?)?, 10.0);
        let h = if recomputed { recompute(&h, layer) } else { layer(&h) }.unwrap();
        assert_eq!(tape.len(), if recomputed { 2 } else { 4 });
        let grads = times(&h, 1.0).unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().item().unwrap(), 20.0);
        assert_eq!(grads.get(&w).unwrap().item().unwrap(), 30.0);
    }
}

#[test]
fn a_recomputed_layer_that_hands_its_input_through_keeps_the_gradient() {
    let tape = Tape::new();
    let x = tape.watch(&number(3.0));
    let y = recompute(&x, |x| Ok(x.clone())).unwrap();
    assert_eq!(y.backward().unwrap().get(&x).unwrap().item().unwrap(), 1.0);
}

#[test]
fn two_tapes_in_one_operation_are_an_error() {
    let (one, two) = (Tape::new(), Tape::new());
    let error = plus(&one.watch(&number(1.0)), &two.watch(&number(1.0))).unwrap_err().to_string();
    assert_eq!(error, "tape: tensors of two tapes meet in one operation; detach() one of them");
}

#[test]
fn a_tensor_outlives_its_tape_as_a_plain_one() {
    let tape = Tape::new();
    let x = tape.watch(&number(1.0));
    drop(tape);
    assert!(!x.is_traced() && !times(&x, 2.0).unwrap().is_traced());
    assert_eq!(x.backward().unwrap_err().to_string(), "backward: the tensor is not traced");
}

#[test]
fn an_operation_without_gradient_refuses_a_traced_tensor() {
    let tape = Tape::new();
    let x = tape.watch(&number(1.0));
    let error = no_gradient("argmax", "an index does not move", [&x]).unwrap_err().to_string();
    assert!(error.starts_with("argmax: a traced tensor came, but there is no gradient: an index does not move"));
    assert!(no_gradient("argmax", "an index does not move", [&x.detach()]).is_ok());
}

#[test]
fn what_the_result_does_not_depend_on_has_no_gradient() {
    let tape = Tape::new();
    let (x, other) = (tape.watch(&number(1.0)), tape.watch(&number(1.0)));
    assert!(times(&x, 2.0).unwrap().backward().unwrap().get(&other).is_none());
}
