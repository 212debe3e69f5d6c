//! Agreement with the schedulers of `diffusers`, step by step, around the same function in place of a network and with the noise they drew
//! (`goldens/make.py`).
//!
//! Where `diffusers` departs from the papers it is not followed, and the walks compared here avoid it:
//! - its DDPM and DDIM with linspace spacing step to t - T/n, not to the next step they judge (the samplers here take the levels as they are);
//! - its dynamic thresholding is capped at 1 by default, which is static thresholding (`ddim.capped`);
//! - its DDIM keeps the network's noise beside a thresholded picture unless told `use_clipped_model_output`;
//! - its DDPM adds noise of the large or learned variance to the finished picture when steps are trailing;
//! - it replaces pure noise by alpha-bar = 2^-24, but in DDPM and DDIM;
//! - its Heun bends the path at noise-to-signal ratios above 5,000 too, where the smallest difference of two predictions counts a thousandfold;
//! - its flow scheduler shifts its own lowest level twice (levels are given to it).

use super::super::sample::read;
use super::super::samplers::Hands;
use super::super::*;
use smalti_testing::{Golden, check_close, golden};
use std::convert::Infallible;

const PICTURES: usize = 2;
const VALUES: usize = 6;

/// `network` of make.py, and after it, when asked for, the second half of `learned`.
fn network(input: &[f32], timestep: f64, variance: Variance) -> Vec<f32> {
    let mut output = Vec::new();
    for picture in input.chunks(VALUES) {
        let value = |index: usize| f64::from(picture[index % VALUES]);
        output.extend((0..VALUES).map(|index| (0.8 * value(index) - 0.3 * value(index + 1) + timestep / 1000.0 - 0.4).tanh() as f32));
        if variance == Variance::Learned {
            output.extend((0..VALUES).map(|index| (3.0 * value(index)).sin() as f32));
        }
    }
    output
}

fn goldens() -> Golden {
    golden("src/diffusion/goldens/schedulers.safetensors")
}

/// `close`: relative to the largest number of a step. The tables of `diffusers` are products in single precision.
#[track_caller]
fn check(name: &str, plan: Plan, close: f64) {
    let goldens = goldens();
    plan.validate().unwrap();
    let levels = plan.levels();
    let noise_name = format!("{name}.noise");
    let mut noise = if goldens.contains(&noise_name) { goldens.values(&noise_name) } else { Vec::new() }.into_iter();
    let (mut told, mut samples) = (Vec::new(), Vec::new());
    let hands = &mut Hands {
        predict: &mut |sample, level| {
            let scale = plan.process.input_scale(level);
            let input: Vec<f32> = sample.iter().map(|value| (f64::from(*value) * scale) as f32).collect();
            told.push(level.timestep as f32);
            read::<Infallible>(&plan, sample, level, &network(&input, level.timestep, plan.variance), VALUES)
        },
        noise: &mut || {
            let drawn: Vec<f32> = noise.by_ref().take(PICTURES * VALUES).collect();
            assert_eq!(drawn.len(), PICTURES * VALUES, "{name}: more noise than the scheduler drew");
            drawn
        },
        hold: &mut |_, _| (),
        observe: &mut |_, sample, _| samples.extend_from_slice(sample),
    };
    plan.sampler.walk(&plan.process, plan.variance, &levels, goldens.values(&format!("{name}.start")), hands).unwrap();

    let expected = goldens.values(&format!("{name}.samples"));
    assert_eq!(samples.len(), expected.len(), "{name}: steps");
    let asked = goldens.values(&format!("{name}.timesteps"));
    assert_eq!(told.len(), asked.len(), "{name}: {told:?}, expected {asked:?}");
    for (told, asked) in told.iter().zip(&asked) {
        assert!((told - asked).abs() < 2e-3, "{name}: {told:?}, expected {asked:?}");
    }
    for (step, (found, expected)) in samples.chunks(PICTURES * VALUES).zip(expected.chunks(PICTURES * VALUES)).enumerate() {
        let size = expected.iter().fold(0.0_f32, |size, value| size.max(value.abs()));
        let worst = found.iter().zip(expected).fold(0.0_f32, |worst, (found, expected)| worst.max((found - expected).abs()));
        assert!(f64::from(worst) <= close * f64::from(size), "{name}, step {step}: off by {worst} of {size}");
    }
}

