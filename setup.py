"""Packaging of dgcomp; everything but the package list stands in pyproject.toml."""

from setuptools import find_packages, setup

# The top-level links quant, sparse and hwmodel must never become packages of their own: installed under
# those names they would overwrite other people's packages. Only dgcomp and what is below it is shipped.
setup(packages=find_packages(include=["dgcomp", "dgcomp.*"]))
