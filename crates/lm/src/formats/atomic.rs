//! Files that are there whole or not at all.

use alluvium_core::{Error, Result};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What this process has under a temporary name.
static PARTIAL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn partial() -> MutexGuard<'static, Vec<PathBuf>> {
    // a list of paths is whole whoever held it
    PARTIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is half written, for a process that is about to be ended by a signal; how many files and folders that was.
///
/// From then on nothing can be begun or finished: a thread that tries waits for the end of the process.
pub fn abandon() -> usize {
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

/// A temporary name that [`abandon`] knows. Dropped, what is there is removed: after a rename, nothing.
#[derive(Debug)]
pub(crate) struct Partial(PathBuf);

impl Partial {
    /// To be called before anything of that name is made.
    pub(crate) fn new(path: PathBuf) -> Self {
        partial().push(path.clone());
        Partial(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Gives it its real name.
    pub(crate) fn rename(&self, target: &Path) -> io::Result<()> {
        // held meanwhile: what is being renamed cannot be removed in part
        let mut partial = partial();
        fs::rename(&self.0, target)?;
        partial.retain(|path| *path != self.0);
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let mut partial = partial();
        let _ = if self.0.is_dir() { fs::remove_dir_all(&self.0) } else { fs::remove_file(&self.0) };
        partial.retain(|path| *path != self.0);
    }
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
    Staged::write(path.as_ref(), write)?.commit()
}

/// A file that is complete under its temporary name. Dropped before [`Staged::commit`], it is removed.
#[derive(Debug)]
pub(crate) struct Staged {
    target: PathBuf,
    temporary: Partial,
}

impl Staged {
    pub(crate) fn write(target: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Self> {
        remove_abandoned(target);
        let staged = Staged { temporary: Partial::new(temporary(target)), target: target.to_owned() };
        staged.fill(write).map_err(Error::io(target, "write"))?;
        Ok(staged)
    }

    fn fill(&self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let file = File::create(self.temporary.path())?;
        // the lock tells another process that this file is not abandoned; where there are no locks, nothing is lost
        let _ = file.try_lock();
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()
    }

    pub(crate) fn commit(self) -> Result<()> {
        self.temporary.rename(&self.target).map_err(Error::io(&self.target, "write"))?;
        if let Some(folder) = self.target.parent() {
            sync_folder(folder);
        }
        Ok(())
    }
}

/// Makes a rename last through a loss of power; systems that cannot open a folder do so by themselves.
pub(crate) fn sync_folder(folder: &Path) {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// `.model.safetensors.4711-0.partial`: hidden, unique, and no name that a reader of checkpoints looks for.
fn temporary(target: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    target.with_file_name(format!("{}{}-{count}.partial", start(target), std::process::id()))
}

fn start(target: &Path) -> String {
    format!(".{}.", target.file_name().unwrap_or_default().to_string_lossy())
}

/// Removes what a killed process left of this file: temporaries that nobody holds a lock on.
fn remove_abandoned(target: &Path) {
    let folder = target.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(&start(target)) && name.ends_with(".partial") {
            let free = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
            if free {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
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
    fn what_a_killed_write_left_is_removed_by_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(folder.path().join(".a.txt.1-0.partial"), b"half").unwrap();
        write_atomic(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(names(folder.path()), ["a.txt"]);
    }
}
