//! `scheduler_config.json` of diffusers: the process a network was trained on, what it predicts, and how it is usually walked.
//!
//! A config is read strictly: every key must be one whose meaning is implemented here, or hold the value at which it changes nothing. `null` is as if the key
//! were not there, and what is not there has the default of the scheduler's class.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use smalti_generation::diffusion::{Betas, End, Parameterization, Process, Sampler, Schedule, ScheduleConfig, Spacing, Threshold, Variance};
use smalti_models::ConfigError;

/// Keys that change nothing here: of Adams-Bashforth starts, of schedules that are shifted, and of last steps that end on the clean picture anyway.
const WITHOUT_MEANING: [&str; 5] = ["skip_prk_steps", "flow_shift", "time_shift_type", "lower_order_final", "euler_at_final"];

/// Keys that we implement at these values only, as JSON.
const FIXED: [(&str, &[&str]); 19] = [
    ("algorithm_type", &["\"dpmsolver++\""]),
    ("disable_corrector", &["[]"]),
    ("final_sigmas_type", &["\"zero\""]),
    ("interpolation_type", &["\"linear\""]),
    ("lambda_min_clipped", &[]),
    ("predict_x0", &["true"]),
    ("shift_terminal", &[]),
    ("sigma_max", &[]),
    ("sigma_min", &[]),
    ("solver_order", &["2"]),
    ("solver_p", &[]),
    ("solver_type", &["\"midpoint\"", "\"bh2\""]),
    ("timestep_type", &["\"discrete\""]),
    ("trained_betas", &[]),
    ("use_beta_sigmas", &["false"]),
    ("use_dynamic_shifting", &["false"]),
    ("use_exponential_sigmas", &["false"]),
    ("use_flow_sigmas", &["false"]),
    ("use_lu_lambdas", &["false"]),
];

/// rho of Karras' noise levels in diffusers, which no config changes.
const KARRAS_RHO: f64 = 7.0;

/// What a config says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scheduler {
    pub process: Process,
    pub parameterization: Parameterization,
    pub variance: Variance,
    pub sampler: Sampler,
    pub spacing: Spacing,
    pub end: End,
    pub threshold: Threshold,
}

/// What the classes differ in.
struct Class {
    sampler: Sampler,
    betas: [f64; 2],
    spacing: &'static str,
    /// The default of `set_alpha_to_one`.
    ends_clean: bool,
    /// The default of `clip_sample`; classes that know no such key pass over it.
    clips: Option<bool>,
}

impl Class {
    fn named(name: &str) -> Option<Self> {
        let leading = |sampler, clips| Self { sampler, betas: [1e-4, 0.02], spacing: "leading", ends_clean: true, clips };
        let linspace = |sampler| Self { spacing: "linspace", ..leading(sampler, None) };
        Some(match name {
            "DDPMScheduler" => leading(Sampler::Ddpm, Some(true)),
            "DDIMScheduler" => leading(Sampler::Ddim { eta: 0.0 }, Some(true)),
            // Adams-Bashforth's walk is not one of ours. DDIM takes the same steps between the same ends.
            "PNDMScheduler" => Self { ends_clean: false, ..leading(Sampler::Ddim { eta: 0.0 }, None) },
            "EulerDiscreteScheduler" => linspace(Sampler::Euler),
            "EulerAncestralDiscreteScheduler" => linspace(Sampler::EulerAncestral),
            "HeunDiscreteScheduler" => Self { betas: [0.00085, 0.012], clips: Some(false), ..linspace(Sampler::Heun) },
            "DPMSolverMultistepScheduler" => linspace(Sampler::DpmSolverPlusPlus2M),
            "UniPCMultistepScheduler" => linspace(Sampler::UniPc),
            _ => return None,
        })
    }
}

