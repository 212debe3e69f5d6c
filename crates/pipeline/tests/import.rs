//! Whole pipelines of diffusers, as diffusers saved them (`goldens/make.py`): imported, written as bundles and read back, they draw the pictures that diffusers
//! draws from the same noise.
//!
//! Pictures are compared as bytes: 50 dB is a mean error of less than one step of 256.

use burn::tensor::Device;
use smalti_data::Picture;
use smalti_data::text_tokenizer::SpecialTokens;
use smalti_generation::diffusion::{Parameterization, Sampler};
use smalti_nn::weights::safetensors::{self, Storage};
use smalti_pipeline::import::{Format, ImportedPart, Source, import};
use smalti_pipeline::manifest::GeneratorModel;
use smalti_pipeline::text_to_image::{InitialPicture, Request, TextToImage};
use smalti_pipeline::{Bundle, BundleFolder, Part, PipelineError};
use smalti_testing::{Golden, golden};
use std::fs;
use std::path::{Path, PathBuf};

const PROMPT: &str = "A red fox, flat style";
const GOLDENS: &str = "tests/goldens";

fn parts(format: Format, path: &Path) -> Result<Vec<ImportedPart>, PipelineError> {
    import(format, &Source { path: path.to_path_buf(), text_tokenizer: None, image_size: 32 }, &Device::flex())
}

fn bundle(format: Format, path: &Path) -> Bundle {
    let mut bundle = Bundle { name: "imported".into(), ..Bundle::default() };
    parts(format, path).unwrap().into_iter().for_each(|part| part.put_into(&mut bundle));
    bundle
}

/// Imported, saved and loaded.
fn text_to_image(format: Format, path: &Path) -> TextToImage {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("bundle");
    bundle(format, path).save(&saved, Storage::F32).unwrap();
    TextToImage::load(&BundleFolder::open(&saved).unwrap(), &Device::flex()).unwrap()
}

/// Two pictures of 20 steps from the golden's noise.
fn request(prompt: &str, golden: &Golden) -> Request {
    let mut request = Request { count: 2, ..Request::new(prompt) };
    (request.diffusion.steps, request.diffusion.noise) = (Some(20), Some(golden.values("noise")));
    request
}

/// Peak signal-to-noise ratio of the bytes of all pictures of a request, in dB.
fn psnr(drawn: &TextToImage, request: &Request, golden: &Golden, case: &str) -> f64 {
    let made = drawn.generate(request, &mut |_| {}).unwrap();
    let found: Vec<u8> = made.pictures.iter().flat_map(|made| made.picture.rgb.clone()).collect();
    let expected = golden.integers(&format!("{case}_bytes"));
    assert_eq!(found.len(), expected.len(), "{case}");
    let differences = found.iter().zip(&expected).map(|(&found, &expected)| i64::from(found) - expected);
    let squares: i64 = differences.map(|difference| difference * difference).sum();
    let psnr = 20.0 * 255_f64.log10() - 10.0 * (squares as f64 / found.len() as f64).log10();
    println!("{case}: {psnr:.1} dB, squared differences of {squares} over {} bytes", found.len());
    psnr
}

#[track_caller]
fn same(drawn: &TextToImage, request: &Request, golden: &Golden, case: &str) {
    let psnr = psnr(drawn, request, golden, case);
    assert!(psnr >= 60.0, "{case}: {psnr} dB");
}

