//! What the list's cases do not reach on a GPU: short elements at odd places, memory that is written in place, ids that
//! a GPU made, and numbers at the edges of f32.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::gpu::{Builder, Gpu};
use alluvium_core::{DType, Device, Element, Shape, Tape, Tensor};
use alluvium_ops::*;
use half::f16;

mod written;

fn open() -> Option<Device> {
    open_as(Gpu::builder())
}

fn open_as(builder: Builder) -> Option<Device> {
    builder.poison().open_for_test().unwrap().map(Device::from)
}

/// The same moves on a device, as bytes.
fn moved<T: Element>(device: &Device, data: &[T], [a, b, c]: [usize; 3]) -> Vec<Vec<u8>> {
    let x = Tensor::from_slice(&data[..a * b * c], [a, b, c], device).unwrap();
    let part = |axis: usize, first: usize, end: usize| slice(&x, axis, first..end).unwrap();
    let mut moved = vec![
        concat(&[&x, &part(2, 0, 1), &x], 2).unwrap(),
        concat(&[&part(1, 1, b), &x, &part(1, 0, 1)], 1).unwrap(),
        concat(&[&part(0, 1, a), &x], 0).unwrap(),
        transpose(&x, [0, 1]).unwrap(),
        transpose(&x, [1, 2]).unwrap(),
        transpose(&x, [0, 2]).unwrap(),
        write_rows(x.clone(), &part(0, 0, 1), a - 1).unwrap(),
        write_rows(x.clone(), &part(0, a - 1, a), 1).unwrap(),
    ];
    moved.extend((0..3).flat_map(|axis| split(&x, &[1, x.shape()[axis] - 1], axis).unwrap()));
    // views that begin within a word
    moved.push(slice(&x.rows(1, 1).unwrap(), 2, 1..c).unwrap());
    moved.push(write_rows(x.clone(), &x.rows(a - 1, 1).unwrap(), 0).unwrap());
    moved.iter().map(|y| y.to_bytes().unwrap()).collect()
}

#[test]
fn bytes_halves_and_u32s_are_moved_to_any_offset_as_on_the_cpu() {
    let Some(gpu) = open() else { return };
    let cpu = Device::cpu();
    let bytes: Vec<u8> = (0..2_000).map(|i| (i * 7 % 251) as u8).collect();
    let halves: Vec<f16> = (0..2_000).map(|i| f16::from_f32(i as f32)).collect();
    let words: Vec<u32> = (0..2_000).map(|i| i * 77_777).collect();
    for shape in [[2, 2, 2], [2, 3, 5], [3, 2, 7], [5, 4, 3], [3, 5, 8], [2, 37, 16], [9, 2, 33]] {
        assert_eq!(moved(&gpu, &bytes, shape), moved(&cpu, &bytes, shape), "bytes {shape:?}");
        assert_eq!(moved(&gpu, &halves, shape), moved(&cpu, &halves, shape), "halves {shape:?}");
        assert_eq!(moved(&gpu, &words, shape), moved(&cpu, &words, shape), "words {shape:?}");
    }
    let Device::Gpu(gpu) = &gpu else { return };
    written::write(&gpu.shaders()).unwrap();
}

