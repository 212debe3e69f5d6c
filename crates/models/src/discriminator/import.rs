//! taming's `NLayerDiscriminator` under our names.

use smalti_nn::weights::{HostTensor, NamedTensors};

/// The weights of a `NLayerDiscriminator`, from the names that begin with `prefix` (`loss.discriminator.` in a whole VQGAN checkpoint, else empty); other
/// names are left out, unknown ones under the prefix keep theirs, so that strict loading reports them.
pub fn taming(tensors: &NamedTensors, prefix: &str) -> NamedTensors {
    let own = || tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
    let last = own().filter_map(|(name, _)| place(name)).map(|(index, _)| index).max().unwrap_or(0);
    let renamed = own().map(|(name, tensor)| {
        let tensor = if tensor.shape.len() == 4 { tensor.permute(&[2, 3, 1, 0]) } else { tensor.clone() };
        (our_name(name, last).unwrap_or_else(|| name.to_string()), tensor)
    });
    renamed.collect::<std::collections::BTreeMap<String, HostTensor>>()
}

/// `main.5.weight` -> (5, "weight")
fn place(name: &str) -> Option<(usize, &str)> {
    let (index, leaf) = name.strip_prefix("main.")?.split_once('.')?;
    Some((index.parse().ok()?, leaf))
}

/// In the sequence stand: convolution, activation, then convolution, normalisation, activation for each layer, and the last convolution.
fn our_name(name: &str, last: usize) -> Option<String> {
    let (index, leaf) = place(name)?;
    let leaf_of_norm = match leaf {
        "weight" => "scale",
        "bias" => "bias",
        "running_mean" => "running_mean",
        "running_var" => "running_variance",
        _ => return None,
    };
    match index {
        _ if index == last => Some(format!("conv_out.{leaf}")),
        0 => Some(format!("layers.0.conv.{leaf}")),
        _ if index % 3 == 2 => Some(format!("layers.{}.conv.{leaf}", (index + 1) / 3)),
        _ if index % 3 == 0 => Some(format!("layers.{}.batch_norm.{leaf_of_norm}", index / 3)),
        _ => None,
    }
}
