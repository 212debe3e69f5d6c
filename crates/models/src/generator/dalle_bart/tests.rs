//! Shapes, goldens of `min_dalle` and `transformers`, gradients, learning, weights; and what a cache and a batch must not change.

use super::*;
use burn::module::{ModuleMapper, ModuleVisitor};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Gradients, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use smalti_nn::weights::{self, HostTensor, NamedTensors, WeightsError, pickle, safetensors};
use smalti_testing::{Array, check_close, golden, module_gradient_check};
use std::path::PathBuf;

/// Both families at a size of a few thousand weights; text of up to 6 tokens, pictures of 5.
fn small_dalle() -> Config {
    let stack = |block_count| StackConfig { block_count, head_count: 2, feed_forward_channels: 10 };
    Config { text_token_count: 6, channels: 8, encoder: stack(2), decoder: stack(2), ..Config::pictograms(12, 9, 5) }
}

fn small_bart() -> Config {
    let stack = |block_count| StackConfig { block_count, head_count: 2, feed_forward_channels: 10 };
    Config {
        text_vocabulary: 12,
        text_token_count: 6,
        image_vocabulary: 12,
        image_token_count: 5,
        channels: 8,
        scale_embedding: true,
        encoder: stack(1),
        decoder: stack(2),
        ..Config::bart_base()
    }
}

/// Weights far from their first values, so that attention is not uniform and no term is idle.
fn spread(model: DalleBart) -> DalleBart {
    struct Spread(ChaCha12Rng);
    impl ModuleMapper for Spread {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let requires_grad = param.is_require_grad();
            let tensor = param.val();
            let Array { shape, values } = Array::from(&tensor);
            let mut noise = || self.0.next_u32() as f32 / u32::MAX as f32 * 1.4 - 0.7;
            let values: Vec<f32> = values.iter().map(|value| value + noise()).collect();
            let tensor = Tensor::<D>::from_data(TensorData::new(values, shape), &tensor.device());
            Param::initialized(param.id, tensor.set_require_grad(requires_grad))
        }
    }
    model.map(&mut Spread(ChaCha12Rng::seed_from_u64(4)))
}

fn model(config: &Config, device: &Device) -> DalleBart {
    config.validate().unwrap();
    spread(DalleBart::new(config, &mut Initializer::new(3, device)))
}

fn integers<const R: usize, const C: usize>(values: [[i64; C]; R], device: &Device) -> Tensor<2, Int> {
    Tensor::from_data(values, device)
}

/// Two captions, the second one of 3 tokens and padding.
fn captions(device: &Device) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    let tokens = integers([[0, 3, 4, 5, 6, 2], [0, 7, 2, 1, 1, 1]], device);
    (tokens.clone(), tokens.not_equal_elem(1))
}

fn pictures(device: &Device) -> Tensor<2, Int> {
    integers([[1, 8, 0, 3, 3], [5, 2, 7, 7, 4]], device)
}

fn goldens(file: &str) -> PathBuf {
    PathBuf::from("src/generator/dalle_bart/goldens").join(file)
}

// Shape.

#[test]
fn shapes() {
    let device = Device::flex();
    for config in [small_dalle(), small_bart()] {
        let model = model(&config, &device);
        let (tokens, visible) = captions(&device);
        let memory = model.encode(tokens, visible.clone());
        assert_eq!(memory.dims(), [2, 6, 8]);
        assert_eq!(model.logits(memory.clone(), visible.clone(), pictures(&device)).dims(), [2, 5, config.image_vocabulary]);
        assert_eq!(model.logits(memory.clone(), visible.clone(), pictures(&device).narrow(1, 0, 1)).dims(), [2, 1, config.image_vocabulary]);
        let mut cache = model.cache(memory, visible, 3);
        assert_eq!(model.decode_step(&mut cache, model.start(6), 0).dims(), [6, config.image_vocabulary]);
    }
}

