//! Diffusion bundles, tiny and untrained: the same bytes whatever stands beside a picture; guidance; pictures, masks and noise to start from; wrong requests
//! and parts that do not fit.

mod tiny_bundle;
mod tiny_diffusion;

use burn::tensor::{Device, Int, Tensor, TensorData};
use smalti_data::Picture;
use smalti_generation::diffusion::guidance::{Interval, ProjectionOptions};
use smalti_generation::diffusion::{Sampler, Threshold, sample};
use smalti_generation::random::{normal_pictures, picture_rng};
use smalti_models::generator::conditions::Conditions;
use smalti_nn::weights::safetensors::Storage;
use smalti_pipeline::manifest::{GeneratorModel, ImageTokenSampling, NetworkConfig, TextCondition};
use smalti_pipeline::parts::{Generator, Weights};
use smalti_pipeline::progress::{Progress, Stage};
use smalti_pipeline::reading::Text;
use smalti_pipeline::text_to_image::{
    self, DiffusionOptions, Estimate, ImageTokenOptions, InitialPicture, Made, MadePicture, Parts, Request, TextToImage, Watch,
};
use smalti_pipeline::{Bundle, BundleFolder, Part, PipelineError};
use std::convert::Infallible;
use std::fs;
use tiny_bundle::tiny_bundle;
use tiny_diffusion::{cascade_bundle, latent_bundle, pixel_bundle};

const CLASSES: [&str; 2] = ["red", "blue"];

fn try_load(bundle: Bundle) -> Result<TextToImage, PipelineError> {
    let Bundle { image_tokenizer, text_encoder, generator, super_resolution, classifier, contrastive, .. } = bundle;
    TextToImage::new(Parts { image_tokenizer, text_encoder, generator: generator.unwrap(), super_resolution, classifier, contrastive })
}

fn load(bundle: Bundle) -> TextToImage {
    try_load(bundle).unwrap()
}

fn pixels() -> TextToImage {
    load(pixel_bundle(&CLASSES))
}

fn request(prompt: &str, count: usize, batch_size: usize) -> Request {
    Request { count, batch_size, seed: 7, ..Request::new(prompt) }
}

fn with(prompt: &str, diffusion: DiffusionOptions) -> Request {
    Request { diffusion, ..request(prompt, 1, 1) }
}

fn draw(system: &TextToImage, request: &Request) -> Vec<MadePicture> {
    system.generate(request, &mut |_| {}).unwrap().pictures
}

fn first(system: &TextToImage, request: &Request) -> Picture {
    draw(system, request).remove(0).picture
}

/// A picture without two equal pixels side by side.
fn busy_picture(side: usize) -> Picture {
    Picture::new(side, side, (0..side * side * 3).map(|index| (index * 89 % 251) as u8).collect()).unwrap()
}

#[test]
fn pictures_do_not_depend_on_count_batch_place_or_threads() {
    for (system, prompt) in [(pixels(), "red"), (load(latent_bundle()), "a red heart")] {
        for sampler in [Sampler::Ddim { eta: 0.0 }, Sampler::Ddpm] {
            let request = |count, batch_size| {
                let diffusion = DiffusionOptions { sampler: Some(sampler), film_strip: 2, ..DiffusionOptions::default() };
                Request { diffusion, ..request(prompt, count, batch_size) }
            };
            let eight = draw(&system, &request(8, 8));
            assert!(eight.iter().enumerate().all(|(index, made)| made.index == index && made.image_tokens.is_empty() && made.score.is_none()));
            assert!(eight.windows(2).all(|pair| pair[0].picture != pair[1].picture), "pictures of one seed differ");
            for (count, batch_size) in [(1, 8), (8, 1), (8, 3), (5, 2)] {
                assert_eq!(draw(&system, &request(count, batch_size)), eight[..count], "{prompt}, {sampler:?}: count {count}, batch size {batch_size}");
            }
            for threads in [1, 2, 4] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                assert_eq!(pool.install(|| draw(&system, &request(8, 8))), eight, "{prompt}, {sampler:?}: {threads} threads");
            }
        }
    }
}

