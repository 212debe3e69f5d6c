//! The noisy classifier, small: it trains, resumes exactly, accumulates, and its bundle leads diffusion networks to a class.

mod small_runs;

use small_runs::{AUTOENCODER, CLIP, Runs, TEXT, UNET, copy_folder};
use smalti_data::Picture;
use smalti_generation::diffusion::Sampler;
use smalti_pipeline::text_to_image::{ClassifierGuidance, DiffusionOptions, Request, TextToImage};
use smalti_pipeline::{Bundle, BundleFolder, Part};

const RECIPE: &str = "noisy_classifier/pictograms_styles_sample";

/// Half a U-Net of two levels.
const CLASSIFIER: [&str; 5] =
    ["model.level_channels=[8, 16]", "model.residual_block_count=1", "model.attention_levels=[1]", "model.head_channels=8", "model.group_count=4"];

const SMALL: [&str; 1] = ["data.image_size=8"];

#[test]
fn trains_resumes_exactly_and_tells_its_accuracy() {
    let runs = Runs::new();
    let often: &[&str] = &["train.steps=6", "train.checkpoint_interval=3"];
    runs.train(RECIPE, "whole", &[&CLASSIFIER, &SMALL, often], &[], false);
    std::fs::create_dir(runs.path("resumed")).unwrap();
    for file in ["recipe.toml", "log.jsonl"] {
        std::fs::copy(runs.path("whole").join(file), runs.path("resumed").join(file)).unwrap();
    }
    copy_folder(&runs.path("whole/checkpoints/step-00000003"), &runs.path("resumed/checkpoints/step-00000003"));
    runs.train(RECIPE, "resumed", &[&CLASSIFIER, &SMALL, often], &[], true);
    for name in ["classifier", "classifier.average"] {
        assert_eq!(runs.weights("resumed", 6, name), runs.weights("whole", 6, name), "{name}");
    }
    let measures = runs.evaluation("whole");
    for share in ["0.00", "0.25", "0.50", "0.75", "1.00"] {
        let accuracy = measures[&format!("accuracy at {share} of the noise (training pictures)")];
        assert!((0.0..=1.0).contains(&accuracy), "{measures:?}");
    }
    assert!(measures["cross-entropy (training pictures)"] > 0.1 && measures.contains_key("accuracy (training pictures)"), "{measures:?}");
    assert!(runs.path("whole/samples/step-00000006.png").exists());
    let bundle = Bundle::load(&runs.path("whole/bundle"), &burn::tensor::Device::flex()).unwrap();
    let part = bundle.classifier.unwrap();
    assert_eq!(part.config.classes, ["round", "square"]);
    assert!(part.provenance.steps == Some(6) && part.provenance.recipe.unwrap().contains("system = \"noisy_classifier\""));
    assert_eq!(BundleFolder::open(&runs.path("whole/bundle")).unwrap().manifest().parts(), [Part::Classifier]);
}

#[test]
fn small_batches_accumulated_equal_the_large_one() {
    let runs = Runs::new();
    let plain: &[&str] = &["train.steps=2", "optimizer.epsilon=1e-3", "schedule.warm_up_steps=0"];
    runs.train(RECIPE, "large", &[&CLASSIFIER, &SMALL, plain, &["train.batch_size=4"]], &[], false);
    runs.train(RECIPE, "small", &[&CLASSIFIER, &SMALL, plain, &["train.batch_size=1", "train.accumulation=4"]], &[], false);
    let [small, large] = ["small", "large"].map(|run| runs.weights(run, 2, "classifier"));
    for (name, large) in &large {
        for (a, b) in small[name].values.iter().zip(&large.values) {
            assert!((a - b).abs() < 2e-4, "{name}: {a} and {b}");
        }
    }
}

/// Red and blue squares, four of each.
fn coloured_pictures(runs: &Runs) -> String {
    let folder = runs.path("colours");
    std::fs::create_dir_all(&folder).unwrap();
    let mut metadata = String::new();
    for index in 0..8_u8 {
        let (name, colour) = if index % 2 == 0 { ("red", [225, 60 + 6 * index, 40]) } else { ("blue", [40, 60 + 6 * index, 225]) };
        Picture::filled(8, 8, colour).write_png(&folder.join(format!("{index}.png")), &[]).unwrap();
        metadata += &format!("{{\"file_name\": \"{index}.png\", \"style\": \"{name}\"}}\n");
    }
    std::fs::write(folder.join("metadata.jsonl"), metadata).unwrap();
    format!("data.path=\"{}\"", folder.display())
}

