"""The parts of the evidence page: what is trained, the ranks that train it, tables, plots and the page itself."""
