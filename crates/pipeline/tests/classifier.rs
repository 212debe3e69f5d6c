//! Guidance by a classifier, with tiny untrained networks: where it applies, whose classifier it is, the same bytes whatever stands beside a picture, parts and
//! requests that do not fit. That it leads where it should is proved on trained networks, in `crates/train/tests/noisy_classifier.rs`.

mod tiny_bundle;
mod tiny_diffusion;

use burn::tensor::Device;
use smalti_data::Picture;
use smalti_generation::diffusion::guidance::Interval;
use smalti_generation::diffusion::{Process, Sampler, flow};
use smalti_nn::weights::safetensors::Storage;
use smalti_pipeline::manifest::{Canvas, ClassifierConfig};
use smalti_pipeline::parts::Weights;
use smalti_pipeline::text_to_image::{self, ClassifierGuidance, DiffusionOptions, MadePicture, Parts, Request, TextToImage};
use smalti_pipeline::{Bundle, BundleFolder, ClassifierPart, Part, PipelineError};
use std::path::Path;
use tiny_bundle::tiny_bundle;
use tiny_diffusion::{classifier, latent_bundle, pixel_bundle};

const SHAPES: [&str; 3] = ["round", "Square", "star"];

fn try_load(bundle: Bundle) -> Result<TextToImage, PipelineError> {
    let Bundle { image_tokenizer, text_encoder, generator, super_resolution, classifier, contrastive, .. } = bundle;
    TextToImage::new(Parts { image_tokenizer, text_encoder, generator: generator.unwrap(), super_resolution, classifier, contrastive })
}

/// Every kind of generator with a classifier that fits it, and a prompt for it.
fn guided_bundles() -> [(Bundle, &'static str); 3] {
    let with = |bundle: Bundle, canvas| Bundle { classifier: Some(classifier(canvas, &SHAPES)), ..bundle };
    [
        (with(pixel_bundle(&[]), Canvas::Pixels), ""),
        (with(pixel_bundle(&["red", "blue"]), Canvas::Pixels), "red"),
        (with(latent_bundle(), Canvas::Latents), "a red heart"),
    ]
}

fn towards(class: &str, scale: f64) -> DiffusionOptions {
    DiffusionOptions { classifier: Some(ClassifierGuidance { scale, class: Some(class.to_string()) }), ..DiffusionOptions::default() }
}

fn request(prompt: &str, diffusion: DiffusionOptions) -> Request {
    Request { seed: 7, diffusion, ..Request::new(prompt) }
}

fn draw(system: &TextToImage, request: &Request) -> Vec<MadePicture> {
    system.generate(request, &mut |_| {}).unwrap().pictures
}

fn first(system: &TextToImage, request: &Request) -> Picture {
    draw(system, request).remove(0).picture
}

#[test]
fn pictures_do_not_depend_on_count_batch_place_or_threads() {
    for (bundle, prompt) in guided_bundles() {
        let system = try_load(bundle).unwrap();
        let request = |count, batch_size| Request { count, batch_size, ..request(prompt, towards("star", 20.0)) };
        let six = draw(&system, &request(6, 6));
        for (count, batch_size) in [(1, 1), (6, 1), (6, 4), (3, 2)] {
            assert_eq!(draw(&system, &request(count, batch_size)), six[..count], "{prompt}: count {count}, batch size {batch_size}");
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| draw(&system, &request(6, 6))), six, "{prompt}: {threads} threads");
        }
    }
}

#[test]
fn every_sampler_is_led_and_a_scale_of_nothing_leads_nowhere() {
    let samplers = [
        Sampler::Ddpm,
        Sampler::Ddim { eta: 0.5 },
        Sampler::Euler,
        Sampler::EulerAncestral,
        Sampler::Heun,
        Sampler::DpmSolverPlusPlus2M,
        Sampler::UniPc,
        Sampler::LatentConsistency { distilled_steps: 50 },
    ];
    for (bundle, prompt) in guided_bundles() {
        let system = try_load(bundle).unwrap();
        for sampler in samplers {
            let drawn = |options: DiffusionOptions| first(&system, &request(prompt, DiffusionOptions { sampler: Some(sampler), ..options }));
            let unled = drawn(DiffusionOptions::default());
            assert_eq!(drawn(towards("star", 0.0)), unled, "{prompt}, {sampler:?}");
            let [star, away, round] = [("star", 50.0), ("star", -50.0), ("round", 50.0)].map(|(class, scale)| drawn(towards(class, scale)));
            assert!(star != unled && star != away && star != round, "{prompt}, {sampler:?}");
            let nowhere = Some(Interval { low: 1e9, high: 2e9 });
            assert_eq!(drawn(DiffusionOptions { guidance_interval: nowhere, guidance_rescale: 0.0, ..towards("star", 50.0) }), {
                drawn(DiffusionOptions { guidance_interval: nowhere, ..DiffusionOptions::default() })
            });
        }
    }
}

