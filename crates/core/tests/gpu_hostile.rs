//! Hostile launches through the public API: an error comes back, no number changes silently, and the device goes on.
#![allow(clippy::unwrap_used)]

use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Device, Tape, Tensor};

/// A GPU; `None`, with a message, where there is not even a software one.
fn open() -> Option<Gpu> {
    Gpu::builder().open_for_test().unwrap()
}

fn words(gpu: &Gpu, data: &[u32]) -> Tensor {
    Tensor::from_slice(data, [data.len()], &gpu.clone().into()).unwrap()
}

macro_rules! writes {
    ($value:literal) => {
        concat!(
            "@group(0) @binding(0) var<storage, read_write> y: array<u32>;\n",
            "@compute @workgroup_size(1) fn main() { y[0] = ",
            $value,
            "u; }"
        )
    };
}

static ONE: Kernel = Kernel::new("mine", &[writes!("1")]);
static TWO: Kernel = Kernel::new("mine", &[writes!("2")]);
static FAR: Kernel = Kernel::new(
    "far",
    &["@group(0) @binding(0) var<storage, read_write> y: array<u32>;
       @compute @workgroup_size(1) fn main() { for (var i = 0u; i < 100000u; i++) { y[i * 977u] = 7u; } }"],
);
static COPY: Kernel = Kernel::new(
    "copy",
    &["@group(0) @binding(0) var<storage, read> x: array<u32>;
       @group(0) @binding(1) var<storage, read_write> y: array<u32>;
       @compute @workgroup_size(1) fn main() { y[0] = x[0]; }"],
);

fn launch(gpu: &Gpu, kernel: &'static Kernel, binds: &[Bind<'_>]) -> alluvium_core::Result<()> {
    let (entry, params, groups) = ("main", &[][..], Groups::Line(1));
    gpu.launch(&Launch { kernel, entry, constants: &[], stored: &[], binds, params, groups })
}

#[test]
fn two_kernels_of_one_name_are_two_kernels() {
    let Some(gpu) = open() else { return };
    let x = words(&gpu, &[0; 4]);
    launch(&gpu, &ONE, &[Bind::All(&x)]).unwrap();
    assert_eq!(x.to_vec::<u32>().unwrap(), [1, 0, 0, 0]);
    launch(&gpu, &TWO, &[Bind::All(&x)]).unwrap();
    assert_eq!(x.to_vec::<u32>().unwrap(), [2, 0, 0, 0]);
}

#[test]
fn ids_that_a_launch_wrote_are_read_back_and_not_remembered() {
    let Some(gpu) = open() else { return };
    let x = words(&gpu, &[0; 4]);
    assert_eq!(x.ids().unwrap()[..], [0; 4]);
    launch(&gpu, &ONE, &[Bind::All(&x)]).unwrap();
    assert_eq!(x.ids().unwrap()[..], [1, 0, 0, 0]);
    // a table that a launch wrote is sent again
    let table = gpu.table(&[0, 5]).unwrap();
    launch(&gpu, &TWO, &[Bind::All(&table)]).unwrap();
    assert_eq!(gpu.table(&[0, 5]).unwrap().to_vec::<u32>().unwrap(), [0, 5]);
    // reading leaves the host's copy as it is
    let (from, to) = (words(&gpu, &[3]), words(&gpu, &[0]));
    launch(&gpu, &COPY, &[Bind::All(&from), Bind::All(&to)]).unwrap();
    assert_eq!((from.ids().unwrap()[0], to.ids().unwrap()[0]), (3, 3));
}

#[test]
fn tensors_of_another_handle_are_refused_by_launches_conversions_and_seeds() {
    let (Some(a), Some(b)) = (open(), open()) else { return };
    let device = Device::from(b.clone());
    let x = words(&b, &[0; 4]);
    let floats = Tensor::full([4], 1.5, &device).unwrap();
    let errors = [
        launch(&a, &ONE, &[Bind::All(&x)]).unwrap_err(),
        a.convert(&floats, DType::BF16).unwrap_err(),
        a.copied(&floats).unwrap_err(),
    ];
    for error in errors {
        assert!(error.to_string().contains("two handles of"), "{error}");
    }
    let on_cpu = Tensor::full([4], 1.5, &Device::cpu()).unwrap();
    assert!(launch(&a, &ONE, &[Bind::All(&on_cpu)]).unwrap_err().to_string().contains("is on cpu"));

    let tape = Tape::new();
    let y = tape.watch(&Tensor::full([1], 2.0, &a.clone().into()).unwrap()).reshape([]).unwrap();
    let error = tape.backward(&[(&y, &Tensor::full([], 1.0, &device).unwrap())]).unwrap_err().to_string();
    assert!(error.contains("two handles of"), "{error}");
    assert!(y.backward().is_ok());
}

#[test]
fn a_kernel_that_reaches_past_its_binding_changes_nothing_else() {
    let Some(gpu) = open() else { return };
    let tensors: Vec<Tensor> = (0..64).map(|_| words(&gpu, &[5; 64])).collect();
    launch(&gpu, &FAR, &[Bind::All(&tensors[20])]).unwrap();
    for (i, x) in tensors.iter().enumerate().filter(|(i, _)| *i != 20) {
        assert_eq!(x.to_vec::<u32>().unwrap(), [5; 64], "{i}");
    }
}

#[test]
fn bindings_params_and_grids_that_do_not_fit_are_errors_and_the_device_goes_on() {
    let Some(gpu) = open() else { return };
    let (x, y) = (words(&gpu, &[0; 200]), words(&gpu, &[0; 4]));
    let refused: &[(&'static Kernel, &[Bind<'_>])] = &[
        (&ONE, &[]),
        (&ONE, &[Bind::Unused]),
        (&ONE, &[Bind::Part(&x, 0..usize::MAX)]),
        (&ONE, &[Bind::Part(&x, 256..804)]),
        (&ONE, &[Bind::Part(&x, usize::MAX - 3..usize::MAX)]),
        (&ONE, &[Bind::Part(&x, 1024..1028)]),
        // a write there would be lost in a copy
        (&ONE, &[Bind::Part(&x, 4..8)]),
        (&COPY, &[Bind::Part(&x, 4..8), Bind::All(&y)]),
        // read and written at once
        (&COPY, &[Bind::All(&x), Bind::All(&x)]),
        (&COPY, &[Bind::All(&x)]),
    ];
    for (kernel, binds) in refused {
        assert!(launch(&gpu, kernel, binds).is_err(), "{} {binds:?}", kernel.name);
    }
    let rows = Tensor::zeros([4, 3], DType::U32, &gpu.clone().into()).unwrap().rows(1, 1).unwrap();
    assert!(launch(&gpu, &ONE, &[Bind::All(&rows)]).is_err());
    let all = [Bind::All(&y)];
    let run = |entry, params, groups, stored| {
        gpu.launch(&Launch { kernel: &ONE, entry, constants: &[], stored, binds: &all, params, groups })
    };
    assert!(run("main", &[1, 2, 3], Groups::Line(1), &[]).is_err());
    assert!(run("main", &[0; 4096], Groups::Line(1), &[]).is_err());
    assert!(run("main", &[], Groups::Grid([usize::MAX, 1, 1]), &[]).is_err());
    assert!(run("main", &[], Groups::Grid([1, 1, 1 << 33]), &[]).is_err());
    assert!(run("main", &[], Groups::Line(usize::MAX), &[]).is_err());
    assert!(run("nothing", &[], Groups::Line(1), &[]).is_err());
    assert!(run("main", &[], Groups::Line(1), &[("X", DType::U32)]).is_err());
    launch(&gpu, &TWO, &all).unwrap();
    assert_eq!(y.to_vec::<u32>().unwrap(), [2, 0, 0, 0]);
}