#[test]
fn prompts_that_share_batches_are_drawn_as_alone() {
    let ranked = load(Bundle { contrastive: tiny_bundle().contrastive, ..latent_bundle() });
    for (system, prompts) in
        [(pixels(), ["red", "", "blue"]), (load(latent_bundle()), ["a red heart", "a blue fish", "a tree"]), (ranked, ["a red heart", "a blue fish", "a tree"])]
    {
        let keep = system.ranks().then_some(1);
        let projection = Some(ProjectionOptions { parallel: 0.0, momentum: -0.5, norm: 2.5 });
        for diffusion in
            [DiffusionOptions::default(), DiffusionOptions { projection, film_strip: 2, sampler: Some(Sampler::Ddpm), ..DiffusionOptions::default() }]
        {
            // The last but one is of its own: another scale.
            let scales = [None, None, None, Some(3.0), None];
            let requests: Vec<Request> = (0..5)
                .map(|index| Request {
                    seed: 7 + index as u64,
                    keep,
                    guidance_scale: scales[index],
                    diffusion: diffusion.clone(),
                    ..request(prompts[index % 3], 2, 3)
                })
                .collect();
            let alone: Vec<_> = requests.iter().map(|request| system.generate(request, &mut |_| {}).unwrap()).collect();
            assert!(alone.windows(2).all(|pair| pair[0] != pair[1]));
            let mut reports: Vec<Progress> = Vec::new();
            assert_eq!(system.generate_all(&requests, &mut |progress| reports.push(progress)).unwrap(), alone, "{prompts:?}");
            let steps = reports.iter().filter(|report| report.stage == Stage::Steps);
            assert!(steps.clone().any(|report| report.done == report.total) && steps.clone().all(|report| report.done <= report.total), "{reports:?}");
        }
    }
    let (system, longer) = (pixels(), "red ".repeat(99));
    assert!(system.generate_all(&[request("red", 1, 4), request(&longer, 1, 4)], &mut |_| {}).is_err(), "what one refuses is refused");
    assert_eq!(system.generate_all(&[], &mut |_| {}).unwrap(), []);
}

/// The same walk, written down again around the network itself.
#[test]
fn guidance_of_one_is_the_network_told_the_class() {
    let Generator::Diffusion(model) = pixel_bundle(&CLASSES).generator.unwrap().model else { panic!("a diffusion network") };
    let (plan, device) = (model.config.plan(), Device::flex());
    let mut rngs = [picture_rng(7, 0)];
    let start = plan.start_from_noise(&normal_pictures(&mut rngs, 8 * 8 * 3));
    let denoise = |noisy: &[f32], level: &smalti_generation::diffusion::Level| {
        let noisy = Tensor::<4>::from_data(TensorData::new(noisy.to_vec(), [1, 8, 8, 3]), &device);
        let timesteps = Tensor::<1>::from_data([level.timestep as f32], &device);
        let output = model.network.forward(noisy, timesteps, Conditions::class(Tensor::<1, Int>::from_data([1], &device)));
        Ok::<_, Infallible>(output.into_data().iter::<f32>().collect::<Vec<_>>())
    };
    let values = sample(&plan, start, &mut rngs, None, denoise, |_| {}).unwrap();
    let made = first(&pixels(), &Request { guidance_scale: Some(1.0), ..request("blue", 1, 1) });
    assert_eq!(made, Picture::from_f32(8, 8, &values).unwrap());
}

#[test]
fn guidance_leads_away_from_the_null_prompt_or_the_negative_one() {
    let guided = |system: &TextToImage, prompt: &str, scale, negative: Option<&str>| {
        let diffusion = DiffusionOptions { negative: negative.map(str::to_string), ..DiffusionOptions::default() };
        first(system, &Request { guidance_scale: Some(scale), ..with(prompt, diffusion) })
    };
    let system = pixels();
    assert_eq!(guided(&system, "Red", 0.0, None), guided(&system, "", 1.0, None), "0 is no class, whose prompt is none");
    assert_eq!(guided(&system, "red", 2.0, None), first(&system, &request("red", 1, 1)), "the bundle's own scale");
    assert_ne!(guided(&system, "red", 1.0, None), guided(&system, "blue", 1.0, None));
    assert_ne!(guided(&system, "red", 1.0, None), guided(&system, "red", 5.0, None));

    let system = load(latent_bundle());
    let [heart, fish] = ["a red heart", "a blue fish"];
    assert_eq!(guided(&system, heart, 0.0, Some(fish)), guided(&system, fish, 1.0, None));
    assert_eq!(guided(&system, heart, 1.0, Some(fish)), guided(&system, heart, 1.0, None));
    assert_eq!(guided(&system, heart, 9.0, Some("")), guided(&system, heart, 9.0, None));
    assert_ne!(guided(&system, heart, 9.0, Some(fish)), guided(&system, heart, 9.0, None));
    assert_ne!(guided(&system, heart, 1.0, None), guided(&system, fish, 1.0, None));

    let rescaled = DiffusionOptions { guidance_rescale: 0.7, ..DiffusionOptions::default() };
    assert_ne!(first(&system, &Request { guidance_scale: Some(9.0), ..with(heart, rescaled) }), guided(&system, heart, 9.0, None));
    let nowhere = DiffusionOptions { guidance_interval: Some(Interval { low: 1e9, high: 2e9 }), ..DiffusionOptions::default() };
    assert_eq!(first(&system, &Request { guidance_scale: Some(9.0), ..with(heart, nowhere) }), guided(&system, heart, 1.0, None));
}

