"""Trains the UNet and the text encoder together, from scratch, on cached latents, under a time budget.

Epsilon prediction on SD 1.x's noise schedule, caption dropout for classifier-free guidance, and an exponential moving
average of all weights, which is what is shipped. The loss is weighted by min-SNR (https://arxiv.org/abs/2303.09556,
gamma 5) against low noise, and as v-prediction would weight it (1 / alpha-bar, at most 10) towards high noise: with
flat weights the caption makes a difference of under 1 % to the loss where backgrounds are decided, and 1,300 steps
taught the color of things but not of backgrounds. (Batch size and timestep spreading changed with the
weights: which of them made backgrounds follow the prompt was not isolated.)
"""

import copy
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from recipes.tiny.networks import new_scheduler, new_text_encoder, new_unet
from recipes.tiny.scenes import caption_seed
from recipes.tiny.train_vae import cosine

logger = logging.getLogger(__name__)

BATCH = 16
CAPTIONS_PER_IMAGE = 4
CAPTION_DROPOUT = 0.1
PEAK_LR = 1e-3
EMA_DECAY = 0.998
MIN_SNR_GAMMA = 5.0
SAVE_EVERY_S = 360.0
HIGH_NOISE_WEIGHT = 10.0


class Networks(nn.Module):
    """The UNet and the text encoder, which are trained together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet: UNet2DConditionModel = new_unet().to(memory_format=torch.channels_last)
        self.text_encoder: CLIPTextModel = new_text_encoder(tokenizer)

    def forward(self, noisy_BCHW: Tensor, timesteps_B: Tensor, tokens_BL: Tensor) -> Tensor:
        """Return the predicted noise."""
        hidden_BLD = self.text_encoder(tokens_BL).last_hidden_state
        predicted: Tensor = self.unet(noisy_BCHW, timesteps_B, hidden_BLD).sample
        return predicted


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Cached latents, the tokens of their captions, and those of the empty caption."""

    #: (N, 4, 16, 16)
    latents: Tensor
    #: (N, captions per image, 77)
    tokens: Tensor
    empty_tokens: Tensor

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(rng.integers(len(self.latents), size=BATCH))
        tokens = self.tokens[rows, torch.from_numpy(rng.integers(self.tokens.shape[1], size=BATCH))].long()
        tokens[torch.from_numpy(rng.random(BATCH) < CAPTION_DROPOUT)] = self.empty_tokens.long()
        return self.latents[rows].contiguous(memory_format=torch.channels_last), tokens


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return the tokens of the captions, padded to 77, as int16."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    tokens: Tensor = encoded.input_ids
    return tokens.to(torch.int16)


def caption_tokens(tokenizer: CLIPTokenizer, count: int) -> Tensor:
    """Return the tokens (count, captions per image, 77) of the scenes of the seeds 0..count-1."""
    captions = [caption_seed(seed, variant) for seed in range(count) for variant in range(CAPTIONS_PER_IMAGE)]
    chunks = [tokenize(tokenizer, captions[start : start + 4000]) for start in range(0, len(captions), 4000)]
    return torch.cat(chunks).view(count, CAPTIONS_PER_IMAGE, -1)


def loss_weight(alphas_cumprod_B: Tensor) -> Tensor:
    """Return the loss weight of a timestep: min(SNR, gamma) / SNR, times 1 / alpha-bar up to a limit."""
    snr = alphas_cumprod_B / (1 - alphas_cumprod_B)
    return snr.clamp(max=MIN_SNR_GAMMA) / snr * alphas_cumprod_B.reciprocal().clamp(max=HIGH_NOISE_WEIGHT)


def spread_timesteps(count: int, batch: int) -> Tensor:
    """Draw timesteps by stratified sampling, one from each of `batch` equal ranges: less noise in the loss."""
    return ((torch.arange(batch) + torch.rand(batch)) / batch * count).long()


def noise_loss(networks: Networks, scheduler: DDIMScheduler, latents: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted loss of one batch, and its plain mean squared error for the log."""
    noise = torch.randn_like(latents)
    timesteps = spread_timesteps(scheduler.config.num_train_timesteps, len(latents))
    predicted = networks(scheduler.add_noise(latents, noise, timesteps), timesteps, tokens)
    mse_B = (predicted - noise).square().mean(dim=(1, 2, 3))
    return (mse_B * loss_weight(scheduler.alphas_cumprod[timesteps])).mean(), mse_B.detach().mean()


@torch.no_grad()
def _follow(average: Networks, networks: Networks, decay: float) -> None:
    for kept, current in zip(average.parameters(), networks.parameters(), strict=True):
        kept.lerp_(current, 1 - decay)


def _optimizer(networks: Networks) -> torch.optim.Optimizer:
    """Return AdamW without weight decay on biases, norms and embeddings."""
    decayed = [p for name, p in networks.named_parameters() if p.ndim > 1 and "embedding" not in name]
    plain = [p for name, p in networks.named_parameters() if p.ndim <= 1 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.98), fused=True)


@dataclass(kw_only=True)
class Progress:
    """State of a run besides the weights."""

    step: int = 0
    elapsed_s: float = 0.0


def _save(
    path: Path, networks: Networks, average: Networks, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    state = {"networks": networks.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state | {"step": progress.step, "elapsed_s": progress.elapsed_s}, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def train_unet(
    examples: Examples,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    budget_s: float,
    on_save: Callable[[Networks, Progress], None],
) -> Networks:
    """Train for `budget_s` seconds in all, resuming from `checkpoint` if it exists; return the averaged weights.

    ``on_save`` gets the averaged networks every six minutes and at the end.
    """
    torch.manual_seed(random.Random("unet").randrange(2**31))
    networks, scheduler, progress = Networks(tokenizer), new_scheduler(), Progress()
    average, optimizer = copy.deepcopy(networks), _optimizer(networks)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        networks.load_state_dict(state["networks"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(step=state["step"], elapsed_s=state["elapsed_s"])
    rng = np.random.default_rng(progress.step)
    began = saved = time.monotonic() - progress.elapsed_s
    mse_mean = 1.0
    while progress.elapsed_s < budget_s:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * cosine(progress.elapsed_s / budget_s)
        loss, mse = noise_loss(networks, scheduler, *examples.batch(rng))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step, progress.elapsed_s = progress.step + 1, time.monotonic() - began
        _follow(average, networks, min(EMA_DECAY, (1 + progress.step) / (10 + progress.step)))
        mse_mean += (float(mse) - mse_mean) * max(0.01, 1 / progress.step)
        if progress.step % 100 == 0:
            logger.info("unet step %d, %.0f s: mse %.4f", progress.step, progress.elapsed_s, mse_mean)
        if time.monotonic() - saved > SAVE_EVERY_S:
            _save(checkpoint, networks, average, optimizer, progress)
            on_save(average, progress)
            saved = time.monotonic()
    _save(checkpoint, networks, average, optimizer, progress)
    on_save(average, progress)
    return average
