"""The definitions that Dagster loads: the study named by COMPRESSION_STUDY, the demo by default."""

import gc

import click
import dagster as dg

from compression_assets.errors import StudyError
from compression_assets.graph.build import build_defs
from compression_assets.machine.runtime import prepare_process
from compression_assets.study.places import current_study, refuse_foreign_home


class UnusableStudy(click.ClickException, StudyError):
    """A StudyError that `dagster`'s commands print as its sentence; what click does not know is a traceback there."""


def _definitions() -> dg.Definitions:
    try:
        prepare_process()
        study = current_study()
        refuse_foreign_home(study)
        return build_defs(study)
    except StudyError as error:
        raise UnusableStudy(str(error)) from None


# Dagster's hundred thousand objects stay for as long as the process: the collector need not look through them each time
# that ours have grown, which took a fifth of the time that this import takes, nor touch them in processes forked later.
gc.freeze()
defs = _definitions()
