//! Byte-level BPE trained on captions.

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::{Lowercase, NFC, Sequence};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, Tokenizer, models::TrainerWrapper};

/// Ours, at ids 0, 1, 2.
const SPECIAL_TOKENS: [&str; 3] = ["<pad>", "<start>", "<end>"];
/// Every byte has an entry, so any text in any script can be written.
const BYTE_COUNT: usize = 256;

/// Merges ties by token id, never by chance; training is therefore a function of the captions.
pub(super) fn byte_level_bpe<S: AsRef<str> + Sync>(captions: &[S], vocabulary_size: usize) -> Result<Tokenizer, String> {
    let least = SPECIAL_TOKENS.len() + BYTE_COUNT;
    if vocabulary_size < least {
        return Err(format!("`vocabulary_size`: expected at least {least} (special tokens and bytes), found {vocabulary_size}"));
    }
    let mut tokenizer = Tokenizer::new(BPE::default());
    // Captions and prompts are written by different people: "A Red Fox" should be what "a red fox" is.
    let normalizer = Sequence::new(vec![NormalizerWrapper::NFC(NFC), NormalizerWrapper::Lowercase(Lowercase)]);
    tokenizer.with_normalizer(Some(normalizer)).map_err(|error| error.to_string())?;
    // The leading space makes the first word the same token as everywhere else.
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(true, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));

    let special = |content: &str| AddedToken::from(content, true);
    let trainer = BpeTrainer::builder()
        .vocab_size(vocabulary_size)
        // A pair seen once would be learned by heart.
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(SPECIAL_TOKENS.map(special).to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut trainer = TrainerWrapper::from(trainer);
    tokenizer.train(&mut trainer, captions.iter().map(|caption| caption.as_ref())).map_err(|error| error.to_string())?;
    Ok(tokenizer)
}