fn stable_diffusion(name: &str) {
    let golden = golden(format!("{GOLDENS}/{name}_results.safetensors"));
    let drawn = text_to_image(Format::DiffusersStableDiffusion, &Path::new(GOLDENS).join(name));
    let ddim = request(PROMPT, &golden);
    same(&drawn, &ddim, &golden, "ddim");
    same(&drawn, &Request { guidance_scale: Some(1.0), ..ddim.clone() }, &golden, "unguided");
    let mut negative = ddim.clone();
    negative.diffusion.negative = Some("blurry leaf".into());
    same(&drawn, &negative, &golden, "negative");
    let mut solver = ddim.clone();
    solver.diffusion.sampler = Some(Sampler::DpmSolverPlusPlus2M);
    same(&drawn, &solver, &golden, "dpm_solver_pp_2m");
    let mut from_picture = ddim.clone();
    let bytes = golden.integers("initial_bytes").into_iter().map(|byte| byte as u8).collect();
    from_picture.diffusion.initial = Some(InitialPicture { picture: Picture::new(32, 32, bytes).unwrap(), strength: 0.6, mask: None });
    same(&drawn, &from_picture, &golden, "from_picture");
    // The comparison is sharp enough to tell what it is there to tell.
    for (what, other) in [("sampler", &solver), ("negative", &negative)] {
        let psnr = psnr(&drawn, other, &golden, "ddim");
        assert!(psnr < 50.0, "another {what} draws the same picture: {psnr} dB");
    }
}

#[test]
fn stable_diffusion_1_draws_what_diffusers_draws() {
    stable_diffusion("stable_diffusion_1");
}

#[test]
fn stable_diffusion_2_draws_what_diffusers_draws() {
    stable_diffusion("stable_diffusion_2");
}

/// The same folder with another scheduler: noise that ends in nothing but noise, walked from the last step on (2305.08891).
#[test]
fn zero_terminal_snr_is_taken_over() {
    let folder = copied("stable_diffusion_2");
    fs::copy(format!("{GOLDENS}/stable_diffusion_2_zero_snr_scheduler_config.json"), folder.path().join("scheduler/scheduler_config.json")).unwrap();
    let golden = golden(format!("{GOLDENS}/stable_diffusion_2_results.safetensors"));
    same(&text_to_image(Format::DiffusersStableDiffusion, folder.path()), &request(PROMPT, &golden), &golden, "zero_snr");
}

/// DDPM's network in pixels, clipped at each step, told to predict the noise or the clean picture.
#[test]
fn ddpm_draws_what_diffusers_draws() {
    let golden = golden(format!("{GOLDENS}/ddpm_results.safetensors"));
    let mut request = request("", &golden);
    request.diffusion.sampler = Some(Sampler::Ddim { eta: 0.0 });
    same(&text_to_image(Format::DiffusersDdpm, &Path::new(GOLDENS).join("ddpm")), &request, &golden, "ddim");
    let folder = copied("ddpm");
    fs::copy(format!("{GOLDENS}/ddpm_clean_scheduler_config.json"), folder.path().join("scheduler/scheduler_config.json")).unwrap();
    same(&text_to_image(Format::DiffusersDdpm, folder.path()), &request, &golden, "clean");
}

#[test]
fn what_the_folders_say_is_in_the_parts() {
    let one = bundle(Format::DiffusersStableDiffusion, &Path::new(GOLDENS).join("stable_diffusion_1"));
    let two = bundle(Format::DiffusersStableDiffusion, &Path::new(GOLDENS).join("stable_diffusion_2"));
    let image_tokenizer = one.image_tokenizer.unwrap();
    assert_eq!((image_tokenizer.image_size, image_tokenizer.latent_scale), (32, Some(0.18215)));
    assert_eq!(image_tokenizer.provenance.source.as_deref(), Some("stable_diffusion_1"));
    // The second pads with "!", though one of its files says otherwise.
    let specials = [one.text_encoder, two.text_encoder].map(|part| part.unwrap().text_tokenizer.unwrap().special_tokens());
    assert_eq!(specials, [541, 0].map(|pad| SpecialTokens { pad, start: Some(540), end: 541 }));
    let GeneratorModel::Diffusion(config) = two.generator.unwrap().model.config() else { panic!("a diffusion network") };
    assert_eq!((config.image_size, config.parameterization, config.text.unwrap().token_count), (32, Parameterization::Velocity, 77));
    assert_eq!((config.sampling.steps, config.sampling.guidance_scale), (50, 7.5));
}

