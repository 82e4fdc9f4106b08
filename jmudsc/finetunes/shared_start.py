"""Shared start: do models come from one base, and is it the base that was given."""

from jmudsc.finetunes.job import Job


def warn_of_base(where: str, job: Job) -> None:
    """Warn of a base that is probably not what the models were trained from."""
