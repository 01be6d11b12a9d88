"""The loop that ours is measured by: one batch of latents and captions in memory, forward, backward, optimizer.

    python -m bench.bare BASE BATCH.safetensors fp32|bf16 BEGAN      (one first step, told as JSON)

It is the least that trains a LoRA in diffusers and peft: no data, no events, no checkpoint. In bf16 the frozen weights
are bf16 too, the fastest that a bare loop can be.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from peft import LoraConfig
from safetensors.torch import load_file

#: As in the job that it stands beside.
RANK, ALPHA = 8, 8.0
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class BareLoop:
    """A UNet with a LoRA of its own, and the batch that it sees at every step."""

    def __init__(self, base: Path, batch: Path, precision: str) -> None:
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").to(dtype=self._dtype)
        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS)))
        self._parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter in self._parameters:
            parameter.data = parameter.data.float()
        self._unet = unet.train()
        self._schedule = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        self._optimizer = torch.optim.AdamW(self._parameters, lr=1e-6)
        tensors = load_file(batch)
        self._latents, self._captions = tensors["latents"], tensors["captions"]

    @property
    def pictures(self) -> int:
        return len(self._latents)

    def steps(self, number: int) -> None:
        """Take so many."""
        for _ in range(number):
            noise = torch.randn_like(self._latents)
            timesteps = torch.randint(1000, (self.pictures,))
            noisy = self._schedule.add_noise(self._latents, noise, timesteps)
            with torch.autocast("cpu", dtype=self._dtype, enabled=self._dtype is not torch.float32):
                predicted = self._unet(noisy, timesteps, self._captions, return_dict=False)[0]
            torch.autograd.backward(torch.nn.functional.mse_loss(predicted.float(), noise))
            torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()


def main() -> None:
    base, batch, precision, began = sys.argv[1:]
    BareLoop(Path(base), Path(batch), precision).steps(1)
    tell_first_step(float(began))


def tell_first_step(began: float) -> None:
    """The figures of a process that has just taken its first step; `began` by the clock of whoever started it."""
    seconds, cpu_s = time.time() - began, time.process_time()
    # Of this program alone: ru_maxrss begins at that of the process that started it.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    sys.stdout.write(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "memory_mib": peak_kib / 1024}) + "\n")


if __name__ == "__main__":
    main()