#[test]
fn memory_is_written_in_place_and_copied_if_it_is_shared() {
    let Some(device) = open() else { return };
    let Device::Gpu(gpu) = &device else { return };
    let full = |shape: &[usize], value| Tensor::full(Shape::new(shape).unwrap(), value, &device).unwrap();
    let rows = full(&[1, 2], 5.0);
    let cache = full(&[3, 2], 1.0);
    let before = gpu.memory().in_use();
    let cache = write_rows(cache, &rows, 1).unwrap();
    assert_eq!(gpu.memory().in_use(), before);
    let next = write_rows(cache.clone(), &rows, 2).unwrap();
    assert_eq!(cache.to_vec::<f32>().unwrap(), [1.0, 1.0, 5.0, 5.0, 1.0, 1.0]);
    assert_eq!(next.to_vec::<f32>().unwrap(), [1.0, 1.0, 5.0, 5.0, 5.0, 5.0]);

    let state = || [1.0, 0.1, 0.2].map(|value| full(&[70_001], value));
    let grad = full(&[70_001], 0.5);
    let [p, m, v] = state();
    let before = gpu.memory().in_use();
    gpu.memory().reset_peak();
    let moved = adamw(p, &grad, m, v, &AdamW::default()).unwrap();
    assert_eq!(gpu.memory().peak(), before);
    let [p, m, v] = state();
    let copied = adamw(p.clone(), &grad, m.clone(), v.clone(), &AdamW::default()).unwrap();
    assert_eq!(p.to_vec::<f32>().unwrap(), vec![1.0; 70_001]);
    for (a, b) in [(&copied.p, &moved.p), (&copied.m, &moved.m), (&copied.v, &moved.v)] {
        assert_eq!(a.to_bytes().unwrap(), b.to_bytes().unwrap());
    }
}

#[test]
fn an_id_that_a_gpu_made_is_not_waited_for_and_none_outside_the_table_reads_it() {
    let Some(device) = open() else { return };
    let table: Vec<f32> = (0..15).map(|i| i as f32).collect();
    let table = Tensor::from_slice(&table, [5, 3], &device).unwrap();
    let mut logits = vec![0.0f32; 18];
    (logits[4], logits[9], logits[17]) = (1.0, 1.0, 1.0);
    let ids = argmax(&Tensor::from_slice(&logits, [3, 6], &device).unwrap()).unwrap();
    assert!(ids.host_mirror().is_none());
    let y = embedding(&table, &ids).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(y[..6], [12.0, 13.0, 14.0, 9.0, 10.0, 11.0]);
    assert!(y[6..].iter().all(|y| y.is_nan()));
    let known = Tensor::from_slice(&[0u32, 5], [2], &device).unwrap();
    let error = embedding(&table, &known).unwrap_err().to_string();
    assert_eq!(error, "embedding: `ids` holds 5 at [1], expected less than V = 5");
}

#[test]
fn rows_are_summed_whatever_ids_repeat_and_those_that_a_gpu_made_are_not_waited_for() {
    let Some(gpu) = open() else { return };
    // integers, so that sums are the same in every order; rows of single numbers and of quads
    let dy = |count: usize, width: usize| (0..count * width).map(|i| (i % 13) as f32 - 6.0).collect::<Vec<_>>();
    let run = |device: &Device, ids: &Tensor, [rows, width]: [usize; 2], dtype: DType| {
        let tape = Tape::new();
        let table = tape.watch(&cast(&Tensor::full([rows, width], 1.0, device).unwrap(), dtype).unwrap());
        let y = embedding(&table, ids).unwrap();
        let dy = Tensor::from_slice(&dy(ids.elements(), width), y.shape(), device).unwrap();
        let grads = tape.backward(&[(&y, &cast(&dy, dtype).unwrap())]).unwrap();
        grads.get(&table).unwrap().to_floats().unwrap()
    };
    for (count, rows) in [(1, 1), (1_000, 1), (1, 257), (257, 257), (1_029, 257), (3_000, 5_000)] {
        let mixed = |i: u32| i.wrapping_mul(2_654_435_761) >> 7;
        let all = [
            vec![rows as u32 - 1; count],
            (0..count as u32).rev().map(|i| i % rows as u32).collect(),
            (0..count as u32).map(|i| mixed(i) % rows as u32).collect(),
            // long runs that begin and end within blocks
            (0..count as u32).map(|i| (mixed(i) % 3).min(rows as u32 - 1)).collect(),
        ];
        for (i, ids) in all.iter().enumerate() {
            for (width, dtype) in [(3, DType::F32), (260, DType::F32), (5, DType::BF16), (12, DType::BF16)] {
                let on = |device: &Device| {
                    let ids = Tensor::from_slice(ids, [count], device).unwrap();
                    run(device, &ids, [rows, width], dtype)
                };
                assert_eq!(on(&gpu), on(&Device::cpu()), "{count} of {rows}, {i}, {width} of {dtype}");
            }
        }
    }

    // of seven ids that a GPU made two name no row, and nobody gets their gradients
    let mut logits = vec![0.0f32; 7 * 6];
    let made = [4, 3, 5, 4, 0, 5, 4];
    made.iter().enumerate().for_each(|(i, id)| logits[i * 6 + id] = 1.0);
    let ids = argmax(&Tensor::from_slice(&logits, [7, 6], &gpu).unwrap()).unwrap();
    assert!(ids.host_mirror().is_none());
    let mut want = vec![0.0; 5 * 3];
    for (id, dy) in made.iter().zip(dy(7, 3).chunks(3)).filter(|(id, _)| **id < 5) {
        want[id * 3..][..3].iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
    }
    assert_eq!(run(&gpu, &ids, [5, 3], DType::F32), want);
}

