//! Kept states are those that the encoder makes, whatever was kept before.

use super::*;
use smalti_data::text_tokenizer::TextTokenizer;
use smalti_models::text_encoder::clip_text;
use smalti_nn::Initializer;
use smalti_pipeline::Provenance;
use smalti_pipeline::manifest::TextEncoderModel;
use smalti_pipeline::parts::TextEncoder;

const TOKEN_COUNT: usize = 10;

fn encoder(seed: u64) -> TextEncoderPart {
    let text_tokenizer = TextTokenizer::train(&["a red heart", "a blue fish", "a green leaf, flat style"], 300).unwrap();
    let mut config = clip_text::Config { vocabulary_size: text_tokenizer.vocabulary_size(), context_length: 12, ..clip_text::Config::stable_diffusion_1() };
    let transformer = &mut config.transformer;
    (transformer.channels, transformer.layer_count, transformer.head_count, transformer.feed_forward_channels) = (16, 2, 2, 32);
    let model = TextEncoder::new(&TextEncoderModel::ClipText(config), &mut Initializer::new(seed, &Device::flex())).unwrap();
    TextEncoderPart { model, text_tokenizer: Some(text_tokenizer), provenance: Provenance::default() }
}

fn condition(attend_to_padding: bool) -> TextCondition {
    TextCondition { token_count: TOKEN_COUNT, attend_to_padding }
}

fn captions(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// More than one batch, so that captions have had other neighbours.
fn many() -> BTreeSet<String> {
    (0..50).map(|number| format!("fish number {number}{}", ", a leaf in green".repeat(number % 3))).chain([String::new()]).collect()
}

fn cached(folder: &Path, attend_to_padding: bool, captions: BTreeSet<String>) -> TextStates {
    TextStates::cached(encoder(1), "checksum", condition(attend_to_padding), folder, captions).unwrap()
}

/// Numbers of both, and what is visible.
fn numbers(text: Text) -> (Vec<u32>, Option<Vec<bool>>) {
    let visible = text.visible.map(|visible| visible.into_data().iter::<bool>().collect());
    (text.states.into_data().iter::<f32>().map(f32::to_bits).collect(), visible)
}

#[test]
fn kept_states_are_those_of_the_encoder_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    for attend_to_padding in [false, true] {
        let kept = cached(folder.path(), attend_to_padding, many());
        let fresh = TextStates::fresh(encoder(1), condition(attend_to_padding));
        let asked: Vec<String> = many().into_iter().rev().step_by(7).chain([String::new(), String::new()]).collect();
        for device in [Device::flex(), Device::flex().autodiff()] {
            let ((found, seen), (expected, visible)) = (numbers(kept.of(&asked, &device).unwrap()), numbers(fresh.of(&asked, &device).unwrap()));
            assert_eq!((&seen, seen.is_some()), (&visible, !attend_to_padding));
            let mut checked = 0;
            for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let is_visible = visible.as_ref().is_none_or(|visible| visible[place / 16]);
                assert_eq!(*found, if is_visible { *expected } else { 0 }, "number {place}");
                checked += usize::from(is_visible);
            }
            assert!(checked > 100 && expected.len() == asked.len() * TOKEN_COUNT * 16);
        }
        let unforeseen = ["a caption that nobody foresaw".to_string(), String::new()];
        assert_eq!(numbers(kept.of(&unforeseen, &Device::flex()).unwrap()), numbers(fresh.of(&unforeseen, &Device::flex()).unwrap()));
    }
}

/// Parts below a folder with their times.
fn parts(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let folders = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()));
    let mut found: Vec<_> = files.map(|entry| (entry.path(), entry.metadata().unwrap().modified().unwrap())).collect();
    found.sort();
    found
}

#[test]
fn what_is_there_is_not_made_again() {
    let folder = tempfile::tempdir().unwrap();
    cached(folder.path(), false, many());
    let before = parts(folder.path());
    assert_eq!(before.len(), 1);
    cached(folder.path(), false, many());
    cached(folder.path(), false, captions(&["fish number 3", ""]));
    assert_eq!(parts(folder.path()), before, "read");
    let more = cached(folder.path(), false, many().into_iter().chain(["one more".to_string()]).collect());
    let after = parts(folder.path());
    assert!(after.len() == 2 && after.contains(&before[0]), "only what was missing");
    assert_eq!(more.cache.as_ref().unwrap().places.len(), 52);
    for (seed, checksum, attend_to_padding) in [(1, "other", false), (1, "checksum", true)] {
        let count = fs::read_dir(folder.path()).unwrap().count();
        TextStates::cached(encoder(seed), checksum, condition(attend_to_padding), folder.path(), captions(&["fish"])).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), count + 1, "{checksum}, {attend_to_padding}: a folder of its own");
    }
}

#[test]
fn damaged_parts_are_made_again() {
    let folder = tempfile::tempdir().unwrap();
    cached(folder.path(), false, many());
    let (path, _) = parts(folder.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let flipped = |place: usize| {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x40;
        bytes
    };
    for bytes in
        [flipped(0), flipped(2), flipped(30), flipped(COUNT_BYTES + 18), flipped(whole.len() - 40), flipped(whole.len() - 1), whole[..100].to_vec(), vec![]]
    {
        fs::write(&path, &bytes).unwrap();
        cached(folder.path(), false, many());
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    // Damaged after it was opened: an error, not a wrong state.
    let states = cached(folder.path(), false, many());
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let error = states.of(&many().into_iter().collect::<Vec<_>>(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains(".states"), "{error}");
}
