"""Makes the goldens of diffusion: tables and walks of the schedulers of `diffusers`, step by step, around a fixed function in place of a network;
and its guidance.

Run: python make.py   (writes schedulers.safetensors and PROVENANCE.toml beside this script)

Each walk holds `start`, `samples` (after every step), the `noise` the scheduler drew, in order, and the `timesteps` it told the network. Samples are scaled to
x = alpha clean + sigma noise, also where a scheduler keeps x / alpha.
"""

import importlib.metadata
import platform
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_ddpm,
    scheduling_euler_ancestral_discrete,
    scheduling_lcm,
)

HERE = Path(__file__).parent
SEED = 20311
PICTURES, VALUES = 2, 6
torch.set_num_threads(1)

goldens = {}
drawn = []
generator = torch.Generator().manual_seed(SEED)


def record_noise(shape, generator=None, device=None, dtype=None, layout=None, _own=generator):
    drawn.append(torch.randn(shape, generator=_own))
    return drawn[-1]


for module in (scheduling_ddim, scheduling_ddpm, scheduling_euler_ancestral_discrete, scheduling_lcm):
    module.randn_tensor = record_noise


def network(x, t):
    """[pictures, values, 1, 1]: every value looks at its neighbour and at the time."""
    x = x.double()
    return torch.tanh(0.8 * x - 0.3 * torch.roll(x, -1, dims=1) + float(t) / 1000 - 0.4).float()


def learned(x, t):
    return torch.cat([network(x, t), torch.sin(3 * x.double()).float()], dim=1)


def walk(name, scheduler, steps, model=network, step_options={}, timesteps_options=None, scaled=False, substeps=1):
    """`scaled`: the scheduler keeps x / alpha, with sigma / alpha in `sigmas`. `substeps`: calls of `step` for one step (Heun has two)."""
    drawn.clear()
    scheduler.set_timesteps(**(timesteps_options or {"num_inference_steps": steps}))
    noise = torch.randn(PICTURES, VALUES, 1, 1, generator=generator)
    x = noise * scheduler.init_noise_sigma
    start, samples, told = None, [], []
    for index, t in enumerate(scheduler.timesteps):
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        if start is None:
            start = given if scaled else x
        told.append(float(t))
        x = scheduler.step(model(given, t), t, x, **step_options).prev_sample
        last = index + 1 == len(scheduler.timesteps)
        if last or index % substeps == substeps - 1:
            sigma = scheduler.sigmas[index + 1] if scaled else torch.tensor(0.0)
            samples.append(x / (sigma**2 + 1) ** 0.5)
    goldens[f"{name}.start"] = start.flatten().contiguous()
    goldens[f"{name}.samples"] = torch.stack([sample.flatten() for sample in samples])
    goldens[f"{name}.timesteps"] = torch.tensor(told)
    if drawn:
        goldens[f"{name}.noise"] = torch.stack([noise.flatten() for noise in drawn])


LINEAR = dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
SCALED = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = dict(beta_schedule="squaredcos_cap_v2")
ZERO = dict(SCALED, rescale_betas_zero_snr=True)
V = dict(prediction_type="v_prediction")
EPSILON = dict(prediction_type="epsilon")
CLEAN = dict(prediction_type="sample")


def spaced(spacing):
    return dict(timestep_spacing=spacing)


for name, betas in [("linear", LINEAR), ("scaled", SCALED), ("cosine", COSINE), ("zero", ZERO)]:
    goldens[f"table.{name}"] = DDPMScheduler(**betas).alphas_cumprod.clone()

# Ancestral. With trailing steps the last one adds noise of the large variance to the finished picture: leading steps are compared.
walk("ddpm.small", DDPMScheduler(**LINEAR, **EPSILON, **spaced("leading"), clip_sample=True), 10)
walk("ddpm.large", DDPMScheduler(**COSINE, **V, **spaced("leading"), clip_sample=False, variance_type="fixed_large"), 10)
walk("ddpm.learned", DDPMScheduler(**LINEAR, **EPSILON, **spaced("leading"), variance_type="learned_range"), 10, model=learned)
walk("ddpm.all", DDPMScheduler(num_train_timesteps=20, **LINEAR, **CLEAN, clip_sample=False), 20)
walk("ddpm.zero", DDPMScheduler(**ZERO, **V, **spaced("trailing"), clip_sample=False), 10)

