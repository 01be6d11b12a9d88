"""A minimal training loop, the baseline of `bench.train`: one batch in memory, forward, backward, optimizer.

    python -m bench.bare BASE BATCH.safetensors fp32|bf16 STARTED_AT      (one step; prints its measures as JSON)

It is the minimum that trains a LoRA with diffusers and peft: no data, no events, no checkpoint. In bf16 the frozen
weights are bf16 too, which is the fastest option.
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

#: The settings of the job that it is compared with.
RANK, ALPHA = 8, 8.0
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


class BareLoop:
    """A UNet with a LoRA, trained on the same batch at each step."""

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
    def images(self) -> int:
        return len(self._latents)

    def steps(self, number: int) -> None:
        """Take `number` optimizer steps."""
        for _ in range(number):
            noise = torch.randn_like(self._latents)
            timesteps = torch.randint(1000, (self.images,))
            noisy = self._schedule.add_noise(self._latents, noise, timesteps)
            with torch.autocast("cpu", dtype=self._dtype, enabled=self._dtype is not torch.float32):
                predicted = self._unet(noisy, timesteps, self._captions, return_dict=False)[0]
            torch.autograd.backward(torch.nn.functional.mse_loss(predicted.float(), noise))
            torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()


def main() -> None:
    base, batch, precision, started_at = sys.argv[1:]
    BareLoop(Path(base), Path(batch), precision).steps(1)
    print_first_step(float(started_at))


def print_first_step(started_at: float) -> None:
    """Print time, CPU time and peak memory of this process, which has just taken its first step."""
    seconds, cpu_s = time.time() - started_at, time.process_time()
    # VmHWM, since ru_maxrss includes the parent's peak before exec.
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    sys.stdout.write(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "memory_mib": peak_kib / 1024}) + "\n")


if __name__ == "__main__":
    main()