#[test]
fn a_position_of_a_million_is_as_sharp_as_the_first() {
    let Some(device) = open() else { return };
    let positions = [0u32, 1, 999_999, 1_000_000, 1_048_575, u32::MAX];
    let (pairs, theta) = (64, 1e7f32);
    for dims in [2 * pairs, 2 * 33] {
        let x: Vec<f32> = (0..positions.len() * 128).map(|i| if i % 128 < dims / 2 { 1.0 } else { 0.0 }).collect();
        let x = Tensor::from_slice(&x, [1, positions.len(), 1, 128], &device).unwrap();
        let at = Tensor::from_slice(&positions, [1, positions.len()], &device).unwrap();
        let y = rope(&x, &at, Rope { theta, dims, scaling: RopeScaling::None, pairs: Pairs::Halves })
            .unwrap()
            .to_vec::<f32>()
            .unwrap();
        for (y, position) in y.chunks(128).zip(positions) {
            for i in 0..dims / 2 {
                let angle = f64::from(position) * f64::from(theta).powf(-(i as f64) / (dims / 2) as f64);
                let (cosine, sine) = (f64::from(y[i]), f64::from(y[i + dims / 2]));
                // f64 itself rounds the angle of the last position by more than f32 rounds the cosine
                let near = 1.5e-7 + angle * 2e-16;
                assert!((cosine - angle.cos()).abs() < near && (sine - angle.sin()).abs() < near, "{position}, {i}");
            }
        }
    }
}

#[test]
fn squares_that_f32_cannot_hold_are_summed() {
    let Some(device) = open() else { return };
    let norm = |x: &[f32]| {
        let x = Tensor::from_slice(x, [x.len()], &device).unwrap();
        global_norm(&[&x, &x, &x, &x]).unwrap().item().unwrap()
    };
    let near = |got: f32, want: f32| (got - want).abs() <= 1e-6 * want;
    assert!(near(norm(&[1e30, 1e30, 1e30, 1e30, 1.0]), 4e30));
    assert!(near(norm(&[1e-30, 0.0, 1e-30, 1e-30, 1e-30]), 4e-30));
    assert!(near(norm(&[3.0, 1e-20, 4.0]), 10.0));
    assert_eq!(norm(&[0.0]), 0.0);
    assert_eq!(norm(&[f32::INFINITY, 1.0]), f32::INFINITY);
    assert!(norm(&[f32::NAN, 1.0]).is_nan());
    let (a, b) = (Tensor::full([300, 301], 1.0, &device).unwrap(), Tensor::full([100], 30.0, &device).unwrap());
    assert!(near(global_norm(&[&a, &b]).unwrap().item().unwrap(), 180_300f32.sqrt()));
}

