//! The adapters of this machine, and the features and limits that a device is opened with.

use super::{Adapter, Limits, failed};
use crate::Result;
use std::sync::OnceLock;
use wgpu::{Backends, CooperativeScalarType, DeviceType, Features};

/// The feature that every kernel needs: sizes come as immediates.
const NEEDED: Features = Features::IMMEDIATES;

/// Features that kernels use if the adapter has them.
const WANTED: Features = Features::SUBGROUP
    .union(Features::SHADER_F16)
    .union(Features::PIPELINE_CACHE)
    .union(Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

const BACKENDS: Backends = Backends::VULKAN.union(Backends::METAL).union(Backends::DX12);

/// The one instance of the process. It is never dropped: that would unload the driver, and a thread that has used a driver
/// since unloaded crashes when it ends (seen with NVIDIA's).
fn instance() -> &'static wgpu::Instance {
    static INSTANCE: OnceLock<wgpu::Instance> = OnceLock::new();
    INSTANCE.get_or_init(|| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = BACKENDS;
        wgpu::Instance::new(descriptor)
    })
}

fn all() -> Vec<wgpu::Adapter> {
    pollster::block_on(instance().enumerate_adapters(BACKENDS))
}

fn describe(index: usize, handle: &wgpu::Adapter) -> Adapter {
    let (limits, info) = (handle.limits(), handle.get_info());
    let kind = match info.device_type {
        DeviceType::DiscreteGpu => "discrete",
        DeviceType::IntegratedGpu => "integrated",
        DeviceType::VirtualGpu => "virtual",
        DeviceType::Cpu => "software",
        DeviceType::Other => "other",
    };
    let driver = if info.driver_info.is_empty() { String::new() } else { format!(", {}", info.driver_info) };
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let [binding, buffer] = [limits.max_storage_buffer_binding_size, limits.max_buffer_size].map(gib);
    let shared = limits.max_compute_workgroup_storage_size >> 10;
    let sizes = format!("{binding:.2} GiB a binding, {buffer:.2} GiB a buffer, {shared} KiB shared");
    Adapter {
        device: format!("wgpu:{index}"),
        software: info.device_type == DeviceType::Cpu,
        details: format!("({}, {kind}{driver}), {sizes}", info.backend),
        name: info.name,
    }
}

/// Errs, naming what is missing, if the adapter lacks a feature that every kernel needs.
pub(super) fn check_features(name: &str, handle: &wgpu::Adapter) -> Result<()> {
    let missing = NEEDED - handle.features();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter_names().map(|(name, _)| name).collect();
    let why = format!(
        "{} lacks {}, which every kernel needs; use another --device",
        handle.get_info().name,
        names.join(", ")
    );
    Err(failed(name, why))
}

/// The GPUs of this machine, in the order of `--device wgpu:n`.
pub(in crate::gpu) fn adapters() -> Vec<Adapter> {
    all().iter().enumerate().map(|(index, handle)| describe(index, handle)).collect()
}

/// The adapter of this number, or the best: discrete before integrated, software last.
pub(super) fn choose(index: Option<usize>) -> Result<(wgpu::Adapter, Adapter)> {
    let all = all();
    let rank = |handle: &wgpu::Adapter| match handle.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    };
    let count = all.len();
    let best = (0..count).min_by_key(|&i| rank(&all[i]));
    let chosen = index.or(best).and_then(|i| all.into_iter().nth(i).map(|handle| (i, handle)));
    let Some((i, handle)) = chosen else {
        let asked = index.map_or("wgpu".to_owned(), |i| format!("wgpu:{i}"));
        let why = match count {
            0 => "no GPU was found: a driver for Vulkan, Metal or DX12 is needed; use --device cpu".to_owned(),
            n => format!("there is no such GPU, only wgpu:0 to wgpu:{}; `alluvium devices` lists them", n - 1),
        };
        return Err(failed(&asked, why));
    };
    let adapter = describe(i, &handle);
    Ok((handle, adapter))
}

/// The descriptor of a device with all of the adapter's limits, and those of its features that kernels use.
pub(super) fn descriptor(handle: &wgpu::Adapter, plain: bool) -> wgpu::DeviceDescriptor<'static> {
    let mut wanted = NEEDED | WANTED;
    if plain {
        wanted.remove(Features::SUBGROUP | Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    }
    // where the CPU and the GPU share memory, the CPU reads tensors in place
    if matches!(handle.get_info().device_type, DeviceType::IntegratedGpu | DeviceType::Cpu) {
        wanted |= Features::MAPPABLE_PRIMARY_BUFFERS;
    }
    wgpu::DeviceDescriptor {
        label: Some("alluvium"),
        required_features: handle.features() & wanted,
        required_limits: handle.limits(),
        // SAFETY: cooperative matrices are the one experimental feature in use; their kernels keep to the shapes the
        // adapter lists.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        memory_hints: wgpu::MemoryHints::Performance,
        trace: wgpu::Trace::Off,
    }
}

/// The limits of an opened device.
pub(super) fn limits(handle: &wgpu::Adapter, device: &wgpu::Device, binding: Option<usize>) -> Limits {
    let limits = device.limits();
    let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let matrices = if device.features().contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        handle.cooperative_matrix_properties()
    } else {
        Vec::new()
    };
    let has = |side: u32, ab, cr| {
        matrices.iter().any(|m| [m.m_size, m.n_size, m.k_size] == [side; 3] && m.ab_type == ab && m.cr_type == cr)
    };
    // kernels with matrices rely on subgroups of 32, which Apple's GPUs have, though Metal does not report it
    let info = handle.get_info();
    let by_32 = info.backend == wgpu::Backend::Metal || [info.subgroup_min_size, info.subgroup_max_size] == [32, 32];
    // whole quads of f32 in each binding
    let binding = binding.unwrap_or(usize::MAX).min(size(limits.max_storage_buffer_binding_size)) & !15;
    Limits {
        binding,
        buffer: size(limits.max_buffer_size),
        alignment: limits.min_storage_buffer_offset_alignment as usize,
        groups: limits.max_compute_workgroups_per_dimension as usize,
        shared: limits.max_compute_workgroup_storage_size as usize,
        invocations: limits.max_compute_invocations_per_workgroup as usize,
        subgroups: device.features().contains(Features::SUBGROUP),
        matrices_f32: by_32 && has(8, CooperativeScalarType::F32, CooperativeScalarType::F32),
        matrices_f16: by_32
            && device.features().contains(Features::SHADER_F16)
            && has(16, CooperativeScalarType::F16, CooperativeScalarType::F32),
    }
}
