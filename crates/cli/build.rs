//! Tells the program its commit and its target for `--version`.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=ALLUVIUM_COMMIT");
    let target = std::env::var("TARGET").unwrap_or_else(|_| "unknown target".to_owned());
    println!("cargo:rustc-env=ALLUVIUM_TARGET={target}");
    // a development build would be linked anew after every commit
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let of_git = || git(&["describe", "--always", "--dirty", "--exclude=*"]).filter(|_| is_release);
    let commit = std::env::var("ALLUVIUM_COMMIT").ok().filter(|commit| !commit.is_empty()).or_else(of_git);
    println!("cargo:rustc-env=ALLUVIUM_COMMIT={}", commit.as_deref().unwrap_or("unknown commit"));
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|_| is_release) {
        println!("cargo:rerun-if-changed={log}");
    } else {
        println!("cargo:rerun-if-changed=build.rs");
    }
}

/// What git says; nothing where there is no git or no repository.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}
