//! Diffusion systems, small, on eight pictures: each trains, resumes exactly, and lands in a bundle that draws; small batches accumulate to the large one.

mod small_runs;

use small_runs::{AUTOENCODER, CLIP, EFFICIENT, Runs, TEXT, UNET, walk};
use smalti_data::Picture;
use smalti_pipeline::manifest::GeneratorModel;
use smalti_pipeline::text_to_image::Request;
use smalti_pipeline::{BundleFolder, Part};

#[test]
fn classes_in_pixels_train_resume_exactly_and_draw() {
    let runs = Runs::new();
    let small: &[&str] = &["data.image_size=8", "train.steps=6", "train.checkpoint_interval=3"];
    runs.train_and_resume("ddpm/pictograms_styles_sample", "whole", &[&UNET, small], &[], &["generator"]);
    let measures = runs.evaluation("whole");
    assert!(measures.keys().any(|name| name.starts_with("loss without condition")), "{measures:?}");
    let maker = runs.text_to_image("whole");
    let made = maker.generate(&Request { count: 2, ..Request::new("Square") }, &mut |_| {}).unwrap();
    assert_eq!(made.pictures.iter().map(|made| made.picture.width).collect::<Vec<_>>(), [8, 8]);
    let error = maker.generate(&Request::new("oval"), &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("one of the classes round, square") && error.contains("oval"), "{error}");
}

#[test]
fn small_batches_accumulated_equal_the_large_one() {
    let runs = Runs::new();
    let plain: &[&str] = &["data.image_size=8", "train.steps=2", "optimizer.epsilon=1e-3", "schedule.warm_up_steps=0"];
    runs.train("ddpm/pictograms_sample", "large", &[&UNET, plain, &["train.batch_size=4"]], &[], false);
    runs.train("ddpm/pictograms_sample", "small", &[&UNET, plain, &["train.batch_size=1", "train.accumulation=4"]], &[], false);
    let [small, large] = ["small", "large"].map(|run| runs.weights(run, 2, "generator"));
    for (name, large) in &large {
        for (a, b) in small[name].values.iter().zip(&large.values) {
            assert!((a - b).abs() < 2e-4, "{name}: {a} and {b}");
        }
    }
}

#[test]
fn a_variance_can_be_learned() {
    let runs = Runs::new();
    let learned: &[&str] = &["data.image_size=8", "loss.variance=learned", "loss.parameterization=noise"];
    runs.train("ddpm/pictograms_sample", "learned", &[&UNET, learned], &[], false);
    assert!(runs.evaluation("learned").values().all(|value| value.is_finite()));
    runs.text_to_image("learned").generate(&Request::new(""), &mut |_| {}).unwrap();
}

#[test]
fn latent_diffusion_draws_from_a_caption() {
    let runs = Runs::new();
    runs.train_and_resume("autoencoder_kl/pictograms_sample", "autoencoder", &[&AUTOENCODER], &[], &["autoencoder_kl"]);
    runs.train("clip/pictograms_sample", "clip", &[&CLIP, &["model.image.head_count=2", "model.text.head_count=2"]], &[], false);
    let bundles = [runs.set_bundle("image_tokenizer", "autoencoder"), runs.set_bundle("text_encoder", "clip"), runs.set_bundle("contrastive", "clip")];
    let small: &[&str] = &["data.image_size=16"];
    runs.train_and_resume("latent_diffusion/pictograms_sample", "latent", &[&UNET, &TEXT, small], &bundles, &["generator"]);
    let manifest = BundleFolder::open(&runs.path("latent/bundle")).unwrap().manifest().clone();
    assert_eq!(manifest.parts(), [Part::ImageTokenizer, Part::TextEncoder, Part::Generator, Part::Contrastive]);
    let scale = manifest.image_tokenizer.as_ref().unwrap().latent_scale.unwrap();
    assert!(scale.is_finite() && scale > 0.0 && scale != 1.0, "measured on data: {scale}");
    let Some(GeneratorModel::Diffusion(generator)) = manifest.generator.map(|entry| entry.model) else { panic!("a diffusion network") };
    assert_eq!(generator.latent_scale, Some(scale), "what the generator was trained on");
    let made = runs.text_to_image("latent").generate(&Request { count: 3, keep: Some(1), ..Request::new("picture number 3") }, &mut |_| {}).unwrap();
    assert_eq!((made.pictures.len(), made.pictures[0].picture.width), (1, 16));
    // The second time, latents are read from the cache.
    let parts = || walk(&runs.path("cache"));
    let before = parts();
    assert!(!before.is_empty());
    runs.train("latent_diffusion/pictograms_sample", "again", &[&UNET, &TEXT, small], &bundles, false);
    assert_eq!(parts(), before);
    assert_eq!(runs.weights("again", 6, "generator"), runs.weights("latent", 6, "generator"));
}

