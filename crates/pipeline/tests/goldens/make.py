"""Makes whole pipeline folders of `diffusers` with small random networks, and the pictures that `diffusers` draws with them from given noise.

Run: python make.py   (writes the folders, the _results.safetensors files and PROVENANCE.toml beside this script)

Everything is computed in f32 on the CPU. Noise is stored channels last; pictures are stored twice, as numbers in [-1, 1] and as the bytes of a PNG.
"""

import importlib.metadata
import json
import platform
import shutil
from pathlib import Path

import numpy
import safetensors.torch
import torch
from diffusers import (
    AutoencoderKL, DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).parent
SEED = 20264
PROMPT, NEGATIVE = "A red fox, flat style", "blurry leaf"
WORDS = ["red", "fox", "blue", "flat", "style", "leaf", "heart", "fish", "green"]
torch.set_num_threads(1)


def spread(model):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            elif "embedding" in name:
                parameter.copy_(0.7 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return model.eval()


def vocabulary():
    """Entries and merges in the manner of OpenAI's CLIP: bytes, bytes that end a word, one entry for each merge, start, end."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    singles = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(256 - len(printable))]
    merges = []
    for word in WORDS:
        left = word[0]
        for place, letter in enumerate(word[1:], 1):
            right = letter + ("</w>" if place == len(word) - 1 else "")
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
    entries = singles + [single + "</w>" for single in singles] + [left + right for left, right in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {entry: index for index, entry in enumerate(dict.fromkeys(entries))}, merges


def published_tokenizer(folder, pad):
    """The files of the published folders. Where both files name a padding token, the older one counts: a trap of Stable Diffusion 2."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(entries))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    start, end = "<|startoftext|>", "<|endoftext|>"
    config = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def networks(hidden_act, heads, linear):
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocabulary()[0]), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77,
        hidden_act=hidden_act, projection_dim=32, bos_token_id=len(vocabulary()[0]) - 2, eos_token_id=len(vocabulary()[0]) - 1,
    ))
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=32,
        attention_head_dim=heads, use_linear_projection=linear,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1,
        norm_num_groups=4, latent_channels=4, sample_size=32, scaling_factor=0.18215,
    )
    spread(text), spread(unet), spread(vae)
    return text, unet, vae


def pictures(values):
    """[batch, 3, height, width], unbounded or in [0, 1] as `diffusers` gives them -> the two forms."""
    values = values.permute(0, 2, 3, 1).contiguous()
    as_bytes = torch.from_numpy((values.numpy() * 255).round().astype("uint8"))
    return values * 2 - 1, as_bytes


def add(results, name, values):
    results[name], results[f"{name}_bytes"] = pictures(values)
    print(name, "mean %.3f std %.3f" % (results[name].mean(), results[name].std()), "at the bounds: %.2f" % (results[name].abs() == 1).float().mean())


def save(name, tensors):
    safetensors.torch.save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, HERE / name)