#[test]
fn presets_are_valid_and_as_large_as_published() {
    let check = |config: Config, millions: usize| {
        config.validate().unwrap();
        assert_eq!(parameter_count(&config) / 1_000_000, millions, "{config:?}");
    };
    check(Config::bart_base(), 139);
    check(Config::bart_large(), 406);
    check(Config::dalle_mini(), 437);
    check(Config::dalle_mega(), 2_587);
    check(Config::pictograms(4096, 512, 64), 8);
}

/// What the names and shapes of the network add up to, without making it.
fn parameter_count(config: &Config) -> usize {
    let Config { channels, .. } = *config;
    let linear = |input: usize, output: usize| input * output + if config.linear_bias { output } else { 0 };
    let attention = 4 * linear(channels, channels);
    let (norms, matrices) = if config.norms == Norms::Post { (1, 2) } else { (2, 3) };
    let side = |stack: &StackConfig, attentions: usize, tokens: usize| {
        let middle = stack.feed_forward_channels;
        let feed_forward = (matrices - 1) * linear(channels, middle) + linear(middle, channels) + if norms == 2 { 2 * middle } else { 0 };
        let block = attentions * attention + feed_forward + (attentions * norms + 1) * 2 * channels;
        stack.block_count * block + (config.position_offset + tokens) * channels + norms * 2 * channels
    };
    let tables = match config.vocabularies {
        Vocabularies::Shared => config.text_vocabulary * channels,
        Vocabularies::Separate => (config.text_vocabulary + 2 * config.image_table_size()) * channels,
    };
    let bias = if config.logits_bias { config.image_table_size() } else { 0 };
    side(&config.encoder, 1, config.text_token_count) + side(&config.decoder, 2, config.image_token_count) + tables + bias
}

#[test]
fn the_count_is_the_networks() {
    for config in [small_dalle(), small_bart()] {
        let weights = weights::collect(&model(&config, &Device::flex()));
        assert_eq!(weights.values().map(|tensor| tensor.values.len()).sum::<usize>(), parameter_count(&config));
    }
}

#[test]
fn impossible_configs_are_named() {
    let check = |change: fn(&mut Config), message: &str| {
        let mut config = small_dalle();
        change(&mut config);
        assert_eq!(config.validate().unwrap_err().to_string(), message);
    };
    check(|config| config.channels = 0, "`channels`: expected 1 to 65536, found 0");
    check(|config| config.encoder.head_count = 3, "`encoder.head_count`: expected a divisor of channels = 8, found 3");
    check(|config| config.decoder.head_count = 0, "`decoder.head_count`: expected 1 to 65536, found 0");
    check(|config| config.decoder.block_count = 1 << 30, "`decoder.block_count`: expected 1 to 1024, found 1073741824");
    check(|config| config.start_token = 10, "`start_token`: expected below image_vocabulary + special_token_count = 10, found 10");
    check(
        |config| config.vocabularies = Vocabularies::Shared,
        "`text_vocabulary`: expected image_vocabulary + special_token_count = 10, since vocabularies = \"shared\", found 12",
    );
}

#[test]
fn configs_go_round_and_unknown_keys_are_refused() {
    let text = serde_json::to_string(&Config::dalle_mini()).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), Config::dalle_mini());
    let error = serde_json::from_str::<Config>(&text.replace("\"channels\"", "\"d_model\"")).unwrap_err().to_string();
    assert!(error.starts_with("unknown field `d_model`"), "{error}");
}

// Golden: min-dalle.

/// The golden's sizes are smaller than any published ones, so the number of codes and of heads are said here; the rest is read off the weights.
fn min_dalle(device: &Device) -> DalleBart {
    let (encoder, decoder) = (pickle::read(&goldens("min_dalle_encoder.pt")).unwrap(), pickle::read(&goldens("min_dalle_decoder.pt")).unwrap());
    let config = import::min_dalle_config_of(&encoder, &decoder, 96, 16).unwrap();
    let model = DalleBart::new(&config, &mut Initializer::new(0, device));
    weights::apply(model, import::min_dalle(encoder, decoder), device).unwrap()
}

