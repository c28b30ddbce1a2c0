//! Shaders as Metal gets them, held to the limits of Apple's GPUs.

use alluvium_core::gpu::Shader;
use naga::back::msl;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, ShaderStage};

/// Bytes of memory that a threadgroup shares, threads of one, buffers of a function, bytes of immediates.
const SHARED: u32 = 32 << 10;
const THREADS: u32 = 1024;
const BUFFERS: usize = 31;
const IMMEDIATES: u32 = 4 << 10;

/// What is wrong with a shader on Apple's GPUs.
pub(crate) fn faults(shader: &Shader) -> Vec<String> {
    match translate(shader) {
        Ok(faults) => faults,
        Err(error) => vec![error],
    }
}

fn translate(shader: &Shader) -> Result<Vec<String>, String> {
    let module = naga::front::wgsl::parse_str(&shader.text).map_err(|e| e.emit_to_string(&shader.text))?;
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let info = validator.validate(&module).map_err(|e| format!("{e:?}"))?;
    let options = msl::Options { lang_version: (2, 4), ..msl::Options::default() };
    let entry = Some((ShaderStage::Compute, shader.entry.to_owned()));
    let pipeline = msl::PipelineOptions { entry_point: entry, ..msl::PipelineOptions::default() };
    let (text, translated) = msl::write_string(&module, &info, &options, &pipeline).map_err(|e| e.to_string())?;
    if let Some(Err(error)) = translated.entry_point_names.iter().find(|name| name.is_err()) {
        return Err(error.to_string());
    }
    let mut faults = Vec::new();
    if !text.contains("kernel void") {
        faults.push("no kernel was written".to_owned());
    }
    let place = module.entry_points.iter().position(|entry| entry.name == shader.entry);
    let place = place.ok_or("the function is not there")?;
    let used = info.get_entry_point(place);
    let mut layouter = naga::proc::Layouter::default();
    layouter.update(module.to_ctx()).map_err(|e| e.to_string())?;
    let (mut shared, mut buffers, mut immediates) = (0, 0, 0);
    for (handle, variable) in module.global_variables.iter().filter(|(handle, _)| !used[*handle].is_empty()) {
        let size = layouter[variable.ty].size;
        match variable.space {
            AddressSpace::WorkGroup => shared += size,
            AddressSpace::Storage { .. } => buffers += 1,
            AddressSpace::Immediate => immediates += size,
            // each thread's own
            AddressSpace::Private => {}
            space => faults.push(format!("{:?} is in {space:?}, handle {handle:?}", variable.name)),
        }
    }
    let threads: u32 = module.entry_points[place].workgroup_size.iter().product();
    let mut hold = |what: &str, has: usize, most: usize| {
        if has > most {
            faults.push(format!("{has} {what}, Apple's GPUs have {most}"));
        }
    };
    hold("bytes of threadgroup memory", shared as usize, SHARED as usize);
    hold("threads", threads as usize, THREADS as usize);
    hold("buffers", buffers, BUFFERS);
    hold("bytes of immediates", immediates as usize, IMMEDIATES as usize);
    Ok(faults)
}