#[test]
fn of_equal_elements_the_first_is_largest_and_what_is_no_number_is_none() {
    let Some(device) = open() else { return };
    let mut long = vec![-1.0f32; 100_000];
    (long[70_000], long[90_000], long[3]) = (5.0, 5.0, f32::NAN);
    let rows = [
        (vec![3.0, 7.0, 7.0], 1, 7.0),
        (vec![f32::NAN, -2.0, f32::NEG_INFINITY], 1, -2.0),
        (vec![f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY], 1, f32::NEG_INFINITY),
        (vec![-0.0, 0.0, -1.0], 0, 0.0),
        (vec![-3.0, -2.5, -1e-40], 2, 0.0),
        (vec![1.0, f32::INFINITY, f32::INFINITY], 1, f32::INFINITY),
        (long, 70_000, 5.0),
    ];
    for (row, at, most) in rows {
        let x = Tensor::from_slice(&row, [1, row.len()], &device).unwrap();
        assert_eq!(argmax(&x).unwrap().to_vec::<u32>().unwrap(), [at]);
        let found = max(&x, Over::All).unwrap().item().unwrap();
        assert!((found - most).abs() < 1e-30 || found == most, "{found} {most}");
    }
    let none = Tensor::full([1, 300], f32::NAN, &device).unwrap();
    assert_eq!(argmax(&none).unwrap().to_vec::<u32>().unwrap(), [0]);
    assert!(max(&none, Over::Last).unwrap().item().unwrap().is_nan());
    assert_eq!(max(&none, Over::Last).unwrap().dtype(), DType::F32);
}

#[test]
fn a_table_a_cache_and_a_long_row_larger_than_a_binding_are_cut() {
    let Some(device) = open_as(Gpu::builder().binding_limit(1 << 16)) else { return };
    let data: Vec<f32> = (0..1_000 * 32).map(|i| (i % 4_001) as f32).collect();
    let table = Tensor::from_slice(&data, [1_000, 32], &device).unwrap();
    let ids = [999u32, 0, 511, 512, 513, 999];
    let tape = Tape::new();
    let watched = tape.watch(&table);
    let y = embedding(&watched, &Tensor::from_slice(&ids, [6], &device).unwrap()).unwrap();
    let want: Vec<f32> = ids.iter().flat_map(|&id| &data[id as usize * 32..][..32]).copied().collect();
    assert_eq!(y.to_vec::<f32>().unwrap(), want);
    let grads = tape.backward(&[(&y, &Tensor::full([6, 32], 1.0, &device).unwrap())]).unwrap();
    let derivatives = grads.get(&watched).unwrap().to_vec::<f32>().unwrap();
    for (id, row) in derivatives.chunks(32).enumerate() {
        let times = ids.iter().filter(|&&used| used as usize == id).count();
        assert_eq!(row, [times as f32; 32], "{id}");
    }

    let row = Tensor::full([1, 32], -1.0, &device).unwrap();
    let cache = write_rows(table.clone(), &row, 777).unwrap().to_vec::<f32>().unwrap();
    assert_eq!((&cache[..777 * 32], &cache[778 * 32..]), (&data[..777 * 32], &data[778 * 32..]));
    assert_eq!(cache[777 * 32..778 * 32], [-1.0; 32]);

    let long = concat(&[&row, &table, &row], 0).unwrap();
    assert_eq!(long.to_vec::<f32>().unwrap()[32..1_001 * 32], data);
    let total = sum(&table, Over::All).unwrap().item().unwrap();
    assert_eq!(f64::from(total), data.iter().map(|&x| f64::from(x)).sum::<f64>());
}