/// Encoder, logits, loss and the gradient of every parameter.
#[test]
fn min_dalle_agrees() {
    let device = Device::flex().autodiff();
    let (model, expected) = (min_dalle(&device), golden(goldens("min_dalle_results.safetensors")));
    assert_eq!(model.config().special_token_count, 4);
    let visible = expected.integer_tensor::<2>("visible", &device).equal_elem(1);
    let memory = model.encode(expected.integer_tensor("text_tokens", &device), visible.clone());
    check_close("memory", memory.clone(), expected.array("memory"), 1e-4);
    let image_tokens = expected.integer_tensor::<2>("image_tokens", &device).expand([2, 24]);
    let logits = model.logits(memory, visible, image_tokens.clone());
    check_close("logits", logits.clone(), expected.array("logits"), 1e-4);
    let loss = loss::cross_entropy(logits, image_tokens, 0.0);
    check_close("loss", loss.clone(), expected.array("loss"), 1e-5);

    let file = safetensors::read(&goldens("min_dalle_gradients.safetensors")).unwrap();
    let side = |side: &str| file.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(side)?.to_string(), tensor.clone()))).collect();
    check_gradients(&model, loss, import::min_dalle(side("encoder."), side("decoder.")));
}

/// 256 greedy tokens through the cache, plain and super-conditioned, as min-dalle's own cache gives them.
#[test]
fn min_dalle_draws_the_same_tokens() {
    let device = Device::flex();
    let (model, expected) = (min_dalle(&device), golden(goldens("min_dalle_results.safetensors")));
    let tokens: Vec<u32> = expected.integers("text_tokens").iter().map(|token| *token as u32).collect();
    let visible: Vec<bool> = expected.integers("visible").iter().map(|visible| *visible == 1).collect();
    let caption = |row: usize| Caption { text_tokens: &tokens[row * 64..][..64], visible: &visible[row * 64..][..64] };
    let greedy = |null: Option<Caption>, guidance_scale: f32| {
        let mut candidates = Candidates::new(&model, caption(1), null, 1).unwrap();
        let mut drawn: Vec<i64> = Vec::new();
        for position in 0..256 {
            let previous: Vec<u32> = drawn.last().map(|token| *token as u32).into_iter().collect();
            let StepLogits { conditional, unconditional } = candidates.next_logits(&previous, position);
            let null = unconditional.unwrap_or_else(|| conditional.clone());
            let guided: Vec<f32> = conditional.iter().zip(null).map(|(conditional, null)| null + guidance_scale * (conditional - null)).collect();
            drawn.push((0..guided.len()).max_by(|a, b| guided[*a].total_cmp(&guided[*b])).unwrap() as i64);
        }
        drawn
    };
    assert_eq!(greedy(None, 1.0), expected.integers("greedy"));
    assert_eq!(greedy(Some(caption(0)), 3.0), expected.integers("greedy_guided"));
}

/// min-dalle's first converter gave the projections of the attention two axes more.
#[test]
fn projections_as_convolutions_are_the_same_weights() {
    let files = ["min_dalle_encoder.pt", "min_dalle_decoder.pt"].map(|file| pickle::read(&goldens(file)).unwrap());
    let expected = import::min_dalle(files[0].clone(), files[1].clone());
    let [encoder, decoder] = files.map(|mut tensors| {
        for (_, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains("_proj.")) {
            tensor.shape.extend([1, 1]);
        }
        tensors
    });
    assert_eq!(import::min_dalle(encoder, decoder), expected);
}

