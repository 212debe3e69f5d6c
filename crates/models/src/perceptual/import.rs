//! Published weights of VGG16 and LPIPS under our names.

use super::vgg::CONVOLUTION_COUNTS;
use smalti_nn::weights::{HostTensor, NamedTensors};

/// What is left out on purpose: torchvision's classifier, the constants of lpips' `ScalingLayer` (they are ours too), and `lins.`, under which lpips saves
/// its heads a second time.
const IGNORED: [&str; 3] = ["classifier.", "scaling_layer.", "lins."];

/// The weights of LPIPS from one or several files put together: torchvision's `vgg16` (`features.0.weight` ...) and lpips' `vgg.pth`
/// (`lin0.model.1.weight` ...), or the whole state dictionary of `lpips.LPIPS(net="vgg")` (`net.slice1.0.weight` ...). Unknown names stay, so that strict
/// loading reports them.
pub fn lpips(tensors: NamedTensors) -> NamedTensors {
    let wanted = tensors.into_iter().filter(|(name, _)| !IGNORED.iter().any(|ignored| name.starts_with(ignored)));
    wanted.map(|(name, tensor)| (our_name(&name).unwrap_or(name), converted(tensor))).collect()
}

fn our_name(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('.').collect();
    match parts.as_slice() {
        ["features", index, leaf @ ("weight" | "bias")] | ["net", _, index, leaf @ ("weight" | "bias")] => {
            let (stage, convolution) = convolution_at(index.parse().ok()?)?;
            Some(format!("vgg.stages.{stage}.convolutions.{convolution}.{leaf}"))
        }
        // With dropout in front the head is the second of its sequence, without it the first.
        [head, "model", "0" | "1", "weight"] => Some(format!("heads.{}", head.strip_prefix("lin")?.parse::<usize>().ok()?)),
        _ => None,
    }
}

/// Stage and convolution at a place of torchvision's sequence, where each convolution is followed by a ReLU and each stage by a pooling.
fn convolution_at(index: usize) -> Option<(usize, usize)> {
    let mut first = 0;
    for (stage, count) in CONVOLUTION_COUNTS.into_iter().enumerate() {
        let convolution = index.checked_sub(first)? / 2;
        if convolution < count {
            return (index - first).is_multiple_of(2).then_some((stage, convolution));
        }
        first += 2 * count + 1;
    }
    None
}

/// [output, input, kernel, kernel] -> [kernel, kernel, input, output]; a head [1, channels, 1, 1] -> [channels].
fn converted(tensor: HostTensor) -> HostTensor {
    match *tensor.shape.as_slice() {
        [1, channels, 1, 1] => tensor.reshape([channels]),
        [_, _, _, _] => tensor.permute(&[2, 3, 1, 0]),
        _ => tensor,
    }
}
