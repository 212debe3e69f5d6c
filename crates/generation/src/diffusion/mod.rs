//! Diffusion: a picture is drowned in noise step by step, a network learns to say what was there, and sampling walks back from pure noise to a picture.
//!
//! Everything here stands on one line: a noisy sample is x = alpha * clean + sigma * noise. A [`Level`] is such a pair (alpha, sigma) with the timestep that
//! tells it to the network. A [`Process`] is the road of levels from noise to picture; a [`Parameterization`] says what the network's output means; from
//! both, any output becomes a predicted clean picture, and a sampler only decides how to step from one level to the next, given that prediction.
//!
//! Tables and coefficients are f64, samples f32. A batch is a flat slice of pictures of the same size, one after the other; the order of the numbers inside
//! a picture does not matter here. Every picture draws from its own stream, so that it is the same whatever stands beside it.
//!
//! Papers: Sohl-Dickstein et al. (1503.03585), DDPM (2006.11239), DDIM (2010.02502), EDM (2206.00364), Imagen (2205.11487), rectified flow (2209.03003).
//! How it was verified: properties, the exact score of a Gaussian mixture, and the schedulers of `diffusers`, step by step (`goldens/make.py`).
//!
//! Reading order:
mod level; //            x = alpha clean + sigma noise
mod schedule; //         variance preserving: linear, scaled linear and cosine betas, resolution shift, zero terminal SNR
pub mod sigmas; //       variance exploding: the noise levels of Karras et al. (EDM)
pub mod flow; //         straight lines: rectified flow and its resolution shift
mod process; //          one of the three
mod parameterization; // what the network predicts: noise, clean picture, velocity, EDM's mixture, flow
mod posterior; //        q(x_s | x_t, clean), and the three variances of a reverse step
pub mod losses; //       weights of the squared error, and the variational bound in bits per dimension
mod discretized_normal; // its last term: the probability of a byte
mod timesteps; //        which of the trained steps are walked: linspace, leading, trailing, Karras
mod thresholding; //     static and dynamic thresholding of the predicted clean picture
pub mod guidance; //     classifier-free guidance, rescaled, in an interval, projected; classifier guidance
pub mod augmentation; // noise-conditioning augmentation, between the stages of a cascade
mod inpainting; //       known pixels are put back at each step
mod plan; //             what is to be walked, validated; picture to picture
pub mod samplers; //     the walks
mod sample; //           the front door: noise in, pictures out

pub use inpainting::Known;
pub use level::Level;
pub use parameterization::Parameterization;
pub use plan::{Plan, PlanError};
pub use posterior::{Posterior, Variance};
pub use process::Process;
pub use sample::{SampleError, Step, sample};
pub use samplers::Sampler;
pub use schedule::{Betas, Schedule, ScheduleConfig};
pub use thresholding::Threshold;
pub use timesteps::{End, Spacing};

use std::borrow::Cow;

#[cfg(test)]
mod tests;

/// A setting that cannot be: what it is called, what it may be, what it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{key}: expected {expected}, found {found}")]
pub struct SettingError {
    pub key: &'static str,
    pub expected: Cow<'static, str>,
    pub found: String,
}

impl SettingError {
    /// `Ok` where `holds`, else the error that says so.
    pub(crate) fn unless(holds: bool, key: &'static str, expected: impl Into<Cow<'static, str>>, found: impl ToString) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self { key, expected: expected.into(), found: found.to_string() }) }
    }
}
