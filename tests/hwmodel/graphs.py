"""The three graphs of SpArch's twenty benchmarks that may be at hand, as patterns."""

import numpy as np

from dgcomp.hwmodel.pattern import Pattern
from tests.conftest import data_file


def load_graph(name: str) -> Pattern:
    """Adjacency of "wiki-Vote", "facebook" (symmetric) or "p2p-Gnutella31"; skips the test without the file."""
    if name == "wiki-Vote":
        edges = np.loadtxt(data_file("graphs/wiki-Vote.mtx"), comments="%", usecols=(0, 1), dtype=np.int64)
        num_nodes, edges = int(edges[0, 0]), edges[1:] - 1
    elif name == "facebook":
        edges = np.loadtxt(data_file("graphs/facebook_combined.txt"), usecols=(0, 1), dtype=np.int64)
        num_nodes = 4039
        edges = edges[(edges < num_nodes).all(axis=1) & (edges[:, 0] != edges[:, 1])]  # drops the two header lines
        edges = np.vstack([edges, edges[:, ::-1]])
    else:
        edges = np.loadtxt(data_file("graphs/p2p-Gnutella31.e"), usecols=(0, 1), dtype=np.int64) - 1
        num_nodes = 62_586
    return Pattern.from_coordinates(num_nodes, num_nodes, edges[:, 0], edges[:, 1])
