//! What only the GPU's memory and queue can get wrong. The operations are proven in the crate of operations.

use super::*;
use crate::{DType, Device, Kind, Tensor};
use half::{bf16, f16};

/// A GPU; none, said aloud, where there is not even a software one.
fn open(builder: Builder) -> Option<Gpu> {
    builder.open_for_test().unwrap()
}

/// What the tests of one engine look into; `None` where another library drives the GPU.
fn wgpu_engine(gpu: &Gpu) -> Option<&super::wgpu::Engine> {
    match gpu.engine() {
        Engine::Wgpu(engine) => Some(engine),
        Engine::Cuda(_) => None,
    }
}

fn floats(gpu: &Gpu, data: &[f32]) -> Tensor {
    Tensor::from_slice(data, [data.len()], &gpu.clone().into()).unwrap()
}

#[test]
fn dropped_memory_is_handed_out_again_and_counted_once() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    assert_eq!((gpu.memory().in_use(), gpu.memory().peak()), (0, 0));
    for _ in 0..5 {
        let x = gpu.zeros([1_000], DType::F32).unwrap();
        let y = gpu.empty([1_000], DType::F32).unwrap();
        drop((x, y));
    }
    let class = gpu.memory().peak() / 2;
    assert!((4_000..5_000).contains(&class) && gpu.memory().in_use() == 0, "{:?}", gpu.memory());
    let x = gpu.zeros([10], DType::F32).unwrap();
    gpu.memory().reset_peak();
    assert_eq!((gpu.memory().in_use(), gpu.memory().peak()), (64, 64));
    drop(x);
}

#[test]
fn a_limit_is_an_error_with_the_sizes_in_it_and_memory_that_is_kept_does_not_count() {
    let Some(gpu) = open(Gpu::builder().memory_limit(1 << 20)) else { return };
    drop(gpu.zeros([200_000], DType::F32).unwrap());
    // another size: what is kept must go back first
    let x = gpu.zeros([150_000], DType::F32).unwrap();
    let error = gpu.zeros([150_000], DType::F32).unwrap_err();
    assert!(matches!(error.kind(), Kind::Memory { used, limit: Some(limit), .. } if *used > 0 && *limit == 1 << 20));
    drop(x);
    assert!(gpu.zeros([150_000], DType::F32).is_ok());
}

