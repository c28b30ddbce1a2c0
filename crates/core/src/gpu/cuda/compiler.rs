//! The compiler of kernels, and the folder that keeps what it made.

use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use std::ffi::{CStr, CString, c_char, c_int};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

/// Calls a function of the compiler; `Err` with its words if it fails.
macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: `libraries::compiler` found the function; pointers are to live variables of the types that its C
        // declaration names, and the program is one that it made.
        let code = unsafe { sys::$name($($argument),*) };
        checked(stringify!($name), code)
    }};
}

fn checked(function: &str, code: nvrtcResult) -> Result<(), String> {
    if code == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: the text is static and ends with a zero.
    let words = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(code)) };
    Err(format!("{function}: {}", words.to_string_lossy()))
}

/// The compiler for the architecture of one GPU.
#[derive(Debug)]
pub(super) struct Compiler {
    architecture: Architecture,
    /// Where compiled kernels are kept.
    folder: Option<PathBuf>,
}

/// What code is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Architecture {
    /// Of the option: `sm_90a`.
    name: String,
    /// Whether the result is machine code; assembly otherwise, which a driver of a newer GPU compiles.
    is_final: bool,
}

impl Architecture {
    /// The architecture for a GPU of this capability, given those that the compiler knows.
    fn of(capability: u32, known: &[i32]) -> Result<Self, String> {
        let known = known.iter().filter_map(|&known| u32::try_from(known).ok()).filter(|&known| known <= capability);
        match known.max() {
            None => {
                Err(format!("NVIDIA's libnvrtc cannot compile for compute capability {capability}; install another"))
            }
            // its own instructions exist under this name alone
            Some(90) if capability == 90 => Ok(Architecture { name: "sm_90a".to_owned(), is_final: true }),
            Some(known) if known == capability => Ok(Architecture { name: format!("sm_{known}"), is_final: true }),
            Some(known) => Ok(Architecture { name: format!("compute_{known}"), is_final: false }),
        }
    }
}

impl Compiler {
    /// The compiler for GPUs of this compute capability (90 is 9.0).
    pub(super) fn new(capability: u32, cache: Option<&Path>) -> Result<Self, String> {
        let mut version = (0, 0);
        call!(nvrtcVersion(&mut version.0, &mut version.1))?;
        let mut count = 0;
        call!(nvrtcGetNumSupportedArchs(&mut count))?;
        let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
        call!(nvrtcGetSupportedArchs(known.as_mut_ptr()))?;
        let architecture = Architecture::of(capability, &known)?;
        let name = format!("cuda-{}-{}.{}", architecture.name, version.0, version.1);
        Ok(Compiler { folder: cache.map(|folder| folder.join(name)), architecture })
    }

    /// The code of a text: kept from an earlier run, or compiled.
    ///
    /// # Errors
    /// The compiler's words.
    pub(super) fn compile(&self, name: &str, text: &str, options: &[&str]) -> Result<Vec<u8>, String> {
        let file = self.folder.as_ref().map(|folder| folder.join(format!("{:032x}", hash(text, options))));
        if let Some(code) = file.as_deref().and_then(kept) {
            return Ok(code);
        }
        let code = self.compiled(name, text, options)?;
        if let Some(file) = file {
            keep(&file, &code);
        }
        Ok(code)
    }

