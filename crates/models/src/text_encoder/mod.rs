//! Text encoders: text tokens to states that a generator attends to. They are trained by others and frozen here; nothing flows back into them.
//!
//! Each has `encode(tokens [batch, tokens], visible [batch, tokens]) -> states [batch, tokens, channels]`, where `visible` is true on a text and its special
//! tokens and false on padding. States at padding are whatever the network computes there: mask them in the attention that reads them.
//!
//! Reading order:
pub mod bert; //      sentence encoders: BERT and MiniLM, with one vector for a whole text
pub mod clip_text; // CLIP's text tower, token by token: Stable Diffusion's
pub mod t5; //        the encoder of T5, which has read text only: Imagen's

mod limits; //        what no config may exceed
