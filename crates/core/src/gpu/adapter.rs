//! Which GPUs there are, and what is asked of one.

use super::{Limits, failed};
use crate::Result;
use wgpu::{Backends, CooperativeScalarType, DeviceType, Features};

/// What a GPU says of itself.
#[derive(Clone, Debug)]
pub struct Adapter {
    info: wgpu::AdapterInfo,
    features: Features,
    /// Bytes of a binding, of a buffer, of shared memory.
    sizes: [u64; 3],
}

impl Adapter {
    /// The product's name.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Whether it is the processor pretending: right, but slow.
    pub fn is_software(&self) -> bool {
        self.info.device_type == DeviceType::Cpu
    }

    /// Errs, naming what is missing, if it lacks what every kernel needs.
    pub(super) fn check(&self, name: &str) -> Result<()> {
        let missing = NEEDED - self.features;
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter_names().map(|(name, _)| name).collect();
        Err(failed(
            name,
            format!("{} lacks {}, which every kernel needs; use another --device", self, names.join(", ")),
        ))
    }
}

impl std::fmt::Display for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.info.device_type {
            DeviceType::DiscreteGpu => "discrete",
            DeviceType::IntegratedGpu => "integrated",
            DeviceType::VirtualGpu => "virtual",
            DeviceType::Cpu => "software",
            DeviceType::Other => "other",
        };
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let [binding, buffer, shared] = self.sizes;
        write!(f, "{} ({}, {kind}", self.info.name, self.info.backend)?;
        if !self.info.driver_info.is_empty() {
            write!(f, ", {}", self.info.driver_info)?;
        }
        write!(f, "), {:.2} GiB a binding, {:.2} GiB a buffer, {} KiB shared", gib(binding), gib(buffer), shared >> 10)
    }
}

/// What every kernel needs: sizes come as immediates.
const NEEDED: Features = Features::IMMEDIATES;

/// What kernels use where it is there.
const WANTED: Features = Features::SUBGROUP
    .union(Features::SHADER_F16)
    .union(Features::PIPELINE_CACHE)
    .union(Features::EXPERIMENTAL_COOPERATIVE_MATRIX);

fn all() -> Vec<wgpu::Adapter> {
    let backends = Backends::VULKAN | Backends::METAL | Backends::DX12;
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backends;
    pollster::block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends))
}

fn describe(handle: &wgpu::Adapter) -> Adapter {
    let limits = handle.limits();
    let sizes = [
        limits.max_storage_buffer_binding_size,
        limits.max_buffer_size,
        u64::from(limits.max_compute_workgroup_storage_size),
    ];
    Adapter { info: handle.get_info(), features: handle.features(), sizes }
}

/// The GPUs that are here, in the order of `--device wgpu:n`.
pub fn adapters() -> Vec<Adapter> {
    all().iter().map(describe).collect()
}

/// The adapter of this number, or the best: discrete before integrated, software last.
pub(super) fn choose(index: Option<usize>) -> Result<(String, wgpu::Adapter, Adapter)> {
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
    let adapter = describe(&handle);
    Ok((format!("wgpu:{i}"), handle, adapter))
}

/// What is asked of an adapter: all of its limits, and of its features those that kernels use.
pub(super) fn descriptor(handle: &wgpu::Adapter, plain: bool) -> wgpu::DeviceDescriptor<'static> {
    let mut wanted = NEEDED | WANTED;
    if plain {
        wanted.remove(Features::SUBGROUP | Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    }
    // where the processor and the GPU share memory, a tensor is read where it lies
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
    // kernels with matrices count on subgroups of 32, which Apple's GPUs have, though Metal does not say so
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
