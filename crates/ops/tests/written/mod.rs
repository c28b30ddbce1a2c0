//! Shaders as files, for compilers that Rust cannot call: `.ci/tint` gives them to Chrome's.

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
    for Shader { name, text, .. } in shaders {
        let mut hash = DefaultHasher::new();
        text.hash(&mut hash);
        // what filled the kernel's holes is the text's beginning
        let kernel: Vec<&str> = name.split(' ').take_while(|word| !word.contains('=')).collect();
        fs::write(format!("{FOLDER}/{}-{:016x}.wgsl", kernel.join(" "), hash.finish()), text)?;
    }
    Ok(())
}
