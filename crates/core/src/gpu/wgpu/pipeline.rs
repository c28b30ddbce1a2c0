//! Pipelines: each variant of a kernel is compiled once.

use super::cache::Cache;
use super::{Kernel, Shader, Variant, Variants, failed};
use crate::Result;
use naga::{AddressSpace, Module, StorageAccess};
use std::path::Path;
use std::sync::Arc;

/// A compiled variant of a kernel.
pub(in crate::gpu) struct Pipeline {
    pub(super) handle: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Bytes of the immediates.
    pub(super) params: usize,
    /// One bit for each binding that the text declares for writing.
    writes: u64,
    shader: Shader,
}

impl Pipeline {
    /// Whether the kernel may write to the binding of this number.
    pub(in crate::gpu) fn writes(&self, binding: usize) -> bool {
        binding < 64 && self.writes >> binding & 1 == 1
    }

    /// The kernel's name, with what filled its holes.
    pub(super) fn name(&self) -> &str {
        &self.shader.name
    }
}

/// What was compiled so far, and what compiles.
pub(super) struct Pipelines {
    device: wgpu::Device,
    subgroups: bool,
    compiled: Variants<Pipeline>,
    pub(super) cache: Option<Cache>,
}

impl Pipelines {
    pub(super) fn new(adapter: &wgpu::Adapter, device: &wgpu::Device, subgroups: bool, folder: Option<&Path>) -> Self {
        let cache = folder.and_then(|folder| Cache::open(adapter, device, folder));
        Pipelines { device: device.clone(), subgroups, compiled: Variants::default(), cache }
    }

    pub(super) fn shaders(&self) -> Vec<Shader> {
        let mut shaders: Vec<Shader> = self.compiled.all().iter().map(|pipeline| pipeline.shader.clone()).collect();
        shaders.sort_by(|a, b| (&a.name, a.entry).cmp(&(&b.name, b.entry)));
        shaders
    }

    /// # Errors
    /// When the adapter refuses the shader.
    pub(super) fn get(&self, device: &str, kernel: &'static Kernel, variant: Variant<'_>) -> Result<Arc<Pipeline>> {
        self.compiled.get(kernel, variant, || self.compile(device, kernel, variant))
    }

    fn compile(&self, device: &str, kernel: &'static Kernel, variant: Variant<'_>) -> Result<Pipeline> {
        let text = kernel.text(&variant, self.subgroups)?;
        let refused =
            |why: String| failed(device, format!("the kernel {} ({variant:?}) was refused: {why}", kernel.name));
        let module = naga::front::wgsl::parse_str(&text).map_err(|e| refused(e.emit_to_string(&text)))?;
        let (writes, params) = (written(&module), params_len(&module));
        if params > self.device.limits().max_immediate_size as usize {
            return Err(refused(format!("it takes {params} bytes of params")));
        }
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let source = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(text.as_str().into()),
        };
        let shader = if kernel.is_trusted() {
            // SAFETY: who made the kernel promised that its launches stay inside their bindings and that its loops end.
            unsafe { self.device.create_shader_module_trusted(source, wgpu::ShaderRuntimeChecks::unchecked()) }
        } else {
            self.device.create_shader_module(source)
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: None,
            module: &shader,
            entry_point: Some(variant.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: !kernel.is_trusted(),
            },
            cache: self.cache.as_ref().map(|cache| &cache.handle),
        });
        let layout = pipeline.get_bind_group_layout(0);
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(refused(error.to_string()));
        }
        let shader = kernel.shader_of(&variant, text);
        Ok(Pipeline { handle: pipeline, layout, params, writes, shader })
    }
}

/// One bit for each binding of group 0 that is declared `var<storage, read_write>`.
fn written(module: &Module) -> u64 {
    let mut writes = 0;
    for (_, variable) in module.global_variables.iter() {
        if let (AddressSpace::Storage { access }, Some(at)) = (variable.space, variable.binding)
            && access.contains(StorageAccess::STORE)
            && at.group == 0
            && at.binding < 64
        {
            writes |= 1 << at.binding;
        }
    }
    writes
}

/// Bytes of the variable of immediates.
fn params_len(module: &Module) -> usize {
    let variables = module.global_variables.iter().map(|(_, variable)| variable);
    let immediate = variables.filter(|variable| variable.space == AddressSpace::Immediate);
    let len = |ty| module.types[ty].inner.try_size(module.to_ctx()).map_or(usize::MAX, |len| len as usize);
    immediate.map(|variable| len(variable.ty)).max().unwrap_or(0)
}
