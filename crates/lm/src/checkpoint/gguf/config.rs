//! The configuration of a GGUF file, as `config.json` has it.

use super::names::{DeltaHeads, Layout};
use crate::formats::config::Config;
use crate::formats::gguf::{GgufFile, Value};
use alluvium_core::{Error, Result};
use serde_json::{Map, Value as Json, json};

/// `low_freq_factor` and `high_freq_factor` of every checkpoint with the rotary scaling of Llama 3.
const LLAMA3: [f64; 2] = [1.0, 4.0];

/// Keys that change the arithmetic, each with the values that do not.
const NEUTRAL: &[(&str, &[f64])] = &[
    ("attn_logit_softcapping", &[0.0]),
    ("final_logit_softcapping", &[0.0]),
    ("attention.scale", &[0.0]),
    ("logit_scale", &[0.0, 1.0]),
    ("residual_scale", &[0.0, 1.0]),
    ("embedding_scale", &[0.0, 1.0]),
    ("expert_weights_scale", &[0.0, 1.0]),
];

/// An architecture of ggml and the model type that it is here.
struct Architecture {
    name: &'static str,
    model_type: &'static str,
    class: &'static str,
    is_hybrid: bool,
}

const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", model_type: "llama", class: "LlamaForCausalLM", is_hybrid: false },
    Architecture { name: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", is_hybrid: false },
    Architecture { name: "qwen3", model_type: "qwen3", class: "Qwen3ForCausalLM", is_hybrid: false },
    Architecture { name: "qwen3moe", model_type: "qwen3_moe", class: "Qwen3MoeForCausalLM", is_hybrid: false },
    Architecture { name: "qwen3next", model_type: "qwen3_next", class: "Qwen3NextForCausalLM", is_hybrid: true },
    Architecture { name: "qwen35", model_type: "qwen3_5", class: "Qwen3_5ForConditionalGeneration", is_hybrid: true },
    Architecture {
        name: "qwen35moe",
        model_type: "qwen3_5_moe",
        class: "Qwen3_5MoeForConditionalGeneration",
        is_hybrid: true,
    },
];

/// The metadata of an architecture.
struct Reader<'a> {
    gguf: &'a GgufFile,
    architecture: &'static Architecture,
}

/// The configuration of a file, and the order of its rows.
///
/// # Errors
/// When the architecture is unknown, or a key is missing or out of range.
pub(super) fn config(gguf: &GgufFile) -> Result<(Config, Layout)> {
    let name = gguf.text("general.architecture")?.ok_or_else(|| gguf.error("`general.architecture` is missing"))?;
    let architecture = ARCHITECTURES.iter().find(|known| known.name == name).ok_or_else(|| {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|known| known.name).collect();
        gguf.error(format!("the architecture is `{name}`; known are {}", known.join(", ")))
    })?;
    let reader = Reader { gguf, architecture };
    let mut keys = reader.shared()?;
    let delta = if architecture.is_hybrid { Some(reader.hybrid(&mut keys)?) } else { None };
    reader.experts(&mut keys)?;
    reader.rope(&mut keys)?;
    let heads = ["num_attention_heads", "num_key_value_heads"].map(|key| keys[key].as_u64().unwrap_or(1) as usize);
    let is_tied = !gguf.tensors.contains_key("output.weight");
    let is_nested = architecture.model_type.starts_with("qwen3_5");
    let mut root = Map::new();
    root.insert("architectures".to_owned(), json!([architecture.class]));
    root.insert("model_type".to_owned(), architecture.model_type.into());
    root.insert("tie_word_embeddings".to_owned(), is_tied.into());
    for (key, token) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        if let Some(id) = gguf.integer(&format!("tokenizer.ggml.{token}_token_id"))? {
            root.insert(key.to_owned(), id.into());
        }
    }
    if is_nested {
        keys.insert("model_type".to_owned(), format!("{}_text", architecture.model_type).into());
        keys.insert("tie_word_embeddings".to_owned(), is_tied.into());
        root.insert("text_config".to_owned(), keys.into());
    } else {
        root.extend(keys);
    }
    let layout = Layout { pairs: name == "llama", heads, delta };
    Ok((Config::new(root.into())?, layout))
}

