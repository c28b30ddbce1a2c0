//! Models by name: where the cache is, and how a name becomes a folder.

use crate::output::{bytes, listing, note};
use alluvium_hub::{CachedModel, Hub, ModelName};
use anyhow::{Context, bail};
use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Component, Path, PathBuf};

/// List the models in the cache of the Hugging Face Hub: name, size, type, quantization
///
/// The cache is the folder in HF_HUB_CACHE, else `hub` in HF_HOME, else ~/.cache/huggingface/hub.
#[derive(clap::Args)]
pub(crate) struct ModelsArgs {
    /// Write the models as JSON
    #[arg(long)]
    json: bool,
}

/// Fetch a model of the Hugging Face Hub into the cache, where --model finds it by its name
///
/// Only the configuration, the tokenizer, the templates and the safetensors files are fetched. HF_TOKEN holds the token
/// of an account, HF_ENDPOINT the address of another server; HF_HUB_OFFLINE=1 forbids downloads. An interrupted
/// download is resumed.
#[derive(clap::Args)]
pub(crate) struct DownloadArgs {
    /// Name of the model: org/name, or org/name@revision
    #[arg(value_name = "NAME")]
    model: String,
    /// Write the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn models(args: &ModelsArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let hub = hub()?;
    let models = hub.models()?;
    if args.json {
        writeln!(out, "{}", Value::from(models.iter().map(as_json).collect::<Vec<_>>()))?;
        return Ok(());
    }
    if models.is_empty() {
        note!("{}: there are no models; `alluvium download ORG/NAME` fetches one", hub.cache().display());
        return Ok(());
    }
    let row = |model: &CachedModel| {
        let (model_type, quantization) = described(model);
        [model.name.to_string(), bytes(model.bytes as usize), model_type, quantization]
    };
    listing(out, &models.iter().map(row).collect::<Vec<_>>())?;
    Ok(())
}

fn as_json(model: &CachedModel) -> Value {
    let (model_type, quantization) = described(model);
    json!({
        "name": model.name.repository(), "revision": model.name.revision(), "commit": model.commit,
        "path": model.folder.display().to_string(), "bytes": model.bytes, "model_type": model_type,
        "quantization": quantization,
    })
}

/// The type and the quantization of a model, as its config.json has them.
fn described(model: &CachedModel) -> (String, String) {
    let text = std::fs::read_to_string(model.folder.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&text).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let model_type = text(&config["model_type"]).unwrap_or_else(|| "unknown type".to_owned());
    let quantization = match (&config["quantization"], &config["quantization_config"]) {
        (mlx @ Value::Object(_), _) => match (&mlx["mode"], &mlx["bits"], &mlx["group_size"]) {
            (Value::String(mode), ..) if mode != "affine" => mode.clone(),
            (_, bits, group) => format!("{bits} bits in groups of {group}"),
        },
        (_, other @ Value::Object(_)) => text(&other["quant_method"]).unwrap_or_else(|| "quantized".to_owned()),
        _ => text(&config["dtype"]).or(text(&config["torch_dtype"])).unwrap_or_default(),
    };
    (model_type, quantization)
}

pub(crate) fn download(args: &DownloadArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let name = ModelName::parse(&args.model)
        .with_context(|| format!("{}: expected org/name, or org/name@revision", args.model))?;
    if is_offline() {
        bail!("HF_HUB_OFFLINE is set, so nothing is downloaded");
    }
    let folder = fetch(&hub()?, &name)?;
    match args.json {
        true => writeln!(out, "{}", json!({"name": args.model, "path": folder.display().to_string()}))?,
        false => writeln!(out, "{}", folder.display())?,
    }
    Ok(())
}

/// The folder of a model that a flag names by its path, or by its name on the Hub.
pub(crate) fn find_model(model: &Path) -> anyhow::Result<PathBuf> {
    if model.exists() {
        return Ok(model.to_owned());
    }
    let shown = model.display();
    let is_plain = || model.components().all(|part| matches!(part, Component::Normal(_)));
    let Some(name) = model.to_str().filter(|_| is_plain()).and_then(ModelName::parse) else {
        bail!("{shown}: there is no such file or folder; give the folder of a model, or its name: org/name");
    };
    let hub = hub()?;
    if let Some(folder) = hub.find(&name)? {
        return Ok(folder);
    }
    if is_offline() {
        bail!(
            "{name}: there is no such folder, the cache {} does not have it, and HF_HUB_OFFLINE is set, so nothing is \
             downloaded",
            hub.cache().display()
        );
    }
    fetch(&hub, &name).with_context(|| format!("{name}: there is no such folder, and fetching it failed"))
}

#[cfg(feature = "download")]
fn fetch(hub: &Hub, name: &ModelName) -> anyhow::Result<PathBuf> {
    use crate::output::bar;
    use alluvium_hub::{Progress, Remote};
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
    let remote = Remote { endpoint, token: token() };
    note!("fetching  {name} from {} into {}", remote.endpoint, hub.cache().display());
    let progress = bar(0, 0);
    let mut shown = String::new();
    let folder = hub.download(name, &remote, &mut |Progress { file, files_done, files, bytes_done, bytes }| {
        if shown != file {
            file.clone_into(&mut shown);
            progress.set_message(format!("MiB of {file} ({} of {files} files)", files_done + 1));
        }
        progress.set_length(bytes.unwrap_or(bytes_done) >> 20);
        progress.set_position(bytes_done >> 20);
    });
    progress.finish_and_clear();
    Ok(folder?)
}

#[cfg(not(feature = "download"))]
fn fetch(_: &Hub, name: &ModelName) -> anyhow::Result<PathBuf> {
    bail!("{name}: this program was built without downloads; `hf download {name}` fetches it into the cache")
}

/// The cache, where huggingface_hub has it.
fn hub() -> anyhow::Result<Hub> {
    let folder = match (variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")), home()) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => home.join("hub"),
        (None, None) => bail!("there is no home folder for the cache of models; set HF_HOME"),
    };
    Ok(Hub::new(folder))
}

/// HF_HOME, or its default.
fn home() -> Option<PathBuf> {
    let cache = || {
        // huggingface_hub has its cache below ~/.cache on every system
        let default = choose_native_strategy().ok()?.home_dir().join(".cache");
        Some(variable("XDG_CACHE_HOME").map_or(default, PathBuf::from).join("huggingface"))
    };
    variable("HF_HOME").map(PathBuf::from).or_else(cache)
}

#[cfg(feature = "download")]
fn token() -> Option<String> {
    let file = || {
        let path = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home()?.join("token")))?;
        std::fs::read_to_string(path).ok()
    };
    let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(file)?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

fn is_offline() -> bool {
    let set =
        |name: &str| variable(name).is_some_and(|value| !["0", "false", "no", "off"].contains(&&*value.to_lowercase()));
    set("HF_HUB_OFFLINE") || set("TRANSFORMERS_OFFLINE")
}

/// A variable of the environment that is not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
