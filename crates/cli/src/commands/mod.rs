//! The verbs, one file each: `Flags` as typed -> `resolve`, where everything is checked -> `Job` -> `run`.

mod bench;
mod data;
mod evaluate;
mod generate;
mod import;
mod inspect;
mod nearest;
mod reconstruct;
mod rerank;
mod sampling;
mod settings;
mod sheet;
mod start;
mod train;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Generate(generate::Flags),
    Train(train::Flags),
    Reconstruct(reconstruct::Flags),
    Evaluate(evaluate::Flags),
    Nearest(nearest::Flags),
    Rerank(rerank::Flags),
    Sheet(sheet::Flags),
    Import(import::Flags),
    Inspect(inspect::Flags),
    Data(data::Flags),
    Bench(bench::Flags),
}

pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Generate(flags) => generate::run(generate::resolve(flags)?),
        Command::Train(flags) => train::run(train::resolve(flags)?),
        Command::Reconstruct(flags) => reconstruct::run(reconstruct::resolve(flags)?),
        Command::Evaluate(flags) => evaluate::run(evaluate::resolve(flags)?),
        Command::Nearest(flags) => nearest::run(nearest::resolve(flags)?),
        Command::Rerank(flags) => rerank::run(rerank::resolve(flags)?),
        Command::Sheet(flags) => sheet::run(sheet::resolve(flags)?),
        Command::Import(flags) => import::run(import::resolve(flags)?),
        Command::Inspect(flags) => inspect::run(inspect::resolve(flags)?),
        Command::Bench(flags) => bench::run(bench::resolve(flags)?),
        Command::Data(flags) => data::run(data::resolve(flags)?),
    }
}
