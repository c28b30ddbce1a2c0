//! Shaders: put together from parts, compiled once, remembered.

use super::cache::Cache;
use super::failed;
use crate::{DType, Result};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// A compute shader as WGSL text with holes: constants, storage types and reductions are filled in by the launch.
#[derive(Debug)]
pub struct Kernel {
    /// What errors and lists call it.
    pub name: &'static str,
    /// The WGSL text, in pieces that kernels share.
    pub wgsl: &'static [&'static str],
    /// The CUDA text, in pieces that kernels share; empty where the kernel has none.
    pub cuda: &'static [&'static str],
    /// Whether the text calls `group_sum` or `group_max`.
    pub reduces: Reduces,
}

/// Whether a kernel calls the reductions over a workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduces {
    /// It takes a `Lane` and calls `group_sum`, `group_max`; `WG` invocations make a workgroup.
    Yes,
    /// It does not.
    No,
}

impl Kernel {
    /// A kernel without reductions.
    pub const fn new(name: &'static str, wgsl: &'static [&'static str]) -> Self {
        Kernel { name, wgsl, cuda: &[], reduces: Reduces::No }
    }

    /// The same kernel, which calls `group_sum` or `group_max`.
    pub const fn reducing(self) -> Self {
        Kernel { reduces: Reduces::Yes, ..self }
    }

    /// What an adapter would get: what tests translate that no adapter here can run.
    pub fn shader(
        &self,
        entry: &'static str,
        constants: &[(&'static str, u32)],
        stored: &[(&'static str, DType)],
    ) -> Shader {
        let variant = Variant { entry, constants, stored };
        Shader { name: self.name.to_owned(), entry, text: self.text(&variant, true) }
    }

    /// The whole text of one variant.
    fn text(&self, variant: &Variant<'_>, subgroups: bool) -> String {
        let mut text = String::new();
        if self.wgsl.iter().any(|part| part.contains("// needs f16")) {
            text.push_str("enable f16;\n");
        }
        if self.wgsl.iter().any(|part| part.contains("// needs cooperative matrices")) {
            text.push_str("enable wgpu_cooperative_matrix;\n");
        }
        for (name, value) in variant.constants {
            let _ = writeln!(text, "const {name}: u32 = {value}u;");
        }
        for (name, dtype) in variant.stored {
            text.push_str(&storage(*dtype).replace("NAME", name));
        }
        text.push_str(include_str!("text/prelude.wgsl"));
        match (self.reduces, subgroups) {
            (Reduces::No, _) => {}
            (Reduces::Yes, true) => text.push_str(include_str!("text/reduce_subgroups.wgsl")),
            (Reduces::Yes, false) => text.push_str(include_str!("text/reduce_tree.wgsl")),
        }
        self.wgsl.iter().for_each(|part| text.push_str(part));
        text
    }
}

/// Four numbers as they are stored: `NAME4`, `widen_NAME`, `narrow_NAME`.
fn storage(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => include_str!("text/stored_f16.wgsl"),
        DType::BF16 => include_str!("text/stored_bf16.wgsl"),
        _ => include_str!("text/stored_f32.wgsl"),
    }
}

/// The function of a kernel that is called, and what fills the holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant<'a> {
    pub(super) entry: &'static str,
    pub(super) constants: &'a [(&'static str, u32)],
    pub(super) stored: &'a [(&'static str, DType)],
}

/// A shader as the adapter got it.
#[derive(Clone, Debug)]
pub struct Shader {
    /// The kernel's name, with what filled its holes.
    pub name: String,
    /// The function that is called.
    pub entry: &'static str,
    /// WGSL.
    pub text: String,
}

/// A compiled kernel.
pub(super) struct Compiled {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    constants: Vec<(&'static str, u32)>,
    stored: Vec<(&'static str, DType)>,
    shader: Shader,
}

impl Compiled {
    fn variant(&self) -> Variant<'_> {
        Variant { entry: self.shader.entry, constants: &self.constants, stored: &self.stored }
    }
}

/// What was compiled so far.
pub(super) struct Kernels {
    device: wgpu::Device,
    subgroups: bool,
    /// By the kernel's name: it has few variants, which are quicker compared than hashed.
    compiled: Mutex<HashMap<&'static str, Vec<Arc<Compiled>>>>,
    pub(super) cache: Option<Cache>,
}

impl Kernels {
    pub(super) fn new(adapter: &wgpu::Adapter, device: &wgpu::Device, subgroups: bool, folder: Option<&Path>) -> Self {
        let cache = folder.and_then(|folder| Cache::open(adapter, device, folder));
        Kernels { device: device.clone(), subgroups, compiled: Mutex::default(), cache }
    }

    pub(super) fn shaders(&self) -> Vec<Shader> {
        let compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shaders: Vec<Shader> = compiled.values().flatten().map(|c| c.shader.clone()).collect();
        shaders.sort_by(|a, b| (&a.name, a.entry).cmp(&(&b.name, b.entry)));
        shaders
    }

    /// # Errors
    /// When the adapter refuses the shader.
    pub(super) fn get(&self, device: &str, kernel: &'static Kernel, variant: Variant<'_>) -> Result<Arc<Compiled>> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let variants = compiled.entry(kernel.name).or_default();
        if let Some(found) = variants.iter().find(|found| found.variant() == variant) {
            return Ok(found.clone());
        }
        let new = Arc::new(self.compile(device, kernel, variant)?);
        variants.push(new.clone());
        Ok(new)
    }

    fn compile(&self, device: &str, kernel: &'static Kernel, variant: Variant<'_>) -> Result<Compiled> {
        let text = kernel.text(&variant, self.subgroups);
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let source = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(text.as_str().into()),
        };
        // SAFETY: the text is our own; tests run every kernel over poisoned memory and hold its loops to ends.
        let module =
            unsafe { self.device.create_shader_module_trusted(source, wgpu::ShaderRuntimeChecks::unchecked()) };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: None,
            module: &module,
            entry_point: Some(variant.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: self.cache.as_ref().map(|cache| &cache.handle),
        });
        let layout = pipeline.get_bind_group_layout(0);
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(failed(device, format!("the kernel {} ({variant:?}) was refused: {error}", kernel.name)));
        }
        let holes = variant.constants.iter().map(|(name, value)| format!(" {name}={value}"));
        let stored = variant.stored.iter().map(|(name, dtype)| format!(" {name}={dtype}"));
        let name = kernel.name.to_owned() + &holes.chain(stored).collect::<String>();
        let (constants, stored) = (variant.constants.to_vec(), variant.stored.to_vec());
        Ok(Compiled { pipeline, layout, constants, stored, shader: Shader { name, entry: variant.entry, text } })
    }
}