#[test]
fn configs_of_the_published_files_are_read_off_their_shapes() {
    let files = |config: &Config| {
        let table = |count, channels| HostTensor { shape: vec![count, channels], values: Vec::new() };
        let mut encoder = NamedTensors::from([
            ("embed_tokens.weight".into(), table(config.text_vocabulary, config.channels)),
            ("embed_positions.weight".into(), table(64, config.channels)),
        ]);
        let mut decoder = NamedTensors::from([
            ("embed_tokens.weight".into(), table(config.image_table_size(), config.channels)),
            ("embed_positions.weight".into(), table(256, config.channels)),
        ]);
        for layer in 0..config.encoder.block_count {
            let gate = table(config.encoder.feed_forward_channels, config.channels);
            encoder.insert(format!("layers.{layer}.glu.fc0.weight"), gate.clone());
            decoder.insert(format!("layers.{layer}.glu.fc0.weight"), gate);
        }
        (encoder, decoder)
    };
    for config in [Config::dalle_mini(), Config::dalle_mega()] {
        let (encoder, decoder) = files(&config);
        assert_eq!(import::min_dalle_config(&encoder, &decoder).unwrap(), config);
    }
    let (encoder, decoder) = files(&Config::dalle_mini());
    let swapped = import::min_dalle_config(&decoder, &encoder);
    assert_eq!(swapped.map(|config| config.special_token_count), Ok(50_264 - 16_384), "the files look alike; loading tells them apart");
    let error = import::min_dalle_config(&NamedTensors::new(), &decoder).unwrap_err().to_string();
    assert_eq!(error, "`encoder tensor `embed_tokens.weight``: expected a matrix of DalleBart, found no such tensor");
}

// Golden: transformers.

struct HuggingFace {
    model: DalleBart,
    config: Config,
    results: smalti_testing::Golden,
    gradients: NamedTensors,
}

fn hugging_face(name: &str, device: &Device) -> HuggingFace {
    let config = import::hugging_face_config(&std::fs::read_to_string(goldens(&format!("{name}_config.json"))).unwrap()).unwrap();
    let tensors = safetensors::read(&goldens(&format!("{name}_weights.safetensors"))).unwrap();
    let model = DalleBart::new(&config, &mut Initializer::new(0, device));
    let model = weights::apply(model, import::hugging_face(tensors, &config), device).unwrap();
    let gradients = safetensors::read(&goldens(&format!("{name}_gradients.safetensors"))).unwrap();
    HuggingFace { model, gradients, results: golden(goldens(&format!("{name}_results.safetensors"))), config }
}

/// Encoder, logits, loss, smoothed loss and the gradient of every parameter.
fn check_hugging_face(name: &str) {
    let device = Device::flex().autodiff();
    let HuggingFace { model, config, results, gradients } = hugging_face(name, &device);
    let visible = results.integer_tensor::<2>("visible", &device).equal_elem(1);
    let memory = model.encode(results.integer_tensor("text_tokens", &device), visible.clone());
    // Padded places are nobody's business, there the two may differ.
    let seen = |memory: Tensor<3>| memory.mask_fill(visible.clone().bool_not().unsqueeze_dim::<3>(2).expand([2, 11, 24]), 0.0);
    check_close("memory", seen(memory.clone()), seen(results.tensor("memory", &device)), 1e-4);
    let image_tokens = results.integer_tensor::<2>("image_tokens", &device);
    let logits = model.logits(memory, visible.clone(), image_tokens.clone());
    check_close("logits", logits.clone(), results.array("logits"), 1e-4);
    check_close("smoothed loss", loss::cross_entropy(logits.clone(), image_tokens.clone(), 0.1), results.array("smoothed_loss"), 1e-5);
    let loss = loss::cross_entropy(logits, image_tokens, 0.0);
    check_close("loss", loss.clone(), results.array("loss"), 1e-5);

    let mut expected = import::hugging_face(gradients, &config);
    expected.remove("logits_bias"); // a constant of the network, of which the file of gradients knows nothing
    check_gradients(&model, loss, expected);
}

fn check_gradients(model: &DalleBart, loss: Tensor<1>, expected: NamedTensors) {
    let found = gradients_of(model, &loss.backward());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, HostTensor { shape, values }) in expected {
        if name.ends_with("attention.key.bias") {
            // A bias of the keys adds the same to all scores of a query, which softmax does not see: both gradients are rounding.
            assert!(found[&name].values.iter().all(|gradient| gradient.abs() < 1e-6), "gradient of {name}");
        } else {
            check_close(&format!("gradient of {name}"), found[&name].clone(), Array { shape, values }, 1e-4);
        }
    }
}

#[test]
fn bart_agrees() {
    check_hugging_face("bart");
}

#[test]
fn untied_and_scaled_bart_agrees() {
    check_hugging_face("bart_untied");
}