/// A new decoder for the latents of Stable Diffusion, a text encoder on its own, in a bundle that is there already.
#[test]
fn single_parts_take_the_place_of_those_that_were_there() {
    let folder = Path::new(GOLDENS).join("stable_diffusion_1");
    let mut whole = bundle(Format::DiffusersStableDiffusion, &folder);
    for (format, name) in [(Format::DiffusersAutoencoderKl, "vae"), (Format::HuggingFaceClipText, "text_encoder")] {
        let mut imported = parts(format, &folder.join(name)).unwrap();
        assert_eq!((imported.len(), imported[0].lacks_text_tokenizer()), (1, false));
        imported.remove(0).put_into(&mut whole);
    }
    assert_eq!(whole.image_tokenizer.as_ref().unwrap().latent_scale, Some(0.18215));
    assert_eq!(whole.text_encoder.as_ref().unwrap().text_tokenizer.as_ref().unwrap().special_tokens().pad, 541);
    assert_eq!(whole.save(&tempfile::tempdir().unwrap().path().join("bundle"), Storage::F16).unwrap().parts().len(), 3);
}

/// The formats of one network, from what the models' own tests read.
#[test]
fn single_networks_become_parts() {
    let part = |format, config: &str, weights: &str, name: &str| {
        let folder = tempfile::tempdir().unwrap();
        for (from, to) in [(config, "config.json"), (weights, name)] {
            fs::copy(Path::new("../models/src").join(from), folder.path().join(to)).unwrap();
        }
        let imported = parts(format, folder.path()).unwrap().remove(0);
        (imported.part(), imported.lacks_text_tokenizer())
    };
    let t5 = "text_encoder/t5/goldens/version_1_1";
    let found = part(Format::HuggingFaceT5, &format!("{t5}_config.json"), &format!("{t5}_weights.safetensors"), "model.safetensors");
    assert_eq!(found, (Part::TextEncoder, true));
    let bert = "text_encoder/bert/goldens";
    let found = part(Format::HuggingFaceBert, &format!("{bert}/config.json"), &format!("{bert}/weights.safetensors"), "model.safetensors");
    assert_eq!(found, (Part::TextEncoder, true));
    let tiny = "image_tokenizer/autoencoder_tiny/goldens/diffusers";
    let weights = format!("{tiny}_weights.safetensors");
    let found = part(Format::DiffusersAutoencoderTiny, &format!("{tiny}_config.json"), &weights, "diffusion_pytorch_model.safetensors");
    assert_eq!(found, (Part::ImageTokenizer, false));

    // The author's files hold the same tensors, one side each.
    let tensors = safetensors::read(&Path::new("../models/src").join(weights)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for side in ["encoder", "decoder"] {
        let prefix = format!("{side}.layers.");
        let of_side = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_string(), tensor.clone()))).collect();
        safetensors::write(&folder.path().join(format!("taesd_{side}.safetensors")), &of_side, Storage::F32).unwrap();
    }
    let bundle = bundle(Format::Taesd, folder.path());
    assert_eq!(bundle.image_tokenizer.unwrap().latent_scale, Some(1.0));
    fs::remove_file(folder.path().join("taesd_decoder.safetensors")).unwrap();
    let error = parts(Format::Taesd, folder.path()).unwrap_err().to_string();
    assert!(error.contains("expected a folder with one file of weights whose name says decoder, found 0"), "{error}");
}

