//! Kernels: text with holes that a launch fills.

use super::{cuda, failed};
use crate::{DType, Error, Result};
use std::fmt::Write as _;

/// A compute kernel as text with holes: the launch fills in constants, storage dtypes and reductions.
///
/// The text of [`Kernel::new`] is compiled with bounds checks and bounded loops, so that no launch of it reaches past
/// its bindings.
#[derive(Debug)]
pub struct Kernel {
    /// The name that errors and lists use.
    pub name: &'static str,
    /// The WGSL text, in pieces that kernels share.
    pub wgsl: &'static [&'static str],
    /// Whether the text calls `group_sum` or `group_max`.
    reduces: bool,
    /// Whether it is compiled without bounds checks.
    trusted: bool,
    bodies: &'static [NativeBody],
}

/// The body of a function of WGSL text in CUDA C++, for what NVIDIA's GPUs have instructions.
///
/// Its arguments are `a0`, `a1` and so on, of the types that the translation gives them (`vec<float, 4>`, `u32`), and
/// the launch's constants have their names. What it returns lies within the errors of the function in WGSL.
#[derive(Clone, Copy, Debug)]
pub struct NativeBody {
    /// The name of the function in WGSL.
    pub function: &'static str,
    /// The statements of the body.
    pub cuda: &'static str,
}

impl Kernel {
    /// A kernel that calls no reduction over its workgroup.
    pub const fn new(name: &'static str, wgsl: &'static [&'static str]) -> Self {
        Kernel { name, wgsl, reduces: false, trusted: false, bodies: &[] }
    }

    /// As [`Kernel::new`], compiled without bounds checks and loop bounds.
    ///
    /// # Safety
    /// Every launch of this kernel that its crate makes reads and writes inside its bindings, and its loops end.
    pub const unsafe fn trusted(name: &'static str, wgsl: &'static [&'static str]) -> Self {
        Kernel { trusted: true, ..Kernel::new(name, wgsl) }
    }

    /// The same kernel, whose text takes a `Lane` and calls `group_sum` or `group_max`; `WG` invocations make a
    /// workgroup.
    pub const fn reducing(self) -> Self {
        Kernel { reduces: true, ..self }
    }

    /// The same kernel, with these bodies of functions for NVIDIA's GPUs. Those of functions that its text has not are
    /// passed over.
    ///
    /// # Safety
    /// The bodies reach no memory but their arguments and variables.
    pub const unsafe fn with_bodies(self, bodies: &'static [NativeBody]) -> Self {
        Kernel { bodies, ..self }
    }

    /// What a translation of a variant takes from elsewhere than its text.
    pub(super) fn natives(&self, variant: &Variant<'_>) -> Natives {
        let stored = variant.stored.iter().flat_map(|(name, dtype)| {
            stored_bodies(*dtype).iter().map(move |body| (body.function.replace("NAME", name), body.cuda))
        });
        let bodies = self.bodies.iter().map(|body| (body.function.to_owned(), body.cuda));
        Natives { bodies: stored.chain(bodies).collect(), constants: variant.constants.to_vec() }
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// The WGSL source of a variant for an adapter with subgroups; tests validate variants that this machine cannot
    /// run.
    ///
    /// # Errors
    /// When a storage dtype is no floating one.
    pub fn shader(
        &self,
        entry: &'static str,
        constants: &[(&'static str, u32)],
        stored: &[(&'static str, DType)],
    ) -> Result<Shader> {
        let variant = Variant { entry, constants, stored };
        Ok(self.shader_of(&variant, self.text(&variant, true)?))
    }

    /// A variant as the adapter gets it.
    pub(super) fn shader_of(&self, variant: &Variant<'_>, text: String) -> Shader {
        let (kernel, entry) = (self.name, variant.entry);
        let natives = self.natives(variant);
        Shader { name: variant.name_of(self), kernel, entry, text, trusted: self.trusted, natives }
    }

    /// The whole WGSL text of one variant.
    ///
    /// # Errors
    /// As [`Kernel::shader`].
    pub(super) fn text(&self, variant: &Variant<'_>, subgroups: bool) -> Result<String> {
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
            text.push_str(&storage(self.name, *dtype)?.replace("NAME", name));
        }
        text.push_str(include_str!("wgsl/prelude.wgsl"));
        match (self.reduces, subgroups) {
            (false, _) => {}
            (true, true) => text.push_str(include_str!("wgsl/reduce_subgroups.wgsl")),
            (true, false) => text.push_str(include_str!("wgsl/reduce_tree.wgsl")),
        }
        self.wgsl.iter().for_each(|part| text.push_str(part));
        Ok(text)
    }
}

/// The WGSL of four stored elements: `NAME4`, `widen_NAME`, `narrow_NAME`.
fn storage(kernel: &'static str, dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok(include_str!("wgsl/stored_f32.wgsl")),
        DType::F16 => Ok(include_str!("wgsl/stored_f16.wgsl")),
        DType::BF16 => Ok(include_str!("wgsl/stored_bf16.wgsl")),
        DType::U32 | DType::U8 => {
            Err(Error::value(kernel, format!("its elements are stored as {dtype}, expected a floating dtype")))
        }
    }
}

/// Bodies for the text of [`storage`].
fn stored_bodies(dtype: DType) -> &'static [NativeBody] {
    match dtype {
        DType::BF16 => &[NativeBody {
            function: "narrow_NAME",
            cuda: r#"vec<u32, 2> r;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r.x) : "f"(a0.y), "f"(a0.x));
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r.y) : "f"(a0.w), "f"(a0.z));
        return r;"#,
        }],
        DType::F16 => &[NativeBody {
            function: "narrow_NAME",
            cuda: r#"vec<u32, 2> r;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r.x) : "f"(a0.y), "f"(a0.x));
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r.y) : "f"(a0.w), "f"(a0.z));
        return r;"#,
        }],
        _ => &[],
    }
}

