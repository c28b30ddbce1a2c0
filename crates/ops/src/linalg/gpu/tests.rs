//! Every plan of a product, whatever the sizes and the storage; kernels that this machine cannot run.

use super::*;
use crate::quantized::{Packed, Packing};
use alluvium_core::Device;

const SIZES: GemmSizes = GemmSizes { m: 131, k: 70, n: 134, count: 2 };

/// The worst difference from plain loops of `0.5 · a · b + 2 · c` by this plan, with these sides as columns.
fn gap(device: &Device, plan: GemmPlan, sizes: GemmSizes, columns: [bool; 2], dtype: DType) -> f32 {
    let Device::Gpu(gpu) = device else { return f32::NAN };
    let GemmSizes { m, k, n, count } = sizes;
    let wave = |len: usize, seed: f32| (0..len).map(|i| (i as f32 * 0.37 + seed).sin()).collect::<Vec<_>>();
    let tensor = |seed: f32, len: usize| {
        let x = Tensor::from_slice(&wave(len, seed), [len], device).unwrap();
        gpu.convert(&x, dtype).unwrap()
    };
    let (a, b) = (tensor(0.0, count * m * k), tensor(1.0, count * k * n));
    let c = Tensor::from_slice(&wave(count * m * n, 2.0), [count * m * n], device).unwrap();
    let [left, right] = [(&a, m, k, columns[0]), (&b, k, n, columns[1])].map(|(x, rows, cols, columns)| {
        let width = if columns { rows } else { cols };
        let mat = GpuMatrix::new(x, width, rows * cols);
        if columns { mat.t() } else { mat }
    });
    let to = GpuMatrix::new(&c, n, m * n);
    let was = c.to_vec::<f32>().unwrap();
    by(gpu, &Gemm { a: left, b: right, c: to, sizes, alpha: 0.5, beta: 2.0 }, plan).unwrap();
    let (x, y, got) = (a.to_floats().unwrap(), b.to_floats().unwrap(), c.to_vec::<f32>().unwrap());
    let mut worst = 0.0f32;
    for (i, got) in got.iter().enumerate() {
        let (r, row, col) = (i / (m * n), i / n % m, i % n);
        let x = |l: usize| x[r * m * k + if columns[0] { l * m + row } else { row * k + l }];
        let y = |l: usize| y[r * k * n + if columns[1] { col * k + l } else { l * n + col }];
        let want = 0.5 * (0..k).map(|l| x(l) * y(l)).sum::<f32>() + 2.0 * was[i];
        worst = worst.max((got - want).abs());
        assert!(!got.is_nan());
    }
    worst
}

/// The kernels that only some adapters can run, as those adapters get them.
#[test]
fn kernels_of_matrices_are_valid_for_the_adapters_that_have_them() {
    use naga::back::{msl, spv};
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    for Shader { name, text, .. } in
        unreached_shaders().unwrap().into_iter().filter(|shader| shader.name.contains("matrices"))
    {
        let module =
            naga::front::wgsl::parse_str(&text).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&text)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::all())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        if name.contains("by f32") {
            let options = msl::Options { lang_version: (2, 4), ..msl::Options::default() };
            let (text, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(text.contains("simdgroup_multiply_accumulate"), "{text}");
        }
        let options = spv::Options { lang_version: (1, 6), ..spv::Options::default() };
        spv::write_vec(&module, &info, &options, None).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn every_plan_computes_the_product_whatever_the_sizes_and_the_storage() {
    let Some(gpu) = Gpu::builder().poison().open_for_test().unwrap() else { return };
    let device: Device = gpu.into();
    let even = GemmSizes { m: 128, k: 64, n: 128, count: 1 };
    for columns in [[false, false], [true, false], [false, true], [true, true]] {
        for side in [64, 128] {
            for (sizes, part, splits) in [(SIZES, 96, 1), (SIZES, 32, 3), (even, 64, 1), (even, 32, 2)] {
                let worst = gap(&device, GemmPlan::Tiles { side, part, splits }, sizes, columns, DType::F32);
                assert!(worst < 1e-4, "{side} {sizes:?} {splits} {columns:?}: {worst}");
            }
        }
        for (side, m, n) in [(GemvSide::Left, 3, 261), (GemvSide::Right, 90, 4), (GemvSide::Left, 1, 1)] {
            for lanes in [16, 64] {
                let (sizes, few) = (GemmSizes { m, n, ..SIZES }, Gemv { side, lines: 4, lanes });
                let worst = gap(&device, GemmPlan::Gemv(few), sizes, columns, DType::F16);
                assert!(worst < 1e-4, "{few:?} {sizes:?} {columns:?}: {worst}");
            }
        }
    }
    let wide = GemmPlan::Tiles { side: 128, part: 96, splits: 1 };
    assert!(gap(&device, wide, SIZES, [false, true], DType::BF16) < 1e-4);
}

#[test]
fn every_plan_takes_every_packing_apart() {
    let Some(gpu) = Gpu::builder().poison().open_for_test().unwrap() else { return };
    let cpu = Device::cpu();
    let to =
        |x: &Tensor| Tensor::from_bytes(&x.to_bytes().unwrap(), x.shape(), x.dtype(), &gpu.clone().into()).unwrap();
    let wave = |shape: [usize; 2]| {
        let data: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i as f32 * 0.37).sin()).collect();
        Tensor::from_slice(&data, shape, &cpu).unwrap()
    };
    let affine = [1, 2, 3, 4, 5, 6, 8].map(|bits| Packing::Affine { bits, group: 32 });
    let (outer, inner) = (133, 160);
    for packing in affine.into_iter().chain([Packing::Mxfp4, Packing::Mxfp8, Packing::Nvfp4]) {
        let packed = crate::quantize(&wave([outer, inner]), packing).unwrap();
        let whole = to(&crate::dequantize(&packed.quantized(), DType::F32).unwrap());
        let packed =
            Packed { w: to(&packed.w), scales: to(&packed.scales), biases: packed.biases.as_ref().map(to), packing };
        let [batch_stride, whole] = [GpuMatrix::packed(packed.quantized(), inner), GpuMatrix::new(&whole, inner, 0)];
        for (back, m) in [(false, 70), (true, 70), (true, 5)] {
            let (k, n) = if back { (outer, inner) } else { (inner, outer) };
            let a = to(&wave([m, k]));
            let product = |b: GpuMatrix<'_>, plan: GemmPlan| {
                let c = gpu.empty([m, n], DType::F32).unwrap();
                let (a, to) = (GpuMatrix::new(&a, k, 0), GpuMatrix::new(&c, n, 0));
                let b = if back { b } else { b.t() };
                let sizes = GemmSizes { m, k, n, count: 1 };
                by(&gpu, &Gemm { a, b, c: to, sizes, alpha: 1.0, beta: 0.0 }, plan).unwrap();
                c.to_vec::<f32>().unwrap()
            };
            let few = GemmPlan::Gemv(Gemv { side: GemvSide::Left, lines: 8, lanes: 16 });
            let tiles = [64, 128].map(|side| GemmPlan::Tiles { side, part: 96, splits: k.div_ceil(96) });
            for plan in tiles.into_iter().chain((m == 5).then_some(few)) {
                let (got, want) = (product(batch_stride, plan), product(whole, plan));
                let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                let size = want.iter().map(|x| x.abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-5 * size, "{packing:?} {plan:?} {back}: {worst} of {size}");
            }
        }
    }
}
