"""A worker of pytest-xdist as a fork of a process that has imported the libraries (see conftest.py).

Each worker would import them itself, in 10 s of CPU.
"""

from __future__ import annotations

import atexit
import sys
import types

import datasets
import discord
import imgaug
import lycoris.modules
import sklearn.metrics
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from matplotlib.figure import Figure
from transformers import AutoModel, T5EncoderModel

from tests import worker_coverage

#: Imported for those who import them later; no module of our own, of which `--coverage` would miss the lines.
LIBRARIES = (
    *(datasets, discord, imgaug, lycoris.modules, sklearn.metrics, torch),
    *(StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, Figure, AutoModel, T5EncoderModel),
)

worker_coverage.start()


def main(argv: list[str]) -> int:
    """Do what `python -u -c CODE` does: CODE is execnet's, and turns this process into a worker."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(argv[argv.index("-c") + 1], module.__dict__)
    # A fork ends without them.
    atexit._run_exitfuncs()
    return 0
