//! Files and folders that are written under a temporary name and renamed when they are complete.

use alluvium_core::{Error, Result};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The temporary files and folders of this process.
static PARTIAL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn partial() -> MutexGuard<'static, Vec<PathBuf>> {
    // a panic cannot leave the list half changed
    PARTIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all temporary files and folders of this process and returns their number. For a process that a signal is
/// about to end.
///
/// Afterwards nothing can be started or completed: a thread that tries waits for the end of the process.
pub fn remove_partials() -> usize {
    let partial = partial();
    for path in partial.iter() {
        // a thread that is still writing may add a file to a folder that is being removed
        for _ in 0..100 {
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            if !path.exists() {
                break;
            }
        }
    }
    let count = partial.len();
    std::mem::forget(partial);
    count
}

/// A temporary file or folder that [`remove_partials`] knows. Dropped before it is renamed, it is removed.
#[derive(Debug)]
pub struct TempPath(PathBuf);

impl TempPath {
    /// Creates an empty file beside `target`, which is held by this process alone.
    fn file(target: &Path) -> io::Result<(Self, File)> {
        // held meanwhile: `remove_partials` must not miss it
        let mut partial = partial();
        let (file, path) =
            builder(&start(target), 0o666).tempfile_in(folder_of(target))?.keep().map_err(|e| e.error)?;
        partial.push(path.clone());
        Ok((TempPath(path), file))
    }

    /// Creates an empty folder beside `target`.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn folder(target: &Path) -> io::Result<Self> {
        let mut partial = partial();
        let path = builder(&start(target), 0o777).tempdir_in(folder_of(target))?.keep();
        partial.push(path.clone());
        Ok(TempPath(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Renames it to its target.
    pub(crate) fn rename(&self, target: &Path) -> io::Result<()> {
        // held meanwhile: what is being renamed cannot be removed in part
        let mut partial = partial();
        fs::rename(&self.0, target)?;
        partial.retain(|path| *path != self.0);
        Ok(())
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let mut partial = partial();
        // once renamed the name is free, and another process may have taken it
        if partial.contains(&self.0) {
            let _ = if self.0.is_dir() { fs::remove_dir_all(&self.0) } else { fs::remove_file(&self.0) };
        }
        partial.retain(|path| *path != self.0);
    }
}

/// Makes names that do not exist: `.model.safetensors.Xy12ab.partial`. No reader of checkpoints looks for them.
fn builder<'a>(start: &'a str, mode: u32) -> tempfile::Builder<'a, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(start).suffix(".partial").rand_bytes(RANDOM);
    // as other files are made, not for their owner alone; the process's umask is applied
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    let _ = mode;
    builder
}

/// Random characters of a temporary name.
const RANDOM: usize = 8;

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces the file at `path` by what `write` writes; until that is on the disk, the old file stays.
///
/// The new content goes to a temporary name in the same folder, is flushed to the disk and then renamed. A failure
/// leaves the old file as it was and removes the temporary one.
///
/// # Errors
/// [`Kind::Io`](alluvium_core::Kind::Io) with the path, when the system refuses: a full disk, a folder that is not
/// there or not writable.
pub fn write_atomic(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    AtomicFile::write(path.as_ref(), write)?.commit()
}

/// A file that is complete under its temporary name. Dropped before [`AtomicFile::commit`], it is removed.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    target: PathBuf,
    temporary: TempPath,
}

impl AtomicFile {
    pub(crate) fn write(target: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        remove_abandoned(folder_of(target), &|target| target == name);
        let (temporary, file) = TempPath::file(target).map_err(Error::io(target, "write"))?;
        fill(file, write).map_err(Error::io(target, "write"))?;
        Ok(AtomicFile { temporary, target: target.to_owned() })
    }

    pub(crate) fn commit(self) -> Result<()> {
        self.temporary.rename(&self.target).map_err(Error::io(&self.target, "write"))?;
        if let Some(folder) = self.target.parent() {
            sync_folder(folder);
        }
        Ok(())
    }
}

fn fill(file: File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    // the lock tells another process that this file is in use; a file system without locks loses nothing
    let _ = file.try_lock();
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    out.flush()?;
    out.get_ref().sync_all()
}

/// Makes a rename last through a loss of power; systems that cannot open a folder do so by themselves.
pub(crate) fn sync_folder(folder: &Path) {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

fn start(target: &Path) -> String {
    format!(".{}.", target.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes the temporary files that killed processes left in a folder: regular files without a lock, with the temporary
/// name of a target that `is_target` knows by its name.
pub fn remove_abandoned(folder: &Path, is_target: &dyn Fn(&str) -> bool) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().to_str().and_then(target_of).is_some_and(is_target);
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let is_free = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
            if is_free {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// The target of a temporary name: the reverse of [`builder`].
fn target_of(name: &str) -> Option<&str> {
    let (target, random) = name.strip_prefix('.')?.strip_suffix(".partial")?.rsplit_once('.')?;
    (random.len() == RANDOM && random.chars().all(char::is_alphanumeric)).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomic(&path, |out| out.write_all(b"old")).unwrap();
        let error = write_atomic(&path, |out| {
            out.write_all(b"new")?;
            Err(io::Error::new(io::ErrorKind::StorageFull, "no space left"))
        });
        assert_eq!(error.unwrap_err().to_string(), format!("cannot write {}: no space left", path.display()));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    #[cfg(unix)]
    fn a_link_is_replaced_and_the_file_it_names_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["a.txt", "b.txt"].map(|name| folder.path().join(name));
        fs::write(&other, b"another's").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        write_atomic(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!((fs::read(&other).unwrap(), fs::read(&path).unwrap()), (b"another's".to_vec(), b"new".to_vec()));
    }

    #[test]
    fn what_a_killed_write_left_is_removed_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(folder.path().join(".a.txt.aB3dE6gH.partial"), b"half").unwrap();
        fs::write(folder.path().join(".a.txt.notes.partial"), b"another's").unwrap();
        write_atomic(&path, |out| out.write_all(b"new")).unwrap();
        let mut names = names(folder.path());
        names.sort();
        assert_eq!(names, [".a.txt.notes.partial", "a.txt"]);
    }
}
