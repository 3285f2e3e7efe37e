"""Fine-tune a model whose weights are codes all the way through, with the flags of sft.py: `onebit sft --pure` does it.

python examples/pure1bit_sft.py --model_name_or_path tiiuae/Falcon-E-1B-Base --model_revision prequantized \
    --torch_dtype bfloat16 --learning_rate 0.0001 --dataset_name trl-lib/Capybara --allow_download \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --packing --output_dir Falcon-E-Capybara-Pure1Bit
"""

from __future__ import annotations

import sys

from onebit.cli.main import run

if __name__ == "__main__":
    run(["sft", "--pure", *sys.argv[1:]])
