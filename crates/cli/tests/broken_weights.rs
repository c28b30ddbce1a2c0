//! A model whose weights are not finite: each command that trains or measures it says so, and does not blame its flags.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, copied, fixture, refused_with};

/// A copy of a checkpoint with a NaN in a matrix of its second layer.
fn broken(place: &Place) {
    let file = copied(place, "models/qwen3_5-f32").join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let (_, entry) =
        header.as_object().unwrap().iter().find(|(name, _)| name.contains("layers.1.mlp.up_proj.weight")).unwrap();
    let at = 8 + length + usize::try_from(entry["data_offsets"][0].as_u64().unwrap()).unwrap();
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn weights_that_are_not_finite_are_named_by_every_command() {
    let place = Place::new();
    broken(&place);
    let (data, whole) = (fixture("train/lora-data"), fixture("models/qwen3_5-f32"));
    let tune = ["finetune", "--model", "model", "--data", &data, "--num-layers", "4", "--sample-tokens", "0"];
    let small = ["--data-path", &data, "--num-samples", "2", "--batch-size", "1", "--max-seq-length", "33"];
    let not_finite = "not finite";
    for more in [&["--iters", "1"][..], &["--iters", "1", "--fine-tune-type", "full"], &["--test"]] {
        let mut command = place.alluvium(&tune);
        refused_with(command.args(more).args(["--adapter-path", "none"]), &["is NaN", not_finite]);
        let _ = std::fs::remove_dir_all(place.path("none"));
    }
    let dwq = ["dwq", "--model", "model", "--group-size", "32", "--mlx-path", "packed"];
    refused_with(place.alluvium(&dwq).args(small), &["the loss is NaN at step 0; nothing was written", not_finite]);
    let distill = ["distill", "--model", &whole, "--student", "model", "--mlx-path", "student"];
    refused_with(place.alluvium(&distill).args(small), &["the loss is NaN at step 0", not_finite]);
    let generate = ["generate", "--model", "model", "-p", "a", "-m", "2"];
    refused_with(&mut place.alluvium(&generate), &["is NaN at position", not_finite]);
}

#[test]
fn more_layers_than_the_model_has_are_refused_with_their_number() {
    let place = Place::new();
    let (data, model) = (fixture("train/lora-data"), fixture("models/qwen3_5-f32"));
    for kind in ["lora", "full"] {
        let tune = ["finetune", "--model", &model, "--data", &data, "--num-layers", "9", "--fine-tune-type", kind];
        let want = "num_layers is 9, the model has 4 layers; give 4, or -1 for all";
        refused_with(&mut place.alluvium(&tune), &[want]);
    }
}
