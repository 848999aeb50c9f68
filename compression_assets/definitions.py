"""The definitions that Dagster loads: the study named by COMPRESSION_STUDY, the demo by default."""

from compression_assets.build import build_defs
from compression_assets.runtime import prepare_process
from compression_assets.settings import current_study, refuse_foreign_home

prepare_process()
study = current_study()
refuse_foreign_home(study)
defs = build_defs(study)
