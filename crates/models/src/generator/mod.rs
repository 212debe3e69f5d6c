//! Text tokens to image tokens.

pub mod dalle_bart; // an encoder-decoder transformer over image tokens: DALL-E mini's, and stock BART
