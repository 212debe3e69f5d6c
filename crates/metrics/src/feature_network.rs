//! Networks whose features stand for pictures and captions.
//!
//! Two distances are comparable only when network, resize and normalisation are the same (FIELD.md T7), so each network owns all three and names them in
//! [`FeatureNetwork::conventions`]; no caller can combine them otherwise.

use crate::frechet::Conventions;
use crate::{Features, MetricsError};
use burn::tensor::{Int, Tensor, TensorData};
use smalti_data::picture::Picture;
use smalti_data::resize::{Filter, resize};
use smalti_data::text_tokenizer::Encoded;
use smalti_models::contrastive::clip::Clip;
use smalti_models::inception::{self, Inception};

/// Pictures or captions that go through a network at once. The results do not depend on it.
const BATCH_SIZE: usize = 32;

/// A network with a name that says where its weights are from.
#[derive(Debug)]
pub enum FeatureNetwork {
    /// The image tower of a CLIP; unit vectors.
    Clip { network: Box<Clip>, name: String },
    /// Inception v3 as `pytorch-fid` uses it, the network of the usual FID; 2048 channels.
    Inception { network: Box<Inception>, name: String },
}

impl FeatureNetwork {
    /// One feature vector for each picture, of any size.
    pub fn features(&self, pictures: &[Picture]) -> Result<Features, MetricsError> {
        match self {
            Self::Clip { network, .. } => picture_features(network, pictures),
            Self::Inception { network, .. } => {
                let size = inception::PICTURE_SIZE;
                in_batches(pictures, inception::FEATURE_CHANNELS, |batch| network.features(pixels(batch, size, Filter::Bilinear, &network.device())))
            }
        }
    }

    /// What has to be printed with every distance; `reference` says what the reference pictures are.
    pub fn conventions(&self, reference: impl Into<String>) -> Conventions {
        let (name, resize, normalisation) = match self {
            Self::Clip { network, name } => {
                let config = &network.config().image;
                let size = config.image_size;
                let resize = format!("{size} x {size}, bicubic with antialiasing, 8 bits a channel");
                let (mean, deviation) = (config.pixel_mean, config.pixel_standard_deviation);
                (name, resize, format!("[0, 1], minus {mean:?}, divided by {deviation:?}; features of unit length"))
            }
            Self::Inception { name, .. } => {
                let size = inception::PICTURE_SIZE;
                (name, format!("{size} x {size}, bilinear with antialiasing, 8 bits a channel"), "[-1, 1]".to_string())
            }
        };
        Conventions { feature_network: name.clone(), resize, normalisation, reference: reference.into() }
    }
}

/// The judge's embedding of each picture, of unit length.
pub fn picture_features(clip: &Clip, pictures: &[Picture]) -> Result<Features, MetricsError> {
    let (config, device) = (clip.config(), clip.logit_scale().device());
    in_batches(pictures, config.embedding_channels, |batch| clip.encode_image(pixels(batch, config.image.image_size, Filter::Bicubic, &device)))
}

/// The judge's embedding of each caption, of unit length. All captions were encoded to the same length, at most the judge's context, with the text tokenizer
/// it was trained with.
pub fn caption_features(clip: &Clip, captions: &[Encoded]) -> Result<Features, MetricsError> {
    let (config, device) = (clip.config(), clip.logit_scale().device());
    let length = captions.first().map_or(0, |caption| caption.tokens.len());
    let (limit, vocabulary_size) = (config.text.context_length, config.text.vocabulary_size);
    for caption in captions {
        let found = caption.tokens.len();
        if found != length || found > limit || caption.end >= found {
            let expected = format!("captions of {length} text tokens, at most {limit}, with an end token");
            return Err(MetricsError::shape("caption features", expected, format!("{found} with the end token at {}", caption.end)));
        }
        if let Some(text_token) = caption.tokens.iter().find(|&&text_token| text_token as usize >= vocabulary_size) {
            return Err(MetricsError::shape("caption features", format!("text tokens below {vocabulary_size}"), text_token.to_string()));
        }
    }
    in_batches(captions, config.embedding_channels, |batch| {
        let text_tokens: Vec<i64> = batch.iter().flat_map(|caption| &caption.tokens).map(|&text_token| text_token.into()).collect();
        let text_tokens = Tensor::<2, Int>::from_data(TensorData::new(text_tokens, [batch.len(), length]), &device);
        let end: Vec<usize> = batch.iter().map(|caption| caption.end).collect();
        clip.encode_text(text_tokens, &end)
    })
}

