"""Training: the recipe (`train(TrainSettings(...))`) and the parts it is made of."""

from onebit.train.recipe import TrainResult, train
from onebit.train.settings import TrainSettings

__all__ = ["TrainResult", "TrainSettings", "train"]
