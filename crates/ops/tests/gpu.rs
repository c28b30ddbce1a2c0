//! The proof on a GPU, once for every operation of the list.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::gpu::{Builder, Gpu, Shader};
use alluvium_core::{DType, Device};
use alluvium_ops::check::{Zeros, check, isolation, need};
use alluvium_ops::{Case, OPS, Op, Oversize, native_sources, unreached_shaders};

mod direct3d;
mod metal;
mod written;

/// Software stands in for a GPU in tests: cases with more work than this take too long there.
const LARGEST: usize = 60_000_000;

/// A device of this kind; none, said aloud, where there is no GPU at all.
fn open(builder: Builder) -> Option<Device> {
    builder.poison().open_for_test().unwrap().map(Device::from)
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
    let Device::Gpu(gpu) = device else { panic!("{device} is no GPU") };
    let shaders = gpu.shaders();
    assert!(!shaders.is_empty());
    written::write(&shaders).unwrap();
    faults.extend(as_metal(&shaders));
    faults.extend(as_direct3d(&shaders));
    faults.extend(as_cuda(&shaders));
    assert!(faults.is_empty(), "{} faults in {dtype} on {device:?}:\n{}", faults.len(), faults.join("\n"));
}

/// What is wrong with shaders on Apple's GPUs.
fn as_metal(shaders: &[Shader]) -> Vec<String> {
    let named = |shader: &Shader, fault| format!("{} {} as Metal: {fault}", shader.name, shader.entry);
    let of = |shader| metal::faults(shader).into_iter().map(move |fault| named(shader, fault));
    shaders.iter().flat_map(of).collect()
}

/// What is wrong with shaders on Direct3D 12, which has no cooperative matrices.
fn as_direct3d(shaders: &[Shader]) -> Vec<String> {
    let named = |shader: &Shader, fault| format!("{} {} as HLSL: {fault}", shader.name, shader.entry);
    let of = |shader| direct3d::faults(shader).into_iter().map(move |fault| named(shader, fault));
    shaders.iter().filter(|shader| !shader.text.contains("coop_mat")).flat_map(of).collect()
}

/// What has no translation into CUDA, whose engine has no cooperative matrices.
fn as_cuda(shaders: &[Shader]) -> Vec<String> {
    let portable = shaders.iter().filter(|shader| !shader.text.contains("coop_mat"));
    portable.filter_map(|shader| shader.to_cuda().err()).map(|error| error.to_string()).collect()
}

#[test]
fn every_operation_matches_its_reference() {
    let Some(device) = open(Gpu::builder()) else { return };
    prove(DType::F32, &device, LARGEST);
}

#[test]
fn inputs_that_are_not_traced_cost_nothing() {
    let Some(device) = open(Gpu::builder()) else { return };
    let mut faults = Vec::new();
    for op in OPS {
        for case in op.cases.iter().filter(|case| work(op, case) < LARGEST / 10) {
            let found = need(op, case, &device).unwrap();
            faults.extend(found.iter().map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
        }
    }
    assert!(faults.is_empty(), "{} faults on {device:?}:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn packed_sequences_do_not_see_each_others_nan() {
    for builder in [Gpu::builder(), Gpu::builder().plain()] {
        let Some(device) = open(builder) else { return };
        let mut faults = Vec::new();
        for op in OPS {
            for case in op.cases.iter().filter(|case| work(op, case) < LARGEST) {
                let found = isolation(op, case, &device).unwrap();
                faults.extend(found.iter().map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
            }
        }
        assert!(faults.is_empty(), "{} faults on {device:?}:\n{}", faults.len(), faults.join("\n"));
    }
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

#[test]
fn shaders_that_no_case_reaches_are_within_the_limits_of_metal() {
    let mut shaders = unreached_shaders().unwrap();
    written::write(&shaders).unwrap();
    // Apple's GPUs have matrices of f32 alone
    shaders.retain(|shader| !shader.text.starts_with("enable f16;"));
    let faults = [as_metal(&shaders), as_direct3d(&shaders)].concat();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn kernels_for_matrix_units_are_written_for_their_compiler() {
    let sources = native_sources();
    assert!(sources.len() >= 5);
    written::write_cuda(&sources).unwrap();
}

#[test]
fn a_tensor_larger_than_a_binding_is_cut_or_refused_and_never_wrong() {
    for (limit, oversize) in [(1 << 17, Oversize::CutElements), (1 << 19, Oversize::CutRows)] {
        let Some(device) = open(Gpu::builder().binding_limit(limit)) else { return };
        let mut faults = Vec::new();
        for op in OPS {
            let large = |case: &&Case| (limit..LARGEST / 10).contains(&work(op, case));
            for case in op.cases.iter().filter(large) {
                let report = check(op, case, DType::F32, &device, Zeros::MustFail).unwrap();
                let refused = |fault: &str| fault.contains("but a binding holds at most");
                let wrong = |fault: &&String| op.oversize == oversize || !refused(fault);
                let wrong = report.faults.iter().filter(wrong);
                faults.extend(wrong.map(|fault| format!("{}, {}: {fault}", op.name(), case.name)));
            }
        }
        assert!(faults.is_empty(), "{} faults with bindings of {limit}:\n{}", faults.len(), faults.join("\n"));
    }
}
