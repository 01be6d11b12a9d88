import sys

# diffusers and others import torchao if it is there: it takes half a second, warns, and asks for GPUs, after which
# CUDA_VISIBLE_DEVICES has no effect. `trainer.models.quantization` ends its hiding.
sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]  # how Python is told that there is none