/// How much more red than blue is in the pictures of a request, in [-1, 1].
fn redness(maker: &TextToImage, prompt: &str, sampler: Sampler, guidance: Option<ClassifierGuidance>) -> f64 {
    let diffusion = DiffusionOptions { sampler: Some(sampler), classifier: guidance, ..DiffusionOptions::default() };
    let request = Request { count: 12, seed: 3, diffusion, guidance_scale: Some(1.0), ..Request::new(prompt) };
    let pictures = maker.generate(&request, &mut |_| {}).unwrap().pictures;
    let pixels = pictures.iter().flat_map(|made| made.picture.rgb.chunks_exact(3));
    let (sum, count) = pixels.fold((0.0, 0.0), |(sum, count), rgb| (sum + f64::from(rgb[0]) - f64::from(rgb[2]), count + 1.0));
    sum / count / 255.0
}

fn towards(class: &str, scale: f64) -> Option<ClassifierGuidance> {
    Some(ClassifierGuidance { scale, class: Some(class.to_string()) })
}

/// Networks that know red and blue squares: a classifier leads them to the one or the other. With the wrong sign it would lead to the other.
#[test]
fn guidance_leads_a_trained_network_to_the_class() {
    let runs = Runs::new();
    let data = coloured_pictures(&runs);
    let learn: &[&str] = &[
        "train.steps=320",
        "train.batch_size=8",
        "train.evaluate_interval=320",
        "train.sample_interval=320",
        "train.checkpoint_interval=320",
        "train.ema_decay=0.9",
        "optimizer.learning_rate=4e-3",
        "schedule.warm_up_steps=10",
    ];
    let walk: &[&str] = &["samples.steps=20", "samples.sampler={ ddim = { eta = 0.0 } }"];
    let edm = "process={ variance_exploding = { sigma_min = 0.002, sigma_max = 80.0, rho = 7.0, sigma_data = 0.5 } }";
    let data = std::slice::from_ref(&data);
    for (name, process, parameterization, samplers) in [
        ("preserving", None, "velocity", vec![Sampler::Ddpm, Sampler::DpmSolverPlusPlus2M]),
        ("exploding", Some(edm), "{ edm = { sigma_data = 0.5 } }", vec![Sampler::Heun]),
    ] {
        let process: Vec<&str> = process.into_iter().collect();
        let parameterization = format!("loss.parameterization={parameterization}");
        let [generator, classifier] = [format!("{name}-generator"), format!("{name}-classifier")];
        runs.train(RECIPE, &classifier, &[&CLASSIFIER, &SMALL, learn, &process], data, false);
        let measures = runs.evaluation(&classifier);
        let [little, noise] = ["0.25", "1.00"].map(|share| measures[&format!("accuracy at {share} of the noise (training pictures)")]);
        assert!(little == 1.0 && noise < 1.0, "{name}: {measures:?}");
        runs.train("ddpm/pictograms_sample", &generator, &[&UNET, &SMALL, learn, walk, &process, &[&parameterization]], data, false);
        let [generator, classifier] = [generator, classifier].map(|run| BundleFolder::open(&runs.path(&run).join("bundle")).unwrap());
        let maker = TextToImage::load(&generator.with_classifier_of(classifier).unwrap(), &burn::tensor::Device::flex()).unwrap();
        for sampler in samplers {
            let [red, free, blue] = [towards("red", 5.0), None, towards("blue", 5.0)].map(|guidance| redness(&maker, "", sampler, guidance));
            let away = redness(&maker, "", sampler, towards("blue", -5.0));
            let figures = format!("{name}, {sampler:?}: red {red}, free {free}, blue {blue}, away from blue {away}");
            assert!(red > blue + 0.3 && away > blue + 0.3, "{figures}");
            // Unled, some are red and some blue.
            assert!(red > free - 0.05 && free > blue - 0.05, "{figures}");
        }
    }
}

