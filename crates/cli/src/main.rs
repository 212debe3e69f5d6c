//! The program `smalti`: reads flags, calls the libraries, shows results. Nothing is computed here.
//!
//! Reading order:
mod commands; //     one file for each verb
mod compute; //      --device and --threads
mod bundle_path; //  which bundle is meant when none is named
mod made_files; //   names and texts of the PNGs that are written
mod preview; //      pictures as coloured blocks in a terminal
mod progress; //     a bar on a terminal, plain lines elsewhere
mod output; //       results on stdout
mod interrupt; //    Ctrl-C: stop in good order, or at once
mod failure; //      wrong use, failure, panic: message and exit status
#[cfg(not(target_env = "msvc"))]
mod allocator; //    memory that is kept, in huge pages

use clap::Parser;
use std::process::ExitCode;

/// Train and run text-to-image models
#[derive(Debug, Parser)]
#[command(name = "smalti", version, max_term_width = 110, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    failure::exit_code(|| commands::run(Arguments::parse().command))
}