/// A product of `a` and `b` with its gradients, and the same as a linear layer where `b` lies as one does.
fn products(device: &Device, dtype: DType, transpose: Transpose, sizes: [usize; 4]) -> Vec<Vec<f32>> {
    let wave = |shape: &[usize], seed: f32| {
        let shape = Shape::new(shape).unwrap();
        let data: Vec<f32> = (0..shape.elements()).map(|i| (i as f32 * 0.37 + seed).sin()).collect();
        cast(&Tensor::from_slice(&data, shape, device).unwrap(), dtype).unwrap()
    };
    let [count, m, k, n] = sizes;
    let left = matches!(transpose, Transpose::Left | Transpose::Both);
    let right = matches!(transpose, Transpose::Right | Transpose::Both);
    let (a, b) = (if left { [count, k, m] } else { [count, m, k] }, if right { [count, n, k] } else { [count, k, n] });
    let mut all = Vec::new();
    let mut run = |[a, b]: [Tensor; 2], op: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
        let tape = Tape::new();
        let (a, b) = (tape.watch(&a), tape.watch(&b));
        let y = op(&a, &b);
        let grads = tape.backward(&[(&y, &wave(&y.shape(), 2.0))]).unwrap();
        all.extend([&y.detach(), grads.get(&a).unwrap(), grads.get(&b).unwrap()].map(|x| x.to_floats().unwrap()));
    };
    run([wave(&a, 0.0), wave(&b, 1.0)], &|a, b| matmul(a, b, transpose).unwrap());
    if transpose == Transpose::Right {
        run([wave(&a, 0.0), wave(&b[1..], 1.0)], &|x, w| linear(x, w).unwrap());
    }
    all
}

#[test]
fn products_of_tensors_larger_than_a_binding_are_cut() {
    use Transpose::{Both, Left, Neither, Right};
    // long rows, many matrices, results that are larger than both sides, a few rows of one side
    let short = [[1, 70, 50, 90], [40, 5, 6, 7], [3, 230, 7, 13], [1, 3, 60, 130], [1, 200, 2, 201]];
    let mut all: Vec<_> =
        [Neither, Left, Right, Both].iter().flat_map(|&t| short.map(|s| (12, DType::F32, t, s))).collect();
    all.extend(short.map(|sizes| (12, DType::BF16, Right, sizes)));
    // a long sum; sums that several workgroups share, of pieces and where their parts are larger than a binding
    all.push((12, DType::F32, Neither, [1, 9, 1_000, 12]));
    all.push((15, DType::F32, Right, [60, 12, 600, 12]));
    all.push((20, DType::F32, Neither, [1, 512, 512, 512]));
    let mut device = None;
    for (limit, dtype, transpose, sizes) in all {
        if device.as_ref().is_none_or(|(of, _)| *of != limit) {
            let Some(opened) = open_as(Gpu::builder().binding_limit(1 << limit)) else { return };
            device = Some((limit, opened));
        }
        let on = |device: &Device| products(device, dtype, transpose, sizes);
        let (got, want) = (on(&device.as_ref().unwrap().1), on(&Device::cpu()));
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let size = want.iter().map(|x| x.abs()).fold(1.0, f32::max);
            let far = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let near = far <= if dtype == DType::F32 { 1e-5 } else { 5e-3 } * size;
            assert!(got.len() == want.len() && near, "{dtype}, {transpose:?}, {sizes:?}, {i}: {far} of {size}");
        }
    }
    // four lines of the right side do not fit
    let (_, device) = device.unwrap();
    let error = matmul(&full(&device, [2, 70_000]), &full(&device, [9, 70_000]), Right).unwrap_err().to_string();
    assert!(error.contains("but a binding holds at most 1.0 MiB"), "{error}");
}

fn full(device: &Device, shape: [usize; 2]) -> Tensor {
    Tensor::full(shape, 1.0, device).unwrap()
}

