"""Imported once by the server from which the steps of a run are forked on a CPU, so that each starts in no time.

Only imports: a library that has started threads cannot be forked.
"""

from compression_assets.definitions import study
from compression_assets.run import full_study_job
from compression_assets.runtime import prepare_process

prepare_process()

import bitsandbytes  # noqa: E402, F401, TID253
import datasets  # noqa: E402, F401, TID253
import torch  # noqa: E402, F401, TID253
import transformers  # noqa: E402, F401, TID253
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402, F401, TID253

if study.evaluation.judge is not None:
    from compression_assets.evaluation.judging.prompts import import_deepeval

    import_deepeval()

full_study_job()
