from onebit.engine import Model as Model
from onebit.engine import load as load
from onebit.errors import OnebitError as OnebitError
from onebit.eval.verify import verify as verify
from onebit.models import OneBitConfig as OneBitConfig
from onebit.models import OneBitForCausalLM as OneBitForCausalLM
from onebit.nn import BitLinear as BitLinear
from onebit.nn import Schedule as Schedule
from onebit.quant import WeightQuantizer as WeightQuantizer
from onebit.quant import dequantize as dequantize
from onebit.quant import fake_quantize as fake_quantize
from onebit.quant import quantize as quantize
from onebit.train import TrainSettings as TrainSettings

__version__: str
