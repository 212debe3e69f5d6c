//! How far apart two pictures are to the eye.
//!
//! Reading order:
pub mod import; // torchvision's and lpips' names
pub mod lpips; //  distance of the features, with learned weights
pub mod vgg; //    the features: VGG16

#[cfg(test)]
mod tests;