#[test]
fn equal_experts_are_chosen_by_index_and_distant_logits_do_not_overflow() {
    let Some(gpu) = open() else { return };
    // more choices than a workgroup has invocations
    let many: Vec<f32> = (0..3 * 130).map(|i| ((i * 7) % 13) as f32 * 0.5).collect();
    let far = [-3e38f32, 3e38, 3e38, 0.0, -0.0, f32::NEG_INFINITY];
    for (logits, width, top_k) in [(&many[..], 130, 100), (&far[..], 6, 6)] {
        for norm_topk_prob in [true, false] {
            let on = |device: &Device| {
                let x = Tensor::from_slice(logits, [logits.len() / width, width], device).unwrap();
                let RouteOutput { weights, experts } = route(&x, Routing { top_k, norm_topk_prob }).unwrap();
                (experts.to_vec::<u32>().unwrap(), weights.to_vec::<f32>().unwrap())
            };
            let ((experts, weights), (want_experts, want_weights)) = (on(&gpu), on(&Device::cpu()));
            assert_eq!(experts, want_experts);
            assert!(weights.iter().zip(&want_weights).all(|(a, b)| (a - b).abs() <= 1e-6 * b), "{weights:?}");
        }
    }
}

#[test]
fn a_row_whose_expert_on_a_gpu_is_out_of_range_is_nan_and_others_are_not_changed() {
    let Some(gpu) = open() else { return };
    let wave = |n: usize, seed: f32| (0..n).map(|i| (i as f32 * 0.7 + seed).sin()).collect::<Vec<_>>();
    // one by one, a few of each expert at once, in tiles
    for (tokens, choices, experts, outer, inner) in [(3, 2, 4, 6, 5), (20, 3, 9, 7, 12), (90, 2, 3, 66, 9)] {
        let logits = wave(tokens * choices * (experts + 1), 0.3);
        let (x, w) = (wave(tokens * inner, 1.0), wave(experts * outer * inner, 2.0));
        let logits = Tensor::from_slice(&logits, [tokens, choices, experts + 1], &gpu).unwrap();
        let ids = argmax(&logits).unwrap();
        assert!(ids.host_mirror().is_none());
        let on = |device: &Device, ids: &Tensor| {
            let x = Tensor::from_slice(&x, [tokens, inner], device).unwrap();
            let w = Tensor::from_slice(&w, [experts, outer, inner], device).unwrap();
            grouped_matmul(&x, &w, ids).unwrap().to_vec::<f32>().unwrap()
        };
        let got = on(&gpu, &ids);
        let ids = ids.to_vec::<u32>().unwrap();
        let nobody = |id: u32| id as usize == experts;
        assert!(ids.iter().any(|&id| nobody(id)));
        let sound: Vec<u32> = ids.iter().map(|&id| if nobody(id) { 0 } else { id }).collect();
        let sound = Tensor::from_slice(&sound, [tokens, choices], &Device::cpu()).unwrap();
        let want = on(&Device::cpu(), &sound);
        for ((got, want), &id) in got.chunks(outer).zip(want.chunks(outer)).zip(&ids) {
            match nobody(id) {
                true => assert!(got.iter().all(|y| y.is_nan()), "{got:?}"),
                false => assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5), "{got:?} {want:?}"),
            }
        }
    }
}

/// The same tensor on another device.
fn moved_to(x: &Tensor, device: &Device) -> Tensor {
    Tensor::from_bytes(&x.to_bytes().unwrap(), x.shape(), x.dtype(), device).unwrap()
}