/// Text tokenizers as their authors publish them: BERT's list of pieces, T5's SentencePiece model.
#[test]
fn original_text_tokenizers_beside_a_text_encoder_are_read() {
    let encoder = |folder: &Path, name: &str, config: &str, weights: &str| {
        for (from, to) in [(config, "config.json"), (weights, "model.safetensors")] {
            fs::copy(Path::new("../models/src/text_encoder").join(name).join("goldens").join(from), folder.join(to)).unwrap();
        }
    };
    let folder = tempfile::tempdir().unwrap();
    encoder(folder.path(), "bert", "config.json", "weights.safetensors");
    fs::write(folder.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\nfox\n").unwrap();
    let text_tokenizer = || bundle(Format::HuggingFaceBert, folder.path()).text_encoder.unwrap().text_tokenizer.unwrap();
    assert_eq!(text_tokenizer().encode("A red FOX", 6).unwrap().tokens, [2, 5, 6, 7, 3, 0]);
    fs::write(folder.path().join("tokenizer_config.json"), "{\"do_lower_case\": false}").unwrap();
    assert_eq!(text_tokenizer().encode("A red FOX", 6).unwrap().tokens, [2, 1, 6, 1, 3, 0], "letters are kept");

    let folder = tempfile::tempdir().unwrap();
    encoder(folder.path(), "t5", "version_1_1_config.json", "version_1_1_weights.safetensors");
    fs::copy("../data/goldens/sentence_piece_bytes.model", folder.path().join("spiece.model")).unwrap();
    let error = parts(Format::HuggingFaceT5, folder.path()).unwrap_err().to_string();
    assert!(error.contains("spiece.model") && error.contains("at most 40 entries"), "read, and too large for the small network: {error}");
    fs::write(folder.path().join("spiece.model"), "not a model").unwrap();
    let error = parts(Format::HuggingFaceT5, folder.path()).unwrap_err().to_string();
    assert!(error.contains("spiece.model"), "{error}");
}

fn copied(name: &str) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (from, to) = {
                let entry = entry.unwrap();
                (entry.path(), to.join(entry.file_name()))
            };
            if from.is_dir() {
                copy(&from, &to);
            } else {
                fs::copy(from, to).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&Path::new(GOLDENS).join(name), folder.path());
    folder
}

/// A change to a copy of a folder, and what is said of it.
type Damage = (&'static str, fn(&Path), &'static str);

