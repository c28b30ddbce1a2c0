//! The command-line program `alluvium`.

mod cmd;
mod output;
mod progress_line;
mod signals;

use alluvium::core::cpu::Cpu;
use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::Write;
use std::num::NonZeroUsize;
use std::process::ExitCode;

/// The version, the commit and the target.
const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("ALLUVIUM_COMMIT"), ", ", env!("ALLUVIUM_TARGET"), ")");

/// Train, quantize and run hybrid Gated DeltaNet language models.
#[derive(Parser)]
#[command(name = "alluvium", bin_name = "alluvium", version = VERSION, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Write results, warnings and errors only
    #[arg(long, global = true)]
    quiet: bool,
    /// Threads of the CPU [default: one per core]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Accepted because commands for mlx-lm have it: a model's own code is never run
    #[arg(long, global = true, hide = true)]
    trust_remote_code: bool,
}

#[derive(Subcommand)]
enum Command {
    Train(Box<cmd::train::Args>),
    #[command(alias = "lora")]
    Finetune(Box<cmd::finetune::Args>),
    Fuse(cmd::fuse::Args),
    Dwq(Box<cmd::dwq::Args>),
    #[command(name = "dynamic_quant", alias = "dynamic-quant")]
    DynamicQuant(Box<cmd::dynamic_quant::Args>),
    Distill(Box<cmd::distill::Args>),
    Generate(Box<cmd::generate::Args>),
    Chat(Box<cmd::chat::Args>),
    #[command(alias = "server")]
    Serve(Box<cmd::serve::Args>),
    Convert(cmd::convert::Args),
    Quantize(cmd::quantize::Args),
    Perplexity(cmd::perplexity::Args),
    #[command(name = "cache_prompt", alias = "cache-prompt")]
    CachePrompt(cmd::cache_prompt::Args),
    Info(cmd::info::Args),
    Models(cmd::hub::ModelsArgs),
    #[command(alias = "pull")]
    Download(cmd::hub::DownloadArgs),
    Check(cmd::check::Args),
    Bench(cmd::bench::Args),
    Ops(cmd::ops::Args),
    Devices(cmd::devices::Args),
    Completions(cmd::docs::CompletionsArgs),
    Man(cmd::docs::ManArgs),
}

fn main() -> ExitCode {
    let out = &mut std::io::stdout().lock();
    // values below zero reach the flag they follow, which says what it takes
    let cli = Cli::command().mut_subcommands(|command| command.allow_negative_numbers(true));
    let matches = cli.try_get_matches().unwrap_or_else(|error| refuse(error));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(cli, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::Interrupted>() => ExitCode::from(signals::exit_code()),
        Err(error) => {
            output::say_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Commands of other programs, and what there is in their place.
const ELSEWHERE: [(&[&str], &str); 4] = [
    (&["run", "cli"], "`alluvium chat --model NAME` or `alluvium generate --model NAME --prompt TEXT`"),
    (&["list", "ls", "manage", "scan"], "`alluvium models`"),
    (&["show", "ps"], "`alluvium info PATH`"),
    (&["sft", "fine-tune"], "`alluvium finetune --model NAME --data DIR`"),
];

/// Ends the program with the error of clap, and a tip where the command is one of another program.
fn refuse(error: clap::Error) -> ! {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let unknown = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) if error.kind() == ErrorKind::UnknownArgument => argument.as_str(),
        _ => "-",
    };
    if !unknown.starts_with('-') && std::env::args().any(|word| ["generate", "chat"].contains(&word.as_str())) {
        let _ = error.print();
        output::say!("\n  tip: the model's flag is --model, the prompt's --prompt");
        std::process::exit(2);
    }
    let name = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) if error.kind() == ErrorKind::InvalidSubcommand => name.clone(),
        _ => error.exit(),
    };
    // `help NAME` looks for no similar name, `NAME` does
    let error = match error.get(ContextKind::SuggestedSubcommand) {
        Some(_) => error,
        None => Cli::command().try_get_matches_from(["alluvium", &name]).err().unwrap_or(error),
    };
    let tip = ELSEWHERE.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, tip)| *tip);
    let _ = error.print();
    if let Some(tip) = tip {
        output::say!("\n  tip: here it is {tip}");
    }
    std::process::exit(2)
}

fn run(cli: Cli, out: &mut impl Write) -> anyhow::Result<()> {
    signals::listen()?;
    if cli.quiet {
        output::set_quiet();
    }
    if let Some(threads) = cli.threads {
        Cpu::builder().threads(threads.get()).open()?.share()?;
        // tokenizers use the pool that rayon has for all
        rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global().context("--threads")?;
    }
    match cli.command {
        Command::Train(args) => cmd::train::run(*args, out),
        Command::Finetune(args) => cmd::finetune::run(&args, out),
        Command::Fuse(args) => cmd::fuse::run(&args, out),
        Command::Dwq(args) => cmd::dwq::run(&args, out),
        Command::DynamicQuant(args) => cmd::dynamic_quant::run(&args, out),
        Command::Distill(args) => cmd::distill::run(&args, out),
        Command::Generate(args) => cmd::generate::run(&args, out),
        Command::Chat(args) => cmd::chat::run(&args, out),
        Command::Serve(args) => cmd::serve::run(&args, out),
        Command::Convert(args) => cmd::convert::run(&args, out),
        Command::Quantize(args) => cmd::quantize::run(&args, out),
        Command::Perplexity(args) => cmd::perplexity::run(&args, out),
        Command::CachePrompt(args) => cmd::cache_prompt::run(&args, out),
        Command::Info(args) => cmd::info::run(&args, out),
        Command::Check(args) => cmd::check::run(&args, out),
        Command::Bench(args) => cmd::bench::run(&args, out),
        Command::Ops(args) => cmd::ops::run(&args, out),
        Command::Devices(args) => cmd::devices::run(&args, out),
        Command::Models(args) => cmd::hub::models(&args, out),
        Command::Download(args) => cmd::hub::download(&args, out),
        Command::Completions(args) => cmd::docs::completions::<Cli>(&args, out),
        Command::Man(args) => cmd::docs::man::<Cli>(&args, out),
    }
}
