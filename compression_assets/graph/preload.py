"""Imported once by the server from which the steps of a run are forked on a CPU, so that each starts in no time.

Only imports: a library that has started threads cannot be forked. What fails here fails in silence, and every step then
imports for itself: a test imports this module.
"""

from compression_assets.graph.run import full_study_job
from compression_assets.machine.runtime import prepare_process
from compression_assets.study.places import current_study

prepare_process()

import bitsandbytes  # noqa: E402, F401, TID253
import datasets  # noqa: E402, F401, TID253
import scipy.stats  # noqa: E402, F401, TID253
import torch  # noqa: E402, F401, TID253
import transformers.integrations.bitsandbytes  # noqa: E402, TID253
import transformers.models.llama.modeling_llama  # noqa: E402, TID253
import transformers.models.qwen2.modeling_qwen2  # noqa: E402, F401, TID253
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402, F401, TID253

evaluation = current_study().evaluation
if evaluation.judge is not None:
    from compression_assets.evaluation.judging.prompts import import_deepeval

    import_deepeval()
if evaluation.clarity is not None:
    import sentence_transformers  # noqa: F401

full_study_job()
