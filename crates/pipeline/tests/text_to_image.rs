//! Text-to-image with a tiny untrained bundle: the same bytes whatever the count, batch and threads; ranking; wrong requests.

mod tiny_bundle;

use burn::tensor::Device;
use smalti_data::Picture;
use smalti_nn::weights::safetensors::Storage;
use smalti_pipeline::manifest::ImageTokenSampling;
use smalti_pipeline::parts::Weights;
use smalti_pipeline::progress::{Progress, Stage};
use smalti_pipeline::reading::Text;
use smalti_pipeline::text_to_image::{ImageTokenOptions, Made, Parts, Request, TextToImage, Watch};
use smalti_pipeline::{Bundle, BundleFolder, Part, PipelineError, reconstruct, rerank};
use std::cell::Cell;
use tiny_bundle::tiny_bundle;

fn text_to_image() -> TextToImage {
    load(tiny_bundle())
}

fn load(bundle: Bundle) -> TextToImage {
    let Bundle { image_tokenizer, text_encoder, generator, super_resolution, classifier, contrastive, .. } = bundle;
    TextToImage::new(Parts { image_tokenizer, text_encoder, generator: generator.unwrap(), super_resolution, classifier, contrastive }).unwrap()
}

fn request(count: usize, batch_size: usize) -> Request {
    Request { count, batch_size, seed: 7, guidance_scale: Some(3.0), ..Request::new("a red heart") }
}

fn generate(request: &Request) -> Made {
    text_to_image().generate(request, &mut |_| {}).unwrap()
}

#[test]
fn pictures_do_not_depend_on_count_batch_or_threads() {
    let eight = generate(&request(8, 8));
    assert_eq!(eight.pictures.len(), 8);
    assert!(eight.pictures.iter().enumerate().all(|(index, made)| made.index == index && made.image_tokens.len() == 16 && made.score.is_some()));
    assert!(eight.pictures.windows(2).any(|pair| pair[0].image_tokens != pair[1].image_tokens), "pictures of one seed differ");
    for (count, batch_size) in [(1, 8), (8, 1), (8, 3), (5, 2)] {
        let made = generate(&request(count, batch_size));
        assert_eq!(made.pictures, eight.pictures[..count], "count {count}, batch size {batch_size}");
    }
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| generate(&request(8, 8))), eight, "{threads} threads");
    }
    let other = generate(&Request { seed: 8, ..request(2, 2) });
    assert!(other.pictures[0].image_tokens != eight.pictures[0].image_tokens);
}

#[test]
fn guidance_off_is_the_network_itself_and_greedy_needs_no_seed() {
    let plain = generate(&Request { guidance_scale: Some(1.0), ..request(2, 2) });
    assert!(plain.pictures[0].image_tokens != generate(&Request { guidance_scale: Some(30.0), ..request(2, 2) }).pictures[0].image_tokens);
    let greedy = Request { image_tokens: ImageTokenOptions { greedy: true, ..ImageTokenOptions::default() }, ..request(2, 2) };
    let made = generate(&greedy);
    assert_eq!(made.pictures[0].image_tokens, made.pictures[1].image_tokens);
    assert_eq!(made.pictures[0].image_tokens, generate(&Request { seed: 99, ..greedy }).pictures[0].image_tokens);
}

/// A bundle says how it is usually drawn with, which counts where a request says nothing, and is kept in its files.
#[test]
fn a_bundle_is_drawn_as_it_says() {
    let mut bundle = tiny_bundle();
    bundle.generator.as_mut().unwrap().sampling = Some(ImageTokenSampling { guidance_scale: 6.0, temperature: 0.5, top_k: Some(3) });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bundle");
    let manifest = bundle.save(&path, Storage::F32).unwrap();
    assert_eq!(BundleFolder::open(&path).unwrap().manifest(), &manifest);
    let loaded = TextToImage::load(&BundleFolder::open(&path).unwrap(), &Device::flex()).unwrap();
    let draw = |request: &Request| loaded.generate(request, &mut |_| {}).unwrap().pictures.into_iter().map(|made| made.image_tokens).collect::<Vec<_>>();
    let unsaid = Request { guidance_scale: None, ..request(4, 4) };
    let said = |temperature: f32, top_k: usize| Request {
        guidance_scale: Some(6.0),
        image_tokens: ImageTokenOptions { temperature: Some(temperature), top_k: Some(top_k), ..ImageTokenOptions::default() },
        ..request(4, 4)
    };
    assert_eq!(draw(&unsaid), draw(&said(0.5, 3)));
    assert_ne!(draw(&unsaid), draw(&said(1.0, 3)));
    assert_ne!(draw(&unsaid), draw(&said(0.5, 1)));
    bundle.generator.as_mut().unwrap().sampling = Some(ImageTokenSampling { temperature: 0.0, ..ImageTokenSampling::default() });
    let message = bundle.save(&folder.path().join("cold"), Storage::F32).unwrap_err().to_string();
    assert!(message.contains("`sampling.temperature`: expected a number above 0, found 0"), "{message}");
}

