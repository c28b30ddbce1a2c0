//! Which matrices of a model are quantized, and how.

use super::format::{Quantization, in_words};
use crate::formats::config::Config;
use alluvium_core::{Error, Result, Shape, Tensor};
use alluvium_ops::{Packed, Packing, quantize};
use std::collections::BTreeMap;

/// Which matrices are packed, and how.
#[derive(Clone, Debug)]
pub struct QuantConfig {
    /// All that nothing else is said of.
    pub packing: Packing,
    /// A recipe of mlx-lm that gives some modules more bits; it decides in place of the model's own rule.
    pub mixed: Option<MixedRecipe>,
    /// Parts of modules' names and what holds for those modules, the first that fits; none leaves them plain. They go
    /// before all else.
    pub modules: Vec<(String, Option<Packing>)>,
}

/// Recipes that give more bits to the projections where errors cost most: the first and the last eighth of the layers,
/// and every third between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MixedRecipe {
    /// 2 bits and 6.
    TwoSix,
    /// 3 bits and 4.
    ThreeFour,
    /// 3 bits and 6.
    ThreeSix,
    /// 4 bits and 6.
    FourSix,
}

impl MixedRecipe {
    /// All of them, by the names that mlx-lm has for them.
    pub const NAMES: [(&'static str, MixedRecipe); 4] = [
        ("mixed_2_6", MixedRecipe::TwoSix),
        ("mixed_3_4", MixedRecipe::ThreeFour),
        ("mixed_3_6", MixedRecipe::ThreeSix),
        ("mixed_4_6", MixedRecipe::FourSix),
    ];

    fn bits(self) -> [u32; 2] {
        match self {
            MixedRecipe::TwoSix => [2, 6],
            MixedRecipe::ThreeFour => [3, 4],
            MixedRecipe::ThreeSix => [3, 6],
            MixedRecipe::FourSix => [4, 6],
        }
    }

    /// As `mixed_quant_predicate_builder` of mlx-lm.
    fn packing(self, module: &str, at: usize, layers: usize, group: usize) -> Packing {
        let [low, high] = self.bits();
        let index: usize = module.split('.').nth(at).and_then(|part| part.parse().ok()).unwrap_or(0);
        let eighth = layers / 8;
        let more = index < eighth || index >= 7 * layers / 8 || index.checked_sub(eighth).is_some_and(|i| i % 3 == 2);
        let sensitive = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"].iter().any(|part| module.contains(part));
        let bits = if sensitive && more || module.contains("lm_head") { high } else { low };
        Packing::Affine { bits, group }
    }
}

/// A module whose matrix can be packed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Module<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: Shape,
    /// Its present format; `None` if it is not quantized.
    pub(crate) packing: Option<Packing>,
}

impl Module<'_> {
    /// A packed matrix stays as it is: to pack it anew would add the errors of the second packing to those of the
    /// first.
    fn stays(&self, asked: Option<Packing>) -> Result<()> {
        let Some(packing) = self.packing.filter(|_| self.packing != asked) else { return Ok(()) };
        let asked = asked.map_or("unquantized values".to_owned(), in_words);
        let is =
            format!("module `{}` is quantized already, {}, and {asked} are asked for", self.name, in_words(packing));
        Err(Error::value("quantize", format!("{is}; make the model plain first (convert -d), then quantize it")))
    }
}

impl QuantConfig {
    /// One packing for all.
    pub fn of(packing: Packing) -> Self {
        QuantConfig { packing, mixed: None, modules: Vec::new() }
    }

