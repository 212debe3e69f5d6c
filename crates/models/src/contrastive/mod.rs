//! Contrastive models: how well a picture and a text fit each other, as one number.

pub mod clip; // CLIP: two towers, one space of unit vectors; ranks candidates and judges generators
