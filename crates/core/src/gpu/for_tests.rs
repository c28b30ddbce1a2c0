//! The GPU that tests run on. The one file of a library that reads the environment.

use super::{Builder, Gpu, Library, failed};
use crate::{Error, Result};

impl Builder {
    /// Opens the GPU that tests run on: the one of the library that `ALLUVIUM_TEST_GPU` names, `wgpu` if it is unset.
    /// `None`, said on stderr, where there is none, not even in software.
    ///
    /// # Errors
    /// As [`Builder::open`]; and where there is none although `CI` is set.
    pub fn open_for_test(mut self) -> Result<Option<Gpu>> {
        if let Some(name) = std::env::var_os("ALLUVIUM_TEST_GPU") {
            let known = Library::ALL.into_iter().find(|library| name == *library.name());
            let wrong = || Error::value("ALLUVIUM_TEST_GPU", format!("{name:?} came, expected cuda or wgpu"));
            self.library = known.ok_or_else(wrong)?;
        }
        if !self.library.adapters().is_empty() {
            return self.open().map(Some);
        }
        let why = "no GPU was found, not even a software one (Debian's mesa-vulkan-drivers has one)";
        if std::env::var_os("CI").is_some() {
            return Err(failed(self.library.name(), why));
        }
        eprintln!("skipped: {why}");
        Ok(None)
    }
}