/// The negative prompt is read once for all requests, and each is told.
#[test]
fn texts_that_are_cut_are_named() {
    let system = load(latent_bundle());
    let long = "a red heart ".repeat(40);
    let negative = |words: &str| DiffusionOptions { negative: Some(words.to_string()), ..DiffusionOptions::default() };
    let cut = |requests: &[Request]| -> Vec<Vec<Text>> {
        let made = system.generate_all(requests, &mut |_| {}).unwrap();
        let of_encoder =
            |made: &Made| made.truncated.iter().filter(|truncation| truncation.reader == Part::TextEncoder).map(|truncation| truncation.text).collect();
        made.iter().map(of_encoder).collect()
    };
    assert_eq!(cut(&[with("a fish", negative("a leaf")), with(&long, negative("a leaf"))]), [vec![], vec![Text::Prompt]]);
    assert_eq!(cut(&[with("a fish", negative(&long)), with(&long, negative(&long))]), [vec![Text::Negative], vec![Text::Prompt, Text::Negative]]);
}

#[test]
fn projected_guidance_is_plain_guidance_with_its_parts_weighed() {
    let plain = ProjectionOptions { parallel: 1.0, momentum: 0.0, norm: f64::INFINITY };
    let paper = ProjectionOptions { parallel: 0.0, momentum: -0.5, norm: 2.5 };
    for (system, prompt) in [(pixels(), "red"), (load(latent_bundle()), "a red heart")] {
        let request = |projection, scale, count, batch_size| {
            let diffusion = DiffusionOptions { projection, ..DiffusionOptions::default() };
            Request { guidance_scale: Some(scale), diffusion, ..request(prompt, count, batch_size) }
        };
        let drawn = |projection, scale| first(&system, &request(projection, scale, 1, 1));
        let apart = |a: &Picture, b: &Picture| a.rgb.iter().zip(&b.rgb).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(apart(&drawn(Some(plain), 6.0), &drawn(None, 6.0)) <= 1, "{prompt}: nothing is projected, so only rounding differs");
        assert_eq!(drawn(Some(paper), 1.0), drawn(None, 1.0), "{prompt}: guidance is off");
        for options in
            [paper, ProjectionOptions { parallel: 0.0, ..plain }, ProjectionOptions { momentum: -0.5, ..plain }, ProjectionOptions { norm: 0.1, ..plain }]
        {
            assert_ne!(drawn(Some(options), 6.0), drawn(None, 6.0), "{prompt}: {options:?}");
        }
        let [together, apart] = [5, 2].map(|batch_size| draw(&system, &request(Some(paper), 6.0, 5, batch_size)));
        assert_eq!(together, apart, "{prompt}: each picture has a momentum of its own");
    }
}

#[test]
fn noise_takes_the_place_of_the_seed() {
    for (system, prompt, value_count) in [(pixels(), "red", 8 * 8 * 3), (load(latent_bundle()), "a red heart", 4 * 4 * 4)] {
        let seeded = draw(&system, &request(prompt, 3, 2));
        let noise = normal_pictures(&mut [0, 1, 2].map(|index| picture_rng(7, index)), value_count);
        let diffusion = DiffusionOptions { noise: Some(noise), ..DiffusionOptions::default() };
        assert_eq!(draw(&system, &Request { seed: 99, diffusion, ..request(prompt, 3, 2) }), seeded);
    }
}

