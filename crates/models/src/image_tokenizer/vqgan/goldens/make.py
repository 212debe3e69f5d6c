"""Makes the goldens of VQGAN: small random models of `taming-transformers` and `diffusers` in their published formats, with inputs, outputs, losses and gradients.

Run: python make.py   (writes the .ckpt, .safetensors and .json files and PROVENANCE.toml beside this script)
"""

import importlib.metadata
import platform
import shutil
import tempfile
from pathlib import Path

import diffusers
import safetensors.torch
import torch
from taming.modules.diffusionmodules import model as backbone
from taming.modules.losses import vqperceptual
from taming.modules.vqvae.quantize import GumbelQuantize, VectorQuantizer2

HERE = Path(__file__).parent
SEED = 20261
torch.set_num_threads(1)

# taming has 32 groups everywhere; two let the goldens have 4 to 8 channels instead of 32 to 64 and stay small.
backbone.Normalize = lambda channels: torch.nn.GroupNorm(2, channels, eps=1e-6)


class SquaredDistance(torch.nn.Module):
    """In the place of LPIPS, which has a golden of its own: any distance of two pictures serves to check how the losses are put together."""

    def forward(self, x, y):
        return ((x - y) ** 2).mean((1, 2, 3), keepdim=True)


vqperceptual.LPIPS = SquaredDistance


class Taming(torch.nn.Module):
    """`taming.models.vqgan.VQModel` without Lightning: the same parts under the same names."""

    def __init__(self, loss):
        super().__init__()
        sizes = dict(
            ch=4, out_ch=3, ch_mult=(1, 2, 2), num_res_blocks=1, attn_resolutions=[4], in_channels=3, resolution=16, z_channels=6, double_z=False, dropout=0.0,
        )
        self.encoder = backbone.Encoder(**sizes)
        self.decoder = backbone.Decoder(**sizes)
        self.loss = loss
        self.quantize = VectorQuantizer2(12, 5, beta=0.25, legacy=False)
        self.quant_conv = torch.nn.Conv2d(6, 5, 1)
        self.post_quant_conv = torch.nn.Conv2d(5, 6, 1)


