//! Compiled kernels and their launches.

use super::driver::{DriverError, Function};
use super::translate::{Translated, translate};
use super::{Binding, Engine, Kernel, Shader, Variant, failed};
use crate::{Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

/// The options that translated text is compiled with: every fused multiply-add is written in it.
const OPTIONS: &[&str] = &["--fmad=false"];

/// The threads of a warp: reductions by warps need whole ones.
const WARP: u32 = 32;

/// The most bindings of a kernel.
const BINDINGS: usize = 16;

/// A compiled variant of a kernel.
pub(in crate::gpu) struct Pipeline {
    function: Function,
    bindings: Vec<u32>,
    params: usize,
    declared_params: usize,
    threads: u32,
    writes: u64,
    shader: Shader,
}

impl Pipeline {
    /// Whether the kernel may write to the binding of this number.
    pub(in crate::gpu) fn writes(&self, binding: usize) -> bool {
        binding < 64 && self.writes >> binding & 1 == 1
    }

    pub(super) fn shader(&self) -> &Shader {
        &self.shader
    }
}

impl Engine {
    /// Compiles a variant of a kernel.
    pub(super) fn compile(&self, kernel: &'static Kernel, variant: Variant<'_>) -> Result<Pipeline> {
        let refused =
            |why: String| failed(&self.name, format!("the kernel {} ({variant:?}) was refused: {why}", kernel.name));
        let translated = |subgroups: bool| -> Result<(String, Translated)> {
            let text = kernel.text(&variant, subgroups)?;
            let natives = kernel.natives(&variant);
            let translated =
                translate(&text, (kernel.name, variant.entry), kernel.is_trusted(), &natives).map_err(refused)?;
            Ok((text, translated))
        };
        let (mut text, mut made) = translated(!self.plain)?;
        if !made.threads.is_multiple_of(WARP) {
            (text, made) = translated(false)?;
        }
        if made.bindings.len() > BINDINGS {
            return Err(refused(format!("it has {} bindings, expected at most {BINDINGS}", made.bindings.len())));
        }
        if made.threads as usize > self.threads {
            return Err(refused(format!("its workgroups have {} invocations, at most {}", made.threads, self.threads)));
        }
        let code = self.compiler.compile(kernel.name, &made.text, OPTIONS).map_err(refused)?;
        let function = self.queue.stream().load(&code, &made.symbol).map_err(|error| refused(error.words))?;
        Ok(Pipeline {
            function,
            bindings: made.bindings,
            params: made.params,
            declared_params: made.declared_params,
            threads: made.threads,
            writes: made.writes,
            shader: kernel.shader_of(&variant, text),
        })
    }

    /// See [`super::super::engine::Engine::dispatch`].
    pub(in crate::gpu) fn dispatch(
        &self,
        pipeline: &Arc<Pipeline>,
        bindings: &[Option<Binding<'_>>],
        params: &[u8],
        grid: [u32; 3],
    ) -> Result<()> {
        let wrong = |why: String| -> Error { failed(&self.name, format!("{} {why}", pipeline.shader.name)) };
        // an entry point may leave the text's params unused
        if params.len() != pipeline.declared_params && !(params.is_empty() && pipeline.params == 0) {
            return Err(wrong(format!("takes {} bytes of params, got {}", pipeline.declared_params, params.len())));
        }
        if grid.contains(&0) {
            return Ok(());
        }
        // a pointer and a number of bytes for each binding, then the params
        let mut words = [0u64; 2 * BINDINGS];
        let mut count = 0;
        for &number in &pipeline.bindings {
            let Some(Some(Binding { buffer, first, len })) = bindings.get(number as usize) else {
                return Err(wrong(format!("needs binding {number}, which the launch leaves out")));
            };
            words[count] = buffer.pointer + *first as u64;
            words[count + 1] = *len as u64;
            count += 2;
        }
        let (pipeline, params) = (pipeline.clone(), params.to_vec());
        self.queue.push(move |stream| {
            let mut arguments = [std::ptr::null_mut::<c_void>(); 2 * BINDINGS + 1];
            for (argument, word) in arguments.iter_mut().zip(&mut words[..count]) {
                *argument = std::ptr::from_mut(word).cast();
            }
            if pipeline.params > 0 {
                arguments[count] = params.as_ptr().cast_mut().cast();
                count += 1;
            }
            let block = (pipeline.threads, 0);
            let launched = stream.launch(&pipeline.function, grid, block, &mut arguments[..count]);
            launched.map_err(DriverError::into_words)
        });
        Ok(())
    }
}