    /// The packing of each plain module that is to be packed; what has to be said of it goes to `quantization`.
    ///
    /// # Errors
    /// When a module that is packed is to be something else, or the scheme names a module that is not there.
    pub(crate) fn choose(
        &self,
        (config, sensitive): (&Config, &[&str]),
        modules: &[Module<'_>],
        quantization: &mut Quantization,
    ) -> Result<BTreeMap<String, Packing>> {
        if self.mixed.is_some() && !matches!(self.packing, Packing::Affine { .. }) {
            return Err(Error::value("quantize", "mixed recipes are affine; leave the mode out"));
        }
        for (pattern, _) in &self.modules {
            if !modules.iter().any(|module| module.name.contains(pattern.as_str())) {
                return Err(Error::value("quantize", format!("no module has `{pattern}` in its name")));
            }
        }
        let router = |module: &str| {
            let is_router = sensitive.iter().any(|end| module.ends_with(end));
            is_router.then_some(Packing::Affine { bits: 8, group: 64 })
        };
        let numbered = modules.iter().find(|module| module.name.contains("down_proj"));
        let at = numbered.and_then(|module| module.name.split('.').position(|p| p.parse::<usize>().is_ok()));
        let layers = config.text().get("num_hidden_layers").and_then(serde_json::Value::as_u64).unwrap_or(0) as usize;
        let default = *quantization.default.get_or_insert(self.packing);
        let mut chosen = BTreeMap::new();
        for module in modules {
            let name = module.name;
            let own =
                self.modules.iter().find(|(pattern, _)| name.contains(pattern.as_str())).map(|(_, packing)| *packing);
            let (asked, said) = match (own, self.mixed, router(name)) {
                (Some(packing), ..) => (packing, true),
                (None, Some(mixed), _) => {
                    (Some(mixed.packing(name, at.unwrap_or(0), layers, self.packing.group())), true)
                }
                (None, None, Some(packing)) => (Some(packing), true),
                (None, None, None) => (Some(self.packing), false),
            };
            module.stays(asked)?;
            let fits = |group: usize| module.shape.last().is_multiple_of(group);
            if let Some(packing) = own.flatten().filter(|packing| !fits(packing.group())) {
                let (group, width) = (packing.group(), module.shape.last());
                let why = format!("module `{name}` has rows of {width}, which groups of {group} do not divide");
                return Err(Error::value("quantize", format!("{why}; give it another group, or leave it plain")));
            }
            let all_fit = fits(self.packing.group()) || module.packing.is_some() || own.is_some();
            match asked.filter(|packing| all_fit && fits(packing.group())) {
                Some(packing) => {
                    if module.packing.is_none() {
                        chosen.insert(name.to_owned(), packing);
                    }
                    // what the block says of it, or of all, may be that of other modules
                    let means = quantization.modules.get(name).copied().unwrap_or(Some(default));
                    if said || means != Some(packing) {
                        quantization.modules.insert(name.to_owned(), Some(packing));
                    }
                }
                None if own.is_some() => {
                    quantization.modules.insert(name.to_owned(), None);
                }
                None => {}
            }
        }
        Ok(chosen)
    }

    /// The tensors of a packed matrix: `weight`, `scales` and, for affine packing, `biases`.
    pub(crate) fn pack(w: &Tensor, packing: Packing) -> Result<Vec<Tensor>> {
        let Packed { w, scales, biases, .. } = quantize(w, packing)?;
        Ok([Some(w), Some(scales), biases].into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mixed_recipe_gives_more_bits_to_the_first_the_last_and_every_third_layer() {
        let bits = |layer: usize, part: &str| {
            let module = format!("model.layers.{layer}.{part}");
            MixedRecipe::ThreeSix.packing(&module, 2, 16, 64).bits()
        };
        let more: Vec<usize> = (0..16).filter(|&layer| bits(layer, "mlp.down_proj") == 6).collect();
        assert_eq!(more, [0, 1, 4, 7, 10, 13, 14, 15]);
        assert!((0..16).all(|layer| bits(layer, "mlp.up_proj") == 3));
        assert_eq!(MixedRecipe::ThreeSix.packing("lm_head", 2, 16, 64).bits(), 6);
        assert_eq!(MixedRecipe::FourSix.packing("model.embed_tokens", 2, 16, 64).bits(), 4);
    }
}
