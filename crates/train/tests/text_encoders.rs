//! Frozen text encoders of diffusion trainings: every kind of them, and states that are kept on disk.

mod small_runs;

use burn::tensor::Device;
use small_runs::{CLIP, EFFICIENT, Runs, TEXT, UNET, walk};
use smalti_data::text_tokenizer::{LetterCase, TextTokenizer};
use smalti_models::text_encoder::{bert, t5};
use smalti_nn::Initializer;
use smalti_nn::weights::safetensors::Storage;
use smalti_pipeline::manifest::TextEncoderModel;
use smalti_pipeline::parts::TextEncoder;
use smalti_pipeline::text_to_image::{DiffusionOptions, Request};
use smalti_pipeline::{Bundle, BundleFolder, Part, Provenance, TextEncoderPart};
use std::path::Path;

/// A bundle with a small random text encoder and a text tokenizer as such encoders are published with.
fn save_text_encoder(runs: &Runs, name: &str, model: TextEncoderModel, text_tokenizer: TextTokenizer) {
    let part = TextEncoderPart {
        model: TextEncoder::new(&model, &mut Initializer::new(5, &Device::flex())).unwrap(),
        text_tokenizer: Some(text_tokenizer),
        provenance: Provenance::default(),
    };
    let bundle = Bundle { name: name.to_string(), text_encoder: Some(part), ..Bundle::default() };
    bundle.save(&runs.path(name).join("bundle"), Storage::F32).unwrap();
}

fn published(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/goldens").join(file)
}

/// As `all-MiniLM-L6-v2`, smaller.
fn save_bert(runs: &Runs) {
    let text_tokenizer = TextTokenizer::from_word_pieces(&published("word_pieces.txt"), LetterCase::Lower).unwrap();
    let config = bert::Config {
        vocabulary_size: text_tokenizer.vocabulary_size(),
        context_length: 16,
        channels: 16,
        layer_count: 2,
        head_count: 2,
        feed_forward_channels: 32,
        ..bert::Config::all_mini_lm_l6_v2()
    };
    save_text_encoder(runs, "bert", TextEncoderModel::Bert(config), text_tokenizer);
}

/// As T5 1.1, smaller; any number of tokens.
fn save_t5(runs: &Runs) {
    let text_tokenizer = TextTokenizer::from_sentence_piece(&published("sentence_piece.model")).unwrap();
    let config = t5::Config {
        vocabulary_size: text_tokenizer.vocabulary_size().next_multiple_of(128),
        channels: 24,
        layer_count: 2,
        head_count: 2,
        head_channels: 8,
        feed_forward_channels: 32,
        feed_forward: t5::FeedForward::GatedGelu,
        bucket_count: 32,
        distance_limit: 128,
        norm_epsilon: 1e-6,
    };
    save_text_encoder(runs, "t5", TextEncoderModel::T5(config), text_tokenizer);
}

/// From training to pictures, in Imagen's first stage and one above it.
#[test]
fn imagen_reads_by_bert_and_by_t5() {
    let runs = Runs::new();
    save_bert(&runs);
    save_t5(&runs);
    for encoder in ["bert", "t5"] {
        let [base, larger] = [format!("{encoder}-base"), format!("{encoder}-larger")];
        let own = [runs.set_bundle("text_encoder", encoder)];
        runs.train("imagen/pictograms_32_sample", &base, &[&EFFICIENT, &TEXT, &["data.image_size=8"]], &own, false);
        let enlarging: &[&str] = &["data.image_size=16", "conditions.low_resolution.image_size=8"];
        runs.train("imagen/pictograms_64_sample", &larger, &[&EFFICIENT, &TEXT, enlarging], &[runs.set_bundle("stage_below", &base)], false);
        let manifest = BundleFolder::open(&runs.path(&larger).join("bundle")).unwrap().manifest().clone();
        assert_eq!(manifest.parts(), [Part::TextEncoder, Part::Generator, Part::SuperResolution(0)]);
        assert_eq!(manifest.summary(Part::TextEncoder).unwrap().1, encoder);
        let maker = runs.text_to_image(&larger);
        let drawn = |prompt: &str, negative: Option<&str>| {
            let diffusion = DiffusionOptions { negative: negative.map(str::to_string), ..DiffusionOptions::default() };
            let request = Request { count: 2, guidance_scale: Some(5.0), diffusion, ..Request::new(prompt) };
            maker.generate(&request, &mut |_| {}).unwrap()
        };
        let made = drawn("picture number 3", None);
        assert_eq!(made.pictures[0].picture.width, 16, "{encoder}");
        assert!(drawn(&"picture number 3 ".repeat(9), None).truncated.len() == 1, "{encoder}: more than is read");
        assert_eq!(drawn("picture number 3", Some("")), made, "{encoder}: the empty caption is what guidance leads away from");
        assert!(runs.evaluation(&larger).values().all(|value| value.is_finite()));
    }
    let longer = runs.try_train(
        "imagen/pictograms_32_sample",
        "longer",
        &[&EFFICIENT, &["conditions.text.token_count=17"]],
        &[runs.set_bundle("text_encoder", "bert")],
        false,
    );
    let error = longer.unwrap_err();
    assert!(error.contains("expected at most 16 text tokens, which its text encoder reads, found conditions.text.token_count = 17"), "{error}");
}

