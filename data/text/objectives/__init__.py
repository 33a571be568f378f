"""Pretraining objectives as pure functions on token ids: what a row hides, how it is asked for."""

from typing import Literal

ObjectiveName = Literal["causal", "masked", "span_corruption", "denoising"]