#[test]
fn a_film_strip_ends_with_the_picture() {
    let made = draw(&pixels(), &with("red", DiffusionOptions { film_strip: 3, ..DiffusionOptions::default() })).remove(0);
    assert_eq!(made.film_strip.len(), 3);
    assert_eq!(made.film_strip[2], made.picture);
    assert_ne!(made.film_strip[0], made.picture);
    let plain = first(&pixels(), &request("red", 1, 1));
    assert_eq!(plain, made.picture, "looking on changes nothing");
}

#[test]
fn every_sampler_draws() {
    let system = pixels();
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
    let pictures: Vec<Picture> =
        samplers.map(|sampler| first(&system, &with("red", DiffusionOptions { sampler: Some(sampler), ..DiffusionOptions::default() }))).to_vec();
    for (index, picture) in pictures.iter().enumerate() {
        let alike = (0..index).filter(|&other| pictures[other] == *picture).map(|other| (samplers[other], samplers[index]));
        // Where variance is preserved, Euler to below the level and fresh noise up to it is DDPM's own step: same mean, same variance.
        let alike: Vec<_> = alike.filter(|pair| *pair != (Sampler::Ddpm, Sampler::EulerAncestral)).collect();
        assert!(alike.is_empty(), "no two walks end alike: {alike:?}");
    }
}

#[test]
fn strength_says_how_much_of_a_picture_is_left() {
    let system = pixels();
    let picture = busy_picture(8);
    let from = |strength| {
        let initial = Some(InitialPicture { picture: picture.clone(), strength, mask: None });
        first(&system, &with("red", DiffusionOptions { initial, ..DiffusionOptions::default() }))
    };
    assert_eq!(from(0.0), picture, "0 gives it back");
    assert_eq!(from(1.0), first(&system, &request("red", 1, 1)), "1 forgets it");
    assert!(from(0.5) != picture && from(0.5) != from(1.0));

    let latents = load(latent_bundle());
    let initial = Some(InitialPicture { picture: busy_picture(40), strength: 0.5, mask: None });
    let made = first(&latents, &with("a red heart", DiffusionOptions { initial, ..DiffusionOptions::default() }));
    assert!((made.width, made.height) == (16, 16) && made != first(&latents, &request("a red heart", 1, 1)));
}

#[test]
fn a_mask_keeps_what_is_black_bit_for_bit() {
    let picture = busy_picture(8);
    let mut mask = Picture::filled(8, 8, [0; 3]);
    for y in 0..8 {
        mask.rgb[(y * 8 + 4) * 3..(y * 8 + 8) * 3].fill(255);
    }
    for sampler in [Sampler::Ddim { eta: 0.0 }, Sampler::Ddpm, Sampler::Heun, Sampler::DpmSolverPlusPlus2M] {
        for strength in [1.0, 0.5] {
            let initial = Some(InitialPicture { picture: picture.clone(), strength, mask: Some(mask.clone()) });
            let made = first(&pixels(), &with("red", DiffusionOptions { initial, sampler: Some(sampler), ..DiffusionOptions::default() }));
            let differs = |x, y| made.pixel(x, y) != picture.pixel(x, y);
            assert!((0..8).all(|y| (0..4).all(|x| !differs(x, y))), "{sampler:?}: kept");
            assert!((0..8).all(|y| (4..8).any(|x| differs(x, y))), "{sampler:?}: painted anew");
        }
    }
}

#[test]
fn a_mask_keeps_pixels_of_pictures_that_are_decoded_or_enlarged() {
    let picture = busy_picture(16);
    let mut mask = Picture::filled(16, 16, [0; 3]);
    for y in 0..16 {
        mask.rgb[(y * 16 + 8) * 3..(y * 16 + 16) * 3].fill(255);
    }
    for (bundle, prompt) in [(latent_bundle(), "a red heart"), (cascade_bundle(), "red")] {
        let name = bundle.name.clone();
        let initial = Some(InitialPicture { picture: picture.clone(), strength: 1.0, mask: Some(mask.clone()) });
        let made = first(&load(bundle), &with(prompt, DiffusionOptions { initial, ..DiffusionOptions::default() }));
        let differs = |x, y| made.pixel(x, y) != picture.pixel(x, y);
        assert!((0..16).all(|y| (0..8).all(|x| !differs(x, y))), "{name}: kept");
        assert!((0..16).all(|y| (8..16).any(|x| differs(x, y))), "{name}: painted anew");
    }
}

