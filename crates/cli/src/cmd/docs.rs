//! What the program says of itself for shells and manuals.

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use std::io::Write;
use std::path::PathBuf;

/// Write a completion script for a shell
///
/// For bash: alluvium completions bash > ~/.local/share/bash-completion/completions/alluvium
#[derive(clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Write the manual pages, one for each command
#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// Folder of the pages, which is made: ~/.local/share/man/man1
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(crate) fn completions<P: CommandFactory>(args: &CompletionsArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut P::command(), "alluvium", &mut script);
    out.write_all(&script)?;
    Ok(())
}

pub(crate) fn man<P: CommandFactory>(args: &ManArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let folder = args.folder.display();
    std::fs::create_dir_all(&args.folder).with_context(|| format!("cannot create {folder}"))?;
    let mut command = P::command().disable_help_subcommand(true);
    // gives the names of the commands in full
    command.build();
    let commands: Vec<_> = command.get_subcommands().cloned().collect();
    let pages = std::iter::once(command).chain(commands.into_iter().map(|sub| {
        let name = format!("alluvium-{}", sub.get_name());
        sub.name(name)
    }));
    let mut count = 0;
    for page in pages {
        let path = args.folder.join(format!("{}.1", page.get_name()));
        let mut text = Vec::new();
        clap_mangen::Man::new(page).render(&mut text)?;
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        count += 1;
    }
    writeln!(out, "{folder}: {count} pages")?;
    Ok(())
}
