//! `smalti import SOURCE --as FORMAT`: others' checkpoints become bundles.

use crate::compute::Compute;
use crate::failure::WrongUse;
use crate::output::{grouped, print};
use crate::{compute, made_files};
use anyhow::Context;
use smalti_nn::weights::NamedTensors;
use smalti_nn::weights::safetensors::{self, Storage};
use smalti_pipeline::import::{self, Format, Source};
use smalti_pipeline::{Bundle, BundleFolder, Part, manifest};
use std::path::{Path, PathBuf};

/// Turn others' checkpoints into a bundle
///
/// A part is added to the bundle in DIR when there is one: import an image tokenizer, a generator and a CLIP into the same DIR, and the bundle makes
/// pictures. Nothing in a checkpoint is ever executed.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// The checkpoint: a file, or the folder it was published as
    source: PathBuf,
    /// The format of the checkpoint
    #[arg(long = "as", value_name = "FORMAT", value_enum)]
    format: Kind,
    /// Folder of the bundle (of the weights file, for lpips and inception)
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The text tokenizer: tokenizer.json; OpenAI CLIP's merges (.txt, .gz), BERT's vocab.txt, T5's spiece.model [default: the one beside the checkpoint]
    #[arg(long, value_name = "FILE")]
    text_tokenizer: Option<PathBuf>,
    /// Side in pixels of the pictures an image tokenizer was trained on; the folder of a whole pipeline says it
    #[arg(long, value_name = "N", default_value_t = 256)]
    image_size: usize,
    /// How numbers are stored
    #[arg(long, value_enum, default_value_t = StorageKind::F32)]
    storage: StorageKind,
    /// Name of the bundle [default: that of DIR]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    compute: compute::Flags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// VQGAN of taming-transformers or latent-diffusion: .ckpt or safetensors
    TamingVqgan,
    /// VQModel of diffusers: a folder
    DiffusersVqgan,
    /// AutoencoderKL of diffusers: a folder
    DiffusersAutoencoderKl,
    /// AutoencoderTiny of diffusers: a folder
    DiffusersAutoencoderTiny,
    /// TAESD and its kin as their author publishes them: a folder with the encoder's and the decoder's .pth
    Taesd,
    /// The text encoder of CLIP of transformers: a folder
    HfClipText,
    /// The encoder of T5 of transformers: a folder
    HfT5,
    /// BERT of transformers, such as MiniLM: a folder
    HfBert,
    /// A whole StableDiffusionPipeline of diffusers, 1.x or 2.x: the folder with model_index.json
    DiffusersStableDiffusion,
    /// A whole DDPMPipeline or DDIMPipeline of diffusers: the folder with model_index.json
    DiffusersDdpm,
    /// DALL-E mini or mega as min-dalle publishes it: a folder with encoder.pt and decoder.pt
    MinDalle,
    /// BART of transformers: a folder
    HfBart,
    /// CLIP of transformers: a folder
    HfClip,
    /// CLIP as OpenAI published it: a state dictionary
    OpenaiClip,
    /// VGG16 and the heads of LPIPS: one file or a folder with both; gives lpips.safetensors
    Lpips,
    /// Inception v3 of pytorch-fid; gives inception.safetensors
    Inception,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum StorageKind {
    F32,
    F16,
    Bf16,
}

#[derive(Debug)]
pub struct Job {
    what: What,
    source: Source,
    out: PathBuf,
    name: String,
    storage: Storage,
    compute: Compute,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Parts(Format),
    Lpips,
    Inception,
}