    fn compiled(&self, name: &str, text: &str, options: &[&str]) -> Result<Vec<u8>, String> {
        let (text, name) = (c_string(text)?, c_string(name)?);
        let mut program = Program(std::ptr::null_mut());
        let none = std::ptr::null();
        call!(nvrtcCreateProgram(&mut program.0, text.as_ptr(), name.as_ptr(), 0, none, none))?;
        let architecture = format!("--gpu-architecture={}", self.architecture.name);
        let options = ["--std=c++17", &architecture].into_iter().chain(options.iter().copied());
        let options = options.map(c_string).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let compiled = call!(nvrtcCompileProgram(program.0, pointers.len() as c_int, pointers.as_ptr()));
        compiled.map_err(|why| format!("{why}: {}", program.log()))?;
        let mut len = 0;
        if self.architecture.is_final {
            call!(nvrtcGetCUBINSize(program.0, &mut len))?;
        } else {
            call!(nvrtcGetPTXSize(program.0, &mut len))?;
        }
        let mut code = vec![0u8; len];
        let to = code.as_mut_ptr().cast();
        if self.architecture.is_final {
            call!(nvrtcGetCUBIN(program.0, to))?;
        } else {
            call!(nvrtcGetPTX(program.0, to))?;
        }
        Ok(code)
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| "the text holds a zero byte".to_owned())
}

/// A program of the compiler.
struct Program(nvrtcProgram);

impl Program {
    /// What the compiler said, its beginning.
    fn log(&self) -> String {
        let mut len = 0;
        if call!(nvrtcGetProgramLogSize(self.0, &mut len)).is_err() {
            return String::new();
        }
        let mut log = vec![0u8; len];
        let _ = call!(nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()));
        let text = String::from_utf8_lossy(&log);
        text.trim_end_matches('\0').lines().take(12).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            let _ = call!(nvrtcDestroyProgram(&mut self.0));
        }
    }
}

/// A hash of 128 bits.
fn hash(text: &str, options: &[&str]) -> u128 {
    let half = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(seed);
        hasher.write(text.as_bytes());
        options.iter().for_each(|option| hasher.write(option.as_bytes()));
        hasher.finish()
    };
    u128::from(half(0)) << 64 | u128::from(half(1))
}

/// A checksum against damaged bytes, which the driver would trust.
fn sum(code: &[u8]) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    hasher.write(code);
    hasher.finish().to_le_bytes()
}

/// The code that a file holds, if it is sound.
fn kept(file: &Path) -> Option<Vec<u8>> {
    let mut code = std::fs::read(file).ok()?;
    let (data, end) = code.split_last_chunk()?;
    if sum(data) != *end {
        return None;
    }
    code.truncate(code.len() - 8);
    Some(code)
}

/// Keeps code in a file; a failure is ignored: the next run compiles again.
fn keep(file: &Path, code: &[u8]) {
    // another process may write its file at the same time
    let beside = file.with_extension(std::process::id().to_string());
    let _ = file.parent().map(std::fs::create_dir_all);
    let data = [code, &sum(code)].concat();
    if std::fs::write(&beside, data).and_then(|()| std::fs::rename(&beside, file)).is_err() {
        let _ = std::fs::remove_file(&beside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_gpu_gets_assembly_and_an_older_one_is_refused() {
        let known = [75, 80, 90];
        let of = |capability| Architecture::of(capability, &known);
        assert_eq!(of(80).unwrap(), Architecture { name: "sm_80".to_owned(), is_final: true });
        assert_eq!(of(90).unwrap(), Architecture { name: "sm_90a".to_owned(), is_final: true });
        assert_eq!(of(89).unwrap(), Architecture { name: "compute_80".to_owned(), is_final: false });
        assert_eq!(of(120).unwrap(), Architecture { name: "compute_90".to_owned(), is_final: false });
        let refused = of(70).unwrap_err();
        assert_eq!(refused, "NVIDIA's libnvrtc cannot compile for compute capability 70; install another");
    }

    #[test]
    fn code_is_kept_and_a_damaged_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cuda-sm_90a-13.0").join("0123");
        assert_eq!(kept(&file), None);
        keep(&file, b"code");
        assert_eq!(kept(&file).unwrap(), b"code");
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[1] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(kept(&file), None);
        std::fs::write(&file, b"1234567").unwrap();
        assert_eq!(kept(&file), None);
    }

    #[test]
    fn text_and_options_name_the_file() {
        let names = [hash("a", &[]), hash("b", &[]), hash("a", &["x"]), hash("a", &["y"])];
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }
}
