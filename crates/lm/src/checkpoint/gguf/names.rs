//! The stored tensors of each parameter.

use super::rows::{Map, Rows};
use crate::formats::gguf::GgufFile;
use alluvium_core::Result;

/// What the names and the order of rows depend on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout {
    /// The architecture keeps queries and keys with neighboring rotary pairs: llama.
    pub(super) pairs: bool,
    /// Query heads and key heads of attention.
    pub(super) heads: [usize; 2],
    /// Heads of the delta rule, where there are any.
    pub(super) delta: Option<DeltaHeads>,
}

/// The heads of the delta rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeltaHeads {
    pub(super) k_heads: usize,
    pub(super) v_heads: usize,
    pub(super) k_dim: usize,
    pub(super) v_dim: usize,
    /// Value heads are stored by their number within a key head, not by key head: qwen35.
    pub(super) tiled: bool,
}

impl DeltaHeads {
    /// The stored value head that is head `head`.
    fn stored(&self, head: usize) -> usize {
        let each = self.v_heads / self.k_heads;
        if self.tiled { head % each * self.k_heads + head / each } else { head }
    }

    /// The stored row of each row of the value heads, `width` rows each, after `before` rows that stay.
    fn rows(&self, before: usize, width: usize) -> Vec<u32> {
        let heads = (0..self.v_heads).flat_map(|head| {
            let from = before + self.stored(head) * width;
            from..from + width
        });
        (0..before).chain(heads).map(|row| row as u32).collect()
    }
}

impl Layout {
    /// The rows of the parameter called `name`, a tensor's name or a module's with `.weight` added.
    ///
    /// # Errors
    /// When a stored tensor is missing.
    pub(super) fn rows(&self, name: &str, gguf: &GgufFile) -> Result<Rows> {
        let name = name.strip_prefix("language_model.").unwrap_or(name);
        let stored = match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            "lm_head.weight" => "output.weight",
            _ => return self.layer(name, gguf),
        };
        gguf.entry(stored)?;
        Ok(Rows::of(stored.to_owned()))
    }

    fn layer(&self, name: &str, gguf: &GgufFile) -> Result<Rows> {
        let unknown = || gguf.error(format!("no tensor of a GGUF file is `{name}`"));
        let rest = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let (layer, rest) = rest.ok_or_else(unknown)?;
        let stored = |part: &str| format!("blk.{layer}.{part}");
        if let Some(part) = rest.strip_prefix("linear_attn.") {
            return self.delta(part, &stored, gguf).ok_or_else(unknown);
        }
        if let Some(part) = rest.strip_prefix("mlp.switch_mlp.").and_then(|part| part.strip_suffix("_proj.weight")) {
            return experts(part, &stored, gguf);
        }
        let (module, kind) = rest.rsplit_once('.').ok_or_else(unknown)?;
        let part = match module {
            "input_layernorm" => "attn_norm",
            "post_attention_layernorm" if self.delta.is_some() => "post_attention_norm",
            "post_attention_layernorm" => "ffn_norm",
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.o_proj" => "attn_output",
            "self_attn.q_norm" => "attn_q_norm",
            "self_attn.k_norm" => "attn_k_norm",
            "mlp.gate" => "ffn_gate_inp",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.up_proj" => "ffn_up",
            "mlp.down_proj" => "ffn_down",
            "mlp.shared_expert_gate" => "ffn_gate_inp_shexp",
            "mlp.shared_expert.gate_proj" => "ffn_gate_shexp",
            "mlp.shared_expert.up_proj" => "ffn_up_shexp",
            "mlp.shared_expert.down_proj" => "ffn_down_shexp",
            _ => return Err(unknown()),
        };
        let name = stored(&format!("{part}.{kind}"));
        let entry = gguf.entry(&name)?;
        let heads = match module {
            "self_attn.q_proj" if self.pairs => self.heads[0],
            "self_attn.k_proj" if self.pairs => self.heads[1],
            _ => return Ok(Rows::of(name)),
        };
        // a bias has an element for each row
        let rows = if kind == "bias" { entry.width() } else { entry.rows() };
        let width = rows / heads.max(1);
        let order = (0..rows).map(|row| {
            let (head, at) = (row / width.max(1), row % width.max(1));
            (head * width + at % (width / 2).max(1) * 2 + at / (width / 2).max(1)) as u32
        });
        Ok(permuted(name, order.collect(), kind == "bias"))
    }

    /// The rows of a part of a Gated DeltaNet layer; `None` for an unknown part.
    fn delta(&self, part: &str, stored: &dyn Fn(&str) -> String, gguf: &GgufFile) -> Option<Rows> {
        let heads = self.delta?;
        let keys = 2 * heads.k_heads * heads.k_dim;
        Some(match part {
            "in_proj_qkv.weight" => permuted(stored("attn_qkv.weight"), heads.rows(keys, heads.v_dim), false),
            "in_proj_z.weight" => permuted(stored("attn_gate.weight"), heads.rows(0, heads.v_dim), false),
            "in_proj_a.weight" => permuted(stored("ssm_alpha.weight"), heads.rows(0, 1), false),
            "in_proj_b.weight" => permuted(stored("ssm_beta.weight"), heads.rows(0, 1), false),
            "in_proj_ba.weight" => Rows::of(stored("ssm_ba.weight")),
            "in_proj_qkvz.weight" if gguf.tensors.contains_key(&stored("ssm_in.weight")) => {
                Rows::of(stored("ssm_in.weight"))
            }
            "in_proj_qkvz.weight" => merged(heads, [stored("attn_qkv.weight"), stored("attn_gate.weight")]),
            "conv1d.weight" => permuted(stored("ssm_conv1d.weight"), heads.rows(keys, heads.v_dim), false),
            "dt_bias" => permuted(stored("ssm_dt.bias"), heads.rows(0, 1), true),
            "A_log" => Rows { map: Map::LogOfMinus, ..permuted(stored("ssm_a"), heads.rows(0, 1), true) },
            "norm.weight" => Rows::of(stored("ssm_norm.weight")),
            "out_proj.weight" => permuted(stored("ssm_out.weight"), heads.rows(0, heads.v_dim), true),
            _ => return None,
        })
    }
}