fn scaled() -> ScheduleConfig {
    ScheduleConfig::latent_diffusion()
}

fn zero() -> ScheduleConfig {
    ScheduleConfig { zero_terminal_snr: true, ..scaled() }
}

fn plan(config: ScheduleConfig, parameterization: Parameterization, sampler: Sampler, steps: usize, spacing: Spacing) -> Plan {
    Plan { spacing, ..Plan::new(Process::VariancePreserving(Schedule::new(config).unwrap()), parameterization, sampler, steps) }
}

const LEADING: Spacing = Spacing::Leading { offset: 0 };
const LEADING_1: Spacing = Spacing::Leading { offset: 1 };

#[test]
fn tables() {
    let configs = [("linear", ScheduleConfig::ddpm()), ("scaled", scaled()), ("cosine", ScheduleConfig::cosine()), ("zero", zero())];
    for (name, config) in configs {
        let expected = goldens().values(&format!("table.{name}"));
        for (step, (found, expected)) in Schedule::new(config).unwrap().alpha_bars().iter().zip(expected).enumerate() {
            let expected = f64::from(expected);
            assert!((found - expected).abs() <= 2e-4 * expected, "{name}, step {step}: {found}, expected {expected}");
        }
    }
}

#[test]
fn ddpm() {
    use Parameterization::*;
    let plan = |config, parameterization, spacing| plan(config, parameterization, Sampler::Ddpm, 10, spacing);
    check("ddpm.small", Plan { threshold: Threshold::Static, ..plan(ScheduleConfig::ddpm(), Noise, LEADING) }, 1e-4);
    check("ddpm.large", Plan { variance: Variance::FixedLarge, ..plan(ScheduleConfig::cosine(), Velocity, LEADING) }, 1e-4);
    let learned = Plan { variance: Variance::Learned, threshold: Threshold::Static, ..plan(ScheduleConfig::ddpm(), Noise, LEADING) };
    check("ddpm.learned", learned, 1e-4);
    check("ddpm.zero", plan(zero(), Velocity, Spacing::Trailing), 1e-4);
    let short = ScheduleConfig { train_steps: 20, ..ScheduleConfig::ddpm() };
    check("ddpm.all", Plan { steps: 20, ..plan(short, Clean, LEADING) }, 1e-4);
}

#[test]
fn ddim() {
    use Parameterization::*;
    let plan = |config, parameterization, eta, steps, spacing| plan(config, parameterization, Sampler::Ddim { eta }, steps, spacing);
    check("ddim.stable", Plan { end: End::FirstTrainedStep, ..plan(scaled(), Noise, 0.0, 20, LEADING_1) }, 1e-4);
    check("ddim.static", Plan { threshold: Threshold::Static, ..plan(ScheduleConfig::ddpm(), Noise, 0.7, 10, LEADING) }, 1e-4);
    // From pure noise with eta 1 no noise is kept: the root of 0, which in single precision is the root of 1e-7.
    check("ddim.zero", plan(zero(), Velocity, 1.0, 10, Spacing::Trailing), 1e-3);
    let trailing = |config, parameterization, threshold| Plan { threshold, ..plan(config, parameterization, 0.0, 10, Spacing::Trailing) };
    check("ddim.dynamic", trailing(ScheduleConfig::cosine(), Velocity, Threshold::dynamic(0.7)), 1e-4);
    check("ddim.capped", trailing(ScheduleConfig::ddpm(), Noise, Threshold::Dynamic { percentile: 0.7, cap: Some(1.0) }), 1e-4);
    check("ddim.capped", trailing(ScheduleConfig::ddpm(), Noise, Threshold::Static), 1e-4); // Its default is not dynamic
}