# DDIM. `use_clipped_model_output`: the noise follows from the thresholded picture, so that the two still make up the sample.
CLIPPED = dict(use_clipped_model_output=True)
walk("ddim.stable", DDIMScheduler(**SCALED, **EPSILON, **spaced("leading"), steps_offset=1, set_alpha_to_one=False, clip_sample=False), 20)
walk("ddim.static", DDIMScheduler(**LINEAR, **EPSILON, **spaced("leading"), clip_sample=True), 10, step_options=dict(CLIPPED, eta=0.7))
walk("ddim.zero", DDIMScheduler(**ZERO, **V, **spaced("trailing"), clip_sample=False), 10, step_options=dict(eta=1.0))
DYNAMIC = dict(thresholding=True, dynamic_thresholding_ratio=0.7, clip_sample=False)
walk("ddim.dynamic", DDIMScheduler(**COSINE, **V, **spaced("trailing"), **DYNAMIC, sample_max_value=1e9), 10, step_options=CLIPPED)
walk("ddim.capped", DDIMScheduler(**LINEAR, **EPSILON, **spaced("trailing"), **DYNAMIC), 10, step_options=CLIPPED)

walk("euler.linspace", EulerDiscreteScheduler(**SCALED, **EPSILON, **spaced("linspace")), 7, scaled=True)
walk("euler.leading", EulerDiscreteScheduler(**SCALED, **V, **spaced("leading"), steps_offset=1), 7, scaled=True)
walk("euler.trailing", EulerDiscreteScheduler(**COSINE, **V, **spaced("trailing")), 7, scaled=True)
walk("euler.karras", EulerDiscreteScheduler(**SCALED, **EPSILON, use_karras_sigmas=True), 7, scaled=True)
walk("euler.zero", EulerDiscreteScheduler(**ZERO, **V, **spaced("trailing")), 7, scaled=True)
walk("euler_ancestral.linspace", EulerAncestralDiscreteScheduler(**SCALED, **EPSILON, **spaced("linspace")), 7, scaled=True)
walk("euler_ancestral.trailing", EulerAncestralDiscreteScheduler(**LINEAR, **V, **spaced("trailing")), 7, scaled=True)
walk("heun.linspace", HeunDiscreteScheduler(**SCALED, **EPSILON, **spaced("linspace")), 7, scaled=True, substeps=2)
walk("heun.karras", HeunDiscreteScheduler(**SCALED, **V, use_karras_sigmas=True), 7, scaled=True, substeps=2)

for name, scheduler in [("dpm", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)]:
    walk(f"{name}.linspace", scheduler(**SCALED, **EPSILON, **spaced("linspace")), 10)
    walk(f"{name}.leading", scheduler(**LINEAR, **CLEAN, **spaced("leading"), steps_offset=1), 20)
    walk(f"{name}.trailing", scheduler(**COSINE, **V, **spaced("trailing")), 10)
    walk(f"{name}.zero", scheduler(**ZERO, **V, **spaced("trailing")), 10)

walk("lcm.four", LCMScheduler(**SCALED, **EPSILON), 4)
walk("lcm.seven", LCMScheduler(**SCALED, **V), 7)

# The levels are given: left alone, the scheduler shifts its own lowest level twice.
flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
flow.init_noise_sigma = 1.0
walk("flow.euler", flow, 7, timesteps_options={"sigmas": list(np.linspace(1, 1 / 7, 7))})

walk("edm.euler", EDMEulerScheduler(prediction_type="epsilon"), 7)
walk("edm.dpm", EDMDPMSolverMultistepScheduler(prediction_type="epsilon", final_sigmas_type="zero"), 10)

# Guidance. APG in the form of its paper: the update is added to the conditional prediction.
conditional = torch.randn(3, PICTURES, VALUES, generator=generator)
unconditional = torch.randn(3, PICTURES, VALUES, generator=generator)
guided = unconditional[0] + 7.5 * (conditional[0] - unconditional[0])
momentum = MomentumBuffer(-0.5)
projected = [
    normalized_guidance(c, u, 7.5 - 1, momentum, eta=0.2, norm_threshold=1.5, use_original_formulation=True) for c, u in zip(conditional, unconditional)
]
goldens |= {"guidance.conditional": conditional, "guidance.unconditional": unconditional, "guidance.projected": torch.stack(projected)}
goldens["guidance.rescaled"] = rescale_noise_cfg(guided, conditional[0], guidance_rescale=0.7)

safetensors.torch.save_file(goldens, HERE / "schedulers.safetensors")
lines = ['script = "make.py"', f"seed = {SEED}", f'python = "{platform.python_version()}"']
lines += [f'{package} = "{importlib.metadata.version(package)}"' for package in ("torch", "numpy", "diffusers", "safetensors")]
lines += ["", "[licences]", 'diffusers = "Apache-2.0"']
(HERE / "PROVENANCE.toml").write_text("\n".join(lines) + "\n")
