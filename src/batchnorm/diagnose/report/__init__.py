"""The report every kind of evidence ends in."""

from batchnorm.diagnose.report.report import Report as Report
from batchnorm.diagnose.report.report import finite as finite
from batchnorm.diagnose.report.subject import Subject as Subject
from batchnorm.diagnose.report.subject import Table as Table
from batchnorm.diagnose.report.subject import Timeline as Timeline
