//! The mathematics of generating, without a network in sight: numbers come in as slices on the host, choices go out.
//!
//! Samplers take functions: whoever calls them wraps a network in a closure. They know no file, no text, no device.
//!
//! Reading order:
pub mod autoregressive; // one token after the other: super-conditioning, temperature, top-k, top-p, the loop
pub mod diffusion; //      from noise to a picture: schedules, parameterizations, losses, samplers, guidance, thresholding
pub mod random; //         one stream of random numbers per picture