#[test]
fn euler() {
    use Parameterization::*;
    let plan = |config, parameterization, spacing| plan(config, parameterization, Sampler::Euler, 7, spacing);
    check("euler.linspace", plan(scaled(), Noise, Spacing::Linspace), 1e-4);
    check("euler.leading", plan(scaled(), Velocity, LEADING_1), 1e-4);
    // x / alpha is 20,000 at the first step, and is taken from itself in single precision.
    check("euler.trailing", plan(ScheduleConfig::cosine(), Velocity, Spacing::Trailing), 1e-3);
    check("euler.karras", plan(scaled(), Noise, Spacing::Karras { rho: 7.0 }), 1e-4);
    check("euler.zero", plan(zero(), Velocity, Spacing::Trailing), 1e-3);
}

#[test]
fn euler_ancestral() {
    let plan = |config, parameterization, spacing| plan(config, parameterization, Sampler::EulerAncestral, 7, spacing);
    check("euler_ancestral.linspace", plan(scaled(), Parameterization::Noise, Spacing::Linspace), 1e-4);
    check("euler_ancestral.trailing", plan(ScheduleConfig::ddpm(), Parameterization::Velocity, Spacing::Trailing), 1e-4);
}

#[test]
fn heun() {
    let plan = |parameterization, spacing| plan(scaled(), parameterization, Sampler::Heun, 7, spacing);
    check("heun.linspace", plan(Parameterization::Noise, Spacing::Linspace), 1e-4);
    check("heun.karras", plan(Parameterization::Velocity, Spacing::Karras { rho: 7.0 }), 1e-4);
}

#[test]
fn multistep() {
    use Parameterization::*;
    for (name, sampler) in [("dpm", Sampler::DpmSolverPlusPlus2M), ("unipc", Sampler::UniPc)] {
        let plan = |config, parameterization, steps, spacing| plan(config, parameterization, sampler, steps, spacing);
        check(&format!("{name}.linspace"), plan(scaled(), Noise, 10, Spacing::Linspace), 1e-4);
        check(&format!("{name}.leading"), plan(ScheduleConfig::ddpm(), Clean, 20, LEADING_1), 1e-4);
        check(&format!("{name}.trailing"), plan(ScheduleConfig::cosine(), Velocity, 10, Spacing::Trailing), 1e-3);
        check(&format!("{name}.zero"), plan(zero(), Velocity, 10, Spacing::Trailing), 1e-3);
    }
}

#[test]
fn latent_consistency() {
    let sampler = Sampler::LatentConsistency { distilled_steps: 50 };
    check("lcm.four", plan(scaled(), Parameterization::Noise, sampler, 4, LEADING), 1e-4);
    check("lcm.seven", plan(scaled(), Parameterization::Velocity, sampler, 7, LEADING), 1e-4);
}

#[test]
fn flow() {
    let process = Process::Flow(super::super::flow::Config { train_steps: 1000, shift: 3.0 });
    check("flow.euler", Plan::new(process, Parameterization::Flow, Sampler::Euler, 7), 1e-5);
}

#[test]
fn edm() {
    let plan = |sampler, steps| Plan::new(Process::VarianceExploding(sigmas::Config::edm()), Parameterization::Edm { sigma_data: 0.5 }, sampler, steps);
    check("edm.euler", plan(Sampler::Euler, 7), 1e-5);
    check("edm.dpm", plan(Sampler::DpmSolverPlusPlus2M, 10), 1e-4);
}

#[test]
fn guided() {
    let goldens = goldens();
    let (conditional, unconditional) = (goldens.values("guidance.conditional"), goldens.values("guidance.unconditional"));
    let size = PICTURES * VALUES;
    let mut found = guidance::classifier_free(&conditional[..size], &unconditional[..size], 7.5);
    guidance::rescale(&mut found, &conditional[..size], VALUES, 0.7);
    check_close("rescaled", &found, goldens.values("guidance.rescaled"), 1e-5);

    let mut projection = guidance::Projection::new(guidance::ProjectionOptions { parallel: 0.2, momentum: -0.5, norm: 1.5 }, VALUES);
    let steps = conditional.chunks(size).zip(unconditional.chunks(size));
    let found: Vec<f32> = steps.flat_map(|(conditional, unconditional)| projection.guide_clean(conditional, unconditional, 7.5)).collect();
    check_close("projected", &found, goldens.values("guidance.projected"), 1e-5);
}