/// A tensor with other rows, or with other columns. An order that changes nothing is left out.
fn permuted(tensor: String, order: Vec<u32>, columns: bool) -> Rows {
    let rows = Rows::of(tensor);
    if order.iter().zip(0..).all(|(&from, to)| from == to) {
        return rows;
    }
    match columns {
        true => Rows { columns: Some(order), ..rows },
        false => Rows { order: Some(order.into_iter().map(|row| (0, row)).collect()), ..rows },
    }
}

/// The rows of `in_proj_qkvz`: for each key head its query, its key, its values and their gates.
fn merged(heads: DeltaHeads, tensors: [String; 2]) -> Rows {
    let DeltaHeads { k_heads, v_heads, k_dim, v_dim, .. } = heads;
    let each = v_heads / k_heads * v_dim;
    let rows = |tensor: u32, from: usize, count: usize| (from..from + count).map(move |row| (tensor, row as u32));
    let order = (0..k_heads).flat_map(|head| {
        rows(0, head * k_dim, k_dim)
            .chain(rows(0, (k_heads + head) * k_dim, k_dim))
            .chain(rows(0, 2 * k_heads * k_dim + head * each, each))
            .chain(rows(1, head * each, each))
    });
    Rows { tensors: tensors.into(), order: Some(order.collect()), columns: None, map: Map::Same }
}

/// The rows of the experts' projection `part`: gate, up or down.
fn experts(part: &str, stored: &dyn Fn(&str) -> String, gguf: &GgufFile) -> Result<Rows> {
    let own = stored(&format!("ffn_{part}_exps.weight"));
    let fused = stored("ffn_gate_up_exps.weight");
    if gguf.tensors.contains_key(&own) || part == "down" || !gguf.tensors.contains_key(&fused) {
        gguf.entry(&own)?;
        return Ok(Rows::of(own));
    }
    let entry = gguf.entry(&fused)?;
    let (rows, experts) = (entry.rows(), entry.dims.first().copied().unwrap_or(1));
    let (both, from) = (rows / experts.max(1), if part == "up" { rows / experts.max(1) / 2 } else { 0 });
    let order = (0..experts).flat_map(|expert| (0..both / 2).map(move |row| (0, (expert * both + from + row) as u32)));
    Ok(Rows { order: Some(order.collect()), ..Rows::of(fused) })
}
