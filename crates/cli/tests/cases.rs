//! Files that users of similar programs have, each a kind that some program gets wrong.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn case(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/cases/inference").join(name)
}

fn alluvium(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_alluvium"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `generate` writes for a case: its text, or its error.
fn generate(folder: &Path, args: &[&str]) -> String {
    let all = [&["generate", "--model", folder.to_str().unwrap(), "--prompt", "a"], args].concat();
    let output = alluvium(&all, "");
    let error = text(&output.stderr);
    let error = error.lines().find(|line| line.starts_with("error: ")).unwrap_or("");
    text(&output.stdout).trim_end_matches('\n').to_owned() + error
}

const TOOLS: &str = concat!(
    r#"{"tools":[{"type":"function","function":{"name":"ü","parameters":"#,
    r#"{"properties":{"rate":{"default":1e-5,"maximum":1e20}}}}}]}"#
);

#[test]
fn a_text_ends_with_the_tokenizers_end_token_also_where_other_files_name_others() {
    for name in ["eos-1-text-config", "eos-2-generation-config"] {
        assert_eq!(generate(&case(name), &["--ignore-chat-template", "--max-tokens", "8"]), "", "{name}");
    }
}

#[test]
fn characters_of_byte_tokens_and_spaces_come_whole() {
    assert_eq!(generate(&case("bytes-1-emoji"), &["--max-tokens", "8"]), "🙂 b");
    let words: Vec<String> = (0..20).map(|word| format!("w{word}")).collect();
    assert_eq!(generate(&case("space-15"), &["--max-tokens", "30"]), words.join(" "));
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    for (name, args, want) in [
        ("loop-1-previtem", vec!["--system-prompt", "b"], "error: chat template: [system|user]"),
        ("json-1-separators", vec!["--chat-template-config", TOOLS], r#"[[{"type":"function","function":{"name":"ü""#),
        ("json-4-numbers", vec!["--chat-template-config", TOOLS], r#"{"default": 1e-05, "maximum": 1e+20}"#),
        ("crlf-1-file", vec![], r#"["<user>\na\n"]"#),
        ("named-templates", vec![], "default was used"),
        ("named-templates", vec!["--chat-template-config", TOOLS], "tool_use was used, 1 tools"),
    ] {
        let found = generate(&case(name), &args);
        assert!(found.contains(want), "{name}: {found}");
    }
}

#[test]
fn a_template_that_is_there_but_cannot_be_read_is_an_error() {
    let found = generate(&case("template-1-utf16"), &[]);
    assert!(found.contains("chat_template.jinja") && found.contains("UTF-8"), "{found}");
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(case("template-2-dangling-link")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    for name in ["chat_template.jinja", "generation_config.json", "additional_chat_templates/tool_use.jinja"] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink("../../blobs/not-fetched", &path).unwrap();
        let found = generate(folder.path(), &[]);
        assert!(found.contains(name) && found.contains("No such file"), "{name}: {found}");
        std::fs::remove_file(&path).unwrap();
        // a folder in its place
        std::fs::create_dir(&path).unwrap();
        let found = generate(folder.path(), &[]);
        assert!(found.contains(name) && found.contains("no regular file"), "{name}: {found}");
        std::fs::remove_dir(&path).unwrap();
    }
}

#[test]
fn the_template_for_tools_may_be_a_file_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(case("crlf-1-file")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let named = folder.path().join("additional_chat_templates");
    std::fs::create_dir(&named).unwrap();
    std::fs::write(named.join("tool_use.jinja"), "{{ raise_exception('for ' ~ tools|length ~ ' tools') }}").unwrap();
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("converted");
    let [from, to] = [folder.path(), &out].map(|path| path.to_str().unwrap());
    assert!(alluvium(&["convert", "--hf-path", from, "--mlx-path", to], "").status.success());
    for folder in [folder.path(), &out] {
        let found = generate(folder, &["--chat-template-config", TOOLS]);
        assert!(found.contains("for 1 tools"), "{found}");
        assert!(generate(folder, &[]).contains("<user>"));
    }
}

#[test]
fn thoughts_are_cut_at_special_tokens_and_an_answer_may_name_the_tag() {
    for (name, answer, history) in [
        ("think-1-special-tokens", "a\n---\nb\n", r#"{"role": "assistant", "content": "b"}"#),
        ("think-3-named-in-the-answer", "a<think>b\n", r#"{"role": "assistant", "content": "a<think>b"}"#),
    ] {
        let output =
            alluvium(&["chat", "--max-tokens", "8", "--temp", "0", "--model", case(name).to_str().unwrap()], "c\nd\n");
        assert!(text(&output.stdout).starts_with(answer), "{name}: {}", text(&output.stdout));
        assert!(text(&output.stderr).contains(history), "{name}: {}", text(&output.stderr));
    }
}

#[test]
fn an_index_may_name_further_files_or_files_that_never_came() {
    for name in ["index-1-mtp-file", "index-4-stale"] {
        assert_eq!(generate(&case(name), &["--max-tokens", "8"]), "b", "{name}");
    }
}

#[test]
fn an_output_projection_of_its_own_is_used() {
    for name in ["head-1-llama-says-nothing", "head-2-inner-true-outer-false"] {
        assert_eq!(generate(&case(name), &["--max-tokens", "8"]), "b", "{name}");
    }
}

#[test]
fn a_key_that_is_null_counts_as_missing() {
    assert_eq!(generate(&case("which-key"), &["--max-tokens", "8"]), "b");
}

#[test]
fn a_module_that_is_asked_for_by_name_is_packed_by_its_own_group_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let convert = |to: &str, layer: &str| {
        let to = folder.path().join(to);
        let from = case("group-of-its-own");
        let [from, to] = [&from, &to].map(|path| path.to_str().unwrap());
        let output = alluvium(&["convert", "--hf-path", from, "--mlx-path", to, "-q", "--q-layer", layer], "");
        text(&output.stdout) + &text(&output.stderr)
    };
    let found = convert("fits", "q_proj=4:32");
    assert!(found.contains("1 modules quantized") || found.contains("1 module quantized"), "{found}");
    let found = convert("does-not", "q_proj=4:64");
    assert!(found.contains("has rows of 96, which groups of 64 do not divide"), "{found}");
    assert!(!folder.path().join("does-not").exists());
}
