"""wedefense_nb: detecting and locating fake speech, a course and a library in one."""

from importlib.metadata import version

__version__ = version("wedefense_nb")
