"""Fine-tune a model with ternary weights, under the name and flags of onebitllms' script: `onebit sft` does the work.

python examples/sft.py --model_name_or_path tiiuae/Falcon-E-1B-Base --model_revision prequantized \
    --torch_dtype bfloat16 --learning_rate 0.0001 --dataset_name trl-lib/Capybara --allow_download \
    --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --packing --output_dir Falcon-E-Capybara
"""

from __future__ import annotations

import sys

from onebit.cli.main import run

if __name__ == "__main__":
    run(["sft", *sys.argv[1:]])
