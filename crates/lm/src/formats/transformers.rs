//! The layout in which transformers saves Qwen3.5: other names, another order of axes, norms that start at zero.

use alluvium_core::{Result, Shape, Tensor};

/// The parts of a checkpoint that no text model here has.
const ELSEWHERE: &[&str] = &["mtp.", "model.visual.", "vision_tower."];

/// What a tensor of that layout is called in the layout of MLX; none for parts that are left out.
pub(crate) fn name(name: &str) -> Option<String> {
    if ELSEWHERE.iter().any(|part| name.starts_with(part)) {
        return None;
    }
    Some(match name.strip_prefix("model.language_model.") {
        Some(rest) => format!("language_model.model.{rest}"),
        None => format!("language_model.{name}"),
    })
}

/// Whether a tensor gives that layout away: filters are `[C, 1, K]` there and `[C, K, 1]` in MLX.
pub(crate) fn shows(name: &str, shape: Shape) -> bool {
    name.ends_with("conv1d.weight") && shape.rank() == 3 && shape[1] == 1 && shape[2] != 1
}

/// The shape in that layout of a tensor that has `shape` in MLX's.
pub(crate) fn shape(name: &str, shape: Shape) -> Shape {
    match shape.dims() {
        &[channels, taps, 1] if name.ends_with("conv1d.weight") => [channels, 1, taps].into(),
        _ => shape,
    }
}

/// A tensor of that layout, f32, as MLX has it; `name` is MLX's.
pub(crate) fn adapt(name: &str, tensor: &Tensor, shape: Shape) -> Result<Tensor> {
    let from_zero = name.ends_with("norm.weight") && !name.ends_with("linear_attn.norm.weight");
    if !from_zero {
        return tensor.reshape(shape);
    }
    let plus_one: Vec<f32> = tensor.to_vec::<f32>()?.iter().map(|w| w + 1.0).collect();
    Tensor::from_slice(&plus_one, shape, tensor.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_those_of_mlx() {
        for (theirs, ours) in [
            (
                "model.language_model.layers.0.mlp.up_proj.weight",
                Some("language_model.model.layers.0.mlp.up_proj.weight"),
            ),
            ("lm_head.weight", Some("language_model.lm_head.weight")),
            ("mtp.fc.weight", None),
            ("model.visual.patch_embed.proj.weight", None),
        ] {
            assert_eq!(name(theirs).as_deref(), ours);
        }
    }
}
