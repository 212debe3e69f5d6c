//! Which class a picture is of.

pub mod noisy; // half a U-Net that classifies noisy pictures, to guide diffusion