fn edit(path: PathBuf, from: &str, to: &str) {
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{}: {from}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn damaged_folders_are_named() {
    let damages: [Damage; 17] = [
        ("no index", |root| fs::remove_file(root.join("model_index.json")).unwrap(), "with model_index.json, found none"),
        (
            "another pipeline",
            |root| edit(root.join("model_index.json"), "StableDiffusionPipeline", "StableDiffusionXLPipeline"),
            "found `StableDiffusionXLPipeline`",
        ),
        ("an index cut off", |root| fs::write(root.join("model_index.json"), "{\"_class").unwrap(), "model_index.json: expected the index of a pipeline"),
        ("no U-Net", |root| fs::remove_dir_all(root.join("unet")).unwrap(), "expected a folder unet/ with config.json and weights, found none"),
        ("no text encoder", |root| fs::remove_dir_all(root.join("text_encoder")).unwrap(), "expected a folder text_encoder/"),
        ("no weights", |root| fs::remove_file(root.join("vae/diffusion_pytorch_model.safetensors")).unwrap(), "vae: expected a file of weights"),
        ("no config", |root| fs::remove_file(root.join("vae/config.json")).unwrap(), "vae/config.json"),
        ("no scheduler", |root| fs::remove_file(root.join("scheduler/scheduler_config.json")).unwrap(), "scheduler_config.json"),
        ("a U-Net of another class", |root| edit(root.join("unet/config.json"), "UNet2DConditionModel", "UNetMotionModel"), "found `UNetMotionModel`"),
        ("an autoencoder of another class", |root| edit(root.join("vae/config.json"), "AutoencoderKL", "VQModel"), "VQModel"),
        ("a key of another time", |root| edit(root.join("unet/config.json"), "\"act_fn\"", "\"surprise\": 1, \"act_fn\""), "surprise`: expected no such key"),
        (
            "an inpainting network",
            |root| edit(root.join("unet/config.json"), "\"in_channels\": 4", "\"in_channels\": 9"),
            "in_channels`: expected 4, as the latents have",
        ),
        ("shifted latents", |root| edit(root.join("vae/config.json"), "\"shift_factor\": null", "\"shift_factor\": 0.1"), "shift_factor`: expected 0 or none"),
        ("another schedule", |root| edit(root.join("scheduler/scheduler_config.json"), "scaled_linear", "sigmoid"), "beta_schedule`: expected `linear`"),
        (
            "no side",
            |root| edit(root.join("unet/config.json"), "\"sample_size\": 8", "\"sample_size\": null"),
            "sample_size: expected the side of a square, found null",
        ),
        (
            "a huge side",
            |root| edit(root.join("unet/config.json"), "\"sample_size\": 8", "\"sample_size\": 9223372036854775807"),
            "image_size`: expected 1 to 16384",
        ),
        (
            "a padding token that is none",
            |root| edit(root.join("tokenizer/tokenizer_config.json"), "\"pad_token\": \"<|end", "\"pad_token\": \"<|no"),
            "pad_token: expected an entry",
        ),
    ];
    for (what, damage, expected) in damages {
        let folder = copied("stable_diffusion_1");
        damage(folder.path());
        let error = parts(Format::DiffusersStableDiffusion, folder.path()).expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
    }
    let error = parts(Format::DiffusersDdpm, &Path::new(GOLDENS).join("stable_diffusion_1")).unwrap_err().to_string();
    assert!(error.contains("_class_name`: expected `DDPMPipeline` or `DDIMPipeline`, found `StableDiffusionPipeline`"), "{error}");
}

#[test]
fn every_tensor_has_a_place() {
    for (component, file) in [("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")] {
        let path = format!("{component}/{file}.safetensors");
        let folder = copied("stable_diffusion_1");
        let mut tensors = safetensors::read(&folder.path().join(&path)).unwrap();
        let (name, tensor) = tensors.pop_first().unwrap();
        safetensors::write(&folder.path().join(&path), &tensors, Storage::F32).unwrap();
        let error = parts(Format::DiffusersStableDiffusion, folder.path()).unwrap_err().to_string();
        assert!(error.contains("missing"), "{path} without {name}: {error}");
        tensors.insert(name, tensor.clone());
        tensors.insert("stowaway.weight".into(), tensor);
        safetensors::write(&folder.path().join(&path), &tensors, Storage::F32).unwrap();
        let error = parts(Format::DiffusersStableDiffusion, folder.path()).unwrap_err().to_string();
        assert!(error.contains("stowaway"), "{path} with one more: {error}");
    }
}

/// Large models are published in several files with an index.
#[test]
fn weights_may_lie_in_several_files() {
    let folder = copied("stable_diffusion_1");
    let unet = folder.path().join("unet");
    let mut tensors = safetensors::read(&unet.join("diffusion_pytorch_model.safetensors")).unwrap();
    fs::remove_file(unet.join("diffusion_pytorch_model.safetensors")).unwrap();
    let middle = tensors.keys().nth(tensors.len() / 2).unwrap().clone();
    let halves = [tensors.split_off(&middle), tensors];
    let mut map = serde_json::Map::new();
    for (index, half) in halves.iter().enumerate() {
        let file = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", index + 1);
        safetensors::write(&unet.join(&file), half, Storage::F32).unwrap();
        map.extend(half.keys().map(|name| (name.clone(), file.clone().into())));
    }
    let index = unet.join("diffusion_pytorch_model.safetensors.index.json");
    fs::write(&index, serde_json::json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
    assert_eq!(parts(Format::DiffusersStableDiffusion, folder.path()).unwrap().len(), 3);
    fs::write(&index, r#"{"weight_map": {"a": "../../secret.bin"}}"#).unwrap();
    let error = parts(Format::DiffusersStableDiffusion, folder.path()).unwrap_err().to_string();
    assert!(error.contains("weight_map: expected names of files beside it, found `../../secret.bin`"), "{error}");
}