#[test]
fn keep_takes_the_best() {
    let all = generate(&request(6, 6));
    let kept = generate(&Request { keep: Some(3), ..request(6, 6) });
    let mut scores: Vec<f32> = all.pictures.iter().map(|made| made.score.unwrap()).collect();
    scores.sort_by(|left, right| right.total_cmp(left));
    assert_eq!(kept.pictures.iter().map(|made| made.score.unwrap()).collect::<Vec<_>>(), scores[..3]);
    assert!(kept.pictures.iter().all(|made| all.pictures[made.index] == *made));
    assert_eq!(rerank::order(&[0.5, 0.9, 0.5, -1.0]), [1, 0, 2, 3]);
}

#[test]
fn scores_are_those_of_rerank() {
    let made = generate(&request(5, 5));
    let pictures: Vec<Picture> = made.pictures.iter().map(|made| made.picture.clone()).collect();
    let contrastive = tiny_bundle().contrastive.unwrap();
    let one_by_one: Vec<f32> =
        pictures.iter().map(|picture| rerank::scores(&contrastive, "a red heart", std::slice::from_ref(picture), &mut |_| {}).unwrap()[0]).collect();
    assert_eq!(one_by_one, made.pictures.iter().map(|made| made.score.unwrap()).collect::<Vec<_>>());
    assert!(one_by_one.iter().all(|score| score.abs() <= 1.0 + 1e-6));
    let other = Picture::filled(40, 17, [200, 10, 90]);
    assert_eq!(rerank::scores(&contrastive, "a fish", &[other], &mut |_| {}).unwrap().len(), 1, "any size");
    assert_eq!(rerank::scores(&contrastive, "a fish", &[], &mut |_| {}).unwrap(), Vec::<f32>::new());
}

#[test]
fn decoding_the_tokens_gives_the_picture() {
    let made = generate(&request(2, 2)).pictures.remove(1);
    let image_tokenizer = tiny_bundle().image_tokenizer.unwrap();
    let again = reconstruct::decode(&image_tokenizer, &[&made.image_tokens], [4, 4]).unwrap().remove(0);
    assert_eq!(again, made.picture);
    assert!(reconstruct::decode(&image_tokenizer, &[&[32; 16]], [4, 4]).is_err(), "there is no code 32");

    let pictures = [Picture::filled(16, 16, [10, 200, 30]), Picture::filled(24, 8, [250, 0, 30])];
    let reconstructions = reconstruct::reconstruct(&image_tokenizer, &pictures, &mut |_| {}).unwrap();
    assert_eq!(
        reconstructions.iter().map(|made| (made.picture.width, made.picture.height, made.image_tokens.len())).collect::<Vec<_>>(),
        [(16, 16, 16), (24, 8, 12)]
    );
    let error = reconstruct::reconstruct(&image_tokenizer, &[Picture::filled(16, 15, [0; 3])], &mut |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "picture: expected sides that are multiples of 4, found 16x15");
}

#[test]
fn progress_only_goes_forward_and_ends_whole() {
    let mut reports: Vec<Progress> = Vec::new();
    text_to_image().generate(&request(5, 2), &mut |report| reports.push(report)).unwrap();
    for stage in [Stage::ImageTokens, Stage::Pictures, Stage::Scores] {
        let of_stage: Vec<&Progress> = reports.iter().filter(|report| report.stage == stage).collect();
        assert!(of_stage.windows(2).all(|pair| pair[0].done < pair[1].done && pair[0].total == pair[1].total));
        assert!(of_stage.last().is_some_and(|last| last.done == last.total), "{stage:?}");
    }
}