#[test]
fn a_cascade_enlarges_what_the_stage_below_made() {
    let runs = Runs::new();
    runs.train("clip/pictograms_sample", "clip", &[&CLIP, &["model.image.head_count=2", "model.text.head_count=2"]], &[], false);
    let bundles = [runs.set_bundle("text_encoder", "clip"), runs.set_bundle("contrastive", "clip")];
    runs.train_and_resume("imagen/pictograms_32_sample", "base", &[&EFFICIENT, &TEXT, &["data.image_size=8"]], &bundles, &["generator"]);
    let below = [runs.set_bundle("stage_below", "base")];
    let larger: &[&str] = &["data.image_size=16", "conditions.low_resolution.image_size=8"];
    runs.train_and_resume("imagen/pictograms_64_sample", "larger", &[&EFFICIENT, &TEXT, larger], &below, &["generator"]);
    let manifest = BundleFolder::open(&runs.path("larger/bundle")).unwrap().manifest().clone();
    assert_eq!(manifest.parts(), [Part::TextEncoder, Part::Generator, Part::SuperResolution(0), Part::Contrastive]);
    let maker = runs.text_to_image("larger");
    let request = |count, batch_size| Request { count, batch_size, ..Request::new("picture number 3") };
    let made = maker.generate(&request(3, 3), &mut |_| {}).unwrap();
    assert_eq!(made.pictures[0].picture.width, 16);
    assert_eq!(maker.generate(&request(3, 2), &mut |_| {}).unwrap(), made, "whatever the batch");

    let wrong: &[&str] = &["data.image_size=16", "conditions.low_resolution.image_size=4"];
    let error = runs.try_train("imagen/pictograms_64_sample", "wrong", &[&EFFICIENT, &TEXT, wrong], &below, false).unwrap_err();
    assert!(error.contains("expected pictures of 4 pixels") && error.contains("found 8"), "{error}");
}

/// Whatever the process and whatever the network predicts, one that has seen one picture only draws that picture: training and sampling mean the same.
#[test]
fn a_network_that_knows_one_picture_draws_it() {
    let runs = Runs::new();
    let mut picture = Picture::filled(8, 8, [230, 60, 40]);
    picture.rgb.chunks_exact_mut(3).skip(24).take(24).for_each(|pixel| pixel.copy_from_slice(&[30, 120, 220]));
    std::fs::create_dir_all(runs.path("one")).unwrap();
    picture.write_png(&runs.path("one/picture.png"), &[]).unwrap();
    let data = format!("data.path=\"{}\"", runs.path("one").display());
    let learn: &[&str] = &[
        "data.image_size=8",
        "train.steps=150",
        "train.batch_size=8",
        "train.evaluate_interval=150",
        "train.sample_interval=150",
        "train.checkpoint_interval=150",
        "train.ema_decay=0.9",
        "optimizer.learning_rate=4e-3",
        "schedule.warm_up_steps=10",
        "samples.steps=20",
        "samples.sampler={ ddim = { eta = 0.0 } }",
    ];
    let flow = "process={ flow = { train_steps = 1000, shift = 1.0 } }";
    let edm = "process={ variance_exploding = { sigma_min = 0.002, sigma_max = 80.0, rho = 7.0, sigma_data = 0.5 } }";
    for (name, process, parameterization) in [
        // (Noise prediction learns the same but slower, as an error of it counts a hundredfold at the first step.)
        ("clean", None, "clean"),
        ("velocity", None, "velocity"),
        ("flow", Some(flow), "flow"),
        ("edm", Some(edm), "{ edm = { sigma_data = 0.5 } }"),
    ] {
        let parameterization = format!("loss.parameterization={parameterization}");
        let sets: Vec<&str> = process.into_iter().chain([parameterization.as_str()]).collect();
        runs.train("ddpm/pictograms_sample", name, &[&UNET, learn, &sets], std::slice::from_ref(&data), false);
        let made = runs.text_to_image(name).generate(&Request { count: 4, ..Request::new("") }, &mut |_| {}).unwrap();
        for made in made.pictures {
            let (drawn, real) = (made.picture.to_f32(), picture.to_f32());
            let difference = drawn.iter().zip(&real).map(|(a, b)| (a - b).abs()).sum::<f32>() / real.len() as f32;
            assert!(difference < 0.4, "{name}: mean difference {difference} of a range of 2; noise differs by about 0.9");
        }
    }
}

#[test]
fn recipes_that_cannot_be_are_named() {
    let runs = Runs::new();
    for (recipe, set, expected) in [
        ("ddpm/pictograms_sample", "loss.variance=learnt", "unknown variant `learnt`"),
        ("ddpm/pictograms_sample", "samples.steps=0", "`samples.steps`: expected at least 1, found 0"),
        ("ddpm/pictograms_sample", "samples.steps=1001", "`samples.steps`: expected at most the 1000 trained steps, found 1001"),
        ("ddpm/pictograms_sample", "model.unet.group_count=7", "`model.unet.group_count`"),
        ("ddpm/pictograms_sample", "process.variance_preserving.train_steps=1", "train_steps: expected at least 2, found 1"),
        ("ddpm/pictograms_styles_sample", "conditions.class_field=colour", "the field `colour`"),
        ("ddpm/pictograms_styles_sample", "conditions.drop_rate=2.0", "`conditions.drop_rate`"),
        ("latent_diffusion/pictograms_sample", "samples.threshold=static", "`samples.threshold`: expected none"),
        ("imagen/pictograms_64_sample", "conditions.low_resolution.image_size=64", "`low_resolution.image_size`: expected 1 to 63"),
        ("imagen/pictograms_64_sample", "text_encoder=x", "`text_encoder`: expected none"),
    ] {
        let error = runs.try_train(recipe, "refused", &[&[set]], &[], false).expect_err(set);
        assert!(error.contains(expected), "{set}: expected {expected:?} in {error:?}");
    }
}