pub fn resolve(flags: Flags) -> anyhow::Result<Job> {
    let what = match flags.format {
        Kind::TamingVqgan => What::Parts(Format::TamingVqgan),
        Kind::DiffusersVqgan => What::Parts(Format::DiffusersVqgan),
        Kind::DiffusersAutoencoderKl => What::Parts(Format::DiffusersAutoencoderKl),
        Kind::DiffusersAutoencoderTiny => What::Parts(Format::DiffusersAutoencoderTiny),
        Kind::Taesd => What::Parts(Format::Taesd),
        Kind::HfClipText => What::Parts(Format::HuggingFaceClipText),
        Kind::HfT5 => What::Parts(Format::HuggingFaceT5),
        Kind::HfBert => What::Parts(Format::HuggingFaceBert),
        Kind::DiffusersStableDiffusion => What::Parts(Format::DiffusersStableDiffusion),
        Kind::DiffusersDdpm => What::Parts(Format::DiffusersDdpm),
        Kind::MinDalle => What::Parts(Format::MinDalle),
        Kind::HfBart => What::Parts(Format::HuggingFaceBart),
        Kind::HfClip => What::Parts(Format::HuggingFaceClip),
        Kind::OpenaiClip => What::Parts(Format::OpenAiClip),
        Kind::Lpips => What::Lpips,
        Kind::Inception => What::Inception,
    };
    let storage = match flags.storage {
        StorageKind::F32 => Storage::F32,
        StorageKind::F16 => Storage::F16,
        StorageKind::Bf16 => Storage::Bf16,
    };
    let of_folder = flags.out.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = flags.name.or(of_folder).ok_or_else(|| WrongUse(format!("--out {}: expected the name of a folder", flags.out.display())))?;
    let source = Source { path: flags.source, text_tokenizer: flags.text_tokenizer, image_size: flags.image_size };
    Ok(Job { what, source, out: flags.out, name, storage, compute: flags.compute.resolve()? })
}

pub fn run(job: Job) -> anyhow::Result<()> {
    match job.what {
        What::Parts(format) => job.compute.run(|| import_parts(&job, format)),
        What::Lpips => write_weights(&job, "lpips.safetensors", import::lpips(&job.source.path, &job.compute.device)?),
        What::Inception => write_weights(&job, "inception.safetensors", import::inception(&job.source.path, &job.compute.device)?),
    }
}

fn import_parts(job: &Job, format: Format) -> anyhow::Result<()> {
    let imported = import::import(format, &job.source, &job.compute.device)?;
    let mut bundle = Bundle { name: job.name.clone(), ..Bundle::default() };
    let mut kept: Vec<(Part, Storage)> = Vec::new();
    if job.out.join(manifest::FILE_NAME).is_file() {
        let manifest = BundleFolder::open(&job.out)?.manifest().clone();
        kept = manifest.parts().into_iter().filter_map(|part| Some((part, manifest.summary(part)?.0.storage))).collect();
        // The old card tells of the old parts.
        bundle = Bundle { model_card: None, ..Bundle::load(&job.out, &job.compute.device)? };
    }
    let mut parts = Vec::new();
    for part in imported {
        if part.lacks_text_tokenizer() {
            smalti_train::say!(
                "warning: {}: no text tokenizer found, so this part cannot read prompts; hint: --text-tokenizer FILE",
                job.source.path.display()
            );
        }
        parts.push(part.part());
        part.put_into(&mut bundle);
    }
    // What was there before keeps its precision.
    let stored = |part: Part| kept.iter().find(|(old, _)| *old == part && !parts.contains(&part)).map_or(job.storage, |(_, storage)| *storage);
    bundle.save_parts(&job.out, &stored)?;
    let bundle = BundleFolder::open(&job.out)?;
    for part in parts {
        let (weights, kind, _) = bundle.manifest().summary(part).context("the part was just written")?;
        print(&format!("{}: {part} {kind}, {} parameters", job.out.display(), grouped(weights.parameter_count)))?;
    }
    Ok(())
}

fn write_weights(job: &Job, file: &str, tensors: NamedTensors) -> anyhow::Result<()> {
    made_files::prepare_folder(&job.out)?;
    let path: &Path = &job.out.join(file);
    safetensors::write(path, &tensors, job.storage)?;
    let count = tensors.values().map(|tensor| tensor.values.len()).sum();
    print(&format!("{}: {} parameters", path.display(), grouped(count)))
}