/// Reads the keys of a config.
pub(super) fn read(keys: Map<String, Value>) -> Result<Scheduler, ConfigError> {
    let mut file = Keys(keys);
    let name: String = file.take("_class_name", String::new())?;
    let Some(class) = Class::named(&name) else {
        return Err(named("_class_name", "a scheduler of DDPM, DDIM, PNDM, Euler, Euler ancestral, Heun, DPM-Solver or UniPC", format!("`{name}`")));
    };
    let schedule = ScheduleConfig {
        train_steps: file.take("num_train_timesteps", 1000)?,
        betas: betas(&mut file, class.betas)?,
        shift: 1.0,
        zero_terminal_snr: file.take("rescale_betas_zero_snr", false)?,
    };
    let process = Process::VariancePreserving(Schedule::new(schedule).map_err(|error| named(error.key, &error.expected, error.found))?);
    let parameterization = match file.take("prediction_type", "epsilon".to_string())?.as_str() {
        "epsilon" => Parameterization::Noise,
        "sample" => Parameterization::Clean,
        "v_prediction" => Parameterization::Velocity,
        other => return Err(named("prediction_type", "`epsilon`, `sample` or `v_prediction`", format!("`{other}`"))),
    };
    let variance = match file.take("variance_type", "fixed_small".to_string())?.as_str() {
        // The logarithm only keeps the variance of the last step, which adds no noise, above 0.
        "fixed_small" | "fixed_small_log" => Variance::FixedSmall,
        "fixed_large" => Variance::FixedLarge,
        "learned_range" => Variance::Learned,
        other => return Err(named("variance_type", "`fixed_small`, `fixed_small_log`, `fixed_large` or `learned_range`", format!("`{other}`"))),
    };
    let scheduler = Scheduler {
        process,
        parameterization,
        variance,
        sampler: class.sampler,
        spacing: spacing(&mut file, class.spacing)?,
        end: if file.take("set_alpha_to_one", class.ends_clean)? { End::Clean } else { End::FirstTrainedStep },
        threshold: threshold(&mut file, class.clips)?,
    };
    file.finish()?;
    Ok(scheduler)
}

fn betas(file: &mut Keys, usual: [f64; 2]) -> Result<Betas, ConfigError> {
    let (start, end) = (file.take("beta_start", usual[0])?, file.take("beta_end", usual[1])?);
    match file.take("beta_schedule", "linear".to_string())?.as_str() {
        "linear" => Ok(Betas::Linear { start, end }),
        "scaled_linear" => Ok(Betas::ScaledLinear { start, end }),
        "squaredcos_cap_v2" => Ok(Betas::Cosine),
        other => Err(named("beta_schedule", "`linear`, `scaled_linear` or `squaredcos_cap_v2`", format!("`{other}`"))),
    }
}

fn spacing(file: &mut Keys, usual: &str) -> Result<Spacing, ConfigError> {
    let offset = file.take("steps_offset", 0)?;
    let name = file.take("timestep_spacing", usual.to_string())?;
    if file.take("use_karras_sigmas", false)? {
        return Ok(Spacing::Karras { rho: KARRAS_RHO });
    }
    match name.as_str() {
        "leading" => Ok(Spacing::Leading { offset }),
        // Only the steps that lead have an offset.
        "trailing" => Ok(Spacing::Trailing),
        "linspace" => Ok(Spacing::Linspace),
        other => Err(named("timestep_spacing", "`leading`, `trailing` or `linspace`", format!("`{other}`"))),
    }
}

fn threshold(file: &mut Keys, clips: Option<bool>) -> Result<Threshold, ConfigError> {
    let (percentile, cap) = (file.take("dynamic_thresholding_ratio", 0.995)?, file.take("sample_max_value", 1.0)?);
    let (clip, range) = (file.take("clip_sample", clips.unwrap_or(false))?, file.take("clip_sample_range", 1.0)?);
    if file.take("thresholding", false)? {
        return Ok(Threshold::Dynamic { percentile, cap: Some(cap) });
    }
    if !clip || clips.is_none() {
        return Ok(Threshold::None);
    }
    ConfigError::check(range == 1.0, "clip_sample_range", "1, the range of pictures", range)?;
    Ok(Threshold::Static)
}

/// The keys that nobody has asked for yet.
struct Keys(Map<String, Value>);

impl Keys {
    /// The value of a key, taken out; `default` where the key is not there or null.
    fn take<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T, ConfigError> {
        match self.0.remove(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => serde_json::from_value(value.clone()).map_err(|error| named(key, &format!("another kind of value ({error})"), value.to_string())),
        }
    }

