use super::DeviceArg;
use super::distill::Screen;
use super::hub::find_model;
use crate::output::{Interrupted, note};
use alluvium::lm::quantize::format::parse_packing;
use alluvium::train::data::SampleOrder;
use alluvium::train::distill::{DistillSettings, DwqSettings, dwq};
use anyhow::{anyhow, bail};
use std::io::Write;
use std::path::PathBuf;

/// Improve a quantized model: distill its scales and biases from the model before quantization
///
/// Flags and defaults are those of mlx_lm.dwq. Affine modules below 8 bits keep their codes; their scales and biases
/// and all unquantized parameters are trained, so that the model's probabilities come near those of the teacher.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the teacher. Without --quantized-model the student is this model, quantized
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// Folder of a quantized student
    #[arg(long, value_name = "DIR")]
    quantized_model: Option<PathBuf>,
    /// New folder of the improved model; it must not exist
    #[arg(long, value_name = "DIR", default_value = "mlx_model")]
    mlx_path: PathBuf,
    /// Bits per weight of a student that is quantized here
    #[arg(long, value_name = "N", default_value_t = 4)]
    bits: usize,
    /// Weights that share a scale in a student that is quantized here
    #[arg(long, value_name = "N", default_value_t = 64)]
    group_size: usize,
    #[command(flatten)]
    data: DataArgs,
    /// Adam's learning rate
    #[arg(long, value_name = "X", default_value_t = 1e-6)]
    learning_rate: f32,
    /// Compute the targets in --target-dir and nothing else
    #[arg(long, requires = "target_dir")]
    targets_only: bool,
    /// Accepted because commands for mlx-lm have it: there is one process
    #[arg(long, hide = true)]
    pipeline: bool,
    #[command(flatten)]
    device: DeviceArg,
}

/// The data and the loop of a distillation.
#[derive(clap::Args)]
pub(crate) struct DataArgs {
    /// Folder with train.jsonl (valid.jsonl), a .jsonl file with the lines that `finetune` takes, or a text file
    #[arg(long, visible_alias = "data", value_name = "PATH")]
    data_path: PathBuf,
    /// Number of samples to train on
    #[arg(long, value_name = "N", default_value_t = 2048)]
    num_samples: usize,
    /// Maximum length of a sample in tokens
    #[arg(long, value_name = "N", default_value_t = 1025)]
    max_seq_length: usize,
    /// Order of the samples: random, or that of the file
    #[arg(long, value_name = "ORDER", default_value = "random", value_parser = ["random", "file"])]
    sample_order: String,
    /// Seed of a random order, which also decides which samples are taken
    #[arg(long, value_name = "N", default_value_t = 123)]
    seed: u64,
    /// Samples in a batch
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch_size: usize,
    /// Passes over the samples
    #[arg(long, value_name = "N", default_value_t = 1)]
    epochs: usize,
    /// Divisor of the logits of teacher and student
    #[arg(long, value_name = "X", default_value_t = 2.0)]
    temperature: f32,
    /// Recompute layers in the backward pass, to take less memory
    #[arg(long)]
    grad_checkpoint: bool,
    /// Folder of the teacher's 1024 largest logits of each token, 6 KB a token; they are computed where they are
    /// missing. Without it the teacher stays in memory, and all its logits count
    #[arg(long, value_name = "DIR")]
    target_dir: Option<PathBuf>,
    /// New file for the losses, a JSON object a line
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Write the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl DataArgs {
    /// The settings of a distillation with this data.
    pub(crate) fn settings(&self, [teacher, student, output]: [PathBuf; 3], learning_rate: f32) -> DistillSettings {
        DistillSettings {
            teacher,
            student,
            output,
            data: self.data_path.clone(),
            num_samples: self.num_samples,
            max_seq_length: self.max_seq_length,
            batch_size: self.batch_size,
            epochs: self.epochs,
            learning_rate,
            temperature: self.temperature,
            grad_checkpoint: self.grad_checkpoint,
            target_dir: self.target_dir.clone(),
            sample_order: if self.sample_order == "file" { SampleOrder::File } else { SampleOrder::Random },
            seed: self.seed,
        }
    }

    /// Refuses data that is not there: nothing is downloaded.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let data = self.data_path.display();
        if !self.data_path.exists() {
            bail!("--data-path {data}: there is no such file or folder, and data sets are not downloaded");
        }
        Ok(())
    }
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    args.data.check()?;
    let packing = parse_packing("affine", Some(args.bits), Some(args.group_size))
        .map_err(|why| anyhow!("--bits {} --group-size {}: {why}", args.bits, args.group_size))?;
    let teacher = find_model(&args.model)?;
    let quantized_model = args.quantized_model.as_ref().map(|model| find_model(model)).transpose()?;
    let folders = [teacher, PathBuf::new(), args.mlx_path.clone()];
    let settings = DwqSettings {
        distill: args.data.settings(folders, args.learning_rate),
        quantized_model,
        packing,
        targets_only: args.targets_only,
    };
    let device = args.device.open()?;
    let mut screen = Screen::new(args.data.report.as_deref())?;
    let result = dwq(&settings, &device, &mut |event| screen.show(&event));
    screen.finish()?;
    match result? {
        Some(distilled) => screen.summary((&args.mlx_path, args.data.json), &distilled, out),
        None if args.targets_only && !screen.is_stopped() => {
            note!("the targets are complete");
            if args.data.json {
                let folder = args.data.target_dir.as_ref().map(|folder| folder.display().to_string());
                writeln!(out, "{}", serde_json::json!({"target_dir": folder}))?;
            }
            Ok(())
        }
        None => Err(Interrupted.into()),
    }
}
