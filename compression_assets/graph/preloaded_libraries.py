"""Libraries that most steps need, imported before steps are forked.

Only imports: a process that has started threads cannot be forked.
"""

from compression_assets.machine.runtime import prepare_process

prepare_process()

import bitsandbytes  # noqa: E402, F401, TID253
import datasets  # noqa: E402, F401, TID253
import scipy.stats  # noqa: E402, F401, TID253
import torch  # noqa: E402, F401, TID253
import transformers.integrations.bitsandbytes  # noqa: E402, TID253
import transformers.models.llama.modeling_llama  # noqa: E402, TID253
import transformers.models.qwen2.modeling_qwen2  # noqa: E402, F401, TID253
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402, F401, TID253