/// The entry point of a kernel and what fills its holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Variant<'a> {
    pub(super) entry: &'static str,
    pub(super) constants: &'a [(&'static str, u32)],
    pub(super) stored: &'a [(&'static str, DType)],
}

impl Variant<'_> {
    /// The kernel's name, with what fills its holes.
    pub(super) fn name_of(&self, kernel: &Kernel) -> String {
        let holes = self.constants.iter().map(|(name, value)| format!(" {name}={value}"));
        let stored = self.stored.iter().map(|(name, dtype)| format!(" {name}={dtype}"));
        kernel.name.to_owned() + &holes.chain(stored).collect::<String>()
    }
}

/// A shader as the adapter got it.
#[derive(Clone, Debug)]
pub struct Shader {
    /// The kernel's name, with what filled its holes.
    pub name: String,
    /// The kernel's name alone.
    kernel: &'static str,
    /// The entry point.
    pub entry: &'static str,
    /// WGSL.
    pub text: String,
    /// Whether it is compiled without bounds checks.
    trusted: bool,
    natives: Natives,
}

/// What a translation to CUDA C++ takes from elsewhere than the text.
#[derive(Clone, Debug, Default)]
pub(super) struct Natives {
    /// Bodies of functions, by name.
    pub(super) bodies: Vec<(String, &'static str)>,
    /// The constants of the launch, for these bodies.
    pub(super) constants: Vec<(&'static str, u32)>,
}

impl Shader {
    /// The same kernel as CUDA C++, as NVIDIA's compiler gets it.
    ///
    /// # Errors
    /// [`Kind::Gpu`](crate::Kind::Gpu) when the text uses what has no translation: cooperative matrices, or values of
    /// 16 bits.
    pub fn to_cuda(&self) -> Result<String> {
        let translated = cuda::translate(&self.text, (self.kernel, self.entry), self.trusted, &self.natives);
        translated.map(|translated| translated.text).map_err(|why| failed("cuda", format!("{}: {why}", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_are_no_floats_cannot_fill_a_hole_for_floats() {
        static COPY: Kernel = Kernel::new("tests stored", &[]);
        for dtype in [DType::U32, DType::U8] {
            let error = COPY.shader("main", &[], &[("X", dtype)]).unwrap_err().to_string();
            assert_eq!(error, format!("tests stored: its elements are stored as {dtype}, expected a floating dtype"));
        }
        assert!(COPY.shader("main", &[], &[("X", DType::F16)]).unwrap().text.contains("widen_X"));
    }
}
