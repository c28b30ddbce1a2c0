//! The proof on a GPU, once for every operation of the list.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::wgpu::{Builder, Gpu, adapters};
use alluvium_core::{DType, Device};
use alluvium_ops::check::{Zeros, check};
use alluvium_ops::{Case, OPS, Op};

mod metal;

/// Software stands in for a GPU in tests: cases with more work than this take too long there.
const LARGEST: usize = 60_000_000;

/// A device of this kind; none, said aloud, where there is no GPU at all.
fn open(builder: Builder) -> Option<Device> {
    if adapters().is_empty() {
        assert!(std::env::var_os("CI").is_none(), "no GPU was found, not even a software one");
        eprintln!("skipped: no GPU was found (Debian's mesa-vulkan-drivers has one in software)");
        return None;
    }
    Some(builder.poison().open().unwrap().into())
}

fn work(op: &Op, case: &Case) -> usize {
    let cost = (op.cost)(&alluvium_core::Dims::of(case.sizes));
    cost.flops.max(cost.bytes)
}

/// Runs the check over the cases, and holds the shaders that ran to what Metal takes; panics with every fault at once.
fn prove(dtype: DType, device: &Device, largest: usize) {
    let mut faults = Vec::new();
    for op in OPS {
        for case in op.cases.iter().filter(|case| work(op, case) < largest) {
            let report = check(op, case, dtype, device, Zeros::MustFail).unwrap();
            faults.extend(report.faults.iter().map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
        }
    }
    let Device::Wgpu(gpu) = device else { panic!("{device} is no GPU") };
    let shaders = gpu.shaders();
    assert!(!shaders.is_empty());
    for shader in &shaders {
        let found = metal::faults(shader);
        faults.extend(found.iter().map(|fault| format!("{} {} as Metal: {fault}", shader.name, shader.entry)));
    }
    assert!(faults.is_empty(), "{} faults in {dtype} on {device:?}:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_operation_matches_its_reference() {
    let Some(device) = open(Gpu::builder()) else { return };
    prove(DType::F32, &device, LARGEST);
}

#[test]
fn an_adapter_without_subgroups_matches_the_reference() {
    let Some(device) = open(Gpu::builder().plain()) else { return };
    prove(DType::F32, &device, LARGEST / 10);
}

#[test]
fn half_precision_storage_costs_only_its_roundings() {
    let Some(device) = open(Gpu::builder()) else { return };
    for dtype in [DType::BF16, DType::F16] {
        prove(dtype, &device, LARGEST / 10);
    }
}
