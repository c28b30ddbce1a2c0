//! Names of models.

use alluvium_core::{Error, Result};

/// The longest part of a name, as the Hub has it.
const LONGEST: usize = 96;
/// The revision of a name without one.
const MAIN: &str = "main";

/// The name of a model on the Hub: `org/name`, or `org/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    org: String,
    name: String,
    revision: String,
}

impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.org, self.name)?;
        if self.revision == MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl ModelName {
    /// Parses a name; `None` where the text has another form than `org/name` or `org/name@revision`.
    pub fn parse(text: &str) -> Option<Self> {
        let (path, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let (org, name) = path.split_once('/')?;
        let is_name = is_part(org) && is_part(name) && is_revision(revision);
        is_name.then(|| ModelName { org: org.to_owned(), name: name.to_owned(), revision: revision.to_owned() })
    }

    /// The revision: a branch, a tag or a commit; `main` where the name has none.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The name without its revision.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.org, self.name)
    }

    /// The folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.org, self.name)
    }

    /// The name of a folder in the cache.
    pub(crate) fn of_folder(folder: &str, revision: &str) -> Option<Self> {
        let (org, name) = folder.strip_prefix("models--")?.split_once("--")?;
        Self::parse(&format!("{org}/{name}@{revision}"))
    }
}

/// A part of a name: what the Hub allows, and never a way out of a folder.
fn is_part(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=LONGEST).contains(&text.len())
        && text.chars().all(allowed)
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
        && !text.contains("--")
        && !text.contains("..")
}

/// A branch, a tag, a commit, or `refs/pr/1`.
fn is_revision(text: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        !part.is_empty() && part.chars().all(allowed) && !part.starts_with(['-', '.']) && !part.ends_with('.')
    };
    text.len() <= LONGEST && text.split('/').all(part)
}

/// A commit: 40 hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Refuses a name of a file, as a server gave it, that could leave the folder it belongs to.
pub(crate) fn check_file(name: &str) -> Result<()> {
    let part = |part: &str| {
        let harmless = |c: char| !c.is_control() && !"\\:*?\"<>|".contains(c);
        (1..=255).contains(&part.len()) && part != "." && part != ".." && part.chars().all(harmless)
    };
    match name.len() <= 1024 && name.split('/').all(part) {
        true => Ok(()),
        false => Err(Error::value("hub", format!("the server names a file {name:?}, which is not a path in a folder"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_hub_and_nothing_else() {
        for (text, shown) in [
            ("Qwen/Qwen3.5-0.8B", "Qwen/Qwen3.5-0.8B"),
            ("a/b@main", "a/b"),
            ("a/b@v1.0", "a/b@v1.0"),
            ("a/b@refs/pr/3", "a/b@refs/pr/3"),
        ] {
            assert_eq!(ModelName::parse(text).unwrap().to_string(), shown);
        }
        let long = format!("a/{}", "b".repeat(97));
        for text in [
            "name", "/b", "a/", "a/b/c", "./b", "../b", "a/..", "a/.b", "a--b/c", "a/b@", "a/b@../c", "a/b@/c",
            "a/b@x/..", "a\\b/c", "a/b c", "a/é", "", "a/b@-x", "~/b", &long,
        ] {
            assert_eq!(ModelName::parse(text), None, "{text}");
        }
    }

    #[test]
    fn names_of_files_stay_in_their_folder() {
        for name in ["config.json", "a/b.jinja", "model-00001-of-00002.safetensors"] {
            check_file(name).unwrap();
        }
        for name in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "C:\\x", "a\\b", "a\nb", "./a", &"x".repeat(300)] {
            assert!(check_file(name).is_err(), "{name}");
        }
    }
}