#[test]
fn bundles_are_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    for (bundle, prompt) in [(pixel_bundle(&CLASSES), "blue"), (pixel_bundle(&[]), ""), (latent_bundle(), "a red heart")] {
        let path = folder.path().join(&bundle.name);
        let manifest = bundle.save(&path, Storage::F32).unwrap();
        let loaded = Bundle::load(&path, &Device::flex()).unwrap();
        assert_eq!(loaded.generator.as_ref().unwrap().model.tensors(), bundle.generator.as_ref().unwrap().model.tensors());
        let expected = first(&load(bundle), &request(prompt, 1, 1));
        assert_eq!(first(&load(loaded.clone()), &request(prompt, 1, 1)), expected);
        let opened = BundleFolder::open(&path).unwrap();
        assert_eq!(first(&TextToImage::load(&opened, &Device::flex()).unwrap(), &request(prompt, 1, 1)), expected);
        assert_eq!(loaded.save(&path, Storage::F32).unwrap().id(), manifest.id(), "saved again, the same");
    }
}

#[test]
fn a_dry_run_names_the_parts_and_refuses_what_drawing_would() {
    let folder = tempfile::tempdir().unwrap();
    let save = |bundle: Bundle, name: &str| {
        let path = folder.path().join(name);
        bundle.save(&path, Storage::F32).unwrap();
        for weights in fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        {
            fs::remove_file(weights).unwrap();
        }
        BundleFolder::open(&path).unwrap()
    };
    let pixels = save(pixel_bundle(&CLASSES), "pixels");
    assert_eq!(text_to_image::parts(&pixels, &request("red", 1, 1)).unwrap(), [Part::Generator]);
    let latents = save(latent_bundle(), "latents");
    let parts = text_to_image::parts(&latents, &request("a red heart", 1, 1)).unwrap();
    assert_eq!(parts, [Part::ImageTokenizer, Part::TextEncoder, Part::Generator]);
    assert_eq!((pixels.manifest().canvas(), latents.manifest().canvas()), (Some([8, 8, 3]), Some([4, 4, 4])));

    let check = |folder: &BundleFolder, bundle: Bundle, request: Request, expected: &str| {
        for error in [text_to_image::parts(folder, &request).unwrap_err(), load(bundle).generate(&request, &mut |_| {}).unwrap_err()] {
            assert!(error.is_wrong_request() && error.to_string().contains(expected), "expected {expected:?}: {error}");
        }
    };
    let options = DiffusionOptions::default;
    let of_pixels = |request: Request, expected: &str| check(&pixels, pixel_bundle(&CLASSES), request, expected);
    of_pixels(with("red", DiffusionOptions { steps: Some(0), ..options() }), "steps: expected at least 1, found 0");
    of_pixels(with("red", DiffusionOptions { steps: Some(1001), ..options() }), "steps: expected at most the 1000 trained steps, found 1001");
    of_pixels(with("green", options()), "prompt: expected one of the classes red, blue, found \"green\"");
    of_pixels(with("red", DiffusionOptions { negative: Some("ugly".into()), ..options() }), "negative: expected nothing");
    of_pixels(with("red", DiffusionOptions { noise: Some(vec![0.0; 8 * 8 * 3 - 1]), ..options() }), "noise: expected 1 pictures of 3 channels and 8x8");
    of_pixels(with("red", DiffusionOptions { noise: Some(vec![f32::NAN; 8 * 8 * 3]), ..options() }), "noise: expected finite numbers, found NaN");
    of_pixels(with("red", DiffusionOptions { augmentation: Some(0.5), ..options() }), "augmentation: expected nothing: this bundle has one stage");
    of_pixels(with("red", DiffusionOptions { guidance_rescale: 2.0, ..options() }), "guidance_rescale: expected 0 to 1");
    let projection = |parallel, momentum, norm| Some(ProjectionOptions { parallel, momentum, norm });
    of_pixels(with("red", DiffusionOptions { projection: projection(1.5, 0.0, 1.0), ..options() }), "projection.parallel: expected a number from 0 to 1");
    of_pixels(with("red", DiffusionOptions { projection: projection(0.0, -1.0, 1.0), ..options() }), "projection.momentum: expected a number between -1 and 1");
    of_pixels(with("red", DiffusionOptions { projection: projection(0.0, 0.0, 0.0), ..options() }), "projection.norm: expected a number above 0");
    of_pixels(with("red", DiffusionOptions { threshold: Some(Threshold::dynamic(99.5)), ..options() }), "threshold.percentile");
    of_pixels(with("red", DiffusionOptions { sampler: Some(Sampler::Ddim { eta: -1.0 }), ..options() }), "eta: expected a number of at least 0");
    of_pixels(
        Request { image_tokens: ImageTokenOptions { greedy: true, ..ImageTokenOptions::default() }, ..request("red", 1, 1) },
        "this bundle's generator is a diffusion network",
    );
    of_pixels(Request { keep: Some(1), ..request("red", 2, 1) }, "keep: expected a bundle with a `contrastive` part");
    let initial = |strength, mask| Some(InitialPicture { picture: busy_picture(8), strength, mask });
    for strength in [-0.1, 1.1, f64::NAN] {
        of_pixels(with("red", DiffusionOptions { initial: initial(strength, None), ..options() }), "strength: expected 0 to 1");
    }
    let mask = Some(Picture::filled(8, 9, [255; 3]));
    let request_with_mask = with("red", DiffusionOptions { initial: initial(1.0, mask), ..options() });
    of_pixels(request_with_mask, "mask: expected 8x8, the size of the initial picture, found 8x9");

    let unconditional = save(pixel_bundle(&[]), "unconditional");
    let of_nothing = |request: Request, expected: &str| check(&unconditional, pixel_bundle(&[]), request, expected);
    of_nothing(with("red", options()), "prompt: expected nothing: this bundle's generator takes no condition, found \"red\"; hint: leave the prompt out");
    of_nothing(Request { guidance_scale: Some(3.0), ..request("", 1, 1) }, "guidance_scale: expected nothing");
    of_nothing(
        with("", DiffusionOptions { projection: projection(0.0, 0.0, 1.0), ..options() }),
        "projection: expected nothing: this bundle's generator takes no",
    );

    let of_latents = |request: Request, expected: &str| check(&latents, latent_bundle(), request, expected);
    of_latents(with(" ", options()), "prompt: expected some words");
    of_latents(with("a fish", DiffusionOptions { threshold: Some(Threshold::Static), ..options() }), "threshold: expected none: latents have no range");

    // The other kind of generator refuses these options.
    let tokens = save(tiny_bundle(), "tokens");
    let of_tokens =
        |diffusion, key: &str| check(&tokens, tiny_bundle(), with("a fish", diffusion), &format!("{key}: expected nothing: this bundle draws image tokens"));
    of_tokens(DiffusionOptions { steps: Some(5), ..options() }, "steps");
    of_tokens(DiffusionOptions { negative: Some("x".into()), ..options() }, "negative");
    of_tokens(DiffusionOptions { projection: projection(0.0, 0.0, 1.0), ..options() }, "projection");
    of_tokens(DiffusionOptions { film_strip: 3, ..options() }, "film_strip");
}