#[test]
fn sizes_that_no_device_has_are_errors() {
    let Some(gpu) = open() else { return };
    let device = Device::from(gpu.clone());
    for shape in [vec![usize::MAX, 2], vec![1 << 40], vec![1 << 59], vec![1 << 30, 1 << 20]] {
        let Ok(shape) = alluvium_core::Shape::new(&shape) else { continue };
        assert!(gpu.empty(shape, DType::F32).is_err() && gpu.zeros(shape, DType::U8).is_err());
        assert!(gpu.full(shape, 1.0).is_err());
        assert!(Tensor::filled(shape, DType::F32, &device, |_| Ok(())).is_err());
    }
    assert_eq!(gpu.segments(0, usize::MAX).count(), 0);
    assert_eq!(gpu.segments(usize::MAX, 0).take(3).count(), 3);
    assert!(gpu.segments(10, usize::MAX).eq(std::iter::once(0..10)));
    assert!(Gpu::builder().index(usize::MAX).open().is_err());
    assert_eq!(gpu.zeros([0, 5], DType::F32).unwrap().to_vec::<f32>().unwrap(), []);
}

#[test]
fn a_thread_that_waits_for_a_read_does_not_hold_up_another_ones_launches() {
    let Some(gpu) = open() else { return };
    let x = gpu.zeros([1 << 20], DType::F32).unwrap();
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| (0..50).map(|_| x.to_vec::<f32>().unwrap()[7]).sum::<f32>());
        let y = words(&gpu, &[0; 4]);
        for _ in 0..200 {
            launch(&gpu, &ONE, &[Bind::All(&y)]).unwrap();
            gpu.convert(&x, DType::BF16).unwrap();
        }
        assert_eq!(reads.join().unwrap(), 0.0);
        assert_eq!(y.to_vec::<u32>().unwrap()[0], 1);
    });
}