fn in_batches<T>(items: &[T], channels: usize, encode: impl Fn(&[T]) -> Tensor<2>) -> Result<Features, MetricsError> {
    let values = items.chunks(BATCH_SIZE).flat_map(|batch| encode(batch).into_data().iter::<f32>().collect::<Vec<f32>>()).collect();
    Features::new(channels, values)
}

/// [batch, size, size, 3] in [-1, 1].
fn pixels(pictures: &[Picture], size: usize, filter: Filter, device: &burn::tensor::Device) -> Tensor<4> {
    let values: Vec<f32> = pictures.iter().flat_map(|picture| resize(picture, size, size, filter).to_f32()).collect();
    Tensor::from_data(TensorData::new(values, [pictures.len(), size, size, 3]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use smalti_models::contrastive::clip::Config;
    use smalti_nn::Initializer;

    fn judge() -> Clip {
        let mut config = Config::pictograms_64(20, 6);
        config.image.transformer.layer_count = 1;
        config.text.transformer.layer_count = 1;
        Clip::new(&config, &mut Initializer::new(1, &Device::flex())).unwrap()
    }

    #[test]
    fn features_do_not_depend_on_the_batch() {
        let judge = judge();
        let pictures: Vec<Picture> = (0..40u8).map(|index| Picture::filled(64 + usize::from(index % 3), 64, [index * 6, 100, 255 - index])).collect();
        let all = picture_features(&judge, &pictures).unwrap();
        assert_eq!((all.count(), all.channels()), (40, 128));
        for index in [0, 31, 32, 39] {
            assert_eq!(picture_features(&judge, &pictures[index..=index]).unwrap().row(0), all.row(index));
        }
        assert_eq!(picture_features(&judge, &[]).unwrap().count(), 0);
        let captions: Vec<Encoded> = (0..40).map(|index| Encoded { tokens: vec![1, index % 20, 7, 2, 0, 0], visible: vec![true; 6], end: 3 }).collect();
        let all = caption_features(&judge, &captions).unwrap();
        for index in [0, 31, 32, 39] {
            assert_eq!(caption_features(&judge, &captions[index..=index]).unwrap().row(0), all.row(index));
        }
    }

    #[test]
    fn captions_that_the_judge_cannot_read_are_errors() {
        let judge = judge();
        let caption = |tokens: &[u32], end| Encoded { tokens: tokens.to_vec(), visible: vec![true; tokens.len()], end };
        assert_eq!(caption_features(&judge, &[caption(&[1, 2, 3], 2), caption(&[4, 3, 0], 1)]).unwrap().count(), 2);
        assert!(caption_features(&judge, &[caption(&[1, 2, 3], 3)]).is_err());
        assert!(caption_features(&judge, &[caption(&[1; 7], 3)]).is_err());
        assert!(caption_features(&judge, &[caption(&[1, 2], 1), caption(&[1], 0)]).is_err());
        let error = caption_features(&judge, &[caption(&[1, 20], 1)]).unwrap_err();
        assert_eq!(error.to_string(), "caption features: expected text tokens below 20, found 20");
    }

    #[test]
    fn conventions_say_everything_that_changes_the_number() {
        let network = FeatureNetwork::Clip { network: Box::new(judge()), name: "judge of bundle x".into() };
        assert_eq!(
            network.conventions("real pictures of pairs").to_string(),
            "features: judge of bundle x; resize: 64 x 64, bicubic with antialiasing, 8 bits a channel; \
             normalisation: [0, 1], minus [0.5, 0.5, 0.5], divided by [0.5, 0.5, 0.5]; features of unit length; reference: real pictures of pairs"
        );
    }
}