/// Products with a quantized matrix, its rows by their ids and all of it, with all gradients.
fn through_quantized(packed: &Packed, device: &Device) -> Vec<Vec<f32>> {
    let wave = |shape: [usize; 2], seed: f32| {
        let data: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i as f32 * 0.37 + seed).sin()).collect();
        Tensor::from_slice(&data, shape, device).unwrap()
    };
    let [w, scales] = [&packed.w, &packed.scales].map(|x| moved_to(x, device));
    let biases = moved_to(packed.biases.as_ref().unwrap(), device);
    let (outer, inner) = (w.shape()[0], 512);
    let ids = Tensor::from_slice(&[0u32, 700, 1_099, 3, 512, 700], [6], device).unwrap();
    let mut all = Vec::new();
    let mut run = |rows: usize, op: &dyn Fn(&Tensor, &Packed) -> Tensor| {
        let tape = Tape::new();
        let (x, frozen) = (tape.watch(&wave([rows.max(1), inner], 1.0)), rows > 0);
        let watch = |x: &Tensor| if frozen { x.clone() } else { tape.watch(x) };
        let (scales, biases) = (watch(&scales), Some(watch(&biases)));
        let packed = Packed { w: w.clone(), scales, biases, packing: packed.packing };
        let y = op(&x, &packed);
        let dy = wave([y.shape()[0], y.shape()[1]], 2.0);
        let grads = tape.backward(&[(&y, &dy)]).unwrap();
        let inputs = [Some(&x), Some(&packed.scales), packed.biases.as_ref()];
        let grads = inputs.into_iter().flatten().filter_map(|x| grads.get(x)).map(|dx| dx.to_floats().unwrap());
        all.extend([y.to_floats().unwrap()].into_iter().chain(grads));
    };
    run(3, &|x, packed| quantized_matmul(x, &packed.quantized()).unwrap());
    run(70, &|x, packed| quantized_matmul(x, &packed.quantized()).unwrap());
    run(0, &|_, packed| quantized_embedding(&packed.quantized(), &ids, DType::F32).unwrap());
    run(0, &|_, packed| slice(&dequantize(&packed.quantized(), DType::F32).unwrap(), 0, 500..outer).unwrap());
    all
}

#[test]
fn a_quantized_matrix_larger_than_a_binding_is_cut() {
    let Some(device) = open_as(Gpu::builder().binding_limit(1 << 17)) else { return };
    let data: Vec<f32> = (0..1_100 * 512).map(|i| (i as f32 * 0.73).sin()).collect();
    let w = Tensor::from_slice(&data, [1_100, 512], &Device::cpu()).unwrap();
    let packed = quantize_affine(&w, 4, 64).unwrap();
    let (got, want) = (through_quantized(&packed, &device), through_quantized(&packed, &Device::cpu()));
    // y and dx twice, then y with the gradients of scales and biases twice
    assert_eq!((got.len(), want.len()), (10, 10));
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let size = want.iter().map(|x| x.abs()).fold(0.0, f32::max);
        let far = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.len() == want.len() && far <= 1e-5 * size, "{i}: {far} of {size}");
    }
}

#[test]
fn codes_that_a_gpu_makes_are_bit_identical_to_those_of_the_cpu() {
    let Some(device) = open() else { return };
    let mut data: Vec<f32> = (0..9 * 384).map(|i| (i as f32 * 0.73).sin() * 10f32.powi(i / 384 - 4)).collect();
    // zeros, zeros of both signs beside larger numbers, numbers that f32 hardly holds, steps that fall between codes
    data[..64].fill(0.0);
    data[64..128].fill(-0.0);
    data[128..256].iter_mut().enumerate().for_each(|(i, x)| *x = [-0.0, 0.0, 1.5, 2.0][i % 4]);
    data[256..384].iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 * 1e-43);
    data[384..768].iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 * 0.25 - 32.0);
    let affine = [1, 2, 3, 4, 5, 6, 8].map(|bits| [32, 64, 128].map(|group| Packing::Affine { bits, group }));
    let floats = [Packing::Mxfp4, Packing::Mxfp8, Packing::Nvfp4];
    let w = Tensor::from_slice(&data, [9, 384], &Device::cpu()).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let w = cast(&w, dtype).unwrap();
        for packing in affine.concat().into_iter().chain(floats) {
            let (got, want) = (quantize(&moved_to(&w, &device), packing).unwrap(), quantize(&w, packing).unwrap());
            let bytes = |x: &Tensor| x.to_bytes().unwrap();
            assert_eq!(bytes(&got.scales), bytes(&want.scales), "scales, {packing:?} of {dtype}");
            assert_eq!(
                got.biases.as_ref().map(bytes),
                want.biases.as_ref().map(bytes),
                "biases, {packing:?} of {dtype}"
            );
            assert_eq!(bytes(&got.w), bytes(&want.w), "codes, {packing:?} of {dtype}");
        }
    }
}