#[test]
fn latents_and_pixels_attend_to_the_states_of_bert() {
    let runs = Runs::new();
    save_bert(&runs);
    let text: &[&str] = &["data.image_size=8", "conditions.text={ token_count = 8, attend_to_padding = true }", "conditions.drop_rate=0.2"];
    runs.train("ddpm/pictograms_sample", "pixels", &[&UNET, text], &[runs.set_bundle("text_encoder", "bert")], false);
    let made = runs.text_to_image("pixels").generate(&Request::new("picture number 3"), &mut |_| {}).unwrap();
    assert_eq!(made.pictures[0].picture.width, 8);
}

/// Kept or made anew at every step, in every network, whether padding is looked at or not: the same weights to the bit.
#[test]
fn kept_states_change_nothing_of_a_training() {
    let runs = Runs::new();
    save_t5(&runs);
    runs.train("clip/pictograms_sample", "clip", &[&CLIP, &["model.image.head_count=2", "model.text.head_count=2"]], &[], false);
    let small: &[&str] = &["data.image_size=8", "conditions.drop_rate=0.4"];
    let padding = |attend: &str| format!("conditions.text={{ token_count = 8, attend_to_padding = {attend} }}");
    for (name, recipe, network, encoder, attend) in [
        ("unet", "ddpm/pictograms_sample", &UNET[..], "clip", "false"),
        ("unet-padding", "ddpm/pictograms_sample", &UNET, "clip", "true"),
        ("efficient", "imagen/pictograms_32_sample", &EFFICIENT, "t5", "false"),
        ("efficient-padding", "imagen/pictograms_32_sample", &EFFICIENT, "clip", "true"),
    ] {
        let (text, encoder) = (padding(attend), [runs.set_bundle("text_encoder", encoder)]);
        let [kept, again, fresh] = ["kept", "again", "fresh"].map(|run| format!("{name}-{run}"));
        runs.train(recipe, &kept, &[network, small, &[&text]], &encoder, false);
        let before = walk(&runs.path("text states"));
        assert!(!before.is_empty());
        runs.train(recipe, &again, &[network, small, &[&text]], &encoder, false);
        runs.train(recipe, &fresh, &[network, small, &[&text, "conditions.text_state_cache="]], &encoder, false);
        assert_eq!(walk(&runs.path("text states")), before, "{name}: made once");
        for weights in ["generator", "generator.average"] {
            let expected = runs.weights(&fresh, 6, weights);
            assert_eq!(runs.weights(&kept, 6, weights), expected, "{name}: {weights}");
            assert_eq!(runs.weights(&again, 6, weights), expected, "{name}: {weights}");
        }
        assert_eq!(runs.evaluation(&kept), runs.evaluation(&fresh), "{name}");
    }
    // Three examples do not pay for the states of nine captions.
    let (before, short) =
        (walk(&runs.path("text states")), ["conditions.text={ token_count = 7, attend_to_padding = true }", "train.steps=3", "train.batch_size=1"]);
    runs.train("ddpm/pictograms_sample", "short", &[&UNET, small, &short], &[runs.set_bundle("text_encoder", "clip")], false);
    assert_eq!(walk(&runs.path("text states")), before);
}
