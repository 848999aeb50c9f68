"""The one exception for a user's mistake. Nothing else belongs here."""


class StudyError(Exception):
    """A mistake that the user can mend.

    Its message is one sentence that names the cause and, where there is one, the next command.
    """