    /// What is left must change nothing.
    fn finish(self) -> Result<(), ConfigError> {
        for (key, value) in self.0 {
            if key.starts_with('_') || value.is_null() || WITHOUT_MEANING.contains(&key.as_str()) {
                continue;
            }
            let Some((_, allowed)) = FIXED.iter().find(|(fixed, _)| *fixed == key) else {
                return Err(named(&key, "no such key", value.to_string()));
            };
            let expected = if allowed.is_empty() { "null".to_string() } else { allowed.join(" or ") };
            ConfigError::check(allowed.contains(&value.to_string().as_str()), &key, expected, value)?;
        }
        Ok(())
    }
}

fn named(key: &str, expected: &str, found: impl std::fmt::Display) -> ConfigError {
    ConfigError::new(key, expected, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<Scheduler, ConfigError> {
        read(serde_json::from_str(json).unwrap())
    }

    fn wrong(json: &str, expected: &str) {
        let error = of(json).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    /// As published with Stable Diffusion 1.5, 2.1 and 2.1's DPM-Solver.
    #[test]
    fn published_configs() {
        let pndm = of(r#"{
            "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
            "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false
        }"#)
        .unwrap();
        let expected = Scheduler {
            process: Process::VariancePreserving(Schedule::new(ScheduleConfig::latent_diffusion()).unwrap()),
            parameterization: Parameterization::Noise,
            variance: Variance::FixedSmall,
            sampler: Sampler::Ddim { eta: 0.0 },
            spacing: Spacing::Leading { offset: 1 },
            end: End::FirstTrainedStep,
            threshold: Threshold::None,
        };
        assert_eq!(pndm, expected);
        let ddim = of(r#"{
            "_class_name": "DDIMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false,
            "num_train_timesteps": 1000, "prediction_type": "v_prediction", "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1
        }"#)
        .unwrap();
        assert_eq!(ddim, Scheduler { parameterization: Parameterization::Velocity, ..expected.clone() });
        let solver = of(r#"{
            "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "beta_start": 0.00085, "lambda_min_clipped": null, "solver_order": 2, "solver_type": "midpoint", "use_karras_sigmas": true, "clip_sample": true
        }"#)
        .unwrap();
        let karras = Spacing::Karras { rho: 7.0 };
        assert_eq!(solver, Scheduler { sampler: Sampler::DpmSolverPlusPlus2M, spacing: karras, end: End::Clean, ..expected });
    }

    #[test]
    fn what_is_not_said_is_as_the_class_has_it() {
        let ddpm = of(r#"{"_class_name": "DDPMScheduler"}"#).unwrap();
        let process = Process::VariancePreserving(Schedule::new(ScheduleConfig::ddpm()).unwrap());
        assert_eq!((ddpm.process, ddpm.sampler, ddpm.threshold, ddpm.end), (process, Sampler::Ddpm, Threshold::Static, End::Clean));
        assert_eq!(of(r#"{"_class_name": "PNDMScheduler"}"#).unwrap().end, End::FirstTrainedStep);
        assert_eq!(of(r#"{"_class_name": "EulerDiscreteScheduler", "steps_offset": 1}"#).unwrap().spacing, Spacing::Linspace);
        let dynamic = of(r#"{"_class_name": "DDIMScheduler", "thresholding": true, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 4}"#).unwrap();
        assert_eq!(dynamic.threshold, Threshold::Dynamic { percentile: 0.9, cap: Some(4.0) });
    }

    #[test]
    fn what_is_not_implemented_is_named() {
        wrong(r#"{"_class_name": "FlowMatchEulerDiscreteScheduler"}"#, "`_class_name`: expected a scheduler of DDPM");
        wrong("{}", "_class_name");
        wrong(r#"{"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}"#, "`beta_schedule`: expected `linear`");
        wrong(r#"{"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"}"#, "`prediction_type`: expected `epsilon`");
        wrong(r#"{"_class_name": "DDIMScheduler", "trained_betas": [0.1]}"#, "`trained_betas`: expected null, found [0.1]");
        wrong(r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}"#, "`solver_order`: expected 2, found 3");
        wrong(r#"{"_class_name": "DDIMScheduler", "clip_sample_range": 2.0}"#, "`clip_sample_range`: expected 1");
        wrong(r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 1}"#, "`train_steps`: expected at least 2");
        wrong(r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": -3}"#, "`num_train_timesteps`: expected another kind of value");
        wrong(r#"{"_class_name": "DDIMScheduler", "surprise": 1}"#, "`surprise`: expected no such key, found 1");
    }
}
