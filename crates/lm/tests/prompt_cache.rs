//! Caches in files: mlx-lm's are read, ours are like them.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::Device;
use alluvium_lm::formats::chat::{Ending, Message};
use alluvium_lm::formats::{prompt_cache, safetensors};
use alluvium_lm::{Loaded, Options, Session, load};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// The prompt that the golden holds, as `mlx_lm.cache_prompt` puts it: the message is not ended.
fn read(session: &mut Session<'_>, tokenizer: &alluvium_lm::Tokenizer) {
    let messages = [Message::new("user", "The gated delta rule")];
    let prompt = tokenizer.chat(&messages, Ending::Continue, &serde_json::Map::new()).unwrap();
    session.read(&tokenizer.encode_plain(&prompt).unwrap()).unwrap();
}

#[test]
fn a_cache_of_mlx_lm_goes_on_as_one_that_was_just_read() {
    let Loaded { model, tokenizer, .. } = load(&fixture("models/qwen3_5-f32"), &Device::cpu()).unwrap();
    let (model, tokenizer) = (model.as_ref(), tokenizer.unwrap());
    let (cache, about) = prompt_cache::load(&fixture("cli/prompt_cache.safetensors"), model).unwrap();
    assert_eq!((cache.offset(), about["model"].as_str()), (16, "models/qwen3_5-f32"));
    let mut ours = Session::new(model).unwrap();
    read(&mut ours, &tokenizer);
    assert_eq!(ours.cache().offset(), 16);

    // what followed in mlx-lm's own run: ` writes`, the end of the message, the beginning of an answer
    let rest = tokenizer.encode_plain(" writes<|im_end|>\n<|im_start|>assistant\n").unwrap();
    let options = Options { max_tokens: 8, ..Options::default() };
    let mut text = String::new();
    let mut theirs = Session::resume(model, cache);
    let summary = theirs
        .generate(&tokenizer, &rest, &options, &mut |piece| {
            text += piece;
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    // mlx-lm prints the first piece without its first space
    assert_eq!((text.trim_start(), summary.prompt_tokens), ("state @ k) * b", 16));
    let whole = [ours.tokens().to_vec(), rest].concat();
    let again = ours.generate(&tokenizer, &whole, &options, &mut |_| Ok(ControlFlow::Continue(()))).unwrap();
    assert_eq!((again.tokens, again.reused_tokens), (summary.tokens, 16));
}

#[test]
fn a_saved_cache_has_the_names_shapes_and_metadata_of_mlx_lm_and_comes_back() {
    let Loaded { model, tokenizer, .. } = load(&fixture("models/qwen3_5-f32"), &Device::cpu()).unwrap();
    let (model, tokenizer) = (model.as_ref(), tokenizer.unwrap());
    let mut session = Session::new(model).unwrap();
    read(&mut session, &tokenizer);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let about = BTreeMap::from(
        [("model", "models/qwen3_5-f32"), ("tokenizer_config", r#"{"trust_remote_code": false}"#)]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    prompt_cache::save(&path, session.cache(), &about).unwrap();
    let (ours, theirs) =
        (safetensors::read(&path).unwrap(), safetensors::read(fixture("cli/prompt_cache.safetensors")).unwrap());
    assert_eq!(ours.metadata(), theirs.metadata());
    assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>());
    for (name, entry) in ours.entries() {
        let want = theirs.entry(name).unwrap();
        assert_eq!((&entry.dtype, entry.shape), (&want.dtype, want.shape), "{name}");
        if entry.dtype == "F32" && entry.bytes > 0 {
            let read = |file: &safetensors::File| file.tensor(name, &Device::cpu()).unwrap().to_vec::<f32>().unwrap();
            let far = read(&ours).iter().zip(read(&theirs)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-4, "{name}: {far}");
        }
    }
    let (cache, _) = prompt_cache::load(&path, model).unwrap();
    assert_eq!(cache.offset(), session.cache().offset());
    let mut again = Session::resume(model, cache);
    again.step(5).unwrap();
    session.step(5).unwrap();
    assert_eq!(again.logits().unwrap().to_vec::<f32>().unwrap(), session.logits().unwrap().to_vec::<f32>().unwrap());
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let Loaded { model, .. } = load(&fixture("models/llama-f32"), &Device::cpu()).unwrap();
    let error = prompt_cache::load(&fixture("cli/prompt_cache.safetensors"), model.as_ref()).unwrap_err().to_string();
    assert!(error.contains("it is the cache of a model with 4 layers, this one has 2"), "{error}");
    let error =
        prompt_cache::load(&fixture("models/llama-f32/model.safetensors"), model.as_ref()).unwrap_err().to_string();
    assert!(error.contains("a model with 0 layers"), "{error}");
}
