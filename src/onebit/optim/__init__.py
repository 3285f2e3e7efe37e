"""Optimizers and schedules: the maths as pure functions, the classes thin shells."""

from onebit.optim.learning_rate import Decay, LearningRate, learning_rate, weight_decay
from onebit.optim.muon import Muon, muon_groups
from onebit.optim.parameter_groups import decaying_parameter_names
from onebit.optim.regimes import LambdaShape, arenas, lambda_mix, soft_alpha

__all__ = [
    "Decay",
    "LambdaShape",
    "LearningRate",
    "Muon",
    "arenas",
    "decaying_parameter_names",
    "lambda_mix",
    "learning_rate",
    "muon_groups",
    "soft_alpha",
    "weight_decay",
]