fn gradients_of(model: &DalleBart, gradients: &Gradients) -> std::collections::BTreeMap<String, Array> {
    struct Visitor<'a>(Vec<String>, &'a Gradients, std::collections::BTreeMap<String, Array>);
    impl ModuleVisitor for Visitor<'_> {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_string());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(gradient) = param.val().grad(self.1) {
                self.2.insert(self.0.join("."), gradient.into());
            }
        }
    }
    let mut visitor = Visitor(Vec::new(), gradients, Default::default());
    model.visit(&mut visitor);
    visitor.2
}

#[test]
fn wrong_foreign_configs_are_named() {
    let check = |json: &str, message: &str| {
        let found = import::hugging_face_config(json).unwrap_err().to_string();
        assert!(found.starts_with(message), "{found}");
    };
    check("{", "`config.json`: expected the config of a BartForConditionalGeneration, found EOF");
    check(r#"{"activation_function": "relu"}"#, "`config.json: activation_function`: expected `gelu`, found `relu`");
    check(r#"{"d_model": 10}"#, "`encoder.head_count`: expected a divisor of channels = 10, found 16");
    assert_eq!(import::hugging_face_config("{}").unwrap(), Config::bart_large());
}

// Gradients.

#[test]
fn gradients_agree_with_finite_differences() {
    let device = Device::flex().autodiff();
    let (tokens, visible) = captions(&device);
    // One block a side is enough here, and the bias of the logits is a constant that has no gradient.
    let dalle = small_dalle();
    let stack = StackConfig { block_count: 1, ..dalle.encoder.clone() };
    let dalle = Config { encoder: stack.clone(), decoder: stack.clone(), ..dalle };
    let bart = Config { decoder: stack, logits_bias: false, ..small_bart() };
    for config in [dalle, bart] {
        module_gradient_check("dalle_bart", &model(&config, &device), 2e-2, |model| {
            let memory = model.encode(tokens.clone(), visible.clone());
            loss::cross_entropy(model.logits(memory, visible.clone(), pictures(&device)), pictures(&device), 0.1)
        });
    }
}

// Learning.

#[test]
fn one_batch_is_learned_by_heart() {
    let device = Device::flex().autodiff();
    let (tokens, visible) = captions(&device);
    let mut model = DalleBart::new(&small_dalle(), &mut Initializer::new(1, &device));
    let mut optimizer = AdamConfig::new().init();
    let loss = |model: &DalleBart| {
        let memory = model.encode(tokens.clone(), visible.clone());
        loss::cross_entropy(model.logits(memory, visible.clone(), pictures(&device)), pictures(&device), 0.0)
    };
    let first = loss(&model).into_scalar::<f32>();
    assert!((first - 9.0_f32.ln()).abs() < 0.1, "an untrained network knows nothing: {first}");
    for _ in 0..150 {
        let gradients = GradientsParams::from_grads(loss(&model).backward(), &model);
        model = optimizer.step(0.02, model, gradients);
    }
    let last = loss(&model).into_scalar::<f32>();
    assert!(last < 0.05, "{first} -> {last}");
}

// Weights.

#[test]
fn weights_go_round() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("generator.safetensors");
    for config in [small_dalle(), small_bart()] {
        let original = model(&config, &device);
        safetensors::write(&path, &weights::collect(&original), safetensors::Storage::F32).unwrap();
        let fresh = DalleBart::new(&config, &mut Initializer::new(99, &device));
        let loaded = weights::apply(fresh, safetensors::read(&path).unwrap(), &device).unwrap();
        let (tokens, visible) = captions(&device);
        let logits = |model: &DalleBart| model.logits(model.encode(tokens.clone(), visible.clone()), visible.clone(), pictures(&device)).into_data();
        assert_eq!(logits(&loaded), logits(&original));
    }
}

/// Everything that is wrong with a foreign file comes in one report, by the names a reader can look up.
#[test]
fn a_damaged_checkpoint_is_reported_whole() {
    let device = Device::flex();
    let (mut encoder, decoder) = (pickle::read(&goldens("min_dalle_encoder.pt")).unwrap(), pickle::read(&goldens("min_dalle_decoder.pt")).unwrap());
    let config = import::min_dalle_config_of(&encoder, &decoder, 96, 16).unwrap();
    encoder.remove("layers.1.self_attn.q_proj.weight").unwrap();
    encoder.insert("layers.0.glu.fc2.weight".into(), HostTensor::new([3, 2], vec![0.0; 6]));
    encoder.insert("layers.0.glu.fc9.weight".into(), HostTensor::new([1], vec![0.0]));
    let model = DalleBart::new(&config, &mut Initializer::new(0, &device));
    let Err(WeightsError::Mismatch(report)) = weights::apply(model, import::min_dalle(encoder, decoder), &device) else { panic!("expected a mismatch") };
    assert_eq!(report.missing, ["encoder.blocks.1.self_attention.query.weight"]);
    assert_eq!(report.unused, ["layers.0.glu.fc9.weight"]);
    assert_eq!(report.misshapen, [("encoder.blocks.0.feed_forward.output.weight".to_string(), vec![44, 32], vec![2, 3])]);
}

#[test]
fn a_shared_table_has_one_value() {
    let device = Device::flex();
    let path = goldens("bart_weights.safetensors");
    let config = import::hugging_face_config(&std::fs::read_to_string(goldens("bart_config.json")).unwrap()).unwrap();
    let load = |change: fn(&mut NamedTensors)| {
        let mut tensors = safetensors::read(&path).unwrap();
        change(&mut tensors);
        let model = DalleBart::new(&config, &mut Initializer::new(0, &device));
        weights::apply(model, import::hugging_face(tensors, &config), &device).map(|model| weights::collect(&model))
    };
    let plain = load(|_| ()).unwrap();
    // Older files hold all four names.
    let copied = load(|tensors| {
        for name in ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"] {
            tensors.insert(name.into(), tensors["model.shared.weight"].clone());
        }
    });
    assert_eq!(copied.unwrap(), plain);
    // A `BartModel` has neither prefix nor bias.
    let bare = load(|tensors| {
        *tensors = std::mem::take(tensors).into_iter().map(|(name, tensor)| (name.trim_start_matches("model.").to_string(), tensor)).collect();
        tensors.remove("final_logits_bias").unwrap();
    });
    let mut without_bias = plain;
    without_bias.get_mut("logits_bias").unwrap().values.fill(0.0);
    assert_eq!(bare.unwrap(), without_bias);
    let torn = load(|tensors| {
        let mut other = tensors["model.shared.weight"].clone();
        other.values[0] += 1.0;
        tensors.insert("model.encoder.embed_tokens.weight".into(), other);
    });
    let Err(WeightsError::Mismatch(report)) = torn else { panic!("expected a mismatch") };
    assert_eq!(report.unused, ["model.encoder.embed_tokens.weight"]);
}