#[test]
fn nothing_can_be_ranked_without_a_prompt() {
    let bundle = Bundle { contrastive: tiny_bundle().contrastive, ..pixel_bundle(&CLASSES) };
    let system = load(bundle);
    let error = system.generate(&Request { keep: Some(1), ..request("", 2, 2) }, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("keep: expected a prompt to rank by, found none"), "{error}");
    assert_eq!(draw(&system, &Request { keep: Some(1), ..request("red", 2, 2) }).len(), 1);
    assert!(draw(&system, &request("", 2, 2)).iter().all(|made| made.score.is_none()));
}

#[test]
fn parts_that_do_not_fit_are_named_before_anything_is_written_or_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let check = |bundle: Bundle, expected: &[&str]| {
        let errors = [bundle.save(&folder.path().join("bundle"), Storage::F32).unwrap_err().to_string(), try_load(bundle).unwrap_err().to_string()];
        for error in errors {
            assert!(expected.iter().all(|part| error.contains(part)), "expected {expected:?}: {error}");
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is half written");
    };
    fn edited(mut bundle: Bundle, edit: impl FnOnce(&mut smalti_pipeline::manifest::DiffusionConfig)) -> Bundle {
        let Generator::Diffusion(model) = &mut bundle.generator.as_mut().unwrap().model else { panic!("a diffusion network") };
        edit(&mut model.config);
        bundle
    }
    // The scale is measured and stored; without one nothing is drawn.
    for scale in [None, Some(0.0), Some(f32::NAN)] {
        let mut bundle = latent_bundle();
        bundle.image_tokenizer.as_mut().unwrap().latent_scale = scale;
        check(bundle, &["`image_tokenizer`: `latent_scale`: expected what brings latents to unit variance"]);
    }
    let mut bundle = latent_bundle();
    bundle.image_tokenizer.as_mut().unwrap().latent_scale = Some(0.18215);
    check(bundle, &["`generator`: `latent_scale`: expected 0.18215, as the image tokenizer has; another scale is another image tokenizer, found 0.5"]);
    let mut bundle = latent_bundle();
    bundle.image_tokenizer.as_mut().unwrap().image_size = 32;
    check(bundle, &["`generator`: `image_size`: expected 32, as the image tokenizer has, found 16"]);
    let wider = edited(latent_bundle(), |config| {
        let NetworkConfig::Unet(network) = &mut config.network else { panic!("a U-Net") };
        network.text.as_mut().unwrap().channels = 24;
    });
    check(wider, &["`generator`: `text channels`: expected 16, as the text encoder has, found 24"]);
    let longer = edited(latent_bundle(), |config| config.text.as_mut().unwrap().token_count = 13);
    check(longer, &["`generator`: `text.token_count`: expected at most 12, which the text encoder reads, found 13"]);
    let odd = edited(pixel_bundle(&CLASSES), |config| config.image_size = 9);
    check(odd, &["`generator`: `image_size`: expected a canvas whose side is a multiple of 2, found 9"]);
    let fewer = edited(pixel_bundle(&CLASSES), |config| drop(config.classes.pop()));
    check(fewer, &["`generator`: `classes`: expected 2 names"]);
    let scaled = edited(pixel_bundle(&CLASSES), |config| config.latent_scale = Some(1.0));
    check(scaled, &["`generator`: `latent_scale`: expected a number only where latents are drawn"]);
    let edited_stage = |edit: &dyn Fn(&mut smalti_pipeline::manifest::DiffusionConfig)| {
        let mut bundle = cascade_bundle();
        let Generator::Diffusion(model) = &mut bundle.super_resolution[0].model else { panic!("a diffusion network") };
        edit(&mut model.config);
        bundle
    };
    let larger = edited_stage(&|config| config.low_resolution.as_mut().unwrap().image_size = 12);
    check(larger, &["`super_resolution`: `low_resolution.image_size`: expected 8, the pictures of the stage below, found 12"]);
    let told_more = edited_stage(&|config| config.text = Some(TextCondition { token_count: 12, attend_to_padding: false }));
    check(told_more, &["`super_resolution`: `text`: expected none, or that of the first stage (none), found 12 text tokens, padding hidden"]);
    let told_other = edited_stage(&|config| config.classes = vec!["red".to_string(), "green".to_string()]);
    check(told_other, &["`super_resolution`: `classes`: expected none, or those of the first stage (red, blue), found red, green"]);
    let mut first_enlarges = cascade_bundle();
    first_enlarges.generator = first_enlarges.super_resolution.pop();
    check(first_enlarges, &["`generator`: `low_resolution`: expected a first stage, which starts from nothing; this one enlarges pictures of 8 pixels"]);
    let guidance = edited(pixel_bundle(&CLASSES), |config| config.sampling.guidance_scale = f32::NAN);
    check(guidance, &["`generator`: `sampling.guidance_scale`: expected a finite number, found NaN"]);
    let steps = edited(pixel_bundle(&CLASSES), |config| config.sampling.steps = 2000);
    check(steps, &["`generator`: `sampling.steps`: expected at most the 1000 trained steps, found 2000"]);
    // How image tokens are drawn is nothing to tell a diffusion network: two answers to one question.
    let mut told_twice = pixel_bundle(&CLASSES);
    told_twice.generator.as_mut().unwrap().sampling = Some(ImageTokenSampling::default());
    check(told_twice, &["`generator`: `sampling`: expected none beside a diffusion network, whose model has its own"]);
    let mut told_twice = cascade_bundle();
    told_twice.super_resolution[0].sampling = Some(ImageTokenSampling::default());
    check(told_twice, &["`super_resolution`: `sampling`: expected none beside a diffusion network"]);

    let without = |part: &str, bundle: Bundle| {
        let error = try_load(bundle).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    without("`image_tokenizer`", Bundle { image_tokenizer: None, ..latent_bundle() });
    without("`text_encoder`", Bundle { text_encoder: None, ..latent_bundle() });
    let path = folder.path().join("lacking");
    Bundle { text_encoder: None, ..latent_bundle() }.save(&path, Storage::F32).unwrap();
    let error = TextToImage::load(&BundleFolder::open(&path).unwrap(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("this bundle has no `text_encoder`, which is needed to make pictures"), "{error}");
    assert_eq!(error, text_to_image::parts(&BundleFolder::open(&path).unwrap(), &request("a fish", 1, 1)).unwrap_err().to_string());
}

#[test]
fn weights_that_overflow_are_an_error_not_a_picture() {
    let mut bundle = pixel_bundle(&CLASSES);
    let part = bundle.generator.as_mut().unwrap();
    let mut tensors = part.model.tensors();
    tensors.get_mut("conv_out.bias").unwrap().values.fill(f32::NAN);
    part.model = part.model.clone().with(tensors, &Device::flex()).unwrap();
    let error = load(bundle).generate(&request("red", 1, 1), &mut |_| {}).unwrap_err();
    assert!(!error.is_wrong_request() && error.to_string().contains("output of the network for picture 0 at timestep"), "{error}");
}

#[test]
fn progress_only_goes_forward_and_ends_whole() {
    let mut reports: Vec<Progress> = Vec::new();
    pixels()
        .generate(&Request { diffusion: DiffusionOptions { steps: Some(6), ..DiffusionOptions::default() }, ..request("red", 5, 2) }, &mut |report| {
            reports.push(report);
        })
        .unwrap();
    assert!(reports.iter().all(|report| report.stage == Stage::Steps && report.total == 30));
    assert!(reports.windows(2).all(|pair| pair[0].done < pair[1].done) && reports.last().is_some_and(|last| last.done == 30), "{reports:?}");
}

#[test]
fn a_config_reads_back_as_itself() {
    for bundle in [pixel_bundle(&CLASSES), latent_bundle()] {
        let folder = tempfile::tempdir().unwrap();
        let manifest = bundle.save(&folder.path().join("bundle"), Storage::F16).unwrap();
        let model = manifest.generator.as_ref().unwrap().model.clone();
        assert_eq!(BundleFolder::open(&folder.path().join("bundle")).unwrap().manifest(), &manifest);
        assert_eq!(model, bundle.generator.unwrap().model.config());
        assert!(matches!(model, GeneratorModel::Diffusion(config) if config.sampling.guidance_scale == 2.0));
    }
}

/// A look at pictures on their way costs time, and changes nothing.
#[test]
fn looks_change_no_picture() {
    for (bundle, prompt, side) in [(pixel_bundle(&CLASSES), "red", 8), (latent_bundle(), "a red heart", 16)] {
        let (system, request) = (load(bundle), request(prompt, 3, 2));
        let (mut seen, mut reports) = (Vec::new(), 0);
        let mut look = |estimate: &Estimate| {
            let pictures = estimate.pictures(4, 100).unwrap();
            seen.push((pictures.len(), pictures[0].clone()));
            let small = estimate.pictures(1, 5).unwrap();
            assert_eq!((small.len(), small[0].width, small[0].height), (1, 5, 5));
        };
        let made = system.generate_watched(&request, &mut Watch { progress: &mut |_| reports += 1, estimate: &mut look, stop: &|| false }).unwrap();
        assert_eq!(made.pictures, draw(&system, &request));
        let stopped = system.generate_watched(&request, &mut Watch { progress: &mut |_| {}, estimate: &mut |_| {}, stop: &|| true }).unwrap();
        assert_eq!((&stopped.pictures[..], stopped.drawn), (&made.pictures[..2], 2), "after the first batch");
        // Four steps of a batch of two, then of one; the last look is what was drawn.
        assert_eq!(seen.iter().map(|(count, _)| *count).collect::<Vec<_>>(), [2, 2, 2, 2, 1, 1, 1, 1]);
        assert!(reports >= 8 && seen[0].1.width == side && seen[0].1 != seen[3].1);
        assert_eq!(seen[7].1, made.pictures[2].picture, "{prompt}");
    }
}