def spread(model):
    """Random values everywhere, norms and biases too, so that no term of the formula is idle."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)


def spread_codebook(embedding, latents):
    """Codes near latents, with clear distances between them, so that rounding decides no token."""
    flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    with torch.no_grad():
        embedding.copy_(flat[:: len(flat) // len(embedding)][: len(embedding)] + 0.1 * torch.randn_like(embedding))


def channels_last(x):
    return x.detach().permute(0, 2, 3, 1).contiguous()


def save(name, tensors):
    safetensors.torch.save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, HERE / name)


def taming():
    torch.manual_seed(SEED)
    loss = vqperceptual.VQLPIPSWithDiscriminator(disc_start=0, disc_num_layers=2, disc_ndf=3, disc_weight=0.8, codebook_weight=1.0)
    model = Taming(loss)
    spread(model)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    spread_codebook(model.quantize.embedding.weight, model.quant_conv(model.encoder(x)))
    torch.save({"epoch": 3, "global_step": 70, "state_dict": model.state_dict()}, HERE / "taming.ckpt")

    latents = model.quant_conv(model.encoder(x))
    codes, codebook_loss, (_, _, tokens) = model.quantize(latents)
    picture = model.decoder(model.post_quant_conv(codes))
    total, log = loss(codebook_loss, x, picture, 0, 100, last_layer=model.decoder.conv_out.weight)
    total.backward()
    save("taming_results.safetensors", {
        "x": channels_last(x),
        "latents": channels_last(latents),
        "codes": channels_last(codes),
        "tokens": tokens.reshape(2, -1),
        "picture": channels_last(picture),
        "losses.codebook_and_commitment": codebook_loss,
        "losses.reconstruction": log["train/nll_loss"],
        "losses.adversarial": log["train/g_loss"],
        "losses.adversarial_weight": log["train/d_weight"],
        "losses.total": total,
    })
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if not name.startswith("loss.")}
    model.zero_grad()
    discriminator_loss, _ = loss(codebook_loss, x, picture, 1, 100)
    discriminator_loss.backward()
    gradients |= {name: parameter.grad for name, parameter in model.named_parameters() if name.startswith("loss.discriminator")}
    gradients["losses.discriminator"] = discriminator_loss
    save("taming_gradients.safetensors", gradients)


def gumbel():
    """taming's `GumbelVQ`: codes are chosen by `quantize.proj`. In evaluation the reference still adds Gumbel noise; the golden takes the noise away, as
    published decoders of these checkpoints do (argmax of the scores)."""
    torch.manual_seed(SEED + 2)
    model = torch.nn.Module()
    sizes = dict(
        ch=4, out_ch=3, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=[4], in_channels=3, resolution=8, z_channels=5, double_z=False, dropout=0.0,
    )
    model.encoder, model.decoder = backbone.Encoder(**sizes), backbone.Decoder(**sizes)
    model.quantize = GumbelQuantize(5, 5, n_embed=12, kl_weight=1e-8)
    model.quant_conv, model.post_quant_conv = torch.nn.Conv2d(5, 5, 1), torch.nn.Conv2d(5, 5, 1)
    spread(model)
    model.eval()
    torch.save({"state_dict": model.state_dict()}, HERE / "gumbel.ckpt")
    x = torch.rand(2, 3, 8, 12) * 2 - 1
    with torch.no_grad():
        latents = model.quant_conv(model.encoder(x))
        tokens = model.quantize.proj(latents).argmax(1)
        # Scores this far apart leave the noise nothing to decide.
        weight, bias = model.quantize.proj.weight.clone(), model.quantize.proj.bias.clone()
        model.quantize.proj.weight.mul_(1e6)
        model.quantize.proj.bias.mul_(1e6)
        codes, _, (_, _, chosen) = model.quantize(latents)
        model.quantize.proj.weight.copy_(weight)
        model.quantize.proj.bias.copy_(bias)
        assert (chosen == tokens).all()
        picture = model.decoder(model.post_quant_conv(codes))
    save("gumbel_results.safetensors", {
        "x": channels_last(x), "tokens": tokens.reshape(2, -1), "codes": channels_last(codes), "picture": channels_last(picture),
    })


def published_width():
    """32 groups as published, as narrow as they allow, with the 16384 codes that DALL-E mini speaks of: for `smalti import` as a whole. Half precision."""
    torch.manual_seed(SEED + 3)
    narrow, backbone.Normalize = backbone.Normalize, lambda channels: torch.nn.GroupNorm(32, channels, eps=1e-6)
    model = torch.nn.Module()
    sizes = dict(
        ch=32, out_ch=3, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=[], in_channels=3, resolution=32, z_channels=3, double_z=False, dropout=0.0,
    )
    model.encoder, model.decoder = backbone.Encoder(**sizes), backbone.Decoder(**sizes)
    model.quantize = VectorQuantizer2(16384, 3, beta=0.25, legacy=False)
    model.quant_conv, model.post_quant_conv = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)
    backbone.Normalize = narrow
    spread(model)
    torch.save({"global_step": 1, "state_dict": {name: tensor.half() for name, tensor in model.state_dict().items()}}, HERE / "taming_published_width.ckpt")


def diffusers_model():
    torch.manual_seed(SEED + 1)
    model = diffusers.VQModel(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=2, latent_channels=6, vq_embed_dim=5, num_vq_embeddings=12, norm_num_groups=2, sample_size=16,
    ).eval()
    spread(model)
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        spread_codebook(model.quantize.embedding.weight, model.encode(x).latents)
        latents = model.encode(x).latents
        _, _, (_, _, tokens) = model.quantize(latents)
        picture = model.decode(latents).sample
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        shutil.copy(Path(folder) / "config.json", HERE / "diffusers_config.json")
        shutil.copy(Path(folder) / "diffusion_pytorch_model.safetensors", HERE / "diffusers_weights.safetensors")
    save("diffusers_results.safetensors", {
        "x": channels_last(x), "latents": channels_last(latents), "tokens": tokens.reshape(2, -1), "picture": channels_last(picture),
    })


def provenance():
    packages = ["taming-transformers-rom1504", "diffusers", "torch", "safetensors"]
    lines = [f'seed = {SEED}', f'python = "{platform.python_version()}"', "", "[packages]"]
    lines += [f'{package} = "{importlib.metadata.version(package)}"' for package in packages]
    (HERE / "PROVENANCE.toml").write_text("# Written by make.py.\n" + "\n".join(lines) + "\n")


taming()
diffusers_model()
gumbel()
published_width()
provenance()