// What a cache, a batch and the future must not change.

#[test]
fn cached_and_uncached_agree() {
    let device = Device::flex();
    for config in [small_dalle(), small_bart()] {
        let model = model(&config, &device);
        let (tokens, visible) = captions(&device);
        let memory = model.encode(tokens, visible.clone());
        let image_tokens = pictures(&device);
        let expected = model.logits(memory.clone(), visible.clone(), image_tokens.clone());
        let mut cache = model.cache(memory, visible, 1);
        for position in 0..5 {
            let previous = if position == 0 { model.start(2) } else { image_tokens.clone().narrow(1, position - 1, 1) };
            let logits = model.decode_step(&mut cache, previous, position);
            check_close(&format!("position {position}"), logits, expected.clone().narrow(1, position, 1).squeeze_dim::<2>(1), 1e-5);
        }
    }
}

#[test]
fn logits_do_not_see_their_own_token_nor_later_ones() {
    let device = Device::flex();
    let model = model(&small_dalle(), &device);
    let (tokens, visible) = captions(&device);
    let memory = model.encode(tokens, visible.clone());
    let logits = |image_tokens| model.logits(memory.clone(), visible.clone(), image_tokens);
    let (one, other) = (logits(pictures(&device)), logits(integers([[1, 8, 6, 0, 1], [5, 2, 0, 1, 2]], &device)));
    assert_eq!(one.clone().narrow(1, 0, 3).into_data(), other.clone().narrow(1, 0, 3).into_data());
    assert_ne!(one.narrow(1, 3, 1).into_data(), other.narrow(1, 3, 1).into_data());
}

