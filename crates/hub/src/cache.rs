//! The cache on the disk.

use crate::name::{ModelName, is_commit};
use alluvium_core::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The largest file of a ref that is read, in bytes.
const LONGEST_REF: u64 = 256;

/// The cache of the Hub.
#[derive(Clone, Debug)]
pub struct Hub {
    cache: PathBuf,
}

/// A model in the cache.
#[derive(Clone, Debug)]
pub struct CachedModel {
    /// Its name and the revision under which it was fetched.
    pub name: ModelName,
    /// The commit.
    pub commit: String,
    /// The folder of its files.
    pub folder: PathBuf,
    /// The bytes of its files.
    pub bytes: u64,
}

impl Hub {
    /// The cache in a folder, which need not exist.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Hub { cache: cache.into() }
    }

    /// The folder of the cache.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The folder with the files of a model; `None` where the cache does not have it.
    ///
    /// # Errors
    /// When a ref cannot be read or holds no commit.
    pub fn find(&self, name: &ModelName) -> Result<Option<PathBuf>> {
        let model = self.model_folder(name);
        let commit = match self.commit(&model, name.revision())? {
            Some(commit) => commit,
            None if is_commit(name.revision()) => name.revision().to_owned(),
            None => return Ok(None),
        };
        let folder = model.join("snapshots").join(commit);
        Ok(folder.is_dir().then_some(folder))
    }

    /// The models in the cache, by name.
    ///
    /// # Errors
    /// When the folder is there but cannot be read.
    pub fn models(&self) -> Result<Vec<CachedModel>> {
        let mut models = Vec::new();
        for folder in entries(&self.cache)? {
            let file_name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for revision in revisions(&folder.join("refs"), "")? {
                let Some(name) = ModelName::of_folder(&file_name, &revision) else { continue };
                let Some(commit) = self.commit(&folder, &revision)? else { continue };
                let snapshot = folder.join("snapshots").join(&commit);
                if snapshot.is_dir() {
                    models.push(CachedModel { name, commit, bytes: size(&snapshot)?, folder: snapshot });
                }
            }
        }
        Ok(models)
    }

    pub(crate) fn model_folder(&self, name: &ModelName) -> PathBuf {
        self.cache.join(name.folder())
    }

    /// The commit that a ref of a model names.
    fn commit(&self, model: &Path, revision: &str) -> Result<Option<String>> {
        let path = model.join("refs").join(revision);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() && metadata.len() <= LONGEST_REF => {}
            Ok(metadata) if metadata.is_file() => return Err(Error::file(&path, "it is too long for a commit")),
            _ => return Ok(None),
        }
        let commit = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?.trim().to_owned();
        match is_commit(&commit) {
            true => Ok(Some(commit)),
            false => Err(Error::file(&path, format!("it holds {commit:?}, expected a commit of 40 digits"))),
        }
    }
}

/// The entries of a folder in the order of their names; none where there is no folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = match fs::read_dir(folder) {
        Ok(list) => list,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(folder, "read")(error)),
    };
    let mut paths = Vec::new();
    for entry in list {
        paths.push(entry.map_err(Error::io(folder, "read"))?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The names of all refs under a folder.
fn revisions(folder: &Path, before: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    // `refs/pr/1` is the deepest
    if !folder.is_dir() || before.matches('/').count() > 4 {
        return Ok(all);
    }
    for path in entries(folder)? {
        let name = format!("{before}{}", path.file_name().unwrap_or_default().to_string_lossy());
        match path.is_dir() {
            true => all.extend(revisions(&path, &format!("{name}/"))?),
            false => all.push(name),
        }
    }
    Ok(all)
}

/// The bytes of the files under a folder; links to files count as the files.
fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for path in entries(folder)? {
        let is_link = path.is_symlink();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() && !is_link => bytes += size(&path)?,
            Ok(metadata) if metadata.is_file() => bytes += metadata.len(),
            // a link to a blob that is gone
            _ => {}
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cached() -> (tempfile::TempDir, Hub) {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("models--org--name");
        let snapshot = model.join("snapshots").join(COMMIT);
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(model.join("refs/refs/pr")).unwrap();
        fs::write(model.join("refs/main"), COMMIT).unwrap();
        fs::write(model.join("refs/refs/pr/3"), format!("{COMMIT}\n")).unwrap();
        fs::write(snapshot.join("config.json"), "{}").unwrap();
        let hub = Hub::new(folder.path());
        (folder, hub)
    }

    #[test]
    fn a_name_is_found_by_branch_commit_and_pull_request() {
        let (_folder, hub) = cached();
        let find = |name: &str| hub.find(&ModelName::parse(name).unwrap());
        for name in ["org/name", "org/name@main", "org/name@refs/pr/3", &format!("org/name@{COMMIT}")] {
            assert!(find(name).unwrap().unwrap().ends_with(COMMIT), "{name}");
        }
        for name in ["org/other", "org/name@v2", "org/name@ffff456789abcdef0123456789abcdef01234567"] {
            assert_eq!(find(name).unwrap(), None, "{name}");
        }
        let models = hub.models().unwrap();
        let names: Vec<String> = models.iter().map(|model| model.name.to_string()).collect();
        assert_eq!(names, ["org/name", "org/name@refs/pr/3"]);
        assert_eq!(models[0].bytes, 2);
        assert!(Hub::new("no/such/folder").models().unwrap().is_empty());
    }

    #[test]
    fn a_ref_that_leads_out_of_the_cache_is_refused() {
        let (folder, hub) = cached();
        let name = ModelName::parse("org/name").unwrap();
        for text in ["../../..", "", "0123", &"a".repeat(1000), &COMMIT.to_uppercase()] {
            fs::write(folder.path().join("models--org--name/refs/main"), text).unwrap();
            assert!(hub.find(&name).is_err(), "{text}");
        }
    }
}