#[test]
fn what_a_launch_binds_is_remembered_for_the_same_buffers_and_forgotten_with_them() {
    let Some(gpu) = open(Gpu::builder().memory_limit(1 << 20)) else { return };
    let Some(engine) = wgpu_engine(&gpu) else { return };
    let groups = || engine.cached_bindings();
    let widened = |x: &Tensor| gpu.convert(x, DType::F32).unwrap().to_vec::<f32>().unwrap();
    let x = gpu.convert(&floats(&gpu, &[1.0, 2.0, 3.0, 4.0]), DType::F16).unwrap();
    let other = gpu.convert(&floats(&gpu, &[5.0, 6.0, 7.0, 8.0]), DType::BF16).unwrap();
    let before = groups();
    for _ in 0..3 {
        assert_eq!(widened(&x), [1.0, 2.0, 3.0, 4.0]);
    }
    assert_eq!(groups(), before + 1);
    // another buffer in its place, another kernel and part of a buffer
    let again = gpu.convert(&floats(&gpu, &[9.0, 6.0, 7.0, 8.0]), DType::F16).unwrap();
    assert_eq!(widened(&again), [9.0, 6.0, 7.0, 8.0]);
    assert_eq!(widened(&other), [5.0, 6.0, 7.0, 8.0]);
    assert_eq!(widened(&x), [1.0, 2.0, 3.0, 4.0]);
    assert!(groups() > before + 2);
    // buffers that go back to the driver are held by nothing
    drop(gpu.zeros([200_000], DType::F32).unwrap());
    drop(gpu.zeros([150_000], DType::F32).unwrap());
    assert_eq!(groups(), 0);
    assert_eq!(widened(&x), [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn compiled_kernels_are_found_by_the_next_handle_and_damaged_ones_are_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kernels");
    let run = |kept: &std::path::Path| {
        let gpu = open(Gpu::builder().cache(kept))?;
        assert_eq!(gpu.full([3], 2.5).unwrap().to_vec::<f32>().unwrap(), [2.5; 3]);
        wgpu_engine(&gpu)?.cache_was_found()
    };
    let Some(found) = run(&kept) else {
        eprintln!("skipped: no GPU whose driver keeps kernels was found");
        return;
    };
    assert!(!found);
    let files: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|file| file.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    assert_eq!(run(&kept), Some(true));
    let sound = std::fs::read(file).unwrap();
    let mut flipped = sound.clone();
    flipped[sound.len() - 9] ^= 1;
    for damaged in [flipped, sound[..sound.len() - 1].to_vec(), Vec::new(), vec![7; 5], vec![7; 50_000]] {
        std::fs::write(file, damaged).unwrap();
        assert_eq!(run(&kept), Some(false));
        assert_eq!(run(&kept), Some(true));
    }
    // no folder can be made below a file
    assert_eq!(run(&file.join("below")), Some(false));
    // what cannot be put in its place is not left beside it
    std::fs::remove_file(file).unwrap();
    std::fs::create_dir(file).unwrap();
    assert_eq!(run(&kept), Some(false));
    assert_eq!(std::fs::read_dir(&kept).unwrap().count(), 1);
}

#[test]
fn a_tensor_larger_than_a_buffer_or_a_binding_is_refused_in_words() {
    let Some(gpu) = open(Gpu::builder().binding_limit(1 << 12)) else { return };
    let error = gpu.empty([gpu.limits().buffer / 4, 8], DType::F32).unwrap_err().to_string();
    assert!(error.contains("a tensor needs") && error.contains("but a buffer holds at most"), "{error}");
    let x = gpu.zeros([3, 2_000], DType::F32).unwrap();
    static COPY: Kernel = Kernel::new("tests copy", &[include_str!("wgsl/shift.wgsl")]);
    let y = gpu.empty([3, 2_000], DType::F32).unwrap();
    let launch = Launch {
        kernel: &COPY,
        entry: "main",
        constants: &[],
        stored: &[],
        binds: &[Bind::All(&x), Bind::All(&y)],
        params: bytemuck::bytes_of(&[6_000u32, 0]),
        groups: Groups::Line(24),
    };
    let error = gpu.launch(&launch).unwrap_err().to_string();
    assert!(error.contains("tests copy binds") && error.contains("but a binding holds at most"), "{error}");
}

#[test]
fn an_adapter_that_is_not_there_is_named_with_those_that_are() {
    for library in Library::ALL {
        let (name, count) = (library.name(), library.adapters().len());
        let error = Gpu::builder().library(library).index(99).open().unwrap_err().to_string();
        assert!(error.contains(&format!("{name}:99")), "{error}");
        let want = format!("there is no such GPU, only {name}:0 to {name}:{}", count.saturating_sub(1));
        let why_none = "found";
        assert!(error.contains(if count > 0 { &want } else { why_none }), "{error}");
    }
}

#[test]
fn an_upload_into_memory_of_the_same_batch_waits_for_its_launches() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let mut seen = Vec::new();
    for i in 0..100u16 {
        // the memory of each is that of the one before, whose launch is not yet submitted
        let x = floats(&gpu, &[f32::from(i); 1_000]);
        seen.push(gpu.convert(&x, DType::F16).unwrap());
    }
    for (i, y) in seen.iter().enumerate() {
        assert_eq!(y.to_floats().unwrap(), vec![i as f32; 1_000]);
    }
}

#[test]
fn memory_is_read_and_written_in_the_order_of_the_launches() {
    let Some(gpu) = open(Gpu::builder().poison()) else { return };
    let mut sum = gpu.zeros([100_000], DType::F32).unwrap();
    let one = gpu.full([100_000], 1.0).unwrap();
    for _ in 0..150 {
        sum = accumulate(&gpu, sum, &one).unwrap();
    }
    let kept = sum.clone();
    sum = accumulate(&gpu, sum, &one).unwrap();
    assert_eq!(kept.to_vec::<f32>().unwrap(), vec![150.0; 100_000]);
    assert_eq!(sum.to_vec::<f32>().unwrap(), vec![151.0; 100_000]);
}

#[test]
fn kernels_read_rows_at_any_offset_as_the_cpu_does() {
    let Some(gpu) = open(Gpu::builder().poison()) else { return };
    let device = Device::from(gpu.clone());
    let data: Vec<f32> = (0..210).map(|i| i as f32).collect();
    let half: Vec<f16> = data.iter().map(|&x| f16::from_f32(x)).collect();
    let brain: Vec<bf16> = data.iter().map(|&x| bf16::from_f32(x)).collect();
    for width in [1, 3, 7, 5] {
        let shape = [210 / width, width];
        let tensors = [
            Tensor::from_slice(&data, shape, &device).unwrap(),
            Tensor::from_slice(&half, shape, &device).unwrap(),
            Tensor::from_slice(&brain, shape, &device).unwrap(),
        ];
        for x in tensors {
            for (first, len) in [(0, 1), (1, 1), (3, 2), (shape[0] - 1, 1), (5, shape[0] - 5)] {
                let rows = x.rows(first, len).unwrap();
                let want = &x.to_floats().unwrap()[first * width..][..len * width];
                let other = if x.dtype() == DType::F32 { DType::BF16 } else { DType::F32 };
                let wide = gpu.convert(&rows, other).unwrap().to_floats().unwrap();
                let same = |a: &f32, b: &f32| (a - b).abs() <= b / 128.0;
                assert!(wide.iter().zip(want).all(|(a, b)| same(a, b)), "{rows:?} from {first}: {wide:?}");
                let sum = accumulate(&gpu, rows.clone(), &rows).unwrap().to_floats().unwrap();
                assert!(sum.iter().zip(want).all(|(a, b)| same(a, &(2.0 * b))), "{rows:?} from {first}: {sum:?}");
                assert_eq!(rows.to_floats().unwrap(), want);
            }
        }
    }
}

#[test]
fn a_view_that_no_binding_may_start_at_is_not_written_in_place() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let rows = |first| gpu.zeros([4, 64], DType::F32).unwrap().rows(first, 1).unwrap();
    assert!(rows(0).is_unique() && rows(1).is_unique());
    let narrow = |first| gpu.full([4, 3], 2.0).unwrap().rows(first, 1).unwrap();
    assert!(narrow(0).is_unique() && !narrow(1).is_unique());
    let sum = accumulate(&gpu, narrow(1), &narrow(2)).unwrap();
    assert_eq!(sum.to_vec::<f32>().unwrap(), [4.0; 3]);
}