impl Reader<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    fn missing(&self, name: &str) -> Error {
        self.gguf.error(format!("`{}` is missing", self.key(name)))
    }

    /// An integer, or an array of layers that all have the same.
    fn optional(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        let Some(Value::Array(layers)) = self.gguf.metadata.get(&key) else { return self.gguf.integer(&key) };
        match layers.first() {
            Some(Value::Integer(first)) if layers.iter().all(|n| *n == Value::Integer(*first)) => {
                Ok(usize::try_from(*first).ok())
            }
            _ => Err(self.gguf.error(format!("`{key}` differs from layer to layer; layers alike can be read"))),
        }
    }

    fn integer(&self, name: &str) -> Result<usize> {
        self.optional(name)?.ok_or_else(|| self.missing(name))
    }

    /// The keys of every architecture.
    fn shared(&self) -> Result<Map<String, Json>> {
        let gguf = self.gguf;
        let tokens = gguf.array("tokenizer.ggml.tokens")?.map(<[Value]>::len);
        let table = gguf.entry("token_embd.weight")?.rows();
        if let Some(tokens) = tokens.filter(|&tokens| tokens > table) {
            return Err(gguf.error(format!("it has {tokens} tokens, its embedding has {table} rows")));
        }
        let (blocks, ahead) = (self.integer("block_count")?, self.optional("nextn_predict_layers")?.unwrap_or(0));
        let layers = blocks
            .checked_sub(ahead)
            .ok_or_else(|| gguf.error(format!("it has {blocks} layers, {ahead} of them for multi-token prediction")))?;
        let (hidden, heads) = (self.integer("embedding_length")?, self.integer("attention.head_count")?);
        let head = match self.optional("attention.key_length")? {
            Some(head) => head,
            None => hidden / heads.max(1),
        };
        if let Some(value) = self.optional("attention.value_length")?.filter(|&value| value != head) {
            return Err(gguf.error(format!("values are {value} wide, keys {head}; expected the same")));
        }
        let eps = self.key("attention.layer_norm_rms_epsilon");
        let eps = gguf.float(&eps)?.ok_or_else(|| self.missing("attention.layer_norm_rms_epsilon"))?;
        for (key, neutral) in NEUTRAL {
            if let Some(x) = gguf.float(&self.key(key))?.filter(|x| !neutral.contains(x)) {
                return Err(gguf.error(format!("`{}` is {x}; no built-in model implements it", self.key(key))));
            }
        }
        let has = |name: &str| gguf.tensors.contains_key(name);
        let mut keys = Map::new();
        let mut set = |key: &str, value: Json| keys.insert(key.to_owned(), value);
        set("hidden_size", hidden.into());
        set("num_hidden_layers", layers.into());
        set("num_attention_heads", heads.into());
        set("num_key_value_heads", self.optional("attention.head_count_kv")?.unwrap_or(heads).into());
        set("head_dim", head.into());
        set("rms_norm_eps", json!(eps));
        set("vocab_size", table.into());
        set("max_position_embeddings", self.integer("context_length")?.into());
        set("hidden_act", "silu".into());
        set("attention_bias", (self.architecture.name != "qwen2" && has("blk.0.attn_q.bias")).into());
        set("mlp_bias", has("blk.0.ffn_gate.bias").into());
        if let Some(width) = self.optional("feed_forward_length")? {
            set("intermediate_size", width.into());
        }
        if let Some(window) = self.optional("attention.sliding_window")?.filter(|&window| window > 0) {
            set("sliding_window", window.into());
            set("use_sliding_window", true.into());
        }
        Ok(keys)
    }

    /// The keys of a hybrid model.
    fn hybrid(&self, keys: &mut Map<String, Json>) -> Result<DeltaHeads> {
        let (inner, v_heads) = (self.integer("ssm.inner_size")?, self.integer("ssm.time_step_rank")?);
        let (k_heads, k_dim) = (self.integer("ssm.group_count")?, self.integer("ssm.state_size")?);
        if k_heads == 0 || v_heads == 0 || !v_heads.is_multiple_of(k_heads) || !inner.is_multiple_of(v_heads) {
            let why = format!("the delta rule has {k_heads} key heads, {v_heads} value heads of {inner} values in all");
            return Err(self.gguf.error(format!("{why}; expected multiples")));
        }
        let v_dim = inner / v_heads;
        if [k_heads, v_heads, k_dim, v_dim].iter().any(|&n| n > 1 << 12) {
            return Err(self.gguf.error(format!("the delta rule has heads of {k_dim} and {v_dim}; too large")));
        }
        for (key, size) in [
            ("linear_num_key_heads", k_heads),
            ("linear_num_value_heads", v_heads),
            ("linear_key_head_dim", k_dim),
            ("linear_value_head_dim", v_dim),
            ("linear_conv_kernel_dim", self.integer("ssm.conv_kernel")?),
        ] {
            keys.insert(key.to_owned(), size.into());
        }
        keys.insert(
            "full_attention_interval".to_owned(),
            self.optional("full_attention_interval")?.unwrap_or(4).into(),
        );
        if let Some(layers) = self.gguf.array(&self.key("attention.recurrent_layers"))? {
            let wanted = keys["num_hidden_layers"].as_u64().unwrap_or(0) as usize;
            let kind = |is: &Value| if *is == Value::Bool(false) { "full_attention" } else { "linear_attention" };
            let kinds: Vec<&str> = layers.iter().take(wanted).map(kind).collect();
            keys.insert("layer_types".to_owned(), json!(kinds));
        }
        Ok(DeltaHeads { k_heads, v_heads, k_dim, v_dim, tiled: self.architecture.name != "qwen3next" })
    }

    /// The keys of a mixture of experts.
    fn experts(&self, keys: &mut Map<String, Json>) -> Result<()> {
        let Some(experts) = self.optional("expert_count")?.filter(|&experts| experts > 0) else { return Ok(()) };
        if self.architecture.name == "llama" {
            return Err(self.gguf.error("a llama with experts (Mixtral) is no model that is known here"));
        }
        let mut set = |key: &str, value: Json| keys.insert(key.to_owned(), value);
        set("num_experts", experts.into());
        set("num_experts_per_tok", self.integer("expert_used_count")?.into());
        set("moe_intermediate_size", self.integer("expert_feed_forward_length")?.into());
        set("norm_topk_prob", true.into());
        set("decoder_sparse_step", 1.into());
        set("mlp_only_layers", json!([]));
        if let Some(shared) = self.optional("expert_shared_feed_forward_length")? {
            set("shared_expert_intermediate_size", shared.into());
        }
        Ok(())
    }

    /// The rotary embedding.
    fn rope(&self, keys: &mut Map<String, Json>) -> Result<()> {
        let theta = self.gguf.float(&self.key("rope.freq_base"))?.unwrap_or(10_000.0);
        let head = keys["head_dim"].as_u64().unwrap_or(1) as usize;
        let dims = self.optional("rope.dimension_count")?.unwrap_or(head);
        let mut scaling = self.scaling(theta, dims)?;
        if self.architecture.is_hybrid {
            scaling.entry("rope_type").or_insert_with(|| "default".into());
            scaling.insert("rope_theta".to_owned(), json!(theta));
            scaling.insert("partial_rotary_factor".to_owned(), json!(dims as f64 / head.max(1) as f64));
            if let Some(sections) = self.gguf.array(&self.key("rope.dimension_sections"))? {
                let length = |n: &Value| if let Value::Integer(n) = n { *n as i64 } else { 0 };
                let sections: Vec<i64> = sections.iter().take(3).map(length).collect();
                scaling.insert("mrope_section".to_owned(), json!(sections));
                scaling.insert("mrope_interleaved".to_owned(), true.into());
            }
            keys.insert("rope_parameters".to_owned(), scaling.into());
            return Ok(());
        }
        if dims != head {
            let why = format!("`{}` is {dims}, heads are {head} wide", self.key("rope.dimension_count"));
            return Err(self.gguf.error(format!("{why}; this architecture rotates whole heads here")));
        }
        keys.insert("rope_theta".to_owned(), json!(theta));
        if !scaling.is_empty() {
            keys.insert("rope_scaling".to_owned(), scaling.into());
        }
        Ok(())
    }

    /// The scaling of rotary frequencies, empty without one.
    fn scaling(&self, theta: f64, dims: usize) -> Result<Map<String, Json>> {
        let float = |key: &str| self.gguf.float(&self.key(key));
        let factor = float("rope.scaling.factor")?;
        let mut keys = Map::new();
        let mut set = |key: &str, value: Option<f64>| {
            value.map(|value| keys.insert(key.to_owned(), json!(value)));
        };
        let kind = match self.gguf.text(&self.key("rope.scaling.type"))?.unwrap_or("none") {
            _ if self.gguf.tensors.contains_key("rope_freqs.weight") => {
                let [factor, original] = self.llama3(theta, dims)?;
                set("factor", Some(factor));
                set("low_freq_factor", Some(LLAMA3[0]));
                set("high_freq_factor", Some(LLAMA3[1]));
                set("original_max_position_embeddings", Some(original));
                "llama3"
            }
            "none" => return Ok(keys),
            "linear" => {
                set("factor", factor);
                "linear"
            }
            "yarn" => {
                set("factor", factor);
                set("original_max_position_embeddings", float("rope.scaling.original_context_length")?);
                set("beta_fast", float("rope.scaling.yarn_beta_fast")?);
                set("beta_slow", float("rope.scaling.yarn_beta_slow")?);
                "yarn"
            }
            other => {
                let why = format!("`{}` is `{other}`", self.key("rope.scaling.type"));
                return Err(self.gguf.error(format!("{why}; none, linear and yarn are known")));
            }
        };
        keys.insert("rope_type".to_owned(), kind.into());
        Ok(keys)
    }

    /// The factor and the original length of Llama 3's scaling, of which each frequency's divisor is stored.
    fn llama3(&self, theta: f64, dims: usize) -> Result<[f64; 2]> {
        let gguf = self.gguf;
        let entry = gguf.entry("rope_freqs.weight")?;
        if (entry.ggml_type, entry.dims.as_slice()) != (0, &[dims / 2][..]) {
            let why = format!("tensor `rope_freqs.weight` is {:?}, expected F32 [{}]", entry.dims, dims / 2);
            return Err(gguf.error(why));
        }
        let bytes = gguf.read("rope_freqs.weight", dims / 2 * 4)?;
        let stored: Vec<f64> =
            bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]).into()).collect();
        let factor = stored.iter().copied().fold(1.0, f64::max);
        let [low, high] = LLAMA3;
        let divisor = |n: usize, original: f64| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * n as f64 / dims as f64);
            let smooth = (original / wavelength - low) / (high - low);
            match () {
                () if wavelength < original / high => 1.0,
                () if wavelength > original / low => factor,
                () => 1.0 / ((1.0 - smooth) / factor + smooth),
            }
        };
        let fits = |original: &f64| {
            stored.iter().enumerate().all(|(n, &stored)| {
                let expected = divisor(n, *original);
                (stored - expected).abs() <= 1e-4 * expected
            })
        };
        // 8192 in every release; models made for tests are shorter
        let original = std::iter::once(13).chain(4..24).map(|power| f64::from(1u32 << power)).find(fits);
        let original = original.ok_or_else(|| {
            let why = "tensor `rope_freqs.weight` scales frequencies in a way that is not Llama 3's";
            gguf.error(format!("{why}; no built-in model implements it"))
        })?;
        Ok([factor, original])
    }
}
