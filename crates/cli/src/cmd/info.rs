use crate::output::{bytes, count, listing};
use alluvium::lm::{CheckpointInfo, Config, Registry, TensorInfo, Tokenizer, inspect};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Show the contents of a checkpoint: model, tensors, parameters, memory
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of a model, its name on the Hugging Face Hub, or a safetensors file
    path: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Write the result as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let path = super::hub::find_model(&args.path)?;
    let is_other = |end: &std::ffi::OsStr| !["safetensors", "gguf"].iter().any(|known| end.eq_ignore_ascii_case(known));
    if path.is_file() && path.extension().is_some_and(is_other) {
        anyhow::bail!("{}: it is no folder of a model and no .safetensors file", path.display());
    }
    let found = inspect(&path)?;
    if args.json {
        writeln!(out, "{}", as_json(&found, args.tensors))?;
        return Ok(());
    }
    let mut rows = Vec::new();
    rows.push(["path".to_owned(), path.display().to_string()]);
    if let Some(model_type) = &found.model_type {
        rows.push(["model".to_owned(), model_type.clone()]);
        rows.extend(of_config(&path));
    }
    for (path, size) in &found.files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        rows.push(["file".to_owned(), format!("{name} ({})", bytes(*size as usize))]);
    }
    rows.push(["tensors".to_owned(), found.tensors.len().to_string()]);
    rows.push(["parameters".to_owned(), count(found.parameters() as f64)]);
    rows.push(["weights".to_owned(), bytes(found.bytes())]);
    for (dtype, tensors, size) in found.dtypes() {
        rows.push([dtype, format!("{tensors} tensors, {}", bytes(size))]);
    }
    for (packing, modules) in &found.packings {
        rows.push(["quantized".to_owned(), format!("{modules} modules, {packing}")]);
    }
    listing(out, &rows)?;
    if args.tensors {
        writeln!(out)?;
        let row = |t: &TensorInfo| [t.name.clone(), t.dtype.to_owned(), t.shape.to_string()];
        listing(out, &found.tensors.iter().map(row).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The shape of a model, as far as its config.json has the usual keys, and whether this program runs it.
fn of_config(folder: &Path) -> Vec<[String; 2]> {
    let Ok(config) = Config::read(folder) else { return Vec::new() };
    let mut rows = Vec::new();
    if let Err(error) = Registry::default().get(&config) {
        rows.push(["".to_owned(), format!("it cannot be run: {error}")]);
    }
    let keys = [
        ("layers", "num_hidden_layers"),
        ("width", "hidden_size"),
        ("vocabulary", "vocab_size"),
        ("context", "max_position_embeddings"),
    ];
    for (name, key) in keys {
        rows.extend(config.text().get(key).and_then(Value::as_u64).map(|n| [name.to_owned(), n.to_string()]));
    }
    let template = match Tokenizer::find(folder) {
        Ok(Some(tokenizer)) if tokenizer.chat_template().is_some() => "yes".to_owned(),
        Ok(Some(_)) => "none; `alluvium generate` continues plain text".to_owned(),
        Ok(None) => "there is no tokenizer.json".to_owned(),
        Err(error) => error.to_string(),
    };
    rows.push(["template".to_owned(), template]);
    rows
}

fn as_json(info: &CheckpointInfo, with_tensors: bool) -> Value {
    let file = |(path, bytes): &(PathBuf, u64)| json!({"path": path.display().to_string(), "bytes": bytes});
    let dtype = |(dtype, tensors, bytes)| json!({"dtype": dtype, "tensors": tensors, "bytes": bytes});
    let mut object = json!({
        "model_type": info.model_type,
        "files": info.files.iter().map(file).collect::<Vec<_>>(),
        "tensors": info.tensors.len(),
        "parameters": info.parameters(),
        "bytes": info.bytes(),
        "dtypes": info.dtypes().into_iter().map(dtype).collect::<Vec<_>>(),
        "quantized_modules": info.packings,
    });
    if with_tensors {
        let tensor = |t: &TensorInfo| json!({"name": t.name, "dtype": t.dtype, "shape": t.shape[..], "bytes": t.bytes});
        object["tensors"] = info.tensors.iter().map(tensor).collect();
    }
    object
}