#[test]
fn who_stops_gets_the_batches_drawn_so_far() {
    let whole = generate(&request(5, 2)).pictures;
    for (batches, expected) in [(1, 2), (2, 4), (3, 5)] {
        let asked = Cell::new(0);
        let stop = || asked.replace(asked.get() + 1) + 1 == batches;
        let watch = &mut Watch { progress: &mut |_| {}, estimate: &mut |_| {}, stop: &stop };
        let made = text_to_image().generate_watched(&request(5, 2), watch).unwrap();
        assert_eq!((made.pictures, made.drawn), (whole[..expected].to_vec(), expected), "stopped after {batches}");
    }
    let best = Request { keep: Some(3), ..request(5, 2) };
    let made = text_to_image().generate_watched(&best, &mut Watch { progress: &mut |_| {}, estimate: &mut |_| {}, stop: &|| true }).unwrap();
    assert_eq!((made.pictures.len(), made.drawn), (2, 2));
    assert!(made.pictures[0].score >= made.pictures[1].score);
}

#[test]
fn long_prompts_are_cut_with_a_word() {
    let long = "a red heart ".repeat(10_000 / 3);
    let made = generate(&Request { prompt: long, ..request(1, 1) });
    let [of_generator, of_ranking] = made.truncated[..] else { panic!("{:?}", made.truncated) };
    assert_eq!((of_generator.text, of_generator.reader, of_generator.kept_count), (Text::Prompt, Part::Generator, 10));
    let read_by_ranking = tiny_bundle().contrastive.unwrap().model.config().text.context_length - 2;
    assert_eq!((of_ranking.text, of_ranking.reader, of_ranking.kept_count), (Text::Prompt, Part::Contrastive, read_by_ranking));
    assert!(made.truncated.iter().all(|truncation| truncation.token_count >= 9_999), "{:?}", made.truncated);
    assert_eq!(generate(&request(1, 1)).truncated, []);
}

#[test]
fn wrong_requests_are_named() {
    let check = |request: Request, expected: &str| {
        let error = text_to_image().generate(&request, &mut |_| {}).unwrap_err();
        assert!(error.is_wrong_request() && error.to_string().contains(expected), "{error}");
    };
    check(Request::new(""), "prompt: expected some words, found none; hint: ");
    check(Request::new(" \n"), "prompt: expected some words");
    check(Request { count: 0, ..request(1, 1) }, "count: expected 1 to 10000, found 0");
    check(Request { count: usize::MAX, ..request(1, 1) }, "count: expected 1 to 10000");
    check(Request { keep: Some(5), ..request(4, 1) }, "keep: expected 1 to count, which is 4, found 5; hint: raise --count");
    check(Request { keep: Some(0), ..request(4, 1) }, "keep: expected 1 to");
    check(Request { guidance_scale: Some(f32::NAN), ..request(1, 1) }, "guidance_scale: expected a number from -1000 to 1000, found NaN");
    check(Request { batch_size: 0, ..request(1, 1) }, "batch_size: expected 1 to 1024, found 0");
    check(
        Request { image_tokens: ImageTokenOptions { temperature: Some(0.0), ..ImageTokenOptions::default() }, ..request(1, 1) },
        "temperature: expected a number above 0",
    );
    check(Request { image_tokens: ImageTokenOptions { top_p: Some(1.5), ..ImageTokenOptions::default() }, ..request(1, 1) }, "top_p: ");

    let without_ranking = load(Bundle { contrastive: None, ..tiny_bundle() });
    assert_eq!(without_ranking.generate(&request(1, 1), &mut |_| {}).unwrap().pictures[0].score, None);
    let error = without_ranking.generate(&Request { keep: Some(1), ..request(2, 1) }, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("keep: expected a bundle with a `contrastive` part"), "{error}");
}

#[test]
fn weights_that_overflow_are_an_error_not_a_picture() {
    let mut bundle = tiny_bundle();
    let tokenizer = bundle.image_tokenizer.as_mut().unwrap();
    let mut weights = tokenizer.model.tensors();
    weights.get_mut("decoder.conv_out.bias").unwrap().values.fill(f32::NAN);
    tokenizer.model = tokenizer.model.clone().with(weights, &tokenizer.device()).unwrap();
    let error = load(bundle).generate(&request(1, 1), &mut |_| {}).unwrap_err();
    assert!(matches!(error, PipelineError::NotFinite { .. }), "{error}");
}
