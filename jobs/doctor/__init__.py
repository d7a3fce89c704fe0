"""`backbone doctor`: what is wrong with a cluster, before it costs money, and what to do about it."""

from jobs.doctor.examination import doctor

__all__ = ["doctor"]
