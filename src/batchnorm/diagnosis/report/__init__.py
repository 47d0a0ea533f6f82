"""The report every kind of evidence ends in."""

from batchnorm.diagnosis.report.report import Report as Report
from batchnorm.diagnosis.report.report import finite as finite
from batchnorm.diagnosis.report.subject import Subject as Subject
from batchnorm.diagnosis.report.subject import Table as Table
from batchnorm.diagnosis.report.subject import Timeline as Timeline
