//! The driver's compiled kernels, saved in a file from run to run.

use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

/// The driver's cache, and the file that holds it.
pub(super) struct Cache {
    pub(super) handle: wgpu::PipelineCache,
    file: PathBuf,
    /// The checksum of the file's contents, if it was sound.
    found: Option<[u8; 8]>,
}

/// A checksum against damaged bytes: wgpu checks their length alone, and a driver may trust them.
fn sum(data: &[u8]) -> [u8; 8] {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish().to_le_bytes()
}

impl Cache {
    /// The cache of this adapter in a folder, if its driver has one.
    pub(super) fn open(adapter: &wgpu::Adapter, device: &wgpu::Device, folder: &Path) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let file = folder.join(wgpu::util::pipeline_cache_key(&adapter.get_info())?);
        let kept = std::fs::read(&file).unwrap_or_default();
        let sound = kept.split_last_chunk().filter(|(data, end)| sum(data) == **end);
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: None, data: sound.map(|(data, _)| data), fallback: true };
        // SAFETY: the checksum says that `drop` got these bytes from a driver; wgpu compares their header, which names
        // adapter and driver, with the present ones.
        let handle = unsafe { device.create_pipeline_cache(&descriptor) };
        let found = sound.map(|(_, end)| *end);
        Some(Cache { handle, file, found })
    }

    /// Whether the file was there and sound.
    #[cfg(test)]
    pub(super) fn was_found(&self) -> bool {
        self.found.is_some()
    }
}

impl Drop for Cache {
    /// Saves the driver's kernels; a failure to save is ignored.
    fn drop(&mut self) {
        let Some(mut data) = self.handle.get_data() else { return };
        let end = sum(&data);
        if self.found == Some(end) {
            return;
        }
        data.extend(end);
        // another process may write its file at the same time
        let beside = self.file.with_extension(std::process::id().to_string());
        let _ = self.file.parent().map(std::fs::create_dir_all);
        if std::fs::write(&beside, data).and_then(|()| std::fs::rename(&beside, &self.file)).is_err() {
            let _ = std::fs::remove_file(&beside);
        }
    }
}
