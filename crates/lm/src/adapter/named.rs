//! Several adapters of one model, by name.

use super::Adapter;
use crate::model::LanguageModel;
use alluvium_core::{Error, Result};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

/// A model and its adapters by name, in one process. Each name is a model that shares the tensors of the base, so an
/// adapter costs the memory of its own tensors, and a request selects one by taking its model.
///
/// ```no_run
/// # use alluvium_lm::{AdaptedModels, Adapter, Session, load};
/// # let device = alluvium_core::Device::cpu();
/// let mut models = AdaptedModels::new(load("model".as_ref(), &device)?.model.into());
/// models.insert("poet", &Adapter::read("adapters".as_ref(), &device)?)?;
/// let session = Session::new(models.get(Some("poet"))?)?;
/// # Ok::<(), alluvium_core::Error>(())
/// ```
///
/// Caches are those of one model: a prompt that was read with one adapter cannot be continued with another.
#[derive(Clone)]
pub struct AdaptedModels {
    base: Arc<dyn LanguageModel>,
    named: BTreeMap<String, Arc<dyn LanguageModel>>,
}

impl std::fmt::Debug for AdaptedModels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdaptedModels").field("names", &self.named.keys()).finish_non_exhaustive()
    }
}

impl AdaptedModels {
    /// A model without adapters.
    pub fn new(base: Arc<dyn LanguageModel>) -> Self {
        AdaptedModels { base, named: BTreeMap::new() }
    }

    /// Adds an adapter. The models that were taken before stay as they are.
    ///
    /// # Errors
    /// When the name is empty or taken, the adapter was made for another model, or the model cannot be shared
    /// ([`LanguageModel::share`]).
    pub fn insert(&mut self, name: &str, adapter: &Adapter) -> Result<()> {
        let wrong = |why: String| Error::value("adapter", why);
        if name.is_empty() {
            return Err(wrong("its name is empty, expected one that requests can give".into()));
        }
        let Entry::Vacant(place) = self.named.entry(name.to_owned()) else {
            return Err(wrong(format!("there is an adapter `{name}` already; remove it or take another name")));
        };
        let mut model = self.base.share().ok_or_else(|| {
            wrong(format!("`{name}`: the model cannot be shared; `LanguageModel::share` returns `None`"))
        })?;
        adapter.attach(model.as_mut())?;
        place.insert(model.into());
        Ok(())
    }

    /// Removes an adapter, and returns whether there was one. Who holds its model keeps it.
    pub fn remove(&mut self, name: &str) -> bool {
        self.named.remove(name).is_some()
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }

    /// The model with an adapter; the base for `None`.
    ///
    /// # Errors
    /// When there is no adapter of this name.
    pub fn get(&self, name: Option<&str>) -> Result<Arc<dyn LanguageModel>> {
        let Some(name) = name else { return Ok(self.base.clone()) };
        self.named.get(name).cloned().ok_or_else(|| {
            let names = self.names().collect::<Vec<_>>().join(", ");
            let names = if names.is_empty() { "none".to_owned() } else { names };
            Error::value("adapter", format!("there is no adapter `{name}`; there are: {names}"))
        })
    }
}
