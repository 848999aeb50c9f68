"""Libraries for `warm`. Imports alone: a library that has started threads cannot be forked."""

import compression_assets.graph.run  # noqa: F401
from compression_assets.evaluation.judging.prompts import import_deepeval
from compression_assets.machine.runtime import prepare_process

prepare_process()

import bitsandbytes  # noqa: E402, F401
import dagster  # noqa: E402, F401
import datasets  # noqa: E402, F401
import duckdb  # noqa: E402, F401
import jinja2  # noqa: E402, F401
import matplotlib.figure  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401
import scipy.stats  # noqa: E402, F401
import textstat  # noqa: E402, F401
import torch  # noqa: E402, F401
import transformers.integrations.bitsandbytes  # noqa: E402
import transformers.models.llama.modeling_llama  # noqa: E402
import transformers.models.qwen2.modeling_qwen2  # noqa: E402, F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402, F401

import_deepeval()
