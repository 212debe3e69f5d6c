//! `config.json` of diffusers' U-Nets.

use crate::ConfigError;
use crate::generator::unet::{Config, DownsamplingPadding, TextConfig, TimeUse, time_embedding};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Keys that say nothing about the network's formula: sizes of training pictures, bookkeeping, training's dropout, precision of scores, and the choice between
/// a 1x1 convolution and the linear map that it is.
const WITHOUT_MEANING: &[&str] =
    &["sample_size", "dropout", "upcast_attention", "num_train_timesteps", "addition_embed_type_num_heads", "use_linear_projection", "addition_time_embed_dim"];

/// Keys that we implement at these values only, as JSON. All are diffusers' defaults.
const FIXED: &[(&str, &[&str])] = &[
    ("act_fn", &["\"silu\"", "\"swish\""]),
    ("addition_embed_type", &["null"]),
    ("attention_type", &["\"default\""]),
    ("center_input_sample", &["false"]),
    ("class_embed_type", &["null"]),
    ("class_embeddings_concat", &["false"]),
    ("conv_in_kernel", &["3"]),
    ("conv_out_kernel", &["3"]),
    ("cross_attention_norm", &["null"]),
    ("downsample_type", &["\"conv\""]),
    ("dual_cross_attention", &["false"]),
    ("encoder_hid_dim", &["null"]),
    ("encoder_hid_dim_type", &["null"]),
    ("mid_block_only_cross_attention", &["null", "false"]),
    ("mid_block_scale_factor", &["1"]),
    ("num_attention_heads", &["null"]),
    ("only_cross_attention", &["false"]),
    ("projection_class_embeddings_input_dim", &["null"]),
    ("resnet_out_scale_factor", &["1"]),
    ("resnet_skip_time_act", &["false"]),
    ("reverse_transformer_layers_per_block", &["null"]),
    ("time_cond_proj_dim", &["null"]),
    ("time_embedding_act_fn", &["null"]),
    ("time_embedding_type", &["\"positional\""]),
    ("timestep_post_act", &["null"]),
    ("upsample_type", &["\"conv\""]),
];

/// Reads the text of a `config.json` of a `UNet2DModel` or a `UNet2DConditionModel`. Keys that are left out have diffusers' defaults.
///
/// `attention_head_dim` is the channels of a head in the former and, by a mistake that diffusers keeps for compatibility, the number of heads in the latter.
pub fn diffusers_config(json: &str) -> Result<Config, ConfigError> {
    let keys = serde_json::from_str(json).map_err(|error| ConfigError::new("config.json", "the config of a U-Net", error))?;
    let mut file = File { keys };
    let class: String = file.take("_class_name", String::new())?;
    let config = match class.as_str() {
        "UNet2DModel" => without_text(&mut file)?,
        "UNet2DConditionModel" => with_text(&mut file)?,
        _ => return Err(named("_class_name", "`UNet2DModel` or `UNet2DConditionModel`", format!("`{class}`"))),
    };
    file.finish()?;
    config.validate()?;
    Ok(config)
}

fn without_text(file: &mut File) -> Result<Config, ConfigError> {
    let blocks = BlockNames { down: ["DownBlock2D", "AttnDownBlock2D"], up: ["UpBlock2D", "AttnUpBlock2D"], middle: "UNetMidBlock2D" };
    let config = shared(file, &blocks, [3, 3], &[224, 448, 672, 896])?;
    let head_channels: Option<usize> = file.take("attention_head_dim", Some(8))?;
    let mut head_counts = Vec::with_capacity(config.level_channels.len());
    for (level, &channels) in config.level_channels.iter().enumerate() {
        let attends = config.attention_levels.contains(&level) || (config.middle_attention && level + 1 == config.level_channels.len());
        let width = head_channels.unwrap_or(channels);
        let fits = width > 0 && channels.is_multiple_of(width);
        check(fits || !attends, "attention_head_dim", &format!("a divisor of {channels}, the channels of level {level}"), width)?;
        head_counts.push(if fits { channels / width } else { 1 });
    }
    let middle_attention = file.take("add_attention", true)?;
    let middle_groups: Option<usize> = file.take("attn_norm_num_groups", None)?;
    // Without the key, diffusers leaves this one normalisation out if the time scales and shifts.
    let groups = middle_groups.or((config.time_use == TimeUse::Shift).then_some(config.group_count));
    if middle_attention {
        let found = middle_groups.map_or("null".into(), |count| count.to_string());
        check(groups == Some(config.group_count), "attn_norm_num_groups", &format!("{}, as norm_num_groups", config.group_count), found)?;
    }
    Ok(Config { head_counts, middle_attention, ..config })
}

fn with_text(file: &mut File) -> Result<Config, ConfigError> {
    let blocks = BlockNames { down: ["DownBlock2D", "CrossAttnDownBlock2D"], up: ["UpBlock2D", "CrossAttnUpBlock2D"], middle: "UNetMidBlock2DCrossAttn" };
    let config = shared(file, &blocks, [4, 4], &[320, 640, 1280, 1280])?;
    let levels = config.level_channels.len();
    let head_counts = file.take("attention_head_dim", OneOrMany::One(8usize))?.each(levels);
    let text = TextConfig {
        channels: file.take("cross_attention_dim", OneOrMany::One(1280))?.same("cross_attention_dim")?,
        block_count: file.take("transformer_layers_per_block", OneOrMany::One(1))?.same("transformer_layers_per_block")?,
    };
    Ok(Config { head_counts, text: Some(text), ..config })
}

