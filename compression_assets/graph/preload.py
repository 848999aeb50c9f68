"""Imported once by the server from which the steps of a run are forked on a CPU, so that each starts in no time.

What fails here fails in silence, and every step then imports for itself: a test imports this module.
"""

import gc

import dagster._core.storage.sqlite_storage  # noqa: F401

from compression_assets.graph import preloaded_libraries as preloaded_libraries
from compression_assets.graph.run import full_study_job
from compression_assets.study.places import current_study

evaluation = current_study().evaluation
if evaluation.judge is not None:
    from compression_assets.evaluation.judging.prompts import import_deepeval

    import_deepeval()
if evaluation.clarity is not None:
    import sentence_transformers  # noqa: F401
    import textstat  # noqa: F401

full_study_job()

# A collection in a step would walk through all of this and, by touching it, copy it into the step's own memory: half a
# second a step.
gc.collect()
gc.freeze()
