"""What is minimized: the loss, its weight over timesteps, and the noise."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from trainer.protocol.frozen import Frozen


class LossKind(StrEnum):
    """How the difference between prediction and target counts."""

    MSE = "mse"
    L1 = "l1"
    #: Quadratic within `huber_delta`, linear beyond; scaled so that delta -> infinity is mse.
    HUBER = "huber"
    #: Huber divided by its delta: l1 beyond `huber_delta`, rounded off within.
    SMOOTH_L1 = "smooth_l1"


class Prediction(StrEnum):
    """What the denoiser is asked for."""

    #: What the base was trained to say.
    AUTO = "auto"
    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"


class Objective(Frozen):
    """The loss of a diffusion model."""

    loss: LossKind = LossKind.MSE
    huber_delta: float = Field(default=0.1, gt=0, le=10)
    #: Min-SNR-gamma loss weighting (Hang et al. 2023, arXiv:2303.09556); None weighs all timesteps alike.
    snr_gamma: float | None = Field(default=None, gt=0, le=100)
    #: Weight 1 / sqrt(SNR), for epsilon (Yu et al. 2023, arXiv:2310.08442).
    debiased: bool = False
    prediction: Prediction = Prediction.AUTO
    #: Rescale the noise schedule so that its last step is noise alone (Lin et al. 2023, arXiv:2305.08891).
    zero_terminal_snr: bool = False
    #: Noise with an offset for each channel, so that very dark and very bright pictures can be learnt.
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    #: Noise with coarser noise added, each scale by this factor less; None: off. 0.3 is usual.
    pyramid_noise: float | None = Field(default=None, gt=0, lt=1)
    #: Noise added to the noise of the input only (Ning et al. 2023, arXiv:2301.11706); 0.1 is the paper's.
    input_perturbation: float = Field(default=0.0, ge=0, le=1)
    #: Count the loss where the picture's mask is (its alpha, or a mask file beside it).
    masked: bool = False
    #: What the rest counts.
    mask_floor: float = Field(default=0.0, ge=0, le=1)