/// The names of blocks, without attention and with.
struct BlockNames {
    down: [&'static str; 2],
    up: [&'static str; 2],
    middle: &'static str,
}

/// What both classes have; heads and text are filled in by the caller.
fn shared(file: &mut File, blocks: &BlockNames, [input, output]: [usize; 2], level_channels: &[usize]) -> Result<Config, ConfigError> {
    let input_channels: usize = file.take("in_channels", input)?;
    let predicted_channels: usize = file.take("out_channels", output)?;
    let learned_variance = predicted_channels == 2 * input_channels;
    let level_channels: Vec<usize> = file.take("block_out_channels", level_channels.to_vec())?;
    let levels = level_channels.len();
    let down: Vec<String> = file.required("down_block_types")?;
    let up: Vec<String> = file.required("up_block_types")?;
    let attention_levels = attending(&down, blocks.down, "down_block_types")?;
    let mirrored: Vec<usize> = attending(&up, blocks.up, "up_block_types")?.into_iter().rev().map(|level| up.len() - 1 - level).collect();
    let same = down.len() == levels && up.len() == levels && mirrored == attention_levels;
    check(same, "up_block_types", "the mirror picture of down_block_types, one for each of block_out_channels", format!("{up:?}"))?;
    let middle: Option<String> = file.take("mid_block_type", Some(blocks.middle.to_string()))?;
    check(middle.as_deref() == Some(blocks.middle), "mid_block_type", &format!("`{}`", blocks.middle), format!("{middle:?}"))?;
    let time_use = match file.take("resnet_time_scale_shift", "default".to_string())?.as_str() {
        "default" => TimeUse::Shift,
        "scale_shift" => TimeUse::ScaleShift,
        other => return Err(named("resnet_time_scale_shift", "`default` or `scale_shift`", format!("`{other}`"))),
    };
    let downsampling_padding = match file.take("downsample_padding", 1usize)? {
        0 => DownsamplingPadding::After,
        1 => DownsamplingPadding::AllSides,
        other => return Err(named("downsample_padding", "0 or 1", other.to_string())),
    };
    let base_channels = level_channels.first().copied().unwrap_or(0);
    let time_channels: Option<usize> = file.take("time_embedding_dim", None)?;
    Ok(Config {
        input_channels,
        output_channels: if learned_variance { input_channels } else { predicted_channels },
        learned_variance,
        residual_block_count: file.take("layers_per_block", OneOrMany::One(2))?.same("layers_per_block")?,
        attention_levels,
        middle_attention: true,
        head_counts: Vec::new(),
        text: None,
        class_count: file.take("num_class_embeds", None)?,
        time: time_embedding::Config {
            sinusoid_channels: base_channels,
            channels: time_channels.unwrap_or(base_channels.saturating_mul(4)),
            frequency_shift: file.take("freq_shift", 0.0)?,
            cosine_first: file.take("flip_sin_to_cos", true)?,
        },
        time_use,
        downsampling_padding,
        group_count: file.take("norm_num_groups", 32)?,
        norm_epsilon: file.take("norm_eps", 1e-5)?,
        level_channels,
    })
}

/// Which of `types` attend; every one must be one of the two names.
fn attending(types: &[String], [plain, attending]: [&str; 2], key: &str) -> Result<Vec<usize>, ConfigError> {
    if let Some(unknown) = types.iter().find(|name| *name != plain && *name != attending) {
        return Err(named(key, &format!("`{plain}` or `{attending}`"), format!("`{unknown}`")));
    }
    Ok((0..types.len()).filter(|&index| types[index] == attending).collect())
}

/// The keys that nobody has asked for yet.
struct File {
    keys: Map<String, Value>,
}

impl File {
    /// The value of a key, taken out; `default` where the key is not there.
    fn take<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T, ConfigError> {
        match self.keys.remove(key) {
            Some(value) => serde_json::from_value(value.clone()).map_err(|error| named(key, &format!("another kind of value ({error})"), value.to_string())),
            None => Ok(default),
        }
    }

    fn required<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, ConfigError> {
        let value: Option<T> = self.take(key, None)?;
        value.ok_or_else(|| named(key, "a value", "none".into()))
    }

    /// What is left must change nothing.
    fn finish(self) -> Result<(), ConfigError> {
        for (key, value) in self.keys {
            if key.starts_with('_') || WITHOUT_MEANING.contains(&key.as_str()) {
                continue;
            }
            let Some((_, allowed)) = FIXED.iter().find(|(fixed, _)| *fixed == key) else {
                return Err(named(&key, "no such key", value.to_string()));
            };
            let same = |allowed: &&str| {
                let allowed: Value = serde_json::from_str(allowed).expect("the table holds JSON");
                value == allowed || (value.is_number() && value.as_f64() == allowed.as_f64())
            };
            check(allowed.iter().any(same), &key, &allowed.join(" or "), value.to_string())?;
        }
        Ok(())
    }
}

/// diffusers writes one number for all levels, or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl OneOrMany<usize> {
    fn each(self, count: usize) -> Vec<usize> {
        match self {
            Self::One(value) => vec![value; count],
            Self::Many(values) => values,
        }
    }

    /// The one value of all levels.
    fn same(self, key: &str) -> Result<usize, ConfigError> {
        match self {
            Self::One(value) => Ok(value),
            Self::Many(values) => match values.first() {
                Some(&first) if values.iter().all(|value| *value == first) => Ok(first),
                _ => Err(named(key, "the same number for every level", format!("{values:?}"))),
            },
        }
    }
}

fn check(holds: bool, key: &str, expected: &str, found: impl std::fmt::Display) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(named(key, expected, found.to_string())) }
}

fn named(key: &str, expected: &str, found: String) -> ConfigError {
    ConfigError::new(format!("config.json: {key}"), expected, found)
}