#[test]
fn a_grid_of_more_workgroups_than_an_axis_holds_reaches_every_element() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let n = gpu.limits().groups * 256 + 77;
    let x = gpu.full([n], 3.0).unwrap();
    assert!(x.to_vec::<f32>().unwrap().iter().all(|&x| x == 3.0));
}

#[test]
fn a_kernel_that_is_refused_is_named_and_the_device_goes_on() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    static WRONG: Kernel = Kernel::new("tests wrong", &["fn main( {"]);
    let x = gpu.full([4], 1.0).unwrap();
    let binds = [Bind::All(&x)];
    let launch = Launch {
        kernel: &WRONG,
        entry: "main",
        constants: &[],
        stored: &[],
        binds: &binds,
        params: &[],
        groups: Groups::Line(1),
    };
    let error = gpu.launch(&launch).unwrap_err().to_string();
    assert!(error.contains("the kernel tests wrong") && error.contains("was refused"), "{error}");
    assert_eq!(x.to_vec::<f32>().unwrap(), [1.0; 4]);
}

#[test]
fn a_lost_device_is_an_error_of_everything_after_and_nothing_hangs() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let x = gpu.full([1_000], 1.0).unwrap();
    gpu.wait().unwrap();
    gpu.destroy_for_test();
    // the loss of the device is reported at the next use of the queue
    let _ = gpu.wait();
    let words = [
        gpu.wait().unwrap_err().to_string(),
        x.to_vec::<f32>().unwrap_err().to_string(),
        gpu.convert(&x, DType::F16).unwrap_err().to_string(),
        Tensor::from_slice(&[1.0f32], [1], &gpu.clone().into()).unwrap_err().to_string(),
    ];
    for error in words {
        assert!(error.contains("the device was lost") && error.contains("start again"), "{error}");
    }
}

#[test]
fn a_table_is_sent_once_and_few_are_remembered() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let words: Vec<u32> = (0..1_000).collect();
    let (first, mut again) = (gpu.table(&words).unwrap(), gpu.table(&words).unwrap());
    assert!(first.to_vec::<u32>().unwrap() == words && again.to_vec::<u32>().unwrap() == words);
    drop(first);
    // one that is shared with the memory of tables must never be written to
    assert!(!again.is_unique());
    let one = gpu.memory().in_use();
    for n in 0..1_000 {
        assert_eq!(gpu.table(&[n, n + 1]).unwrap().to_vec::<u32>().unwrap(), [n, n + 1]);
    }
    assert!(gpu.memory().in_use() <= one + 64 * 256, "{}", gpu.memory().in_use());
    let long = vec![7; 5_000];
    assert!(gpu.table(&long).unwrap().is_unique());
}
