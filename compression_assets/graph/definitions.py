"""The definitions that Dagster loads: the study named by COMPRESSION_STUDY, the demo by default."""

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


defs = _definitions()
