//! Shaders as Direct3D 12 gets them: HLSL, as wgpu has naga write it.

use alluvium_core::gpu::Shader;
use naga::ShaderStage;
use naga::back::hlsl::{BindTarget, Options, PipelineOptions, ShaderModel, Writer};
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// What is wrong with a shader on Direct3D 12.
pub(crate) fn faults(shader: &Shader) -> Vec<String> {
    translate(shader).err().into_iter().collect()
}

fn translate(shader: &Shader) -> Result<(), String> {
    let module = naga::front::wgsl::parse_str(&shader.text).map_err(|e| e.emit_to_string(&shader.text))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module).map_err(|e| format!("{e:?}"))?;
    let options = Options {
        // subgroups need 6.0, half precision 6.2
        shader_model: ShaderModel::V6_2,
        immediates_target: Some(BindTarget::default()),
        ..Options::default()
    };
    let pipeline = PipelineOptions { entry_point: Some((ShaderStage::Compute, shader.entry.to_owned())) };
    let mut text = String::new();
    let written = Writer::new(&mut text, &options, &pipeline).write(&module, &info, None).map_err(|e| e.to_string())?;
    if let Some(Err(error)) = written.entry_point_names.iter().find(|name| name.is_err()) {
        return Err(error.to_string());
    }
    match text.contains("[numthreads(") {
        true => Ok(()),
        false => Err("no entry point was written".to_owned()),
    }
}
