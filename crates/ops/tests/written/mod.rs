//! Shaders as files, for compilers that Rust cannot call: `.ci/tint` gives them to Chrome's, `.ci/cuda` to NVIDIA's.

use alluvium_core::gpu::Shader;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Result;
use std::sync::Once;

/// In the target folder, where cargo keeps what tests write; each file of tests has its own.
const FOLDER: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/shaders/", env!("CARGO_CRATE_NAME"));

/// Writes each text once, whichever test gave it, under the name of its kernel; what an earlier run left goes first.
pub(crate) fn write(shaders: &[Shader]) -> Result<()> {
    static EMPTY: Once = Once::new();
    EMPTY.call_once(|| drop(fs::remove_dir_all(FOLDER)));
    fs::create_dir_all(FOLDER)?;
    for shader in shaders {
        let Shader { name, text, .. } = shader;
        let mut hash = DefaultHasher::new();
        text.hash(&mut hash);
        // what filled the kernel's holes is the text's beginning
        let kernel: Vec<&str> = name.split(' ').take_while(|word| !word.contains('=')).collect();
        let file = format!("{FOLDER}/{}-{:016x}", kernel.join(" "), hash.finish());
        fs::write(format!("{file}.wgsl"), text)?;
        if let Ok(text) = shader.to_cuda() {
            fs::write(format!("{file}-{}.cu", shader.entry), text)?;
        }
    }
    Ok(())
}

/// Where CUDA kernels go that have no WGSL.
const CUDA: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/hopper");

/// Writes each CUDA text under its name.
#[allow(dead_code, reason = "one of the tests has such kernels")]
pub(crate) fn write_cuda(sources: &[(String, String)]) -> Result<()> {
    drop(fs::remove_dir_all(CUDA));
    fs::create_dir_all(CUDA)?;
    sources.iter().try_for_each(|(name, text)| fs::write(format!("{CUDA}/{name}.cu"), text))
}
