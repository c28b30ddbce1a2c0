//! How much memory a process holds that generates: the weights, once, its caches, and a tenth of the weights at most. Alone in its file, because
//! it starts itself as another process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device};
use alluvium_lm::models::qwen3_5::{RopeParameters, Sizes};
use alluvium_lm::{GenerateOptions, generate, initialize, inspect, load, save};
use alluvium_ops::cast;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the folder to the process that generates.
const FOLDER: &str = "ALLUVIUM_MEMORY_TEST_FOLDER";

/// About 147 million parameters, with small caches: what a program needs beside its weights does not grow with their layers.
fn sizes() -> Sizes {
    Sizes {
        hidden_size: 768,
        intermediate_size: 2304,
        num_hidden_layers: 16,
        full_attention_interval: 4,
        layer_types: None,
        attention_bias: false,
        num_attention_heads: 4,
        num_key_value_heads: 1,
        head_dim: 64,
        linear_num_key_heads: 2,
        linear_num_value_heads: 4,
        linear_key_head_dim: 64,
        linear_value_head_dim: 64,
        linear_conv_kernel_dim: 4,
        vocab_size: 32_768,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        rope_parameters: RopeParameters::default(),
        mixture: Default::default(),
    }
}

/// Keys and values of 768 tokens, the states of the delta rule and two snapshots of them.
const CACHES: usize = 4_000_000;

/// A line of what the system says of this process, in bytes.
fn said(line: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let found = status.lines().find_map(|l| l.strip_prefix(line)).unwrap();
    1024 * found.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap()
}

/// What the process holds more at its most than before it loads, while it reads 600 tokens and writes 20.
fn generate_from(folder: &Path) -> usize {
    let before = said("VmRSS");
    let model = load(folder, &Device::cpu()).unwrap().model;
    let prompt: Vec<u32> = (0..600).map(|i| i * 13 % 8192).collect();
    let made =
        generate(model.as_ref(), None, &prompt, &GenerateOptions { max_tokens: 20, ..GenerateOptions::default() })
            .unwrap();
    assert_eq!(made.tokens.len(), 20);
    said("VmHWM") - before
}

#[test]
fn generating_holds_the_weights_once_the_caches_and_a_tenth_more() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        println!("peak {}", generate_from(&PathBuf::from(folder)));
        return;
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("model");
    let config = sizes().config(0).unwrap();
    let mut model = initialize(&config, 0, &Device::cpu()).unwrap();
    model.visit_mut("", &mut |_, parameter| *parameter = cast(parameter, DType::BF16).unwrap());
    save(model.as_ref(), &config, None, &folder).unwrap();
    drop(model);
    let weights = inspect(&folder).unwrap().bytes();
    assert!(weights > 290_000_000, "{weights}");
    let name = "generating_holds_the_weights_once_the_caches_and_a_tenth_more";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--nocapture"]).env(FOLDER, &folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let peak = text.lines().find_map(|line| line.split_once("peak ")?.1.parse::<usize>().ok());
    let peak = peak.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    let most = weights + CACHES + weights / 10;
    assert!(peak > weights && peak < most, "{peak} bytes for {weights} of weights, {most} at most");
}
