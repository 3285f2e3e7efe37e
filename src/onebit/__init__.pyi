from onebit.compat.phase4_bitnet import BitNetQuantizer as BitNetQuantizer
from onebit.compat.phase4_bitnet import CompressedModel as CompressedModel
from onebit.compat.phase4_bitnet import Phase4Config as Phase4Config
from onebit.compat.phase4_bitnet import activation_quant as activation_quant
from onebit.compat.phase4_bitnet import apply_ste as apply_ste
from onebit.compat.phase4_bitnet import load_phase4_model as load_phase4_model
from onebit.compat.phase4_bitnet import save_phase4_model as save_phase4_model
from onebit.engine import Model as Model
from onebit.engine import load as load
from onebit.errors import OnebitError as OnebitError
from onebit.eval.verify import verify as verify
from onebit.models import OneBitConfig as OneBitConfig
from onebit.models import OneBitForCausalLM as OneBitForCausalLM
from onebit.nn import BitLinear as BitLinear
from onebit.nn import Pure1BitLinear as Pure1BitLinear
from onebit.nn import Schedule as Schedule
from onebit.nn import create_pure1bit_optimizer as create_pure1bit_optimizer
from onebit.nn import pure1bit_training_step as pure1bit_training_step
from onebit.nn import replace_linear_with_bitlinear as replace_linear_with_bitlinear
from onebit.nn import replace_linear_with_bitnet_linear as replace_linear_with_bitnet_linear
from onebit.nn import replace_linear_with_pure1bit_linear as replace_linear_with_pure1bit_linear
from onebit.quant import WeightQuantizer as WeightQuantizer
from onebit.quant import dequantize as dequantize
from onebit.quant import fake_quantize as fake_quantize
from onebit.quant import quantize as quantize
from onebit.train import TrainSettings as TrainSettings

__version__: str