#[test]
fn padding_is_invisible() {
    let device = Device::flex();
    let model = model(&small_dalle(), &device);
    let (_, visible) = captions(&device);
    let logits = |padding: i64| {
        let tokens = integers([[0, 3, 4, 5, 6, 2], [0, 7, 2, padding, padding, padding]], &device);
        model.logits(model.encode(tokens, visible.clone()), visible.clone(), pictures(&device)).into_data()
    };
    assert_eq!(logits(1), logits(9));
}

/// The logits of a picture are the same bits alone and in a batch, first and last.
#[test]
fn a_picture_does_not_depend_on_its_batch() {
    let device = Device::flex();
    let config = Config { text_token_count: 6, image_token_count: 8, ..Config::pictograms(12, 300, 8) };
    let model = model(&config, &device);
    let caption = Caption { text_tokens: &[0, 7, 4, 2, 1, 1], visible: &[true, true, true, true, false, false] };
    let null = Caption { text_tokens: &[0, 2, 1, 1, 1, 1], visible: &[true, true, false, false, false, false] };
    // Picture p's token at a position, as if it had been drawn.
    let token = |picture: usize, position: usize| ((picture * 31 + position * 17) % 300) as u32;
    let run = |pictures: &[usize], null: Option<Caption>| {
        let mut candidates = Candidates::new(&model, caption, null, pictures.len()).unwrap();
        let mut rows = vec![Vec::new(); pictures.len()];
        for position in 0..8 {
            let previous: Vec<u32> = pictures.iter().filter(|_| position > 0).map(|picture| token(*picture, position - 1)).collect();
            let StepLogits { conditional, unconditional } = candidates.next_logits(&previous, position);
            for (row, logits) in rows.iter_mut().zip(conditional.chunks(300)) {
                row.extend(logits.iter().map(|logit| logit.to_bits()));
            }
            for (row, logits) in rows.iter_mut().zip(unconditional.iter().flat_map(|logits| logits.chunks(300))) {
                row.extend(logits.iter().map(|logit| logit.to_bits()));
            }
        }
        rows
    };
    let batch = run(&[0, 1, 2, 3, 4, 5, 6, 7], Some(null));
    for picture in [0, 3, 7] {
        assert!(run(&[picture], Some(null))[0] == batch[picture], "picture {picture} alone");
    }
    assert!(run(&[6, 5], Some(null)) == [batch[6].clone(), batch[5].clone()], "in other places");
}

#[test]
fn wrong_captions_are_named() {
    let model = model(&small_dalle(), &Device::flex());
    let check = |text_tokens: &[u32], visible: &[bool], null: Option<&[u32]>, message: &str| {
        let null_visible = [true; 8];
        let null = null.map(|text_tokens| Caption { text_tokens, visible: &null_visible[..text_tokens.len()] });
        let error = Candidates::new(&model, Caption { text_tokens, visible }, null, 2).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    };
    check(&[], &[], None, "caption: expected 1 to 6 text tokens and as many marks of visibility, found 0 and 0");
    check(&[0; 7], &[true; 7], None, "caption: expected 1 to 6 text tokens and as many marks of visibility, found 7 and 7");
    check(&[0; 3], &[true; 2], None, "caption: expected 1 to 6 text tokens and as many marks of visibility, found 3 and 2");
    check(&[0, 12], &[true; 2], None, "caption: text token 12 is not below the generator's text vocabulary of 12");
    check(&[0, 2], &[false; 2], None, "caption: every text token is marked as padding");
    check(&[0, 2], &[true; 2], Some(&[0, 2, 1]), "caption and null caption: expected the same length, found 2 and 3");
}