def fresh(name):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def stable_diffusion(name, seed, scheduler, hidden_act, heads, linear, half):
    torch.manual_seed(seed)
    text, unet, vae = networks(hidden_act, heads, linear)
    folder = fresh(name)
    tokenizer = published_tokenizer(folder / "tokenizer", "!" if half else "<|endoftext|>")
    assert tokenizer(PROMPT, padding="max_length", max_length=77).input_ids[-1] == (0 if half else len(tokenizer) - 1)
    if half:
        # Numbers that f16 holds: the folder of f16 weights says all about the f32 networks that draw.
        for network in (text, unet, vae):
            network.half().float()
    pipeline = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    if half:
        for network in (text, unet, vae):
            network.half()
    pipeline.save_pretrained(folder, variant="fp16" if half else None)
    for network in (text, unet, vae):
        network.float()
    if half:
        published_tokenizer(folder / "tokenizer", "!")
        (folder / "tokenizer" / "tokenizer.json").unlink()
    else:
        # As transformers 5 writes it: one file says all.
        for file in ("vocab.json", "merges.txt", "special_tokens_map.json"):
            (folder / "tokenizer" / file).unlink()

    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    results = {"noise": noise.permute(0, 2, 3, 1)}

    def draw(case, scheduler, **options):
        pipeline.scheduler = scheduler
        options = {"guidance_scale": 7.5, "num_inference_steps": 20} | options
        add(results, case, pipeline(PROMPT, num_images_per_prompt=2, latents=noise, output_type="pt", **options).images)

    ddim = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    print(name, ddim.config.steps_offset, ddim.config.set_alpha_to_one, ddim.config.timestep_spacing, ddim.config.prediction_type)
    draw("ddim", ddim)
    draw("unguided", ddim, guidance_scale=1.0)
    draw("negative", ddim, negative_prompt=NEGATIVE)
    draw("dpm_solver_pp_2m", DPMSolverMultistepScheduler.from_config(scheduler.config, timestep_spacing=scheduler.config.timestep_spacing))
    assert (results["ddim"] - results["negative"]).abs().mean() > 0.02, "the text must count"
    if half:
        zero_snr = DDIMScheduler.from_config(ddim.config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
        (HERE / f"{name}_zero_snr_scheduler_config.json").write_text(zero_snr.to_json_string())
        draw("zero_snr", zero_snr)

    # Picture to picture from the means of the latents, which `diffusers` takes as they are.
    initial = Image.fromarray(numpy.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype="uint8")).resize((32, 32), Image.BICUBIC)
    pixels = torch.from_numpy(numpy.array(initial)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    to_picture = StableDiffusionImg2ImgPipeline(vae, text, tokenizer, unet, ddim, None, None, requires_safety_checker=False)
    to_picture.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)  # draws `noise` once more
    made = to_picture(PROMPT, latents, strength=0.6, guidance_scale=7.5, num_inference_steps=20, num_images_per_prompt=2, generator=generator, output_type="pt")
    add(results, "from_picture", made.images)
    results["initial_bytes"] = torch.from_numpy(numpy.array(initial))
    save(f"{name}_results.safetensors", results)


def ddpm(name, seed):
    torch.manual_seed(seed)
    unet = spread(UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, norm_eps=1e-6, attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        flip_sin_to_cos=False, freq_shift=1, downsample_padding=0,
    ))
    folder = fresh(name)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder, safe_serialization=False)
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    results = {"noise": noise.permute(0, 2, 3, 1)}
    # Walks without fresh noise over the same levels. `use_clipped_model_output` is what the paper writes: the noise that remains is that of the clipped picture.
    # The network is random, so the noise it predicts leads to black and white; asked for the clean picture it gives greys.
    for case, prediction in [("ddim", "epsilon"), ("clean", "sample")]:
        pipeline = DDIMPipeline(unet, DDIMScheduler.from_config(DDPMScheduler().config, prediction_type=prediction))
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(2, torch.Generator().manual_seed(seed), num_inference_steps=20, use_clipped_model_output=True, output_type="numpy").images
        add(results, case, torch.from_numpy(made).permute(0, 3, 1, 2))
    (HERE / f"{name}_clean_scheduler_config.json").write_text(pipeline.scheduler.to_json_string())
    save(f"{name}_results.safetensors", results)


def provenance():
    packages = ["diffusers", "transformers", "torch", "safetensors"]
    lines = [f"seed = {SEED}", f'python = "{platform.python_version()}"', "", "[packages]"]
    lines += [f'{package} = "{importlib.metadata.version(package)}"' for package in packages]
    (HERE / "PROVENANCE.toml").write_text("# Written by make.py.\n" + "\n".join(lines) + "\n")


betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Stable Diffusion 1.x as published: 1x1 convolutions, QuickGELU, PNDM's config, steps from 1 on, the end on the first trained step.
pndm = PNDMScheduler(**betas, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")
stable_diffusion("stable_diffusion_1", SEED, pndm, "quick_gelu", 2, False, False)
# 2.x: linear projections, heads of a fixed width, GELU, velocity, padding with "!"; a folder of f16 weights.
ddim = DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction", timestep_spacing="leading")
stable_diffusion("stable_diffusion_2", SEED + 1, ddim, "gelu", [2, 4, 4], True, True)
ddpm("ddpm", SEED + 2)
provenance()