/// The prompt names the class, unless the generator reads it as a caption; upper and lower case are one.
#[test]
fn the_class_is_the_prompt_or_named_beside_it() {
    let unnamed = || DiffusionOptions { classifier: Some(ClassifierGuidance { scale: 50.0, class: None }), ..DiffusionOptions::default() };
    let free = try_load(Bundle { classifier: Some(classifier(Canvas::Pixels, &SHAPES)), ..pixel_bundle(&[]) }).unwrap();
    assert_eq!(first(&free, &request("square", unnamed())), first(&free, &request("", towards("Square", 50.0))));
    let classes = try_load(Bundle { classifier: Some(classifier(Canvas::Pixels, &["blue", "red"])), ..pixel_bundle(&["red", "blue"]) }).unwrap();
    assert_eq!(first(&classes, &request("red", unnamed())), first(&classes, &request("red", towards("RED", 50.0))));
    assert_ne!(first(&classes, &request("red", unnamed())), first(&classes, &request("red", towards("blue", 50.0))), "by name, not by number");

    let wrong = |system: &TextToImage, request: &Request, expected: &str| {
        let error = system.generate(request, &mut |_| {}).unwrap_err();
        assert!(error.is_wrong_request() && error.to_string().contains(expected), "expected {expected:?}: {error}");
    };
    wrong(&free, &request("oval", unnamed()), "prompt: expected one of the classifier's classes round, Square, star, found \"oval\"");
    wrong(&free, &request("", unnamed()), "prompt: expected one of the classifier's classes round, Square, star, found none");
    wrong(&free, &request("star", towards("star", 1.0)), "prompt: expected nothing: this bundle's generator takes no condition");
    wrong(&free, &request("", towards("oval", 1.0)), "classifier_class: expected one of the classifier's classes round, Square, star, found \"oval\"");
    for scale in [f64::NAN, f64::INFINITY, 1001.0] {
        wrong(&free, &request("", towards("star", scale)), "classifier_scale: expected a number from -1000 to 1000");
    }
    let captions = try_load(Bundle { classifier: Some(classifier(Canvas::Latents, &SHAPES)), ..latent_bundle() }).unwrap();
    wrong(&captions, &request("a star", unnamed()), "classifier_class: expected one of the classifier's classes round, Square, star, found none");
    wrong(
        &try_load(pixel_bundle(&[])).unwrap(),
        &request("", towards("star", 1.0)),
        "classifier_scale: expected a bundle with a `classifier` part, found none",
    );
    let tokens = try_load(tiny_bundle()).unwrap();
    wrong(&tokens, &request("a fish", towards("star", 1.0)), "classifier_scale: expected nothing: this bundle draws image tokens");
}

fn saved(bundle: &Bundle, path: &Path) -> BundleFolder {
    bundle.save(path, Storage::F32).unwrap();
    BundleFolder::open(path).unwrap()
}