#[test]
fn a_diffusion_recipe_takes_a_classifier_along() {
    let runs = Runs::new();
    runs.train(RECIPE, "pixels", &[&CLASSIFIER, &SMALL], &[], false);
    let classifier = [runs.set_bundle("classifier", "pixels")];
    runs.train("ddpm/pictograms_styles_sample", "styles", &[&UNET, &SMALL], &classifier, false);
    let manifest = BundleFolder::open(&runs.path("styles/bundle")).unwrap().manifest().clone();
    assert_eq!(manifest.parts(), [Part::Generator, Part::Classifier]);
    let guidance = |scale| DiffusionOptions { classifier: Some(ClassifierGuidance { scale, class: None }), ..DiffusionOptions::default() };
    let maker = runs.text_to_image("styles");
    let drawn = |scale| maker.generate(&Request { diffusion: guidance(scale), ..Request::new("square") }, &mut |_| {}).unwrap();
    assert_ne!(drawn(20.0), drawn(0.0));

    let error = runs.try_train("ddpm/pictograms_styles_sample", "larger", &[&UNET, &["data.image_size=16"]], &classifier, false).unwrap_err();
    assert!(error.contains("`classifier`: `image_size`: expected 16, as the generator draws, found 8"), "{error}");
    assert!(!runs.path("larger").exists(), "before anything is trained");
    let none = [runs.set_bundle("classifier", "styles-none")];
    let error = runs.try_train("ddpm/pictograms_styles_sample", "none", &[&UNET, &SMALL], &none, false).unwrap_err();
    assert!(error.contains("expected a bundle"), "{error}");
}

#[test]
fn latents_are_classified_as_they_are_drawn() {
    let runs = Runs::new();
    runs.train("autoencoder_kl/pictograms_sample", "autoencoder", &[&AUTOENCODER], &[], false);
    runs.train("autoencoder_kl/pictograms_sample", "other", &[&AUTOENCODER, &["train.seed=2"]], &[], false);
    runs.train("clip/pictograms_sample", "clip", &[&CLIP, &["model.image.head_count=2", "model.text.head_count=2"]], &[], false);
    let small: &[&str] = &["data.image_size=16"];
    let tokenizer = [runs.set_bundle("image_tokenizer", "autoencoder")];
    runs.train(RECIPE, "latents", &[&CLASSIFIER, small], &tokenizer, false);
    let network = [runs.set_bundle("text_encoder", "clip"), runs.set_bundle("contrastive", "clip"), runs.set_bundle("classifier", "latents")];
    runs.train("latent_diffusion/pictograms_sample", "drawn", &[&UNET, &TEXT, small], &[&network[..], &tokenizer].concat(), false);
    let maker = runs.text_to_image("drawn");
    let diffusion = DiffusionOptions { classifier: towards("square", 2.0), ..DiffusionOptions::default() };
    let made = maker.generate(&Request { count: 2, diffusion, ..Request::new("picture number 3") }, &mut |_| {}).unwrap();
    assert_eq!(made.pictures[0].picture.width, 16);

    let other = [runs.set_bundle("image_tokenizer", "other")];
    let error = runs.try_train("latent_diffusion/pictograms_sample", "wrong", &[&UNET, &TEXT, small], &[&network[..], &other].concat(), false).unwrap_err();
    assert!(error.contains("`latent_scale`: expected") && error.contains("another scale is another image tokenizer"), "{error}");
}

#[test]
fn recipes_that_cannot_be_are_named() {
    let runs = Runs::new();
    for (set, expected) in [
        ("class_field=colour", "expected pictures whose description has the field `colour` (class_field), found none"),
        ("class_field=\" \"", "`class_field`: expected the name of a field"),
        ("level_normal=[0.0, 1.0]", "`level_normal`: expected a flow or EDM process"),
        ("model.group_count=7", "`model.group_count`"),
        ("model.pooling=max", "unknown variant `max`"),
        ("data.image_size=30", "`data.image_size`: expected a canvas whose side is a multiple of 4, found 30"),
        ("process.variance_preserving.train_steps=1", "train_steps: expected at least 2, found 1"),
        ("class_feld=style", "did you mean `class_field`?"),
    ] {
        let error = runs.try_train(RECIPE, "refused", &[&[set]], &[], false).expect_err(set);
        assert!(error.contains(expected), "{set}: expected {expected:?} in {error:?}");
    }
    let metadata = runs.path("pictures/metadata.jsonl");
    let text = std::fs::read_to_string(&metadata).unwrap();
    std::fs::write(&metadata, text.replace("square", "round")).unwrap();
    let error = runs.try_train(RECIPE, "refused", &[&CLASSIFIER, &SMALL], &[], false).unwrap_err();
    assert!(error.contains("expected at least two classes in the field `style` (class_field), found `round` alone"), "{error}");

    // Pictures without a class are passed over.
    std::fs::write(&metadata, text.replacen("\"style\": \"square\"", "\"kind\": \"unknown\"", 2)).unwrap();
    runs.train(RECIPE, "some", &[&CLASSIFIER, &SMALL], &[], false);
    assert!(runs.evaluation("some").values().all(|value| value.is_finite()));
}
