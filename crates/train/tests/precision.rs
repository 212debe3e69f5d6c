//! What is kept between trainings depends on what it was computed in. (A file of its own: the precision is the whole process's.)

mod small_runs;

use small_runs::{AUTOENCODER, CLIP, Runs, TEXT, UNET, walk};

#[test]
fn latents_and_states_of_another_precision_lie_beside_each_other() {
    let runs = Runs::new();
    runs.train("autoencoder_kl/pictograms_sample", "autoencoder", &[&AUTOENCODER], &[], false);
    runs.train("clip/pictograms_sample", "clip", &[&CLIP, &["model.image.head_count=2", "model.text.head_count=2"]], &[], false);
    let bundles = [runs.set_bundle("image_tokenizer", "autoencoder"), runs.set_bundle("text_encoder", "clip")];
    let train = |run: &str, precision: &str| {
        let small: &[&str] = &["data.image_size=16", &format!("train.precision=\"{precision}\"")];
        runs.train("latent_diffusion/pictograms_sample", run, &[&UNET, &TEXT, small], &bundles, false);
    };
    let kept = || [walk(&runs.path("cache")).len(), walk(&runs.path("text states")).len()];
    train("rounded", "bf16");
    let [latents, states] = kept();
    assert!(latents > 0 && states > 0);
    train("exact", "f32");
    assert_eq!(kept(), [2 * latents, 2 * states]);
    train("exact again", "f32");
    assert_eq!(kept(), [2 * latents, 2 * states]);
    assert_eq!(runs.weights("exact again", 6, "generator"), runs.weights("exact", 6, "generator"));
    assert_ne!(runs.weights("rounded", 6, "generator"), runs.weights("exact", 6, "generator"));
}