#[test]
fn a_classifier_lies_in_a_bundle_of_its_own_or_in_that_which_draws() {
    let folder = tempfile::tempdir().unwrap();
    let own = Bundle { classifier: Some(classifier(Canvas::Pixels, &SHAPES)), ..pixel_bundle(&["red", "blue"]) };
    let alone = Bundle { name: "alone".into(), classifier: own.classifier.clone(), ..Bundle::default() };
    let own = saved(&own, &folder.path().join("own"));
    let alone = saved(&alone, &folder.path().join("alone"));
    let plain = saved(&pixel_bundle(&["red", "blue"]), &folder.path().join("plain"));
    assert_eq!(alone.manifest().parts(), [Part::Classifier]);
    let loaded = Bundle::load(alone.path(), &Device::flex()).unwrap();
    assert_eq!(loaded.classifier.as_ref().unwrap().network.tensors(), classifier(Canvas::Pixels, &SHAPES).network.tensors());
    assert_eq!(saved(&loaded, &folder.path().join("again")).manifest().id(), alone.manifest().id(), "saved again, the same");

    let lent = plain.clone().with_classifier_of(alone.clone()).unwrap();
    assert_eq!((lent.manifest().id(), lent.classifier_bundle().manifest().id()), (plain.manifest().id(), alone.manifest().id()));
    let request = request("red", towards("star", 50.0));
    let [of_own, of_lent] = [&own, &lent].map(|bundle| {
        assert_eq!(text_to_image::parts(bundle, &request).unwrap(), [Part::Generator, Part::Classifier]);
        assert!(bundle.summary(Part::Classifier).is_some());
        first(&TextToImage::load(bundle, &Device::flex()).unwrap(), &request)
    });
    assert_eq!(of_own, of_lent);
    assert_eq!(text_to_image::parts(&own, &Request::new("red")).unwrap(), [Part::Generator], "who does not ask for it does not need it");
    let error = text_to_image::parts(&plain, &request).unwrap_err().to_string();
    assert!(error.contains("classifier_scale: expected a bundle with a `classifier` part, found none; hint: --classifier DIR"), "{error}");

    let error = own.with_classifier_of(plain.clone()).unwrap_err().to_string();
    assert!(error.contains("plain: this bundle has no `classifier`, which is needed to lead pictures to a class; hint: it has `generator`"), "{error}");
    let file = alone.path().join("classifier.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let error = TextToImage::load(&lent, &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("classifier.safetensors: expected checksum"), "{error}");
}

#[test]
fn classifiers_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let check = |bundle: Bundle, part: ClassifierPart, expected: &str| {
        let lender = folder.path().join("lender");
        let alone = Bundle { name: "alone".into(), classifier: Some(part.clone()), ..Bundle::default() }.save(&lender, Storage::F32);
        let plain = saved(&bundle, &folder.path().join("plain"));
        let lent = alone.and_then(|_| plain.with_classifier_of(BundleFolder::open(&lender)?));
        let own = Bundle { classifier: Some(part), ..bundle };
        let errors = [lent.map(drop).unwrap_err(), own.save(&folder.path().join("own"), Storage::F32).unwrap_err(), try_load(own).unwrap_err()];
        for error in errors {
            assert!(error.to_string().contains(expected), "expected {expected:?}: {error}");
        }
        assert!(!folder.path().join("own").exists(), "nothing is half written");
    };
    let edited = |canvas, edit: &dyn Fn(&mut ClassifierConfig)| {
        let mut part = classifier(canvas, &SHAPES);
        edit(&mut part.config);
        part
    };
    let pixels = |edit: &dyn Fn(&mut ClassifierConfig), expected: &str| check(pixel_bundle(&[]), edited(Canvas::Pixels, edit), expected);
    check(pixel_bundle(&[]), classifier(Canvas::Latents, &SHAPES), "`classifier`: `canvas`: expected pixels, as the generator draws, found latents");
    check(latent_bundle(), classifier(Canvas::Pixels, &SHAPES), "`classifier`: `canvas`: expected latents, as the generator draws, found pixels");
    let process = Process::Flow(flow::Config { train_steps: 1000, shift: 1.0 });
    let expected = "`process`: expected that of the generator (1000 trained steps, cosine schedule), found rectified flow, shift 1";
    pixels(&|config| config.process = process.clone(), expected);
    pixels(&|config| drop(config.classes.pop()), "`classifier`: `classes`: expected 3 names, as the network has classes, found 2");
    pixels(&|config| config.classes[2] = "SQUARE".into(), "`classes`: expected names that differ by more than upper and lower case, found SQUARE");
    pixels(&|config| config.image_size = 16, "`network.pooling.attention.side`: expected 8, as a canvas of 16 is on the last level, found 4");
    pixels(&|config| config.image_size = 9, "`image_size`: expected a canvas whose side is a multiple of 2, found 9");
    pixels(&|config| config.latent_scale = Some(1.0), "`latent_scale`: expected a number just where latents are classified");
    let other = edited(Canvas::Latents, &|config| config.latent_scale = Some(0.7));
    check(latent_bundle(), other, "`latent_scale`: expected 0.5, as the image tokenizer has; another scale is another image tokenizer, found 0.7");
    check(tiny_bundle(), classifier(Canvas::Pixels, &SHAPES), "`classifier`: `model`: expected none: the generator draws image tokens");
}
