"""The report every kind of evidence ends in."""

from batchnorm.diagnosis.report.report import Report, finite
from batchnorm.diagnosis.report.subject import Subject, Table, Timeline

__all__ = ["Report", "Subject", "Table", "Timeline", "finite"]
