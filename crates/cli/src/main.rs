//! The command-line program `alluvium`.

mod cmd;
mod output;
mod signals;

use alluvium::core::cpu::Cpu;
use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::Write;
use std::num::NonZeroUsize;
use std::process::ExitCode;

/// Train, quantize and run hybrid Gated DeltaNet language models.
#[derive(Parser)]
#[command(name = "alluvium", version, max_term_width = 110)]
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
    Generate(Box<cmd::generate::Args>),
    Chat(Box<cmd::chat::Args>),
    Convert(cmd::convert::Args),
    Quantize(cmd::quantize::Args),
    Perplexity(cmd::perplexity::Args),
    #[command(name = "cache_prompt", alias = "cache-prompt")]
    CachePrompt(cmd::cache_prompt::Args),
    Info(cmd::info::Args),
    Check(cmd::check::Args),
    Bench(cmd::bench::Args),
    Ops(cmd::ops::Args),
    Devices(cmd::devices::Args),
}

fn main() -> ExitCode {
    let out = &mut std::io::stdout().lock();
    // values below zero reach the flag they follow, which says what it takes
    let cli = Cli::command().mut_subcommands(|command| command.allow_negative_numbers(true));
    let cli = Cli::from_arg_matches(&cli.get_matches()).unwrap_or_else(|error| error.exit());
    match run(cli, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<output::Interrupted>() => ExitCode::from(signals::INTERRUPTED),
        Err(error) => {
            output::say_error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
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
        Command::Generate(args) => cmd::generate::run(&args, out),
        Command::Chat(args) => cmd::chat::run(&args, out),
        Command::Convert(args) => cmd::convert::run(&args, out),
        Command::Quantize(args) => cmd::quantize::run(&args, out),
        Command::Perplexity(args) => cmd::perplexity::run(&args, out),
        Command::CachePrompt(args) => cmd::cache_prompt::run(&args, out),
        Command::Info(args) => cmd::info::run(&args, out),
        Command::Check(args) => cmd::check::run(&args, out),
        Command::Bench(args) => cmd::bench::run(&args, out),
        Command::Ops(args) => cmd::ops::run(&args, out),
        Command::Devices(args) => cmd::devices::run(&args, out),
    }
}
